"""``poky changes``."""

import datetime
import time
from typing import Any

import click
import msgspec

from poky.cli.context import as_json, dsn_option, open_store
from poky.cli.output import print_table
from poky.store import Changed, Store, StoreError

_PAUSE_SECONDS = 0.2
_RETRY_SECONDS = 2.0


@click.command(
    epilog="\b\nExamples:\n  poky changes tooltips --follow --json\n"
    "  poky changes tooltips --after 0"
)
@click.argument("bucket")
@click.option("--after", default="", help="A cursor; 0: the oldest kept. Default: from now on.")
@click.option("--prefix", default="", help="Only of keys that start with it.")
@click.option("--follow", is_flag=True, help="Go on for ever, as changes come.")
@dsn_option
@as_json
def changes(
    bucket: str, after: str, prefix: str, follow: bool, dsn: str | None, as_json: bool
) -> None:
    """Show the changes of a bucket, each once, those of a key in their order.

    With --json each line is an object; its "next" is the cursor after it, for --after. At the end,
    and where nothing has changed, a line says where to go on.
    """
    with open_store(dsn) as store:
        while True:
            page = _read(store, bucket, after, prefix, follow=follow)
            after = page.next
            if page.changes:
                _show(page.changes, as_json)
            elif page.is_last and follow:
                time.sleep(_PAUSE_SECONDS)
            if page.is_last and not follow:
                _show_place(after, as_json)
                return


def _read(store: Store, bucket: str, after: str, prefix: str, *, follow: bool) -> Any:
    """The next page; a follower outlives an outage of the database."""
    while True:
        try:
            return store.changes(bucket, after, prefix, 1000)
        except StoreError as error:
            if not (follow and error.status == 503):
                raise
            click.echo(f"{error.detail}", err=True)
            time.sleep(_RETRY_SECONDS)


def _show(found: list[Changed], as_json: bool) -> None:
    if not as_json:
        print_table(
            ["result", "etag", "modified", "key"],
            [
                [
                    each.result,
                    f"{each.revision}-{each.hash}" if each.hash else "-",
                    _date(each.modified_at),
                    each.key,
                ]
                for each in found
            ],
        )
        return
    for each in found:
        shown: dict[str, Any] = {"key": each.key, "result": each.result}
        if each.hash is not None:
            shown["etag"] = f'"{each.revision}-{each.hash}"'
            shown["modified_at"] = each.modified_at
        click.echo(msgspec.json.encode({**shown, "next": each.next}))


def _show_place(after: str, as_json: bool) -> None:
    click.echo(msgspec.json.encode({"next": after}) if as_json else f"next: {after}")


def _date(seconds: int | None) -> str:
    if seconds is None:
        return "-"
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
