"""The one table of settings: environment in, frozen Config out.

Every field carries its type, its default and its sentence; ``docs/configuration.md``, the role's
environment file and ``poky config`` are checked against this table. Knows nothing else of ours.
"""

import ipaddress
import os
import re
import shlex
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from poky.forms import CacheNode, Shard, caches, hosts, origins, prometheus, shards_and_control
from poky.forms import shards as parse_shards

MB = 1024 * 1024


class ConfigError(Exception):
    """The settings cannot be used: one sentence per problem, all of them at once."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    aliases: tuple[str, ...] = (),
    secret: bool = False,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] = (),
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """One row of the table: what the environment may say, and what it means when it is silent."""
    return field(
        default=default,
        metadata={
            "help": help,
            "unit": unit,
            "aliases": aliases,
            "secret": secret,
            "at_least": at_least,
            "at_most": at_most,
            "choices": choices,
            "parse": parse,
        },
    )


@dataclass(frozen=True)
class Config:
    """All settings of the service, checked; a fact not here does not come from the environment."""

    dsn: str = setting(
        "",
        "Where PostgreSQL is, as the service role. Empty: an embedded PostgreSQL in POKY_HOME.",
        aliases=("DATABASE_URL",),
        secret=True,
    )
    owner_dsn: str = setting(
        "", "Where PostgreSQL is, as the owner, for poky migrate. Empty: POKY_DSN.", secret=True
    )
    shards: tuple[Shard, ...] = setting(
        (),
        "The databases besides POKY_DSN that have buckets, as the service role: 1=postgresql://…"
        " 2=postgresql://… Empty: none.",
        parse=parse_shards,
        secret=True,
    )
    owner_shards: tuple[Shard, ...] = setting(
        (), "The same databases as the owner. Empty: POKY_SHARDS.", parse=parse_shards, secret=True
    )
    move_shards: tuple[Shard, ...] = setting(
        (),
        "How a database reaches another as the owner while a bucket moves, where that is not as the"
        " command does: 0=postgresql://… 1=postgresql://…; 0: POKY_DSN's.",
        parse=shards_and_control,
        secret=True,
    )
    home: str = setting("", "Where the embedded PostgreSQL lives. Empty: the user's data folder.")
    listen: str = setting("127.0.0.1", "The address to serve on.")
    port: int = setting(8081, "The port to serve on.", at_least=1, at_most=65535)
    admin_listen: str = setting(
        "127.0.0.1",
        "The admin listener's address: keep it private. Or the path of a Unix socket (/…), for its"
        " user, group and root alone.",
    )
    admin_port: int = setting(
        0, "The admin listener's port (/metrics, /buckets). 0: POKY_PORT + 1000.", at_most=65535
    )
    admin_objects: str = setting(
        "",
        "Whether the admin listener's pages show keys and values. Empty: if POKY_ACCESS is open.",
        choices=("", "off", "on"),
    )
    admin_hosts: tuple[str, ...] = setting(
        (),
        "Names by which the admin listener is asked, besides loopback and its own address.",
        parse=hosts,
    )
    cors_origins: tuple[str, ...] = setting(
        (),
        "Origins whose pages may use the main listener: https://app.example …, or *: every page.",
        parse=origins,
    )
    access: str = setting(
        "",
        "open: every client may do everything; tokens: what its token grants. Empty: open if only"
        " loopback is served, else refused.",
        choices=("", "open", "tokens"),
    )
    lease_listen: str = setting("", "The lease listener's address. Empty: POKY_LISTEN.")
    lease_port: int = setting(
        0, "The lease listener's port, used with caches. 0: POKY_PORT + 2000.", at_most=65535
    )
    threads: int = setting(
        4, "Threads that answer requests.", aliases=("MAX_THREADS",), at_least=1, at_most=512
    )
    cpu: int = setting(
        -1,
        "The CPU to stay on, modulo how many there are; -1: any. Different for each process.",
        at_least=-1,
        at_most=65535,
    )
    pool_size: int = setting(
        0,
        "Connections for the work of clients at most. 0: POKY_THREADS + 4.",
        aliases=("MAX_POOL_SIZE",),
        at_least=0,
        at_most=1024,
    )
    pool_timeout: float = setting(
        2.0, "How long a request waits for a connection.", unit="s", at_least=0.1, at_most=60
    )
    statement_timeout: float = setting(
        4.0,
        "How long a statement for one small object may run: see Time.",
        unit="s",
        at_least=0.1,
        at_most=600,
    )
    lock_timeout: float = setting(
        1.5, "How long a statement may wait for a lock.", unit="s", at_least=0.1, at_most=600
    )
    max_value_bytes: int = setting(
        16 * MB, "The largest value.", unit="bytes", at_least=1, at_most=100 * MB
    )
    max_inflight_bytes: int = setting(
        0,
        "Memory of requests and answers at once; beyond it the answer is 503."
        " 0: the larger of POKY_MAX_VALUE_BYTES and POKY_MAX_BATCH_BYTES, four times for each of"
        " POKY_THREADS and once more.",
        unit="bytes",
        at_least=0,
    )
    max_batch_items: int = setting(10_000, "Items in one batch.", at_least=1, at_most=100_000)
    max_batch_bytes: int = setting(
        16 * MB, "The largest body of a batch.", unit="bytes", at_least=1, at_most=100 * MB
    )
    max_answer_bytes: int = setting(
        0,
        "The values that one POST /multi may ask for together. 0: POKY_MAX_BATCH_BYTES.",
        unit="bytes",
        at_least=0,
    )
    max_followers: int = setting(
        2000,
        "Requests that wait for changes at once; beyond it the answer is 503.",
        at_least=0,
        at_most=100_000,
    )
    max_future_seconds: int = setting(
        172_800, "How far ahead If-Unmodified-Since may be on a write.", unit="s", at_least=0
    )
    shutdown_timeout: float = setting(
        30.0, "How long running requests may take to finish at SIGTERM.", unit="s", at_least=0
    )
    log_level: str = setting(
        "info",
        "The least severity that is logged.",
        aliases=("LOG_LEVEL",),
        choices=("debug", "info", "warning", "error"),
        parse=lambda text: {"warn": "warning"}.get(text.lower(), text.lower()),
    )
    statsd_host: str = setting(
        "", "statsd, as host or host:port. Empty: none.", aliases=("STATSD_HOST",)
    )
    statsd_key_base: str = setting(
        "poky", "The first part of statsd's names.", aliases=("STATSD_KEY_BASE",)
    )
    log_format: str = setting(
        "keyvalue",
        "How the log is written: keyvalue, or json: an object on each line.",
        choices=("keyvalue", "json"),
    )
    server_timing: str = setting(
        "off",
        "on: answers for objects say how long each stage took (Server-Timing).",
        choices=("off", "on"),
    )
    metrics_buckets: int = setting(
        0,
        "Buckets with series of their own in /metrics, at most; others share one. 0: none.",
        at_least=0,
        at_most=1000,
    )
    probe: tuple[CacheNode, ...] = setting(
        (),
        "Where canaries are read all the time, as name=http://host:port: the caches' listeners for"
        " clients. Empty: nowhere.",
        parse=caches,
    )
    probe_seconds: float = setting(
        2.0, "How often a canary is written and read.", unit="s", at_least=0.1, at_most=3600
    )
    probe_bucket: str = setting("poky-probe", "The bucket of the canaries.")
    prometheus_url: str = setting(
        "",
        "The Prometheus that the admin listener's page asks for alerts, backups, hit ratios and"
        " other instances, as http://host:port. Empty: none.",
        parse=prometheus,
    )
    release: str = setting(
        "", "The name of this release. Empty: the file RELEASE beside the venv, or the version."
    )
    instance: str = setting("", "The name of this process. Empty: host name and port.")
    caches: tuple[CacheNode, ...] = setting(
        (), "The purge listeners of all caches, as name=http://host:port.", parse=caches
    )
    cache_mode: str = setting(
        "lease",
        "How coherent the caches are: never stale (lease, revalidate) or at most a TTL (bounded).",
        choices=("lease", "revalidate", "bounded"),
    )
    lease_seconds: float = setting(
        10.0,
        "How long a cache may use its copies without asking; a cut-off cache delays writes by it.",
        unit="s",
        at_least=1,
        at_most=300,
    )
    purge_timeout: float = setting(
        1.0, "How long a cache may take to confirm a purge.", unit="s", at_least=0.05, at_most=10
    )

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ, **overrides: Any) -> "Config":
        """Read the environment; ``overrides`` (the command line) win.

        Raises ConfigError with every problem at once, each a sentence naming the variable.
        """
        values: dict[str, Any] = {}
        problems: list[str] = []
        env = _with_credentials(env, problems)
        for each in fields(cls):
            for name in (f"POKY_{each.name.upper()}", *each.metadata["aliases"]):
                if env.get(name, "") != "":
                    try:
                        values[each.name] = _parse(each, env[name])
                    except ValueError as error:
                        problems.append(f"{name}: {error}.")
                    break
        if "caches" not in values and env.get("VARNISH_PURGE_HOST"):
            host, port = env["VARNISH_PURGE_HOST"], env.get("VARNISH_PURGE_PORT", "6091")
            try:
                values["caches"] = caches(f"http://{host}:{port}")
            except ValueError as error:
                problems.append(f"VARNISH_PURGE_HOST and VARNISH_PURGE_PORT: {error}.")
        values.update({name: value for name, value in overrides.items() if value is not None})
        if problems:
            raise ConfigError(problems)
        return cls(**values)._completed()

    def _completed(self) -> "Config":
        """Fill in what follows from other settings and refuse combinations that cannot work."""
        largest = max(self.max_value_bytes, self.max_batch_bytes)
        inflight = self.max_inflight_bytes or (self.threads * 4 + 1) * largest
        filled = {
            "max_inflight_bytes": inflight,
            "max_answer_bytes": self.max_answer_bytes or self.max_batch_bytes,
            "admin_port": self.admin_port or self.port + 1000,
            "lease_port": self.lease_port or self.port + 2000,
            "lease_listen": self.lease_listen or self.listen,
            "pool_size": self.pool_size or self.threads + 4,
            "owner_dsn": self.owner_dsn or self.dsn,
            "owner_shards": self.owner_shards or self.shards,
            "home": self.home or str(data_folder()),
            "release": self.release or _release_beside_venv(),
            "instance": self.instance or f"{socket.gethostname()}:{self.port}",
            "access": self.access or ("open" if _is_loopback(self.listen) else ""),
        }
        filled["admin_objects"] = self.admin_objects or (
            "on" if filled["access"] == "open" else "off"
        )
        problems = []
        ports = (self.port, filled["admin_port"], filled["lease_port"])
        if len(set(ports)) < 3:
            problems.append("POKY_PORT, POKY_ADMIN_PORT and POKY_LEASE_PORT: must differ.")
        problems += [
            f"{name}: {port} is above 65535; set it, or choose a lower POKY_PORT."
            for name, port in zip(("POKY_ADMIN_PORT", "POKY_LEASE_PORT"), ports[1:], strict=True)
            if int(str(port)) > 65535
        ]
        if not filled["access"]:
            problems.append(
                f"POKY_ACCESS: others reach {self.listen}; say tokens, or open if every client"
                " may read, write and delete everything."
            )
        if (self.shards or self.owner_shards) and not (self.dsn or self.owner_dsn):
            problems.append(
                "POKY_SHARDS: needs POKY_DSN, the database that knows where buckets are; an"
                " embedded one is alone."
            )
        owned: Any = filled["owner_shards"]
        if self.shards and {each.number for each in owned} != {s.number for s in self.shards}:
            problems.append("POKY_OWNER_SHARDS: must name the shards that POKY_SHARDS names.")
        if inflight < largest:
            problems.append(
                "POKY_MAX_INFLIGHT_BYTES: must not be below POKY_MAX_VALUE_BYTES or "
                "POKY_MAX_BATCH_BYTES, or the largest request could never be taken."
            )
        if self.lock_timeout > self.statement_timeout:
            problems.append("POKY_LOCK_TIMEOUT: must not be above POKY_STATEMENT_TIMEOUT.")
        if self.purge_timeout > self.lease_seconds / 2:
            problems.append("POKY_PURGE_TIMEOUT: must not be above half of POKY_LEASE_SECONDS.")
        if problems:
            raise ConfigError(problems)
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return Config(**{**values, **filled})

    def shown(self) -> dict[str, str]:
        """Every setting by its environment name, for people to read: secrets are masked."""
        return {
            f"POKY_{each.name.upper()}": mask(str(value)) if each.metadata["secret"] else value
            for each in fields(self)
            for value in [_text(getattr(self, each.name))]
        }


def url_of(address: str, port: int) -> str:
    """A URL that reaches a listener at this address from the same machine.

    Of a Unix socket, with what curl needs before it.
    """
    if is_path(address):
        return f"--unix-socket {shlex.quote(address)} http://localhost"
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return f"http://{address or '127.0.0.1'}:{port}"
    if ip.is_unspecified:
        ip = ipaddress.ip_address("127.0.0.1" if ip.version == 4 else "::1")
    return f"http://[{ip}]:{port}" if ip.version == 6 else f"http://{ip}:{port}"


def is_path(address: str) -> bool:
    """Whether a listener's address is the path of a Unix socket."""
    return address.startswith("/")


