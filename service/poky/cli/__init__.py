"""The command ``poky``: serve, migrate, config, bucket, cache, version.

Reads the command line, builds the objects, shows results: tables for people, ``--json`` for
programs. Exit status: 0 done, 1 it failed, 2 the command or its settings were wrong.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from poky import __version__, schema
from poky.config import Config, ConfigError, unknown_settings
from poky.schema.migrate import migrate as run_migration
from poky.schema.migrate import plan
from poky.store import Node, Store, StoreError

if TYPE_CHECKING:
    from poky.cache import Caches

_EXAMPLES = """\b
Examples:
  poky serve                              an embedded PostgreSQL, port 8081
  poky serve -p 9000 -d postgresql://poky_service@db/poky
  poky migrate -d postgresql://poky_owner@db/poky
  poky bucket create tooltips
"""

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
dsn_option = click.option(
    "-d", "--dsn", metavar="DSN", help="Where PostgreSQL is. Default: POKY_DSN, else embedded."
)


@click.group(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="poky")
def poky() -> None:
    """Poky: buckets of objects over HTTP, in PostgreSQL.

    Settings come from the environment (POKY_...); `poky config` shows them.
    """


@poky.command(epilog="\b\nExample:\n  poky serve -p 9000 --home ~/poky")
@click.option("-p", "--port", type=click.IntRange(1, 65535), help="The port. Default: 8081.")
@dsn_option
@click.option("--home", metavar="DIR", help="Where the embedded PostgreSQL keeps its data.")
def serve(port: int | None, dsn: str | None, home: str | None) -> None:
    """Serve HTTP until SIGTERM."""
    from poky import process  # noqa: PLC0415 - only this command needs it

    config = _config(port=port, dsn=dsn, home=home)
    for sentence in unknown_settings():
        logging.getLogger("poky").warning(sentence)
    with _database(config, keep_up=True) as config:
        status = process.serve(config, on_ready=lambda: _show_start(config, dsn))
    sys.exit(status)


@poky.command(epilog="\b\nExample:\n  poky migrate --plan -d postgresql://poky_owner@db/poky")
@dsn_option
@click.option(
    "--schema",
    "kind",
    type=click.Choice(["partitioned", "flat"]),
    help="The schema of a new database, or convert a flat one to partitioned while it is used.",
)
@click.option(
    "--phase",
    type=click.Choice(["expand", "contract"]),
    default="expand",
    help="contract: also what releases before this one cannot work with.",
)
@click.option("--plan", "only_plan", is_flag=True, help="Show what would be done, and do nothing.")
@click.option("--print", "only_print", is_flag=True, help="Print the SQL of a new database.")
@click.option("--revision-start", type=click.IntRange(1), default=1, show_default=True)
@click.option("--revision-increment", type=click.IntRange(1), default=1, show_default=True)
@as_json
def migrate(
    dsn: str | None,
    kind: Any,
    phase: Any,
    only_plan: bool,
    only_print: bool,
    revision_start: int,
    revision_increment: int,
    as_json: bool,
) -> None:
    """Create or upgrade the schema, as the database's owner (POKY_OWNER_DSN)."""
    if only_print:
        click.echo(schema.script(kind or "partitioned"))
        return
    config = _config(dsn=dsn, owner_dsn=dsn)
    with _database(config, migrated=False) as config:
        if only_plan:
            planned = plan(config.owner_dsn, kind=kind, phase=phase)
            if as_json:
                _print_json(asdict(planned))
            else:
                if planned.refusal or planned.pending or not planned.converts:
                    _show_steps("to apply", planned.pending, planned.refusal)
                if planned.converts:
                    click.echo("The flat schema would become a partitioned one.")
            return
        with _progress() as progress:
            migrated = run_migration(
                config.owner_dsn,
                kind=kind,
                phase=phase,
                release=config.release,
                progress=progress,
                revision_start=revision_start,
                revision_increment=revision_increment,
            )
    if as_json:
        _print_json(asdict(migrated))
    else:
        if migrated.applied or not migrated.converted:
            _show_steps("applied", migrated.applied)
        if migrated.converted:
            click.echo("The flat schema has become a partitioned one.")


@poky.command()
@as_json
def config(as_json: bool) -> None:
    """Show every setting as it is in force; secrets are masked."""
    shown = _config().shown()
    if as_json:
        _print_json(shown)
    else:
        _print_table(["setting", "value"], [list(row) for row in shown.items()])
    for sentence in unknown_settings():
        click.echo(sentence, err=True)


