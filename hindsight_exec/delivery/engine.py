"""What the writers of one state folder share in a process.

The outbox file of the process, the worker that delivers, and the files that
dead processes left.  Made by the folder's first writer and closed by its last,
or at exit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Callable, Iterator, Optional, TypeVar

from hindsight_exec.client.loop import background_loop
from hindsight_exec.client.registry import Lease, lease
from hindsight_exec.client.request import import_aiohttp
from hindsight_exec.errors import OutboxCorrupt, OutboxFull, OutboxNewer, OutboxUnavailable
from hindsight_exec.executor import DrainingExecutor, call_at_exit
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.salvage import salvage
from hindsight_exec.outbox.store import MAX_SOURCES, Outbox
from hindsight_exec.settings.credentials import resolve_credential

from .backlog import Backlog
from .worker import Delivery

if TYPE_CHECKING:
    from pathlib import Path

    from hindsight_exec.conversation.turns import Source
    from hindsight_exec.settings.config import Settings

    from .writer import RetainWriter

T = TypeVar("T")

_logger = logging.getLogger("hindsight_exec")

#: Seconds that closing the sessions may take.
_CLOSE_SESSIONS = 2.0


class Engine:
    """The outbox, the worker and the adopted files of one state folder.

    Safe from any thread. ``settings`` are those of the folder's first writer:
    how long exit may take, how durable the file is.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.pid = os.getpid()
        # Guards the handles, the backlogs and the turn numbers. Taken before an
        # outbox's lock and the delivery's, never inside them.
        self.lock = threading.RLock()
        # Weak: some hosts never close what they drop.
        self.handles: weakref.WeakSet[RetainWriter] = weakref.WeakSet()
        self.listeners: weakref.WeakSet[RetainWriter] = weakref.WeakSet()
        self.closed = False
        self.delivery = Delivery(
            lease=self._lease,
            key=self._key,
            adopt=self._adopt,
            prepare=import_aiohttp,
            retire=self._retire,
            tell=self._tell,
        )
        self.executor = DrainingExecutor(
            thread_name_prefix="hindsight-writer",
            drain_timeout=settings.drain_timeout,
            on_closing=self.delivery.close,
            on_deadline=self.delivery.cancel,
        )
        self._keys: dict[tuple[str, str], str] = {}
        self._own: Optional[Backlog] = None
        self._spare: Optional[Backlog] = None
        self._claims: dict[Backlog, spool.Claim] = {}
        self._runs = 0  # jobs of the executor that have not ended
        self._left: dict[Backlog, spool.Claim] = {}  # for the last of them to let go of
        self._skip: set[Path] = set()
        self._numbers: dict[str, int] = {}
        self._last_at = 0.0
        self._late: Optional[Path] = None  # where the last turn after closing went

    def add(self, handle: RetainWriter) -> None:
        settings = handle.settings
        with self.lock:
            self.handles.add(handle)
            self.listeners.add(handle)
            if settings.api_key:
                self._keys[settings.credential, settings.api_url] = settings.api_key

    def next(self, source: Source, *, turn: bool = True) -> tuple[float, int]:
        """The time and number of a new turn. Times grow, even if the clock is
        set back: documents sort by them."""
        with self.lock:
            self._last_at = at = max(time.time(), self._last_at + 1e-6)
            number = self._numbers.pop(source.session, 0) + turn
            if len(self._numbers) >= MAX_SOURCES:  # a gateway's life is long
                del self._numbers[next(iter(self._numbers))]  # the one not used for longest
            self._numbers[source.session] = number
        return at, number

    def wake(self) -> None:
        """See to it that the worker looks at what there is."""
        if not self.delivery.start():
            return
        try:
            # Threads start here, on the caller's: 3.12.0 to 3.12.2 can start
            # none at exit.
            background_loop().start()
            with self.lock:
                self._runs += 1
            try:
                run = self.executor.submit(self.delivery.run)
            except BaseException:
                self._ran(None)
                raise
            run.add_done_callback(self._ran)
        except RuntimeError as error:
            self.delivery.not_started()
            _logger.debug("Not delivered now, but kept: %s", error)

    def _ran(self, _: object) -> None:
        """A run has ended, perhaps after all was closed: then the files are let go of here."""
        with self.lock:
            self._runs -= 1
            left, self._left = ({}, self._left) if self._runs else (self._left, {})
        for backlog, claim in left.items():
            self._let_go(backlog, claim)

    # --- keeping ----------------------------------------------------------

    def keep(self, put: Callable[[Outbox], T]) -> tuple[Backlog, T]:
        """Keep something on disk; in memory where the disk does not take it."""
        for _ in range(3):
            backlog = None
            try:
                backlog = self._own_box()
                return backlog, put(backlog.outbox)
            except OutboxFull:
                with self.delivery.progress:
                    self.delivery.progress.counters.refused += 1
                raise
            except OutboxCorrupt as error:
                if backlog is None:  # a new file, and damaged
                    spare = self._spare_box(error)
                    return spare, put(spare.outbox)
                self._broken(backlog)
            except OutboxUnavailable as error:
                spare = self._spare_box(error)
                return spare, put(spare.outbox)
            except ValueError:
                # Closed between the two steps; a new one is made.
                if backlog is not None and backlog is self._own and not backlog.broken:
                    raise
        spare = self._spare_box(OutboxUnavailable("the outbox is damaged again and again"))
        return spare, put(spare.outbox)

    def keep_for_later(self, put: Callable[[Outbox], object]) -> None:
        """Keep something for the next process, and leave the file to it."""
        claim = None
        try:
            if self.settings.durability == "memory":
                raise OutboxUnavailable("durability is memory, and the writer is closed")
            # One file for all of them, unless another process has it by now.
            claim = spool.adopt(self._late) if self._late else None
            claim = claim or spool.create(self.folder)
            outbox = self._open(claim.path)
            try:
                put(outbox)
                self._late = claim.path
            finally:
                outbox.close()
        except OutboxUnavailable as error:
            _logger.error("A turn given after closing is lost: %s", error)
        finally:
            if claim is not None:
                claim.release()

    def _own_box(self) -> Backlog:
        backlog = self._own
        if backlog is not None and backlog.outbox.is_there():
            return backlog
        with self.lock:
            if self._own is None or not self._own.outbox.is_there():
                # A file that was removed is delivered from here, as far as this
                # process gets; what is given now goes where the next finds it.
                if self.settings.durability == "memory":
                    backlog = Backlog(Outbox(None), self.delivery.progress)
                else:
                    claim = spool.create(self.folder)
                    try:
                        backlog = Backlog(self._open(claim.path), self.delivery.progress)
                    except BaseException:
                        claim.release(remove=True)
                        raise
                    self._claims[backlog] = claim
                self._own = backlog
                with self.delivery.progress:
                    self.delivery.backlogs.append(backlog)
            return self._own

    def _open(self, path: Path) -> Outbox:
        full = self.settings.durability != "normal"
        return Outbox(path, synchronous="FULL" if full else "NORMAL")

    def _spare_box(self, error: OutboxUnavailable) -> Backlog:
        with self.lock:
            if self._spare is None:
                self._spare = Backlog(Outbox(None), self.delivery.progress)
                with self.delivery.progress:
                    self.delivery.backlogs.append(self._spare)
                text = f"Turns are kept in memory only and are not safe on disk: {error}"
                _logger.error("%s", text)
                self._tell(text)
            return self._spare

    def _broken(self, backlog: Backlog) -> None:
        """Use another backlog; the worker sets this one aside."""
        with self.lock:
            backlog.broken = True
            if self._own is backlog:
                self._own = None
        self.wake()

    # --- what the delivery asks for ---------------------------------------

    def _lease(self, url: str, key: str) -> Lease:
        import_aiohttp()  # here, on the worker, and not on the loop
        return lease(url, key, self.settings.timeout)

    def _key(self, credential: str, url: str) -> Optional[str]:
        found = resolve_credential(credential, url)
        return found or self._keys.get((credential, url)) or found

    def _adopt(self, room: int) -> list[Backlog]:
        backlogs: list[Backlog] = []
        for path in self._not_ours():
            if len(backlogs) == room:
                break
            try:
                claim = spool.adopt(path)
            except OutboxUnavailable as error:
                self._skip.add(path)
                _logger.warning("%s", error)
                continue
            if claim is not None:
                backlog = self._adopted(claim)
                if backlog is not None:
                    backlogs.append(backlog)
        return backlogs

    def _adopted(self, claim: spool.Claim) -> Optional[Backlog]:
        outbox = None
        try:
            outbox = self._open(claim.path)
            unknown = [
                where.credential
                for where in outbox.destinations().values()
                if self._key(where.credential, where.url) is None
            ]
            if unknown:
                # A key may only go to the server it was configured for.
                self._skip.add(claim.path)
                _logger.info("%s waits for who can resolve %s", claim.path.name, unknown)
            elif outbox.is_empty():
                outbox.close()
                claim.release(remove=True)
                return None
            else:
                backlog = Backlog(outbox, self.delivery.progress, adopted=True)
                with self.lock:
                    self._claims[backlog] = claim
                return backlog
        except OutboxCorrupt as error:
            if outbox is not None:
                outbox.close()
            self._set_aside(claim, "damaged", error, rescue=True)
            return None
        except OutboxNewer as error:
            self._set_aside(claim, "newer", error, rescue=False)
            return None
        except OutboxUnavailable as error:
            self._skip.add(claim.path)
            _logger.warning("%s", error)
        if outbox is not None:
            outbox.close()
        claim.release()
        return None

    def _retire(self, backlog: Backlog) -> None:
        """A backlog is done with, or cannot be used any more."""
        with self.lock:
            claim = self._claims.pop(backlog, None)
            if self._own is backlog:
                self._own = None
        if claim is None:
            backlog.outbox.close()
        elif backlog.broken:
            backlog.outbox.close()
            self._set_aside(claim, "damaged", None, rescue=True)
        else:
            self._let_go(backlog, claim)

    def _let_go(self, backlog: Backlog, claim: spool.Claim) -> None:
        empty = False
        with contextlib.suppress(OutboxUnavailable, ValueError):
            empty = backlog.outbox.is_empty()
        backlog.outbox.close()
        if not empty:
            self._skip.add(claim.path)
        claim.release(remove=empty)

    def _set_aside(
        self, claim: spool.Claim, reason: str, error: Optional[Exception], *, rescue: bool
    ) -> None:
        try:
            aside = claim.set_aside(reason)
        except OSError as failure:
            self._skip.add(claim.path)
            claim.release()
            _logger.error("%s cannot be set aside: %s", claim.path, failure)
            return
        saved = 0
        if rescue:
            try:
                backlog = self._own_box()
                saved = salvage(aside, backlog.outbox)
                with self.delivery.progress:
                    backlog.take_all()
            except Exception as failure:
                _logger.error("Nothing can be read of %s: %s", aside.name, failure)
        _logger.error(
            "%s was set aside as %s (%s); %d turn(s) of it are delivered",
            claim.path.name,
            aside,
            error or reason,
            saved,
        )

    def _tell(self, text: str) -> None:
        with self.lock:
            listeners = list(self.listeners)
        for handle in listeners:
            if handle.on_trouble is not None:
                try:
                    handle.on_trouble(text)
                except Exception:
                    _logger.exception("on_trouble failed")

    # --- looking and closing ----------------------------------------------

    def oldest(self) -> Optional[float]:
        """When the oldest waiting turn of this process was given."""
        found = []
        for backlog in (self._own, self._spare):
            if backlog is not None:
                with contextlib.suppress(OutboxUnavailable, ValueError):
                    found.append(backlog.outbox.summary().oldest_at)
        return min((at for at in found if at is not None), default=None)

    def unopened(self) -> bool:
        """Whether dead processes left files that are yet to be opened."""
        return any(not spool.is_live(path) for path in self._not_ours())

    def _not_ours(self) -> list[Path]:
        """The folder's files that this process neither has nor has given up."""
        with self.lock:
            known = self._skip.union(claim.path for claim in self._claims.values())
        return [path for path in spool.files(self.folder) if path not in known]

    def waiting(self) -> int:
        """How many turns wait in the files that this process delivers."""
        return sum(self._ask_all(lambda outbox: outbox.summary().waiting))

    def is_waiting(self) -> bool:
        """Whether any does, or may: a file is being opened."""
        with self.delivery.progress:
            adopting = self.delivery.adopting
        return adopting or any(self._ask_all(Outbox.is_waiting))

    def _ask_all(self, ask: Callable[[Outbox], T]) -> Iterator[T]:
        with self.delivery.progress:
            backlogs = list(self.delivery.backlogs)
        for backlog in backlogs:
            with contextlib.suppress(OutboxUnavailable, ValueError):  # done with meanwhile
                yield ask(backlog.outbox)

    def shut(self, timeout: float) -> None:
        """Deliver what can be within ``timeout`` seconds, and close all."""
        self.executor.shutdown(timeout=timeout)
        self.delivery.servers.release(_CLOSE_SESSIONS)
        self.settle()

    def settle(self) -> None:
        """Close the files, remove the empty ones, say what is left. Idempotent."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self._own = self._spare = None
            claims, self._claims = self._claims, {}
            working = self._runs > 0 and self.executor.pending > 0
            if working:
                self._left = claims
        if working:
            # The worker is stuck, perhaps inside a file: all is left to it.
            if claims and self.delivery.progress.acquire(timeout=1.0):
                try:
                    _tell_waiting(sum(self.delivery.progress.waiting.values()))
                finally:
                    self.delivery.progress.release()
            return
        on_disk = in_memory = 0
        for backlog in self.delivery.backlogs:
            with contextlib.suppress(OutboxUnavailable, ValueError):
                waiting = backlog.outbox.summary().waiting
                if backlog in claims and backlog.outbox.is_there():
                    on_disk += waiting
                else:
                    in_memory += waiting
            if backlog in claims:
                self._let_go(backlog, claims[backlog])
            else:
                backlog.outbox.close()
        _tell_waiting(on_disk)
        if in_memory:
            _logger.error("%d turn(s) were only in memory and are lost", in_memory)


def _tell_waiting(turns: int) -> None:
    if turns:
        _logger.warning(
            "%d turn(s) wait on disk and are sent at the next start, or by 'hindsight-exec flush'",
            turns,
        )


# --- one for each folder ------------------------------------------------

_all: dict[Path, Engine] = {}
_all_lock = threading.Lock()  # guards it; taken before the lock of any in it
_exit_known = False
# A forked child keeps what it inherited referenced, and never touches it:
# closing a SQLite connection of the parent would be one step too many.
_inherited: list[object] = []


def join(handle: RetainWriter) -> Engine:
    """Be one of the writers of the handle's folder."""
    global _exit_known
    with _all_lock:
        if not _exit_known:
            _exit_known = True
            call_at_exit(_settle_all)
        engine = _all.get(handle.folder)
        if engine is None:
            engine = _all[handle.folder] = Engine(handle.folder, handle.settings)
        engine.add(handle)
    if spool.files(handle.folder):
        engine.wake()  # somebody may have left turns there
    return engine


def leave(engine: Engine, handle: RetainWriter, timeout: float) -> None:
    """Be it no longer; the last one closes all, within ``timeout`` seconds."""
    with _all_lock:
        engine.handles.discard(handle)
        last = not engine.handles
        if last and _all.get(engine.folder) is engine:
            del _all[engine.folder]
    if last:
        engine.shut(timeout)
    with engine.lock:
        engine.listeners.discard(handle)  # it heard of trouble until here


def _settle_all() -> None:
    for engine in list(_all.values()):
        engine.settle()


def _after_fork_in_child() -> None:
    global _all, _all_lock, _exit_known
    _inherited.append(_all)
    _all, _all_lock, _exit_known = {}, threading.Lock(), False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
