"""A disk as a loss of power may leave it, built from a recording of what processes did.

Three file systems, by what they promise about names: ``strict`` promises what POSIX does (a name
is there once its folder was synced), ``ext4`` keeps the order of names and takes them along with
any sync, ``names`` has them at once. Contents are the same for all: a page that was written is
on the disk once its file was synced, and until then it may be, or not, or in part; so may a
file's new length. A sync that failed has dropped its pages: no later sync brings them.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Optional

import pytest

PAGE, SECTOR = 4096, 512
CREATE, WRITE, TRUNCATE, SYNC, RENAME, UNLINK, MKDIR, MARK = range(1, 9)
SYSTEMS = ("strict", "ext4", "names")


# --- recording ----------------------------------------------------------------


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preloaded library, compiled here."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler to record what a process writes")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("shim.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-lpthread"]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"the C compiler cannot build the recorder: {built.stderr[-300:]}")
    return library


def recorded(shim: Path, root: Path, **variables: str) -> dict[str, str]:
    """The environment of a process whose writes below the root are recorded."""
    preload = [str(shim), os.environ.get("LD_PRELOAD", "")]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(one for one in preload if one),
        "POWERCUT_ROOT": str(root),
        "POWERCUT_LOG": f"{root}.log",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path]),
        **variables,
    }


class Record(NamedTuple):
    kind: int
    error: int
    node: int
    number: int
    path: str
    data: bytes

    @property
    def mark(self) -> Any:
        """What the program said here."""
        return json.loads(self.data) if self.kind == MARK else None


class _Head(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_uint32), ("error", ctypes.c_uint32), ("path", ctypes.c_uint32),
        ("data", ctypes.c_uint32), ("node", ctypes.c_uint64), ("number", ctypes.c_int64),
    ]  # fmt: skip


def read(log: Path) -> list[Record]:
    content, at, found = log.read_bytes(), 0, []
    while at < len(content):
        head = _Head.from_buffer_copy(content, at)
        at += ctypes.sizeof(_Head)
        path = content[at : at + head.path].decode()
        data = content[at + head.path : at + head.path + head.data]
        at += head.path + head.data
        found.append(Record(head.kind, head.error, head.node, head.number, path, data))
    return found


# --- the disk -----------------------------------------------------------------


@dataclass(eq=False)
class File:
    """A file: what is on the disk for sure, what a process sees, and what was on the way."""

    disk: bytearray = field(default_factory=bytearray)
    seen: bytearray = field(default_factory=bytearray)
    pages: dict[int, list[bytes]] = field(default_factory=dict)  # versions of unsynced pages
    sizes: list[int] = field(default_factory=list)  # unsynced lengths

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if end > len(self.seen):
            self.seen.extend(bytes(end - len(self.seen)))
            self.sizes.append(end)
        self.seen[offset:end] = data
        for page in range(offset // PAGE, (end - 1) // PAGE + 1):
            version = bytes(self.seen[page * PAGE : (page + 1) * PAGE])
            self.pages.setdefault(page, []).append(version)

    def truncate(self, size: int) -> None:
        self.seen = self.seen[:size] + bytes(max(0, size - len(self.seen)))
        self.sizes.append(size)
        self.pages = {page: kept for page, kept in self.pages.items() if page * PAGE < size}

    def sync(self) -> None:
        for page in self.pages:
            start = page * PAGE
            self.disk.extend(bytes(max(0, start + PAGE - len(self.disk))))
            self.disk[start : start + PAGE] = self.seen[start : start + PAGE].ljust(PAGE, b"\0")
        self.disk = (self.disk + bytes(len(self.seen)))[: len(self.seen)]
        self.pages.clear()
        self.sizes.clear()

    def drop(self) -> None:
        """A sync failed: the pages are clean in memory, and not on the disk."""
        self.pages.clear()

    def after_cut(self, chance: random.Random, much: float) -> bytes:
        size = len(self.disk)
        if self.sizes and chance.random() < much:
            size = chance.choice(self.sizes) if chance.random() < 0.3 else self.sizes[-1]
        content = bytearray(self.disk[:size])
        content.extend(bytes(size - len(content)))  # a hole reads as zeros
        for page, versions in self.pages.items():
            start = page * PAGE
            if start >= size or chance.random() >= much:
                if start < size and start >= len(self.disk) and chance.random() < 0.2:
                    garbage = (
                        chance.randbytes(PAGE) if hasattr(chance, "randbytes") else b"\xa5" * PAGE
                    )
                    content[start : start + PAGE] = garbage[: size - start]
                continue
            new = versions[-1] if chance.random() < 0.7 else chance.choice(versions)
            new = new.ljust(PAGE, b"\0")
            if much < 1 and chance.random() < 0.2:  # torn
                old = bytes(content[start : start + PAGE]).ljust(PAGE, b"\0")
                new = b"".join(
                    (new if chance.random() < 0.5 else old)[at : at + SECTOR]
                    for at in range(0, PAGE, SECTOR)
                )
            content[start : start + PAGE] = new[: size - start]
        return bytes(content)


@dataclass
class Name:
    """A change of a folder's names: of a file, a folder (None), or a removal ("")."""

    path: str
    target: Any
    source: Optional[str] = None  # renamed from
    synced: bool = False

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]