@poky.command()
@as_json
def version(as_json: bool) -> None:
    """Show the version and the range of schemas that it works with."""
    if as_json:
        _print_json({"version": __version__, **schema.versions()})
    else:
        click.echo(f"poky {__version__}")


@poky.group()
def bucket() -> None:
    """Create, list and drop buckets."""


@bucket.command("create", epilog="\b\nExample:\n  poky bucket create tooltips")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@dsn_option
@as_json
def create_bucket(names: tuple[str, ...], dsn: str | None, as_json: bool) -> None:
    """Create buckets; those that exist stay as they are."""
    with _store(dsn) as store:
        done = {name: "created" if store.ensure_bucket(name) else "exists" for name in names}
    _show_pairs(done, as_json)


@bucket.command("list")
@dsn_option
@as_json
def list_buckets(dsn: str | None, as_json: bool) -> None:
    """List buckets with PostgreSQL's estimate of rows and the bytes on disk."""
    with _store(dsn) as store:
        buckets = store.buckets()
    if as_json:
        _print_json([each._asdict() for each in buckets])
        return
    rows = [
        [each.name, each.kind, f"{each.estimated_rows:,}", f"{each.bytes:,}"] for each in buckets
    ]
    _print_table(["bucket", "schema", "rows (about)", "bytes"], rows)


@bucket.command("drop", epilog="\b\nExample:\n  poky bucket drop tooltips --keys")
@click.argument("name")
@click.option("--keys", is_flag=True, help="Also if the bucket has keys: they are lost.")
@dsn_option
@as_json
def drop_bucket(name: str, keys: bool, dsn: str | None, as_json: bool) -> None:
    """Drop a bucket; one with keys only with --keys."""
    with _store(dsn) as store:
        try:
            outbox_id = store.drop_bucket(name, keys=keys)
        except StoreError as error:
            hint = " Say --keys to drop it with its keys." if error.status == 409 else ""
            raise _Failed(error.detail + hint) from error
        if outbox_id is not None:
            with _caches(store) as caches:
                caches.forget()
            store.confirm([outbox_id])
    _show_pairs({name: "dropped"}, as_json)


@poky.group()
def cache() -> None:
    """See and manage the cache nodes. A new one needs no command, only POKY_CACHES."""


@cache.command("status")
@dsn_option
@as_json
def show_caches(dsn: str | None, as_json: bool) -> None:
    """Show the nodes, their leases and what they were last told."""
    with _store(dsn) as store:
        nodes = store.nodes()
    if as_json:
        _print_json([each._asdict() for each in nodes])
        return
    _print_table(
        ["cache", "state", "since", "lease", "last lease", "last purge", "generation", "url"],
        [
            [
                node.name,
                _show_state(node),
                _show_age(node.suspended_at),
                f"{node.lease_seconds:g} s",
                _show_age(node.leased_at),
                _show_age(node.purged_at),
                node.generation[:8],
                node.url,
            ]
            for node in nodes
        ],
    )


@cache.command("purge", epilog="\b\nExample:\n  poky cache purge tooltips 42")
@click.argument("bucket", required=False)
@click.argument("key", required=False)
@click.option("--all", "everything", is_flag=True, help="Let all caches forget everything.")
@dsn_option
@as_json
def purge_caches(
    bucket: str | None, key: str | None, everything: bool, dsn: str | None, as_json: bool
) -> None:
    """Let all caches forget one object, or everything with --all.

    Needed only after something that the service did not do: a restored database, for one.
    Without a KEY the caches forget all buckets; it takes as long as a lease.
    """
    if not (bucket or everything):
        raise click.UsageError("Name a BUCKET and a KEY, or say --all.")
    with _store(dsn) as store, _caches(store) as caches:
        if bucket and key and not everything:
            caches.tell(bucket, [key])
        else:
            caches.forget()
        nodes = store.nodes()
    _show_pairs({node.name: _show_state(node) for node in nodes}, as_json)


@cache.command("suspend", epilog="\b\nExample:\n  poky cache suspend cache1")
@click.argument("name")
@dsn_option
def suspend_cache(name: str, dsn: str | None) -> None:
    """Let a node use no copy until it is resumed; returns when that is certain."""
    with _store(dsn) as store, _caches(store) as caches:
        _require(caches.suspend(name), name)
    click.echo(f"{name}: suspended; poky cache resume {name} ends it")


@cache.command("resume")
@click.argument("name")
@dsn_option
def resume_cache(name: str, dsn: str | None) -> None:
    """Let a suspended node take part again as soon as it answers."""
    with _store(dsn) as store, _caches(store) as caches:
        _require(caches.resume(name), name)
    click.echo(f"{name}: takes part again once it has answered")


