"""Bar charts as plain SVG: a panel for each figure, a bar for each contestant.

Nobody knows which font will be there, so columns are as wide as their longest
text in a wide one (DejaVu Sans, Verdana); ``tests/test_pictures.py`` checks that.
"""

from __future__ import annotations

import math
from html import escape
from typing import NamedTuple, Optional, Sequence

WIDTH = 720
_EDGE, _BAR, _HEAD, _AXIS, _GAP = 14, 20, 24, 18, 16
#: Width of a character in a wide font, as a part of its size.
_EM = 0.64

STYLE = """<style>
text { fill: #212529; font: 12px system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif }
.title { font-size: 15px; font-weight: 600 } .head { font-weight: 600 }
.faint { fill: #6c757d; font-size: 11px } .paper { fill: #fff } .grid { stroke: #dee2e6 }
.ours { fill: #0b7285 } .other { fill: #adb5bd } .spread { stroke: #212529 }
@media (prefers-color-scheme: dark) {
text { fill: #e9ecef } .faint { fill: #adb5bd } .paper { fill: #16191d } .grid { stroke: #343a40 }
.ours { fill: #22b8cf } .other { fill: #6c757d } .spread { stroke: #f8f9fa }
}
</style>"""


class Bar(NamedTuple):
    """``ratio`` is written beside the figure; ``ours`` has the colour."""

    name: str
    value: float
    low: float
    high: float
    ratio: Optional[float] = None
    ours: bool = False


class Panel(NamedTuple):
    """``unit`` stands beside the figures; ``better`` is "less" or "more", or empty."""

    title: str
    unit: str
    better: str
    bars: Sequence[Bar]


def draw(title: str, notes: Sequence[str], panels: Sequence[Panel]) -> str:
    """The chart. A panel whose figures differ more than thirtyfold has a logarithmic scale."""
    bars = [bar for panel in panels for bar in panel.bars]
    left = _EDGE + max(_width(bar.name) for bar in bars) + 8
    figures = [_figure(bar, panel.unit) for panel in panels for bar in panel.bars]
    right = WIDTH - _EDGE - max(map(_width, figures)) - 8
    parts = [_text(_EDGE, 26, title, "title")]
    y = 29.0
    for note in notes:
        y += 16
        parts.append(_text(_EDGE, y, note, "faint"))
    y += 19
    for panel in panels:
        scale = _Scale(panel.bars, left, right)
        words = [f"{panel.better} is better"] if panel.better else []
        words += ["logarithmic scale"] if scale.logarithmic else []
        parts.append(_text(_EDGE, y + 12, panel.title, "head"))
        parts.append(_text(WIDTH - _EDGE, y + 12, ", ".join(words), "faint", "end"))
        y += _HEAD
        bottom = y + _BAR * len(panel.bars)
        for tick, label in scale.ticks(panel.unit):
            parts.append(f'<path class="grid" d="M{tick:.1f} {y:.0f}V{bottom + 3:.0f}"/>')
            parts.append(_text(tick, bottom + 14, label, "faint", "middle"))
        for bar in panel.bars:
            parts += _bar(bar, y, scale, panel.unit)
            y += _BAR
        y += _AXIS + _GAP
    return picture(title, y - _GAP + 6, parts)


def picture(title: str, height: float, parts: Sequence[str]) -> str:
    """The whole file around its parts."""
    size = f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f"<title>{escape(title)}</title>",
        STYLE,
        '<rect class="paper" width="100%" height="100%"/>',
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def number(value: float) -> str:
    """Three digits that count, and thousands apart: 0.27, 1.35, 13 200."""
    if not value:
        return "0"
    rounded = round(value, 2 - math.floor(math.log10(abs(value))))
    if abs(rounded) >= 1000:
        return f"{rounded:,.0f}".replace(",", "\u00a0")
    return f"{rounded:.3g}"


class _Scale:
    """Where a figure is on the axis."""

    def __init__(self, bars: Sequence[Bar], left: float, right: float) -> None:
        self._left, self._right = left, right
        self._top = max(bar.high for bar in bars) or 1.0
        least = min((bar.value for bar in bars if bar.value > 0), default=self._top)
        self.logarithmic = self._top / least > 30
        self._bottom = least / 2

    def x(self, value: float) -> float:
        share = value / self._top
        if self.logarithmic:
            share = math.log(max(value / self._bottom, 1.0)) / math.log(self._top / self._bottom)
        return self._left + share * (self._right - self._left)

    def ticks(self, unit: str) -> list[tuple[float, str]]:
        """Places and labels, as many as there is room for."""
        ten = 10.0 ** math.floor(math.log10(self._top))
        if self.logarithmic:
            values = [ten / 10**power for power in range(12)]
            values = [value for value in values if value >= self._bottom]
        else:
            step = next(ten * part for part in (0.2, 0.5, 1, 2) if self._top / (ten * part) <= 6)
            values = [step * count for count in range(int(self._top / step) + 1)]
        labels = {value: _with_unit(value, unit) for value in sorted(values)}
        widest = max(map(_width, labels.values()))
        taken: list[tuple[float, str]] = []
        for value, label in labels.items():
            if not taken or self.x(value) - taken[-1][0] > widest + 8:
                taken.append((self.x(value), label))
        return taken


def _with_unit(value: float, unit: str) -> str:
    return f"{number(value)} {unit}".strip() if len(unit) < 4 else number(value)


def _figure(bar: Bar, unit: str) -> str:
    if bar.ratio is None:
        return _with_unit(bar.value, unit)
    ratio = f"{bar.ratio:.2f}" if bar.ratio >= 0.1 else f"{bar.ratio:.1g}"
    return f"{_with_unit(bar.value, unit)}  ({ratio} \u00d7)"


def _bar(bar: Bar, y: float, scale: _Scale, unit: str) -> list[str]:
    start, end, low, high = map(scale.x, (0, bar.value, bar.low, bar.high))
    middle = y + _BAR / 2
    kind = "ours" if bar.ours else "other"
    size = f'width="{max(1.0, end - start):.1f}" height="{_BAR - 6}"'
    return [
        _text(start - 8, middle + 4, bar.name, anchor="end"),
        f'<rect class="{kind}" x="{start:.1f}" y="{y + 3:.0f}" {size}/>',
        f'<path class="spread" d="M{low:.1f} {middle:.0f}H{high:.1f}"/>',
        _text(max(end, high) + 8, middle + 4, _figure(bar, unit)),
    ]


def _width(text: str) -> float:
    return len(text) * 12 * _EM


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    if not text:
        return ""
    kind = f' class="{kind}"' if kind else ""
    anchor = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:.0f}" y="{y:.0f}"{kind}{anchor}>{escape(text)}</text>'
