"""From open to tokens in one deploy, what then holds, and back."""

from __future__ import annotations

import json

from deployment import Deployment

KEY = "/kv/traffic/guarded"


def test_tokens_are_asked_for_from_the_end_of_a_deploy(deployment: Deployment) -> None:
    """The smoke test of the deploy passes by a token of its own, which is gone afterwards."""
    (name,) = deployment.groups["service"]
    host = deployment.host(name)
    deployment.succeed("buckets", poky_bucket="traffic")
    assert deployment.request("PUT", KEY, "value")[0] == 200
    for _ in "missed", "cached":
        assert deployment.request("GET", KEY)[0] == 200

    deployment.settings["poky_access"] = "tokens"
    deployment.succeed("deploy")
    names = [each["name"] for each in json.loads(host.check_output("poky token list --json"))]
    assert not [name for name in names if name.startswith("_smoke")], names
    for method in ("GET", "PUT", "DELETE"):
        assert deployment.request(method, KEY, "other" if method == "PUT" else None)[0] == 401

    made = json.loads(host.check_output("poky token create guest --grant read:traffic --json"))
    bearer = {"Authorization": f"Bearer {made['token']}"}
    for _ in "asked", "decided":
        status, headers, body = deployment.request("GET", KEY, **bearer)
        assert (status, body) == (200, b"value")
    assert headers["X-Cache"] == "HIT"
    assert deployment.request("PUT", KEY, "other", **bearer)[0] == 403
    deployment.succeed("status")

    host.check_output("poky token revoke guest")
    assert deployment.request("GET", KEY, **bearer)[0] == 401
    assert deployment.request("GET", KEY)[0] == 401


def test_a_deploy_can_open_it_again(deployment: Deployment) -> None:
    deployment.settings["poky_access"] = "open"
    deployment.succeed("deploy")
    assert deployment.request("GET", KEY)[0] == 200
