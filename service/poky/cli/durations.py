"""Durations as people write them: 7d, 12h, 30m, 90s."""

import re

import click

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


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
