"""What commands share: options, settings, a database that is there, and how a command fails."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
import msgspec

from poky.cli.served import noted, served_homes
from poky.config import Config, ConfigError, unknown_settings
from poky.schema import SchemaError
from poky.store import BadDsn, ShardedStore, Store, StoreError
from poky.store import open_store as opened

if TYPE_CHECKING:
    from poky.cache import Caches
    from poky.transfer import Loader

log = logging.getLogger("poky.cli")

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
_HOME = "poky.home"
_PURGED = 1000  # keys of one purge


def dsn_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which database: --dsn, and --home, which `load_config` reads."""
    command = click.option(
        "--home",
        metavar="DIR",
        expose_value=False,
        callback=lambda context, _, value: context.meta.update({_HOME: value}),
        help="Where the embedded PostgreSQL keeps its data. Default: POKY_HOME, else the one that"
        " is being served.",
    )(command)
    return click.option(
        "-d", "--dsn", metavar="DSN", help="Where PostgreSQL is. Default: POKY_DSN, else embedded."
    )(command)


class Failed(click.ClickException):
    """It did not work; the message says why and what to do, the code says it to programs.

    With ``--json`` the last line of stderr is an object with ``code`` and ``detail``.
    """

    _line = "Error: {}"

    def __init__(self, detail: str, *, code: str, as_json: bool = False) -> None:
        super().__init__(detail)
        self.code = code
        context = click.get_current_context(silent=True)
        self._as_json = as_json or bool(context and context.params.get("as_json"))

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it on stderr."""
        if self._as_json:
            # What the command line had that is no UTF-8, as stderr shows it otherwise, too.
            detail = self.message.encode(errors="backslashreplace").decode()
            error = {"code": self.code, "detail": detail}
            click.echo(msgspec.json.encode(error).decode(), err=True)
        else:
            click.echo(self._line.format(self.message), err=True)


class BadSettings(Failed):
    """The environment or the command line has settings that cannot be used."""

    exit_code = 2
    _line = "{}"


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """Turn every failure that is expected into Failed."""
    try:
        yield
    except StoreError as error:
        raise Failed(error.detail, code=error.code) from error
    except SchemaError as error:
        raise Failed(str(error), code=error.code) from error
    except BadDsn as error:
        raise Failed(str(error), code="bad_dsn") from error


def load_config(**overrides: Any) -> Config:
    """Read the settings; those of the command line win. Raises Failed."""
    home = _home_option()
    if home and overrides.get("dsn"):
        raise click.UsageError("--home is for an embedded database, -d for another: name one.")
    try:
        config = Config.from_env(**{"home": home, **overrides})
    except ConfigError as error:
        raise BadSettings(str(error), code="bad_settings") from error
    if home:  # it wins over the environment's DSN
        config = replace(config, dsn="", owner_dsn="")
    logging.getLogger().setLevel(config.log_level.upper())
    _warn_of_unknown_settings()
    return config


@cache
def _warn_of_unknown_settings() -> None:
    for sentence in unknown_settings():
        log.warning("%s", sentence)


def _home_option() -> str | None:
    context = click.get_current_context(silent=True)
    return context.meta.get(_HOME) if context else None


def _find_home(config: Config) -> Path:
    """The home that was named, else the one that is being served, else the user's own."""
    if _home_option() or os.environ.get("POKY_HOME"):
        return Path(config.home)
    homes = served_homes()
    if len(homes) > 1:
        raise Failed(
            f"Several embedded databases are being served: {', '.join(map(str, homes))}."
            " Name one with --home or POKY_HOME.",
            code="several_databases",
        )
    home = homes[0] if homes else Path(config.home)
    log.info("using the embedded database in %s", home)
    return home


@contextlib.contextmanager
def database(config: Config, *, keep_up: bool = False, migrated: bool = True) -> Iterator[Config]:
    """The configuration with DSNs that work: an embedded PostgreSQL where none is named."""
    if config.dsn or config.owner_dsn:
        with failures():
            yield replace(config, dsn=config.dsn or config.owner_dsn)
        return
    try:
        # Not needed where there is a DSN.
        from poky import embedded  # noqa: PLC0415
        from poky.schema.migrate import migrate  # noqa: PLC0415

        home = Path(config.home) if keep_up else _find_home(config)
        with ExitStack() as stack:
            stack.enter_context(failures())
            server = stack.enter_context(embedded.ensure_running(home))
            if keep_up:
                server.supervise()
                stack.enter_context(noted(home))
            config = replace(config, dsn=server.dsn_service, owner_dsn=server.dsn_owner)
            if migrated:
                migrate(config.owner_dsn, release=config.release)
            yield config
    except embedded.EmbeddedError as error:
        detail = f"{error}. Or name a database: POKY_DSN, or -d."
        raise Failed(detail, code="embedded_failed") from error


@contextlib.contextmanager
def open_store(dsn: str | None, *, as_owner: bool = False) -> Iterator[Store]:
    """A store with the patience of a person rather than of a request.

    As the owner (POKY_OWNER_DSN) for what the service itself may not do.
    """
    with database(load_config(dsn=dsn, owner_dsn=dsn)) as config:
        # -d names one database, as it is.
        shards = () if dsn else config.owner_shards if as_owner else config.shards
        store = opened(
            config.owner_dsn if as_owner else config.dsn,
            {each.number: each.dsn for each in shards},
            pool_size=2,
            statement_timeout=60,
            lock_timeout=10,
        )
        try:
            yield store
        finally:
            store.close()


@contextlib.contextmanager
def open_caches(store: Store) -> Iterator["Caches"]:
    """The caches of the store's database, without background work."""
    # Serve has its own.
    from poky.background import Background  # noqa: PLC0415
    from poky.cache import Caches  # noqa: PLC0415

    caches = Caches(store, load_config(), Background(store))
    try:
        yield caches
    finally:
        caches.stop()


def holding(store: Store, bucket: str) -> Store:
    """The store of the one database that has a bucket."""
    return store.holding(bucket) if isinstance(store, ShardedStore) else store


@contextlib.contextmanager
def purging(
    store: Store, loader: "Loader", others: Sequence[int] = (), within: str = ""
) -> Iterator[None]:
    """Tell caches of what the block stored, whatever comes of it, and of changes of ``others``.

    Of single keys as long as those are few; else they forget everything, once. ``within``: all of
    it is in this bucket's database.
    """
    try:
        yield
    finally:
        loader.settle()
        ids = [*loader.outbox_ids.values(), *others]
        if ids:
            with open_caches(store) as caches:
                if others or loader.told.is_everything:
                    caches.purge_all()
                else:
                    for bucket, keys in loader.told.keys.items():
                        for start in range(0, len(keys), _PURGED):
                            caches.purge_keys(bucket, keys[start : start + _PURGED])
            if isinstance(store, ShardedStore):
                store.confirm_in(within, ids)
            else:
                store.confirm(ids)
