"""The command ``poky``: what people and programs are told when it fails."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from poky.access import Token
from poky.cli import output
from poky.cli.serve import _show_start, start_text
from poky.config import Config, url_of
from poky.schema.owner import Progress
from poky.store import Store
from tests.conftest import Database
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
