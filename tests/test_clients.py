"""Programs that store files by path (docs/clients.md): ccache itself, the requests of others."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from base64 import b64encode
from pathlib import Path

import pytest

from tests.service import Client, Service


@pytest.mark.inside
def test_ccache_stores_what_it_compiled_and_finds_it_again(
    service: Service, client: Client, bucket: str, tmp_path: Path
) -> None:
    """In its default layout, with nothing in its own cache the second time."""
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 42; }\n")

    def compiled(cache: str) -> tuple[bytes, dict[str, int]]:
        environment = {
            **os.environ,
            "CCACHE_DIR": str(tmp_path / cache),
            "CCACHE_REMOTE_STORAGE": f"{service.url}/kv/{bucket}",
            "CCACHE_CONFIGPATH": str(tmp_path / "none.conf"),
        }
        made = tmp_path / "answer.o"
        made.unlink(missing_ok=True)
        command = ["ccache", "gcc", "-c", str(source), "-o", str(made)]
        subprocess.run(command, env=environment, check=True, timeout=60)
        shown = subprocess.run(
            ["ccache", "--print-stats"], env=environment, check=True, capture_output=True, text=True
        )
        counted = {
            name: int(count) for name, count in (each.split() for each in shown.stdout.splitlines())
        }
        return made.read_bytes(), counted

    first, counted = compiled("one")
    assert counted["remote_storage_write"] >= 2
    assert counted["remote_storage_error"] == 0
    keys = [each["key"] for each in client.get(f"/kv/{bucket}").json()["keys"]]
    assert len(keys) >= 2
    assert all(key.count("/") == 1 for key in keys)
    again, counted = compiled("two")
    assert again == first
    assert counted["remote_storage_read_hit"] >= 2
    assert counted["cache_miss"] == 0


def test_the_requests_of_bazel(client: Client, bucket: str) -> None:
    content = bytes(range(256)) * 16
    digest = hashlib.sha256(content).hexdigest()
    for path in (f"/kv/{bucket}/cas/{digest}", f"/kv/{bucket}/ac/{digest}"):
        assert client.get(path).status == 404
        assert client.put(path, content).status == 200
        read = client.get(path)
        assert (read.status, read.body) == (200, content)
    levels = client.get(f"/kv/{bucket}?delimiter=/").json()
    assert (levels["keys"], levels["prefixes"]) == ([], ["ac/", "cas/"])


def test_the_requests_of_terraforms_http_backend(client: Client, bucket: str) -> None:
    state = f"/kv/{bucket}/production/network.tfstate"
    assert client.get(state).status == 404  # a state that is not there yet
    content = json.dumps({"version": 4, "serial": 1}).encode()
    fields = {
        "Content-Type": "application/json",
        "Content-MD5": b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode(),
    }
    assert client.request("POST", state, content, fields).status == 200
    read = client.get(state)
    assert (read.status, read.body) == (200, content)
    # It would send this to a state that it had locked.
    refused = client.request("POST", f"{state}?ID=1", content, fields)
    assert (refused.status, refused.code) == (400, "bad_query")
    assert client.request("LOCK", state, b"{}").status == 405
    assert client.request("DELETE", state).status == 200


def test_a_lock_is_an_object_that_one_of_two_creates(client: Client, bucket: str) -> None:
    lock = f"/kv/{bucket}/production/network.lock"
    taken = client.put(lock, "me", if_none_match="*")
    assert taken.status == 200
    assert client.put(lock, "another", if_none_match="*").status == 412
    assert client.request("DELETE", lock, headers={"If-Match": '"1-00000000"'}).status == 412
    assert client.request("DELETE", lock, headers={"If-Match": taken.etag}).status == 200
    assert client.put(lock, "another", if_none_match="*").status == 200
