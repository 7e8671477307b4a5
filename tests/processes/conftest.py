"""The server of all lives, the worlds around them, and the table of what became of them."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from children import Process

import hindsight_exec

from .life import APPS, Life, Tally, World
from .models import Model

HEAD = ("process", "given", "stored while it ran", "at its end", "by the next", "twice", "exit")
_numbers = itertools.count()
_rows: list[tuple[object, ...]] = []


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of `hindsight-exec serve`, as a process; it ends with this one, however that ends."""
    serve = [sys.executable, "-m", "hindsight_exec", "serve", "--memory", "--port", "0"]
    pipe = subprocess.PIPE
    with Process([*serve, "--until-eof"], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


def _build_one_file(folder: Path) -> World:
    """The plain program as PyInstaller's one file."""
    command = [sys.executable, "-m", "PyInstaller", "--onefile", "--log-level", "ERROR"]
    for option in ("distpath", "workpath", "specpath"):
        command += [f"--{option}", str(folder / option)]
    # What the program does not use brings much of this environment with it.
    for module in ("aiohttp.worker", "aiohttp.pytest_plugin", "aiohttp.test_utils", "IPython"):
        command += ["--exclude-module", module]
    # It does not see the hooks of an editable install.
    command += ["--paths", str(Path(hindsight_exec.__file__).parents[1])]
    subprocess.run([*command, str(APPS / "plain.py")], check=True, timeout=240)
    return World(program=str(folder / "distpath" / "plain"))


def _build_no_shared_map(folder: Path) -> World:
    """SQLite's shared memory cannot be mapped."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("needs a C compiler")
    library, source = str(folder / "no_shared_map.so"), str(APPS / "no_shared_map.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return World(variables={"LD_PRELOAD": library})


def _read_only(folder: Path) -> World:
    """Nothing but the folder can be written, and the user has no name and no home."""
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("needs root, and leave to make a mount namespace")
    return World(prefix=("unshare", "--mount", "sh", str(APPS / "read_only.sh"), str(folder)))


@pytest.fixture(scope="session")
def make_world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], World]:
    """What stands around a process that may write in a folder: `make_world(name, folder)`."""
    built: dict[str, World] = {"": World()}
    builders = {"one_file": _build_one_file, "no_shared_map": _build_no_shared_map}

    def make(name: str, folder: Path) -> World:
        if name == "read_only":
            return _read_only(folder)
        if name not in built:
            built[name] = builders[name](tmp_path_factory.mktemp(name))
        return built[name]

    return make


@pytest.fixture
def live(server: str, make_world: Any, tmp_path: Path) -> Callable[[Model], Tally]:
    """Let a process of a model live, and count."""

    def live(model: Model) -> Tally:
        folder = tmp_path / "life"
        folder.mkdir()
        world = make_world(model.world, folder)
        tally = Life(model, world, folder, server, f"bank{next(_numbers)}").live()
        alive = "" if tally.alive is None else tally.alive
        status = "hung" if tally.status is None else tally.status
        counts = (tally.given, alive, tally.exited, tally.stored, tally.twice, status)
        _rows.append((model.name, *counts))
        return tally

    return live


def pytest_sessionfinish() -> None:
    """Write the table for docs/reliability.md to HINDSIGHT_EXEC_TABLES/processes.md."""
    folder = os.environ.get("HINDSIGHT_EXEC_TABLES")
    if folder and _rows:
        rows = [HEAD, ("---",) * len(HEAD), *_rows]
        lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
        Path(folder, "processes.md").write_text("\n".join(lines) + "\n")
