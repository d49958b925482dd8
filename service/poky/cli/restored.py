"""``poky restored``."""

import time

import click

from poky.cli.context import as_json, dsn_option, load_config, open_store
from poky.cli.output import print_json


@click.command(epilog="\b\nExample:\n  poky restored -d postgresql://poky_owner@db/poky")
@dsn_option
@as_json
def restored(dsn: str | None, as_json: bool) -> None:
    """Say that the database was restored to an earlier time; once, while no instance runs.

    Revisions, and so entity tags, go on where none was given out; caches forget everything; cursors
    of changes end. It takes as long as a lease: when it returns, no cache uses an old copy.
    """
    config = load_config(dsn=dsn, owner_dsn=dsn)
    with open_store(dsn, as_owner=True) as store:
        revision, lease_seconds = store.after_restore(config.max_future_seconds)
    # The lease of a node may be one that the restored database does not know.
    time.sleep(max(lease_seconds, config.lease_seconds if config.caches else 0))
    if as_json:
        print_json({"revision": revision})
    else:
        click.echo(f"revisions go on from {revision}; the caches have forgotten everything")
