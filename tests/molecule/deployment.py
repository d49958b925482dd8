"""What the verification of every scenario needs: its playbooks, its machines, its releases."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import testinfra
from testinfra.host import Host

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
INGREDIENTS = (
    *("pyproject.toml", "README.md", "LICENSE", "service", "sql"),
    *("requirements.txt", "requirements-build.txt", ".gitignore"),
)
OUTPUT = {
    # When each task began tells which one a failed request belongs to.
    "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks",
    # Molecule asks for colours, which would stand between the words.
    "ANSIBLE_FORCE_COLOR": "false",
}
UNITS = "poky@*", "varnish", "nginx", "postgresql@*"


def wait_until(condition: Callable[[], Any], timeout: float, what: str) -> Any:
    """The condition's value once it is true; fails with a sentence at the deadline."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.2)
    return value


@dataclass
class Run:
    """A playbook that runs, or has run."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float = 1800) -> Run:
        self.process.wait(timeout)
        return self

    def kill(self) -> None:
        """As a controller dies whose power is cut: without a last word."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    @property
    def ok(self) -> bool:
        return self.process.returncode == 0

    def changed(self) -> dict[str, int]:
        """How many tasks changed something, by host, as the recap says."""
        found = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", self.output, re.MULTILINE)
        assert found, f"no recap:\n{self}"
        return {host: int(count) for host, count in found}

    def __str__(self) -> str:
        """The end of the output, for the message of an assertion."""
        lines = self.output.splitlines()
        return "\n".join([f"exit status {self.process.returncode}, {self.log}:", *lines[-60:]])


