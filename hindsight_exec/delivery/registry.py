"""The engines of the process: one for each state directory, shared by its writers."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Iterator, Optional

from hindsight_exec.errors import ExecutorClosed
from hindsight_exec.executor import call_at_exit
from hindsight_exec.executor.process import call_in_child, renew_if_forked
from hindsight_exec.outbox import spool

from .engine import Engine

if TYPE_CHECKING:
    from pathlib import Path

    from .engine import Handle

_engines: dict[Path, Engine] = {}
# Guards it; taken before the lock of any engine. Re-entrant: a finalizer may
# make or close a writer while its thread is in here.
_lock = threading.RLock()
_settles_at_exit = False
# Folders that had an engine: a closed one may have files of its folder open still.
_served: set[Path] = set()
# Closed engines that have a file of turns which were given after closing.
_late: list[Engine] = []
# A forked child keeps its parent's engines referenced, and never touches them:
# collecting one would close SQLite connections of the parent.
_inherited: list[object] = []


def join(handle: Handle) -> Engine:
    """Return the engine of the handle's folder, made if need be, with the handle added."""
    global _settles_at_exit
    renew_if_forked()
    with _lock:
        if not _settles_at_exit:
            with contextlib.suppress(ExecutorClosed):  # exit has passed
                call_at_exit(_settle_all)
            _settles_at_exit = True
        engine = _engines.get(handle.folder)
        if engine is None:
            engine = Engine(handle.folder, handle.settings, on_late=_late.append)
            engine = _engines.setdefault(handle.folder, engine)
            _served.add(handle.folder)
            for late in [one for one in _late if one.folder == handle.folder]:
                _late.remove(late)
                late.release_late()
        engine.add(handle)
    if spool.files(handle.folder):
        engine.wake()  # dead processes may have left turns there
    return engine


def living(engine: Engine) -> Engine:
    """Return the engine; if it is closed, another one of its folder that is not."""
    other = _engines.get(engine.folder) if engine.closed else None
    return engine if other is None or other.closed else other


def engine_of(folder: Path) -> Optional[Engine]:
    """Return the engine of a folder, if it has one."""
    renew_if_forked()
    return _engines.get(folder)


@contextlib.contextmanager
def without_engine(folder: Path) -> Iterator[bool]:
    """Let no engine of a folder begin meanwhile; whether none ever did in this process."""
    renew_if_forked()
    with _lock:
        yield folder not in _served


def leave(engine: Engine, handle: Handle, timeout: float) -> None:
    """Remove the handle; the last one closes the engine, within ``timeout`` seconds."""
    with _lock:
        engine.handles.discard(handle)
        is_last = not engine.handles
        if is_last and _engines.get(engine.folder) is engine:
            del _engines[engine.folder]
    if is_last:
        engine.shut(timeout)
    engine.listeners.discard(handle)  # it hears of trouble until here


def _settle_all() -> None:
    for engine in list(_engines.values()):
        engine.settle()


def _renew() -> None:
    global _engines, _late, _lock, _served, _settles_at_exit
    _inherited.append((_engines, _late))
    _engines, _late, _lock, _served = {}, [], threading.RLock(), set()
    _settles_at_exit = False


call_in_child(_renew)
