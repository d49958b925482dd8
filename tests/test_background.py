"""Background work: errors do not end it, it stops in good order, and one of the fleet runs it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise

import pytest

from poky.background import Background, Task
from poky.metrics import Metrics
from poky.store import Store, StoreError
from tests.conftest import Database
from tests.service import running, wait_until

pytestmark = pytest.mark.parametrize("kind", ["partitioned"], scope="session")


@pytest.fixture(scope="module")
def store(database: Database) -> Iterator[Store]:
    with closing(Store(database.dsn_service, pool_size=2)) as store:
        yield store


@pytest.fixture
def background(store: Store) -> Iterator[Background]:
    background = Background(store)
    yield background
    background.stop()


def test_a_task_runs_again_and_again(background: Background) -> None:
    runs = []
    background.add("count", lambda: runs.append(time.monotonic()), period=0.05)
    wait_until(lambda: len(runs) >= 4)
    assert all(later - earlier >= 0.05 for earlier, later in pairwise(runs))
    (shown,) = background.status()
    assert (shown["name"], shown["scope"], shown["period_seconds"]) == ("count", "instance", 0.05)
    assert shown["runs"] >= 3
    assert (shown["errors"], shown["last_error"]) == (0, None)
    assert time.time() - 20 < shown["ended_at"] <= time.time()


def test_a_task_is_added_once(background: Background) -> None:
    runs: list[str] = []
    background.add("count", lambda: runs.append("first"), period=0.02)
    background.add("count", lambda: runs.append("second"), period=0.02)
    wait_until(lambda: len(runs) >= 3)
    assert set(runs) == {"first"}


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (StoreError(503, "The database is away.", code="database_unavailable"), "The database is"),
        (ZeroDivisionError("secret"), "ZeroDivisionError"),
    ],
)
def test_a_task_that_fails_is_counted_and_tried_again(
    background: Background, error: Exception, shown: str
) -> None:
    is_away = True

    def work() -> None:
        if is_away:
            raise error

    background.add("work", work, period=0.02)
    wait_until(lambda: background.status()[0]["errors"] >= 2)
    (state,) = background.status()
    assert state["last_error"].startswith(shown)
    assert "secret" not in state["last_error"]
    assert (state["runs"], state["ended_at"]) == (0, None)
    is_away = False
    wait_until(lambda: background.status()[0]["runs"])
    assert background.status()[0]["last_error"] is None


def test_a_task_that_takes_long_delays_no_other(background: Background) -> None:
    runs: list[int] = []
    go_on = threading.Event()
    background.add("slow", lambda: go_on.wait(30), period=0.01)
    background.add("quick", lambda: runs.append(1), period=0.01)
    wait_until(lambda: len(runs) >= 3)
    go_on.set()


def test_the_end_waits_for_what_is_at_work(store: Store) -> None:
    background, begun, ended = Background(store), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        wait_until(lambda: background.is_stopping)
        time.sleep(0.1)
        ended.set()

    background.add("work", work, period=0.01)
    assert begun.wait(10)
    background.stop()
    assert ended.is_set()
    assert background.status()[0]["runs"] == 1
    background.add("late", ended.clear, period=0.01)
    assert len(background.status()) == 1


def test_the_end_waits_no_longer_than_it_may_and_names_what_is_at_work(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("poky.background._STOP_SECONDS", 0.1)
    background, begun, go_on = Background(store), threading.Event(), threading.Event()
    background.add("idle", lambda: None, period=0.01)
    background.add("endless", lambda: begun.set() or go_on.wait(30), period=0.01)
    assert begun.wait(10)
    background.stop()
    assert caplog.messages == ["the background task endless was still at work at the end"]
    go_on.set()


def test_one_of_the_fleet_runs_a_task_and_another_takes_over(database: Database) -> None:
    at_work: list[int] = []
    most = 0
    ran: set[int] = set()

    def work(number: int) -> None:
        nonlocal most
        at_work.append(number)
        most = max(most, len(at_work))
        time.sleep(0.05)
        ran.add(number)
        at_work.remove(number)

    with (
        closing(Store(database.dsn_service, pool_size=1)) as one,
        closing(Store(database.dsn_service, pool_size=1)) as two,
    ):
        fleet = [Background(one), Background(two)]
        for number, background in enumerate(fleet):
            background.add("prune", lambda n=number: work(n), period=0.01, scope="fleet")
        wait_until(lambda: sum(b.status()[0]["runs"] for b in fleet) >= 20)
        fleet[0].stop()
        before = fleet[1].status()[0]["runs"]
        wait_until(lambda: fleet[1].status()[0]["runs"] >= before + 2)
        fleet[1].stop()
    assert most == 1
    assert all(background.status()[0]["errors"] == 0 for background in fleet)


def test_a_lock_ends_with_its_holder(store: Store) -> None:
    with store.try_lock("a") as first:
        assert first
        with store.try_lock("a") as second, store.try_lock("b") as other:
            assert not second
            assert other
    with store.try_lock("a") as again:
        assert again
    with pytest.raises(RuntimeError), store.try_lock("a"):
        raise RuntimeError
    with store.try_lock("a") as again:
        assert again


def test_a_lock_takes_no_place_of_the_pool(database: Database) -> None:
    with closing(Store(database.dsn_service, pool_size=1)) as store, store.try_lock("a") as ours:
        assert ours
        assert store.nodes() == []
        assert store.connections == (0, 1)


def test_a_task_is_late_by_what_is_beyond_its_period(store: Store) -> None:
    task = Task("t", lambda: None, 10.0, "instance", lambda: True)
    assert task.lag() == 0
    task.on_time_at = time.time() - 9
    assert task.lag() == 0
    task.on_time_at = time.time() - 100
    assert 90 <= task.lag() < 95
    background = Background(store)
    background._tasks = {"t": task}
    (shown,) = background.status()
    assert 90 <= shown["lag_seconds"] < 95
    assert shown["ended_at"] is None
    figures = background.figures()
    assert figures["background_success_timestamp_seconds"].read() == {"t": 0}
    assert 90 <= figures["background_lag_seconds"].read()["t"] < 95  # type: ignore[index]
    task.ended_at, task.runs, task.errors = 12.7, 3, 4
    assert figures["background_success_timestamp_seconds"].read() == {"t": 12.7}
    assert figures["background_runs"].read() == {"t": 3}
    assert figures["background_errors"].read() == {"t": 4}
    assert background.status()[0]["ended_at"] == 12


def test_a_failure_that_goes_on_is_logged_once(
    background: Background, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    errors = [StoreError(503, said, code="x") for said in ("One.", "One.", "Other.", "One.")]

    def work() -> None:
        if errors:
            raise errors.pop(0)

    background.add("work", work, period=0.01)
    wait_until(lambda: background.status()[0]["runs"])
    assert [each[-4:] for each in caplog.messages] == ["One.", "her.", "One."]
    assert background.status()[0]["errors"] == 4


def test_a_task_that_is_not_needed_is_not_run_and_was_a_good_one(background: Background) -> None:
    background.add("work", lambda: 1 // 0, period=0.01, is_needed=lambda: False)
    wait_until(lambda: background.status()[0]["runs"] >= 2)
    assert background.status()[0]["errors"] == 0
    assert background._tasks["work"].thread.daemon, "it holds up no end of the process"


def test_a_task_may_rest_until_the_end(store: Store) -> None:
    background = Background(store)
    began = time.monotonic()
    assert background.rest(0.05) is True
    assert time.monotonic() - began >= 0.05
    assert not background.is_stopping
    background.stop()
    assert background.is_stopping
    assert background.rest(30) is False


def test_another_instance_s_run_is_in_time_for_all(database: Database, store: Store) -> None:
    background = Background(store)
    with closing(Store(database.dsn_service)) as other, other.try_lock("poky work") as is_ours:
        assert is_ours
        background.add("work", lambda: 1 // 0, period=0.05, scope="fleet")
        task = background._tasks["work"]
        task.on_time_at = 0.0
        wait_until(lambda: task.on_time_at)
        assert (task.runs, task.errors, task.ended_at) == (0, 0, None)
        background.stop()


def test_tasks_are_metrics(background: Background) -> None:
    background.add("count", list, period=0.01)
    background.add("fail", lambda: 1 // 0, period=0.01)
    wait_until(lambda: all(each["runs"] or each["errors"] for each in background.status()))
    metrics = Metrics(background.figures())
    text = metrics.expose().decode()
    metrics.close()
    assert "# TYPE poky_background_runs_total counter" in text
    assert 'poky_background_runs_total{task="fail"} 0.0' in text
    assert 'poky_background_errors_total{task="count"} 0.0' in text
    assert "# TYPE poky_background_success_timestamp_seconds gauge" in text
    assert 'poky_background_success_timestamp_seconds{task="fail"} 0.0' in text


def test_status_shows_the_tasks(
    database: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = tmp_path_factory.mktemp("service") / "log"
    with running(database.dsn_service, log, caches="nobody=http://127.0.0.1:1") as service:
        tasks = service.client().get("/status?verbose").json()["background"]
        named = {each["name"]: number for number, each in enumerate(tasks)}
        assert named.keys() >= {"reap", "caches", "cache-sweep"}
        caches = named["caches"]
        wait_until(
            lambda: service.client().get("/status?verbose").json()["background"][caches]["runs"]
        )
    with running(database.dsn_service, log) as service:
        tasks = service.client().get("/status?verbose").json()["background"]
        assert "reap" in {each["name"] for each in tasks}
        assert "caches" not in {each["name"] for each in tasks}
