"""Bar charts as plain SVG: one panel for each line of a result, a bar a contestant."""

from __future__ import annotations

import math
from html import escape
from typing import Mapping, NamedTuple, Optional, Sequence

_WIDTH, _LEFT, _RIGHT = 820, 250, 170
_BAR, _HEAD, _GAP = 20, 26, 12
_OURS, _OTHERS, _INK, _FAINT = "#0b7285", "#adb5bd", "#212529", "#868e96"


class Bar(NamedTuple):
    """``ratio`` is written beside the figure; ``ours`` has the colour."""

    name: str
    value: float
    low: float
    high: float
    ratio: Optional[float] = None
    ours: bool = False


def draw(title: str, unit: str, panels: Mapping[str, Sequence[Bar]]) -> str:
    """The chart. A panel whose figures differ more than thirtyfold has a logarithmic scale."""
    parts: list[str] = []
    y = 44.0
    for name, bars in panels.items():
        parts.append(_text(12, y + 14, name, weight=600))
        y += _HEAD
        scale, logarithmic = _scale(bars)
        if logarithmic:
            parts.append(_text(_WIDTH - 12, y - 12, "logarithmic", anchor="end", fill=_FAINT))
        for bar in bars:
            parts += _bar(bar, y, scale)
            y += _BAR
        y += _GAP
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y:.0f}"',
        f'viewBox="0 0 {_WIDTH} {y:.0f}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        _text(12, 26, f"{title} ({unit})", size=15, weight=600),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def _scale(bars: Sequence[Bar]) -> tuple[tuple[float, float, bool], bool]:
    top = max(bar.high for bar in bars) or 1.0
    least = min((bar.value for bar in bars if bar.value > 0), default=top)
    logarithmic = top / least > 30
    return (least / 2, top, logarithmic), logarithmic


def _x(value: float, scale: tuple[float, float, bool]) -> float:
    bottom, top, logarithmic = scale
    share = value / top
    if logarithmic:
        share = math.log(value / bottom) / math.log(top / bottom) if value > bottom else 0.0
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _bar(bar: Bar, y: float, scale: tuple[float, float, bool]) -> list[str]:
    end, low, high = (_x(value, scale) for value in (bar.value, bar.low, bar.high))
    middle = y + _BAR / 2
    figure = f"{bar.value:.4g}" + ("" if bar.ratio is None else f"   ({bar.ratio:.2f} x)")
    return [
        _text(_LEFT - 8, middle + 4, bar.name, anchor="end"),
        f'<rect x="{_LEFT}" y="{y + 3:.1f}" width="{max(1.0, end - _LEFT):.1f}"',
        f'height="{_BAR - 6}" fill="{_OURS if bar.ours else _OTHERS}"/>',
        f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}" stroke="{_INK}"/>',
        _text(max(end, high) + 8, middle + 4, figure),
    ]


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 12,
    weight: int = 400,
    fill: str = _INK,
) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{fill}">{escape(text)}</text>'
    )
