"""``poky shards``."""

from typing import Any

import click

from poky.cli.context import as_json, failures, load_config, open_store
from poky.cli.output import print_json, print_table
from poky.schema import moving
from poky.store import ShardedStore, Store, StoreError


@click.command(epilog="\b\nExample:\n  poky shards --json")
@as_json
def shards(as_json: bool) -> None:
    """Show the databases that have buckets (POKY_DSN, POKY_SHARDS), and what does not fit.

    Exit status 1 if one of them does not answer, or control and a shard disagree about a bucket.
    """
    config = load_config()
    found: list[dict[str, Any]] = []
    troubles: list[str] = []
    with open_store(None) as store:
        numbers = store.shards if isinstance(store, ShardedStore) else [0]
        places = store.places()
        for number in numbers:
            each = store.of_shard(number) if isinstance(store, ShardedStore) else store
            row, drift = _look(each, number, places)
            found.append(row)
            troubles += drift
    noted = None
    if config.owner_dsn:
        with failures():
            noted = moving.under_way({0: config.owner_dsn})
    if as_json:
        print_json(
            {
                "shards": found,
                "move": noted._asdict() if noted else None,
                "troubles": troubles,
            }
        )
    else:
        print_table(
            ["shard", "holds", "bytes"],
            [
                [
                    str(row["shard"]),
                    "does not answer" if row["buckets"] is None else _count(row["buckets"]),
                    "-" if row["bytes"] is None else f"{row['bytes']:,}",
                ]
                for row in found
            ],
        )
        if noted:
            click.echo(
                f"Moving: bucket {noted.name}, from shard {noted.source} to shard {noted.target},"
                f" step {noted.step}."
            )
        for trouble in troubles:
            click.echo(trouble)
    if troubles:
        click.get_current_context().exit(1)


def _count(buckets: int) -> str:
    return "1 bucket" if buckets == 1 else f"{buckets:,} buckets"


def _look(store: Store, number: int, places: dict[str, int]) -> tuple[dict[str, Any], list[str]]:
    """A shard's row, and where it differs from what control says."""
    try:
        state = Store.shard_state(store)
        there = {each.name for each in Store.buckets(store)} if number else set[str]()
    except StoreError as error:
        row = {"shard": number, "buckets": None, "bytes": None}
        return row, [f"Shard {number} does not answer: {error.detail}"]
    troubles = []
    if state.shard != number:
        troubles.append(
            f"The database that the settings call shard {number} is shard {state.shard}: correct"
            " POKY_SHARDS, or run poky migrate."
        )
    elif number:
        placed = {name for name, shard in places.items() if shard == number}
        troubles += [
            f"Bucket {name} should be on shard {number}, which does not have it: poky bucket create"
            f" {name}, or poky bucket drop {name}."
            for name in sorted(placed - there)
        ]
        troubles += [
            f"Bucket {name} on shard {number} is none that control places there: look at it with -d"
            " and the shard's DSN."
            for name in sorted(there - placed)
        ]
    return {"shard": number, "buckets": state.buckets, "bytes": state.bytes}, troubles
