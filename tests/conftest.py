"""Fixtures for all rooms."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from children import Child, Ended
from waiting import collect

# `python -m pytest` puts the folder of the sources in front of the standard library. Tests are
# about what is installed, as they are with `pytest`: the processes that they start see no other.
for place in sys.path[: sys.path.index(str(Path(os.__file__).parent))]:
    if Path(place).resolve() == Path(__file__).resolve().parent.parent:
        sys.path.remove(place)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Start a program as a `Child`: `start(program, *args, **environment)`."""
    children: list[Child] = []

    def start(program: str, *args: str, **variables: str) -> Child:
        folder = tmp_path / f"child{len(children)}"
        folder.mkdir()
        children.append(Child(folder, program, *args, **variables))
        return children[-1]

    yield start
    for child in children:
        child.close()


@pytest.fixture
def run(start: Any) -> Any:
    """Run a program to its end: `run(program, *args)` returns status, output and errors."""

    def run(program: str, *args: str, **variables: str) -> Ended:
        return start(program, *args, **variables).end()

    return run


@pytest.fixture
def own_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the test itself logs: failed jobs that earlier tests dropped are reported before.

    Collecting takes a while, so this is for tests that count what is logged.
    """
    collect()
    caplog.clear()
    return caplog
