"""Mode ``local_embedded``: runs Hindsight's own daemon with the package ``hindsight-embed``.

The package's manager waits for minutes while a daemon starts, and draws on the
terminal. So a separate process, the starter, runs it. This process only asks, at
each request, where the daemon is. Until the daemon runs, requests fail at once with
`Starting`: turns wait in the outbox, and recall is empty. The next request brings
back a daemon that stopped.

Facts about ``hindsight-embed`` here were checked with 1.1.0.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional
from urllib.parse import urlsplit

from hindsight_exec.errors import ConfigError, Starting, Unavailable
from hindsight_exec.executor.process import call_in_child
from hindsight_exec.executor.waiting import now
from hindsight_exec.hermes import host
from hindsight_exec.settings.dotenv import EMBED, read_variables, set_variables
from hindsight_exec.settings.folders import user_home
from hindsight_exec.settings.llm import PROVIDERS, as_hindsight

if TYPE_CHECKING:
    from hindsight_exec.settings.config import Settings

FIRST_START = (
    "Hindsight's daemon is being started for the first time on this machine, and downloads what it"
    " needs: this takes minutes. Turns are saved on disk until it is up; recall is empty."
)
__all__ = ["Daemon", "address", "daemon_of", "folder", "know", "log_of", "missing"]

logger = logging.getLogger("hindsight_exec")

_LOOK_AGAIN = 2.0  # seconds between checks whether the starter has finished
_PAUSES = (10.0, 60.0, 600.0)  # seconds before the next attempt after a failed start
_LOG_BYTES = 1_000_000
_PORT = "HINDSIGHT_API_PORT"
_PROVIDER, _MODEL, _KEY, _ENDPOINT = (
    f"HINDSIGHT_API_LLM_{name}" for name in ("PROVIDER", "MODEL", "API_KEY", "BASE_URL")
)
# Clients of a server use these, or the profile's file has its own names for them.
_NOT_FOR_THE_DAEMON = ("HINDSIGHT_API_KEY", "HINDSIGHT_API_URL", "HINDSIGHT_LLM_API_KEY", _PORT)
# The argument is the folder that holds this package. Only Hermes may know it: a plugin's folder.
_STARTER = (
    "import sys; sys.path.append(sys.argv[1]);"
    "from hindsight_exec.hermes.embedded import main; raise SystemExit(main())"
)

_daemons: Dict[str, Daemon] = {}  # by URL; single dict operations
# A forked child does not use its parent's starters. It keeps them referenced: the garbage
# collector would report a running subprocess.
_inherited: List[object] = []


def _after_fork_in_child() -> None:
    for daemon in _daemons.values():
        _inherited.append(daemon._starter)
        daemon._starter = None


call_in_child(_after_fork_in_child)


def missing(settings: Settings, environ: Optional[Mapping[str, str]] = None) -> str:
    """Return why the mode cannot work, for the user; "" if it can."""
    if importlib.util.find_spec("hindsight_embed") is None:
        return (
            "mode local_embedded needs hindsight-embed (and Python 3.11 or later):"
            f" {sys.executable} -m pip install hindsight-embed"
        )
    if settings.llm_provider == "openai_compatible" and not settings.llm_base_url:
        # Without an endpoint, the conversations would go to OpenAI.
        return "llm_provider openai_compatible needs the endpoint of that server: set llm_base_url"
    if (
        sys.platform != "win32"
        and os.geteuid() == 0
        and not _has_database(
            settings, host.profile_environment(settings) if environ is None else environ
        )
    ):
        return (
            "mode local_embedded cannot be used by root, as PostgreSQL refuses to be run by it:"
            " run Hermes as another user, or start a server and use local_external"
        )
    return ""


def program() -> str:
    """Return the program that starts the daemon; "" if there is none."""
    own = shutil.which("hindsight-api", path=sysconfig.get_path("scripts"))
    return own or shutil.which("uvx") or host.tool("uvx")


def first_start(settings: Settings) -> bool:
    """Return whether the daemon of these settings has never run on this machine."""
    return settings.mode == "local_embedded" and not address(settings)


def llm_of(settings: Settings) -> Dict[str, str]:
    """Return provider, model and endpoint of the daemon's LLM."""
    stated = {**_profile_of(settings), **_wanted(settings)}
    provider = stated.get(_PROVIDER) or "openai"
    return {
        "LLM provider": settings.llm_provider or provider,
        "LLM model": stated.get(_MODEL)
        or f"{PROVIDERS.get(provider) or 'its usual one'} (default)",
        "LLM base URL": stated.get(_ENDPOINT) or "the provider's own",
    }


