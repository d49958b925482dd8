"""The command ``poky``: what people and programs are told when it fails."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from poky.access import Token
from poky.cli import output
from poky.cli import poky as group
from poky.cli.durations import Duration, read_date, read_end, show_duration
from poky.cli.serve import _show_start, _source_of_dsn, start_text
from poky.config import Config, url_of
from poky.schema.owner import Progress
from poky.store import Store
from tests.conftest import Cluster, Database
from tests.service import free_ports, running
from tests.test_process import poky

AWAY = "host=/nowhere/at/all"


def failure(said: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    """The exit status and the code of a command that failed with --json."""
    assert said.returncode, said.stdout
    assert not said.stdout
    error = json.loads(said.stderr.splitlines()[-1])
    assert set(error) == {"code", "detail"}
    assert error["detail"]
    return said.returncode, error["code"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("bucket drop nowhere --json", (1, "bucket_not_found")),
        ("bucket create no/name --json", (1, "bad_bucket_name")),
        (f"bucket list --json -d {AWAY}", (1, "database_unavailable")),
        (f"cache status --json -d {AWAY}", (1, "database_unavailable")),
        (f"migrate --json -d {AWAY}", (1, "database_unavailable")),
        (f"migrate --plan --json -d {AWAY}", (1, "database_unavailable")),
        ("migrate --json -d nonsense=1", (1, "bad_dsn")),
    ],
)
def test_a_failure_has_a_code_for_programs(
    database: Database, arguments: str, expected: tuple[int, str]
) -> None:
    env = {"POKY_DSN": database.dsn_service}
    assert failure(poky(*arguments.split(), env=env)) == expected


def test_a_bucket_with_keys_is_refused_by_its_code(database: Database, bucket: str) -> None:
    with closing(Store(database.dsn_service)) as store:
        store.put(bucket, "k", b"v", "text/plain")
    env = {"POKY_DSN": database.dsn_service}
    assert failure(poky("bucket", "drop", bucket, "--json", env=env)) == (1, "bucket_not_empty")


def test_settings_that_cannot_be_used_have_a_code() -> None:
    assert failure(poky("config", "--json", env={"POKY_PORT": "x"})) == (2, "bad_settings")


@pytest.mark.parametrize("kind", ["partitioned"])
def test_a_schema_that_cannot_be_changed_has_a_code(own_database: Database) -> None:
    env = {"POKY_OWNER_DSN": own_database.dsn_owner}
    said = poky("migrate", "--schema", "flat", "--json", env=env)
    assert failure(said) == (1, "schema_refused")


@pytest.mark.parametrize(
    ("command", "dsn"),
    [
        ("bucket list", "garbage"),
        ("bucket list", "://"),
        ("bucket list", "options='"),
        ("bucket list", "nonsense=1"),
        ("bucket list", "postgresql://[::1/x"),
        ("bucket list", "postgres://u:p%zz@h/x"),
        ("bucket list", "host=a,b port=1,2,3"),
        ("bucket list", "host=a,b,c port=1,2"),
        ("bucket list", "host=\udcff"),
        ("cache status", "garbage"),
        ("serve", "garbage"),
        ("migrate --plan", "garbage"),
        ("migrate --plan", "host=\udcff"),
    ],
)
def test_a_dsn_that_is_none_is_one_sentence(command: str, dsn: str) -> None:
    said = poky(*command.split(), "-d", dsn)
    assert said.returncode == 1
    assert "Traceback" not in said.stderr
    assert "DSN" in said.stderr.splitlines()[-1]
    assert "%zz" not in said.stderr  # part of a password


def test_a_credential_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "poky_dsn"
    file.write_bytes(b"\xff\xfe")
    said = poky("config", env={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert said.returncode == 2
    assert said.stderr.startswith(f"POKY_DSN: {file} cannot be read")


# poky serve says what is so.


@pytest.mark.parametrize("kind", ["partitioned"])
@pytest.mark.parametrize(
    ("user", "command", "code"),
    [
        ("nobody", "bucket list", "rights_missing"),
        ("nobody", "bucket create x", "rights_missing"),
        ("nobody", "cache status", "rights_missing"),
        ("poky_service", "token create web --grant read:*", "rights_missing"),
        ("poky_service", "migrate", "insufficient_privilege"),
        ("poky_service", "migrate --plan", "insufficient_privilege"),
    ],
)
def test_a_user_without_rights_is_told_which_has_them(
    own_database: Database, user: str, command: str, code: str
) -> None:
    with closing(own_database.connect()) as connection, connection:
        connection.cursor().execute("""
            DO $$ BEGIN CREATE ROLE nobody LOGIN; EXCEPTION WHEN duplicate_object THEN END $$
        """)
    dsn = own_database.dsn_service.replace("poky_service@", f"{user}@")
    said = poky(*command.split(), "--json", "-d", dsn)
    assert failure(said) == (1, code)
    assert "POKY_OWNER_DSN" in said.stderr
    assert "GRANT poky_owner TO poky_service" not in said.stderr


@pytest.mark.parametrize("command", ["bucket list", "cache status", "config", "migrate --plan"])
def test_a_misspelt_setting_is_named_by_every_command(command: str) -> None:
    said = poky(*command.split(), env={"POKY_DSN": AWAY, "POKY_PROT": "1"})
    assert said.stderr.count("POKY_PROT is no setting") == 1
    assert "Did you mean POKY_PORT?" in said.stderr


def test_the_owner_does_not_serve(database: Database) -> None:
    said = poky("serve", env={"POKY_OWNER_DSN": database.dsn_owner})
    assert said.returncode == 2
    assert "POKY_OWNER_DSN" in said.stderr
    assert "POKY_DSN" in said.stderr


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:8081"),
        ("10.1.2.3", "http://10.1.2.3:8081"),
        ("0.0.0.0", "http://127.0.0.1:8081"),
        ("::", "http://[::1]:8081"),
        ("::1", "http://[::1]:8081"),
        ("fd00::2", "http://[fd00::2]:8081"),
        ("localhost", "http://localhost:8081"),
        ("", "http://127.0.0.1:8081"),
    ],
)
def test_a_url_that_is_shown_can_be_used(address: str, expected: str) -> None:
    assert url_of(address, 8081) == expected


@contextmanager
def serve_on_a_terminal(*arguments: str, env: dict[str, str]) -> Iterator[str]:
    """What ``poky serve`` says once it listens, to a person on a terminal."""
    ours, theirs = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("POKY_")}
    ports = free_ports(3)
    names = ("POKY_PORT", "POKY_ADMIN_PORT", "POKY_LEASE_PORT")
    process = subprocess.Popen(
        [sys.executable, "-m", "poky", "serve", *arguments],
        env={**clean, **dict(zip(names, map(str, ports), strict=True)), **env},
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    said = b""
    try:
        while b"Ctrl-C" not in said:
            assert select.select([ours], [], [], 30)[0], said
            said += os.read(ours, 65536)
        yield " ".join(said.decode().split())
    finally:
        process.terminate()
        process.wait(30)
        os.close(ours)


def test_the_start_names_the_source_of_the_database(database: Database) -> None:
    dsn = database.dsn_service
    with serve_on_a_terminal(env={"POKY_DSN": dsn}) as said:
        assert "the data is in the database given by POKY_DSN." in said
        assert "curl -X PUT" in said
    with serve_on_a_terminal(env={"DATABASE_URL": dsn}) as said:
        assert "the data is in the database given by DATABASE_URL." in said
    with serve_on_a_terminal("-d", dsn, env={"POKY_DSN": AWAY}) as said:
        assert "the data is in the database given by -d." in said


ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("kind", ["partitioned"])
@pytest.mark.parametrize("access", ["open", "tokens"])
def test_what_a_newcomer_pastes_works(own_database: Database, tmp_path: Path, access: str) -> None:
    """The lines of the start, of the first page and of the README, in one shell."""
    dsn = own_database.dsn_service
    with running(dsn, tmp_path / "log", access=access) as service:
        config = Config(port=service.port, admin_port=service.admin_port, access=access)
        start = start_text(replace(config, listen="127.0.0.1"), "a test", "")
        assert ("may do everything" in start) is (access == "open")
        first = service.client().get("/", accept="*/*").body.decode()
        lines = [line.strip() for line in f"{start}\n{first}".splitlines() if line[:2] == "  "]
        script = [line for line in lines if not line.startswith("http")]
        assert len(script) > 7
        if access == "open":
            readme = (ROOT / "README.md").read_text()
            readme = readme.replace("localhost:8081", f"localhost:{service.port}")
            readme = readme.replace("localhost:9081", f"localhost:{service.admin_port}")
            shown = re.findall(r"^\$ ((?:curl|etag=).*)$", readme, re.MULTILINE)
            assert len(shown) > 4
            script += [*shown, f"curl http://localhost:{service.port}/kv/greetings/hello"]
        commands = "\n".join(line.replace("curl ", "curl -sS --fail ", 1) for line in script)
        bin = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euxc", commands],
            env={"PATH": bin, "POKY_DSN": dsn, "POKY_OWNER_DSN": own_database.dsn_owner},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Hello!" in done.stdout
        if access == "open":
            assert done.stdout.endswith("Hello again!")


def test_the_start_says_that_the_database_is_away() -> None:
    with serve_on_a_terminal(env={"POKY_DSN": AWAY}) as said:
        assert "cannot answer yet (database unavailable)" in said
        assert "curl" not in said


def test_the_start_is_no_business_of_a_log(database: Database, tmp_path: Path) -> None:
    with running(database.dsn_service, tmp_path / "log") as service:
        assert "Ctrl-C" not in service.log.read_text()


# What people and programs read.


def test_a_table_is_whole_and_literal_on_a_narrow_terminal() -> None:
    long = "[red]:smile:" + "x" * 100
    said = poky("config", env={"COLUMNS": "40", "POKY_INSTANCE": long})
    assert f"POKY_INSTANCE            {long}" in said.stdout.splitlines()


def test_version_says_the_schemas_to_people_as_well() -> None:
    shown = json.loads(poky("version", "--json").stdout)
    assert poky("version").stdout.splitlines() == [
        f"poky {shown['version']}",
        f"works with schemas {shown['schema_min']} to {shown['schema_max']}",
    ]


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["to"], "token"),
        (["token", "rev"], "revoke"),
        (["bucket", "set", "b", "--pub"], "--public"),
    ],
)
def test_a_shell_completes_the_command(words: list[str], completed: str) -> None:
    """By the line that the README names."""
    assert "_POKY_COMPLETE=bash_source poky" in (ROOT / "README.md").read_text()
    env = {
        "_POKY_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["poky", *words]),
        "COMP_CWORD": str(len(words)),
    }
    assert poky(env=env).stdout.splitlines() == [f"plain,{completed}"]
    script = poky(env={"_POKY_COMPLETE": "bash_source"}).stdout
    assert "complete -o nosort -F _poky_completion poky" in script


STRANGE = ("\udcff", "é\u2028", "a\nb", "a b", "x" * 5000)
_RUN_ALL = """
import json, sys, traceback
from poky.cli import poky
for words in json.load(sys.stdin):
    print("\\n#", json.dumps(words), file=sys.stderr, flush=True)
    try:
        poky(words, prog_name="poky")
        print("did it", file=sys.stderr)
    except SystemExit as end:
        if end.code not in (1, 2):
            print("exit status", end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
"""


@pytest.mark.slow
def test_a_strange_name_is_one_sentence(database: Database) -> None:
    """Also one that is no UTF-8, as a terminal of another encoding sends it. All in one process."""
    commands = [
        "bucket create NAME",
        "bucket drop NAME",
        "bucket clear NAME --confirm NAME",
        "bucket set NAME --public read",
        "bucket set NAME --ttl 5",
        "bucket set NAME --changes 1d",
        "bucket set n --changes NAME",
        "cache add NAME http://127.0.0.1:1",
        "cache add n NAME",
        "cache purge NAME k",
        "cache suspend NAME",
        "token create NAME --grant read:x",
        "token create n --grant read:NAME",
        "token create n --grant NAME:x",
        "token create n --grant read:x --expires NAME",
        "token show NAME",
        "token rotate NAME",
        "token revoke NAME",
        "changes NAME",
        "export NAME",
        "import NAME",
        "verify NAME",
        "bucket list -d NAME",
        "NAME",
    ]
    given = [
        [*(word.replace("NAME", name) for word in command.split()), *options]
        for command in commands
        for name in STRANGE
        for options in ([], ["--json"])
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("POKY_")}
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ALL],
        env={**clean, "POKY_DSN": database.dsn_service, "POKY_OWNER_DSN": database.dsn_owner},
        input=json.dumps(given).encode(),
        capture_output=True,
        check=False,
        timeout=100,
    )
    said = done.stderr.decode()
    answers = said.split("\n# ")[1:]
    assert len(answers) == len(given), said[-2000:]
    for answer in answers:
        words, _, rest = answer.partition("\n")
        for wrong in ("Traceback", "did it", "exit status"):
            assert wrong not in rest, answer
        if "--json" in json.loads(words) and "Usage:" not in rest:
            assert rest.strip("\n").split("\n")[-1].startswith('{"code":'), answer


@pytest.mark.parametrize("arguments", ["", "bucket", "bucket --all", "bucket key --all"])
def test_what_to_purge_is_said_in_full(database: Database, arguments: str) -> None:
    said = poky("cache", "purge", *arguments.split(), env={"POKY_DSN": database.dsn_service})
    assert said.returncode == 2
    assert "--all" in said.stderr


def test_the_verbs_of_a_cache_speak_json(database: Database) -> None:
    env = {"POKY_DSN": database.dsn_service}
    with closing(Store(database.dsn_service)) as store:
        store.register_node("spoken", "http://127.0.0.1:1")
    for verb, word in (("suspend", "suspended"), ("resume", "resumed"), ("remove", "removed")):
        assert json.loads(poky("cache", verb, "spoken", "--json", env=env).stdout) == {
            "spoken": word
        }
        said = poky("cache", verb, "absent", "--json", env=env)
        assert failure(said) == (1, "cache_not_found")


# A disk that is full.


def full(*arguments: str, database: Database, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command whose output cannot be written."""
    with open("/dev/full", "w") as nothing:
        return subprocess.run(
            [sys.executable, "-m", "poky", *arguments],
            stdout=nothing,
            stderr=subprocess.PIPE,
            text=True,
            input=given,
            env={
                **{name: text for name, text in os.environ.items() if name[:5] != "POKY_"},
                **{"POKY_DSN": database.dsn_service, "POKY_OWNER_DSN": database.dsn_owner},
            },
            timeout=60,
            check=False,
        )


_NOT_WRITTEN = "The output cannot be written: No space left on device. "


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["partitioned"])
def test_output_that_cannot_be_written_is_one_sentence(
    own_database: Database, tmp_path: Path
) -> None:
    """For every command that prints; what it does is done before."""
    with closing(Store(own_database.dsn_owner)) as store:
        store.ensure_bucket("tips")
        store.put("tips", "k", b"v", "text/plain")
    file = str(tmp_path / "tips.jsonl")
    env = {"POKY_DSN": own_database.dsn_service, "POKY_OWNER_DSN": own_database.dsn_owner}
    assert poky("export", "tips", "-o", file, env=env).returncode == 0
    for line in (
        *("--help", "--version", "serve --help", "config", "version", "migrate --plan"),
        *(f"verify tips {file}", f"import tips {file}", "migrate", "changes tips --after 0"),
        *("bucket create more", "bucket list", "bucket set tips --changes 1d", "bucket drop more"),
        *("token create a --grant read:*", "token list", "token show a", "token rotate a"),
        *("token rotate a --finish", "token revoke a", "token generate", "token apply"),
        *("cache add c http://127.0.0.1:9", "cache status", "cache suspend c", "cache resume c"),
        *("cache purge tips k", "cache remove c", "restored"),
    ):
        if line.startswith("changes"):
            assert poky("bucket", "set", "tips", "--changes", "1d", env=env).returncode == 0
        token = Token.create()
        given = [{"name": "b", "id": token.id, "hash": token.hash, "grants": ["read:*"]}]
        said = full(*line.split(), database=own_database, given=json.dumps(given))
        (sentence,) = said.stderr.split("\n")[-2:-1]
        assert said.returncode == 1, (line, said.stderr)
        assert sentence.startswith(f"Error: {_NOT_WRITTEN}"), (line, said.stderr)
        assert said.stderr.count("\n") == 1 or line == "migrate", (line, said.stderr)  # its bar
    with closing(Store(own_database.dsn_owner)) as store:
        assert [each.name for each in store.tokens()] == ["b"]
    said = full("export", "tips", database=own_database)
    assert (said.returncode, said.stderr.count("\n")) == (1, 1), said.stderr
    assert "No space left on device" in said.stderr


