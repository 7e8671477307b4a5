"""Writes the matrix in docs/hermes.md from docs/hermes.json: python docs/hermes.py

The results are those of `HERMES_MATRIX=../docs/hermes.json tox -e hermes -- -m soak
hermes/test_matrix.py`, and likewise of `hermes-020` and `hermes-022`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict, Optional

FOLDER = Path(__file__).parent
HOSTS = ("0.19.0", "0.20.1.2", "0.22.2.post1")
# What no run can show, by the reason.
MISSING = {
    "`plugins.isolation: host`": "came with 0.22",
    "after an update": "leaves plugins as they are",
}


def page() -> str:
    """The page with the matrix as the results say."""
    text = (FOLDER / "hermes.md").read_text(encoding="utf-8")
    results = json.loads((FOLDER / "hermes.json").read_text(encoding="utf-8"))
    return re.sub(
        r"(?s)(<!-- matrix -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{_table(results)}{found[2]}",
        text,
    )


def _table(results: Dict[str, Dict[str, Any]]) -> str:
    rows = [f"| | {' | '.join(HOSTS)} |", "|---" * (len(HOSTS) + 1) + "|"]
    for name, by_host in results.items():
        cells = [_cell(by_host.get(host)) or MISSING.get(name, "not run") for host in HOSTS]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*rows, ""])


def _cell(result: Optional[Dict[str, Any]]) -> str:
    if result is None:
        return ""
    later = f" ({result['later']} at the next start)" if result["later"] else ""
    turns = f"{result['given']} → {result['stored']}{later}" if result["given"] else "no turn"
    seconds = "" if result["seconds"] is None else f", {result['seconds']} s"
    return turns + seconds + (", noise" if result["noise"] else "")


if __name__ == "__main__":
    (FOLDER / "hermes.md").write_text(page(), encoding="utf-8")