def unknown_settings(env: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each POKY_ variable that is no setting: a warning, not an error.

    After a rollback the older release meets the newer environment file.
    """
    known = [f"POKY_{each.name.upper()}" for each in fields(Config)]
    sentences = []
    for name in sorted(env):
        if name.startswith("POKY_") and name not in known:
            near = get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            sentences.append(f"{name} is no setting of this release and is ignored.{hint}")
    return sentences


# The parameters of libpq that hold a secret, not the name of a file that holds it.
_SECRETS = "(?:password|sslpassword|oauth_client_secret|scram_client_key|scram_server_key)"


def mask(dsn: str) -> str:
    """The DSN without its secrets, in either of libpq's two forms."""
    dsn = re.sub(r"(://[^:/@]*):[^/?]*@", r"\1:***@", dsn)
    dsn = re.sub(rf"([?&]{_SECRETS}=)[^&]*", r"\1***", dsn)
    return re.sub(rf"((?:^|\s){_SECRETS}\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)", r"\1***", dsn)


def _parse(each: Any, text: str) -> Any:
    meta = each.metadata
    text = text.strip()
    value: Any
    if meta["parse"]:
        value = meta["parse"](text)
    elif each.type in (int, float):
        kind = "a whole number" if each.type is int else "a number"
        try:
            value = each.type(text)
        except ValueError:
            raise ValueError(f"“{text}” is not {kind}") from None
        if not (abs(value) < 1e15):
            raise ValueError(f"“{text}” is not {kind}")
    else:
        value = text
    if meta["choices"] and value not in meta["choices"]:
        raise ValueError(f"“{text}” is not one of {', '.join(filter(None, meta['choices']))}")
    for bound, word, wrong in (("at_least", "least", -1), ("at_most", "most", 1)):
        limit = meta[bound]
        if limit is not None and (value - limit) * wrong > 0:
            raise ValueError(f"{text} must be at {word} {limit:g}")
    return value


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(str(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


_CREDENTIALS = [
    *("POKY_DSN", "POKY_OWNER_DSN", "POKY_SHARDS", "POKY_OWNER_SHARDS", "POKY_MOVE_SHARDS")
]


def _with_credentials(env: Mapping[str, str], problems: list[str]) -> dict[str, str]:
    """Add the secrets that systemd hands over as files (LoadCredential=)."""
    merged = dict(env)
    directory = env.get("CREDENTIALS_DIRECTORY")
    if directory:
        for name in _CREDENTIALS:
            file = Path(directory) / name.lower()
            if name not in merged and file.is_file():
                try:
                    merged[name] = file.read_text("utf-8").strip()
                except (OSError, UnicodeDecodeError) as error:
                    reason = getattr(error, "strerror", None) or "it is not UTF-8"
                    problems.append(f"{name}: {file} cannot be read: {reason}.")
    return merged


def _is_loopback(address: str) -> bool:
    return address in {"localhost", "::1"} or address.startswith("127.")


def data_folder() -> Path:
    """The user's folder for what Poky keeps; POKY_HOME unless that is set."""
    try:
        data = os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser()
    except RuntimeError:  # no HOME, and a user whom the system does not know
        data = "/nonexistent"
    return Path(data) / "poky"


def _release_beside_venv() -> str:
    from poky import __version__  # noqa: PLC0415 - the package imports nothing by itself

    file = Path(sys.prefix).parent / "RELEASE"
    if file.is_file():
        return file.read_text().strip()
    return __version__
