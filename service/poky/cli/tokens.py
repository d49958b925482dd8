"""``poky token``: who may do what (docs/security.md)."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click

from poky.access import Grants, Token
from poky.cli.context import Failed, as_json, dsn_option, open_caches, open_store
from poky.cli.declared import apply_tokens
from poky.cli.output import print_json, print_table
from poky.store import Store, TokenRow

_UNITS = {"m": 60, "h": 3600, "d": 86_400}
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,128}")

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
    mistakes = []
    if not _NAME.fullmatch(name):
        mistakes.append(f"“{name}” is no name: use 1 to 128 characters of A-Z a-z 0-9 _ . @ -")
    parsed, until = _read(grants, expires, mistakes)
    if mistakes:
        raise click.UsageError("; ".join(mistakes) + ". Nothing was changed.")
    made = Token.create()
    with _changing(dsn) as (store, confirm):
        confirm(store.create_token(made.id, name, made.hash, parsed.texts, until))
    _show_secret(name, made, as_json)


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
    """Give a token a second secret and show it; both are valid until --finish."""
    with _changing(dsn) as (store, confirm):
        found = _find(store, name)
        if finish:
            confirm(store.rotate_token(name, None, False))
        else:
            made = Token.create(found.id)
            confirm(store.rotate_token(name, made.hash, True))
    if finish:
        _show_done(name, "its previous secret is refused everywhere", as_json)
    else:
        _show_secret(name, made, as_json)


@token.command("revoke")
@click.argument("name")
@dsn_option
@as_json
def revoke_token(name: str, dsn: str | None, as_json: bool) -> None:
    """End a token; returns when it opens nothing any more, at any instance or cache."""
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
    text = sys.stdin.read()
    with _changing(dsn) as (store, confirm):
        try:
            done = apply_tokens(store, text, _until, check=check)
        except ValueError as error:
            raise Failed(f"{error}. Nothing was changed.", code="bad_declaration") from None
        for outbox_id in done.outbox_ids:
            confirm(outbox_id)
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
def _changing(dsn: str | None) -> Iterator[tuple[Store, Any]]:
    """A store for administration, and what confirms a change at all caches before it counts."""
    with open_store(dsn, as_owner=True) as store, open_caches(store) as caches:

        def confirm(outbox_id: int | None) -> None:
            if outbox_id is not None:
                caches.forget_policy(outbox_id)
                store.confirm([outbox_id])

        yield store, confirm


def _find(store: Store, name: str) -> TokenRow:
    for row in store.tokens():
        if row.name == name:
            return row
    raise Failed(f"There is no token named {name}. See: poky token list", code="token_not_found")


def _read(
    grants: tuple[str, ...], expires: str | None, mistakes: list[str]
) -> tuple[Grants, int | None]:
    parsed, until = Grants(()), None
    try:
        parsed = Grants.parse(grants)
    except ValueError as error:
        mistakes.append(str(error))
    try:
        until = _until(expires)
    except ValueError as error:
        mistakes.append(str(error))
    return parsed, until


def _until(text: str | None) -> int | None:
    """Seconds since 1970; ValueError with a sentence."""
    if text is None:
        return None
    if match := re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text):
        return int(time.time()) + int(match[1]) * _UNITS[match[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"“{text}” is no end: write 90d, 12h, 30m or 2027-06-30") from None
    seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    if seconds <= time.time():
        raise ValueError(f"“{text}” has passed already: choose a later end")
    return seconds


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
