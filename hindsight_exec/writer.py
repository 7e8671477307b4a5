"""What callers hold: give turns, wait for them, close.

:class:`RetainWriter` is a handle.  The handles of one state folder share one
core in the process: the outbox file, the worker, the client sessions.  The
core is made by the first handle and closed by the last, or at exit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Sequence, TypeVar

from . import spool, turns
from .clients import Lease, lease
from .config import Settings, resolve_credential, state_folder
from .delivery import Box, Counters, Delivery
from .errors import OutboxCorrupt, OutboxFull, OutboxNewer, OutboxUnavailable
from .executor import DrainingExecutor, call_at_exit
from .loop import background_loop
from .outbox import Outbox
from .salvage import salvage
from .schedule import Hold
from .turns import Source

__all__ = ["Counters", "RetainWriter"]

T = TypeVar("T")

_logger = logging.getLogger("hindsight_exec")

#: Seconds that closing the sessions may take.
_CLOSE_SESSIONS = 2.0


class RetainWriter:
    """Takes turns, keeps them on disk, and has them delivered exactly once.

    Args:
        settings: Server, bank, and how turns are held and delivered.
        state: The state folder; without it ``HINDSIGHT_EXEC_STATE`` or the
            user's state folder counts.
        on_trouble: Called with a text for the user once when turns begin to
            wait on disk and once when all have arrived; on the worker thread.

    Safe from any thread, and usable in a forked child, which writes an outbox
    of its own. Exit needs no :meth:`close`: what was given is sent within
    ``settings.drain_timeout`` seconds, and what is left is sent by the next
    process that uses the folder.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        state: Optional[Path] = None,
        on_trouble: Optional[Callable[[str], None]] = None,
    ) -> None:
        self.settings = settings
        self.folder = Path(state or state_folder(os.environ)).absolute()
        self.on_trouble = on_trouble
        self._hold = Hold(
            chars=settings.retain_document_chars,
            turns=settings.retain_every_n_turns,
            idle=settings.retain_idle_seconds,
        )
        self._sources: set[Source] = set()  # guarded by the core's lock
        self._closed = False
        self._core = _join(self)

    def put(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        session: str,
        bank: Optional[str] = None,
        context: Optional[str] = None,
        tags: Sequence[str] = (),
        metadata: Optional[Mapping[str, Any]] = None,
        observation_scopes: Any = None,
        immediate: bool = False,
    ) -> None:
        """Take a turn; it is committed to disk when this returns.

        It never waits for the network. After :meth:`close`, or when the
        process exits, it is kept all the same and sent by the next process.

        Args:
            messages: The turn's messages, JSON objects with ``role``,
                ``content`` and, best, ``timestamp``.
            session: The conversation. Its turns are held until they fill a
                document, or it ends, or nothing comes for a while.
            bank: The memory bank; ``settings.bank_id`` without it.
            context, tags, metadata, observation_scopes: What is said of the
                document; turns that differ in it go into different ones.
            immediate: Make a document of this turn alone and send it now.

        Raises:
            ValueError: An argument is unusable; nothing was taken.
            OutboxFull: The outbox holds as much as it may; nothing was taken.
        """
        source = self._source(session, bank, context, tags, metadata, observation_scopes)
        core = self._joined()
        given_at, index = core.next(source)
        turn = turns.turn(messages, given_at=given_at, index=index)
        if immediate:
            document_id = turns.document_id(source.session, given_at)
            item = turns.document_item(source, document_id, [turn])
            self._keep_document(core, source, document_id, item, given_at)
            return
        if self._closed or core.closed:
            core.keep_for_later(lambda outbox: outbox.put(source, turn))
            return
        box, number = core.keep(lambda outbox: outbox.put(source, turn))
        self._note(core, source)
        if core.delivery.given(box, number, source, turn.chars, self._hold):
            core.wake()

    def put_text(
        self,
        text: str,
        *,
        session: str,
        bank: Optional[str] = None,
        context: Optional[str] = None,
        tags: Sequence[str] = (),
        metadata: Optional[Mapping[str, Any]] = None,
        observation_scopes: Any = None,
        timestamp: str = "",
    ) -> None:
        """Take a text that is no conversation; it is a document and goes at once.

        Args:
            timestamp: When what it tells of happened, ISO 8601; now without it.

        Otherwise as :meth:`put`.
        """
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"a text to retain must not be empty, not {text!r}")
        source = self._source(session, bank, context, tags, metadata, observation_scopes)
        core = self._joined()
        given_at, _ = core.next(source, turn=False)
        document_id = turns.document_id(source.session, given_at)
        item = turns.text_item(source, document_id, text, given_at, timestamp)
        self._keep_document(core, source, document_id, item, given_at)

    def end_session(self, session: str) -> None:
        """Send what is held of a session, in the background."""
        wanted = turns.identifier(session)
        core = self._joined()
        core.delivery.end(lambda source: source.session == wanted)
        core.wake()

    def flush(
        self,
        timeout: Optional[float] = None,
        *,
        session: Optional[str] = None,
        completed: bool = False,
    ) -> bool:
        """Send what is held and wait until the server has accepted it.

        Args:
            timeout: Seconds to wait at most; ``None`` for no bound.
            session: Only what was given for this session.
            completed: Wait until the server has processed it, too.

        Returns:
            Whether all that was given through this writer arrived (or became
            a dead letter, see :meth:`counters`).
        """
        return self._flush(timeout, session=session, completed=completed, patient=True)

    def close(self, timeout: Optional[float] = None) -> bool:
        """Deliver what was given through this writer, and let go of it.

        It waits for ``timeout`` seconds at most (``settings.drain_timeout``
        without it), and no longer than until the server fails: what is left
        waits on disk. The last writer of the folder closes the sessions.
        Idempotent.

        Returns:
            As :meth:`flush`.
        """
        if timeout is None:
            timeout = self.settings.drain_timeout
        deadline = time.monotonic() + timeout
        core = self._joined()
        with core.lock:
            closed, self._closed = self._closed, True
        if closed:
            return True
        done = self._flush(
            timeout, completed=not self.settings.retain_async, patient=False, session=None
        )
        _leave(core, self, max(0.0, deadline - time.monotonic()))
        return done

    def counters(self) -> Counters:
        """What became of the turns given in this process, by all its writers."""
        core = self._joined()
        counters = core.delivery.count()
        if counters.waiting:
            oldest = core.oldest()
            counters.oldest_age = max(0.0, time.time() - oldest) if oldest else 0.0
        return counters

    @property
    def worker(self) -> Optional[threading.Thread]:
        """The thread that delivers, once there was something to deliver."""
        return self._joined().delivery.thread

    def __repr__(self) -> str:
        counters = self._joined().delivery.count()
        state = ", closed" if self._closed else ""
        return f"<RetainWriter {str(self.folder)!r} {counters.waiting} waiting{state}>"

    # --- helpers ----------------------------------------------------------

    def _source(
        self,
        session: str,
        bank: Optional[str],
        context: Optional[str],
        tags: Sequence[str],
        metadata: Optional[Mapping[str, Any]],
        observation_scopes: Any,
    ) -> Source:
        return turns.source(
            url=self.settings.api_url,
            credential=self.settings.credential,
            bank=self.settings.bank_id if bank is None else bank,
            session=session,
            context=context,
            tags=tags,
            metadata=metadata,
            observation_scopes=observation_scopes,
        )

    def _keep_document(
        self, core: _Core, source: Source, document_id: str, item: bytes, given_at: float
    ) -> None:
        def keep(outbox: Outbox) -> tuple[int, int]:
            return outbox.put_document(source, document_id, item, given_at)

        if self._closed or core.closed:
            core.keep_for_later(keep)
            return
        box, (_, destination) = core.keep(keep)
        self._note(core, source)
        core.delivery.given_document(box, destination, source)
        core.wake()

    def _note(self, core: _Core, source: Source) -> None:
        if source not in self._sources:
            with core.lock:
                self._sources.add(source)

    def _flush(
        self, timeout: Optional[float], *, session: Optional[str], completed: bool, patient: bool
    ) -> bool:
        core = self._joined()
        delivery = core.delivery
        wanted = None if session is None else turns.identifier(session)
        with core.lock:
            # What has arrived for good need not be asked about again.
            self._sources = {one for one in self._sources if one in delivery.unfinished}
            sources = {one for one in self._sources if wanted in (None, one.session)}
        where = (self.settings.api_url, self.settings.credential)
        left = delivery.unfinished if completed else delivery.waiting

        def settled() -> bool:
            return not any(source in left for source in sources)

        def over() -> bool:
            return settled() or not delivery.running or (not patient and gave_up())

        def gave_up() -> bool:
            return delivery.paused(*where) or delivery.failures.get(where, 0) > failures

        if settled():
            return True
        failures = delivery.failures.get(where, 0)
        if completed:
            delivery.watch(True)
        try:
            delivery.end(sources.__contains__)
            delivery.hurry()
            core.wake()
            with delivery.progress:
                delivery.progress.wait_for(over, timeout)
                return settled()
        finally:
            if completed:
                delivery.watch(False)

    def _joined(self) -> _Core:
        """Our core; in a forked child one of its own."""
        core = self._core
        if core.pid != os.getpid():
            self._sources = set()
            core = self._core = _join(self)
        return core