class Disk:
    """Follows a recording; builds what a loss of power may leave at any point of it."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._files: dict[int, File] = {}  # by inode
        self._names: list[Name] = []
        self._by_path: dict[str, File] = {}
        self._committed = 0  # names that ext4's journal has

    def follow(self, one: Record) -> None:
        file = self._files.get(one.node)
        if one.kind == CREATE:
            self._files[one.node] = self._by_path[one.path] = File()
            self._names.append(Name(one.path, self._files[one.node]))
        elif one.kind == WRITE and file is not None:
            file.write(one.number, one.data)
        elif one.kind == TRUNCATE and file is not None:
            file.truncate(one.number)
        elif one.kind == SYNC and one.error:
            if file is not None:
                file.drop()
        elif one.kind == SYNC:
            self._committed = len(self._names)
            if file is not None:
                file.sync()
            for name in self._names:
                name.synced = name.synced or name.folder == one.path
        elif one.kind == RENAME:
            to = one.data.decode()
            self._names.append(Name(to, self._by_path.pop(one.path), one.path))
            self._by_path[to] = self._names[-1].target
        elif one.kind == UNLINK:
            self._by_path.pop(one.path, None)
            self._names.append(Name(one.path, ""))
        elif one.kind == MKDIR:
            self._names.append(Name(one.path, None))

    def killed(self, target: Path) -> None:
        """What the next process finds if this one was killed: all that was written."""
        self._build(target, self._names, lambda file: bytes(file.seen), b"")

    def cut(self, target: Path, system: str, chance: random.Random, much: float) -> None:
        """What may be on the disk after a loss of power; ``much`` of what was not synced is."""
        if system == "names":
            names = self._names
        elif system == "ext4":
            later = len(self._names) - self._committed
            names = self._names[
                : self._committed + round(chance.uniform(0, 1) ** (1 - much) * later)
            ]
        else:
            names = [name for name in self._names if name.synced or chance.random() < much]
        noise = bytes(chance.randrange(256) for _ in range(64)) * 512
        self._build(target, names, lambda file: file.after_cut(chance, much), noise)

    def _build(self, target: Path, names: list[Name], content: Any, shm: bytes) -> None:
        there: dict[str, Any] = {self.root: None}
        for name in names:
            if name.folder not in there:
                continue  # its folder is not there
            if name.source is not None:
                there.pop(name.source, None)
            if name.target == "":
                there.pop(name.path, None)
            else:
                there[name.path] = name.target
        for path, file in there.items():
            place = target / os.path.relpath(path, self.root)
            if file is None:
                place.mkdir(parents=True, exist_ok=True)
            elif path.endswith("-shm"):
                if shm:
                    place.write_bytes(shm)
            else:
                place.write_bytes(content(file))


def points(records: list[Record], count: int, chance: random.Random) -> Iterator[int]:
    """Where to cut: before syncs, after promises, and anywhere."""
    telling = [at for at, one in enumerate(records) if one.kind in (SYNC, MARK, RENAME, UNLINK)]
    chosen = set(chance.sample(telling, min(len(telling), count * 3 // 4)))
    chosen.update(chance.sample(range(len(records)), min(len(records), count // 4)))
    yield from sorted(chosen)
