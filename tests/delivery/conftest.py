"""Fixtures of this room: a server, a state directory, and writers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
from serving import Serving, ServingProcess

from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.settings.config import Settings


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def server() -> Iterator[Serving]:
    serving = Serving()
    yield serving
    serving.close()


@pytest.fixture
def server_process(tmp_path: Path) -> Iterator[ServingProcess]:
    """For tests that kill it, or that fork: a thread would be inside its own SQLite then."""
    serving = ServingProcess(tmp_path / "data")
    serving.start()
    yield serving
    serving.kill()


@pytest.fixture
def write(state: Path) -> Iterator[Any]:
    """Make writers that are closed at the end: `write(url, folder, **settings)`."""
    writers: list[RetainWriter] = []

    def write(
        url: str, folder: Optional[Path] = None, *, on_trouble: Any = None, **settings: Any
    ) -> RetainWriter:
        settings = {"bank_id": "b", "drain_timeout": 30.0, **settings}
        writers.append(
            RetainWriter(
                Settings(api_url=url, **settings), state=folder or state, on_trouble=on_trouble
            )
        )
        return writers[-1]

    yield write
    for writer in writers:
        writer.close(0)
