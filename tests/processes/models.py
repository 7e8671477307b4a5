"""The process models, as data: how each is started, what it gives, how it is ended."""

from __future__ import annotations

import sys
from typing import NamedTuple, Optional

#: When all turns have to be stored at the latest.
ALIVE, EXIT, NEXT = "while it runs", "when it has ended", "by the next process"


class Model(NamedTuple):
    """One way in which people run a process that gives turns.

    ``turns`` is what each of ``workers`` gives on request (what all give together, if they are
    ``recycled``); without workers, what the program gives by itself. ``end`` is what ends it: a
    signal, Ctrl-C, a request, or None if it ends by itself; ``status`` is its exit status then.
    ``logs`` says that the host logs to standard error, so that only trouble is noise.
    ``crashes`` says that the host may crash at exit by itself: a worker of uWSGI up to 2.0.26
    that has loaded the application itself runs Python's exit hooks when OpenSSL has cleaned up,
    and without threads, our HTTP client (which makes TLS contexts) is only imported then.
    ``world`` names what has to be prepared around it.
    """

    name: str
    argv: tuple[str, ...]
    turns: int
    delivered: str
    workers: int = 0
    recycled: bool = False
    end: Optional[str] = None
    status: int = 0
    logs: bool = False
    crashes: bool = False
    world: str = ""
    environment: tuple[tuple[str, str], ...] = ()


def program(name: str, file: str, turns: int, delivered: str = EXIT, **fields: object) -> Model:
    """A program of `apps/` that gives its turns by itself: ``file`` with its arguments."""
    return Model(name, ("{python}", *file.split()), turns, delivered, **fields)  # type: ignore[arg-type]


