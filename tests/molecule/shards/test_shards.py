"""Several databases by the inventory: where buckets are, how they move, and one that is away.

The tests build on one another, in this order; all of them run under one load, in the bucket hammer.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from deployment import Deployment, Hammer, machine, wait_until

MAIN, FIRST, SECOND = "poky-m-main", "poky-m-shard-1", "poky-m-shard-2"


def shards(deployment: Deployment) -> dict[str, Any]:
    """What the command says on the first service host."""
    said = deployment.host(MAIN).run("/usr/local/bin/poky shards --json")
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def holds(deployment: Deployment, name: str) -> list[str]:
    """The buckets of a host's own database."""
    query = "SELECT string_agg(name, ' ') FROM poky.bucket"
    command = f'runuser -u postgres -- psql -XAt -d poky_dev -c "{query}"'
    return deployment.host(name).check_output(command).split()


def home(deployment: Deployment, bucket: str = "hammer") -> int:
    """The one database that has the bucket."""
    found = [
        number
        for number, name in enumerate((MAIN, FIRST, SECOND))
        if bucket in holds(deployment, name)
    ]
    assert len(found) == 1, found
    return found[0]


def test_three_databases_serve_and_the_same_again_changes_nothing(deployment: Deployment) -> None:
    again = deployment.succeed("deploy")
    assert set(again.changed().values()) == {0}, str(again)
    said = shards(deployment)
    assert [each["shard"] for each in said["shards"]] == [0, 1, 2]
    assert said["troubles"] == []
    status = deployment.succeed("status").output
    assert "shard 2" in status
    # Where the fewest bytes are: not where everything else is.
    assert home(deployment) != 0


def test_a_new_bucket_is_made_by_the_playbook_and_seen_by_all(deployment: Deployment) -> None:
    deployment.succeed("buckets", poky_bucket="tooltips")
    assert deployment.request("PUT", "/kv/tooltips/k", "v")[0] == 200
    status, _, said = deployment.request("GET", "/kv/tooltips/k")
    assert (status, said) == (200, b"v")


def test_passwords_of_the_owner_copy_no_server(deployment: Deployment) -> None:
    main = deployment.host(MAIN)
    dsns = main.check_output("cat /etc/poky/credentials/poky_owner_shards").split()
    assert main.file("/etc/poky/credentials/poky_owner_shards").mode == 0o400
    assert main.file("/etc/poky/credentials/poky_shards").mode == 0o400
    dsn = dsns[0].partition("=")[2]
    assert main.run(f"psql '{dsn}' -c 'SELECT 1'").rc == 0
    refused = main.run(f"psql '{dsn}?replication=true' -c IDENTIFY_SYSTEM")
    assert refused.rc != 0
    assert "pg_hba.conf" in refused.stderr


@pytest.mark.parametrize("step", [1, 2])
def test_a_bucket_moves_by_playbook_and_no_request_fails(
    deployment: Deployment, hammer: Hammer, step: int
) -> None:
    before = hammer.report()
    source = home(deployment)
    target = (source + step) % 3
    moved = deployment.succeed("move", poky_bucket="hammer", poky_bucket_shard=target)
    assert f"moved from shard {source} to shard {target}" in " ".join(moved.output.split())
    assert home(deployment) == target
    wait_until(
        lambda: hammer.report()["requests"] > before["requests"] + 500, 60, "traffic went on"
    )
    after = hammer.report()
    assert (after["failed"], after["wrong"]) == (0, 0), after
    again = deployment.succeed("move", poky_bucket="hammer", poky_bucket_shard=target)
    assert set(again.changed().values()) == {0}, str(again)


def test_the_command_shows_a_bar_and_how_long_writes_paused(
    deployment: Deployment, hammer: Hammer
) -> None:
    source = home(deployment)
    target = (source + 1) % 3
    said = deployment.host(MAIN).run(f"poky bucket move hammer --to {target}")
    assert said.rc == 0, said.stderr
    assert f"hammer: moved from shard {source} to shard {target}" in said.stdout
    assert "writes paused for" in said.stdout
    assert shards(deployment)["move"] is None
    after = hammer.report()
    assert (after["failed"], after["wrong"]) == (0, 0), after


def test_what_cannot_be_meant_is_refused(deployment: Deployment) -> None:
    deployment.fail("move", "Name the bucket and its database", poky_bucket="hammer")
    deployment.fail("move", "0 is control", poky_bucket="hammer", poky_bucket_shard=9)
    deployment.fail("move", "nowhere", poky_bucket="nowhere", poky_bucket_shard=1)


def test_while_one_is_away_others_go_on_and_status_says_so(
    deployment: Deployment, hammer: Hammer
) -> None:
    """The bucket of the load lives elsewhere."""
    away = FIRST if home(deployment) != 1 else SECOND
    before = hammer.report()
    container = machine("container", away).strip()
    machine("podman", "pause", container)
    try:
        began = time.monotonic()
        wait_until(
            lambda: hammer.report()["requests"] > before["requests"] + 1000, 60, "traffic went on"
        )
        assert time.monotonic() - began < 60
        after = hammer.report()
        assert (after["failed"], after["wrong"]) == (0, 0), after
        said = deployment.host(MAIN).run("poky shards")
        assert said.rc == 1
        assert "does not answer" in said.stdout
    finally:
        machine("podman", "unpause", container)
    wait_until(lambda: not shards(deployment)["troubles"], 60, "it answers again")
    status = deployment.succeed("status")
    assert "All is well" in status.output


def test_every_database_is_backed_up_and_a_lost_one_comes_back(
    deployment: Deployment, hammer: Hammer
) -> None:
    """The last test: instances are stopped for it, and the load is not asked any more."""
    number, lost = (1, FIRST) if home(deployment) != 1 else (2, SECOND)
    main, there = deployment.host(MAIN), deployment.host(lost)
    main.check_output(f"poky bucket create kept --shard {number}")
    for value in ("before", "after"):
        assert deployment.request("PUT", f"/kv/kept/{value}", value)[0] == 200
    main.check_output("poky-backup check")
    said = main.check_output("poky-backup status")
    for stanza in ("poky", "poky-shard-1", "poky-shard-2"):
        assert f"{stanza}:\nbackups: 1, full ones: 1" in said
    main.check_output("systemctl stop poky.target")
    there.check_output("systemctl stop postgresql@17-main")
    there.check_output("find /var/lib/postgresql/17/main -mindepth 1 -delete")
    restored = there.check_output("poky-backup restore")
    assert "restored in" in restored
    there.check_output("systemctl start postgresql@17-main")
    assert "revisions go on from" in main.check_output("poky restored")
    main.check_output("systemctl start poky.target")

    def is_back() -> bool:
        return deployment.request("GET", "/kv/kept/after")[::2] == (200, b"after")

    wait_until(is_back, 60, "the shard serves")
    assert shards(deployment)["troubles"] == []
