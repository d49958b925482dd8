"""Tokens: who may do what, at the service; every route crossed with every right and pattern."""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from poky.access import (
    RIGHTS,
    Decision,
    Gate,
    Grants,
    Token,
    Verdict,
    are_id_and_hash,
    check_name,
)
from poky.access import (
    gate as gates,
)
from poky.api import ROUTES
from poky.api.guard import require
from poky.cli.durations import read_end
from poky.http import Refused
from poky.store import Credential, Store, StoreError
from tests.conftest import Database
from tests.service import Client, Headers, Response, Service, running, wait_until

pytestmark = pytest.mark.inside


def command(database: Database, *words: str, stdin: str = "", code: int = 0) -> Any:
    """Run poky as the owner, and return what it prints as JSON."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("POKY_")}
    done = subprocess.run(
        [sys.executable, "-m", "poky", *words, "--json"],
        env={**clean, "POKY_DSN": database.dsn_service, "POKY_OWNER_DSN": database.dsn_owner},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def listed(database: Database) -> Any:
    """The tokens, but for the day of their last use: it is recorded some seconds later."""
    return [{**row, "last_used_on": None} for row in command(database, "token", "list")]


def bearer(token: str) -> Headers:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def guarded(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("guarded") / "log"
    long = {"statement_timeout": "30", "lock_timeout": "20"}
    with running(database.dsn_service, log, access="tokens", **long) as service:
        yield service


@pytest.fixture
def client(guarded: Service) -> Client:
    return guarded.client()


class Maker:
    """Makes tokens as the owner, each with a name of its own."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.number = 0

    def __call__(self, *grants: str, seconds: int | None = None) -> str:
        self.number += 1
        self.name = f"t{self.number}-{time.time_ns()}"
        token = Token.create()
        until = None if seconds is None else int(time.time()) + seconds
        texts = list(Grants.parse(grants).texts)
        row = (token.id, self.name, token.hash, texts, until)
        with self.database.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT poky.create_token(%s, %s, %s, %s, %s)", row)
        connection.close()
        return str(token)


@pytest.fixture
def make(database: Database) -> Maker:
    return Maker(database)


# Every route and every right. What a request looks like that would succeed.

REQUESTS: dict[tuple[str, str], tuple[str, str | None]] = {
    ("GET", "/kv/<bucket>/<key>"): ("/kv/{b}/k", None),
    ("PUT", "/kv/<bucket>/<key>"): ("/kv/{b}/k", "value"),
    ("DELETE", "/kv/<bucket>/<key>"): ("/kv/{b}/k", None),
    ("GET", "/kv/<bucket>"): ("/kv/{b}", None),
    ("DELETE", "/kv/<bucket>"): ("/kv/{b}?prefix=k&confirm=k", None),
    ("GET", "/changes/<bucket>"): ("/changes/{b}", None),
    ("POST", "/multi/<bucket>"): ("/multi/{b}", '[{"key": "k"}]'),
    ("PUT", "/multi/<bucket>"): ("/multi/{b}", '[{"key": "k", "data": "v"}]'),
    ("DELETE", "/multi/<bucket>"): ("/multi/{b}", '[{"key": "k"}]'),
    ("GET", "/buckets"): ("/buckets", None),
    ("PUT", "/buckets/<bucket>"): ("/buckets/{b}", None),
    ("DELETE", "/buckets/<bucket>"): ("/buckets/{b}?keys=drop", None),
}
OPEN = {"/status", "/help", "/openapi.json", "/"}


def ask(client: Client, method: str, path: str, body: str | None, headers: Headers) -> Response:
    if path.startswith("/multi"):
        headers = {"Content-Type": "application/json", **headers}
    return client.request(method, path, body, headers)


def test_the_table_of_requests_has_every_route() -> None:
    rows = {
        (method, route.path)
        for route in ROUTES
        for method in route.methods
        if method != "HEAD" and not (method == "POST" and route.path.startswith("/kv"))
    }
    assert {row for row in rows if row[1] not in OPEN} == set(REQUESTS)