def address(settings: Settings) -> str:
    """Return the URL of the daemon if it runs; "" if the URL is not known."""
    port = _profile_of(settings).get(_PORT, "")
    return f"http://127.0.0.1:{port}" if port.isdecimal() else ""


def log_of(settings: Settings) -> Path:
    """Return the log of the starter, which has the daemon's first output, too."""
    kind, _, home = settings.credential.partition(":")
    return (Path(home) / "logs" if kind == "hermes" else folder()) / "hindsight-embed.log"


def folder() -> Path:
    """Return hindsight-embed's folder. Raises ConfigError if there is no home folder."""
    return user_home(os.environ) / ".hindsight"


def know(settings: Settings) -> None:
    """Route requests to ``settings.api_url`` to the daemon if the URL stands for it."""
    if settings.mode == "local_embedded" and not settings.unusable:
        daemon_of(settings)


def daemon_of(settings: Settings) -> Daemon:
    """Return this process's object for the daemon of these settings."""
    from hindsight_exec.client.registry import find_by  # noqa: PLC0415 - brings asyncio

    made = Daemon(settings)  # on the thread whose environment is the profile's
    known = _daemons.setdefault(settings.api_url, made)
    known.settings, known.environ = settings, made.environ
    find_by(settings.api_url, known)
    return known


class Daemon:
    """One profile's daemon, as this process sees it. A `registry.Finder`, used on the loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings  # may be set from any thread, as the next
        self.environ = host.profile_environment(settings)
        self._starter: Optional[subprocess.Popen[bytes]] = None
        self._started: Optional[Settings] = None
        self._running: Optional[Settings] = None  # with these, as far as is known
        self._failures = 0
        self._why = ""
        self._not_before = 0.0

    def find(self) -> str:
        """Return the URL at which the daemon answers, or should.

        Raises:
            Unavailable: It is being started, or could not be.
        """
        if self._running != self.settings or not address(self.settings):
            self._look()
        return address(self.settings)

    def lost(self) -> None:
        self._running = None
        self.start()
        self._look()

    def _pause_left(self) -> float:
        """Return the seconds until the next attempt; 0 with other settings than those that failed."""
        if self._started != self.settings:
            return 0.0
        return max(0.0, self._not_before - now())

    def start(self) -> Optional[subprocess.Popen[bytes]]:
        """Start the starter unless it runs. Return None if it cannot start, or not yet."""
        if self._starter is None and not self._pause_left():
            self._started = self.settings
            why = missing(self.settings, self.environ)
            try:
                self._starter = None if why else _start(self._started, self.environ)
            except OSError as error:
                why = str(error)
            if self._starter is None:
                self._failed(why)
        return self._starter

    def _look(self) -> None:
        settings = self.settings
        if self._starter is None and self._failures == 0 and _agrees(settings):
            self._running = settings  # the first request tells
            return
        starter = self.start()
        if starter is not None and starter.poll() is None:
            raise self._failure(Starting, "Hindsight's daemon is being started", _LOOK_AGAIN)
        if starter is not None:
            self._starter = None
            if starter.returncode == 0 and address(settings):
                self._running, self._failures = self._started, 0
                return
            self._failed(f"{log_of(settings)} tells why")
        raise self._failure(Unavailable, self._why, self._pause_left())

    def _failed(self, why: str) -> None:
        pause = _PAUSES[min(self._failures, len(_PAUSES) - 1)]
        self._failures += 1
        self._not_before = now() + pause
        self._why = f"Hindsight's daemon could not be started: {why}"
        logger.error("%s. Next try in %d s.", self._why, round(self._pause_left()))

    def _failure(self, kind: type[Unavailable], why: str, wait: float) -> Unavailable:
        return kind("", self.settings.api_url, None, why, wait)


def _start(settings: Settings, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    wanted = _wanted(settings)
    environ = {k: v for k, v in environ.items() if k not in _NOT_FOR_THE_DAEMON}
    # Of the profile's file, hindsight-embed hands on only names that begin with HINDSIGHT_.
    environ.update(wanted)
    folder = Path(program()).parent
    if folder.is_absolute():  # hindsight-embed looks for uvx on the PATH only
        environ["PATH"] = os.pathsep.join([environ.get("PATH", os.defpath), str(folder)])
    if settings.port_health_grace_timeout is not None:
        # hindsight-embed reads it when it is imported.
        grace = str(settings.port_health_grace_timeout)
        environ["HINDSIGHT_EMBED_PORT_HEALTH_GRACE_TIMEOUT"] = grace
    log = log_of(settings)
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        if log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        starter = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-c", _STARTER, str(Path(__file__).parents[2])],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environ,
            cwd=log.parent,  # not the user's, whose files Python would import
            start_new_session=True,  # it outlives the chat, and its Ctrl-C
        )
    finally:
        os.close(output)
    assert starter.stdin is not None  # noqa: S101 - for the type
    with contextlib.suppress(OSError), starter.stdin:
        starter.stdin.write(json.dumps([settings.profile, wanted]).encode())
    # The thread reaps the starter, and keeps it referenced while it runs. CPython 3.12.0 to
    # 3.12.2 can start no thread at exit; then the process ends soon anyway.
    waiter = threading.Thread(target=starter.wait, name="hindsight-starter", daemon=True)
    with contextlib.suppress(RuntimeError):
        waiter.start()
    return starter


# -- the profile's environment file --------------------------------------------------------


def _file(profile: str) -> Path:
    """Return the file from which hindsight-embed reads a profile's environment."""
    return folder() / "profiles" / f"{profile}.env"


