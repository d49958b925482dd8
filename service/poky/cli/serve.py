"""``poky serve``."""

import logging
import os
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path

import click

from poky.cli.context import BadSettings, database, dsn_option, load_config
from poky.config import Config, url_of

log = logging.getLogger("poky.cli")


@click.command(epilog="\b\nExample:\n  poky serve -p 9000 --home ~/poky")
@click.option("-p", "--port", type=click.IntRange(1, 65535), help="The port. Default: 8081.")
@dsn_option
def serve(port: int | None, dsn: str | None) -> None:
    """Serve HTTP until SIGTERM."""
    from poky import process  # noqa: PLC0415 - only this command needs it

    config = load_config(port=port, dsn=dsn)
    if config.owner_dsn and not config.dsn:
        raise BadSettings(
            "POKY_OWNER_DSN: is for poky migrate, and requests must not run as the owner. Set"
            " POKY_DSN to the role poky_service, or unset both for an embedded PostgreSQL.",
            code="bad_settings",
        )
    is_embedded = not config.dsn
    where = f"{config.home} (embedded PostgreSQL)" if is_embedded else _source_of_dsn(dsn)
    with database(config, keep_up=True) as config:
        # With a database of its own it is run by a person, or else perhaps by systemd.
        shows = is_embedded or sys.stdout.isatty()
        status = process.serve(
            config, on_ready=lambda: _show_start(config, where) if shows else None
        )
    sys.exit(status)


def _source_of_dsn(dsn: str | None) -> str:
    if dsn:
        return "the database given by -d"
    for name in ("POKY_DSN", "DATABASE_URL"):
        if os.environ.get(name):
            return f"the database given by {name}"
    return "the database given by the credential poky_dsn"


def _show_start(config: Config, where: str) -> None:
    text = start_text(config, where, _trouble(url_of(config.listen, config.port)))
    try:
        click.echo(text)
    except OSError as error:  # a full disk, a pipe that nothing reads: it serves all the same
        log.warning("how to use it cannot be shown: %s", error.strerror)


def _trouble(base: str) -> str:
    """What /status says is wrong; empty if nothing is."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{base}/status", timeout=3):
            return ""
    except urllib.error.HTTPError as error:
        return error.read().decode()
    except OSError:
        return "no answer"


def start_text(config: Config, where: str, trouble: str) -> str:
    """What a newcomer needs: where the data is, and lines to paste, if they would work."""
    base = url_of(config.listen, config.port)
    if trouble:
        return f"""
Poky {config.release} listens on {base}, but cannot answer yet ({trouble}).
The data is to be in {where}. Requests get 503 until it can be used.
It tries again by itself; a schema that is missing is made by: poky migrate

Ctrl-C stops it."""
    admin = url_of(config.admin_listen, config.admin_port)
    curl, token = "curl", ""
    guarded = (
        "Every client that reaches it may do everything; POKY_ACCESS=tokens asks for tokens.\n"
    )
    if config.access != "open":
        guarded = ""
        curl = 'curl -H "Authorization: Bearer $TOKEN"'
        command = "poky" if shutil.which("poky") else Path(sys.prefix) / "bin" / "poky"
        token = f"\n  TOKEN=$({command} token create first --grant read,write,list:greetings)"
    return f"""
Poky {config.release} serves {base}, the data is in {where}.

  curl -X PUT {admin}/buckets/greetings{token}
  {curl} -d 'Hello!' -X PUT {base}/kv/greetings/hello
  {curl} -i {base}/kv/greetings/hello
  curl {base}/help

{guarded}Ctrl-C stops it."""