@pytest.mark.parametrize(
    "route",
    [route for route in ROUTES if route.path not in OPEN],
    ids=lambda route: f"{route.methods[0]} {route.path}",
)
def test_each_route_needs_its_right_in_its_bucket(
    route: Any, client: Client, make: Maker, bucket: str
) -> None:
    needed = route.right.split(",")
    others = tuple(right for right in RIGHTS if right not in needed)
    tokens = {
        "exact": (make(f"{route.right}:{bucket}"), 200),
        "prefix": (make(f"{route.right}:{bucket[:-1]}*"), 200),
        "all": (make(f"{route.right}:*"), 200),
        "other rights": (make(f"{','.join(others)}:*"), 403),
        "other bucket": (make(f"{route.right}:{bucket}x"), 403),
        "longer prefix": (make(f"{route.right}:{bucket}x*"), 403),
    }
    if len(needed) > 1:
        tokens |= {right: (make(f"{right},{','.join(others)}:*"), 403) for right in needed}
    method = next(each for each in route.methods if each != "HEAD")
    path, body = REQUESTS[(method, route.path)]
    for what, (token, status) in tokens.items():
        for form in ({}, {"spelled": True}):
            target = path.format(b=bucket)
            if form and "/k" in target:
                target = target.replace("/k", "/%6B")
            answer = ask(client, method, target, body, bearer(token))
            if route.path == "/buckets" and what in ("other bucket", "longer prefix"):
                assert bucket not in {each["name"] for each in answer.json()["buckets"]}
                continue
            # A 404 of an object is a granted answer: it is not there.
            granted = answer.status in (200, 404)
            assert granted == (status == 200), (what, answer.status, answer.body)
            if not granted:
                assert answer.status == 403
                assert answer.json()["code"] == "right_needed"


@pytest.mark.parametrize("row", REQUESTS, ids=str)
@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer x",
        "Basic",
        "Basic ====",
        "Digest a=b",
        "Bearer poky_aaaaaaaaaaaa_" + "a" * 32,
        "Bearer poky_aaaaaaaaaaaa_" + "a" * 5000,
        "Basic " + base64.b64encode(b"a:poky_aaaaaaaaaaaa_" + b"a" * 32).decode(),
        "Basic " + base64.b64encode(b"\xff\xfe").decode(),
    ],
)
def test_without_a_valid_token_nothing_is_answered(
    row: tuple[str, str], authorization: str, client: Client, bucket: str
) -> None:
    path, body = REQUESTS[row]
    headers = {"Authorization": authorization} if authorization else {}
    for name in (bucket, "there-is-no-such-bucket"):
        answer = ask(client, row[0], path.format(b=name), body, headers)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert answer.json()["code"] == "token_needed"


@pytest.mark.parametrize("path", sorted(OPEN - {"/"}))
def test_some_routes_are_open(path: str, client: Client) -> None:
    assert client.get(path).status == 200


def test_existence_never_shows(client: Client, make: Maker, bucket: str) -> None:
    client.request("PUT", f"/kv/{bucket}/there", "v", bearer(make(f"write:{bucket}")))
    token = make("read:elsewhere")
    answers = {
        (answer.status, answer.body, answer.headers["Content-Length"])
        for name in (bucket, "no-such-bucket")
        for key in ("there", "missing")
        for answer in [client.request("GET", f"/kv/{name}/{key}", headers=bearer(token))]
    }
    assert len(answers) == 1
    assert next(iter(answers))[0] == 403


def test_basic_takes_the_token_as_password(client: Client, make: Maker, bucket: str) -> None:
    token = make(f"write:{bucket}")
    basic = base64.b64encode(f"anybody:{token}".encode()).decode()
    answer = client.request("PUT", f"/kv/{bucket}/k", "v", {"Authorization": f"Basic {basic}"})
    assert answer.status == 200


def test_a_token_in_the_url_is_not_looked_at(client: Client, make: Maker, bucket: str) -> None:
    token = make(f"read:{bucket}")
    assert client.get(f"/kv/{bucket}/k?token={token}").status == 401
    assert client.get(f"/kv/{bucket}/k?access_token={token}").status == 401


def test_buckets_are_listed_as_far_as_granted(client: Client, make: Maker, bucket: str) -> None:
    answer = client.request("GET", "/buckets", headers=bearer(make(f"list:{bucket}")))
    assert [each["name"] for each in answer.json()["buckets"]] == [bucket]


# Changes of tokens take effect with their acknowledgement.


def test_a_revoked_token_opens_nothing(
    client: Client, make: Maker, database: Database, bucket: str
) -> None:
    token = make(f"read,write:{bucket}")
    assert client.request("PUT", f"/kv/{bucket}/k", "v", bearer(token)).status == 200
    assert client.request("GET", f"/kv/{bucket}/k", headers=bearer(token)).status == 200
    assert command(database, "token", "revoke", make.name) == {make.name: "revoked"}
    assert client.request("GET", f"/kv/{bucket}/k", headers=bearer(token)).status == 401
    assert client.request("PUT", f"/kv/{bucket}/k", "w", bearer(token)).status == 401
    # Said again it says so again, for the first time may not have been acknowledged.
    assert command(database, "token", "revoke", make.name) == {make.name: "revoked"}
    assert "token_not_found" in command(database, "token", "revoke", "nobody", code=1)


