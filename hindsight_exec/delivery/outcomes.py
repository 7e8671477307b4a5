"""Sends requests about batches and acts on their responses.

All methods but :meth:`Outcomes.cancel` run on the worker; only the requests
themselves run on the background loop.
"""

from __future__ import annotations

import logging
import time
import uuid
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Awaitable, Callable

from hindsight_exec.client.loop import background_loop
from hindsight_exec.errors import OutboxCorrupt, OutboxUnavailable, Rejected, ServerError
from hindsight_exec.executor.waiting import now

from .backlog import keeps_failing
from .progress import counted
from .schedule import LONGEST_RETRY, next_poll, next_retry

if TYPE_CHECKING:
    from concurrent.futures import Future

    from hindsight_exec.client.api import HindsightClient
    from hindsight_exec.outbox.schema import Batch

    from .backlog import Backlog
    from .progress import Progress
    from .servers import Server, Servers

    Request = Callable[[HindsightClient], Awaitable[Any]]
    Handler = Callable[["Exchange", Future[Any]], None]

_logger = logging.getLogger("hindsight_exec")

#: Seconds between polls while a thread waits for completion.
_WATCHED_POLL = 0.25
#: Characters of a server's message that are kept.
_DETAIL = 1000
#: Every so many failures a batch is halved, if the last was an HTTP 500: minutes
#: apart, as the pauses between them grow (`flush` shortens these).
_SPLIT_AFTER = 12
#: In the place of the number of polls: retry a failed operation instead.
_RETRY = -1


@dataclass
class Exchange:
    """A request about a batch, and its response."""

    server: Server
    backlog: Backlog
    batch: Batch
    polls: int = 0  # of the batch's operation, before this one

    def started(self, future: Future[Any]) -> None:
        self.server.lane.in_flight.add(future)
        self.backlog.in_flight[future] = self.batch

    def ended(self, future: Future[Any]) -> None:
        """May be called twice."""
        self.server.lane.in_flight.discard(future)
        self.backlog.in_flight.pop(future, None)
        self.backlog.sending.pop(future, None)


