"""``poky export``, ``poky import`` and ``poky verify``."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import click

from poky.cli.context import (
    Failed,
    as_json,
    dsn_option,
    holding,
    load_config,
    open_store,
    purging,
)
from poky.cli.output import print_json, rate_bar
from poky.cli.poky1 import take_over
from poky.store import Store, StoreError

if TYPE_CHECKING:
    from poky.transfer import Imported, Loader, Stored

_SHOWN = 1000  # wrong lines and differences by name; the others are counted


@click.command("export", epilog="\b\nExample:\n  poky export tooltips -o tooltips.jsonl.gz")
@click.argument("bucket")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file. Default: stdout.")
@click.option(
    "--compress",
    type=click.Choice(["none", "gzip", "zstd"]),
    help="Default: as the file's name ends, .gz or .zst, else none.",
)
@dsn_option
def export_bucket(bucket: str, output: Path | None, compress: Any, dsn: str | None) -> None:
    """Write a bucket as JSON lines, as it is at one moment; the last line says that it is whole."""
    if compress is None:
        ends = {".gz": "gzip", ".zst": "zstd"}
        compress = ends.get(output.suffix, "none") if output else "none"
    if output is None and sys.stdout.isatty() and compress != "none":
        raise click.UsageError("Compressed output is not for a terminal: name a file with -o.")
    from poky import transfer  # noqa: PLC0415 - only these commands need it

    with (
        open_store(dsn) as store,
        transfer.Session(holding(store, bucket).dsn, "poky export") as session,
    ):
        rows = {each.name: each.estimated_rows for each in store.buckets()}.get(bucket)
        began = time.monotonic()
        with (
            _refusals(),
            _written(output) as file,
            rate_bar("export", rows) as report,
            transfer.compressed(file, compress) as packed,
        ):
            end = transfer.export(session, bucket, packed, load_config().release, report)
    _say(f"{bucket}: {end.objects:,} objects exported{_pace(end.objects, began)}.")


@click.command(
    "import",
    epilog="\b\nExamples:\n  poky import tooltips tooltips.jsonl.gz --on-conflict keep\n"
    "  poky import --from-poky1 postgresql://reader@old/poky",
)
@click.argument("bucket", required=False)
@click.argument(
    "file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    required=False,
)
@click.option(
    "--on-conflict",
    type=click.Choice(["keep", "replace", "newer"]),
    default="replace",
    show_default=True,
    help="What is done about a key that is there. newer: as If-Unmodified-Since has it, an object"
    " stays that has a later modified_at.",
)
@click.option(
    "--from-poky1",
    "source",
    metavar="DSN",
    help="Take over a database of the original, flat or partitioned, while it is written to.",
)
@click.option("--once", is_flag=True, help="From the original: end once it has caught up.")
@click.option(
    "--quiet",
    type=click.FloatRange(0.1),
    default=10.0,
    show_default=True,
    help="From the original: it stands still when nothing changed for so many seconds.",
)
@click.option(
    "--mirror",
    is_flag=True,
    help="From the original: in its buckets, delete in the end what it does not have.",
)
@click.option("--create", is_flag=True, help="Create the bucket unless it is there.")
@click.option("--from-line", type=click.IntRange(1), default=1, help="Go on where it ended.")
@dsn_option
@as_json
def import_bucket(
    bucket: str | None,
    file: Path | None,
    on_conflict: Any,
    source: str | None,
    once: bool,
    quiet: float,
    mirror: bool,
    create: bool,
    from_line: int,
    dsn: str | None,
    as_json: bool,
) -> None:
    """Store the objects of a file of JSON lines, or of stdin, as the database's owner.

    Lines that are wrong are told with their number, all others are stored. The same file again
    changes nothing. Caches hear of it once, at the end: of each changed key, or of more than ten
    thousand by forgetting everything.
    """
    if source is not None:
        if bucket is not None:
            raise click.UsageError("From the original all buckets come: name none.")
        with _refusals():
            take_over(source, dsn, once=once, quiet=quiet, mirror=mirror)
        return
    if bucket is None:
        raise click.UsageError("Name the bucket.")
    from poky import transfer  # noqa: PLC0415

    config = load_config(dsn=dsn, owner_dsn=dsn)
    began = time.monotonic()
    with open_store(dsn, as_owner=True) as store:
        if create:
            store.ensure_bucket(bucket)
        there = holding(store, bucket)
        _require_bucket(there, bucket)
        with (
            _opened(file) as (raw, size),
            transfer.Session(there.dsn, "poky import", as_owner=True) as session,
            rate_bar("import", size, in_bytes=True) as report,
            _refusals(),
        ):
            loader = transfer.Loader(session, on_conflict)
            with purging(store, loader, within=bucket), _resumable(loader):
                read = transfer.import_file(
                    transfer.decompressed(raw),
                    bucket,
                    loader,
                    config.max_value_bytes,
                    _Shown(),
                    first=from_line,
                    needs_dates=on_conflict == "newer",
                    report=lambda count: report(count, size and raw.tell()),
                )
    _show_import(bucket, read, loader.stored, _pace(read.lines, began), as_json)
    if read.wrong:
        raise Failed(
            f"{read.wrong:,} lines are wrong, and nothing of them was stored; all others are.",
            code="bad_lines",
        )


@click.command(
    "verify",
    epilog="\b\nExamples:\n  poky verify tooltips tooltips.jsonl.gz\n"
    "  poky verify tooltips --with postgresql://poky_reader@other/poky",
)
@click.argument("bucket")
@click.argument(
    "file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    required=False,
)
@click.option("--with", "other", metavar="DSN", help="Another store, in place of a file.")
@dsn_option
@as_json
def verify(
    bucket: str, file: Path | None, other: str | None, dsn: str | None, as_json: bool
) -> None:
    """Compare a bucket with an exported file, or with the bucket of this name in another store.

    What the bucket has otherwise is told by key: missing, extra, or what differs (value,
    content_type, content_encoding, modified_at, expires_at). Exit status 1 if there is any.
    """
    if (file is None) == (other is None):
        raise click.UsageError("Name a file, or another store with --with.")
    from poky import transfer  # noqa: PLC0415

    config = load_config(dsn=dsn)
    differences = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(_refusals())
        store = stack.enter_context(open_store(dsn))
        there = holding(store, bucket)
        session = stack.enter_context(transfer.Session(there.dsn, "poky verify"))
        if other is not None:
            elsewhere = stack.enter_context(transfer.Session(other, "poky verify"))
            theirs = transfer.stored_objects(elsewhere, bucket)
        else:
            raw, _ = stack.enter_context(_opened(file))
            theirs = transfer.exported_objects(transfer.decompressed(raw), config.max_value_bytes)
        for each in transfer.compare(theirs, transfer.stored_objects(session, bucket)):
            differences += 1
            if as_json:
                print_json(each._asdict())
            elif differences <= _SHOWN:
                click.echo(f"{each.key}: {each.what}")
    if differences:
        raise Failed(f"{differences:,} keys of {bucket} differ.", code="objects_differ")
    if not as_json:
        click.echo(f"{bucket}: the same")


class _Shown:
    """Tells wrong lines on stderr as they come."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, number: int, why: str) -> None:
        self._count += 1
        if self._count <= _SHOWN:
            _say(f"line {number}: {why}")
        elif self._count == _SHOWN + 1:
            _say("and others")