def test_a_change_that_comes_between_decision_and_statement_is_seen(
    client: Client, make: Maker, database: Database, bucket: str
) -> None:
    """The decision is kept; its policy is checked in the transaction that does the work."""
    token = make(f"read,write,list,delete:{bucket}")
    requests = [
        ("PUT", f"/kv/{bucket}/k", "v"),
        ("PUT", f"/kv/{bucket}/large", "v" * 200_000),
        ("GET", f"/kv/{bucket}/k", None),
        ("GET", f"/kv/{bucket}", None),
        ("GET", "/buckets", None),
        ("POST", f"/multi/{bucket}", '[{"key": "k"}, {"key": "large"}]'),
        ("PUT", f"/multi/{bucket}", '[{"key": "k", "data": "w"}]'),
        ("DELETE", f"/multi/{bucket}", '[{"key": "other"}]'),
        ("DELETE", f"/kv/{bucket}/other", None),
    ]
    for method, path, body in requests:
        assert ask(client, method, path, body, bearer(token)).status in (200, 404)
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT poky.revoke_token(%s)", [make.name])
    connection.close()
    for method, path, body in requests:
        assert ask(client, method, path, body, bearer(token)).status == 401, (method, path)


def test_another_change_does_not_disturb(client: Client, make: Maker, bucket: str) -> None:
    token = make(f"read,write:{bucket}")
    for number in range(5):
        make("read:elsewhere")
        body = f'[{{"key": "k", "data": "{number}"}}]'
        assert ask(client, "PUT", f"/multi/{bucket}", body, bearer(token)).status == 200
        answer = client.request("GET", f"/kv/{bucket}/k", headers=bearer(token))
        assert answer.body == b"%d" % number


def test_rotation_keeps_both_secrets_until_it_is_finished(
    client: Client, make: Maker, database: Database, bucket: str
) -> None:
    def status(token: str) -> int:
        return client.request("GET", f"/kv/{bucket}/k", headers=bearer(token)).status

    first = make(f"read:{bucket}")
    second = command(database, "token", "rotate", make.name)["token"]
    assert (status(first), status(second)) == (404, 404)
    command(database, "token", "rotate", make.name, "--finish")
    assert (status(first), status(second)) == (401, 404)


def test_a_token_ends_by_itself(
    client: Client, make: Maker, database: Database, bucket: str
) -> None:
    token = make(f"read:{bucket}", seconds=1800)
    assert client.request("GET", f"/kv/{bucket}/k", headers=bearer(token)).status == 404
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "UPDATE poky.token SET expires_at = clock_timestamp() WHERE name = %s", [make.name]
        )
        cursor.execute("SELECT poky._change_policy()")
    connection.close()
    assert client.request("GET", f"/kv/{bucket}/k", headers=bearer(token)).status == 401


def test_a_public_bucket_is_read_without_a_token(
    client: Client, make: Maker, database: Database, bucket: str
) -> None:
    client.request("PUT", f"/kv/{bucket}/k", "v", bearer(make(f"write:{bucket}")))

    def shown() -> str:
        listed = command(database, "bucket", "list")
        return str(next(each["public"] for each in listed if each["name"] == bucket))

    assert shown() == "none"
    command(database, "bucket", "set", bucket, "--public", "read")
    assert shown() == "read"
    client.close()  # the commands may have taken longer than an idle connection is kept
    assert client.get(f"/kv/{bucket}/k").body == b"v"
    assert client.request(
        "POST", f"/multi/{bucket}", '[{"key": "k"}]', {"Content-Type": "application/json"}
    ).json() == {"k": "v"}
    assert client.get(f"/kv/{bucket}").status == 401  # to list is another right
    assert client.put(f"/kv/{bucket}/k", "w").status == 401
    assert client.request("GET", f"/kv/{bucket}/k", headers=bearer("wrong")).status == 401
    other = bearer(make("read:elsewhere"))
    assert client.request("GET", f"/kv/{bucket}/k", headers=other).status == 200
    command(database, "bucket", "set", bucket, "--public", "none")
    client.close()
    assert client.get(f"/kv/{bucket}/k").status == 401


# The command.


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        (["a b", "--grant", "read:x"], ["“a b” is no name"]),
        (["a"], ["at least one grant"]),
        (["a", "--grant", "read"], ["“read” is not RIGHT"]),
        (["a", "--grant", "fly:x"], ["“fly” is no right"]),
        (["a", "--grant", "read:x/y"], ["“x/y” is no pattern"]),
        (["a", "--grant", "read:*x"], ["“*x” is no pattern"]),
        (["a", "--grant", "read:x", "--expires", "2001-01-01"], ["has passed already"]),
        (["a", "--grant", "read:x", "--expires", "soon"], ["“soon” is no end"]),
        (["a", "--grant", "read:x", "--expires", "0d"], ["“0d” is no end"]),
        (["a", "--grant", "read:x", "--expires", "2027-02-30"], ["“2027-02-30” is no end"]),
        (
            ["a", "--grant", "read:x", "--expires", "9999-12-31T23:59:59-23:59"],
            ["after the year 9999"],
        ),
        (
            ["a b", "--grant", "fly:x", "--grant", "read:é", "--expires", "1y"],
            ["“a b”", "“fly”", "“é”", "“1y”"],
        ),
    ],
)
def test_what_cannot_be_read_is_named_all_at_once(
    words: list[str], sentences: list[str], database: Database
) -> None:
    before = listed(database)
    said = command(database, "token", "create", *words, code=2)
    for sentence in sentences:
        assert sentence in said
    assert listed(database) == before


