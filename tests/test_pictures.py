"""The charts are what their program draws, and can be read in any font: a browser measures them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = [*sorted(RESULTS.glob("*.svg")), ROOT / "docs" / "gateway.svg"]
# From narrow to wide: those of Windows and macOS have the widths of the first and of the last.
FONTS = ("Liberation Sans", "Noto Sans", "DejaVu Sans")

#: Lists the texts of each picture that leave it, or that touch another text or a bar.
MEASURE = """
const found = [];
for (const section of document.querySelectorAll("section")) {
  const svg = section.querySelector("svg"), whole = svg.viewBox.baseVal;
  const texts = [...svg.querySelectorAll("text")].map(one => [one.textContent, one.getBBox()]);
  const bars = [...svg.querySelectorAll("rect:not(.paper)")].map(one => ["a bar", one.getBBox()]);
  const touch = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width
                       && a.y < b.y + b.height && b.y < a.y + a.height;
  texts.forEach(([text, box], number) => {
    if (box.x < 0 || box.y < 0 || box.x + box.width > whole.width || box.y + box.height > whole.height)
      found.push(`${section.id}: '${text}' leaves the picture`);
    for (const [other, there] of [...texts.slice(number + 1), ...bars])
      if (touch(box, there)) found.push(`${section.id}: '${text}' touches '${other}'`);
  });
}
document.title = "measured " + document.querySelectorAll("text").length;
document.body.textContent = JSON.stringify(found);
"""

pytestmark = pytest.mark.skipif(
    not RESULTS.is_dir(), reason="the benchmarks are not beside the tests"
)


def test_the_pictures_are_current(tmp_path: Path) -> None:
    """Each is what `python -m benchmarks.pictures` draws from the results, and there is no other."""
    subprocess.run(
        [sys.executable, "-m", "benchmarks.pictures", str(tmp_path)], cwd=ROOT, check=True
    )
    drawn = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert len(drawn) >= 20
    assert drawn == {path.name: path.read_text(encoding="utf-8") for path in RESULTS.glob("*.svg")}


def test_every_picture_is_shown() -> None:
    """The page of the benchmarks shows each."""
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^!\[.+\]\(results/(.+)\)$", page, re.MULTILINE)
    assert sorted(shown) == sorted(path.name for path in RESULTS.glob("*.svg"))


def test_every_line_of_a_result_is_drawn() -> None:
    """No figure is left out of the pictures, and none has more than four panels."""
    program = (
        "import json; from benchmarks.pictures import PICTURES\n"
        "print(json.dumps({name: [[[*panel.lines] for panel in picture.panels]"
        " for picture in pictures] for name, pictures in PICTURES.items()}))"
    )
    printed = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)
    for name, pictures in json.loads(printed).items():
        result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        drawn = [line for panels in pictures for lines in panels for line in lines]
        assert sorted(drawn) == sorted({row["line"] for row in result["rows"]})
        assert max(map(len, pictures)) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("font", FONTS)
def test_no_text_overlaps(font: str, tmp_path: Path) -> None:
    """In a browser, no text leaves its picture, and none touches another or a bar."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"no browser to measure with: none of {', '.join(names)} is installed")
    sections = [
        f'<section id="{path.stem}">{path.read_text(encoding="utf-8")}</section>'
        for path in PICTURES
    ]
    page = tmp_path / "page.html"
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><body>{"".join(sections)}'
        f'<style>text {{ font-family: "{font}" !important }}</style><script>{MEASURE}</script>',
        encoding="utf-8",
    )
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    shown = subprocess.run(
        [browser, *options, "--dump-dom", page.as_uri()],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        timeout=100,
        check=True,
    ).stdout
    measured = re.search(r"<title>measured (\d+)</title>", shown)
    assert measured is not None
    assert int(measured[1]) > 500
    body = re.search(r"<body>(.*)</body>", shown, re.DOTALL)
    assert body is not None
    assert json.loads(body[1]) == []