def _profile_of(settings: Settings) -> Dict[str, str]:
    try:
        return read_variables(_file(settings.profile), EMBED)
    except (ConfigError, OSError):
        return {}  # the starter will say what is wrong with it


def _wanted(settings: Settings) -> Dict[str, str]:
    """Return the variables that the settings state."""
    provider, url = as_hindsight(settings.llm_provider, settings.llm_base_url)
    stated = {
        **{name: value for name, value in settings.embedded_environment if name != _PORT},
        "HF_ENDPOINT": settings.hf_endpoint,
        "HF_HUB_OFFLINE": "1" if settings.hf_offline else "",
        _PROVIDER: provider,
        _MODEL: settings.llm_model,
        _ENDPOINT: url,
        _KEY: settings.llm_api_key or "",
        "HINDSIGHT_EMBED_DAEMON_IDLE_TIMEOUT": str(settings.idle_timeout),
    }
    return {name: " ".join(value.split()) for name, value in stated.items() if value.strip()}


def _agrees(settings: Settings) -> bool:
    """Return whether the profile's daemon was started with what the settings say."""
    there = _profile_of(settings)
    return _PORT in there and not _changes(there, _wanted(settings))


def _changes(there: Dict[str, str], wanted: Dict[str, str]) -> Dict[str, Optional[str]]:
    """Return the variables to change (None: remove). Those that the settings do not state stay."""
    gone = {"HF_ENDPOINT", "HF_HUB_OFFLINE"}
    if _PROVIDER in wanted:
        # No endpoint means the provider's own. Model and key belong to one provider.
        gone.add(_ENDPOINT)
        if wanted[_PROVIDER] != there.get(_PROVIDER, "openai"):
            gone |= {_MODEL, _KEY}
    changes: Dict[str, Optional[str]] = dict.fromkeys(gone & there.keys() - wanted.keys())
    changes.update({name: value for name, value in wanted.items() if there.get(name) != value})
    return changes


def _has_database(settings: Settings, environ: Mapping[str, str]) -> bool:
    """Return whether the daemon uses a database that is not its own."""
    name = "HINDSIGHT_EMBED_API_DATABASE_URL"
    url = _profile_of(settings).get(name) or environ.get(name) or "pg0"
    return not url.startswith("pg0")


# -- the starter: a process of its own -----------------------------------------------------


def main() -> int:
    """Start the daemon as the settings on standard input say. Return 0 once it answers."""
    profile, wanted = json.load(sys.stdin)
    os.umask(0o077)  # of all that the daemon writes: conversations, keys
    manager: Any = importlib.import_module("hindsight_embed").get_embed_manager()
    path = _file(profile)
    changes = _changes(read_variables(path, EMBED), wanted)
    set_variables(path, changes, EMBED)
    if path.exists():
        path.chmod(0o600)  # it holds keys
    if changes and manager.is_running(profile):
        print("The configuration has changed: the daemon is started anew.", flush=True)
        if not manager.stop(profile):
            print("It cannot be stopped, and goes on as it was.", flush=True)
    if not manager.ensure_running({}, profile):
        return 1
    port = str(urlsplit(manager.get_url(profile)).port)
    if read_variables(path, EMBED).get(_PORT) != port:
        set_variables(path, {_PORT: port}, EMBED)
    return 0