@contextlib.contextmanager
def _resumable(loader: "Loader") -> Iterator[None]:
    """Say how far it came before it failed."""
    try:
        yield
    except StoreError as error:
        raise Failed(
            f"{error.detail} All up to line {loader.done:,} is stored. Do it again: with"
            f" --from-line {loader.done + 1} it goes on there, without it the result is the same.",
            code=error.code,
        ) from error


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    from poky import transfer  # noqa: PLC0415

    try:
        yield
    except transfer.BadLine as error:
        raise Failed(f"{error}.", code="bad_lines") from error
    except (EOFError, OSError, *transfer.BadFile) as error:
        raise Failed(f"The file cannot be read or written: {error}.", code="bad_file") from error


@contextlib.contextmanager
def _written(output: Path | None) -> Iterator[IO[bytes]]:
    """Stdout, or a file that has its name once it is whole."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.rename(output)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[tuple[BufferedReader, int | None]]:
    """The file, or stdin, and its size if that is known."""
    if path is None or str(path) == "-":
        with open(sys.stdin.fileno(), "rb", buffering=1 << 20, closefd=False) as file:
            yield cast(BufferedReader, file), None
        return
    with path.open("rb", buffering=1 << 20) as file:
        yield cast(BufferedReader, file), path.stat().st_size


def _require_bucket(store: Store, bucket: str) -> None:
    """Before anything is read: 404, or 400 for what is no bucket's name."""
    if store.function_number(bucket) is None:
        raise Failed(
            f"There is no bucket named {bucket}. Create it: poky bucket create {bucket}.",
            code="bucket_not_found",
        )


def _show_import(bucket: str, read: "Imported", stored: "Stored", pace: str, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "bucket": bucket,
                "inserted": stored.inserted,
                "updated": stored.updated,
                "expired": read.expired,
                "wrong": read.wrong,
                "cursor": read.cursor,
            }
        )
        return
    click.echo(f"{bucket}: {stored.inserted:,} objects inserted, {stored.updated:,} updated{pace}.")


def _pace(count: int, began: float) -> str:
    seconds = time.monotonic() - began
    return f" in {seconds:.1f} s ({count / max(seconds, 0.001):,.0f} a second)"


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)