class _Core:
    """What the writers of one state folder share in a process."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.pid = os.getpid()
        # Guards the handles, the boxes and the turn numbers. Taken before an
        # outbox's lock and the delivery's, never inside them.
        self.lock = threading.RLock()
        self.handles: set[RetainWriter] = set()
        self.closed = False
        self.delivery = Delivery(
            lease=self._lease,
            key=self._key,
            adopt=self._adopt,
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
        self._own: Optional[Box] = None
        self._spare: Optional[Box] = None
        self._claims: dict[Box, spool.Claim] = {}
        self._skip: set[Path] = set()
        self._numbers: dict[str, int] = {}
        self._last_at = 0.0

    def add(self, handle: RetainWriter) -> None:
        settings = handle.settings
        with self.lock:
            self.handles.add(handle)
            if settings.api_key:
                self._keys[settings.credential, settings.api_url] = settings.api_key

    def next(self, source: Source, *, turn: bool = True) -> tuple[float, int]:
        """The time and number of a new turn. Times grow, even if the clock is
        set back: documents sort by them."""
        with self.lock:
            self._last_at = at = max(time.time(), self._last_at + 1e-6)
            number = self._numbers.get(source.session, 0) + turn
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
            self.executor.submit(self.delivery.run)
        except RuntimeError as error:
            self.delivery.not_started()
            _logger.debug("Not delivered now, but kept: %s", error)

    # --- keeping ----------------------------------------------------------

    def keep(self, put: Callable[[Outbox], T]) -> tuple[Box, T]:
        """Keep something on disk; in memory where the disk does not take it."""
        for _ in range(3):
            box = None
            try:
                box = self._own_box()
                return box, put(box.outbox)
            except OutboxFull:
                with self.delivery.progress:
                    self.delivery.counters.refused += 1
                raise
            except OutboxCorrupt:
                if box is None:
                    raise
                self._broken(box)
            except OutboxUnavailable as error:
                spare = self._spare_box(error)
                return spare, put(spare.outbox)
            except ValueError:
                # Closed between the two steps; a new one is made.
                if box is not None and box is self._own and not box.broken:
                    raise
        spare = self._spare_box(OutboxUnavailable("the outbox is damaged again and again"))
        return spare, put(spare.outbox)

    def keep_for_later(self, put: Callable[[Outbox], object]) -> None:
        """Keep something for the next process, and leave the file to it."""
        claim = None
        try:
            if self.settings.durability == "memory":
                raise OutboxUnavailable("durability is memory, and the writer is closed")
            claim = spool.create(self.folder)
            outbox = self._open(claim.path)
            try:
                put(outbox)
            finally:
                outbox.close()
        except OutboxUnavailable as error:
            _logger.error("A turn given after closing is lost: %s", error)
        finally:
            if claim is not None:
                claim.release()

    def _own_box(self) -> Box:
        box = self._own
        if box is not None:
            return box
        with self.lock:
            if self._own is None:
                if self.settings.durability == "memory":
                    box = Box(Outbox(None))
                else:
                    claim = spool.create(self.folder)
                    try:
                        box = Box(self._open(claim.path))
                    except BaseException:
                        claim.release(remove=True)
                        raise
                    self._claims[box] = claim
                self._own = box
                with self.delivery.progress:
                    self.delivery.boxes.append(box)
            return self._own

    def _open(self, path: Path) -> Outbox:
        full = self.settings.durability != "normal"
        return Outbox(path, synchronous="FULL" if full else "NORMAL")

    def _spare_box(self, error: OutboxUnavailable) -> Box:
        with self.lock:
            if self._spare is None:
                self._spare = Box(Outbox(None))
                with self.delivery.progress:
                    self.delivery.boxes.append(self._spare)
                text = f"Turns are kept in memory only and are not safe on disk: {error}"
                _logger.error("%s", text)
                self._tell(text)
            return self._spare

    def _broken(self, box: Box) -> None:
        """Use another box; the worker sets this one aside."""
        with self.lock:
            box.broken = True
            if self._own is box:
                self._own = None
        self.wake()

    # --- what the delivery asks for ---------------------------------------

    def _lease(self, url: str, key: str) -> Lease:
        return lease(url, key, self.settings.timeout)

    def _key(self, credential: str, url: str) -> Optional[str]:
        found = resolve_credential(credential, url)
        return found or self._keys.get((credential, url)) or found

    def _adopt(self, room: int) -> list[Box]:
        boxes: list[Box] = []
        with self.lock:
            known = self._skip.union(claim.path for claim in self._claims.values())
        for path in spool.files(self.folder):
            if len(boxes) == room:
                break
            if path in known:
                continue
            try:
                claim = spool.adopt(path)
            except OutboxUnavailable as error:
                self._skip.add(path)
                _logger.warning("%s", error)
                continue
            if claim is not None:
                box = self._adopted(claim)
                if box is not None:
                    boxes.append(box)
        return boxes

    def _adopted(self, claim: spool.Claim) -> Optional[Box]:
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
                box = Box(outbox, adopted=True)
                with self.lock:
                    self._claims[box] = claim
                return box
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

    def _retire(self, box: Box) -> None:
        """A box is done with, or cannot be used any more."""
        with self.lock:
            claim = self._claims.pop(box, None)
            if self._own is box:
                self._own = None
        if claim is None:
            box.outbox.close()
        elif box.broken:
            box.outbox.close()
            self._set_aside(claim, "damaged", None, rescue=True)
        else:
            self._let_go(box, claim)

    def _let_go(self, box: Box, claim: spool.Claim) -> None:
        empty = False
        with contextlib.suppress(OutboxUnavailable, ValueError):
            empty = box.outbox.is_empty()
        box.outbox.close()
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
                box = self._own_box()
                saved = salvage(aside, box.outbox)
                with self.delivery.progress:
                    box.take_all()
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
            handles = list(self.handles)
        for handle in handles:
            if handle.on_trouble is not None:
                try:
                    handle.on_trouble(text)
                except Exception:
                    _logger.exception("on_trouble failed")

    # --- looking and closing ----------------------------------------------

    def oldest(self) -> Optional[float]:
        """When the oldest waiting turn of this process was given."""
        found = []
        for box in (self._own, self._spare):
            if box is not None:
                with contextlib.suppress(OutboxUnavailable, ValueError):
                    found.append(box.outbox.summary().oldest_at)
        return min((at for at in found if at is not None), default=None)

    def shut(self, timeout: float) -> None:
        """Deliver what can be within ``timeout`` seconds, and close all."""
        self.executor.shutdown(timeout=timeout)
        self.delivery.release(_CLOSE_SESSIONS)
        self.settle()

    def settle(self) -> None:
        """Close the files, remove the empty ones, say what is left. Idempotent."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self._own = self._spare = None
            claims, self._claims = self._claims, {}
        if self.executor.pending:
            return  # the worker is stuck, perhaps inside a file: leave it all
        on_disk = in_memory = 0
        for box in self.delivery.boxes:
            with contextlib.suppress(OutboxUnavailable, ValueError):
                waiting = box.outbox.summary().waiting
                if box in claims:
                    on_disk += waiting
                else:
                    in_memory += waiting
            if box in claims:
                self._let_go(box, claims[box])
            else:
                box.outbox.close()
        if on_disk:
            _logger.warning(
                "%d turn(s) wait on disk and are sent at the next start, or by "
                "'hindsight-exec flush'",
                on_disk,
            )
        if in_memory:
            _logger.error("%d turn(s) were only in memory and are lost", in_memory)


