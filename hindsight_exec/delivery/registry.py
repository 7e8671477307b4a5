"""The engines of the process: one for each state folder, shared by its writers."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from hindsight_exec.executor import call_at_exit
from hindsight_exec.outbox import spool

from .engine import Engine

if TYPE_CHECKING:
    from pathlib import Path

    from .engine import Handle

_engines: dict[Path, Engine] = {}
_lock = threading.Lock()  # guards it; taken before the lock of any engine
_exit_known = False
# A forked child keeps what it inherited referenced, and never touches it:
# collecting an engine would close SQLite connections of the parent.
_inherited: list[object] = []


def join(handle: Handle) -> Engine:
    """Return the engine of the handle's folder, made if need be, with the handle added."""
    global _exit_known
    with _lock:
        if not _exit_known:
            _exit_known = True
            call_at_exit(_settle_all)
        engine = _engines.get(handle.folder)
        if engine is None:
            engine = _engines[handle.folder] = Engine(handle.folder, handle.settings)
        engine.add(handle)
    if spool.files(handle.folder):
        engine.wake()  # dead processes may have left turns there
    return engine


def leave(engine: Engine, handle: Handle, timeout: float) -> None:
    """Remove the handle; the last one closes the engine, within ``timeout`` seconds."""
    with _lock:
        engine.handles.discard(handle)
        is_last = not engine.handles
        if is_last and _engines.get(engine.folder) is engine:
            del _engines[engine.folder]
    if is_last:
        engine.shut(timeout)
    with engine.lock:
        engine.listeners.discard(handle)  # it hears of trouble until here


def _settle_all() -> None:
    for engine in list(_engines.values()):
        engine.settle()


def _after_fork_in_child() -> None:
    global _engines, _lock, _exit_known
    _inherited.append(_engines)
    _engines, _lock, _exit_known = {}, threading.Lock(), False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
