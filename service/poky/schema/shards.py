"""Databases that become shards: each gets a number, and goes by what control says."""

from collections.abc import Mapping

import psycopg2

from poky.schema.owner import OwnerConnection
from poky.schema.plan import SchemaError


def join_shards(control: str, shards: Mapping[int, str]) -> None:
    """Make each of these databases (DSNs of their owners, migrated) the shard of its number.

    Nothing happens to those that are. Raises SchemaError.
    """
    with OwnerConnection(control) as owner:
        if owner.value("SELECT poky._is_flat()"):
            raise SchemaError(
                "Several databases need the partitioned schema: poky migrate --schema partitioned."
            )
        if owner.value("SELECT number FROM poky.shard") != 0:
            raise SchemaError("POKY_OWNER_DSN is the DSN of a shard: control is needed there.")
        policy = owner.run("SELECT tag, revision FROM poky.policy")[0]
        has_caches = owner.value("SELECT EXISTS (SELECT FROM poky.cache_node)")
        seen = {_identity(owner): "control"}
    for number, dsn in shards.items():
        with OwnerConnection(dsn) as owner:
            before = seen.setdefault(_identity(owner), f"shard {number}")
            if before != f"shard {number}":
                raise SchemaError(
                    f"The DSN of shard {number} leads to the database that is {before}: each is"
                    " another one."
                )
            try:
                owner.run("SELECT poky._become_shard(%s)", number)
            except psycopg2.Error as error:
                if error.pgcode != "PK409":
                    raise
                raise SchemaError(str(error.diag.message_primary)) from error
            owner.run("SELECT poky.adopt_policy(%s, %s)", *policy)
            if has_caches:
                owner.run("SELECT poky.expect_caches()")


def _identity(owner: OwnerConnection) -> tuple[object, ...]:
    """What no two databases have in common."""
    return owner.run("SELECT system_identifier, current_database() FROM pg_control_system()")[0]
