"""The bench's own judgement: ratios, goals, regressions. What it measures is not tested."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.bench import capacity, contest, report
from tests.bench.contest import Contest
from tests.bench.load import Sample
from tests.bench.stack import Stack
from tests.vcl import values


def test_varnish_reads_nothing_in_the_checkout(tmp_path: Path) -> None:
    """Its worker has a user of its own, which may not enter a checkout in /root."""
    (tmp_path / "vcl").mkdir()
    vcl = values.write(tmp_path / "vcl", values.values(service=[1], lease=[2], access="tokens"))
    stack = cast(Stack, SimpleNamespace(folder=tmp_path))
    command = Stack._varnish(stack, "name", 80, vcl, 81, tmp_path / "vcl")
    assert str(vcl) in command.arguments
    for word in command.arguments:
        path = word.rpartition("=")[2]
        assert not path.startswith("/") or path.startswith(str(tmp_path)), word
    files, included = [vcl], []
    for file in files:
        names = re.findall(r'^include "(.+)";', file.read_text(), re.MULTILINE)
        files += [file.parent / name for name in names]
        included += names
    assert {"poky_values.vcl", "poky_access_tokens.vcl"} <= {*included}


class Paced:
    """A contestant whose rates are known."""

    def __init__(self, *rates: float, foreign: tuple[float, ...] = (0,) * 9) -> None:
        self._slices = zip(rates, foreign, strict=False)

    def run(self, seconds: int) -> Sample:
        rate, foreign = next(self._slices)
        return Sample(rate, foreign=foreign)


@pytest.fixture
def row() -> contest.Row:
    contestants = {"get.direct": Paced(20, 30, 90), "naive": Paced(10, 10, 10)}
    (row,) = contest.run(
        Contest(contestants, [("get.direct", "naive")]), rounds=3, seconds=1, step=lambda: None
    )
    return row


def test_a_ratio_is_the_median_of_its_rounds(row: contest.Row) -> None:
    assert (row.value, row.yardstick_value, row.ratio, row.runs) == (30, 10, 3, 3)


def test_spare_rounds_stand_in_for_disturbed_ones() -> None:
    contestants = {
        "get.direct": Paced(1, 20, 30, 40, foreign=(2, 0, 0, 0)),
        "naive": Paced(10, 10, 10, 10),
    }
    (row,) = contest.run(Contest(contestants, [("get.direct", "naive")]), 2, 1, lambda: None, 2)
    assert row.ratios == [2, 3]


def test_rows_survive_being_saved(row: contest.Row, tmp_path: Path) -> None:
    contest.save([row], tmp_path / "rows.json")
    assert contest.load(tmp_path / "rows.json") == [row]
    assert contest.load(tmp_path / "nothing.json") == []


@pytest.mark.parametrize(
    ("unit", "ratio", "is_worse"),
    [("requests/s", 2.6, False), ("requests/s", 2.5, True), ("ms", 3.4, False), ("us", 3.5, True)],
)
def test_fifteen_percent_worse_is_a_regression(
    row: contest.Row, unit: str, ratio: float, is_worse: bool
) -> None:
    assert report.is_regression(replace(row, unit=unit, ratio=ratio), row) is is_worse
    assert not report.is_regression(row, None)


def test_a_missed_goal_is_named(row: contest.Row) -> None:
    assert report.missed(row) == ""
    assert report.missed(replace(row, ratio=2.4)) == "ratio 2.5"
    assert report.missed(replace(row, service_us=101)) == "at most 100 us"
    cost = replace(row, name="hit.tokens.cpu", yardstick="hit.open.cpu", unit="us")
    assert report.missed(replace(cost, ratio=1.21)) == "ratio at most 1.2"
    assert report.missed(replace(cost, ratio=1.2)) == ""


def test_recording_keeps_the_page_and_the_rows_of_other_suites(
    row: contest.Row, tmp_path: Path
) -> None:
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    report.record([row], tmp_path)
    report.record([replace(row, name="put.direct")], tmp_path)
    text = page.read_text()
    assert text.startswith("before\n<!-- table -->\n| figure")
    assert text.endswith("|\n<!-- end of table -->\nafter\n")
    assert "| get.direct |" in text
    assert "| put.direct |" in text
    assert "old" not in text
    assert (tmp_path / "performance" / "ratios.svg").exists()


def test_the_capacity_model_is_as_the_bench_was_recorded() -> None:
    """If the bench was recorded anew: make capacity."""
    page = capacity.PAGE.read_text()
    assert page == capacity.written(page)
    assert "1e10" in page


def test_a_load_takes_more_of_what_it_has_more_of() -> None:
    cost = capacity.figures()
    small = capacity.need(capacity.Load(1e6, 1000, 1e3, 0.1, 0.8), cost)
    assert (small.shards, small.hosts) == (1, 2)
    keys = capacity.need(capacity.Load(1e10, 1000, 1e3, 0.1, 0.8), cost)
    assert (keys.shards, keys.hosts, keys.first) == (8, 2, "PostgreSQL's disks")
    requests = capacity.need(capacity.Load(1e6, 1000, 1e6, 0.05, 0.9), cost)
    assert requests.hosts > 5
    writes = capacity.need(capacity.Load(1e6, 1000, 1e6, 0.5, 0.9), cost)
    assert writes.purges > requests.purges
