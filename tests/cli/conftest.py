"""Fixtures of the command line's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator

import pytest
from running import Cli
from serving import Serving

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    (tmp_path / "home").mkdir()
    cli = Cli(tmp_path)
    yield cli
    cli.close()


@pytest.fixture
def server() -> Iterator[Serving]:
    serving = Serving()
    yield serving
    serving.close()
