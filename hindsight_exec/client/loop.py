"""The background event loop of the process, and its resolver pool.

One loop for all, on a daemon thread: recalls of many chats run beside a send,
and only a loop that runs sees that a server has closed a connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
import threading
import weakref
from typing import TYPE_CHECKING, Any, Callable

from hindsight_exec.errors import ExecutorClosed
from hindsight_exec.executor import CLOSE, DRAIN, SERVE, DrainingExecutor, call_at_exit

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Awaitable, Coroutine, Sequence
    from typing import TypeVar

    from typing_extensions import ParamSpec

    P = ParamSpec("P")
    T = TypeVar("T")
    Closer = Callable[[], Awaitable[object]]

__all__ = ["BackgroundLoop", "background_loop"]

_logger = logging.getLogger("hindsight_exec")

_RESOLVERS = 2  # lookups at once: one name may hang and delay no other
_LOOKUP_AT_EXIT = 0.5  # seconds; by then nobody waits for a name any more
_CLOSE_TIMEOUT = 2.0  # seconds for tasks and closers together


class BackgroundLoop:
    """An asyncio loop on a daemon thread of its own, for the whole process.

    At exit, after the executors have drained, its tasks are cancelled, its
    closers awaited, and it is closed, within about 2 seconds. If its thread
    ends before that, the next use starts another. In a forked child the same
    object starts afresh: a new loop, no closers; the parent's loop is kept
    and not touched. All methods are safe from any thread.
    """

    def __init__(self) -> None:
        # Guards all that follows; nothing that waits is done under it.
        self._lock = threading.Lock()
        self._run: _Run | None = None
        self._closers: list[Closer] = []
        self._exit_known = False
        self._over = False
        _all.add(self)

    def start(self) -> None:
        """Start the loop's thread and the resolver pool, if they do not run.

        They are started by the calling thread, which should be one of the
        program: Python 3.12.0 to 3.12.2 can start no thread at exit.

        Raises:
            ExecutorClosed: The process is exiting, and the loop is closed.
            RuntimeError: The system can start no thread.
        """
        with self._lock:
            self._running()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the loop, started if need be; return its future.

        It runs in the caller's context. Cancelling the future cancels it; so
        does exit. Waiting for the future on the loop's own thread deadlocks.

        Raises:
            ExecutorClosed, RuntimeError: As `start`. The coroutine is closed.
        """
        try:
            with self._lock:
                return asyncio.run_coroutine_threadsafe(coroutine, self._running().loop)
        except BaseException:
            coroutine.close()
            raise

    def add_closer(self, closer: Closer) -> None:
        """Have ``await closer()`` run on the loop before it closes.

        What it raises is logged at level DEBUG.
        """
        with self._lock:
            self._closers.append(closer)

    def remove_closer(self, closer: Closer) -> None:
        """Forget a closer. One that is not there is none, too."""
        with self._lock:
            if closer in self._closers:
                self._closers.remove(closer)

    def __repr__(self) -> str:
        run = self._run
        state = "closed" if self._over else "running" if run and not run.dead else "idle"
        return f"<{type(self).__name__} {state}>"

    def _running(self) -> _Run:
        """The loop as it runs now. Called with the lock held."""
        if self._over:
            raise ExecutorClosed("cannot schedule new futures after interpreter shutdown")
        if self._run is None or self._run.dead:
            self._run = _Run(self)
            if not self._exit_known:
                self._exit_known = True
                call_at_exit(self._hush, DRAIN)
                call_at_exit(self._close_at_exit, CLOSE)
        return self._run

    def _ended(self, run: _Run) -> list[Closer]:
        """Note that a loop takes no more coroutines; return the closers."""
        with self._lock:
            run.dead = True
            return list(self._closers)

    def _hush(self) -> None:
        # Nobody waits for a coroutine any more, and lookups will be refused:
        # what fails from here on is no news.
        if self._run is not None:
            self._run.loop.set_exception_handler(_quiet)

    def _close_at_exit(self) -> None:
        with self._lock:
            self._over = True
            run = self._run
        if run is not None and not run.dead:
            run.stop()

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        if self._run is not None:
            # The frames of a thread that was not forked are never freed, and
            # this one's refer to `self._run`: kept by it, the parent's clients
            # are not finalized either. A connection of theirs that is, with
            # TLS on 3.9 and 3.10, writes its farewell to the parent's socket.
            self._run.inherited = self._closers
        self._run = None
        self._closers = []
        self._exit_known = False