@cache.command("remove")
@click.argument("name")
@dsn_option
def remove_cache(name: str, dsn: str | None) -> None:
    """Forget a node that POKY_CACHES no longer has; returns when it certainly uses no copy."""
    with _store(dsn) as store, _caches(store) as caches:
        _require(caches.remove(name), name)
    click.echo(f"{name}: removed")


def main() -> None:
    """Run the command; anything a person can mend is one sentence, never a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        poky(prog_name="poky")
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(2)
    except StoreError as error:
        click.echo(error.detail, err=True)
        sys.exit(1)


class _Failed(click.ClickException):
    """It did not work, and the message says why and what to do."""


def _config(**overrides: Any) -> Config:
    config = Config.from_env(**overrides)
    logging.getLogger().setLevel(config.log_level.upper())
    return config


@contextlib.contextmanager
def _database(config: Config, *, keep_up: bool = False, migrated: bool = True) -> Iterator[Config]:
    """The configuration with DSNs that work: an embedded PostgreSQL where none is named."""
    if config.dsn or config.owner_dsn:
        try:
            yield replace(config, dsn=config.dsn or config.owner_dsn)
        except schema.SchemaError as error:
            raise _Failed(str(error)) from error
        return
    try:
        from poky import embedded  # noqa: PLC0415 - not needed where there is a DSN

        with embedded.ensure_running(Path(config.home)) as server:
            if keep_up:
                server.supervise()
            config = replace(config, dsn=server.dsn_service, owner_dsn=server.dsn_owner)
            if migrated:
                run_migration(config.owner_dsn, release=config.release)
            yield config
    except embedded.EmbeddedError as error:
        raise _Failed(f"{error}. Or name a database: POKY_DSN, or -d.") from error
    except schema.SchemaError as error:
        raise _Failed(str(error)) from error


@contextlib.contextmanager
def _store(dsn: str | None) -> Iterator[Store]:
    with _database(_config(dsn=dsn)) as config:
        store = Store(config.dsn, pool_size=2, statement_timeout=60, lock_timeout=10)
        try:
            yield store
        finally:
            store.close()


@contextlib.contextmanager
def _caches(store: Store) -> Iterator["Caches"]:
    from poky.cache import Caches  # noqa: PLC0415 - serve has its own

    caches = Caches(store, _config())
    try:
        yield caches
    finally:
        caches.stop()


def _require(is_there: bool, name: str) -> None:
    if not is_there:
        raise _Failed(f"There is no cache named {name}. See: poky cache status")


def _show_state(node: Node) -> str:
    if node.suspended_at is None:
        return "takes part"
    state = "suspended" if node.drained else "being suspended"
    return f"{state}, held" if node.held else state


def _show_age(at: int | None) -> str:
    return "-" if at is None else f"{max(time.time() - at, 0):.0f} s ago"


def _show_start(config: Config, dsn: str | None) -> None:
    """What a newcomer needs: where the data is, and lines to paste."""
    if not sys.stdout.isatty() and dsn:
        return
    base = f"http://{config.listen}:{config.port}"
    where = "the database given by POKY_DSN" if dsn else f"{config.home} (embedded PostgreSQL)"
    click.echo(
        f"""
Poky {config.release} serves {base}, the data is in {where}.

  curl -X PUT http://{config.admin_listen}:{config.admin_port}/buckets/greetings
  curl -d 'Hello!' -X PUT {base}/kv/greetings/hello
  curl -i {base}/kv/greetings/hello
  curl {base}/help

Ctrl-C stops it."""
    )


def _show_steps(word: str, files: list[str], refusal: str | None = None) -> None:
    if refusal:
        raise _Failed(refusal)
    for file in files or ["nothing: the schema is up to date"]:
        click.echo(f"{word}: {file}")


def _show_pairs(pairs: dict[str, str], as_json: bool) -> None:
    if as_json:
        _print_json(pairs)
    else:
        for name, word in pairs.items():
            click.echo(f"{name}: {word}")


def _print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - serve need not pay for it
    from rich.table import Table  # noqa: PLC0415

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    # What goes into a pipe is not cut to the width of a terminal.
    console = Console(width=None if sys.stdout.isatty() else 10_000)
    console.print(table)


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    """A progress bar where a person looks on; each new step is named."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("migrate", total=None)
        yield lambda at: bar.update(
            task, description=at.step, completed=at.done, total=at.total or None
        )
