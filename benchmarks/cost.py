"""What a turn costs in instructions, from `put` to completed, beside the code before.

Machine instructions of whole processes, counted by valgrind: a busy machine does not change them.
Each figure is the difference between a longer and a shorter run of a fresh process, so that start
and imports are not in it. The server is a stub in this process, which is not counted.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Iterator, Mapping

from .measure import OURS, RESULTS, Result, environment, rows, versions

#: The last code before the parts of a turn were moved into rooms.
BEFORE = "c19c66f"
_ROOT = Path(__file__).parent.parent
_CHILD = Path(__file__).with_name("cost_child.py")

#: What is done, how often in the shorter and the longer run, and polls until it is completed.
KINDS = {
    "put, a turn held": ("put", 100, 600, 1),
    "put to completed, a turn alone": ("deliver", 10, 30, 1),
    "put to completed, a turn of many": ("bulk", 50, 250, 1),
    "submit, a job": ("submit", 1000, 4000, 1),
}

#: Polls of one operation in the shorter and the longer run.
POLLS = (1, 21)


class _Stub(BaseHTTPRequestHandler):
    """Accepts everything, and has completed it at the `polls`-th poll."""

    protocol_version = "HTTP/1.1"
    polls = 1
    asked: ClassVar[Counter[str]] = Counter()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        operation, count = given.get("operation_id"), len(given["items"])
        self._answer(
            {
                "success": True,
                "bank_id": "b",
                "items_count": count,
                "async": True,
                "operation_id": operation,
            }
        )

    def do_GET(self) -> None:
        operation = self.path.rsplit("/", 1)[1]
        self.asked[operation] += 1
        done = self.asked[operation] >= type(self).polls
        status = "completed" if done else "pending"
        self._answer({"operation_id": operation, "id": operation, "status": status})


@contextlib.contextmanager
def _stub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Stub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _instructions(tree: Path, arguments: list[str]) -> Counter[str]:
    """Instructions by shared object."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
        command += [sys.executable, str(_CHILD), *arguments]
        variables = {**environment(), "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"}
        done = subprocess.run(
            command, env=variables, cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return _by_object(out.read_text(errors="replace"))


def _by_object(profile: str) -> Counter[str]:
    """Sum a callgrind profile's own costs by shared object."""
    names: dict[str, str] = {}
    found: Counter[str] = Counter()
    current, is_call = "", False
    for line in profile.splitlines():
        if match := re.match(r"ob=\((\d+)\)(?: (.*))?", line):
            number, name = match[1], match[2]
            if name:
                names[number] = Path(name).name
            current = names[number]
        elif match := re.match(r"cob=\((\d+)\) (.*)", line):
            names[match[1]] = Path(match[2]).name
        elif line.startswith("calls="):
            is_call = True  # the next line has the cost of what was called
        elif match := re.match(r"[+\-*\d]\S* (\d+)$", line):
            if not is_call:
                found[current] += int(match[1])
            is_call = False
    return found


def _bytecodes(tree: Path, arguments: list[str]) -> Counter[str]:
    with tempfile.TemporaryDirectory() as folder:
        variables = {**environment(), "PYTHONPATH": str(tree)}
        command = [sys.executable, str(_CHILD), *arguments, "profile"]
        return Counter(json.loads(subprocess.check_output(command, env=variables, cwd=folder)))


def _by_package(functions: Mapping[str, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for function, count in functions.items():
        first, _, rest = function.partition(".")
        name = f"{first}.{rest.partition('.')[0]}" if first == "hindsight_exec" else first
        found[name] = found.get(name, 0.0) + count
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _each(more: Counter[str], less: Counter[str], count: int) -> dict[str, float]:
    found = {name: (more[name] - less[name]) / count for name in more}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _measure(count: Any, tree: Path, url: str) -> dict[str, dict[str, float]]:
    """What each kind of work costs, by object or by function."""
    made = {}
    for line, (kind, less, more, polls) in KINDS.items():
        _Stub.polls = polls
        taken = [count(tree, [kind, str(times), url]) for times in (more, less)]
        made[line] = _each(*taken, more - less)
    taken = []
    for _Stub.polls in reversed(POLLS):
        taken.append(count(tree, ["deliver", "1", url]))
    made["a poll"] = _each(*taken, POLLS[1] - POLLS[0])
    return made


@contextlib.contextmanager
def _before() -> Iterator[dict[str, Path]]:
    """The code before; nothing without git."""
    with tempfile.TemporaryDirectory() as place:
        archive = subprocess.run(
            ["git", "-C", str(_ROOT), "archive", BEFORE, "hindsight_exec"],
            capture_output=True,
            check=False,
        )
        if archive.returncode:
            yield {}
            return
        subprocess.run(["tar", "-x", "-C", place], input=archive.stdout, check=True)
        yield {f"before ({BEFORE})": Path(place)}


def run(*, rounds: int = 1) -> Result:
    """Counted ``rounds`` times: the counts of two runs differ by less than a hundredth."""
    if not shutil.which("valgrind"):
        raise SystemExit("this needs valgrind")
    with _before() as before, _stub() as url:
        trees = {OURS: _ROOT, **before}
        for tree in trees.values():
            # Else the first run would compile it, and be the only one that does.
            package = str(tree / "hindsight_exec")
            subprocess.run([sys.executable, "-m", "compileall", "-q", package], check=True)
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        objects = {}
        for _ in range(rounds):
            for name, tree in trees.items():
                objects[name] = _measure(_instructions, tree, url)
                sums = {line: sum(parts.values()) / 1e3 for line, parts in objects[name].items()}
                taken[name].append(sums)
        functions = {name: _measure(_bytecodes, tree, url) for name, tree in trees.items()}
    packages = {
        name: {line: _by_package(parts) for line, parts in lines.items()}
        for name, lines in functions.items()
    }
    profile = {
        "machine instructions by object": objects,
        "bytecodes by package": packages,
        "bytecodes by function": functions,
    }
    (RESULTS / "profiles" / "cost.json").write_text(
        json.dumps(_shortened(profile), indent=1) + "\n"
    )
    *_, reference = trees
    result = Result(
        "cost",
        "What a turn costs in instructions",
        "thousand instructions",
        reference if before else "",
        rows(taken, reference if before else ""),
        rounds=rounds,
        versions=versions(),
    )
    if before:
        for line in taken[OURS][0]:
            bound = 1.0 if line.startswith(("put, ", "submit")) else 2 / 3
            result.aim("not above" if bound == 1 else "a third less", line, bound)
    return result


def _shortened(profile: Any, most: int = 25) -> Any:
    """The first entries of each table, and the sum of the others."""
    if all(isinstance(value, dict) for value in profile.values()):
        return {name: _shortened(table, most) for name, table in profile.items()}
    kept = {name: round(value) for name, value in list(profile.items())[:most]}
    rest = sum(list(profile.values())[most:])
    return {**kept, "all others": round(rest), "sum": round(sum(profile.values()))}
