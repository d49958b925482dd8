"""Durations and ends as people write them: 7d, 12h, 30m, 90s; 2027-06-30."""

import re
import time
from datetime import UTC, datetime

import click

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_LAST = 253_402_300_799  # the last second of the year 9999


class Duration(click.ParamType[int]):
    """Whole seconds; ``none`` is 0."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Read it, or fail with a sentence."""
        if isinstance(value, int):
            return value
        if value == "none":
            return 0
        match = re.fullmatch("([1-9][0-9]{0,8})([dhms])", str(value))
        if match is None:
            self.fail(f"“{value}” is no duration: 7d, 12h, 30m, 90s, or none.", param, ctx)
        return int(match[1]) * _UNITS[match[2]]


def show_duration(seconds: int | None) -> str:
    """In the largest unit that divides it."""
    if not seconds:
        return "-"
    unit = next(name for name, size in _UNITS.items() if seconds % size == 0)
    return f"{seconds // _UNITS[unit]}{unit}"


def read_end(text: str) -> int:
    """Seconds since 1970 of 90d, 12h, 30m from now, or of a date; ValueError with a sentence."""
    if match := re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text):
        return int(time.time()) + int(match[1]) * _UNITS[match[2]]
    return read_date(text, "90d, 12h, 30m or 2027-06-30")


def read_date(text: str, example: str = "2027-06-30") -> int:
    """Seconds since 1970 of a date that is to come; ValueError with a sentence."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"“{text}” is no end: write {example}") from None
    seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    if seconds <= time.time():
        raise ValueError(f"“{text}” has passed already: choose a later end")
    if seconds > _LAST:
        raise ValueError(f"“{text}” is after the year 9999: leave it out, and there is no end")
    return seconds