def test_the_command_makes_tokens(client: Client, database: Database, bucket: str) -> None:
    words = ("--grant", f"read:{bucket}", "--expires", "90d")
    made = command(database, "token", "create", f"web-{bucket}", *words)
    assert client.request("GET", f"/kv/{bucket}/k", headers=bearer(made["token"])).status == 404
    shown = command(database, "token", "show", made["name"])
    assert shown["grants"] == [f"read:{bucket}"]
    assert {**shown, "last_used_on": None} in listed(database)


@pytest.mark.parametrize(
    ("given", "end"),
    [
        ("2099-06-30", 4086460800),
        ("2099-06-30T12:00:00+02:00", 4086496800),
        ("90d", -90 * 86400),
        ("12h", -12 * 3600),
        ("30m", -30 * 60),
    ],
)
def test_a_token_ends_when_it_is_said_to(given: str, end: int) -> None:
    now = int(time.time())
    assert 0 <= read_end(given) - (end if end > 0 else now - end) <= 5


def test_the_command_gives_a_token_its_end(database: Database) -> None:
    made = command(
        *(database, "token", "create", f"t-{time.time_ns()}", "--grant", "read:x"),
        *("--expires", "2099-06-30"),
    )
    assert command(database, "token", "show", made["name"])["expires_at"] == "2099-06-30T00:00:00Z"


def test_a_secret_alone_is_on_stdout(database: Database) -> None:
    name = f"t-{time.time_ns()}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("POKY_")}
    secrets = set()
    for words in (("create", name, "--grant", "read:x"), ("rotate", name)):
        done = subprocess.run(
            [sys.executable, "-m", "poky", "token", *words],
            env={**clean, "POKY_DSN": database.dsn_service, "POKY_OWNER_DSN": database.dsn_owner},
            capture_output=True,
            text=True,
            check=True,
        )
        assert Token.parse(done.stdout.removesuffix("\n"))
        assert "not shown again" in done.stderr
        secrets.add(done.stdout)
    assert len(secrets) == 2


def test_when_a_token_was_last_used_is_shown(
    client: Client, make: Maker, database: Database, bucket: str
) -> None:
    """Of those that are valid; the name of a token alone is not one."""
    used = make(f"read:{bucket}")
    name = make.name
    make(f"read:{bucket}")
    assert client.request("GET", f"/kv/{bucket}/k", headers=bearer(used)).status == 404
    wrong = used[:-1] + ("a" if used[-1] != "a" else "b")
    for token in (wrong, str(Token.create())):
        assert client.request("GET", f"/kv/{bucket}/k", headers=bearer(token)).status == 401

    def last_used(name: str) -> object:
        return command(database, "token", "show", name)["last_used_on"]

    wait_until(lambda: last_used(name) is not None, timeout=30)
    assert last_used(name) in {
        time.strftime("%Y-%m-%d", time.gmtime(time.time() - ago)) for ago in (0, 60)
    }
    assert last_used(make.name) is None


def test_a_token_that_goes_on_is_noticed_every_day(database: Database, make: Maker) -> None:
    """A decision is kept for an hour at most, and what could not be recorded is not forgotten."""
    store = Store(database.dsn_service, pool_size=1)
    gate, token = Gate(store), make("read:*")
    place = (f"Bearer {token}", "read", "b")
    assert gate.decide(*place).verdict is Verdict.GRANTED
    gate.record_use()
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE poky.token SET last_used_on = NULL WHERE name = %s", [make.name])
    connection.close()
    gate.record_use()
    assert gate.kept(place) is not None
    assert command(database, "token", "show", make.name)["last_used_on"] is None
    gate._anew = time.monotonic()
    gate.record_use()
    assert gate.kept(place) is None
    gate.decide(*place)
    failing, gate.store = gate.store, cast(Any, None)
    with pytest.raises(AttributeError):
        gate.record_use()
    gate.store = failing
    gate.record_use()
    assert command(database, "token", "show", make.name)["last_used_on"] is not None
    store.close()


def test_a_name_is_taken_once(make: Maker, database: Database) -> None:
    make("read:x")
    said = command(database, "token", "create", make.name, "--grant", "read:x", code=1)
    assert "already" in said


def test_secrets_are_not_kept(make: Maker, database: Database, guarded: Service) -> None:
    token = make("read:x")
    guarded.client().request("GET", "/kv/x/y", headers=bearer(token))
    secret = token.rpartition("_")[2]
    shown = json.dumps(command(database, "token", "show", make.name))
    assert secret not in shown
    assert secret not in guarded.log.read_text()
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT token::text FROM poky.token")
        assert secret not in str(cursor.fetchall())
    connection.close()


