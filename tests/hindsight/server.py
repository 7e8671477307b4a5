"""A real Hindsight server for tests: PostgreSQL, the API, and stubs where it would ask models.

By hand, with HINDSIGHT_API_PYTHON naming a Python that has hindsight-api-slim[embedded-db]:

    python -m tests.hindsight.server [--port PORT] [--api-key KEY] [--llm]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Optional
from urllib.parse import urlsplit

from children import Process
from serving import free_port
from waiting import eventually  # handed on to this room

from .stub import Models

VARIABLE = "HINDSIGHT_API_PYTHON"
START_SECONDS = 120.0

# What a write becomes visible by, for `Server.aim`: queries whose answer changes with it.
ACCEPTED = "SELECT count(*) FROM async_operations"
STORED = "SELECT count(*), max(updated_at) FROM documents"
COMPLETED = "SELECT count(*) FROM async_operations WHERE status = 'completed'"

# Operations that a worker has or will have.
BUSY = "SELECT status FROM async_operations WHERE status IN ('pending', 'processing')"


class Absent(Exception):
    """There is no Hindsight here; the text says what to do."""


def find_python() -> str:
    """The Python that has Hindsight's server; Absent if there is none that can be used."""
    python = os.environ.get(VARIABLE)
    if not python:
        raise Absent(f"{VARIABLE} names no Python that has hindsight-api-slim[embedded-db]")
    question = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
    try:
        found = subprocess.run(
            [python, "-c", question, "hindsight_api", "pg0"], capture_output=True, check=False
        )
    except OSError as error:
        raise Absent(f"{VARIABLE}={python} cannot be run: {error}") from error
    if found.returncode:
        raise Absent(f"{VARIABLE}={python} has no hindsight-api-slim[embedded-db]")
    return python


