"""The background event loop of the process, and its resolver pool.

All requests share one loop on a daemon thread: recalls of many chats run beside
a send, and only a running loop notices that a server has closed a connection.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
import threading
import time
from typing import TYPE_CHECKING, Any, Callable

from hindsight_exec.errors import ExecutorClosed
from hindsight_exec.executor import CLOSE, DRAIN, SERVE, DrainingExecutor, call_at_exit
from hindsight_exec.executor.locks import holds
from hindsight_exec.executor.process import call_in_child, renew_if_forked
from hindsight_exec.executor.waiting import now

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

_RESOLVERS = 2  # concurrent lookups: a name that hangs delays no other
_LOOKUP_AT_EXIT = 0.5  # seconds; by then no request waits for a name
_CLOSE_TIMEOUT = 2.0  # seconds for tasks and closers together


class BackgroundLoop:
    """An asyncio loop on its own daemon thread, for the whole process.

    At exit, after the executors have drained, it cancels its tasks, awaits its
    closers and closes, within about 2 seconds. If its thread ends before, the
    next use starts another. All methods are safe from any thread.

    Guarantees:
        The thread itself creates and closes the loop and its resolvers, and
        only a thread that is noted in ``_run`` does. So Ctrl-C, which strikes
        the main thread only, leaks neither.
        A coroutine that was accepted ends: it runs, or exit cancels it.
        A forked child starts afresh: a new loop, no closers. The parent's stay
        referenced, and the child never touches them.
    """

    def __init__(self) -> None:
        self._inherited: list[object] = []
        self._start_afresh()

    def _start_afresh(self) -> None:
        # Guards all that follows; no thread waits for another under it.
        # Re-entrant: a finalizer may give a turn while its thread is in here.
        self._lock = threading.RLock()
        self._run: _Run | None = None
        self._closers: list[Closer] = []
        self._closes_at_exit = False
        self._closed = False

    def start(self) -> bool:
        """Start the loop's thread and the resolver pool, if they do not run, and wait for them.

        Call it early, from a thread of the program: Python 3.12.0 to 3.12.2 can
        start no thread at exit.

        Returns:
            False if a finalizer calls it inside the start, and would wait for its own thread.

        Raises:
            ExecutorClosed: The process is exiting, and the loop is closed.
            RuntimeError: The system can start no thread.
        """
        renew_if_forked()
        with self._lock:
            run = self._running()
        return run.wait_until_ready()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the loop, started if need be; return its future.

        It runs in the caller's context. Cancelling the future cancels it; so
        does exit. The loop's own thread must not wait for the future.

        Raises:
            ExecutorClosed, RuntimeError: As `start`. The coroutine is closed.
        """
        try:
            while self.start():
                with self._lock:
                    if self._run is not None and self._run.accepts:
                        return asyncio.run_coroutine_threadsafe(coroutine, self._run.loop)
            raise RuntimeError("a finalizer inside the start of the loop cannot use it")
        except BaseException:
            coroutine.close()
            raise

    def add_closer(self, closer: Closer) -> None:
        """Have ``await closer()`` run on the loop before it closes.

        An exception from it is logged at level DEBUG.
        """
        renew_if_forked()
        with self._lock:
            self._closers.append(closer)

    def remove_closer(self, closer: Closer) -> None:
        """Forget a closer, if it is known."""
        renew_if_forked()
        with self._lock:
            if closer in self._closers:
                self._closers.remove(closer)

    def is_inside(self) -> bool:
        """Whether the calling thread is the loop's, or was interrupted inside a method."""
        run = self._run
        is_loop = run is not None and threading.current_thread() is run.thread
        return is_loop or holds(self._lock)

    def __repr__(self) -> str:
        run = self._run
        is_running = run is not None and not run.dead
        state = "closed" if self._closed else "running" if is_running else "idle"
        return f"<{type(self).__name__} {state}>"

    def _running(self) -> _Run:
        """Return the current run, started if need be. Called with the lock held."""
        if self._closed:
            raise ExecutorClosed("cannot schedule new futures after interpreter shutdown")
        if not self._closes_at_exit:
            call_at_exit(self._silence_errors, DRAIN)
            call_at_exit(self._close_at_exit, CLOSE)
            self._closes_at_exit = True
        if self._run is None or self._run.dead:
            run = _Run(self)
            try:
                self._run = run
                run.thread.start()
            except BaseException:
                run.dead = True  # its thread, if there is one, ends at once
                raise
        return self._run

    def _ended(self, run: _Run) -> list[Closer]:
        """Let a run take no more coroutines; return the closers."""
        with self._lock:
            run.dead = True
            return list(self._closers)

    def _silence_errors(self) -> None:
        # No thread waits for a coroutine any more, and lookups will be
        # refused: failures from here on are no news.
        run = self._run
        if run is not None and run.accepts:
            run.loop.set_exception_handler(_log_quietly)

    def _close_at_exit(self) -> None:
        with self._lock:
            self._closed = True
            run = self._run
        if run is not None and not run.dead:
            run.stop()

    def _renew(self) -> None:
        # Referenced for ever: a connection that is collected here, with TLS on
        # 3.9 and 3.10, would write its farewell to the parent's socket.
        self._inherited.append((self._run, self._closers))
        self._start_afresh()


