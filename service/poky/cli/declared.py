"""Tokens as code: what a declaration asks for against what there is."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from poky.access import Grants, Token
from poky.store import Store


class _Declared(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    grants: list[str] = []
    token: str | None = None
    id: str | None = None
    hash: str | None = None
    expires: str | None = None
    state: str = "present"


class Applied(NamedTuple):
    """What was (or with check: would be) done, by name; tokens that no item names."""

    changes: dict[str, str]
    undeclared: list[str]
    outbox_ids: list[int]


class _Wish(NamedTuple):
    item: _Declared
    id: str
    hash: str
    grants: Grants
    expires_at: int | None


def apply_tokens(
    store: Store, text: str, until: Callable[[str | None], int | None], *, check: bool
) -> Applied:
    """Bring the declared tokens about; ValueError names every mistake, and nothing is done."""
    try:
        items = msgspec.json.decode(text, type=list[_Declared])
    except msgspec.DecodeError as error:
        raise ValueError(f"The declaration is not a JSON list of tokens: {error}") from None
    wishes = _checked(items, until)
    there = {each.name: each for each in store.tokens()}
    changes: dict[str, str] = {}
    outbox_ids: list[int | None] = []
    for item, id, hash, grants, expires_at in wishes:
        row = there.pop(item.name, None)
        if item.state == "absent":
            if row is not None:
                changes[item.name] = "revoked"
                outbox_ids += [] if check else [store.revoke_token(item.name)]
        elif row is None:
            changes[item.name] = "created"
            outbox_ids += (
                [] if check else [store.create_token(id, item.name, hash, grants.texts, expires_at)]
            )
        elif (row.id, row.hash, row.grants, row.expires_at) != (
            id,
            hash,
            list(grants.texts),
            expires_at,
        ):
            changes[item.name] = "changed"
            outbox_ids += (
                [] if check else [store.change_token(item.name, id, hash, grants.texts, expires_at)]
            )
    return Applied(changes, sorted(there), [each for each in outbox_ids if each is not None])


def _checked(items: list[_Declared], until: Callable[[str | None], int | None]) -> list[_Wish]:
    wishes, mistakes = [], []
    for item in items:
        try:
            wishes.append(_wish(item, until))
        except ValueError as error:
            mistakes.append(f"{item.name}: {error}")
    names = [item.name for item in items]
    mistakes += [f"{name}: is declared twice" for name in sorted({*names}) if names.count(name) > 1]
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return wishes


def _wish(item: _Declared, until: Callable[[str | None], int | None]) -> _Wish:
    if item.state not in ("present", "absent"):
        raise ValueError(f"state is present or absent, not “{item.state}”")
    if item.state == "absent":
        return _Wish(item, "", "", Grants(()), None)
    if item.expires is not None and item.expires[:4].isdigit() is False:
        raise ValueError("expires is a date here, such as 2027-06-30")
    grants, expires_at = Grants.parse(item.grants), until(item.expires)
    if item.token is not None:
        token = Token.parse(item.token)
        if token is None or item.id or item.hash:
            raise ValueError(
                "token is the whole text that poky token generate shows, or id and hash"
            )
        return _Wish(item, token.id, token.hash, grants, expires_at)
    if not item.id or not item.hash or len(item.hash) != 64:
        raise ValueError("give token, or the id and hash that poky token generate shows")
    return _Wish(item, item.id, item.hash, grants, expires_at)
