"""Runs under the Python that has Hindsight: keeps PostgreSQL, and forks the server's processes.

A server takes some ten seconds to import its modules. This process imports them once, and
each API or worker process is a fork of it, which starts in two: killing and starting a
server many times becomes affordable. What runs in the fork is the server's own `main()`.

It reads one JSON object a line from standard input and answers one a line. At the end of its
input, so also when the tests are killed, it ends what it started, by process id.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

USER = PASSWORD = "hindsight"
# What a server imports after its start, when it is asked to serve: found by comparing sys.modules.
# A version that lacks one of them imports what it has.
MODULES = [
    "hindsight_api",
    "hindsight_api.api",
    "hindsight_api.api.mcp",
    "hindsight_api.extensions",
    "hindsight_api.extensions.builtin.tenant",
    "hindsight_api.migrations",
    "hindsight_api.worker.main",
    "hindsight_api.engine.providers.none_llm",
    "hindsight_api.engine.providers.openai_compatible_llm",
    "alembic.command",
    "alembic.runtime.environment",
    "dateparser.search",
    "openai.resources.chat",
    "openai.resources.embeddings",
    "prometheus_client",
    "psycopg2",
    "sqlalchemy.dialects.postgresql",
    "tiktoken",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.wsproto_impl",
    "uvicorn.lifespan.on",
    "uvloop",
]


class Keeper:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.children: set[int] = set()
        # PostgreSQL refuses to be run by root, and an unprivileged user may read neither
        # root's home nor, perhaps, the folder this Python is installed in.
        self.home = folder / "postgres"
        self.home.mkdir()
        self.pg0 = Path(shutil.copy2(self._bundled_pg0(), self.home / "pg0"))
        self.as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self.as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            for path in (self.home, self.pg0):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)

    @staticmethod
    def _bundled_pg0() -> Path:
        import pg0

        return Path(pg0.__file__).parent / "bin" / "pg0"

    def run(self, program: Path, *arguments: object) -> str:
        """Run a program of PostgreSQL's as its user; the output, or an error that holds it."""
        done = subprocess.run(
            [str(program), *map(str, arguments)],
            env={"HOME": str(self.home), "PATH": os.defpath, "PGPASSWORD": PASSWORD},
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            **self.as_user,
        )
        if done.returncode:
            raise RuntimeError(f"{program.name}: {done.stdout.strip()}")
        return str(done.stdout)

    def start_postgres(self) -> None:
        # fsync stays as pg0 has it, off: what is killed here are processes, not the machine.
        self.run(
            self.pg0,
            *("start", "--name", USER, "-p", self.port),
            *("-u", USER, "-P", PASSWORD, "-n", USER),
            *("-c", "listen_addresses=127.0.0.1"),
            *("-c", f"unix_socket_directories={self.home}"),
            *("-c", "max_connections=300"),
        )

    def stop_postgres(self) -> None:
        # At once: what it holds is thrown away.
        data = self.home / ".pg0" / "instances" / USER / "data"
        self.run(self.program("pg_ctl"), "stop", "-D", data, "-m", "immediate")

    def program(self, name: str) -> Path:
        return next(self.home.glob(f".pg0/installation/*/bin/{name}"))

    def database(self, name: str) -> str:
        """Make an empty database; its URL."""
        self.run(self.program("createdb"), *self.address(), name)
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def address(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER]

    def sql(self, database: str, query: str) -> list[dict[str, Any]]:
        """The rows of a SELECT."""
        text = self.run(
            self.program("psql"),
            *(*self.address(), "-d", database, "-qAtc"),
            f"SELECT coalesce(json_agg(t), '[]') FROM ({query}) t",
        )
        rows: list[dict[str, Any]] = json.loads(text)
        return rows

    def admin(self, environment: dict[str, str], arguments: list[str]) -> str:
        """Run hindsight-admin; what it says."""
        program = Path(sys.executable).with_name("hindsight-admin")
        done = subprocess.run(
            [str(program), *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        return str(done.stdout)

    def spawn(self, program: str, environment: dict[str, str], log: str) -> int:
        """Fork a process of the server; its process id."""
        return self._fork(lambda: serve(program, environment), log)

    def aim(self, pid: int, database_url: str, query: str, seconds: float, log: str) -> int:
        """Fork a marksman: he kills `pid` (SIGKILL) when the answer of `query` has changed.

        He exits with status 0 when he has, with 3 when nothing changed in time.
        """
        return self._fork(lambda: kill_upon_change(pid, database_url, query, seconds), log)

    def _fork(self, job: Any, log: str) -> int:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                become_a_child(log)
                status = job() or 0
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(status)
        self.children.add(pid)
        return pid

    def wait(self, pid: int, seconds: float) -> int | None:
        """The exit status of a child (negative: the signal), None while it runs.

        Until it has been waited for, its process id belongs to nobody else.
        """
        deadline = time.monotonic() + seconds
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.children.discard(pid)
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                return None
            time.sleep(0.005)

    def close(self) -> None:
        for pid in list(self.children):
            os.kill(pid, signal.SIGKILL)
            self.wait(pid, 10)
        self.stop_postgres()


def become_a_child(log: str) -> None:
    """Cut what a fork shares with its parent: its streams, and its end."""
    with open(os.devnull) as nothing, open(log, "ab") as output:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.close(ANSWERS)
    if sys.platform == "linux":  # PR_SET_PDEATHSIG: no server outlives its keeper
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def serve(program: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    import hindsight_api.config

    hindsight_api.config.clear_config_cache()
    # A worker, unlike the API, has no variable for where its health is asked for.
    host = ["--http-host", "127.0.0.1"] if program == "worker" else []
    sys.argv = [f"hindsight-{program}", *host]
    module = "hindsight_api.main" if program == "api" else "hindsight_api.worker.main"
    importlib.import_module(module).main()


def kill_upon_change(pid: int, database_url: str, query: str, seconds: float) -> int:
    import psycopg2

    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    cursor = connection.cursor()

    def answer() -> object:
        cursor.execute(query)
        return cursor.fetchall()

    first = answer()
    print("aiming", flush=True)
    deadline = time.monotonic() + seconds
    while answer() == first:
        if time.monotonic() > deadline:
            return 3
    os.kill(pid, signal.SIGKILL)
    return 0


def warm() -> None:
    # Servers before 1.0 count tokens with a table that tiktoken would download; litellm, which
    # they depend on, brings that table.
    litellm = importlib.util.find_spec("litellm")
    if litellm is not None and litellm.origin:
        tables = Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers"
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(tables))
    for module in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    # A server builds the tables of its date parser at its start: seconds of work, once here.
    with contextlib.suppress(Exception):
        from hindsight_api.engine.query_analyzer import DateparserQueryAnalyzer

        DateparserQueryAnalyzer().load()


# Libraries print: what is answered goes to a descriptor that only this program knows.
ANSWERS = os.dup(1)


def main() -> None:
    os.dup2(2, 1)
    # A server of any user may have to read what is in here.
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    keeper = Keeper(folder, port)

    def answer(value: object) -> None:
        os.write(ANSWERS, json.dumps(value).encode() + b"\n")

    try:
        keeper.start_postgres()
        warm()
        answer({"answer": "ready"})
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer({"answer": getattr(keeper, request.pop("do"))(**request)})
            except Exception as error:
                answer({"error": f"{type(error).__name__}: {error}"})
    finally:
        keeper.close()


if __name__ == "__main__":
    main()