def test_programs_are_told_that_output_cannot_be_written(database: Database) -> None:
    said = full("config", "--json", database=database)
    assert said.returncode == 1
    error = json.loads(said.stderr)
    assert error["code"] == "output_not_written"
    assert error["detail"].startswith(_NOT_WRITTEN)


def test_a_service_goes_on_where_its_start_cannot_be_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with open("/dev/full", "w") as nothing:
        monkeypatch.setattr(sys, "stdout", nothing)
        _show_start(Config(port=free_ports(1)[0]), "nowhere")
        monkeypatch.undo()
        assert caplog.messages == ["how to use it cannot be shown: No space left on device"]
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), nothing.fileno())  # so that it can be closed


def test_long_work_says_where_it_is_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line from time to time; what is done at once says nothing."""
    for seconds in (0.0, 30.0):
        monkeypatch.setattr(output, "LINE_SECONDS", seconds)
        with output.progress_bar() as progress:
            progress(Progress("Copying", 1_500, 2_000))
            progress(Progress("Changing over"))
        with output.rate_bar("import", 1_000, in_bytes=True) as report:
            report(2_000, 250)
        with output.rate_bar("delete", None) as report:
            report(7)
        said = capsys.readouterr().err
        if seconds:
            assert said == ""
        else:
            first, second, third, fourth = said.splitlines()
            assert (first, second) == ("Copying: 1,500 of 2,000 (75%)", "Changing over")
            assert re.fullmatch(r"import: 2,000 objects \(25%\), [\d,]+ a second", third)
            assert re.fullmatch(r"delete: 7 objects, [\d,]+ a second", fourth)


# What people are told, in this process.


def told(database: Database, *words: str, status: int = 0, given: str = "", **env: str) -> str:
    """What a command prints on stdout; where it fails, on both."""
    dsns = {"POKY_DSN": database.dsn_service, "POKY_OWNER_DSN": database.dsn_owner}
    result = CliRunner().invoke(group, words, input=given, env={**dsns, **env})
    assert result.exit_code == status, result.output
    return result.output if status else result.stdout


def cells(table: str) -> list[list[str]]:
    """The rows of a table below its head."""
    return [re.split(r" {2,}", line) for line in table.splitlines()[1:]]


def test_what_is_changed_about_a_bucket_is_told(database: Database, bucket: str) -> None:
    change = ("bucket", "set", bucket)
    assert told(database, *change, "--public", "read", "--ttl", "60", "--changes", "36h") == (
        f"{bucket}: expires after 60 s, keeps its changes for 36h, is read without a token\n"
    )
    listed = told(database, "bucket", "list")
    assert listed.split()[:8] == "bucket schema rows (about) bytes public ttl changes".split()
    (row,) = [row for row in cells(listed) if row[0] == bucket]
    assert (row[1], row[4:]) == (database.kind, ["read", "60", "36h"])
    assert re.fullmatch(r"[\d,]+ [\d,]+", " ".join(row[2:4]))
    assert told(database, *change, "--public", "none", "--ttl", "0", "--changes", "none") == (
        f"{bucket}: does not expire, keeps no changes, needs a token\n"
    )
    (row,) = [row for row in cells(told(database, "bucket", "list")) if row[0] == bucket]
    assert row[4:] == ["none", "-", "-"]
    assert told(database, *change, "--public", "none") == f"{bucket}: needs a token\n"
    assert "Say what to change" in told(database, *change, status=2)
    made = [f"{bucket}-{number}" for number in range(2)]
    if database.kind == "partitioned":
        assert told(database, "bucket", "create", *made, "--ttl", "7") == (
            f"{made[0]}: created\n{made[1]}: created\n"
        )
        ttls = {row[0]: row[5] for row in cells(told(database, "bucket", "list"))}
        assert [ttls[name] for name in made] == ["7", "7"]
        assert told(database, "bucket", "drop", made[0]) == f"{made[0]}: dropped\n"


def test_a_bucket_is_cleared_in_more_than_one_transaction(database: Database, bucket: str) -> None:
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT poky.put(%s, 'k' || n, 'v', 't') FROM generate_series(1, 1500) AS n", [bucket]
        )
        connection.commit()
    clear = ("bucket", "clear", bucket)
    said = told(database, *clear, "--confirm", "other", status=1)
    assert "This deletes all keys: say --confirm" in said
    assert "keys that begin with k1:" in told(database, *clear, "--prefix", "k1", status=1)
    assert told(database, *clear, "--prefix", "k15", "--confirm", "k15") == (
        f"{bucket}: 12 deleted\n"
    )
    assert told(database, *clear, "--confirm", bucket) == f"{bucket}: 1,488 deleted\n"
    assert told(database, *clear, "--confirm", bucket) == f"{bucket}: 0 deleted\n"


def test_the_state_of_caches_is_told(database: Database) -> None:
    name = f"c{time.time_ns()}"
    url = "http://127.0.0.1:1"
    add = ("cache", "add", name, url)
    assert [told(database, *add), told(database, *add)] == [
        f"{name}: registered\n",
        f"{name}: exists\n",
    ]
    for wrong in ("127.0.0.1:1", "http://a", "http://a:1/x", "https://a:1", "http://a:123456"):
        assert "no cache's URL" in told(database, "cache", "add", name, wrong, status=2)
    with closing(Store(database.dsn_service)) as store:
        (node,) = [each for each in store.nodes() if each.name == name]

        def row() -> list[str]:
            (row,) = [row for row in cells(told(database, "cache", "status")) if row[0] == name]
            return row

        state = ["0 s", "-", "-", node.generation[:8], url]
        assert (row()[1], row()[3:]) == ("suspended", state)
        assert re.fullmatch(r"\d+ s ago", row()[2])
        assert store.reinstate_node(name, node.generation)
        assert row()[1:] == ["takes part", "-", *state]
        assert store.lease(name, 2)
        assert row()[1:4] == ["takes part", "-", "2 s"]
        assert re.fullmatch(r"\d s ago", row()[4])
        store.suspend_node(name, hold=True)
        assert row()[1] == "being suspended, held"
    assert told(database, "cache", "suspend", name) == (
        f"{name}: suspended; poky cache resume {name} ends it\n"
    )
    assert row()[1] == "suspended, held"
    assert f"{name}: suspended, held" in told(database, "cache", "purge", "b", "k")
    assert told(database, "cache", "resume", name) == (
        f"{name}: takes part again once it has answered\n"
    )
    assert told(database, "cache", "remove", name) == f"{name}: removed\n"


def test_tokens_are_told_without_their_secrets(database: Database) -> None:
    name = f"t{time.time_ns()}"
    create = ("token", "create", name, "--grant", "read,write:a", "--grant", "list:b-*")
    made = Token.parse(told(database, *create, "--expires", "2099-06-30").strip())
    assert made is not None

    def row() -> list[str]:
        (row,) = [row for row in cells(told(database, "token", "list")) if row[0] == name]
        return row

    today = {time.strftime("%Y-%m-%d", time.gmtime(time.time() - ago)) for ago in (0, 60)}
    grants = row()[2]
    assert set(grants.split()) == {"read:a", "write:a", "list:b-*"}
    assert row() == [name, made.id, grants, row()[3], "2099-06-30", "-", "1"]
    assert row()[3] in today
    assert Token.parse(told(database, "token", "rotate", name).strip())
    assert row()[6] == "2 (being rotated)"
    shown = dict(cells(told(database, "token", "show", name)))
    assert (shown["id"], shown["rotating"], shown["last_used_on"]) == (made.id, "True", "None")
    assert (shown["created_at"], shown["expires_at"]) == (row()[3], "2099-06-30T00:00:00Z")
    assert told(database, "token", "rotate", name, "--finish") == (
        f"{name}: its previous secret is refused everywhere\n"
    )
    assert row()[6] == "1"
    for verb in ("show", "rotate"):
        assert "There is no token named nobody" in told(database, "token", verb, "nobody", status=1)
    assert told(database, "token", "revoke", name) == f"{name}: revoked\n"
    endless = f"{name}-2"
    told(database, "token", "create", endless, "--grant", "read:*")
    (row_of,) = [row for row in cells(told(database, "token", "list")) if row[0] == endless]
    assert row_of[4] == "-"
    told(database, "token", "revoke", endless)


def test_a_declaration_of_tokens_is_told_line_by_line(database: Database) -> None:
    there, new = f"t{time.time_ns()}", f"u{time.time_ns()}"
    told(database, "token", "create", there, "--grant", "read:x")
    drawn = dict(line.split(": ") for line in told(database, "token", "generate").splitlines())
    assert set(drawn) == {"token", "id", "hash"}
    parsed = Token.parse(drawn["token"])
    assert parsed is not None
    assert (parsed.id, parsed.hash) == (drawn["id"], drawn["hash"])
    wanted = json.dumps([{"name": new, "token": drawn["token"], "grants": ["read:x"]}])
    for check in (["--check"], []):
        said = told(database, "token", "apply", *check, given=wanted).splitlines()
        assert said[0] == f"{new}: created"
        assert f"{there}: is not declared" in said
    assert "created" not in told(database, "token", "apply", given=wanted)
    absent = json.dumps([{"name": each, "state": "absent"} for each in (there, new)])
    said = told(database, "token", "apply", given=absent)
    assert said.splitlines()[:2] == [f"{there}: revoked", f"{new}: revoked"]


def test_changes_are_told_to_people_and_to_programs(database: Database, bucket: str) -> None:
    told(database, "bucket", "set", bucket, "--changes", "1d")
    with closing(Store(database.dsn_service)) as store:
        kept = store.put(bucket, "a/k", b"v", "t", 1370314891)
        store.put(bucket, "b", b"v", "t")
        store.delete(bucket, "a/k")
    show = ("changes", bucket, "--after", "0", "--prefix", "a/")
    first, second, place = cells(told(database, *show))
    etag = f"{kept.revision}-{kept.hash}"
    assert first == ["put", etag, "2013-06-04 03:01:31Z", "a/k"]
    assert second == ["delete", "-", "-", "a/k"]
    lines = [json.loads(line) for line in told(database, *show, "--json").splitlines()]
    # A cursor begins with its second, which may have passed meanwhile.
    [where] = place
    assert re.sub(r"^next: \d+", "", where) == re.sub(r"^\d+", "", lines[-1]["next"])
    facts = {"etag": f'"{etag}"', "modified_at": 1370314891, "next": lines[0]["next"]}
    assert lines[0] == {"key": "a/k", "result": "put", **facts}
    assert lines[1] == {"key": "a/k", "result": "delete", "next": lines[1]["next"]}
    assert list(lines[2]) == ["next"]
    now = told(database, "changes", bucket)
    assert now.startswith("next: ")
    assert now.count("\n") == 1


def test_a_migration_is_told_before_and_after(empty_database: Database, cluster: Cluster) -> None:
    other = cluster.create()
    shards = {"POKY_OWNER_SHARDS": f"1={other.dsn_owner}", "POKY_SHARDS": f"1={other.dsn_service}"}
    plan = ("migrate", "--plan")
    planned = told(empty_database, *plan).splitlines()
    assert planned
    assert all(line.startswith("to apply: ") for line in planned)
    both = told(empty_database, *plan, **shards).splitlines()
    assert both == [*planned, *(f"shard 1: {line}" for line in planned)]
    as_json = json.loads(told(empty_database, *plan, "--json", **shards))
    assert list(as_json["shards"]) == ["1"]
    assert as_json["shards"]["1"]["pending"] == as_json["pending"]
    numbers = ("--revision-start", "3", "--revision-increment", "7")
    done = told(empty_database, "migrate", *numbers, **shards).splitlines()
    assert done == [line.replace("to apply", "applied") for line in both]
    with closing(Store(empty_database.dsn_service)) as store:
        store.ensure_bucket("b")
        revision = store.put("b", "k", b"v", "t").revision
    assert revision is not None
    assert revision % 7 == 3
    assert told(empty_database, *plan) == "to apply: nothing: the schema is up to date\n"
    assert told(empty_database, "migrate") == "applied: nothing: the schema is up to date\n"
    again = json.loads(told(empty_database, "migrate", "--json", **shards))
    assert again["applied"] == again["shards"]["1"]["applied"] == []
    assert "shards" not in json.loads(told(empty_database, "migrate", "--json"))
    alone = told(empty_database, "migrate", "-d", empty_database.dsn_owner, **shards)
    assert "shard 1" not in alone
    printed = [told(empty_database, "migrate", "--print", *kind) for kind in (
        [], ["--schema", "partitioned"], ["--schema", "flat"]
    )]  # fmt: skip
    assert printed[0] == printed[1] != printed[2]
    refused = told(empty_database, *plan, "--schema", "flat", status=1)
    assert refused.startswith("Error: ")
    cluster.drop(other)


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [("7d", 604_800, "7d"), ("48h", 172_800, "2d"), ("12h", 43_200, "12h"), ("90m", 5400, "90m"),
     ("60s", 60, "1m"), ("61s", 61, "61s"), ("none", 0, "-")],
)  # fmt: skip
def test_a_duration_is_shown_in_the_largest_unit(text: str, seconds: int, shown: str) -> None:
    assert Duration().convert(text, None, None) == seconds
    assert Duration().convert(seconds, None, None) == seconds
    assert show_duration(seconds) == shown
    assert show_duration(None) == "-"


@pytest.mark.parametrize("text", ["", "0d", "7", "d", "-1d", "1.5h", "7w", "7d ", "1234567890s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no duration"):
        Duration().convert(text, None, None)


def test_an_end_is_to_come_and_in_this_calendar() -> None:
    now = int(time.time())
    for text, seconds in (("1m", 60), ("999999h", 999_999 * 3600), ("2d", 172_800)):
        assert 0 <= read_end(text) - now - seconds <= 5
    assert read_date("9999-12-31T23:59:59") == 253_402_300_799
    for text, why in {
        "1970-01-01": "has passed already",
        "9999-12-31T23:59:59-01:00": "after the year 9999",
        "tomorrow": "write 2027-06-30",
    }.items():
        with pytest.raises(ValueError, match=why):
            read_date(text)
    for text in ("0d", "1234567d", "7", "7s", "soon"):
        with pytest.raises(ValueError, match="write 90d, 12h, 30m or 2027-06-30"):
            read_end(text)


def test_an_age_is_never_below_zero() -> None:
    now = int(time.time())
    assert output.show_age(None) == "-"
    assert output.show_age(now + 60) == "0 s ago"
    assert output.show_age(now - 60) in ("60 s ago", "61 s ago")


def test_a_source_of_the_database_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POKY_DSN", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert _source_of_dsn(None) == "the database given by the credential poky_dsn"
    monkeypatch.setenv("DATABASE_URL", "x")
    assert _source_of_dsn(None) == "the database given by DATABASE_URL"
    monkeypatch.setenv("POKY_DSN", "x")
    assert _source_of_dsn(None) == "the database given by POKY_DSN"
    assert _source_of_dsn("y") == "the database given by -d"
