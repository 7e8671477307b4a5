"""Two profiles in one gateway, in which every variable differs: neither sees a value of the other."""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional

import pytest
from serving import documents, free_port

from hindsight_exec.hermes import HindsightMemoryProvider, embedded, host
from hindsight_exec.settings.config import configurable
from hindsight_exec.settings.dotenv import EMBED, read_variables

from .recording import LIMIT, Hindsight, configure, until

NAMES = ("alpha", "omega")

STAND_IN = '''
import json, os, subprocess, sys, time, urllib.request
from pathlib import Path

HERE = Path(__file__).parent.parent
PROGRAM = """
import asyncio, sys
from pathlib import Path
from hindsight_exec.server import EmbeddedServer

async def main():
    server = EmbeddedServer(Path(sys.argv[1]), port=int(sys.argv[2]))
    await server.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""

class Manager:
    def get_url(self, profile):
        return "http://127.0.0.1:" + (HERE / profile / "port").read_text()

    def is_running(self, profile):
        try:
            with urllib.request.urlopen(self.get_url(profile) + "/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def ensure_running(self, config, profile):
        (HERE / profile / "environ.json").write_text(json.dumps(dict(os.environ)))
        port = self.get_url(profile).rpartition(":")[2]
        daemon = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(HERE / profile / "data"), port],
            start_new_session=True, stdin=subprocess.DEVNULL,
        )
        (HERE / profile / "pid").write_text(str(daemon.pid))
        while not self.is_running(profile):
            if daemon.poll() is not None:
                return False
            time.sleep(0.02)
        return True

    def stop(self, profile):
        return True

get_embed_manager = Manager
'''


def variables(name: str) -> Dict[str, str]:
    """Every variable of ours, and some that a daemon would use, with values of this profile."""
    ours = {
        item.metadata["env"]: f"{name}-{item.name}"
        for item in configurable()
        if item.metadata["env"]
        and item.metadata["kind"] in ("text", "label", "secret", "bank", "list")
    }
    ours["HINDSIGHT_RETAIN_OBSERVATION_SCOPES"] = f'[["{name}-scope"]]'
    ours["HINDSIGHT_API_URL"] = f"http://{name}-host.invalid"
    others = (
        "HINDSIGHT_EMBED_API_DATABASE_URL", "HINDSIGHT_API_LLM_API_KEY", "HINDSIGHT_API_LLM_MODEL",
        "OPENAI_API_KEY", "HF_TOKEN", "HTTPS_PROXY", "SOMETHING_ELSE",
    )  # fmt: skip
    return {**ours, **{other: f"postgresql://{name}-{other}" for other in others}}


Run = Callable[[str, Callable[[], Any]], Any]


class Gateway:
    """A process that was started for the first profile, and serves both."""

    def __init__(self, folder: Path, user: Path) -> None:
        self.folder = folder
        self.user = user
        self.homes = {name: folder / "homes" / name for name in NAMES}
        self.scope: contextvars.ContextVar[Optional[Mapping[str, str]]] = contextvars.ContextVar(
            "scope", default=None
        )

    def run(self, name: str, call: Callable[[], Any]) -> Any:
        """Call in the context of a profile, as Hermes does for a turn."""

        def scoped() -> Any:
            self.scope.set(read_variables(self.homes[name] / ".env", environ={}))
            return call()

        return contextvars.copy_context().run(scoped)


@pytest.fixture
def gateway(tmp_path: Path, clean: Path, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    gateway = Gateway(tmp_path, clean)
    for name, home in gateway.homes.items():
        home.mkdir(parents=True)
        text = "".join(f"{key}={value}\n" for key, value in variables(name).items())
        (home / ".env").write_text(text, encoding="utf-8")
    scope = types.ModuleType("agent.secret_scope")
    scope.current_secret_scope = gateway.scope.get  # type: ignore[attr-defined]
    scope.is_multiplex_active = lambda: True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "agent", types.ModuleType("agent"))
    monkeypatch.setitem(sys.modules, "agent.secret_scope", scope)
    monkeypatch.setitem(sys.modules, "hermes_constants", None)  # type: ignore[arg-type]
    # What the host loads for the profile that it was started for.
    monkeypatch.setenv("HERMES_HOME", str(gateway.homes["alpha"]))
    for key, value in variables("alpha").items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(embedded, "_daemons", {})
    monkeypatch.setattr(host, "_cache", {})
    return gateway


