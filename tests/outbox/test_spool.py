"""The state directory: one owner a file, and what dead owners leave goes to one heir."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hindsight_exec.errors import OutboxUnavailable
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.forks import this_process

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")

# Owns a file and says so; ends when it is told to, or is killed.
OWN = """\
import signal, sys
from pathlib import Path
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.forks import this_process
claim = spool.create(Path(sys.argv[1]))
claim.path.write_text("kept")
print("owned", flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "parent" / "state"


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if one.name != ".folder.lock")


def orphan(folder: Path) -> Path:
    """A file that a process left behind."""
    claim = spool.create(folder)
    claim.release()
    return claim.path


# --- making and giving up -----------------------------------------------------


def test_a_new_file(folder: Path) -> None:
    """The folder is made, and in it a file that is empty, owned, and named by the time."""
    first, second = spool.create(folder), spool.create(folder)
    assert spool.files(folder) == [first.path, second.path]
    assert first.path.read_bytes() == b""
    assert spool.is_live(first.path)
    first.release()
    second.release(remove=True)
    assert names(folder) == [first.path.name, first.path.with_suffix(".lock").name]
    assert not spool.is_live(first.path)
    assert not spool.is_live(second.path)


def test_removing_takes_what_belongs_to_it(folder: Path) -> None:
    """The file goes with its log, its index, its journal and its lock, and nothing else does."""
    claim, other = spool.create(folder), spool.create(folder)
    for suffix in ("-wal", "-shm", "-journal"):
        Path(f"{claim.path}{suffix}").touch()
    claim.release(remove=True)
    claim.release(remove=True)
    claim.release()
    assert spool.files(folder) == [other.path]
    assert len(names(folder)) == 2
    other.release(remove=True)
    assert names(folder) == []


@posix
def test_modes(folder: Path) -> None:
    """Folder and files are the user's alone; a folder that was open to others is closed."""
    before = os.umask(0)
    try:
        folder.mkdir(parents=True, mode=0o777)
        claim = spool.create(folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()} == {0o600}
    claim.release(remove=True)


def test_files_are_listed_oldest_first(folder: Path) -> None:
    """By the time they were made; other files are no outboxes, and no folder has none."""
    assert spool.files(folder) == spool.aside(folder) == []
    made = [orphan(folder) for _ in range(20)]
    (folder / "README").touch()
    assert spool.files(folder) == made
    (folder.parent / "file").touch()
    assert spool.files(folder.parent / "file") == []


# --- adopting -----------------------------------------------------------------


def test_adopting_what_was_left(folder: Path) -> None:
    """A file without an owner gets one, once; when it is given up, it can be adopted again."""
    path = orphan(folder)
    claim = spool.adopt(path)
    assert claim is not None
    assert claim.path == path
    assert spool.is_live(path)
    assert spool.adopt(path) is None
    claim.release()
    again = spool.adopt(path)
    assert again is not None
    again.release(remove=True)
    assert spool.adopt(path) is None
    assert names(folder) == []


def test_a_live_owner_keeps_its_file(folder: Path, start: Any) -> None:
    """While its process lives, however busy, no other adopts it; SIGKILL is the end of that."""
    child = start(OWN + "signal.pause()\n", str(folder))
    child.wait_for("owned")
    (path,) = spool.files(folder)
    assert spool.is_live(path)
    assert spool.adopt(path) is None
    child.send(signal.SIGKILL)
    child.end()
    assert not spool.is_live(path)
    claim = spool.adopt(path)
    assert claim is not None
    assert path.read_text() == "kept"
    claim.release(remove=True)


def test_many_adopt_at_once(folder: Path, start: Any) -> None:
    """Of processes that start at once, each file has one heir."""
    left = [orphan(folder) for _ in range(40)]
    program = """
        import sys
        from pathlib import Path
        from hindsight_exec.outbox import spool
        print("ready", flush=True)
        while not Path(sys.argv[2]).exists():
            pass
        claims = [spool.adopt(path) for path in spool.files(Path(sys.argv[1]))]
        for claim in claims:
            if claim is not None:
                print("got", claim.path.name, flush=True)
        print("done", flush=True)
        import signal
        signal.pause()
    """
    signal_file = folder.parent / "go"
    children = [start(program, str(folder), str(signal_file)) for _ in range(4)]
    for child in children:
        child.wait_for("ready")
    signal_file.touch()
    got: list[str] = []
    for child in children:
        child.wait_for("done")
    for child in children:
        child.send(signal.SIGKILL)
        got += [line[4:] for line in child.end().out.splitlines() if line.startswith("got")]
    assert sorted(got) == [path.name for path in left]


