"""A gateway that lives long: memory, threads and descriptors stay flat, and every turn arrives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from html import escape
from pathlib import Path

import pytest
from children import Process
from serving import ServingProcess, stored

from .recording import configure

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self"),
]

# Where the plot goes, for who wants to keep it; read before the fixtures clean the environment.
PLOTS = os.environ.get("HINDSIGHT_EXEC_PLOTS")
CHATS, STEPS, SAMPLES = 300, 40_000, 200
PLOTTED = {"memory": "resident memory, MB", "threads": "threads", "descriptors": "open descriptors"}


def test_an_hour_in_fast_motion(home: Path, tmp_path: Path) -> None:
    """Thousands of providers are made, used, switched and dropped, the server is killed and comes
    back: nothing grows, nothing is lost."""
    server = ServingProcess(tmp_path / "data")
    server.start()
    configure(home, api_url=server.url, bank_id="b", retain_idle_seconds=1, drain_timeout=60)
    program = [sys.executable, str(Path(__file__).with_name("gateway_life.py")), str(home)]
    samples = []
    kills = 0
    try:
        with Process(
            [*program, str(CHATS), str(STEPS), str(SAMPLES)], stdout=subprocess.PIPE, text=True
        ) as gateway:
            for line in gateway.stdout:
                samples.append(json.loads(line))
                if len(samples) % 40 == 10:
                    server.kill()
                    kills += 1
                elif len(samples) % 40 == 20:
                    server.start()
        turns = samples.pop()["turns"]
        # Once more: what the last provider could not deliver in its time.
        flush = [sys.executable, "-m", "hindsight_exec", "flush", "--timeout", "600"]
        folder = home / "hindsight" / "outbox"
        subprocess.run([*flush, "--state", str(folder)], check=True, timeout=700)
        deadline = time.monotonic() + 120
        while len(numbers := numbers_stored(server.url)) < turns and time.monotonic() < deadline:
            time.sleep(0.5)  # the server still processes what it has accepted
    finally:
        server.kill()
    assert numbers == list(range(turns))
    plots = Path(PLOTS or tmp_path)
    plots.mkdir(parents=True, exist_ok=True)
    title = (
        f"A gateway: {spaced(samples[-1]['made'])} sessions, {spaced(turns)} turns,"
        f" its server killed {kills} times"
    )
    (plots / "gateway.svg").write_text(drawn(title, samples), encoding="utf-8")

    # The first quarter fills caches; from then on there is no more than there was.
    quarter = len(samples) // 4
    for name, more in (("memory", 8), ("threads", 2), ("descriptors", 10)):
        early = max(sample[name] for sample in samples[quarter : 2 * quarter])
        late = max(sample[name] for sample in samples[-quarter:])
        assert late <= early + more, name
    ours = max(sample["threads"] for sample in samples)
    assert ours <= 1 + 4 + 1  # the main one, ours, and one that is being told of a recall


def numbers_stored(url: str) -> list[int]:
    """The turns that the server has, each as often as it has it."""
    texts = [text for texts in stored(url).values() for text in texts]
    found = (re.match(r"User: turn (\d+)", text) for text in texts)
    return sorted(int(one[1]) for one in found if one)


STYLE = """<style>
text { fill: #212529; font: 12px system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif }
.title { font-size: 15px; font-weight: 600 } .head { font-weight: 600 } .faint { fill: #6c757d }
.paper { fill: #fff } .grid { stroke: #dee2e6 }
.line { stroke: #0b7285; fill: none; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
text { fill: #e9ecef } .faint { fill: #adb5bd } .paper { fill: #16191d } .grid { stroke: #343a40 }
.line { stroke: #22b8cf }
}
</style>"""


def drawn(title: str, samples: list[dict[str, float]], steps: int = STEPS) -> str:
    """A panel for each figure, over the steps."""
    width, height, left, right = 820, 110, 60, 50
    across = width - left - right
    whole = 50 + len(PLOTTED) * (height + 54)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {whole}" width="{width}">',
        STYLE,
        '<rect class="paper" width="100%" height="100%"/>',
        f'<text class="title" x="{left}" y="24">{escape(title)}</text>',
    ]
    for number, (name, label) in enumerate(PLOTTED.items()):
        top = 58 + number * (height + 54)
        most = max(sample[name] for sample in samples) * 1.1
        points = " ".join(
            f"{left + across * index / (len(samples) - 1):.1f},"
            f"{top + height - height * sample[name] / most:.1f}"
            for index, sample in enumerate(samples)
        )
        parts += [
            f'<text class="head" x="{left}" y="{top - 8}">{escape(label)}</text>',
            f'<text class="faint" x="{left - 6}" y="{top + 8}" text-anchor="end">{most:.0f}</text>',
            f'<text class="faint" x="{left - 6}" y="{top + height}" text-anchor="end">0</text>',
        ]
        for part in range(5):
            x, reached = left + across * part // 4, spaced(steps * part // 4)
            text = f"{reached} steps" if part == 4 else reached
            parts += [
                f'<path class="grid" d="M{x} {top}v{height + 4}"/>',
                f'<text class="faint" x="{x}" y="{top + height + 17}" text-anchor="middle">{text}</text>',
            ]
        parts += [
            f'<path class="grid" d="M{left} {top + height}h{across}"/>',
            f'<polyline class="line" points="{points}"/>',
        ]
    return "\n".join([*parts, "</svg>\n"])


def spaced(number: float) -> str:
    """Thousands apart, by a space that does not break."""
    return f"{number:,.0f}".replace(",", "\u00a0")