def test_tokens_as_code(database: Database, client: Client, bucket: str) -> None:
    made = command(database, "token", "generate")
    wish: list[dict[str, Any]] = [
        {"name": f"code-{bucket}", "grants": [f"read:{bucket}"], "token": made["token"]}
    ]

    def apply(*words: str) -> Any:
        done = command(database, "token", "apply", *words, stdin=json.dumps(wish))
        return done["changes"]

    assert apply("--check") == {wish[0]["name"]: "created"}
    assert apply() == {wish[0]["name"]: "created"}
    assert apply() == {}
    get = "GET", f"/kv/{bucket}/k"
    assert client.request(*get, headers=bearer(made["token"])).status == 404
    wish[0]["grants"] = ["read:elsewhere"]
    assert apply() == {wish[0]["name"]: "changed"}
    assert client.request(*get, headers=bearer(made["token"])).status == 403
    del wish[0]["token"]
    wish[0] |= {"id": made["id"], "hash": made["hash"]}
    assert apply() == {}
    wish[0]["state"] = "absent"
    assert apply() == {wish[0]["name"]: "revoked"}
    assert client.request(*get, headers=bearer(made["token"])).status == 401
    wish[0] |= {"state": "present"}  # a revoked token does not come back by itself
    new = {"name": f"new-{bucket}", "grants": ["read:x"], "token": str(Token.create())}
    said = command(database, "token", "apply", stdin=json.dumps([new, wish[0]]), code=1)
    assert "token_id_used" in said
    assert wish[0]["name"] in said
    # Nor is one that is there changed before that is known.
    command(database, "token", "apply", stdin=json.dumps([new]))
    both = json.dumps([{**new, "grants": ["read:y"]}, wish[0]])
    command(database, "token", "apply", stdin=both, code=1)
    assert command(database, "token", "apply", stdin=json.dumps([new]))["changes"] == {}
    assert command(database, "token", "apply", stdin="[]")["changes"] == {}


def test_what_is_declared_wrongly_is_named_all_at_once(make: Maker, database: Database) -> None:
    taken = Token.parse(make("read:x"))
    assert taken
    good: dict[str, Any] = {"grants": ["read:x"], "id": "A" * 12, "hash": "0" * 64}
    wrong = {
        "a b: “a b” is no name": {**good, "name": "a b"},
        "b: “fly” is no right": {"name": "b", "grants": ["fly:x", "read:x/y"]},
        "“x/y” is no pattern": None,
        "b: give token": None,
        "c: a token needs at least one grant": {**good, "name": "c", "grants": []},
        "d: “2001-01-01” has passed": {**good, "name": "d", "expires": "2001-01-01"},
        "e: “9000d” is no end": {**good, "name": "e", "expires": "9000d"},
        "f: state is present or absent": {**good, "name": "f", "state": "gone"},
        "g: give token": {**good, "name": "g", "hash": "é" * 64},
        "h: give token": {**good, "name": "h", "id": "short"},
        "i: token is the whole text": {"name": "i", "grants": ["read:x"], "token": "poky_x"},
        "j: token is the whole text": {**good, "name": "j", "token": str(Token.create())},
        "k: is declared twice": {**good, "name": "k"},
        "l: its secret is that of": {**good, "name": "l"},
        f"m: its secret is that of {make.name}": {**good, "name": "m", "id": taken.id},
        "unknown field `more`": {**good, "name": "n", "more": 1},
        "item 15": {"name": 1},
        "item 16": 17,
        "item 17": {"grants": ["read:x"]},
    }
    items = [item for item in wrong.values() if item is not None]
    before = listed(database)
    declared = json.dumps([*items, {**good, "name": "k"}])
    for words in ((), ("--check",)):
        said = command(database, "token", "apply", *words, stdin=declared, code=1)
        detail = json.loads(said.splitlines()[-1])["detail"]
        for sentence in wrong:
            assert sentence in detail
        assert "Nothing was changed." in detail
        assert listed(database) == before


@pytest.mark.parametrize("text", ["", "{}", "[", "[1]", '"x"', '["\\u0000"]', "null"])
def test_what_is_no_list_of_tokens_is_one_sentence(text: str, database: Database) -> None:
    said = command(database, "token", "apply", stdin=text, code=1)
    assert json.loads(said)["code"] == "bad_declaration"


# Settings.


def test_what_others_reach_must_say_who_may_do_what(database: Database, tmp_path: Path) -> None:
    service = Service(database.dsn_service, tmp_path / "log", {"POKY_LISTEN": "0.0.0.0"})
    service.start(wait=False)
    assert service.process
    assert service.process.wait(20) == 2
    assert "POKY_ACCESS" in service.log.read_text()


def test_without_tokens_buckets_are_the_admin_listeners(database: Database, tmp_path: Path) -> None:
    with running(database.dsn_service, tmp_path / "log") as service:
        answer = service.client().put("/buckets/x")
        assert answer.status == 403
        assert str(service.admin_port) in answer.json()["detail"]


