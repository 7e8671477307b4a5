"""Draws the results: ``python -m benchmarks.pictures [FOLDER]``, from the JSON files, measuring nothing.

The table says which lines of a result make a picture, four panels at most. Results
with a label have no pictures; the documents give their ratios.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

from . import chart

RESULTS = Path(__file__).parent / "results"
OURS = "hindsight-exec"


class Panel(NamedTuple):
    """A panel of one or more lines of a result.

    Attributes:
        title: What its figures are.
        unit: Theirs, after ``scale``.
        lines: The lines, each with what tells its bars from those of the others.
        better: "less" or "more".
    """

    title: str
    unit: str
    lines: Mapping[str, str]
    better: str = "less"
    scale: float = 1.0


class Picture(NamedTuple):
    """``suffix`` is added to the name of the result."""

    suffix: str
    title: str
    panels: Sequence[Panel]


def _each(unit: str, titles: Mapping[str, str], scale: float = 1.0) -> list[Panel]:
    return [Panel(title, unit, {line: ""}, scale=scale) for line, title in titles.items()]


def _sizes(line: str, how: str) -> dict[str, str]:
    counts = {count: f"{count} turn{'s' * (count > 1)}" for count in (1, 5, 50, 300)}
    return {line.format(count): f"{how}, {count} waiting" for count in counts.values()}


def _durable(mode: str, size: str) -> Picture:
    titles = {
        f"{mode}, {size}, {pace}, {part}": f"{words}, {what}"
        for pace, words in (("tight", "One after the other"), ("paced", "Now and then"))
        for part, what in (("p50", "median"), ("p99", "99th percentile"))
    }
    first = (mode, size) == ("FULL", "1 KiB")
    suffix = "" if first else f"-{mode}-{size}".lower().replace(" ", "-")
    safe = "is flushed to the disk" if mode == "FULL" else "survives a kill"
    return Picture(suffix, f"A turn of {size} until it {safe} ({mode})", _each("µs", titles))


_LEAVING = (
    ("", "{0}end of main, without shutdown()", "end of main, {}", "End of main"),
    ("-shutdown", "{0}shutdown()", "shutdown(), {}", "shutdown()"),
    ("-sigkill", "{0}SIGKILL and the next start", "SIGKILL and the next start, {}", "SIGKILL"),
)

PICTURES: dict[str, list[Picture]] = {
    "submit": [
        Picture(
            "",
            "Handing over a job, one after the other",
            _each(
                "µs",
                {
                    "tight, p50": "Median",
                    "tight, p99": "99th percentile",
                    "tight, until all jobs are done, per job": "Until all jobs are done, per job",
                },
            ),
        ),
        Picture(
            "-paced",
            "Handing over a job every two milliseconds, which wakes the worker",
            _each("µs", {"paced, p50": "Median", "paced, p99": "99th percentile"}),
        ),
    ],
    "durable": [
        _durable(mode, size) for mode in ("FULL", "NORMAL") for size in ("1 KiB", "100 KiB")
    ],
    "crowd": [
        Picture(
            "",
            "Turns that 300 threads give at once, until they are on disk",
            _each(
                "ms",
                {
                    "300 threads x 3, each turn": "All 900 turns, per turn",
                    "300 threads x 3, p50": "Each turn, median",
                    "300 threads x 3, p99": "Each turn, 99th percentile",
                    "300 at once, a sync takes 20 ms, all": "300 turns where a sync takes 20 ms, all",
                },
                1e-3,
            ),
        ),
        Picture(
            "-alone",
            "A turn that one thread gives, until it is on disk",
            _each("µs", {"one thread x 100, p50": "Median of 100"}),
        ),
    ],
    "presence": [
        Picture(
            "",
            "The cost of being there",
            [
                *_each("ms", {"import, ms": "Import"}),
                *_each(
                    "million instructions",
                    {
                        "exit, million instructions": "Exit of a program that did nothing,"
                        " million instructions",
                        "all, million instructions": "The whole program, million instructions",
                    },
                ),
            ],
        ),
    ],
    "exits": [
        *(
            Picture(suffix, title.format("Seconds to leave: "), _each("s", _sizes(line, how)))
            for suffix, title, line, how in _LEAVING
        ),
        Picture(
            "-server",
            "Seconds to leave while the server cannot take anything",
            _each(
                "s",
                {
                    "server refusing": "The server refuses connections",
                    "server hanging": "The server accepts and never answers",
                },
            ),
        ),
    ],
    "exits-lost": [
        Picture(suffix, title.format("Turns lost: "), _each("", _sizes(line + ": lost", how)))
        for suffix, title, line, how in _LEAVING
    ],
    "delivery": [
        Picture(
            "",
            "Delivery of turns that wait when the program starts",
            [
                Panel(
                    title,
                    unit,
                    {f"{count},000 waiting: {line}": f"{count} 000" for count in (10, 100)},
                    better,
                )
                for title, unit, line, better in (
                    ("Turns a second", "", "turns a second", "more"),
                    ("CPU time for a turn", "ms", "ms of CPU a turn", "less"),
                    (
                        "Memory above that of the imports",
                        "MB",
                        "memory above the imports, MB",
                        "less",
                    ),
                    (
                        "How busy the server was, near 100 % it is the limit",
                        "%",
                        "server busy, % of the time",
                        "",
                    ),
                )
            ],
        )
    ],
    "gateway": [
        Picture(
            suffix,
            title,
            [
                Panel(
                    name,
                    unit,
                    {f"{count} chats: {line}": f"{count} chats" for count in (100, 300)},
                )
                for name, unit, line in panels
            ],
        )
        for suffix, title, panels in (
            (
                "",
                "Hundreds of chats in one process",
                (
                    ("Threads", "", "threads"),
                    ("Sockets", "", "sockets"),
                    ("Memory above that of the process before", "MB", "memory, MB"),
                    (
                        "Shutting all down right after a turn of each",
                        "s",
                        "shutting down after a turn of each, s",
                    ),
                ),
            ),
            (
                "-rest",
                "Hundreds of chats that are shut down",
                (
                    (
                        "Shutting all down when the server has every turn",
                        "s",
                        "shutting down at rest, s",
                    ),
                    ("Turns lost", "", "turns lost"),
                ),
            ),
        )
    ],
    "extraction": [
        Picture(
            "",
            "What 100 turns cost in extraction by the server's LLM",
            _each(
                "",
                {
                    f"{length} turns: {line}": f"{length.capitalize()} turns: {line}"
                    for length in ("long", "short")
                    for line in ("LLM calls", "thousand characters of prompts")
                },
            ),
        )
    ],
}


def draw(result: Mapping[str, Any], folder: Path = RESULTS) -> None:
    """Write the pictures of a result."""
    notes = [
        f"Median of {result['rounds']} rounds; the thin line goes from the lowest to the highest."
    ]
    if any(row["ratio"] is not None for row in result["rows"]):
        notes.append(f"In brackets: relative to {result['reference']}.")
    for picture in PICTURES.get(result["benchmark"], ()):  # some are tables only
        panels = [
            chart.Panel(
                panel.title,
                panel.unit if len(panel.unit) < 4 else "",
                panel.better,
                list(_bars(panel, result["rows"])),
            )
            for panel in picture.panels
        ]
        svg = chart.draw(picture.title, notes, panels)
        name = f"{result['benchmark']}{picture.suffix}.svg"
        (folder / name).write_text(svg, encoding="utf-8")


def _bars(panel: Panel, rows: Sequence[Mapping[str, Any]]) -> Iterator[chart.Bar]:
    chosen = [row for row in rows if row["line"] in panel.lines]
    shown: set[str] = set()
    for row in sorted(chosen, key=lambda row: row["name"] != OURS):
        name, note = row["name"], panel.lines[row["line"]]
        # A peer that was measured once stands on several lines with the same figure.
        medians = [other["median"] for other in chosen if other["name"] == name]
        if name != OURS and len(medians) > 1 and len(set(medians)) == 1:
            note = ""
        label = f"{name}, {note}" if note else name
        if label in shown:
            continue
        shown.add(label)
        value, low, high = (row[key] * panel.scale for key in ("median", "low", "high"))
        ratio = None if row["ratio"] == 1 else row["ratio"]
        yield chart.Bar(label, value, low, high, ratio, name.startswith(OURS))


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if path.stem == result["benchmark"]:
            draw(result, folder)


if __name__ == "__main__":
    main()
