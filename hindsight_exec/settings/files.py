"""Reads and replaces files that belong to the user."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

__all__ = ["read_bytes", "write_file"]


def read_bytes(path: Path) -> bytes:
    """Return what a file holds; nothing if there is none.

    Raises:
        OSError: It exists and cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""


def write_file(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that no reader and no power cut sees half of it.

    A new file can be read by its owner only. One that exists keeps its mode and
    owner, and a symbolic link keeps its target.

    Raises:
        OSError: It cannot be written; the old one is as it was.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            old = path.stat()
            _give_to(name, old)
            Path(name).chmod(old.st_mode & 0o7777)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _give_to(name: str, old: os.stat_result) -> None:
    if sys.platform == "win32":
        return
    try:
        os.chown(name, old.st_uid, old.st_gid)
    except PermissionError:
        if old.st_uid != os.geteuid():
            raise  # the owner could no longer read it
