"""Property-based: whatever the order of requests, Poky answers as a dictionary would."""

from __future__ import annotations

import base64
import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from poky.api.conditions import format_date
from tests.service import Service

KEYS = st.sampled_from(["a", "b", "c~@=+:", "k" * 1024])
VALUES = st.binary(max_size=200) | st.text(max_size=50).map(str.encode)
DATES = st.none() | st.integers(1, 5).map(lambda day: 86_400 * day)
numbers = itertools.count(1)


class Model(RuleBasedStateMachine):
    """A bucket of the service beside a dictionary: key to (value, tag, modified_at)."""

    service: Service
    tags = Bundle("tags")

    @initialize()
    def start(self) -> None:
        self.bucket = f"model-{next(numbers)}"
        self.client = self.service.client()
        self.service.admin().request("PUT", f"/buckets/{self.bucket}")
        self.objects: dict[str, tuple[bytes, str, int | None]] = {}

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.client.close()

    def holds(self, key: str, conditions: dict[str, str], date: int | None) -> bool:
        there = self.objects.get(key)
        if "if_match" in conditions:
            tags = conditions["if_match"]
            if there is None or (tags != "*" and there[1] != tags):
                return False
        if "if_none_match" in conditions and there is not None:
            tags = conditions["if_none_match"]
            if tags == "*" or there[1] == tags:
                return False
        # An undated insert is modified now, which is after all dates here.
        return date is None or there is None or (there[2] is not None and there[2] <= date)

    @rule(target=tags, key=KEYS, value=VALUES, date=DATES, data=st.data())
    def put(self, key: str, value: bytes, date: int | None, data: Any) -> str:
        conditions = self.draw_conditions(data)
        headers = dict(conditions)
        if date is not None:
            headers["if_unmodified_since"] = format_date(date)
        answer = self.client.put(f"/kv/{self.bucket}/{key}", value, **headers)
        if not self.holds(key, conditions, date):
            assert answer.status == 412
            return '"0-00000000"'
        assert answer.status == 200
        before = self.objects.get(key)
        modified_at = date if date is not None or before is None else before[2]
        self.objects[key] = (value, answer.etag, modified_at)
        return answer.etag

    @rule(target=tags, items=st.lists(st.tuples(KEYS, VALUES), max_size=5), atomic=st.booleans())
    def put_many(self, items: list[tuple[str, bytes]], atomic: bool) -> str:
        answer = self.client.batch(
            "PUT",
            self.bucket,
            [{"key": k, "data_base64": base64.b64encode(v).decode()} for k, v in items],
            "?atomic=true" if atomic else "",
        )
        assert answer.status == 200
        for (key, value), shown in zip(items, answer.json(), strict=True):
            before = self.objects.get(key)
            assert shown["result"] == ("updated" if before else "inserted")
            self.objects[key] = (value, shown["etag"], before[2] if before else None)
        return answer.json()[-1]["etag"] if items else '"0-00000000"'

    @rule(key=KEYS, data=st.data())
    def delete(self, key: str, data: Any) -> None:
        conditions = self.draw_conditions(data)
        answer = self.client.delete(f"/kv/{self.bucket}/{key}", **conditions)
        if key not in self.objects and "if_match" not in conditions:
            assert answer.status == 404
        elif not self.holds(key, conditions, None):
            assert answer.status == 412
        else:
            assert answer.status == 200
            del self.objects[key]

    def draw_conditions(self, data: Any) -> dict[str, str]:
        known = [there[1] for there in self.objects.values()]
        tag = st.sampled_from([*known, '"0-00000000"', "*"])
        return {
            name: data.draw(tag)
            for name in data.draw(
                st.sampled_from([(), (), ("if_match",), ("if_none_match",)]), label="conditions"
            )
        }

    @rule(tag=tags, key=KEYS)
    def get_if_changed(self, tag: str, key: str) -> None:
        answer = self.client.get(f"/kv/{self.bucket}/{key}", if_none_match=tag)
        there = self.objects.get(key)
        expected = 404 if there is None else 304 if there[1] == tag else 200
        assert answer.status == expected

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "client"):
            return
        for key in ("a", "b", "c~@=+:", "k" * 1024):
            got = self.client.get(f"/kv/{self.bucket}/{key}")
            there = self.objects.get(key)
            if there is None:
                assert got.status == 404
            else:
                assert (got.status, got.body, got.etag) == (200, there[0], there[1])
                if there[2] is not None:
                    assert got.headers["Last-Modified"] == format_date(there[2])
        listed = self.client.get(f"/kv/{self.bucket}").json()["keys"]
        assert [(each["key"], each["etag"], each["size"]) for each in listed] == [
            (key, tag, len(value)) for key, (value, tag, _) in sorted(self.objects.items())
        ]


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_poky_answers_as_a_dictionary_would(service: Service) -> None:
    bound = type("BoundModel", (Model,), {"service": service})
    run_state_machine_as_test(
        bound,
        settings=settings(
            max_examples=40,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