class _Run:
    """One loop and its thread, from start to end."""

    def __init__(self, owner: BackgroundLoop) -> None:
        self.owner = owner
        self.dead = False  # guarded by the owner's lock
        self.inherited: Sequence[Closer] = ()
        self.ended = threading.Event()
        # With epoll, a forked child that merely exits removes the parent's
        # sockets from the epoll set that both share, and the parent's requests
        # hang. poll has no state in the kernel. Windows has neither.
        poll = getattr(selectors, "PollSelector", None)
        self.loop = asyncio.SelectorEventLoop(poll() if poll else None)
        self.resolvers = _ResolverPool()
        self.loop.set_default_executor(self.resolvers)
        try:
            self.resolvers.warm()
            threading.Thread(target=self.main, name="hindsight-loop", daemon=True).start()
        except BaseException:
            self.loop.close()  # the resolvers, too
            raise

    def main(self) -> None:
        loop = self.loop
        try:
            loop.run_forever()
        except BaseException:
            # SystemExit and KeyboardInterrupt of a task end up here.
            _logger.exception("The background loop ended; the next use starts another")
        # From here on nothing is submitted; what was is cancelled, not lost.
        closers = self.owner._ended(self)
        loop.set_exception_handler(_quiet)
        try:
            loop.run_until_complete(_finish(closers))
            loop.close()
        except BaseException:
            _logger.debug("The background loop did not close", exc_info=True)
        self.ended.set()

    def stop(self) -> None:
        """Have the loop end, and wait for that."""
        try:
            self.loop.call_soon_threadsafe(self.loop.stop)
        except RuntimeError:
            return  # closed meanwhile
        # Longer than the bound inside: a callback that blocks the loop cannot
        # be ended at all, and its daemon thread is left to itself.
        if not self.ended.wait(_CLOSE_TIMEOUT + 0.5):
            _logger.debug("The background loop did not close in time")


class _ResolverPool(DrainingExecutor):
    """Threads for `loop.getaddrinfo`.

    Not the loop's usual pool, which refuses lookups as soon as exit begins,
    while our executors are only about to drain.
    """

    exit_phase = SERVE

    def __init__(self) -> None:
        super().__init__(_RESOLVERS, "hindsight-resolver", drain_timeout=_LOOKUP_AT_EXIT)
        self._lookups: list[concurrent.futures.Future[Any]] = []

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        """Schedule a lookup. Called on the loop's thread, and by `warm`."""
        future = super().submit(fn, *args, **kwargs)
        # Held until done: one that fails after its request has timed out would
        # be logged as a job whose failure nobody hears of.
        self._lookups = [*(lookup for lookup in self._lookups if not lookup.done()), future]
        return future

    def warm(self) -> None:
        """Start all threads."""
        gate = threading.Event()
        try:
            for _ in range(_RESOLVERS):
                self.submit(gate.wait)
        finally:
            gate.set()


async def _finish(closers: Sequence[Closer]) -> None:
    """Cancel the tasks, then await the closers, both within bounds."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CLOSE_TIMEOUT / 2)
    if closers:
        closing = [asyncio.ensure_future(_call(closer)) for closer in closers]
        await asyncio.wait(closing, timeout=_CLOSE_TIMEOUT / 2)
    await asyncio.sleep(0)  # transports close in callbacks


async def _call(closer: Closer) -> None:
    try:
        await closer()
    except Exception:
        _logger.debug("Closing %r failed", closer, exc_info=True)


def _quiet(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle what asyncio complains about while the loop closes."""
    _logger.debug("While the background loop closes: %s", context.get("message"))


_all: weakref.WeakSet[BackgroundLoop] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for loop in list(_all):
        loop._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

_background = BackgroundLoop()


def background_loop() -> BackgroundLoop:
    """Return the process's loop: always the same object, not yet started."""
    return _background
