"""What the writers of one state directory share in a process.

The process's own outbox, the worker that delivers it, and the files that dead
processes left. :mod:`.registry` makes an engine for the first writer of a
folder and closes it with the last, or at exit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from itertools import chain
from typing import TYPE_CHECKING, Callable, Optional, TypeVar

from hindsight_exec.client.loop import background_loop
from hindsight_exec.client.registry import Lease, lease
from hindsight_exec.client.registry import is_inside as is_inside_client
from hindsight_exec.client.session import import_aiohttp
from hindsight_exec.errors import ExecutorClosed
from hindsight_exec.executor import DrainingExecutor
from hindsight_exec.executor.locks import holds
from hindsight_exec.executor.waiting import now
from hindsight_exec.executor.weak import WeakObjects
from hindsight_exec.outbox.forks import is_inside as is_inside_outbox
from hindsight_exec.outbox.store import Outbox
from hindsight_exec.settings.credentials import resolve_credential

from .files import Files
from .intake import Intake
from .progress import counted
from .worker import Delivery

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path
    from typing import Protocol

    from hindsight_exec.conversation.turns import Source
    from hindsight_exec.outbox import spool
    from hindsight_exec.settings.config import Settings

    from .backlog import Backlog

    class Handle(Protocol):
        """A writer, as the engine knows it."""

        settings: Settings
        folder: Path
        on_trouble: Optional[Callable[[str], None]]


T = TypeVar("T")

_logger = logging.getLogger("hindsight_exec")

#: Seconds that closing the sessions may take.
_CLOSE_SESSIONS = 2.0
#: Seconds to wait for a worker that reads a file.
_SETTLE = 1.0


class Engine:
    """The outbox, the worker and the adopted files of one state directory.

    Safe from any thread. ``settings`` are those of the folder's first writer:
    they bound the exit and choose how durable the file is.

    ``lock``, the lock of ``delivery.progress``, guards what is said of it here,
    in the files, the intake and the delivery.
    """

    def __init__(
        self, folder: Path, settings: Settings, *, on_late: Callable[[Engine], None]
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.pid = os.getpid()
        # Weak: some hosts drop writers without closing them.
        self.handles = WeakObjects()
        self.listeners = WeakObjects()
        self.closed = False
        self.delivery = Delivery(
            lease=self._lease,
            key=self._key,
            adopt=self._adopt,
            prepare=import_aiohttp,
            retire=self._retire,
            notify=self._notify,
            take_deferred=self._take_deferred,
            save=self._save,
            seconds_to_pause=self._seconds_to_pause,
        )
        self.lock = self.delivery.progress.lock  # guards the handles, `closed`, and the last two
        self.executor = DrainingExecutor(
            thread_name_prefix="hindsight-writer",
            drain_timeout=settings.drain_timeout,
            on_closing=self._drain,
            on_deadline=self.delivery.cancel,
        )
        self._work = self.executor._work
        with contextlib.suppress(ExecutorClosed):  # exit has passed
            # Exit calls `_drain` even if no turn has come so far: the first
            # may be on its way.
            self._work.register.add(self._work)
        self.files = Files(
            folder,
            settings.durability,
            self.delivery.progress,
            key=self._key,
            own=self._own_backlog,
        )
        self.intake = Intake(
            self.files,
            self.delivery,
            notify=self._notify,
            wake=self.wake,
            on_late=lambda: on_late(self),
        )
        self._keys: dict[tuple[str, str], str] = {}
        self._waking: set[int] = set()  # threads that may be about to submit a run
        self._runs = 0  # jobs of the executor that have not ended
        self._abandoned: dict[Backlog, Optional[spool.Claim]] = {}  # for the last run to close

    def add(self, handle: Handle) -> None:
        settings = handle.settings
        with self.lock:
            self.handles.add(handle)
            self.listeners.add(handle)
            if settings.api_key:
                self._keys[settings.credential, settings.api_url] = settings.api_key

    def wake(self) -> None:
        """Have the worker look at what there is to do."""
        thread = threading.get_ident()
        is_nested = thread in self._waking  # in a finalizer
        self._waking.add(thread)
        try:
            # Ctrl-C may have struck an earlier call between the two steps.
            if self.delivery.start() or not self.executor.pending:
                self._submit_run()
        except RuntimeError as error:
            _logger.debug("Turns are kept, but not delivered now: %s", error)
        finally:
            if not is_nested:
                self._waking.discard(thread)

    def _submit_run(self) -> None:
        with self.lock:
            self._runs += 1
        try:
            run = self.executor.submit(self.delivery.run)
        except BaseException:
            self._run_ended(None)
            raise
        run.add_done_callback(self._run_ended)
        # Its threads start here, on the caller's: 3.12.0 to 3.12.2 can start
        # none at exit.
        background_loop().start()

    def _run_ended(self, run: Optional[Future[None]]) -> None:
        """A run has ended, perhaps after settle(), which then left the files to it."""
        was_interrupted = run is not None and not run.cancelled() and run.exception() is not None
        with self.lock:
            self._runs -= 1
            abandoned: dict[Backlog, Optional[spool.Claim]] = {}
            if not self._runs:
                abandoned, self._abandoned = self._abandoned, abandoned
        self.files.close(abandoned)
        if was_interrupted:  # SystemExit struck the worker outside of its loop
            try:
                self._submit_run()
                return
            except RuntimeError:
                pass
        if run is None or run.cancelled() or was_interrupted:
            self.delivery.ended()

    # --- what the delivery asks for ---------------------------------------

    def _lease(self, url: str, key: str) -> Lease:
        with contextlib.suppress(ImportError):  # each request reports it
            import_aiohttp()  # on the worker, not on the loop
        return lease(url, key, self.settings.timeout)

    def _key(self, credential: str, url: str) -> Optional[str]:
        key = resolve_credential(credential, url, self.folder)
        return key or self._keys.get((credential, url)) or key

    def _adopt(self, room: int) -> list[Backlog]:
        return self.files.adopt(room)

    def _retire(self, backlog: Backlog) -> Optional[Backlog]:
        self.intake.drop(backlog)
        return self.files.retire(backlog)

    def _save(self) -> bool:
        return self.intake.save()

    def _take_deferred(self) -> None:
        self.intake.take_deferred()
        self.intake.tell()

    def _seconds_to_pause(self) -> float:
        return self.intake.seconds_to_pause()

    def _own_backlog(self) -> Backlog:
        return self.intake.own()

    def _notify(self, text: str) -> None:
        for listener in self.listeners.all():
            if listener.on_trouble is not None:
                try:
                    listener.on_trouble(text)
                except BaseException:  # SystemExit is the caller's, not the worker's
                    _logger.exception("on_trouble failed")

    # --- waiting ----------------------------------------------------------

    def forbid_wait(self, method: str) -> None:
        """Raise RuntimeError on a thread that the delivery may have to wait for."""
        delivers = threading.current_thread() is self.delivery.thread and self.delivery.running
        wakes = threading.get_ident() in self._waking
        held = holds(self.lock) or holds(self.files.opening)
        is_inside = held or is_inside_client() or is_inside_outbox()
        if delivers or wakes or is_inside:
            raise RuntimeError(
                f"{method}() would wait for itself: it was called on a thread that delivers, "
                "or by a finalizer or signal handler that interrupted one of our methods"
            )

    def flush(
        self,
        sources: set[Source],
        target: tuple[str, str],
        timeout: Optional[float],
        *,
        completed: bool,
        patient: bool,
    ) -> bool:
        """Send the held turns of the sources, and wait until they have arrived; whether they did.

        Args:
            sources: What to wait for.
            target: URL and credential of their server.
            timeout: Seconds to wait at most; None for no bound.
            completed: Wait until the server has processed them, too.
            patient: Wait on when the server has failed.
        """
        delivery, progress = self.delivery, self.delivery.progress
        left = progress.unfinished if completed else progress.waiting
        failures = progress.failures.get(target, 0)

        def settled() -> bool:
            return not any(source in left for source in sources)

        def gave_up() -> bool:
            return delivery.servers.paused(target) or progress.failures.get(target, 0) > failures

        def over() -> bool:
            return settled() or not delivery.running or (not patient and gave_up())

        if settled():
            return True
        if completed:
            delivery.watch(True)
        try:
            delivery.end(sources.__contains__)
            delivery.servers.hurry()
            self.wake()
            progress.wait_for(over, timeout)
            return settled()
        finally:
            if completed:
                delivery.watch(False)

    def deliver_all(self, timeout: float, look: Optional[Callable[[int], object]]) -> bool:
        """See `RetainWriter.deliver_all`."""
        self.forbid_wait("deliver_all")
        delivery = self.delivery
        deadline = now() + timeout
        delivery.end()
        delivery.servers.hurry()
        self.wake()
        while True:
            delivery.progress.wait_for_change(min(0.2, max(0.0, deadline - now())))
            running = delivery.running
            if look is not None:
                summaries = (backlog.ask(Outbox.summary) for backlog in self.open_backlogs())
                look(sum(summary.waiting for summary in chain.from_iterable(summaries)))
            # In this order: a file that is opened in between is waited for.
            if not self.files.unopened() and not self._is_waiting():
                return not self.files.failed()
            if not running or now() >= deadline:
                return False

    def _is_waiting(self) -> bool:
        """Whether any turn waits in these files, or may: a file is being opened."""
        with self.lock:
            if self.delivery.adopting:
                return True
            backlogs = self.open_backlogs()
        return any(next(backlog.ask(Outbox.is_waiting), True) for backlog in backlogs)

    def open_backlogs(self) -> list[Backlog]:
        with self.lock:
            return list(self.delivery.backlogs)

    # --- closing ----------------------------------------------------------

    def _drain(self) -> None:
        """Exit begins: deliver what there is, and what other threads still give."""
        self.delivery.close(patient=True)
        if self.intake.seconds_to_pause():
            self.wake()

    def shut(self, timeout: float) -> None:
        """Deliver what can be delivered within ``timeout`` seconds, and close everything."""
        self.delivery.close()
        self.executor.shutdown(timeout=timeout)
        self._work.register.remove(self._work)  # if it never had a worker
        self.delivery.servers.release(_CLOSE_SESSIONS)
        self.settle()

    def settle(self) -> None:
        """Close the files, remove the empty ones, say what is left. Idempotent."""
        if not self.lock.acquire(timeout=_SETTLE):
            return  # the worker hangs inside a file: it keeps all of them
        try:
            if self.closed:
                return
            self.closed = True
            self.intake.close()
            if self._runs and self.executor.pending:
                # The worker hangs, perhaps inside a file: leave all of them to it.
                self._abandoned = self.files.take_claims()
                _warn_of_waiting(sum(self.delivery.progress.waiting.values()))
                return
        finally:
            self.lock.release()
        self.intake.take_deferred()
        self.intake.tell()
        on_disk, in_memory = self._close_files()
        _warn_of_waiting(on_disk)
        if in_memory:
            _logger.error(
                "%s lost: kept in memory only, and not accepted in time", counted(in_memory)
            )

    def _close_files(self) -> tuple[int, int]:
        """Close the files; return how many turns are left on disk and in memory."""
        with self.delivery.progress.lock:
            backlogs, self.delivery.backlogs = self.delivery.backlogs, []
        left = [0, 0]
        for backlog in backlogs:
            for summary in backlog.ask(Outbox.summary):
                left[not self.files.is_on_disk(backlog)] += summary.waiting
        claims = self.files.take_claims()
        self.files.close({one: claims.get(one) for one in backlogs})
        return left[0], left[1]

    def release_late(self) -> None:
        """Give the file of turns that were given after closing to another engine."""
        self.intake.close()
        self._close_files()


def _warn_of_waiting(turns: int) -> None:
    if turns:
        _logger.warning(
            "%s %s saved on disk and will be sent at the next start, or by 'hindsight-exec flush'",
            counted(turns),
            "is" if turns == 1 else "are",
        )
