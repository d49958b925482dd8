"""A DSN of several hosts as one for each, with the limits of time that a lost host may cost."""

import psycopg2.extensions

from poky.store.errors import BadDsn

# What a peer that vanished may cost, and the primary of several hosts; the DSN may say otherwise.
_DSN_DEFAULTS = {
    "connect_timeout": "3",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "target_session_attrs": "read-write",
    "client_encoding": "UTF8",
}


def one_per_host(dsn: str, name: str = "poky") -> list[str]:
    """One DSN per host, so that a host that does not answer cannot use up the time of the next."""
    try:
        parts = {**_DSN_DEFAULTS, "application_name": name, **psycopg2.extensions.parse_dsn(dsn)}
    except (psycopg2.Error, ValueError):
        raise _bad_dsn() from None  # libpq's words may quote a password
    lists = {
        name: parts.pop(name).split(",") for name in ("host", "hostaddr", "port") if name in parts
    }
    dsns = []
    hosts = max((len(each) for name, each in lists.items() if name != "port"), default=1)
    if not {len(each) for each in lists.values()} <= {1, hosts}:
        raise _bad_dsn()
    for number in range(hosts):
        # One port, or as many as there are hosts (libpq's rule).
        one = {name: each[number if len(each) > 1 else 0] for name, each in lists.items()}
        dsns.append(psycopg2.extensions.make_dsn(**parts, **one))
    return dsns


def _bad_dsn() -> BadDsn:
    return BadDsn(
        "The DSN (POKY_DSN, or -d) is not one that PostgreSQL understands; it should look like"
        " postgresql://user@host/database or host=… dbname=… user=…"
    )
