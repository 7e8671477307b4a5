"""Fixtures of this room: an outbox, and programs that open one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import filling
import pytest

from hindsight_exec.outbox.store import Outbox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "o.db"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    with closing(Outbox(path)) as outbox:
        yield outbox


@pytest.fixture
def start(start: Any) -> Any:
    """As everywhere, for programs that import `filling`."""

    def start_here(program: str, *args: str, **variables: str) -> Any:
        return start(program, *args, PYTHONPATH=str(Path(filling.__file__).parent), **variables)

    return start_here
