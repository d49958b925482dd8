"""`make abuse` in short: the corpus, floods, and the mixtures that once ended an instance.

Under a real memory limit; at the service alone, and through nginx and Varnish as the roles have
them. What others wait for while some stall is for `make abuse` to say: a busy machine waits, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.abuse import http2, memory, raw, slow
from tests.abuse.corpus import CASES
from tests.abuse.report import CHAIN, DIRECT, Row
from tests.conftest import Cluster
from tests.support.chain import Chain

# Those that an instance of release 0.1.0 did not survive.
DEADLY = ("2 x PUT 16 MB text", "POST /multi, 20 x the same 10 MB", "everything at once")


@pytest.fixture(scope="module", params=[DIRECT, CHAIN])
def chain(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Chain, str]]:
    door = request.param
    front = door == CHAIN
    folder = tmp_path_factory.mktemp("chain")
    with Chain(folder, instances=2 if front else 1, front=front, server=cluster.server) as chain:
        yield chain, door


def assert_ok(rows: list[Row]) -> None:
    assert rows
    sentences = [f"{row.name}: {each}" for row in rows for each in row.violations]
    assert not sentences, "\n".join(sentences)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_raw_request_is_smuggled_stored_in_part_or_answered_otherwise(
    chain: tuple[Chain, str],
) -> None:
    assert_ok(raw.run(*chain, short=True))
    if chain[1] == CHAIN:
        assert_ok(http2.run(*chain, short=True))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_floods_of_heads_and_of_missing_keys_cost_others_little(chain: tuple[Chain, str]) -> None:
    for name in ("200 slow heads", "10,000 fields", "404 flood"):
        assert_ok(slow.run(*chain, short=True, only=name))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_mixture_of_requests_exceeds_the_memory_of_an_instance(
    chain: tuple[Chain, str],
) -> None:
    if chain[1] == DIRECT:
        for name in DEADLY:
            assert_ok(memory.run(*chain, short=True, only=name, seconds=3))
    else:
        assert_ok(memory.run(*chain, short=True, only=DEADLY[-1], seconds=5))


def test_every_case_of_the_corpus_has_a_name_of_its_own_and_more_than_one_kind() -> None:
    names = [(case.kind, case.name, case.data[:4]) for case in CASES]
    assert len(set(names)) == len(names)
    assert len(names) >= 200
    assert len({case.kind for case in CASES}) >= 8


def test_reports_fail_on_a_violation(tmp_path: Path) -> None:
    row = Row("raw", "x", DIRECT, "0")
    assert row.ok
    row.violations.append("seen")
    assert not row.ok
    with pytest.raises(AssertionError, match="x: seen"):
        assert_ok([row])