class Outcomes:
    """The requests in flight, and what their responses mean.

    Guarantees:
        A request stays in ``in_flight`` until its response has been acted upon.
        Whatever else fails meanwhile, its backlog is read anew from disk
        (``backlog.stale``), as the next process would do.

    Args:
        servers: Told of failures and successes.
        progress: Told what became of turns.
        notify: Tells the user of dead letters.
        wake: Wakes the worker; called on the loop's thread.
        postpone: Lets the other backlogs go before this one.
    """

    def __init__(
        self,
        *,
        servers: Servers,
        progress: Progress,
        notify: Callable[[str], None],
        wake: Callable[[], None],
        postpone: Callable[[Backlog], None],
    ) -> None:
        self._servers = servers
        self._progress = progress
        self._notify = notify
        self._wake = wake
        self._postpone = postpone
        self._disk_failed = False
        self.in_flight: dict[Future[Any], tuple[Handler, Exchange]] = {}
        self.abandoned = False

    def cancel(self) -> None:
        """Cancel the requests for good; their batches stay on disk. Safe from any thread."""
        self.abandoned = True
        self.cancel_requests()

    def cancel_requests(self) -> None:
        for future in list(self.in_flight):
            future.cancel()

    # --- requests and responses -------------------------------------------

    def _ask(self, exchange: Exchange, request: Request, handler: Handler) -> Future[Any]:
        """Run a request on the loop; ``handler`` is called with its future, on the worker."""
        lease = exchange.server.lease

        async def run() -> Any:
            assert lease is not None  # noqa: S101 - for the type: see Server.may_send
            return await lease.use(request)

        future = background_loop().run(run())
        # First: whatever strikes this thread next, it is woken for the response.
        future.add_done_callback(lambda _: self._wake())
        self.in_flight[future] = (handler, exchange)
        exchange.started(future)
        if self.abandoned:
            future.cancel()  # cancel() ran before the future was noted
        return future

    def take_responses(self) -> None:
        """Act on the responses that have arrived."""
        for future in [one for one in self.in_flight if one.done()]:
            handler, exchange = self.in_flight[future]
            backlog = exchange.backlog
            exchange.ended(future)
            try:
                if not backlog.broken:
                    handler(exchange, future)
            except OutboxCorrupt as error:
                self.broken(backlog, error)
            except OutboxUnavailable as error:
                self.disk_failed(error)
                exchange.server.lane.backoff.failed(now())
                if exchange.batch.accepted:
                    self._poll_again(exchange, 0)
                else:
                    backlog.send_again(exchange.batch)
            except BaseException as error:
                backlog.stale = True
                if not isinstance(error, Exception):
                    raise
                # Of this server's making, perhaps: it must not hold up the others.
                _logger.exception("A response could not be acted upon")
                exchange.server.lane.backoff.failed(now())
            finally:
                del self.in_flight[future]

    def broken(self, backlog: Backlog, error: OutboxCorrupt) -> None:
        """Have a damaged backlog set aside."""
        _logger.error("%s; it will be set aside and its readable turns delivered", error)
        backlog.broken = True
        self._wake()

    def disk_failed(self, error: OutboxUnavailable) -> None:
        """Warn once that the disk does not record what became of turns."""
        if not self._disk_failed:
            self._disk_failed = True
            _logger.warning("Turns on disk wait until the disk can be written again: %s", error)

    def _note(self, exchange: Exchange, error: str = "") -> None:
        try:
            exchange.backlog.outbox.note(exchange.batch, error)
        except OutboxCorrupt:
            raise
        except OutboxUnavailable as failure:
            # The next start sends the batch again: the same bytes under the
            # same id change nothing on a server that has them.
            self.disk_failed(failure)

    # --- sending ----------------------------------------------------------

    def send(self, server: Server, backlog: Backlog, batch: Batch) -> None:
        """Send a batch."""
        destination = backlog.destination(batch.destination)
        try:
            items = backlog.outbox.items(batch)
        except OutboxUnavailable:
            backlog.send_again(batch)
            raise
        future = self._ask(
            Exchange(server, backlog, batch),
            lambda client: client.retain(destination.bank, items, operation_id=batch.operation_id),
            lambda exchange, future: self._sent(exchange, future, len(items)),
        )
        backlog.sending[future] = destination

    def _sent(self, exchange: Exchange, future: Future[Any], items: int) -> None:
        server, backlog, batch = exchange.server, exchange.backlog, exchange.batch
        try:
            response = future.result()
        except CancelledError:
            backlog.send_again(batch)
        except Rejected as error:
            if error.status in (404, 405):
                # The URL is wrong, not the documents; the error names it. Perhaps
                # it is wrong for this bank only.
                batch.failures += 1
                backlog.send_again(batch)
                if keeps_failing(batch):
                    self._postpone(backlog)
                self._servers.failed(server, error)
            elif items > 1:
                self._split(backlog, batch)
            else:
                self._mark_dead(exchange, "rejected", str(error))
        except (TypeError, ValueError) as error:
            # Our own client refuses to send it, and will the next time.
            self._mark_dead(exchange, "rejected", str(error))
        except Exception as error:
            batch.failures += 1
            # Some document in it is the cause if the server has accepted others
            # since this one failed last, and perhaps if it has failed for long.
            is_cause = keeps_failing(batch) and server.accepted > batch.taken
            is_error = isinstance(error, ServerError) and error.status == 500
            batch.taken = server.accepted
            if items > 1 and (is_cause or (is_error and batch.failures % _SPLIT_AFTER == 0)):
                self._split(backlog, batch)
            else:
                backlog.send_again(batch)
            if keeps_failing(batch):
                self._postpone(backlog)
            self._servers.failed(server, error)
        else:
            server.accepted += 1
            # Servers before 0.8.6 ignore our id and return their own.
            operations = response.get("operation_ids") or [batch.operation_id]
            batch.operation = str(response.get("operation_id") or operations[0])
            batch.accepted = True
            self._note(exchange)
            self._servers.succeeded(server)
            self._poll_again(exchange, 0)
            self._progress.accepted(backlog.turns_of(batch), own=not backlog.adopted)
            if not self._progress.waiting:
                self._servers.all_accepted()

    def _split(self, backlog: Backlog, batch: Batch) -> None:
        halves = backlog.outbox.split(batch, (str(uuid.uuid4()), str(uuid.uuid4())))
        for half in halves:
            half.failures, half.taken = batch.failures, batch.taken
        backlog.send_again(*halves)

    def _mark_dead(self, exchange: Exchange, reason: str, detail: str) -> None:
        """Keep a batch that the server will never take as dead letters, and say so."""
        backlog, batch = exchange.backlog, exchange.batch
        turns = backlog.turns_of(batch)
        backlog.outbox.mark_dead(batch, reason, detail)
        total = counted(sum(count for _, count in turns))
        text = f"{total} kept as dead letters, {reason}: {detail}"
        _logger.error("%s. Run 'hindsight-exec dead list' to see them.", text)
        self._notify(text)
        # Last: it wakes threads that may close the engine next.
        own = not backlog.adopted
        self._progress.dead(turns, reason, detail, own=own, accepted=batch.accepted)

    # --- after acceptance -------------------------------------------------

    def poll(self, server: Server, backlog: Backlog, batch: Batch, polls: int) -> None:
        """Poll the operation of an accepted batch, or retry it if it has failed."""
        bank = backlog.destination(batch.destination).bank
        operation = batch.operation or batch.operation_id
        exchange = Exchange(server, backlog, batch, polls)
        if polls != _RETRY:
            self._ask(exchange, lambda client: client.operation(bank, operation), self._polled)
        elif batch.operation == batch.operation_id:
            self._ask(
                exchange, lambda client: client.retry_operation(bank, operation), self._retried
            )
        else:
            # A server that returned its own id is an old one (before 0.8.6),
            # whose retry may have no effect. Sent again, the batch runs anew.
            self._send_anew(exchange, "the operation failed")

    def _poll_again(self, exchange: Exchange, polls: int) -> None:
        wait = _WATCHED_POLL if self._progress.watchers else next_poll(polls)
        exchange.backlog.poll(exchange.batch, now() + wait, polls)

    def _result(self, exchange: Exchange, future: Future[Any]) -> Any:
        """Return the response; None if there is none and the poll was queued again.

        Raises:
            Rejected: The server does not know the operation.
        """
        try:
            response = future.result()
        except Rejected:
            raise
        except Exception as error:
            if not isinstance(error, CancelledError):
                self._servers.failed(exchange.server, error)
            exchange.backlog.poll(exchange.batch, now(), exchange.polls)
            return None
        self._servers.succeeded(exchange.server)
        return response

    def _polled(self, exchange: Exchange, future: Future[Any]) -> None:
        backlog, batch = exchange.backlog, exchange.batch
        try:
            response = self._result(exchange, future)
        except Rejected:
            response = {"status": "not_found"}  # an old server without this endpoint
        if response is None:
            return
        status = response.get("status")
        if status == "completed":
            self._complete(exchange)
        elif status in ("failed", "cancelled"):
            self._operation_failed(exchange, str(response.get("error_message") or status)[:_DETAIL])
        elif status == "not_found" and exchange.polls > 0:
            bank = backlog.destination(batch.destination).bank
            ids = backlog.outbox.document_ids(batch)
            self._ask(exchange, lambda client: _has_documents(client, bank, ids), self._looked_up)
        else:
            self._poll_again(exchange, exchange.polls + 1)

    def _operation_failed(self, exchange: Exchange, detail: str) -> None:
        backlog, batch = exchange.backlog, exchange.batch
        # An earlier process may have ended before its retry was due. The clock
        # may have been set back since.
        remaining = min(batch.retry_at - time.time(), LONGEST_RETRY)
        if remaining > 0:
            backlog.poll(batch, now() + remaining, _RETRY)
            return
        wait = next_retry(batch.retries)
        if wait is None:
            self._mark_dead(exchange, "failed", detail)
            return
        batch.retries += 1
        batch.retry_at = time.time() + wait
        self._note(exchange, detail)
        with self._progress.lock:
            self._progress.counters.last_error = detail
        backlog.poll(batch, now() + wait, _RETRY)

    def _retried(self, exchange: Exchange, future: Future[Any]) -> None:
        try:
            if self._result(exchange, future) is None:
                return
        except Rejected:
            pass  # 409: it is running already; otherwise the next poll shows
        self._poll_again(exchange, 0)

    def _looked_up(self, exchange: Exchange, future: Future[Any]) -> None:
        has_documents = self._result(exchange, future)
        if has_documents:
            self._complete(exchange)
        elif has_documents is not None:
            self._send_anew(exchange, "the server does not know the operation")

    def _send_anew(self, exchange: Exchange, reason: str) -> None:
        """Send a batch again under its own id: harmless, whatever the server has of it."""
        backlog, batch = exchange.backlog, exchange.batch
        batch.accepted = False
        self._note(exchange, reason)
        if not backlog.adopted:
            self._progress.forgotten(backlog.turns_of(batch))
        backlog.send_again(batch)
        # Wait as after a failure: the server may forget operations for ever.
        exchange.server.lane.backoff.failed(now())
        self._wake()

    def _complete(self, exchange: Exchange) -> None:
        backlog, batch = exchange.backlog, exchange.batch
        turns, document_ids = backlog.turns_of(batch), backlog.outbox.document_ids(batch)
        backlog.outbox.complete(batch)  # if the disk refuses, it is polled again
        self._progress.completed(turns, own=not backlog.adopted, document_ids=document_ids)


async def _has_documents(client: HindsightClient, bank: str, document_ids: list[str]) -> bool:
    """Whether the server has all documents of an operation that it does not know.

    Servers forget operations in time, and old ones never list them.
    """
    for document_id in document_ids:
        try:
            await client.document(bank, document_id)
        except Rejected:
            return False
    return True
