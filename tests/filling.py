"""Turns, and what makes documents and batches of them in an outbox."""

from __future__ import annotations

from typing import Any

from hindsight_exec.conversation import turns
from hindsight_exec.conversation.turns import Source, Turn
from hindsight_exec.outbox.schema import Batch
from hindsight_exec.outbox.store import Outbox

AT = 1_760_000_000.0

# A program that opens an outbox and has these helpers at hand.
OPEN = """\
import os, sys, threading, time
from pathlib import Path
from filling import batch_of, close_all, fill, source, turn
from hindsight_exec.outbox.store import Outbox

outbox = Outbox(Path(sys.argv[1]))
"""


def source(session: str = "s", bank: str = "b", *, url: str = "http://h", **values: Any) -> Source:
    return turns.source(url=url, credential="", bank=bank, session=session, **values)


def turn(number: int, words: str = "") -> Turn:
    message = {"role": "user", "content": f"turn {number}{words}"}
    return turns.turn([message], given_at=AT + number, index=number)


def documents_of(
    outbox: Outbox, number: int, each: int = 1
) -> list[tuple[list[int], str, float, bytes]]:
    """Documents of ``each`` turns that are held of a source, as `close_documents` takes them."""
    rows = outbox.held_turns(number, 1000)
    source = outbox.source(number)
    made = []
    for start in range(0, len(rows), each):
        part = rows[start : start + each]
        first = part[0][1]
        document_id = turns.document_id(source.session, first.given_at, first.payload)
        item = turns.document_item(source, document_id, [one for _, one in part])
        made.append(([row for row, _ in part], document_id, first.given_at, item))
    return made


def close_all(outbox: Outbox, number: int, each: int = 1) -> int:
    """Make documents of ``each`` held turns; returns their destination."""
    return outbox.close_documents(number, documents_of(outbox, number, each))


def batch_of(outbox: Outbox, destination: int, operation_id: str = "op") -> Batch:
    """A batch of all documents that are ready."""
    return outbox.make_batch(
        destination, [one for one, _ in outbox.ready(destination, 1000)], operation_id
    )


def fill(outbox: Outbox, count: int = 4, session: str = "s") -> int:
    """Documents of one turn each; returns their destination."""
    for number in range(count):
        held = outbox.put(source(session), turn(number))
    return close_all(outbox, held)
