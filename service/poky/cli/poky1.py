"""``poky import --from-poky1``: a database of the original, taken over while it is in use."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from poky.cli.context import Failed, open_store, purging
from poky.cli.output import rate_bar
from poky.store import ShardedStore, Store

if TYPE_CHECKING:
    from poky.transfer import Loader, Original

_SHOWN = 1000
_CAUGHT_UP = 5.0  # seconds that a look at the original may take at most
_KEYS = 1000  # that are deleted in one transaction


class Wrong:
    """Tells each row that cannot be stored, once."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __call__(self, name: str, why: str) -> None:
        if name not in self.names:
            self.names.add(name)
            if len(self.names) <= _SHOWN:
                click.echo(f"{name}: {why}", err=True)


def take_over(source: str, dsn: str | None, *, once: bool, quiet: float, mirror: bool) -> None:
    """Copy, catch up, and end when the original has stood still; raises Failed and StoreError."""
    from poky import transfer  # noqa: PLC0415 - only this command needs it

    with ExitStack() as stack:
        store = stack.enter_context(open_store(dsn, as_owner=True))
        if isinstance(store, ShardedStore):
            raise Failed(
                "The original is taken over into one database: name control's with -d, and move"
                " buckets afterwards (poky bucket move).",
                code="several_databases",
            )
        session = stack.enter_context(transfer.Session(store.dsn, "poky import", as_owner=True))
        original = transfer.Original(stack.enter_context(transfer.Session(source, "poky import")))
        loader = transfer.Loader(session, "replace")
        wrong = Wrong()
        deleted: list[int] = []
        with purging(store, loader, deleted):
            _follow(store, original, loader, wrong, once=once, quiet=quiet)
            extra = 0 if once else _compare(store, original, deleted, wrong, mirror=mirror)
        if wrong.names or extra:
            raise Failed(
                f"{len(wrong.names):,} rows could not be stored, and {extra:,} keys are here that"
                " the original does not have.",
                code="objects_differ",
            )


def _follow(
    store: Store,
    original: "Original",
    loader: "Loader",
    wrong: Wrong,
    *,
    once: bool,
    quiet: float,
) -> None:
    with rate_bar("copy", original.estimated_rows()) as report:
        _create_buckets(store, original)
        looked = original.follow(loader, wrong, report)
    click.echo(f"copied: {looked.rows:,} rows in {looked.seconds:.1f} s")
    still_since = time.monotonic()
    told = False
    while True:
        _create_buckets(store, original)
        looked = original.follow(loader, wrong)
        if looked.changed:
            still_since = time.monotonic()
            click.echo(f"caught up with {looked.changed:,} changes in {looked.seconds:.1f} s")
        is_near = looked.seconds <= _CAUGHT_UP
        if is_near and once:
            return
        if is_near and not told:
            told = True
            click.echo(
                f"A look at the original takes {looked.seconds:.1f} s now. Stop what writes to it;"
                f" once it has stood still for {quiet:g} s, this says so and ends."
            )
        if time.monotonic() - still_since >= quiet and not looked.changed:
            return
        time.sleep(min(1.0, quiet / 4))


def _create_buckets(store: Store, original: "Original") -> None:
    for name in original.buckets():
        store.ensure_bucket(name)


def _compare(
    store: Store, original: "Original", deleted: list[int], wrong: Wrong, *, mirror: bool
) -> int:
    """Whether each bucket has the original's keys; how many others it has, and keeps."""
    extra = total = 0
    for bucket in original.buckets():
        surplus: list[str] = []
        for key, is_theirs, is_ours in _merged(original.keys(bucket), _our_keys(store, bucket)):
            total += is_theirs
            if not is_ours and f"{bucket}/{key}" not in wrong.names:
                raise Failed(
                    f"{bucket}/{key} is not here: the original is still written to. Do it again.",
                    code="objects_differ",
                )
            if not is_theirs:
                extra += 1
                if mirror:
                    surplus.append(key)
                elif extra <= _SHOWN:
                    click.echo(f"{bucket}/{key}: not in the original", err=True)
            if len(surplus) == _KEYS:
                deleted += _delete(store, bucket, surplus)
        deleted += _delete(store, bucket, surplus)
    if mirror and extra:
        click.echo(f"deleted: {extra:,} keys that the original does not have")
    click.echo(f"The original stands still, and its {total:,} objects are here: switch over.")
    return 0 if mirror else extra


def _delete(store: Store, bucket: str, keys: list[str]) -> list[int]:
    """Delete these keys, and empty the list; what the caches have to hear of."""
    if not keys:
        return []
    nothing = [None] * len(keys)
    outcomes = store.delete_many(bucket, keys, nothing, nothing, nothing, False)
    keys.clear()
    return [each.outbox_id for each in outcomes if each.outbox_id]


def _our_keys(store: Store, bucket: str) -> Iterator[str]:
    last: str | None = ""
    while last is not None:
        page = store.list_page(bucket, "", last, _KEYS)
        yield from (each.key for each in page.entries)
        last = page.next


def _merged(theirs: Iterator[str], ours: Iterator[str]) -> Iterator[tuple[str, bool, bool]]:
    """Each key of either, once, and which of the two has it; both are in order."""
    one, other = next(theirs, None), next(ours, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one < other):
            assert one is not None
            yield one, True, False
            one = next(theirs, None)
        elif one is None or other < one:
            yield other, False, True
            other = next(ours, None)
        else:
            yield one, True, True
            one, other = next(theirs, None), next(ours, None)
