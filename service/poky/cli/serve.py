"""``poky serve``."""

import logging
import sys

import click

from poky.cli.context import database, dsn_option, load_config
from poky.config import Config, unknown_settings


@click.command(epilog="\b\nExample:\n  poky serve -p 9000 --home ~/poky")
@click.option("-p", "--port", type=click.IntRange(1, 65535), help="The port. Default: 8081.")
@dsn_option
@click.option("--home", metavar="DIR", help="Where the embedded PostgreSQL keeps its data.")
def serve(port: int | None, dsn: str | None, home: str | None) -> None:
    """Serve HTTP until SIGTERM."""
    from poky import process  # noqa: PLC0415 - only this command needs it

    config = load_config(port=port, dsn=dsn, home=home)
    for sentence in unknown_settings():
        logging.getLogger("poky").warning(sentence)
    with database(config, keep_up=True) as config:
        status = process.serve(config, on_ready=lambda: _show_start(config, dsn))
    sys.exit(status)


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