@dataclass
class Deployment:
    """The machines of a scenario, and the playbooks that are played on them."""

    inventory: Path
    work: Path
    settings: dict[str, Any] = field(default_factory=dict)
    _runs: int = 0

    def __post_init__(self) -> None:
        listed = subprocess.run(
            ["ansible-inventory", "-i", self.inventory, "--list"],
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        )
        found = json.loads(listed.stdout)
        groups = ("database", "etcd", "service", "cache", "web")
        self.groups = {group: found.get(group, {}).get("hosts", []) for group in groups}

    def start(self, playbook: str, *arguments: str, **variables: Any) -> Run:
        """Play, without waiting. ``variables`` are for this run, ``settings`` for every run."""
        self._runs += 1
        log = self.work / f"{self._runs:02d}-{playbook}.log"
        given = json.dumps({**self.settings, **variables})
        command = ("ansible-playbook", f"playbooks/{playbook}.yml", "-i", self.inventory)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--extra-vars", given, *arguments],
                cwd=ROOT,
                env={**os.environ, **OUTPUT},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return Run(process, log)

    def play(self, playbook: str, *arguments: str, **variables: Any) -> Run:
        """Play to the end, whatever that is."""
        run = self.start(playbook, *arguments, **variables)
        try:
            return run.wait()
        except BaseException:
            run.kill()
            raise

    def succeed(self, playbook: str, *arguments: str, **variables: Any) -> Run:
        """Play what must succeed."""
        run = self.play(playbook, *arguments, **variables)
        assert run.ok, str(run)
        return run

    def fail(self, playbook: str, reason: str, *arguments: str, **variables: Any) -> Run:
        """Play what must fail, and say so in these words."""
        run = self.play(playbook, *arguments, **variables)
        words = " ".join(run.output.split())
        assert not run.ok, str(run)
        assert reason in words, f"“{reason}” is not in:\n{run}"
        return run

    def host(self, name: str) -> Host:
        """A machine, for testinfra: by ssh as Ansible goes there."""
        config = BUILD / "machines/ssh_config"
        return testinfra.get_host(f"ssh://{name}", ssh_config=str(config))

    def hosts(self, group: str) -> list[Host]:
        return [self.host(name) for name in self.groups[group]]

    @property
    def edge(self) -> Host:
        return self.host(self.groups["cache"][0])

    def address(self, name: str) -> str:
        return machine("address", name).strip()

    def request(
        self, method: str, path: str, body: str | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Ask nginx, on a connection of its own."""
        address = self.address(self.groups["web"][0])
        connection = http.client.HTTPConnection(address, timeout=20)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        return answer.status, answer.headers, said

    def instances(self) -> dict[str, dict[str, Any]]:
        """{host:port: {"pid", and what /status says}} of all instances that run."""
        found = {}
        for name in self.groups["service"]:
            host = self.host(name)
            for port in (8081, 8082):
                unit = f"systemctl show --property=MainPID --value poky@{port}"
                listen = "127.0.0.1" if self.groups["cache"] == [name] else self.address(name)
                said = host.run(f"curl -s -m 5 'http://{listen}:{port}/status?verbose'").stdout
                status = json.loads(said) if said.startswith("{") else {}
                found[f"{name}:{port}"] = {"pid": int(host.check_output(unit)), **status}
        return found

    def releases(self) -> set[str]:
        """The releases that the instances name; "" for one that does not answer."""
        return {instance.get("release", "") for instance in self.instances().values()}

    def journal(self) -> list[dict[str, Any]]:
        """The entries of the first service host's journal of deploys."""
        host = self.host(self.groups["service"][0])
        lines = host.check_output("cat /opt/poky/deploys.jsonl").splitlines()
        return [json.loads(line) for line in lines]

    def lock(self) -> dict[str, Any]:
        """Who holds the deploy lock; nothing if nobody does."""
        host = self.host(self.groups["service"][0])
        said = host.run("cat /opt/poky/.lock/holder.json").stdout
        return json.loads(said) if said.strip() else {}


def machine(*arguments: str) -> str:
    """The output of the project's machine script."""
    command = [ROOT / "playbooks/files/machine", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def diagnose(deployment: Deployment) -> str:
    """What the machines say of themselves, for whoever reads that a test has failed."""
    units = " ".join(f"-u '{unit}'" for unit in UNITS)
    journal = f"journalctl --no-pager -q -n 1000 -o short-iso {units}"
    command = f"systemctl --failed --no-legend; {journal} | grep -v method= | tail -n 60"
    said = []
    for name in sorted({name for group in deployment.groups.values() for name in group}):
        try:
            found = deployment.host(name).run(command)
            said.append(f"--- {name}\n{found.stdout}{found.stderr}")
        except (OSError, RuntimeError) as error:
            said.append(f"--- {name}: {error}")
    return "\n".join(said)


def next_migration(words: str, *, after: int = 0) -> str:
    """The path of a migration that comes after ours, and after as many others."""
    number = max(int(file.name[:4]) for file in (ROOT / "sql/migrations").glob("0*.sql"))
    return f"sql/migrations/{number + 1 + after:04}_{words}.sql"


def make_checkout(directory: Path, *, title: str, appended: dict[str, str]) -> Path:
    """A checkout of ours with one commit more: text appended to files, or new files.

    The commit has a fixed date, so the same content is the same release each time.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    listed = _git(ROOT, "ls-files", "-z", "-co", "--exclude-standard", "--", *INGREDIENTS)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name, follow_symlinks=False)
    for name, text in appended.items():
        with (directory / name).open("a") as file:
            file.write(text)
    _git(directory, "init", "--quiet")
    _git(directory, "add", "--all")
    _git(directory, "commit", "--quiet", "--message", title)
    return directory


def _git(directory: Path, *arguments: str) -> str:
    date = "2026-01-01T00:00:00Z"
    person = ("-c", "user.name=Molecule", "-c", "user.email=molecule@example.net")
    done = subprocess.run(
        ["git", *person, "-c", "commit.gpgsign=false", *arguments],
        cwd=directory,
        env={**os.environ, "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date},
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout


class Hammer:
    """The load generator as a process beside the playbooks."""

    def __init__(
        self,
        deployment: Deployment,
        *,
        clients: int,
        rate: int,
        seconds: int,
        reopens: bool = False,
    ) -> None:
        """``reopens``: nginx may close a kept connection between two requests, as a reload does."""
        self._report = deployment.work / "hammer.json"
        self._report.unlink(missing_ok=True)
        url = f"http://{deployment.address(deployment.groups['web'][0])}"
        numbers = {"--clients": clients, "--rate": rate, "--seconds": seconds}
        words = [str(word) for pair in numbers.items() for word in pair]
        words += ["--report", str(self._report), *(["--reopen"] if reopens else [])]
        self._process = subprocess.Popen([sys.executable, ROOT / "tests/hammer.py", url, *words])
        wait_until(self._report.exists, 30, "the load generator has started")

    def report(self) -> dict[str, Any]:
        """What it has seen up to now: a report that was written after this call began."""
        assert self._process.poll() is None, "the load generator has ended"
        asked = time.time()
        wait_until(lambda: self._report.stat().st_mtime > asked, 30, "a report of the load")
        return self._read()

    def stop(self) -> dict[str, Any]:
        """End it, and return its last report."""
        self._process.terminate()
        self._process.wait(60)
        return self._read()

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._report.read_text())
        return found