def test_what_an_open_instance_grants_is_not_kept_by_a_cache(
    database: Database, tmp_path: Path
) -> None:
    """A deploy that turns tokens on asks at the caches first, and then instance by instance."""
    with running(
        database.dsn_service, tmp_path / "log", caches="cache=http://127.0.0.1:1"
    ) as service:
        lease = Client(service.lease_port)
        assert lease.get("/access/x").headers["Poky-Access"] == "0"


def test_a_cache_is_told_who_may_read_a_bucket(
    database: Database, tmp_path: Path, make: Maker, bucket: str
) -> None:
    reader, other = make(f"read:{bucket}"), make("read:other", f"write,list:{bucket}")
    with running(
        *(database.dsn_service, tmp_path / "log"),
        access="tokens",
        caches="cache=http://127.0.0.1:1",
    ) as service:
        lease = Client(service.lease_port)
        asked = {"granted": bearer(reader), "refused": bearer(other), "unknown": {}}
        told = {
            name: lease.request("GET", f"/access/{bucket}", headers=headers).status
            for name, headers in asked.items()
        }
        assert told == {"granted": 200, "refused": 403, "unknown": 401}


# Reading grants and tokens.


def test_grants_match_buckets() -> None:
    grants = Grants.parse(["read,write:tips", "list:user-*", "read:*"])
    assert grants.allow("read", "anything")
    assert grants.allow("write", "tips")
    assert not grants.allow("write", "tips2")
    assert grants.allow("list", "user-")
    assert not grants.allow("list", "user")
    assert grants.allow("list", None)
    assert not grants.allow("admin", None)


def test_a_cache_is_told_no_more_than_what_is_left_of_a_token() -> None:
    now = time.monotonic()
    ends = {end: Decision(Verdict.GRANTED, "p", None, now + end) for end in (-5.0, 0.25, 90.0)}
    left = {end: decision.seconds_left() for end, decision in ends.items()}
    assert left[-5.0] == 0
    for end in (0.25, 90.0):
        assert left[end] is not None
        assert end - 5 < left[end] <= end
    assert Decision(Verdict.GRANTED, "p", None, float("inf")).seconds_left() is None


def test_a_token_is_read_as_it_is_written() -> None:
    token = Token.create()
    assert Token.parse(str(token)) == token
    assert token.secret not in repr(token)
    assert token.is_one_of([Token.create().hash, token.hash])
    assert not token.is_one_of([])
    assert Token.parse(str(token) + "\n") is None


def test_tokens_that_are_not_known_delay_no_others(
    guarded: Service, make: Maker, bucket: str, database: Database
) -> None:
    """PostgreSQL is asked about them by threads of their own, before a body is read as well."""
    known = bearer(make(f"read,write:{bucket}"))
    client = guarded.client()
    assert client.request("PUT", f"/kv/{bucket}/k", "value", known).status == 200
    assert client.request("GET", f"/kv/{bucket}/k", headers=known).status == 200
    lines = f"/kv/{bucket}/k HTTP/1.1\r\nHost: poky\r\nAuthorization: Bearer {Token.create()}\r\n"
    requests = [f"GET {lines}\r\n", f"PUT {lines}Content-Length: 100\r\n\r\n"] * 8
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE poky.token")
        strangers = [socket.create_connection(("127.0.0.1", guarded.port)) for _ in requests]
        for stranger, request in zip(strangers, requests, strict=True):
            stranger.sendall(request.encode())
        for _ in range(10):
            assert client.request("GET", f"/kv/{bucket}/k", headers=known).body == b"value"
        assert not select.select(strangers, [], [], 0)[0]
        connection.rollback()
    for stranger in strangers:
        stranger.settimeout(20)
        with closing(stranger):
            status = stranger.recv(4096)[9:12]
            assert status in (b"401", b"503")  # after two seconds it is not begun


def test_a_body_that_follows_a_refusal_of_its_head_is_no_request(
    guarded: Service, bucket: str
) -> None:
    """The refusal closes the connection: what follows is the body, whatever it looks like."""
    hidden = b"GET /status HTTP/1.1\r\nHost: poky\r\n\r\n"
    head = f"PUT /kv/{bucket}/k HTTP/1.1\r\nHost: poky\r\nContent-Length: {len(hidden)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", guarded.port)) as stranger:
        stranger.settimeout(20)
        stranger.sendall(head.encode())
        answer = stranger.recv(4096)
        stranger.sendall(hidden)
        while more := stranger.recv(4096):
            answer += more
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"Connection: close" in answer
    assert answer.count(b"HTTP/1.1") == 1


