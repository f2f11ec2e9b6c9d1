"""Line charts as SVG that take their colours from the page, so that they suit light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from steerlm.pages import is_number

_WIDTH, _HEIGHT = 320, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 12, 26
_TICKS = 4


@dataclass(frozen=True)
class Line:
    """A line with its interval at each level, where it has one; `color` is the number of a colour of the page (c0, c1,
    ...).
    """

    title: str
    points: Sequence[Mapping[str, float]]
    color: int


def line_chart(title: str, levels: Sequence[int], lines: Sequence[Line], diagonal: bool = False) -> Markup:
    """Values over levels. With `diagonal`, a dashed line shows what was asked."""
    known = [
        point[key]
        for line in lines
        for point in line.points
        for key in ("value", "low", "high")
        if is_number(point[key])
    ]
    if diagonal:
        known += [levels[0], levels[-1]]
    if not known:
        return Markup("")
    ticks = round_ticks(min(known), max(known))
    low, high = ticks[0], ticks[-1]

    def x(level: float) -> float:
        return _LEFT + (level - levels[0]) / (levels[-1] - levels[0]) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    for value in ticks:
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 5}" y="{y(value) + 3:.1f}" text-anchor="end">{value:g}</text>')
    for level in levels:
        parts.append(f'<text x="{x(level):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{level}</text>')
    if diagonal:
        ends = f'x1="{x(levels[0]):.1f}" y1="{y(levels[0]):.1f}" x2="{x(levels[-1]):.1f}" y2="{y(levels[-1]):.1f}"'
        parts.append(f'<line class="asked" {ends}/>')
    for line in lines:
        shown = [
            (x(level), point) for level, point in zip(levels, line.points, strict=True) if is_number(point["value"])
        ]
        bounded = [(at, point) for at, point in shown if is_number(point["low"]) and is_number(point["high"])]
        band = [f"{at:.1f},{y(point['high']):.1f}" for at, point in bounded]
        band += [f"{at:.1f},{y(point['low']):.1f}" for at, point in reversed(bounded)]
        middle = [f"{at:.1f},{y(point['value']):.1f}" for at, point in shown]
        if band:
            parts.append(f'<polygon class="band c{line.color}" points="{" ".join(band)}"/>')
        parts.append(f'<polyline class="line c{line.color}" points="{" ".join(middle)}"/>')
        parts += [
            f'<circle class="dot c{line.color}" r="2.5" cx="{at.split(",")[0]}" cy="{at.split(",")[1]}"/>'
            for at in middle
        ]
    return Markup("".join([*parts, "</svg>"]))


def round_ticks(low: float, high: float) -> list[float]:
    """Round values at equal steps, a few, the first at most `low` and the last at least `high`."""
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / _TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size > rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]
