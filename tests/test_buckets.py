"""Buckets: listed, created and dropped (docs/http-api.md)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from poky.api.buckets import drop_bucket
from tests.service import Client


def test_buckets_are_listed_with_estimates(client: Client, bucket: str, kind: str) -> None:
    client.put(f"/kv/{bucket}/a", "v")
    listed = client.get("/buckets").json()["buckets"]
    assert [each["name"] for each in listed] == sorted(each["name"] for each in listed)
    mine = next(each for each in listed if each["name"] == bucket)
    assert mine["schema"] == kind
    assert isinstance(mine["estimated_rows"], int)
    assert mine["bytes"] >= 0


def test_creating_a_bucket_is_200_also_if_it_exists(admin: Client, client: Client) -> None:
    for _ in range(2):
        created = admin.request("PUT", "/buckets/made-here")
        assert (created.status, created.body) == (200, b"")
    assert "made-here" in [each["name"] for each in client.get("/buckets").json()["buckets"]]
    assert admin.request("DELETE", "/buckets/made-here").status == 200
    assert "made-here" not in [each["name"] for each in client.get("/buckets").json()["buckets"]]
    gone = admin.request("DELETE", "/buckets/made-here")
    assert gone.status == 404
    assert "made-here" in gone.detail


def test_a_bucket_with_keys_is_dropped_only_when_told_so(admin: Client, client: Client) -> None:
    admin.request("PUT", "/buckets/full")
    client.put("/kv/full/key", "value")
    refused = admin.request("DELETE", "/buckets/full")
    assert refused.status == 409
    assert "keys=drop" in refused.detail
    assert client.get("/kv/full/key").body == b"value"
    assert admin.request("DELETE", "/buckets/full?keys=yes").status == 400
    assert admin.request("DELETE", "/buckets/full?keys=drop").status == 200
    admin.request("PUT", "/buckets/full")
    assert client.get("/kv/full/key").status == 404
    admin.request("DELETE", "/buckets/full")


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_buckets_are_changed_only_on_the_admin_listener(
    client: Client, bucket: str, method: str
) -> None:
    refused = client.request(method, f"/buckets/{bucket}")
    assert refused.status == 403
    assert "admin listener" in refused.detail
    assert bucket in {each["name"] for each in client.get("/buckets").json()["buckets"]}
    assert client.request(method, "/buckets").status == 405


@pytest.mark.parametrize("name", [".", "..", "%2e", "%2E%2e"])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_dot_is_no_bucket(admin: Client, client: Client, method: str, name: str) -> None:
    refused = admin.request(method, f"/buckets/{name}")
    assert (refused.status, refused.code) == (400, "bad_bucket_name")
    assert "but not . or .." in refused.detail
    assert client.get(f"/kv/{name}/k").code == "bad_bucket_name"


@pytest.mark.parametrize("outbox_id", [None, 7])
def test_caches_hear_of_a_bucket_that_had_keys_alone(outbox_id: int | None) -> None:
    """To forget an empty one they would have to forget everything."""
    told: list[int | None] = []
    services: Any = SimpleNamespace(
        store=SimpleNamespace(drop_bucket=lambda name, keys: outbox_id),
        caches=SimpleNamespace(forget_bucket=told.append),
    )
    assert drop_bucket(services, {"QUERY_STRING": ""}, "b").status == "200 OK"
    assert told == [each for each in [outbox_id] if each is not None]