def test_a_body_that_comes_after_its_head_is_stored(
    guarded: Service, make: Maker, bucket: str
) -> None:
    """Also by a token that is asked about in between; on a connection that stays."""
    token = make(f"read,write:{bucket}")
    head = f"/kv/{bucket}/k HTTP/1.1\r\nHost: poky\r\nAuthorization: Bearer {token}\r\n"
    with socket.create_connection(("127.0.0.1", guarded.port)) as stranger:
        stranger.settimeout(20)
        stranger.sendall(f"PUT {head}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n".encode())
        assert stranger.recv(4096).startswith(b"HTTP/1.1 100 ")
        stranger.sendall(b"value")
        assert stranger.recv(4096).startswith(b"HTTP/1.1 200 ")
        stranger.sendall(f"GET {head}\r\nGET {head}\r\n".encode())
        answer = b""
        while answer.count(b"\r\n\r\nvalue") < 2:
            more = stranger.recv(4096)
            assert more, answer
            answer += more


# What the gate keeps, by what a store says of tokens.


class Told:
    """A store that knows credentials, and counts how often it is asked."""

    def __init__(self, token: Token) -> None:
        self.credential_of = Credential("p1", False, [token.hash], ["read:b"], None)
        self.asked: list[tuple[str, str]] = []
        self.touched: list[list[str]] = []

    def credential(self, id: str, bucket: str) -> Credential:
        self.asked.append((id, bucket))
        return self.credential_of

    def touch_tokens(self, ids: list[str]) -> None:
        self.touched.append(ids)


@pytest.fixture
def token() -> Token:
    return Token.create()


@pytest.fixture
def told(token: Token) -> Told:
    return Told(token)


@pytest.fixture
def gate(told: Told) -> Gate:
    return Gate(cast(Any, told))


def test_what_was_granted_is_not_asked_again_until_it_ends(
    gate: Gate, told: Told, token: Token
) -> None:
    place = (f"Bearer {token}", "read", "b")
    assert gate.kept(place) is None
    for _ in range(2):
        decision = gate.decide(*place)
        assert (decision.verdict, decision.policy) == (Verdict.GRANTED, "p1")
        assert decision.grants == Grants(("read:b",))
        assert decision.seconds_left() is None
    assert told.asked == [(token.id, "b")]
    gate.forget("another")
    assert gate.kept(place) is not None
    gate.forget("p1")
    assert gate.kept(place) is None
    told.credential_of = told.credential_of._replace(seconds_left=0.0)
    for _ in range(2):
        assert gate.decide(*place).seconds_left() == 0.0
    assert len(told.asked) == 3
    told.credential_of = told.credential_of._replace(seconds_left=60.0)
    gate.decide(*place)
    left = gate.decide(*place).seconds_left()
    assert left is not None
    assert 50 < left <= 60
    assert len(told.asked) == 4


def test_what_was_refused_is_asked_again_and_counted(gate: Gate, told: Told, token: Token) -> None:
    for _ in range(2):
        assert gate.decide(f"Bearer {token}", "write", "b").verdict is Verdict.REFUSED
        assert gate.decide(f"Bearer {Token.create()}", "read", "b").verdict is Verdict.UNKNOWN
        assert gate.decide("", "read", None).verdict is Verdict.UNKNOWN
    assert gate.refusals == {"unknown": 4, "refused": 2}
    assert len(told.asked) == 6
    assert told.asked[2] == ("", "")
    gate.decide(f"Bearer {token}", "read", "b")
    assert gate.refusals == {"unknown": 4, "refused": 2}


def test_a_public_bucket_is_read_without_a_token_or_with_a_valid_one(
    gate: Gate, told: Told, token: Token
) -> None:
    told.credential_of = told.credential_of._replace(public_read=True, grants=["list:c"])
    assert gate.ask("", "read", "b").verdict is Verdict.GRANTED
    assert gate.ask(f"Bearer {token}", "read", "b").verdict is Verdict.GRANTED
    assert gate.ask(f"Bearer {token}", "write", "b").verdict is Verdict.REFUSED
    assert gate.ask("", "write", "b").verdict is Verdict.UNKNOWN
    for invalid in (f"Bearer {Token.create()}", "Bearer x", "x"):
        assert gate.ask(invalid, "read", "b").verdict is Verdict.UNKNOWN