def test_adopting_while_the_owner_removes(folder: Path, start: Any) -> None:
    """An owner that removes its file and one that adopts it never both own it."""
    program = """
        import sys
        from pathlib import Path
        from hindsight_exec.outbox import spool
        for _ in range(300):
            claim = spool.create(Path(sys.argv[1]))
            claim.release(remove=True)
        print("done")
    """
    child = start(program, str(folder))
    while child.process.poll() is None:
        for path in spool.files(folder):
            claim = spool.adopt(path)
            if claim is not None:
                assert path.exists()
                claim.release(remove=True)
    assert child.end().out == "done\n"
    for path in spool.files(folder):  # given up between the last look and the end
        claim = spool.adopt(path)
        assert claim is not None
        claim.release(remove=True)
    assert names(folder) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_keep_the_lock(folder: Path, start: Any) -> None:
    """The parent dies, its child lives on: the file is free, and the child cannot release it."""
    program = OWN + (
        "import os\n"
        "child = os.fork()\n"
        "if child:\n"
        "    signal.pause()\n"
        "signal.alarm(100)\n"
        "claim.release(remove=True)\n"
        "claim.release()\n"
        "print(f'child {os.getpid()}', flush=True)\n"
        "print('forked', flush=True)\n"
        "signal.pause()\n"
    )
    child = start(program, str(folder))
    child.wait_for("owned")
    child.wait_for("forked")
    (path,) = spool.files(folder)
    assert spool.adopt(path) is None
    child.send(signal.SIGKILL)
    child.process.wait()
    claim = spool.adopt(path)
    assert claim is not None
    claim.release(remove=True)
    grandchild = int(next(line for line in child._read if line.startswith("child ")).split()[1])
    os.kill(grandchild, signal.SIGKILL)


