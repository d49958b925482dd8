"""One request is one id: in the lines of nginx, Varnish and the service."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service import Client, wait_until
from tests.support import roles
from tests.support.chain import Chain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TRACE = "0af7651916cd43dd8448eb211c80319c"
FILES = roles.ROOT / "roles" / "varnish" / "files"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    given: dict[str, dict[str, object]] = {
        "nginx": {"nginx_log_format": "json"},
        "poky": {"poky_log_format": "json"},
    }
    with Chain(tmp_path_factory.mktemp("joined"), given=given) as chain:
        chain.poky("bucket", "create", "b")
        yield chain


@pytest.fixture(scope="module")
def ncsa(chain: Chain) -> Iterator[Path]:
    """What the role's unit would write, from the chain's Varnish."""
    unit = (FILES / "poky-varnishncsa.service").read_text()
    words = shlex.split(re.findall("^ExecStart=(.+)$", unit, re.M)[0])
    words[words.index("-f") + 1] = str(FILES / "log.format")
    lines = chain.folder / "ncsa.log"
    with lines.open("wb") as log:
        process = subprocess.Popen(
            [*words, "-n", str(chain.folder / "varnish-state")], stdout=log, stderr=log
        )
    yield lines
    process.terminate()
    process.wait(10)


def objects(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines() if line.startswith("{")]


def words(file: Path) -> list[dict[str, str]]:
    lines = [line for line in file.read_text().splitlines() if line.startswith("method=")]
    return [dict(word.split("=", 1) for word in line.split()) for line in lines]


def test_lines_of_a_request_join(chain: Chain, ncsa: Path) -> None:
    client = Client(chain.http_port)
    logs = {
        "nginx": lambda: objects(chain.folder / "nginx" / "log" / "poky.access.log"),
        "varnish": lambda: words(ncsa),
        "service": lambda: objects(chain.instances[0].log),
    }

    def line(where: str, name: str) -> dict[str, str]:
        def find() -> list[dict[str, str]]:
            return [each for each in logs[where]() if each.get("id") == name]

        found: list[dict[str, str]] = wait_until(find, 30, f"{where} has a line for {name}")
        return found[0]

    # varnishncsa begins with what comes after it: until it is there, ask again.
    def is_logged() -> bool:
        client.get("/kv/b/awaited", x_request_id="awaited")
        return any(each.get("id") == "awaited" for each in words(ncsa))

    wait_until(is_logged, 30, "varnishncsa writes")

    # A write, and a read that the cache has to fetch, which it does for all who want it.
    trace = f"00-{TRACE}-b7ad6b7169203331-01"
    assert client.put("/kv/b/k", "v", x_request_id="write", traceparent=trace).status == 200
    assert client.get("/kv/b/k?secret=1", x_request_id="read", traceparent=trace).status == 200
    assert client.get("/kv/b/k", x_request_id="fetch", traceparent=trace).status == 200
    for name, method in (("write", "PUT"), ("read", "GET"), ("fetch", "GET")):
        for where in logs:
            found = line(where, name)
            assert (found["method"], found["path"]) == (method, "/kv/b/k"), (where, name)
            assert str(found["status"]) == "200"
        for where in ("nginx", "service"):
            assert line(where, name)["trace"] == TRACE

    # Without a name of its own a request gets one.
    assert client.delete("/kv/b/unnamed").status == 404
    (named,) = wait_until(
        lambda: [each for each in logs["nginx"]() if each["path"] == "/kv/b/unnamed"]
    )
    assert re.fullmatch("[0-9a-f]{32}", named["id"])
    for where in ("varnish", "service"):
        assert line(where, named["id"])["path"] == "/kv/b/unnamed"

    # What is no word goes no further, also around nginx.
    direct = Client(chain.cache_port)
    forged = "x status=500"
    assert direct.get("/kv/b/forged", x_request_id=forged, traceparent="y" * 55).status == 404
    wait_until(lambda: [e for e in logs["service"]() if e.get("path") == "/kv/b/forged"])
    assert all(each.get("id") != forged for each in logs["service"]())
    assert not [each for each in logs["service"]() if "secret" in str(each)]
