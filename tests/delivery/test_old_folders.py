"""State folders that older code wrote are delivered."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hindsight.server import eventually
from serving import Serving, documents, stored, texts

from hindsight_exec.outbox.schema import VERSION
from hindsight_exec.outbox.store import Outbox

ODD = '"quoted", \\ and\n\tü🎈 '


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_an_old_folder(server: Serving, state: Path, write: Any, version: int) -> None:
    """Held turns, documents, and batches under way or accepted arrive once; dead letters stay."""
    state.mkdir(mode=0o700)
    path = state / "0199c82c-c000-7000-a773-9b30bd581c89.db"
    script = Path(__file__).with_name(f"outbox-v{version}.sql").read_text()
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script.replace("http://server", server.url))
    path.chmod(0o600)
    with closing(Outbox(path, readonly=True)) as outbox:
        before = outbox.summary()
    assert (before.held, before.queued, before.accepted, before.dead) == (3, 4, 2, 2)
    writer = write(server.url)

    def delivered() -> bool:
        with closing(Outbox(path, readonly=True)) as outbox:
            summary = outbox.summary()
        return not (summary.waiting or summary.accepted)

    assert writer.deliver_all(60)
    eventually(delivered, seconds=120)
    assert writer.close()
    held = [one for n in (8, 9, 10) for one in texts([n], ODD * (60 if n == 9 else 1))]
    assert stored(server.url) == {
        "accepted": texts([2, 3]),
        "under way": texts([4, 5]),
        "closed": texts([6, 7]),
        "held": held,
    }
    (closed,) = {
        (*one["tags"],) for one in documents(server.url) if one["id"].startswith("closed/")
    }
    assert set(closed) == {"t", "session:closed"}
    with closing(Outbox(path)) as outbox:
        assert outbox.summary().dead_by_reason == (("rejected", 2),)
        assert outbox.requeue() == 2
