"""Loss of power and faults of the disk: what was promised is delivered, once, whatever is left.

A process is recorded; for many points of the recording, and for many disks that a loss of power
may leave there, the next process is started on that disk. POWERCUT_IMAGES says how many disks.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Optional

import pytest
from children import Process
from disk import MARK, SYSTEMS, Disk, Record, points, read, recorded, shim
from workload import Promise

__all__ = ["shim"]  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROGRAM = str(Path(__file__).with_name("workload.py"))
IMAGES = int(os.environ.get("POWERCUT_IMAGES", "500"))


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, if there is one: the disk is simulated, and need not be slow."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def record(
    shim: Path, root: Path, durability: str, life: str = "long", count: int = 1, **variables: str
) -> list[Record]:
    """Record processes that live beside each other."""
    root.mkdir()
    environment = recorded(shim, root, **variables)
    command = [sys.executable, PROGRAM, str(root), durability, life]
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                Process(command, env=environment, stderr=subprocess.PIPE, text=True)
            )
            for _ in range(count)
        ]
        for one in started:
            _, errors = one.communicate(timeout=120)
            assert (one.returncode, "Traceback" in errors) == (0, False), errors
    return read(Path(f"{root}.log"))


def check(
    records: list[Record],
    root: Path,
    durability: str,
    *,
    images: int = IMAGES,
    seed: int = 1,
    start: int = 0,
    promised: Optional[str] = None,
) -> list[str]:
    """Cut the power at points of a recording; returns what went wrong, the first ones."""
    chance = random.Random(seed)
    disk, promise = Disk(root), Promise()
    wanted = set(points(records, max(10, images // 5), chance))
    trouble: list[str] = []
    target = root.with_name(f"{root.name}.image")
    for at, one in enumerate(records):
        disk.follow(one)
        if one.kind == MARK:
            promise.follow(one.mark)
        if at not in wanted or at < start:
            continue
        kinds: list[tuple[str, float]] = [("killed", 1.0)]
        kinds += [(chance.choice(SYSTEMS), much) for much in (0.0, 1.0, 0.5, chance.random())]
        for system, much in kinds:
            if system == "killed":
                disk.killed(target)
            else:
                disk.cut(target, system, chance, much)
            folder = next((one for one in target.glob("**/outbox")), target / "outbox")
            wrong = promise.trouble(
                folder, killed=system == "killed", durability=promised or durability
            )
            if wrong:
                trouble.append(f"record {at} of {len(records)}, {system}, {much:.2f}: {wrong}")
            shutil.rmtree(target)
    print(f"{len(wanted)} points of {len(records)}, {5 * len(wanted)} disks")
    return trouble[:5]


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_power_cuts(shim: Path, tmp_path: Path, durability: str) -> None:
    """From the first start ever: nothing that `full` promised is missing, what `normal` has is a
    prefix, nothing is stored twice or replaced, no undamaged file is set aside, and nothing is
    left that nobody owns."""
    records = record(shim, tmp_path / "root", durability)
    assert not [one.mark for one in records if one.kind == MARK and one.mark[0] == "ended"]
    assert check(records, tmp_path / "root", durability) == []


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_power_cuts_of_processes_beside_each_other(
    shim: Path, tmp_path: Path, durability: str
) -> None:
    """The same with two processes that give, deliver and adopt in one folder."""
    records = record(shim, tmp_path / "root", durability, "short", 2)
    assert check(records, tmp_path / "root", durability) == []


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_a_sync_that_is_left_out_is_found(shim: Path, tmp_path: Path, durability: str) -> None:
    """The simulator sees a planted fault: promises of `full` at `normal`, and a disk that lies."""
    if durability == "full":
        records = record(shim, tmp_path / "root", "normal")
        assert check(records, tmp_path / "root", "normal", promised="full")
    else:
        records = record(shim, tmp_path / "root", durability, POWERCUT_FAIL="lie:0:0:-wal")
        assert check(records, tmp_path / "root", durability)


FAULTS = [
    ("sync", errno.EIO, 14), ("write", errno.EIO, 60), ("write", errno.ENOSPC, 60),
    ("short", 0, 60), ("truncate", errno.EIO, 8), ("open", errno.EMFILE, 60),
    ("mkdir", errno.EACCES, 3), ("unlink", errno.EROFS, 8),
]  # fmt: skip


@pytest.mark.parametrize("kind, error, last", FAULTS)
def test_one_fault_and_then_a_cut(
    shim: Path, tmp_path: Path, kind: str, error: int, last: int
) -> None:
    """After one call of the disk failed, and everything works again, `full` holds as before."""
    chance = random.Random(f"{kind}{error}")
    rounds = max(2, IMAGES // 100)
    for number in sorted(chance.sample(range(1, last), min(rounds, last - 1))):
        root = tmp_path / f"{kind}{number}"
        fail = f"{kind}:{number}:{error}"
        records = record(shim, root, "full", POWERCUT_FAIL=fail)
        assert check(records, root, "full", images=IMAGES // 6, seed=number) == [], fail


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(2, 10))
@pytest.mark.parametrize("durability", ["full", "normal"])
def test_power_cuts_for_long(shim: Path, tmp_path: Path, durability: str, seed: int) -> None:
    """The same for an hour, with thousands of disks."""
    for life, count in (("long", 1), ("short", 2)):
        root = tmp_path / life
        records = record(shim, root, durability, life, count)
        assert check(records, root, durability, images=20 * IMAGES, seed=seed) == []


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind, error, last", FAULTS)
def test_every_fault_and_then_a_cut(
    shim: Path, tmp_path: Path, kind: str, error: int, last: int
) -> None:
    """Each call fails once."""
    for number in range(1, 4 * last):
        root = tmp_path / f"{kind}{number}"
        fail = f"{kind}:{number}:{error}"
        records = record(shim, root, "full", POWERCUT_FAIL=fail)
        assert check(records, root, "full", images=IMAGES // 3, seed=number) == [], fail
        shutil.rmtree(root)


@pytest.mark.skipif(sys.platform != "linux", reason="preloads a library")
def test_no_shared_memory(shim: Path, tmp_path: Path) -> None:
    """Where SQLite's index cannot be mapped, turns are on disk all the same."""
    records = record(shim, tmp_path / "root", "full", POWERCUT_FAIL=f"mmap:0:{errno.ENODEV}:-shm")
    kept: list[Any] = [one.mark for one in records if one.kind == MARK and one.mark[0] == "kept"]
    assert len(kept) > 30
    assert check(records, tmp_path / "root", "full", images=50) == []