class _Run:
    """One loop and its thread, from start to end."""

    loop: asyncio.SelectorEventLoop
    resolvers: _ResolverPool

    def __init__(self, owner: BackgroundLoop) -> None:
        self.owner = owner
        self.thread = threading.Thread(target=self._main, name="hindsight-loop", daemon=True)
        self.starter = threading.get_ident()
        self.dead = False  # guarded by the owner's lock
        self.failure: BaseException | None = None  # of the start
        self.opening = True  # until it runs, or cannot be started
        self.ended = threading.Event()

    @property
    def accepts(self) -> bool:
        return not (self.opening or self.dead)

    def wait_until_ready(self) -> bool:
        """Wait until the loop runs; False for a finalizer that would wait for its own thread.

        That is one that runs on the starting thread, before the start.
        """
        if self.thread.ident is None and threading.get_ident() == self.starter:
            return False
        self.wait_while_opening(None)
        if self.failure is not None:
            raise RuntimeError(f"the background loop cannot start: {self.failure}")
        return True

    def wait_while_opening(self, timeout: float | None) -> None:
        # A matter of a millisecond. Not an Event: before 3.13, Ctrl-C in its
        # wait() may become another error.
        deadline = None if timeout is None else now() + timeout
        while self.opening and (deadline is None or now() < deadline):
            time.sleep(0.001)

    def _main(self) -> None:
        with self.owner._lock:  # the starter has noted this run, or given it up
            if self.dead:
                self.opening = False
                return
        try:
            self._open()
        except BaseException as error:
            self.failure = error
            self.owner._ended(self)
            return
        finally:
            self.opening = False
        try:
            self.loop.run_forever()
        except BaseException:
            # A task raised SystemExit or KeyboardInterrupt.
            _logger.exception("The background loop ended; the next use starts another")
        # The owner submits nothing from here on; earlier coroutines are cancelled.
        closers = self.owner._ended(self)
        self.loop.set_exception_handler(_log_quietly)
        try:
            self.loop.run_until_complete(_finish(closers))
            self.loop.close()
        except BaseException:
            _logger.debug("The background loop did not close", exc_info=True)
        self.ended.set()

    def _open(self) -> None:
        # With epoll, a forked child that merely exits removes the parent's
        # sockets from the epoll set that both share, and the parent's requests
        # hang. poll has no state in the kernel. Windows has neither.
        poll = getattr(selectors, "PollSelector", None)
        self.loop = asyncio.SelectorEventLoop(poll() if poll else None)
        self.resolvers = _ResolverPool()
        self.loop.set_default_executor(self.resolvers)
        try:
            self.resolvers.warm()
        except BaseException:
            self.loop.close()  # the resolvers, too
            raise

    def stop(self) -> None:
        """End the loop, and wait for that."""
        self.wait_while_opening(_CLOSE_TIMEOUT)
        try:
            self.loop.call_soon_threadsafe(self.loop.stop)
        except (AttributeError, RuntimeError):
            return  # it never ran, or closed meanwhile
        # Longer than the bound inside. A callback that blocks the loop cannot
        # be ended at all; its daemon thread is abandoned.
        if not self.ended.wait(_CLOSE_TIMEOUT + 0.5):
            _logger.debug("The background loop did not close in time")


class _ResolverPool(DrainingExecutor):
    """Threads for `loop.getaddrinfo`.

    The loop's default pool refuses lookups as soon as exit begins, when our
    executors only begin to drain.
    """

    exit_phase = SERVE

    def __init__(self) -> None:
        super().__init__(_RESOLVERS, "hindsight-resolver", drain_timeout=_LOOKUP_AT_EXIT)
        self._lookups: list[concurrent.futures.Future[Any]] = []

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        """Schedule a lookup. Called on the loop's thread only."""
        future = super().submit(fn, *args, **kwargs)
        # Held until done: a lookup that fails after its request has timed out
        # would be logged as a failure that no caller has seen.
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


def _log_quietly(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle asyncio's complaints while the loop closes."""
    _logger.debug("While the background loop closes: %s", context.get("message"))


_background = BackgroundLoop()
call_in_child(_background._renew)


def background_loop() -> BackgroundLoop:
    """Return the process's loop: always the same object, not yet started."""
    return _background
