"""Plots of the last hour as SVG: lines over time, with what they say in words."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 360.0, 90.0
_SPAN = 3600.0
_GAP = 60.0  # seconds without a sample, after which a line begins anew

Point = tuple[float, float | None]  # seconds since 1970, and a value if there was one


class Line(NamedTuple):
    """One line of a plot: its name, its class (a colour), its points in order."""

    name: str
    style: str
    points: Sequence[Point]


def plot(title: str, unit: str, lines: Sequence[Line], now: float) -> str:
    """A figure of the last hour."""
    values = [value for line in lines for _, value in line.points if value is not None]
    most = _rounded_up(max(values, default=0.0))
    last = ", ".join(f"{line.name} {shown(_last(line), unit)}" for line in lines)
    paths = "".join(
        f'<path class="{line.style}" d="{path}"/>'
        for line in lines
        if (path := _path(line.points, most, now))
    )
    legend = " ".join(
        f'<span class="key {line.style}">{escape(line.name)}'
        f" <b>{shown(_last(line), unit)}</b></span>"
        for line in lines
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" preserveAspectRatio="none"'
        f' aria-label="{escape(title)} over the last hour: {escape(last)}">'
        f'<path class="grid" d="M0 {_HEIGHT / 2:g}H{_WIDTH:g}M0 .5H{_WIDTH:g}'
        f'M0 {_HEIGHT - 0.5:g}H{_WIDTH:g}"/>{paths}</svg>'
        f'<p class="axis"><span>an hour ago</span><span>top: {shown(most, unit)}</span>'
        f'<span>now</span></p><p class="legend">{legend}</p></figure>'
    )


def shown(value: float | None, unit: str) -> str:
    """A number with its unit, in few digits."""
    if value is None:
        return "\N{EN DASH}"
    if unit == "s":
        value, unit = value * 1000, "ms"
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}".strip()


def _last(line: Line) -> float | None:
    return line.points[-1][1] if line.points else None


def _rounded_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20 … above."""
    if value <= 0:
        return 1.0
    power = 1e-6
    while True:
        for factor in (1, 2, 5):
            if factor * power >= value:
                return factor * power
        power *= 10


def _path(points: Sequence[Point], most: float, now: float) -> str:
    parts = []
    before: float | None = None
    for at, value in points:
        x = _WIDTH * (1 - (now - at) / _SPAN)
        if value is None or x < 0:
            before = None
            continue
        is_new = before is None or at - before > _GAP
        y = _HEIGHT - 1 - (_HEIGHT - 2) * min(value / most, 1.0)
        # A lone point has a length, or it could not be seen.
        parts.append(f"M{x:.1f} {y:.1f}h1" if is_new else f"L{x:.1f} {y:.1f}")
        before = at
    return "".join(parts)