@posix
def test_a_stopped_process_stops_no_other(
    folder: Path, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the folder's lock cannot be had, that is an error in the end, though a test froze time."""
    path = orphan(folder)
    program = """
        import sys, signal
        from pathlib import Path
        from hindsight_exec.outbox import spool
        with spool.folder_lock(Path(sys.argv[1])):
            print("locked", flush=True)
            signal.pause()
    """
    child = start(program, str(folder))
    child.wait_for("locked")
    child.send(signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(spool, "_PATIENCE", 0.1)
        patch.setattr(time, "monotonic", lambda: 0.0)
        with pytest.raises(OutboxUnavailable, match="holds its lock"):
            spool.create(folder)
        with pytest.raises(OutboxUnavailable, match="holds its lock"):
            spool.adopt(path)
    child.send(signal.SIGKILL)
    child.end()
    spool.create(folder).release(remove=True)


# --- setting aside ------------------------------------------------------------


def test_setting_aside(folder: Path) -> None:
    """The file gets a telling name, keeps its logs, and is no outbox any more."""
    claim = spool.create(folder)
    claim.path.write_text("database")
    for suffix in ("-wal", "-journal", "-shm"):
        Path(f"{claim.path}{suffix}").write_text(suffix)
    aside = claim.set_aside("damaged")
    assert spool.files(folder) == []
    assert spool.aside(folder) == [aside]
    assert aside.name.startswith(f"{claim.path.stem}.damaged-")
    assert aside.read_text() == "database"
    assert names(folder) == sorted(f"{aside.name}{suffix}" for suffix in ("", "-wal", "-journal"))
    assert Path(f"{aside}-wal").read_text() == "-wal"
    claim.release()


def test_setting_aside_what_is_gone(folder: Path) -> None:
    """A file that somebody removed meanwhile is no error."""
    claim = spool.create(folder)
    claim.path.unlink()
    assert not claim.set_aside("damaged").exists()
    assert names(folder) == []


# --- what is not ours ---------------------------------------------------------


@posix
def test_links_are_left_alone(folder: Path) -> None:
    """A symbolic or a hard link to a file elsewhere is not opened, and its target not touched."""
    spool.create(folder).release(remove=True)
    target = folder.parent / "precious"
    target.write_text("precious")
    (folder / "1.db").symlink_to(target)
    os.link(target, folder / "2.db")
    (folder / "3.db").symlink_to(folder.parent / "dangling")
    for path in spool.files(folder):
        with pytest.raises(OutboxUnavailable, match="not a plain file"):
            spool.adopt(path)
    assert target.read_text() == "precious"
    assert not (folder.parent / "dangling").exists()
    assert len(spool.files(folder)) == 3


@posix
@pytest.mark.parametrize("name", [".folder.lock", "1.lock"])
def test_locks_that_are_links(folder: Path, name: str) -> None:
    """A lock file that is a link to somewhere is not followed."""
    folder.mkdir(parents=True, mode=0o700)
    (folder / "1.db").touch()
    target = folder.parent / "elsewhere"
    (folder / name).symlink_to(target)
    with pytest.raises(OutboxUnavailable):
        spool.adopt(folder / "1.db")
    assert not spool.is_live(folder / "1.db")
    assert not target.exists()


@posix
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file(folder: Path, make: Any) -> None:
    """A pipe or a folder with an outbox's name is left alone, and blocks nothing."""
    folder.mkdir(parents=True, mode=0o700)
    make(folder / "1.db")
    with pytest.raises(OutboxUnavailable, match="not a plain file"):
        spool.adopt(folder / "1.db")
    make(folder / "2.lock")
    assert not spool.is_live(folder / "2.db")


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away"
)
def test_files_of_another_user(folder: Path) -> None:
    """They are left alone, and the folder of another user is not changed."""
    path = orphan(folder)
    os.chown(path, 12345, -1)
    with pytest.raises(OutboxUnavailable, match="of this user"):
        spool.adopt(path)
    os.chown(folder, 12345, -1)
    folder.chmod(0o755)
    spool.create(folder).release(remove=True)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


# --- trouble ------------------------------------------------------------------


def test_a_file_in_the_folders_place(folder: Path) -> None:
    """If no folder can be made, the error names it."""
    folder.parent.mkdir()
    folder.write_text("in the way")
    with pytest.raises(OutboxUnavailable, match="state"):
        spool.create(folder)
    assert folder.read_text() == "in the way"


@posix
def test_a_removed_folder(folder: Path) -> None:
    """An owner of a folder that is gone can let go of it, and the next file makes it anew."""
    claim, other = spool.create(folder), spool.create(folder)
    shutil.rmtree(folder)
    assert spool.files(folder) == []
    assert not spool.is_live(claim.path)
    with pytest.raises(OutboxUnavailable):
        spool.adopt(claim.path)
    claim.release(remove=True)
    other.set_aside("damaged")
    assert not folder.exists()
    spool.create(folder).release(remove=True)
    assert folder.is_dir()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_no_descriptor_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether locking works, is refused or fails, no descriptor stays open."""

    def count() -> int:
        opened = 0
        for link in Path("/proc/self/fd").iterdir():
            with suppress(OSError):  # another thread's, closed meanwhile
                opened += folder in link.readlink().parents
        return opened

    path = orphan(folder)
    before, known = count(), this_process().descriptors
    claim = spool.adopt(path)
    assert claim is not None
    assert count() == before + 1
    assert spool.adopt(path) is None
    assert spool.is_live(path)
    assert count() == before + 1
    claim.release()

    def refuse(descriptor: int) -> bool:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == ".folder.lock":
            return True
        raise OSError(37, "No locks available")

    monkeypatch.setattr(spool, "try_lock", refuse)
    for call in (lambda: spool.adopt(path), lambda: spool.create(folder)):
        with pytest.raises(OutboxUnavailable, match="No locks available"):
            call()
    assert not spool.is_live(path)
    assert count() == before
    assert this_process().descriptors <= known  # writers of other tests may close theirs
    assert names(folder) == [path.name, path.with_suffix(".lock").name]


# --- others that are just doing something ---------------------------------------


@posix
def test_a_folder_whose_lock_is_not_to_be_had(folder: Path, monkeypatch) -> None:
    """Its patience is spent once, and again only after the lock was free."""
    waits: list[float] = []
    monkeypatch.setattr(spool, "_PATIENCE", 0.05)
    monkeypatch.setattr(spool.time, "sleep", waits.append)
    spool.create(folder).release(remove=True)
    other = os.open(folder / ".folder.lock", os.O_RDWR)
    assert spool.try_lock(other)
    for patiently in (True, False):
        waits.clear()
        with pytest.raises(OutboxUnavailable, match="another process holds its lock"):
            spool.create(folder)
        assert (len(waits) > 1) == patiently
    os.close(other)
    spool.create(folder).release(remove=True)
    assert folder not in spool._stuck


@posix
def test_adoption_beside_one_who_looks(folder: Path, monkeypatch) -> None:
    """Another process that asks at that moment whether the owner lives is not taken for it."""
    path = orphan(folder)
    looking = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT)
    assert spool.try_lock(looking)
    monkeypatch.setattr(spool.time, "sleep", lambda _: os.close(looking))
    claim = spool.adopt(path)
    assert claim is not None
    claim.release(remove=True)
