"""Runs `hindsight-exec` as a process, in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple

from children import Process
from transcripts import made_transcript

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = (sys.executable, "-m", "hindsight_exec")

GIVE = """\
import sys
from pathlib import Path
from hindsight_exec import RetainWriter, Settings

url, state, bank, session, first, last, end = sys.argv[1:]
writer = RetainWriter(Settings(api_url=url, bank_id=bank, drain_timeout=60), state=Path(state))
for number in range(int(first), int(last)):
    writer.put(
        [
            {"role": "user", "content": f"User: {number} "},
            {"role": "assistant", "content": f"Assistant: {number} "},
        ],
        session=session,
    )
if end == "live":
    print("given", flush=True)
    sys.stdin.read()
"""


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Cli:
    """`hindsight-exec` in a folder of its own, with nothing configured."""

    def __init__(self, folder: Path) -> None:
        self._processes: list[Process] = []
        self.folder = folder
        self.state = folder / "state"
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HINDSIGHT_", "HERMES_", "NO_COLOR", "TERM", "PYTHON"))
        }
        self.environ = {
            **kept,
            "HOME": str(folder / "home"),
            "HINDSIGHT_EXEC_STATE": str(self.state),
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, *args: str, before: tuple[str, ...] = (), **options: Any) -> Process:
        """Start it, through the command `before`; it lives until `close` at the longest."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = Process(
            [*before, *PROGRAM, *args],
            cwd=self.folder,
            env={**self.environ, **options.pop("environ", {})},
            encoding="utf-8",
            **{**pipes, **options},
        )
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in self._processes:
            process.close()

    def __call__(self, *args: str, given: str = "", **environ: str) -> Done:
        process = self.start(*args, environ=environ)
        out, err = process.communicate(given, timeout=100)
        assert "Traceback" not in err, err
        return Done(process.returncode, out, err)

    def one_line(self, *args: str, **environ: str) -> Done:
        """A command that fails in one clear line."""
        done = self(*args, **environ)
        assert done.out == ""
        assert done.err.startswith("hindsight-exec: ")
        assert done.err.count("\n") == 1, done.err
        return done

    def give(self, url: str, last: int, *, bank: str = "b", session: str = "s") -> None:
        """Have a process keep turns and end; without a server they wait on disk."""
        command = [sys.executable, "-c", GIVE, url, str(self.state), bank, session, "0"]
        subprocess.run(
            [*command, str(last), ""], check=True, timeout=100, capture_output=True, cwd=self.folder
        )

    @contextlib.contextmanager
    def giving(self, url: str, last: int) -> Iterator[None]:
        """A process that has kept turns and lives."""
        command = [sys.executable, "-c", GIVE, url, str(self.state), "b", "live", "0"]
        with Process(
            [*command, str(last), "live"],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdout.readline() == b"given\n"
            yield

    def settings(self, **values: Any) -> None:
        """Write the user's config.json."""
        path = self.folder / "home" / ".hindsight" / "config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")

    def transcript(self, turns: int, name: str = "talk.jsonl") -> list[str]:
        """A transcript in the folder; what its messages are when stored."""
        lines, said = made_transcript(turns)
        (self.folder / name).write_text("\n".join(lines), encoding="utf-8")
        return [text for user, answer in said for text in (f"User: {user}", f"Assistant: {answer}")]


def ended(process: Process) -> Done:
    out, err = process.communicate(timeout=60)
    return Done(process.returncode, out, err)