def request(
    method: str,
    url: str,
    body: object = None,
    *,
    api_key: Optional[str] = None,
    timeout: float = 60.0,
) -> tuple[int, Any]:
    """A plain request, by other means than the client under test: status, and JSON or bytes."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, target, data, headers)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    try:
        return answer.status, json.loads(content)
    except ValueError:
        return answer.status, content


class Hindsight:
    """An installation of Hindsight, running: PostgreSQL, the models' stub, and any servers.

    Raises Absent when there is no Hindsight to run. Not for two threads at once, save `Server`s'
    `kill` and what they are asked over HTTP.
    """

    def __init__(self, python: Optional[str] = None) -> None:
        python = python or find_python()
        # Not pytest's folder: that one is closed to the unprivileged user PostgreSQL runs as.
        self.folder = Path(tempfile.mkdtemp(prefix="hindsight-exec-"))
        self.folder.chmod(0o711)
        self.models = Models()
        self._lock = threading.Lock()
        self._servers = 0
        port = free_port()
        self.python = python
        self.environment = environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("HINDSIGHT_", "OPENAI_"))},
            # Only what is cheaper than a default for production, and what needs no model.
            "HINDSIGHT_API_HOST": "127.0.0.1",
            "HINDSIGHT_API_DB_POOL_MIN_SIZE": "1",
            "HINDSIGHT_API_DB_POOL_MAX_SIZE": "30",
            "HINDSIGHT_API_LLM_PROVIDER": "none",
            "HINDSIGHT_API_SKIP_LLM_VERIFICATION": "true",
            "HINDSIGHT_API_ENABLE_OBSERVATIONS": "false",
            "HINDSIGHT_API_EMBEDDINGS_PROVIDER": "openai",
            "HINDSIGHT_API_EMBEDDINGS_OPENAI_API_KEY": "stub",
            "HINDSIGHT_API_EMBEDDINGS_OPENAI_MODEL": "stub",
            "HINDSIGHT_API_EMBEDDINGS_OPENAI_BASE_URL": self.models.url,
            "HINDSIGHT_API_RERANKER_PROVIDER": "rrf",
            "HINDSIGHT_API_WORKER_POLL_INTERVAL_MS": "50",
            "HF_HUB_OFFLINE": "1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "NO_PROXY": "127.0.0.1",
        }
        self._log = open(self.folder / "keeper.log", "ab")  # noqa: SIM115  closed in close()
        self._keeper = Process(
            [python, "-u", str(Path(__file__).with_name("keeper.py")), str(self.folder), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            cwd=self.folder,  # Ctrl-C is for the tests, which then end it in their order
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Hindsight:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything. Logs are kept only if HINDSIGHT_API_LOGS names a folder for them."""
        keeper = self._keeper
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        with contextlib.suppress(OSError):
            keeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            keeper.wait(30)
        keeper.close()
        self._log.close()
        self.models.close()
        logs = os.environ.get("HINDSIGHT_API_LOGS")
        if logs:
            kept = Path(logs) / self.folder.name
            kept.mkdir(parents=True, exist_ok=True)
            for log in self.folder.glob("*.log"):
                shutil.copy2(log, kept)
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, do: str, **arguments: object) -> Any:
        """Have the keeper do one thing."""
        with self._lock:
            assert self._keeper.stdin is not None
            line = json.dumps({"do": do, **arguments}).encode() + b"\n"
            self._keeper.stdin.write(line)
            self._keeper.stdin.flush()
            return self._answer()

    def _answer(self) -> Any:
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline()
        if not line:
            text = (self.folder / "keeper.log").read_text(errors="replace")
            raise RuntimeError(f"the keeper of the Hindsight server ended:\n{text[-4000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["answer"]

    def server(
        self,
        *,
        llm: bool = False,
        api_key: Optional[str] = None,
        beside: Optional[Server] = None,
        port: int = 0,
        program: str = "api",
        **settings: object,
    ) -> Server:
        """A server that is not started yet, on a database of its own, or on that of another.

        The program "api" has a worker in it unless `worker_enabled` is false, "worker" is one alone.

        `settings` are Hindsight's own, without their prefix and in lower case.
        """
        self._servers += 1
        name = f"s{self._servers}"
        environment = {
            # Stable, and one for each process: a worker that starts takes up what the one of its
            # name left unfinished. Two of one name would run each other's operations twice.
            "HINDSIGHT_API_WORKER_ID": name,
        }
        if llm:
            environment.update(
                HINDSIGHT_API_LLM_PROVIDER="openai",
                HINDSIGHT_API_LLM_API_KEY="stub",
                HINDSIGHT_API_LLM_MODEL="stub",
                HINDSIGHT_API_LLM_BASE_URL=self.models.url,
            )
        if api_key:
            environment.update(
                HINDSIGHT_API_TENANT_EXTENSION=(
                    "hindsight_api.extensions.builtin.tenant:ApiKeyTenantExtension"
                ),
                HINDSIGHT_API_TENANT_API_KEY=api_key,
            )
        environment.update({f"HINDSIGHT_API_{k.upper()}": str(v) for k, v in settings.items()})
        database = beside.database if beside else self.ask("database", name=name)
        return Server(self, name, program, database, environment, port or free_port())


class Server:
    """One process of Hindsight: started, stopped and killed as often as a test needs.

    `url` stays the same. What it says is in `log`.
    """

    def __init__(
        self,
        hindsight: Hindsight,
        name: str,
        program: str,
        database: str,
        environment: dict[str, str],
        port: int,
    ) -> None:
        self.hindsight = hindsight
        self.name = name
        self.program = program
        self.database = database
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log = hindsight.folder / f"{name}.log"
        self.pid: Optional[int] = None
        self._environment = {
            **environment,
            "HINDSIGHT_API_DATABASE_URL": database,
            ("HINDSIGHT_API_PORT" if program == "api" else "HINDSIGHT_API_WORKER_HTTP_PORT"): str(
                port
            ),
        }

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.kill()

    def start(self, *, wait: bool = True, **settings: object) -> None:
        """Start the process; return when it is healthy. `settings` are changed from now on."""
        changed = {f"HINDSIGHT_API_{k.upper()}": str(v) for k, v in settings.items()}
        self._environment.update(changed)
        self.pid = self.hindsight.ask(
            "spawn", program=self.program, environment=self._environment, log=str(self.log)
        )
        if wait:
            self.wait_until_healthy()

    def wait_until_healthy(self) -> None:
        def healthy() -> bool:
            if self.ended(0) is not None:
                text = self.log.read_text(errors="replace")
                raise RuntimeError(f"the Hindsight server ended at its start:\n{text[-4000:]}")
            try:
                return request("GET", f"{self.url}/health", timeout=5)[0] == 200
            except (OSError, http.client.HTTPException):
                return False

        eventually(healthy, seconds=START_SECONDS)

    def ended(self, seconds: float) -> Optional[int]:
        """The exit status of the process, None if it still runs after `seconds`."""
        if self.pid is None:
            return 0
        status: Optional[int] = self.hindsight.ask("wait", pid=self.pid, seconds=seconds)
        if status is not None:
            self.pid = None
        return status

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: what the server has begun, it ends."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        if self.pid is not None:
            os.kill(self.pid, number)
            if self.ended(60) is None:
                raise RuntimeError(f"the Hindsight server does not end: {self.log}")

    def aim(self, query: str, *, seconds: float = 60.0) -> Shot:
        """Kill the process when the answer of `query` changes, within a millisecond or so."""
        return Shot(self, query, seconds)

    def sql(self, query: str) -> list[dict[str, Any]]:
        """The rows of a SELECT in its database."""
        name = self.database.rpartition("/")[2]
        rows: list[dict[str, Any]] = self.hindsight.ask("sql", database=name, query=query)
        return rows

    def admin(self, *arguments: str) -> str:
        """Run hindsight-admin on its database; what it says."""
        said: str = self.hindsight.ask("admin", environment=self._environment, arguments=arguments)
        return said

    def version(self) -> tuple[int, ...]:
        answer = request("GET", f"{self.url}/version")[1]
        text = answer.get("api_version") or answer["version"]
        return tuple(int(part) for part in text.split(".")[:3])


class Shot:
    """A kill that waits for its moment."""

    def __init__(self, server: Server, query: str, seconds: float) -> None:
        self._server = server
        self._log = server.hindsight.folder / f"{server.name}-aim.log"
        self._log.write_bytes(b"")
        self._pid = server.hindsight.ask(
            "aim",
            pid=server.pid,
            database_url=server.database,
            query=query,
            seconds=seconds,
            log=str(self._log),
        )
        eventually(lambda: b"aiming" in self._log.read_bytes())

    def hit(self) -> bool:
        """Wait until it has fallen; whether it did in its time."""
        status = eventually(
            lambda: (self._server.hindsight.ask("wait", pid=self._pid, seconds=0.5),), seconds=120
        )[0]
        while status is None:
            status = self._server.hindsight.ask("wait", pid=self._pid, seconds=5.0)
        if status == 0:
            self._server.ended(30)
        return bool(status == 0)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.hindsight.server",
        description=f"Start a real Hindsight server with {VARIABLE}, until Ctrl-C.",
    )
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--api-key", metavar="KEY", help="let in only who has it")
    parser.add_argument("--llm", action="store_true", help="extract facts, by a stub of an LLM")
    arguments = parser.parse_args()
    try:
        with Hindsight() as hindsight:
            server = hindsight.server(
                llm=arguments.llm, api_key=arguments.api_key, port=arguments.port
            )
            with server:
                print(f"{server.url}  (log: {server.log}; Ctrl-C ends it)", flush=True)
                signal.sigwait({signal.SIGINT, signal.SIGTERM})
    except Absent as absent:
        sys.exit(str(absent))


if __name__ == "__main__":
    main()