def test_decisions_of_another_policy_or_too_many_are_dropped(
    gate: Gate, told: Told, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.credential_of = told.credential_of._replace(grants=["read:*"])
    places = [(f"Bearer {token}", "read", f"b{number}") for number in range(4)]
    for place in places[:2]:
        gate.decide(*place)
    assert [gate.kept(place) is not None for place in places] == [True, True, False, False]
    told.credential_of = told.credential_of._replace(policy="p2")
    gate.decide(*places[2])
    assert [gate.kept(place) is not None for place in places] == [False, False, True, False]
    monkeypatch.setattr(gates, "_MOST_KEPT", 2)
    gate.decide(*places[0])
    assert gate.kept(places[2]) is not None
    gate.decide(*places[1])
    assert [gate.kept(place) is not None for place in places] == [False, True, False, False]


def test_the_tokens_of_which_use_is_noted_are_bounded(
    gate: Gate, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "_TOUCH_IDS", 2)
    tokens = [Token.create() for _ in range(3)]
    told.credential_of = told.credential_of._replace(hashes=[each.hash for each in tokens])
    for each in (tokens[0], tokens[0], tokens[1], tokens[2]):
        gate.ask(f"Bearer {each}", "read", "b")
    gate.record_use()
    gate.record_use()
    (ids,) = told.touched
    assert sorted(ids) == sorted(each.id for each in tokens[:2])


def test_use_that_could_not_be_noted_is_noted_the_next_time(
    gate: Gate, told: Told, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = (f"Bearer {token}", "read", "b")
    gate.decide(*place)

    def fails(ids: list[str]) -> None:
        raise StoreError(503, "Away.", code="database_unavailable")

    with monkeypatch.context() as patched:
        patched.setattr(told, "touch_tokens", fails)
        for _ in range(2):
            with pytest.raises(StoreError):
                gate.record_use()
    gate.record_use()
    assert told.touched == [[token.id]]
    assert gate.kept(place) is not None
    gate._anew = time.monotonic()  # once an hour
    gate.record_use()
    assert gate.kept(place) is None
    gate.decide(*place)
    gate.record_use()
    assert gate.kept(place) is not None
    assert told.touched == [[token.id]] * 2


def test_who_lacks_a_right_is_told_which_and_where() -> None:
    def refused(verdict: Verdict, bucket: str | None) -> tuple[int, str]:
        with pytest.raises(Refused) as error:
            require(Decision(verdict, "p", None, 0.0), "list", bucket)
        answer = error.value.answer
        assert (("WWW-Authenticate", 'Bearer realm="poky"') in answer.headers) == (
            verdict is Verdict.UNKNOWN
        )
        problem = json.loads(answer.body)
        return problem["status"], problem["code"] + " " + problem["detail"]

    assert refused(Verdict.UNKNOWN, "b")[0] == 401
    status, said = refused(Verdict.REFUSED, "b")
    assert status == 403
    assert "the right list in this bucket" in said
    assert "the right list in any bucket" in refused(Verdict.REFUSED, None)[1]
    require(Decision(Verdict.GRANTED, "p", None, 0.0), "list", "b")


@pytest.mark.parametrize(
    "text",
    ["", "read", ":b", "read:", "read:b c", "read:b**", "fly:b", "read,:b", "read:" + "x" * 257],
)
def test_what_is_no_grant_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="“"):
        Grants.parse(["read:good", text])
    with pytest.raises(ValueError, match="“") as alone:
        Grants.parse([text])
    assert "at least one grant" not in str(alone.value)


def test_grants_are_sorted_and_each_once() -> None:
    grants = Grants.parse(["write,read:b", "read:b", "read:" + "x" * 256 + "*", "admin:*"])
    assert grants.texts == ("admin:*", "read:b", f"read:{'x' * 256}*", "write:b")
    with pytest.raises(ValueError, match="at least one grant"):
        Grants.parse([])


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        ("Bearer {}", True),
        ("bearer {} ", True),
        ("BEARER   {}", True),
        ("Bearer {}x", False),
        ("Bearer{}", False),
        ("{}", False),
        ("Digest {}", False),
        ("Digest {basic}", False),
        ("Basic {basic}", True),
        ("basic {basic}", True),
        ("Basic {basic}=", False),
        ("Basic *", False),
        ("Basic /w==", False),
        ("Bearer {}" + " " * 600 + "x", False),
        ("Basic {long}", False),
    ],
)
def test_a_token_is_found_in_authorization(token: Token, value: str, is_one: bool) -> None:
    basic = base64.b64encode(f"me:{token}".encode()).decode()
    long = base64.b64encode(f"{'m' * 400}:{token}".encode()).decode()
    given = value.format(str(token), basic=basic, long=long)
    assert Token.from_authorization(given) == (token if is_one else None)


def test_another_secret_of_a_token_keeps_its_id(token: Token) -> None:
    other = Token.create(token.id)
    assert other.id == token.id
    assert other.secret != token.secret
    assert (len(token.id), len(token.secret)) == (12, 32)
    assert repr(token) == f"Token({token.id})"
    assert not token.is_one_of([other.hash])
    assert are_id_and_hash(token.id, token.hash)
    for id, hash in ((token.id[1:], token.hash), (token.id, token.hash[1:]), (token.id, "")):
        assert not are_id_and_hash(id, hash)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("a", True), ("A-z_0.9@x", True), ("x" * 128, True), ("", False), ("x" * 129, False),
     ("a b", False)],
)  # fmt: skip
def test_a_name_of_a_token_is_short_and_plain(name: str, is_one: bool) -> None:
    if is_one:
        check_name(name)
        return
    with pytest.raises(ValueError, match="is no name"):
        check_name(name)