# --- one core for each folder ------------------------------------------------

_cores: dict[Path, _Core] = {}
_cores_lock = threading.Lock()  # guards it; taken before a core's lock
_exit_known = False
# A forked child keeps what it inherited referenced, and never touches it:
# closing a SQLite connection of the parent would be one step too many.
_inherited: list[object] = []


def _join(handle: RetainWriter) -> _Core:
    """The core of the handle's folder, made if there is none."""
    global _exit_known
    with _cores_lock:
        if not _exit_known:
            _exit_known = True
            call_at_exit(_settle_all)
        core = _cores.get(handle.folder)
        if core is None:
            core = _cores[handle.folder] = _Core(handle.folder, handle.settings)
        core.add(handle)
    if spool.files(handle.folder):
        core.wake()  # somebody may have left turns there
    return core


def _leave(core: _Core, handle: RetainWriter, timeout: float) -> None:
    with _cores_lock:
        core.handles.discard(handle)
        last = not core.handles
        if last and _cores.get(core.folder) is core:
            del _cores[core.folder]
    if last:
        core.shut(timeout)


def _settle_all() -> None:
    for core in list(_cores.values()):
        core.settle()


def _after_fork_in_child() -> None:
    global _cores, _cores_lock, _exit_known
    _inherited.append(_cores)
    _cores, _cores_lock, _exit_known = {}, threading.Lock(), False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
