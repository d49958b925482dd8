"""``poky token``: who may do what (docs/security.md)."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click

from poky.access import Grants, Token, check_name
from poky.cli.context import Failed, as_json, dsn_option, open_caches, open_store
from poky.cli.declared import apply_tokens
from poky.cli.durations import read_end
from poky.cli.output import print_json, print_table
from poky.store import Store, TokenRow

grant_option = click.option(
    "--grant",
    "grants",
    multiple=True,
    metavar="RIGHT[,RIGHT…]:BUCKET",
    help="read, write, delete, list, admin; in a bucket, user-* or *. May be repeated.",
)
expires_option = click.option(
    "--expires", metavar="WHEN", help="90d, 12h, 30m, or a date such as 2027-06-30. Default: never."
)


@click.group()
def token() -> None:
    """Create, list, rotate and revoke tokens. They are asked for with POKY_ACCESS=tokens."""


@token.command(
    "create", epilog="\b\nExample:\n  poky token create web --grant read,write:tips --expires 90d"
)
@click.argument("name")
@grant_option
@expires_option
@dsn_option
@as_json
def create_token(
    name: str, grants: tuple[str, ...], expires: str | None, dsn: str | None, as_json: bool
) -> None:
    """Create a token and show it, once: only a hash of its secret is kept."""
    parsed, until = _read(name, grants, expires)
    made = Token.create()
    with _changing(dsn) as (store, confirm):
        outbox_id = store.create_token(made.id, name, made.hash, parsed.texts, until)
        _show_secret(name, made, as_json)  # also if the caches cannot be told
        confirm(outbox_id)


@token.command("list")
@dsn_option
@as_json
def list_tokens(dsn: str | None, as_json: bool) -> None:
    """Show all tokens with their grants, never their secrets."""
    with open_store(dsn, as_owner=True) as store:
        rows = store.tokens()
    if as_json:
        print_json([_shown(each) for each in rows])
        return
    print_table(
        ["token", "id", "grants", "created", "expires", "last used", "secrets"],
        [
            [
                each.name,
                each.id,
                " ".join(each.grants),
                _day(each.created_at),
                _day(each.expires_at),
                each.last_used_on or "-",
                "2 (being rotated)" if each.is_rotating else "1",
            ]
            for each in rows
        ],
    )


@token.command("show")
@click.argument("name")
@dsn_option
@as_json
def show_token(name: str, dsn: str | None, as_json: bool) -> None:
    """Show one token: everything but its secret."""
    with open_store(dsn, as_owner=True) as store:
        found = [each for each in store.tokens() if each.name == name]
    if not found:
        raise Failed(
            f"There is no token named {name}. See: poky token list", code="token_not_found"
        )
    shown = _shown(found[0])
    if as_json:
        print_json(shown)
    else:
        print_table(["token", name], [[key, str(value)] for key, value in shown.items()])


@token.command("rotate", epilog="\b\nExample:\n  poky token rotate web --finish")
@click.argument("name")
@click.option("--finish", is_flag=True, help="End the previous secret; the newer one stays.")
@dsn_option
@as_json
def rotate_token(name: str, finish: bool, dsn: str | None, as_json: bool) -> None:
    """Give a token a second secret and show it; both are valid until --finish.

    Rotated once more before that, it keeps the newer two.
    """
    with _changing(dsn) as (store, confirm):
        found = _find(store, name)
        if finish:
            confirm(store.rotate_token(name, None, False))
            _show_done(name, "its previous secret is refused everywhere", as_json)
        else:
            made = Token.create(found.id)
            outbox_id = store.rotate_token(name, made.hash, True)
            _show_secret(name, made, as_json)
            confirm(outbox_id)


@token.command("revoke")
@click.argument("name")
@dsn_option
@as_json
def revoke_token(name: str, dsn: str | None, as_json: bool) -> None:
    """End a token; returns when it opens nothing any more, at any instance or cache.

    To be said again if it was not acknowledged.
    """
    with _changing(dsn) as (store, confirm):
        confirm(store.revoke_token(name))
    _show_done(name, "revoked", as_json)


@token.command("apply", epilog="\b\nExample:\n  poky token apply --check < tokens.json")
@click.option("--check", is_flag=True, help="Say what differs, and change nothing.")
@dsn_option
@as_json
def apply(check: bool, dsn: str | None, as_json: bool) -> None:
    """Make the tokens what a JSON list on standard input declares.

    Each item has name, grants, and either token (the whole text) or id and hash; optionally
    expires, and "state": "absent". Tokens that the list does not name stay as they are.
    """
    text = sys.stdin.buffer.read()
    with _changing(dsn) as (store, confirm):
        try:
            done = apply_tokens(store, text, check=check)
        except ValueError as error:
            raise Failed(f"{error}. Nothing was changed.", code="bad_declaration") from None
        if not check:  # also without a change: the previous time may not have been acknowledged
            confirm(*done.outbox_ids)
    if as_json:
        print_json({"changes": done.changes, "undeclared": done.undeclared})
        return
    for name, what in done.changes.items():
        click.echo(f"{name}: {what}")
    for name in done.undeclared:
        click.echo(f"{name}: is not declared")


@token.command("generate")
@as_json
def generate(as_json: bool) -> None:
    """Draw a token for a vault, without a database: its text, its id and the hash to declare."""
    made = Token.create()
    shown = {"token": str(made), "id": made.id, "hash": made.hash}
    if as_json:
        print_json(shown)
    else:
        for key, value in shown.items():
            click.echo(f"{key}: {value}")


@contextmanager
def _changing(dsn: str | None) -> Iterator[tuple[Store, Callable[..., None]]]:
    """A store for administration, and what confirms changes at all caches before they count."""
    with open_store(dsn, as_owner=True) as store, open_caches(store) as caches:

        def confirm(*outbox_ids: int | None) -> None:
            ids = [each for each in outbox_ids if each is not None]
            caches.forget_policy(*ids)
            store.confirm(ids)

        yield store, confirm


def _find(store: Store, name: str) -> TokenRow:
    for row in store.tokens():
        if row.name == name:
            return row
    raise Failed(f"There is no token named {name}. See: poky token list", code="token_not_found")


def _read(name: str, grants: tuple[str, ...], expires: str | None) -> tuple[Grants, int | None]:
    """What a new token is to be; click.UsageError names every mistake."""
    mistakes = []

    def told(read: Callable[[Any], Any], given: object) -> Any:
        try:
            return read(given)
        except ValueError as error:
            mistakes.append(str(error))
            return None

    told(check_name, name)
    parsed = told(Grants.parse, grants)
    until = None if expires is None else told(read_end, expires)
    if mistakes:
        raise click.UsageError("; ".join(mistakes) + ". Nothing was changed.")
    return parsed, until


def _shown(row: TokenRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "id": row.id,
        "grants": row.grants,
        "created_at": _day(row.created_at),
        "expires_at": None if row.expires_at is None else _moment(row.expires_at),
        "last_used_on": row.last_used_on,
        "rotating": row.is_rotating,
    }


def _day(seconds: int | None) -> str:
    return "-" if seconds is None else _moment(seconds)[:10]


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _show_secret(name: str, made: Token, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "id": made.id, "token": str(made)})
    else:
        click.echo(f"{made}")
        click.echo(
            "Keep it: it is not shown again. Send it as  Authorization: Bearer TOKEN", err=True
        )


def _show_done(name: str, word: str, as_json: bool) -> None:
    if as_json:
        print_json({name: word})
    else:
        click.echo(f"{name}: {word}")
