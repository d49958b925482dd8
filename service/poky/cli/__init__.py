"""The command ``poky``: serve, migrate, config, bucket, cache, token, export and others.

Reads the command line, builds the objects, shows results: tables for people, ``--json`` for
programs. Exit status: 0 done, 1 it failed, 2 the command or its settings were wrong; with
``--json`` the last line of stderr then is an object with a ``code`` and a ``detail``.
"""

import contextlib
import errno
import logging
import os
import sys

import click

from poky import __version__, schema
from poky.cli.buckets import bucket
from poky.cli.caches import cache
from poky.cli.changes import changes
from poky.cli.context import Failed, as_json, load_config
from poky.cli.migrate import migrate
from poky.cli.output import print_json, print_table
from poky.cli.restored import restored
from poky.cli.serve import serve
from poky.cli.shards import shards
from poky.cli.tokens import token
from poky.cli.transfer import export_bucket, import_bucket, verify

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

_EXAMPLES = """\b
Examples:
  poky serve                              an embedded PostgreSQL, port 8081
  poky serve -p 9000 -d postgresql://poky_service@db/poky
  poky migrate -d postgresql://poky_owner@db/poky
  poky bucket create tooltips
"""


@click.group(epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="poky")
def poky() -> None:
    """Poky: buckets of objects over HTTP, in PostgreSQL.

    Settings come from the environment (POKY_...); `poky config` shows them.
    """


@poky.command()
@as_json
def config(as_json: bool) -> None:
    """Show every setting as it is in force; secrets are masked."""
    shown = load_config().shown()
    if as_json:
        print_json(shown)
    else:
        print_table(["setting", "value"], [list(row) for row in shown.items()])


@poky.command()
@as_json
def version(as_json: bool) -> None:
    """Show the version and the range of schemas that it works with."""
    versions = schema.versions()
    if as_json:
        print_json({"version": __version__, **versions})
    else:
        click.echo(f"poky {__version__}")
        click.echo("works with schemas {schema_min} to {schema_max}".format(**versions))


for command in (
    serve,
    migrate,
    bucket,
    shards,
    cache,
    changes,
    token,
    export_bucket,
    import_bucket,
    verify,
    restored,
):
    poky.add_command(command)


def main() -> None:
    """Run the command; anything a person can mend is one sentence, never a traceback."""
    _open_standard_files()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        poky(prog_name="poky")
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        failed = Failed(
            f"The output cannot be written: {error.strerror}. What the command was to change may be"
            " changed already.",
            code="output_not_written",
            as_json="--json" in sys.argv,
        )
        with contextlib.suppress(OSError):  # stderr may be as full
            failed.show()
        sys.exit(failed.exit_code)
    finally:
        _drop_output()


def _drop_output() -> None:
    """Forget what could not be written; Python would try again at the end, with a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _open_standard_files() -> None:
    """Open /dev/null for standard files that are closed: sockets would get their numbers."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, mode))  # noqa: SIM115 - for good
