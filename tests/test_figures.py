"""The figures that the documents show are those of `benchmarks/results`.

After a new run of the benchmarks, a failure here says the sentence that the document should have.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"

if not RESULTS.is_dir():
    pytest.skip("the benchmarks are not beside the tests", allow_module_level=True)

OURS, BUNDLED = "hindsight-exec", "bundled provider, 0.19.0"
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@functools.cache
def result(name: str) -> dict[str, Any]:
    text = (RESULTS / f"{name}.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def row(name: str, line: str, peer: str = OURS) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = (r for r in result(name)["rows"] if (r["line"], r["name"]) == (line, peer))
    return found


def labelled(name: str) -> list[str]:
    """The results of a benchmark on each Python; that of 3.11 has no label."""
    return [name if python == "3.11" else f"{name}-py{python}" for python in PYTHONS]


def median(name: str, line: str, peer: str = OURS, form: str = ".0f") -> str:
    return format(row(name, line, peer)["median"], form)


def ratio(name: str, line: str, form: str = ".0f", to: str = " to ") -> str:
    """A ratio, with the least and the greatest of a round."""
    found = row(name, line)
    middle, low, high = (format(found[key], form) for key in ("ratio", "ratio_low", "ratio_high"))
    return f"{middle} ({low}{to}{high})"


def span(names: list[str], lines: list[str], form: str = ".2f") -> str:
    """The least and the greatest ratio of several lines."""
    ratios = [row(name, line)["ratio"] for name in names for line in lines]
    return f"{min(ratios):{form}} to {max(ratios):{form}}"


def best_peer() -> str:
    """The least and the greatest ratio to the best peer of a line."""
    ratios = []
    for name in labelled("durable"):
        for line in DURABLE:
            peers = [r for r in result(name)["rows"] if r["line"] == line]
            best = min(
                r["median"] for r in peers if r["name"] not in (OURS, "raw INSERT (the limit)")
            )
            ratios.append(row(name, line)["median"] / best)
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


CALLS = ["long turns: LLM calls", "short turns: LLM calls"]
SPEED = "{} waiting: turns a second"
MEMORY = "{} waiting: memory above the imports, MB"
BUSY = "300 chats: shutting down after a turn of each, s"
PYTHONS = ["3.9", "3.11", "3.12", "3.14"]
DURABLE = [
    f"FULL, {size}, {pace}, p50" for size in ("1 KiB", "100 KiB") for pace in ("tight", "paced")
]


#: Whose code runs in a turn, by package.
GROUPS = {
    "aiohttp": ("aiohttp", "yarl", "aiosignal", "multidict", "frozenlist"),
    "asyncio": ("asyncio", "selectors", "concurrent", "threading", "socket"),
    "ours": ("hindsight_exec",),
}


def groups(line: str) -> list[str]:
    """Bytecodes of each group, and of all others, by the profile of the cost."""
    text = (RESULTS / "profiles" / "cost.json").read_text(encoding="utf-8")
    packages: dict[str, int] = json.loads(text)["bytecodes by package"][OURS][line]
    total = packages.pop("sum")
    sums = [
        sum(count for name, count in packages.items() if name.split(".")[0] in members)
        for members in GROUPS.values()
    ]
    return [str(count) for count in (*sums, total - sum(sums))]


def functions(line: str, most: int = 10) -> list[str]:
    """Rows of a table: the functions with the most bytecodes."""
    text = (RESULTS / "profiles" / "cost.json").read_text(encoding="utf-8")
    counts: dict[str, int] = json.loads(text)["bytecodes by function"][OURS][line]
    return [f"| `{name}` | {count} |" for name, count in list(counts.items())[:most]]


def costs() -> list[str]:
    """Rows of the tables about instructions, memory and cuts."""
    lines = [r["line"] for r in result("cost")["rows"] if r["name"] == OURS]
    rows = [
        f"| {line} | {median('cost', line)} | {row('cost', line)['ratio']:.2f} |" for line in lines
    ]
    profiled = ("a poll", "put to completed, a turn alone")
    rows += [f"| {line} | {' | '.join(groups(line))} |" for line in profiled]
    rows += functions("put to completed, a turn alone")
    for r in result("footprint")["rows"]:
        if r["line"].endswith(": MiB"):
            step = r["line"][: -len(": MiB")]
            times = [t for t in result("footprint")["rows"] if t["line"] == f"{step}: ms"]
            took = f"{times[0]['median']:.0f}" if times else ""
            rows.append(f"| {step} | {r['median']:.1f} | {took} |")
    rows.append(
        f"{median('footprint', 'first turn, from start to delivered: ms')} ms after the start the"
        f" first turn is delivered: {median('footprint', 'first turn, imports: ms')} for the"
        f" imports, {median('footprint', 'first turn, put: ms')} for the first put, and"
        f" {median('footprint', 'first turn, flush: ms')} until `flush` returns"
    )
    peers = [OURS, "one document", "best documents of 6000", "full chunks (no cut can)"]
    for r in result("cuts")["rows"]:
        if r["name"] == OURS and "held" not in r["line"]:
            calls = [median("cuts", r["line"], peer, ".1f") for peer in peers]
            held = median("cuts", f"{r['line']}: turns held", form=".1f")
            rows.append(f"| {r['line']} | {' | '.join(calls)} | {held} |")
    return rows


def pythons() -> list[str]:
    """Rows of the table of ratios on all Pythons."""
    rows = []
    for name in ("submit", "submit-many", "durable", "crowd"):
        for line in dict.fromkeys(r["line"] for r in result(name)["rows"]):
            ratios = [format(row(one, line)["ratio"], ".2f") for one in labelled(name)]
            rows.append(f"| {name}: {line} | {' | '.join(ratios)} |")
    return rows


def real_server() -> list[str]:
    """Rows of the table of what a real server accepts."""
    parts = (("s", ".1f"), ("turns a second", ".0f"), ("requests", ".0f"))
    rows = []
    for turns in ("10,000", "100,000"):
        figures = [
            median("delivery-real", f"{turns} waiting: {line}", form=form) for line, form in parts
        ]
        rows.append(f"| {turns.replace(',', ' ')} | {' | '.join(figures)} |")
    return rows


def sentences() -> dict[str, list[str]]:
    """What each document must say."""
    ours, theirs = (
        [median("extraction", line, peer) for line in CALLS] for peer in (OURS, BUNDLED)
    )
    threads = WORDS[int(median("gateway", "300 chats: threads"))]
    lost = {r["high"] for r in result("exits-lost")["rows"] if r["name"] == OURS}
    assert lost == {0}
    return {
        "README.md": [
            f"| LLM calls for 100 turns, long or short | {theirs[0]} or {theirs[1]} | {ours[0]} or {ours[1]} |",
            f"one session per server, {threads} threads |",
            f"| 10 000 turns that wait at the start | one request each | a few batches, {ratio('delivery', SPEED.format('10,000'), to='–')} times as fast |",
        ],
        "docs/comparison.md": [
            f"one session per target, one outbox, {threads} threads |",
            (
                "Leaving with turns that wait: none is lost, and with 300 of them it takes"
                f" {median('exits', 'end of main, 300 turns', form='.2f')} s at the end of main and"
                f" {median('exits', 'shutdown(), 300 turns', form='.2f')} s in `shutdown()`, where a request takes 0.1 s"
            ),
            (
                f"Hindsight's LLM is asked {ours[0]} times for a conversation of 100 long turns, and"
                f" {ours[1]} times for 100 short ones; the bundled provider asks it"
                f" {theirs[0]} and {theirs[1]} times:"
            ),
            (
                f"{ratio('delivery', SPEED.format('10,000'))} times as fast for 10 000 turns and"
                f" {ratio('delivery', SPEED.format('100,000'))} times for 100 000. They take"
                f" {median('delivery', MEMORY.format('10,000'))} and"
                f" {median('delivery', MEMORY.format('100,000'))} MB above the imports:"
            ),
            (
                f"300 chats in one process have {threads} threads, and {median('gateway', '300 chats: sockets')}"
                " sockets at most; right after a turn of each, all are shut down in"
                f" {median('gateway', BUSY, form='.1f')} s, those of the bundled provider in"
                f" {median('gateway', BUSY, BUNDLED)} s:"
            ),
            (
                f"Handing over a job takes {span(labelled('submit'), ['tight, p50', 'paced, p50'])} of what it takes"
                " `ThreadPoolExecutor(1)` (medians, on four Pythons;"
            ),
            (
                "a program that imports us and does nothing ends after"
                f" {row('presence', 'exit, million instructions')['ratio']:.3f} times the instructions of one without"
            ),
            (
                "a turn of 1 or of 100 KiB is safe on disk in"
                f" {span(labelled('durable'), DURABLE)} of the time of a raw `INSERT` (medians;"
            ),
        ],
        "benchmarks/README.md": [
            *costs(),
            *pythons(),
            *real_server(),
            (
                f"It is {span(labelled('durable'), DURABLE)} times, depending on the disk at that moment, and"
                f" {best_peer()} times the best peer of each line."
            ),
        ],
    }


#: Numbers that nobody measured: versions, sizes of a task, limits that a document or Hermes sets.
TOLD = {
    "README.md": [
        "Python 3.9 or later",
        "(0.19.0)",
        "| 300 turns at exit | one request each, 10 s,",
    ],
    "docs/comparison.md": [],
}


@pytest.mark.parametrize("document", sentences())
def test_figures_are_those_of_the_results(document: str) -> None:
    """Each figure is what the result's file says, with its spread where it is a ratio."""
    text = (ROOT / document).read_text(encoding="utf-8")
    missing = [sentence for sentence in sentences()[document] if sentence not in text]
    assert not missing, f"{document} should say: " + "\n".join(missing)


@pytest.mark.parametrize("document", TOLD)
def test_no_figure_is_without_a_result(document: str) -> None:
    """Every other number outside code is a version, the size of a task, or a limit."""
    text = (ROOT / document).read_text(encoding="utf-8")
    if document == "docs/comparison.md":
        text = text[text.index("## Measured") :]  # above it are facts, and no figures
    for known in (*sentences()[document], *TOLD[document]):
        text = text.replace(known, "")
    text = re.sub(r"```.*?```|\]\([^)]*\)|`[^`\n]*`|<!--.*?-->", "", text, flags=re.DOTALL)
    left = [line for line in text.splitlines() if re.search(r"\d", line)]
    assert [line for line in left if not line.startswith("![")] == []