def gunicorn(options: str, delivered: str = EXIT, **fields: object) -> Model:
    argv = ("{python}", "-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "2")
    return web(
        f"gunicorn {options}", (*argv, *options.split(), "wsgi:application"), delivered, **fields
    )


def web(name: str, argv: tuple[str, ...], delivered: str = EXIT, **fields: object) -> Model:
    defaults: dict[str, object] = {"turns": 20, "workers": 2, "end": "SIGTERM", "logs": True}
    return Model(name, argv, delivered=delivered, **{**defaults, **fields})  # type: ignore[arg-type]


def uwsgi(options: str, delivered: str, **fields: object) -> Model:
    argv = (
        "{bin}/uwsgi", "--http-socket", "127.0.0.1:{port}", "--home", "{prefix}", "--master",
        "--processes", "4", "--wsgi-file", "wsgi.py", "--need-app", "--die-on-term",
        "--disable-logging", *options.split(),
    )  # fmt: skip
    calm = () if "--lazy-apps" in argv else (("CALM", "1"),)
    name = f"uWSGI {options}".strip()
    return web(name, argv, delivered, turns=50, workers=4, environment=calm, **fields)


def uvicorn(workers: int, end: str, delivered: str, **fields: object) -> Model:
    argv = (
        "{python}",
        "-m",
        "uvicorn",
        "--port",
        "{port}",
        "--workers",
        str(workers),
        "asgi:application",
    )
    name = f"uvicorn --workers {workers}, {end}"
    return web(name, argv, delivered, workers=workers, end=end, **fields)


def celery(pool: str, delivered: str, **fields: object) -> Model:
    argv = (
        "{python}", "-m", "celery", "-A", "celery_app", "worker", "--pool", pool,
        "--concurrency", "2", "--loglevel", "WARNING",
    )  # fmt: skip
    # One is given when the module is loaded.
    turns = (("TURNS_OF_A_PROCESS", "30"),)
    return Model(
        f"Celery --pool {pool}", argv, 31, delivered, end="SIGTERM", logs=True, environment=turns,
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def with_line(model: Model) -> Model:
    """The same with what docs/executor.md proposes for a host that runs no exit hooks."""
    line = (*model.environment, ("LINE", "1"))
    return model._replace(name=f"{model.name}, with the line", delivered=EXIT, environment=line)


HOSTS = [
    gunicorn("--worker-class sync"),
    gunicorn("--worker-class gthread --threads 4"),
    gunicorn("--worker-class gevent"),
    gunicorn("--worker-class gevent --preload"),
    gunicorn("--preload"),
    gunicorn("--max-requests 4", recycled=True, turns=60),
    uwsgi("--enable-threads", ALIVE),
    uwsgi("", NEXT),
    # From CPython 3.13 on, uWSGI's call aborts: it unlocks what no call before the fork has locked.
    *[uwsgi("--enable-threads --py-call-osafterfork", ALIVE)] * (sys.version_info < (3, 13)),
    uwsgi("--enable-threads --lazy-apps", ALIVE),
    uwsgi("--lazy-apps", NEXT, crashes=True),
    uvicorn(1, "SIGTERM", NEXT, status=-15),
    uvicorn(1, "Ctrl-C", EXIT),
    uvicorn(2, "SIGTERM", NEXT),
    uvicorn(2, "Ctrl-C", NEXT),
    web(
        "flask run, SIGTERM",
        ("{python}", "-m", "flask", "--app", "flask_app", "run", "--port", "{port}"),
        NEXT,
        workers=1,
        status=-15,
    ),
    celery("prefork", NEXT),
    celery("solo", EXIT),
    celery("threads", EXIT),
    program("Jupyter kernel, restarted and shut down", "kernel.py", 60, NEXT, logs=True),
]

PROGRAMS = [
    program("end of main", "plain.py end", 30),
    program("SIGTERM", "plain.py SIGTERM", 30, NEXT, status=-15),
    program("os.execv", "plain.py execv", 30, NEXT),
    program("multiprocessing fork", "children.py fork join", 80),
    program("multiprocessing spawn", "children.py spawn join", 80),
    program("multiprocessing forkserver", "children.py forkserver join", 80),
    program("multiprocessing Pool, fork", "children.py fork pool", 80),
    program("multiprocessing Pool, spawn", "children.py spawn pool", 80),
    program("Pool.terminate, fork", "children.py fork terminate", 80, NEXT),
    program("Pool.terminate, forkserver", "children.py forkserver terminate", 80, NEXT),
    web(
        "web server in a thread, after main's end",
        ("{python}", "thread_server.py", "{port}"),
        ALIVE,
        turns=200,
        workers=1,
        end="GET /stop",
        logs=False,
    ),
    program("daemon threads that give at exit", "daemon.py", 50),
    Model("PyInstaller, one file", ("{program}", "end"), 30, EXIT, world="one_file"),
    program("gevent patches before our import", "patched.py gevent before", 30),
    program("gevent patches after our import", "patched.py gevent after", 30),
    program("eventlet patches before our import", "patched.py eventlet before", 30, logs=True),
    program("eventlet patches after our import", "patched.py eventlet after", 30, logs=True),
    program("freezegun before our import", "frozen.py freezegun before", 30),
    program("freezegun after our import", "frozen.py freezegun after", 30),
    program("time-machine before our import", "frozen.py time_machine before", 30),
    program("time-machine after our import", "frozen.py time_machine after", 30),
    program("sys.stderr is None", "stderr.py none", 30, NEXT, environment=(("DRAIN", "0"),)),
    program("sys.stderr closed", "stderr.py closed", 30, NEXT, environment=(("DRAIN", "0"),)),
    program("sys.stderr raises", "stderr.py broken", 30, NEXT, environment=(("DRAIN", "0"),)),
    Model(
        "started with 2>&-",
        ("sh", "-c", 'exec "$@" 2>&-', "sh", "{python}", "plain.py", "end"),
        30,
        NEXT,
        environment=(("DRAIN", "0"),),
    ),
    program("read-only root, nameless user, end of main", "plain.py end", 30, world="read_only"),
    program(
        "read-only root, nameless user, SIGKILL",
        "plain.py SIGKILL",
        30,
        NEXT,
        world="read_only",
        status=-9,
    ),
    program(
        "no shared memory map, end of main",
        "plain.py end",
        30,
        world="no_shared_map",
    ),
    program(
        "no shared memory map, SIGKILL",
        "plain.py SIGKILL",
        30,
        NEXT,
        world="no_shared_map",
        status=-9,
    ),
]

WITHOUT_HOOKS = (
    "uvicorn --workers 1, SIGTERM",
    "uvicorn --workers 2, SIGTERM",
    "flask run, SIGTERM",
    "Celery --pool prefork",
    "SIGTERM",
    "os.execv",
)
MODELS = HOSTS + PROGRAMS
MODELS += [with_line(model) for model in MODELS if model.name in WITHOUT_HOOKS]
