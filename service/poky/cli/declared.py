"""Tokens as code: what a declaration asks for against what there is."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from poky.access import Grants, Token, are_id_and_hash, check_name
from poky.cli.durations import read_date
from poky.store import Store, TokenRow


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
    name: str
    is_absent: bool
    id: str
    hash: str
    grants: tuple[str, ...]
    expires_at: int | None


def apply_tokens(store: Store, text: bytes, *, check: bool) -> Applied:
    """Bring the declared tokens about; ValueError names every mistake, and nothing is done."""
    mistakes: list[str] = []
    wishes = [_wish(item, mistakes) for item in _items(text, mistakes)]
    rows = store.tokens()
    mistakes += _conflicts(wishes, rows)
    if mistakes:
        raise ValueError("; ".join(mistakes))
    there = {row.name: row for row in rows}
    changes: dict[str, str] = {}
    steps: list[Callable[[], int | None]] = []
    # What is new comes first: its id may turn out to be that of a token that was revoked.
    for wish in sorted(wishes, key=lambda wish: wish.name in there):
        name, id, hash, grants, end = wish.name, wish.id, wish.hash, wish.grants, wish.expires_at
        row = there.pop(name, None)
        if wish.is_absent:
            if row is not None:
                changes[name] = "revoked"
                steps.append(partial(store.revoke_token, name))
        elif row is None:
            changes[name] = "created"
            steps.append(partial(store.create_token, id, name, hash, grants, end))
        elif (row.id, row.hash, tuple(row.grants), row.expires_at) != (id, hash, grants, end):
            changes[name] = "changed"
            steps.append(partial(store.change_token, name, id, hash, grants, end))
    done = [] if check else [step() for step in steps]
    return Applied(changes, sorted(there), [each for each in done if each is not None])


def _items(text: bytes, mistakes: list[str]) -> list[_Declared]:
    try:
        raw = msgspec.json.decode(text, type=list[msgspec.Raw])
    except msgspec.DecodeError as error:
        raise ValueError(f"The declaration is not a JSON list of tokens: {error}") from None
    items = []
    for number, each in enumerate(raw, 1):
        try:
            items.append(msgspec.json.decode(each, type=_Declared))
        except msgspec.DecodeError as error:
            mistakes.append(f"item {number}: {error}")
    return items


def _wish(item: _Declared, mistakes: list[str]) -> _Wish:
    """What an item asks for; what is wrong with it is added to the mistakes."""

    def tell(sentence: object) -> None:
        mistakes.append(f"{item.name}: {sentence}")

    def told(read: Callable[[Any], Any], given: object) -> Any:
        try:
            return read(given)
        except ValueError as error:
            tell(error)
            return None

    told(check_name, item.name)
    if item.state not in ("present", "absent"):
        tell(f"state is present or absent, not “{item.state}”")
    if item.state == "absent":
        return _Wish(item.name, True, "", "", (), None)
    grants = told(Grants.parse, item.grants) or Grants(())
    expires_at = None if item.expires is None else told(read_date, item.expires)
    id, hash = item.id or "", item.hash or ""
    if item.token is not None:
        token = Token.parse(item.token)
        if token is None or id or hash:
            tell("token is the whole text that poky token generate shows, or id and hash")
        else:
            id, hash = token.id, token.hash
    elif not are_id_and_hash(id, hash):
        tell("give token, or the id and hash that poky token generate shows")
    return _Wish(item.name, False, id, hash, grants.texts, expires_at)


def _conflicts(wishes: Sequence[_Wish], rows: Sequence[TokenRow]) -> list[str]:
    """What cannot be together: names and ids that stand twice, ids of other tokens."""
    mistakes = []
    for name, count in sorted(Counter(wish.name for wish in wishes).items()):
        if count > 1:
            mistakes.append(f"{name}: is declared twice")
    owners = {row.id: row.name for row in rows}
    for wish in wishes:
        if wish.id and owners.setdefault(wish.id, wish.name) != wish.name:
            mistakes.append(
                f"{wish.name}: its secret is that of {owners[wish.id]}: poky token generate draws"
                " another"
            )
    return mistakes
