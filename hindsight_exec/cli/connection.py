"""The server of `retain` and `import`: ask it before anything is accepted, and wait for it after."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Awaitable, Callable, TypeVar

from hindsight_exec.client.loop import background_loop
from hindsight_exec.client.registry import lease
from hindsight_exec.errors import ConfigError, OutboxFull, Rejected, Starting
from hindsight_exec.executor.waiting import now
from hindsight_exec.hermes import embedded

from .console import KEY_REFUSED, OK, UNDONE, UNREACHABLE, Progress, note, without_warnings
from .interrupts import check

if TYPE_CHECKING:
    from hindsight_exec.client.api import HindsightClient
    from hindsight_exec.delivery.writer import RetainWriter
    from hindsight_exec.settings.config import Settings

T = TypeVar("T")

#: Seconds between looks at how far the delivery is.
LOOK = 0.2
# Seconds that closing a client may take.
_CLOSE = 2.0


def ask(settings: Settings, call: Callable[[HindsightClient], Awaitable[T]]) -> T:
    """``call(client)``, with the client of the process, which also finds Hindsight's own daemon."""
    held = lease(settings.api_url, settings.api_key or "", settings.timeout)
    try:
        return background_loop().run(held.use(call)).result()
    finally:
        held.release(_CLOSE)


def probe(settings: Settings, timeout: float) -> None:
    """Find out before anything is accepted whether the server answers and lets us in.

    Starts Hindsight's own daemon where it is configured, and waits up to ``timeout`` seconds.

    Raises:
        ConfigError: There can be no daemon here.
        ServerError: The server does not answer, or refuses.
    """

    async def look(client: HindsightClient) -> None:
        await client.version()
        with contextlib.suppress(Rejected):  # the first retain makes the bank
            await client.documents(settings.bank_id, limit=1)

    problem = embedded.missing(settings) if settings.mode == "local_embedded" else ""
    if problem:
        raise ConfigError(problem)
    deadline = now() + timeout
    noted = False
    while True:
        try:
            with without_warnings(errors=True):
                return ask(settings, look)
        except Starting as error:
            if now() >= deadline:
                raise
            if not noted:
                note("Hindsight's daemon is starting; the first time takes minutes")
            noted = True
            time.sleep(error.retry_after or LOOK)


def put_patiently(writer: RetainWriter, past: Any, **about: Any) -> None:
    """``writer.put_conversation``, which waits while the outbox is full, and ends by a signal."""
    while True:
        check()
        try:
            return writer.put_conversation(past, **about)
        except OutboxFull:
            writer.flush(LOOK)  # the server takes more than the disk does


def until_stored(
    writer: RetainWriter, given: int, timeout: float, progress: Progress, before: int = 0
) -> bool:
    """Wait until the server has all turns, or nothing has moved for ``timeout`` seconds.

    ``progress`` adds those that were stored ``before`` to the ``given`` ones.
    """
    done: list[bool] = []
    waiter = threading.Thread(target=lambda: done.append(writer.flush(completed=True)), daemon=True)
    waiter.start()
    settled, moved = -1, now()
    while waiter.is_alive():
        waiter.join(LOOK)
        check()
        counters = writer.counters()
        now_settled = counters.accepted + counters.completed + counters.dead
        if now_settled != settled:
            settled, moved = now_settled, now()
        if now() - moved > timeout or writer.paused:
            return False
        progress.update(before + counters.own_completed, before + given, counters.last_error)
    return done == [True]


def outcome(*, refused: bool, arrived: bool, complete: bool) -> int:
    """The exit status of a command that stores turns."""
    if refused:
        return KEY_REFUSED
    if not arrived:
        return UNREACHABLE
    return OK if complete else UNDONE
