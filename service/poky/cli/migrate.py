"""``poky migrate``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from poky import schema
from poky.cli.context import Failed, as_json, database, dsn_option, load_config
from poky.cli.output import print_json, progress_bar
from poky.config import Config
from poky.forms import Shard
from poky.schema.migrate import migrate as run_migration
from poky.schema.migrate import plan
from poky.schema.shards import join_shards


@click.command(epilog="\b\nExample:\n  poky migrate --plan -d postgresql://poky_owner@db/poky")
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
    """Create or upgrade the schema, as the database's owner (POKY_OWNER_DSN).

    Also that of every shard (POKY_OWNER_SHARDS), which becomes one with that, unless -d names a
    database.
    """
    if only_print:
        click.echo(schema.script(kind or "partitioned"))
        return
    config = load_config(dsn=dsn, owner_dsn=dsn)
    with database(config, migrated=False) as config:
        if only_plan:
            planned = plan(config.owner_dsn, kind=kind, phase=phase)
            of_shards = {
                each.number: plan(each.dsn, kind="partitioned", phase=phase)
                for each in _shards(config, dsn)
            }
            if as_json:
                print_json(asdict(planned) | _by_number(of_shards))
            else:
                if planned.refusal or planned.pending or not planned.converts:
                    _show_steps("to apply", planned.pending, planned.refusal)
                if planned.converts:
                    click.echo("The flat schema would become a partitioned one.")
                for number, each in of_shards.items():
                    _show_steps(f"shard {number}: to apply", each.pending, each.refusal)
            return
        with progress_bar() as progress:
            migrated = run_migration(
                config.owner_dsn,
                kind=kind,
                phase=phase,
                release=config.release,
                progress=progress,
                revision_start=revision_start,
                revision_increment=revision_increment,
            )
            done = {
                each.number: run_migration(
                    each.dsn,
                    kind="partitioned",
                    phase=phase,
                    release=config.release,
                    progress=progress,
                )
                for each in _shards(config, dsn)
            }
            if done:
                join_shards(
                    config.owner_dsn, {each.number: each.dsn for each in config.owner_shards}
                )
    if as_json:
        print_json(asdict(migrated) | _by_number(done))
    else:
        if migrated.applied or not migrated.converted:
            _show_steps("applied", migrated.applied)
        if migrated.converted:
            click.echo("The flat schema has become a partitioned one.")
        for number, shard in done.items():
            _show_steps(f"shard {number}: applied", shard.applied)


def _shards(config: Config, dsn: str | None) -> Sequence[Shard]:
    return () if dsn else config.owner_shards


def _by_number(found: Mapping[int, Any]) -> dict[str, Any]:
    return {"shards": {str(n): asdict(each) for n, each in found.items()}} if found else {}


def _show_steps(word: str, files: list[str], refusal: str | None = None) -> None:
    if refusal:
        raise Failed(refusal, code="schema_refused")
    for file in files or ["nothing: the schema is up to date"]:
        click.echo(f"{word}: {file}")