def files_below(folder: Path) -> List[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def strangers(name: str, *texts: str) -> List[str]:
    """The values of the other profile in texts of this one."""
    (other,) = set(NAMES) - {name}
    return [
        value
        for value in (*variables(other).values(), f"{other}-")
        for text in texts
        if value in text
    ]


def converse(gateway: Gateway, values: Callable[[str], Dict[str, Any]]) -> None:
    """Both profiles take turns at the same time, and end."""
    providers = {}
    for name, home in gateway.homes.items():
        configure(home, retain_idle_seconds=0, **values(name))
        provider = HindsightMemoryProvider()
        told = {"hermes_home": str(home), "agent_context": "primary", "agent_identity": name}
        gateway.run(name, lambda provider=provider, told=told: provider.initialize("s", **told))  # type: ignore[misc]
        providers[name] = provider
    for turn in range(3):
        for name, provider in providers.items():
            gateway.run(
                name,
                lambda name=name, provider=provider, turn=turn: provider.sync_turn(  # type: ignore[misc]
                    f"{name}-question {turn}", f"{name}-answer {turn}"
                ),
            )
    for name, provider in providers.items():
        gateway.run(name, provider._writer.flush)
    for name, provider in providers.items():
        gateway.run(name, provider.shutdown)


def test_servers(gateway: Gateway, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each profile's requests have its own key, bank, tags and words, and its files hold no others."""
    servers = {
        name: Hindsight(tmp_path / f"{name}.db", api_key=f"{name}-api_key") for name in NAMES
    }
    for name, home in gateway.homes.items():
        path = home / ".env"
        text = path.read_text(encoding="utf-8")
        path.write_text(
            text.replace(f"http://{name}-host.invalid", servers[name].url), encoding="utf-8"
        )
    try:
        converse(gateway, lambda name: {"mode": "local_external", "api_url": ""})
        for name, server in servers.items():
            requests = [one for one in server.seen if "/banks/" in one.path]
            assert {one.key for one in requests} == {f"Bearer {name}-api_key"}
            assert {one.path.split("/")[4] for one in requests} == {f"{name}-bank_id"}
            assert not strangers(name, *(json.dumps(one.body) for one in requests))
            assert [one for one in requests if f"{name}-retain_tags" in json.dumps(one.body)]
            for path in files_below(gateway.homes[name]):
                assert not strangers(name, path.read_bytes().decode("latin-1")), path
    finally:
        for server in servers.values():
            server.close()
    for name in NAMES:
        assert f"{name}-api_key" not in caplog.text


def arrived(url: str, bank: str) -> int:
    """The number of documents of a bank; 0 while its daemon is still starting."""
    with contextlib.suppress(OSError):
        return len(documents(url, bank))
    return 0


def test_daemons(
    gateway: Gateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each profile's daemon is started with its own environment, and told its own settings."""
    stand_in = tmp_path / "stand-in"
    (stand_in / "package" / "hindsight_embed").mkdir(parents=True)
    package = stand_in / "package"
    (package / "hindsight_embed" / "__init__.py").write_text(
        STAND_IN.replace("HERE = Path(__file__).parent.parent", f"HERE = Path({str(stand_in)!r})")
    )
    monkeypatch.setenv("PYTHONPATH", str(package), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setattr(embedded, "_LOOK_AGAIN", 0.1)
    urls = {}
    for name in NAMES:
        (stand_in / name).mkdir()
        port = free_port()
        (stand_in / name / "port").write_text(str(port))
        urls[name] = f"http://127.0.0.1:{port}"
    try:
        converse(gateway, lambda name: {"mode": "local_embedded", "profile": name})
        for name in NAMES:
            until(lambda name=name: arrived(urls[name], f"{name}-bank_id") == 3)  # type: ignore[misc]
            environ = (stand_in / name / "environ.json").read_text(encoding="utf-8")
            assert not strangers(name, environ)
            started = json.loads(environ)
            assert started["OPENAI_API_KEY"] == variables(name)["OPENAI_API_KEY"]
            assert started["HINDSIGHT_EMBED_API_DATABASE_URL"].startswith(f"postgresql://{name}")
            assert "HINDSIGHT_API_KEY" not in started
            path = gateway.user / ".hindsight" / "profiles" / f"{name}.env"
            told = read_variables(path, EMBED)
            assert told["HINDSIGHT_API_LLM_API_KEY"] == f"{name}-llm_api_key"
            assert told["HINDSIGHT_API_LLM_BASE_URL"] == f"{name}-llm_base_url"
            assert not strangers(name, path.read_text(encoding="utf-8"))
            assert not strangers(name, json.dumps(documents(urls[name], f"{name}-bank_id")))
            for file in files_below(gateway.homes[name]):
                assert not strangers(name, file.read_bytes().decode("latin-1")), file
            assert (gateway.homes[name] / "logs" / "hindsight-embed.log").exists()
    finally:
        for one in embedded._daemons.values():
            if one._starter is not None:
                one._starter.wait(LIMIT)
        for name in NAMES:
            with contextlib.suppress(OSError):
                os.kill(int((stand_in / name / "pid").read_text()), signal.SIGKILL)
    for name in NAMES:
        assert f"{name}-llm_api_key" not in caplog.text
