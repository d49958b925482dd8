"""Buckets are those that the inventory declares; one more or less from the command line."""

from __future__ import annotations

from deployment import Deployment

DECLARED = [{"name": "declared"}, {"name": "with.dots-and_more"}]


def test_a_plan_says_what_is_missing_and_makes_nothing(deployment: Deployment) -> None:
    run = deployment.succeed("buckets", "--check", poky_buckets=DECLARED)
    assert sum(run.changed().values()) > 0
    assert "with.dots-and_more" in run.output
    assert deployment.request("PUT", "/kv/declared/key", "value")[0] == 404


def test_what_is_declared_is_made_once(deployment: Deployment) -> None:
    assert deployment.succeed("buckets", poky_buckets=DECLARED).changed()
    for bucket in DECLARED:
        assert deployment.request("PUT", f"/kv/{bucket['name']}/key", "value")[0] == 200
    again = deployment.succeed("buckets", poky_buckets=DECLARED)
    assert sum(again.changed().values()) == 0, str(again)


def test_one_bucket_from_the_command_line(deployment: Deployment) -> None:
    deployment.succeed("buckets", poky_buckets=DECLARED, poky_bucket="extra")
    assert deployment.request("PUT", "/kv/extra/key", "value")[0] == 200


def test_what_nobody_declared_is_told(deployment: Deployment) -> None:
    assert "extra" in deployment.succeed("status", poky_buckets=DECLARED).output
    strict = {"poky_buckets": DECLARED, "poky_buckets_undeclared": "fail"}
    deployment.fail("status", "rows are marked", **strict)
    deployment.fail("buckets", "Undeclared buckets: extra", **strict)


def test_a_name_that_is_none_is_refused(deployment: Deployment) -> None:
    deployment.fail("buckets", "is no bucket's name", poky_bucket="a b; drop")


def test_a_bucket_with_keys_goes_only_if_its_name_is_repeated(deployment: Deployment) -> None:
    drop = {"poky_bucket": "extra", "poky_bucket_state": "absent"}
    deployment.fail("buckets", "poky_bucket_confirm=extra", **drop)
    deployment.fail("buckets", "poky_bucket_confirm=extra", **drop, poky_bucket_confirm="declared")
    assert deployment.request("GET", "/kv/extra/key")[2] == b"value"
    deployment.succeed("buckets", **drop, poky_bucket_confirm="extra")
    assert deployment.request("GET", "/kv/extra/key")[0] == 404
