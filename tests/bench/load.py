"""The clients: wrk against HTTP, pgbench against PostgreSQL. One slice of load gives one Sample."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import NamedTemporaryFile

from tests.bench import machine

_SCRIPT = Path(__file__).with_name("wrk.lua")


class LoadError(Exception):
    """A slice did not measure what it was to measure."""


@dataclass(frozen=True)
class Sample:
    """One slice of load. Times are microseconds; CPU is per operation, foreign load in cores."""

    rate: float
    p50: float = 0.0
    p99: float = 0.0
    service_us: float = 0.0
    postgres_us: float = 0.0
    foreign: float = 0.0


@dataclass(frozen=True)
class Watched:
    """Whose CPU time a slice accounts for: roots of process trees."""

    service: Sequence[int] = ()
    postgres: Sequence[int] = ()
    ours: Sequence[int] = ()  #: everything that belongs to the bench, for telling foreign load


@dataclass(frozen=True)
class Http:
    """What wrk sends, to which ports; see wrk.lua. ``items``: how many objects a request has."""

    ports: Sequence[int]
    path: str
    keys: int = 0
    buckets: int = 0
    method: str = "GET"
    value: Path | None = None
    items: int = 0
    headers: Sequence[str] = ()
    clients: int = 32
    watched: Watched = field(default_factory=Watched)
    first_key: Callable[[], int] | None = None
    allow_refusals: bool = False
    pace: int = 0  #: milliseconds that a client rests before each request
    is_skewed: bool = False  #: the n-th bucket is asked for 1 / n as often as the first

    def run(self, seconds: int) -> Sample:
        """Load all ports at once and add them up; a refused request is an error."""
        return watch(self.watched, lambda: self.run_alone(seconds), max(self.items, 1))

    def run_alone(self, seconds: int) -> tuple[float, float, float, float]:
        """The same without a look at the machine: rate, count, p50 and p99 in microseconds."""
        ports = self.ports[: self.clients]
        running = [
            subprocess.Popen(
                self._command(port, self.clients // len(ports), seconds),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=self._environment(),
            )
            for port in ports
        ]
        results = [self._result(process, seconds) for process in running]
        rates, counts, p50, p99 = zip(*results, strict=True)
        return sum(rates), sum(counts), sum(p50) / len(p50), max(p99)

    def _environment(self) -> dict[str, str]:
        given = {"POKY_BENCH_PACE": self.pace, "POKY_BENCH_SKEWED": self.is_skewed}
        return {**os.environ, **{name: f"{value}" for name, value in given.items() if value}}

    def _command(self, port: int, clients: int, seconds: int) -> list[str]:
        first = "random" if self.first_key is None else str(self.first_key())
        return [
            *("wrk", "--threads", "1", "--connections", str(clients)),
            *("--duration", f"{seconds}s", "--timeout", "10s", "--script", str(_SCRIPT)),
            *(f"http://127.0.0.1:{port}", "--", self.method, self.path, str(self.buckets)),
            *(str(self.keys), first, str(self.value or ""), str(self.items), *self.headers),
        ]

    def _result(
        self, process: subprocess.Popen[str], seconds: int
    ) -> tuple[float, float, float, float]:
        output, _ = process.communicate(timeout=seconds + 30)
        for line in output.splitlines():
            if line.startswith("RESULT "):
                count, duration, p50, p99, refused, broken = map(int, line.split()[1:])
                # Plain cheroot breaks one now and then.
                too_many = 50 * broken > count
                if too_many or (refused and not self.allow_refusals) or not count:
                    raise LoadError(
                        f"{self.method} {self.path}: {count} answers, {refused} of them refusals,"
                        f" {broken} broken connections"
                    )
                return count / duration * 1e6, count, p50, p99
        raise LoadError(f"{self.method} {self.path}: wrk failed: {output.strip()}")


@dataclass
class Mixed:
    """Different requests at once, each part a contestant of its own, of the same slices.

    CPU time is that of all parts, per operation of any of them.
    """

    parts: dict[str, Http]
    _samples: dict[str, Sample] = field(default_factory=dict)

    def part(self, name: str) -> MixedPart:
        """One part: whichever is asked first runs them all."""
        return MixedPart(self, name)

    def take(self, name: str, seconds: int) -> Sample:
        """The part's share of a slice that is run unless the other parts have run it."""
        if name not in self._samples:
            self._run(seconds)
        return self._samples.pop(name)

    def _run(self, seconds: int) -> None:
        results: dict[str, tuple[float, float, float, float]] = {}

        def run() -> tuple[float, float, float, float]:
            with ThreadPoolExecutor(len(self.parts)) as pool:
                running = {
                    name: pool.submit(each.run_alone, seconds) for name, each in self.parts.items()
                }
                results.update({name: each.result() for name, each in running.items()})
            rates, counts, p50, p99 = zip(*results.values(), strict=True)
            return sum(rates), sum(counts), max(p50), max(p99)

        (watched, *_) = (each.watched for each in self.parts.values())
        whole = watch(watched, run)
        self._samples = {
            name: replace(whole, rate=rate, p50=p50, p99=p99)
            for name, (rate, _, p50, p99) in results.items()
        }


@dataclass(frozen=True)
class MixedPart:
    """A contestant that shares its slices with the other parts."""

    mixed: Mixed
    name: str

    def run(self, seconds: int) -> Sample:
        """This part of one slice."""
        return self.mixed.take(self.name, seconds)


@dataclass(frozen=True)
class Pgbench:
    """A statement of pgbench's, prepared; ``:key`` is the number of a random key."""

    dsn: str
    statement: str
    keys: int
    value: Path | None = None
    clients: int = 32
    watched: Watched = field(default_factory=Watched)

    def run(self, seconds: int) -> Sample:
        """Run the statement for some seconds."""
        return watch(self.watched, lambda: self._run(seconds))

    def _run(self, seconds: int) -> tuple[float, float, float, float]:
        with NamedTemporaryFile("w", suffix=".sql") as script:
            script.write(f"\\set key random(1, {self.keys})\n{self.statement};\n")
            script.flush()
            done = subprocess.run(
                [
                    *("pgbench", "--no-vacuum", "--protocol=prepared", f"--file={script.name}"),
                    *(f"--client={self.clients}", "--jobs=1", f"--time={seconds}"),
                    *((f"--define=value={self.value.read_text()}",) if self.value else ()),
                    self.dsn,
                ],
                capture_output=True,
                text=True,
                check=False,
            )
        facts = dict(
            line.split(" = ", 1) for line in done.stdout.splitlines() if line.count(" = ") == 1
        )
        try:
            rate = float(facts["tps"].split()[0])
            latency = float(facts["latency average"].split()[0]) * 1000
        except KeyError:
            raise LoadError(f"pgbench failed: {done.stderr.strip()[:2000]}") from None
        return rate, rate * seconds, latency, latency


def watch(
    watched: Watched, run: Callable[[], tuple[float, float, float, float]], items: int = 1
) -> Sample:
    roots = (watched.service, watched.postgres, watched.ours)
    before = [machine.cpu_seconds(each) for each in roots]
    busy, started = machine.busy_seconds(), time.monotonic()
    rate, count, p50, p99 = run()
    elapsed = time.monotonic() - started
    busy = machine.busy_seconds() - busy
    service, postgres, ours = (
        machine.cpu_seconds(each) - earlier for each, earlier in zip(roots, before, strict=True)
    )
    sample = Sample(rate, p50, p99, service / count * 1e6, postgres / count * 1e6)
    return replace(sample, rate=rate * items, foreign=max(busy - ours, 0.0) / elapsed)
