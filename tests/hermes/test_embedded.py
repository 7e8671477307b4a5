"""Mode local_embedded: the daemon is started, found and brought back, and nobody waits for it.

In place of hindsight-embed there is a package of its interface, whose daemon is our embedded
server; the real one is driven in tests/hindsight.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from serving import documents, free_port, get

from hindsight_exec import Settings
from hindsight_exec.cli import targets as where
from hindsight_exec.cli.console import UNREACHABLE, USAGE
from hindsight_exec.cli.main import main
from hindsight_exec.errors import Starting, Unavailable
from hindsight_exec.hermes import HindsightMemoryProvider, checks, connection, embedded
from hindsight_exec.settings.credentials import resolve_credential
from hindsight_exec.settings.dotenv import set_variables

from .recording import LIMIT, configure, until
from .test_history import History

pytestmark = pytest.mark.slow

STAND_IN = '''
import fcntl, json, os, subprocess, sys, time, urllib.request
from pathlib import Path

HERE = Path(os.environ["STAND_IN"])
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
        return "http://127.0.0.1:" + (HERE / "port").read_text()

    def is_running(self, profile):
        try:
            with urllib.request.urlopen(self.get_url(profile) + "/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def ensure_running(self, config, profile):
        (HERE / "environ").write_text(json.dumps(dict(os.environ)))
        with (HERE / "asked").open("a") as asked:
            asked.write(profile + "\\n")
        print("starting")
        while not (HERE / "gate").exists():
            time.sleep(0.02)
        if (HERE / "gate").read_text() == "fail":
            return False
        with (HERE / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return self.start(profile)

    def start(self, profile):
        daemon = None
        while not self.is_running(profile):
            if (HERE / "gate").read_text() == "fail":
                return False
            if daemon is None or daemon.poll() is not None:  # the port may have been taken
                port = self.get_url(profile).rpartition(":")[2]
                daemon = subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, str(HERE / "data"), port],
                    start_new_session=True, stdin=subprocess.DEVNULL,
                )
                (HERE / "pid").write_text(str(daemon.pid))
            time.sleep(0.02)
        return True

    def stop(self, profile):
        os.kill(int((HERE / "pid").read_text()), 15)
        while self.is_running(profile):
            time.sleep(0.02)
        return True

get_embed_manager = Manager
'''


class Daemon:
    """The stand-in for hindsight-embed, and what it was asked for."""

    def __init__(self, folder: Path, user: Path) -> None:
        self.folder = folder
        self.profile = user / ".hindsight" / "profiles" / "hermes.env"
        self.url = f"http://127.0.0.1:{free_port()}"
        (folder / "port").write_text(self.url.rpartition(":")[2])
        package = folder / "hindsight_embed"
        package.mkdir()
        (package / "__init__.py").write_text(STAND_IN)

    def let(self, what: str = "start") -> None:
        """From now on it starts, or fails."""
        (self.folder / "next").write_text(what)
        (self.folder / "next").replace(self.folder / "gate")

    def asked(self) -> int:
        path = self.folder / "asked"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def answers(self) -> bool:
        try:
            return bool(get(f"{self.url}/health"))
        except OSError:
            return False

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)


@pytest.fixture
def daemon(tmp_path, home, clean, monkeypatch):
    folder = tmp_path / "stand-in"
    folder.mkdir()
    monkeypatch.setenv("STAND_IN", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(embedded, "_daemons", {})
    monkeypatch.setattr(connection, "_woken", {})
    monkeypatch.setattr(embedded, "_LOOK_AGAIN", 0.1)
    # Root may use no database of the daemon's own.
    monkeypatch.setenv("HINDSIGHT_EMBED_API_DATABASE_URL", "postgresql://elsewhere")
    daemon = Daemon(folder, clean)
    yield daemon
    daemon.let("fail")  # whoever still waits for it
    for one in embedded._daemons.values():
        if one._starter is not None:
            one._starter.wait(LIMIT)
    daemon.kill()


@pytest.fixture
def chat(home, daemon):
    """Makes providers in a session of this mode."""
    made = []

    def chat(**values):
        configure(
            home, **{"mode": "local_embedded", "bank_id": "b", "retain_idle_seconds": 0, **values}
        )
        provider = HindsightMemoryProvider()
        made.append(provider)
        provider.initialize("s", hermes_home=str(home), agent_context="primary")
        return provider

    yield chat
    for provider in made:
        provider.shutdown()


def said(daemon) -> list[str]:
    try:
        found = documents(daemon.url)
    except OSError:
        return []
    return [json.loads(one["original_text"])[0]["content"] for one in found]


def test_nobody_waits_for_the_daemon(chat, daemon, home):
    """Until it is up, turns are on disk and recall is empty; then they arrive, once."""
    told = []
    provider = chat()
    provider._status = told.append
    until(daemon.asked)
    provider.sync_turn("one", "ok")
    provider.queue_prefetch("one")
    assert provider.prefetch("two") == ""
    prompt = provider.system_prompt_block()
    assert provider.get_status_config()["waiting"].startswith("1 turn,")
    daemon.let()
    provider._writer.flush()
    until(lambda: said(daemon) == ["User: one"])
    assert provider.system_prompt_block() == prompt  # prompt caches depend on it
    assert daemon.asked() == 1
    assert provider.get_status_config()["api_url"] == daemon.url
    assert "starting" in (home / "logs" / "hindsight-embed.log").read_text()
    assert [text for text in told if "reached" in text] == []  # a start is no trouble


def test_shutdown_does_not_wait_for_it(chat, daemon, home):
    """A chat that ends before it is up leaves its turns on disk; the next one delivers them."""
    provider = chat(drain_timeout=LIMIT)
    provider.sync_turn("one", "ok")
    until(daemon.asked)
    provider.shutdown()
    assert said(daemon) == []
    daemon.let()
    provider = chat()
    provider.sync_turn("two", "ok")
    until(lambda: sorted(said(daemon)) == ["User: one", "User: two"])


def test_flush_starts_it(chat, daemon, home):
    """The command line delivers what waits for a daemon, and has it started."""
    provider = chat()
    provider.sync_turn("one", "ok")
    until(daemon.asked)
    provider.shutdown()
    daemon.let()
    done = subprocess.run(
        [sys.executable, "-m", "hindsight_exec", "flush", "--timeout", str(LIMIT)],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, said(daemon)) == (0, ["User: one"]), done.stderr


def test_retain_and_import_start_it(daemon, home, tmp_path, capsys):
    """The commands wait until it is up, and show where it is; then they do as with any server."""
    history = History(home)
    history.session("past")
    history.talk("past", 1)
    history.db.close()
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "ok"}]
    (tmp_path / "talk.json").write_text(json.dumps(messages))
    configure(home, mode="local_embedded", bank_id="b")
    state = str(home / "hindsight" / "outbox")
    retain = ["retain", str(tmp_path / "talk.json"), "--state", state]
    assert main([*retain, "--timeout", "0"]) == UNREACHABLE
    daemon.let()
    assert main([*retain, "--json"]) == 0
    shown = capsys.readouterr()
    assert "daemon is being started" in shown.err
    assert (json.loads(shown.out)["url"], json.loads(shown.out)["documents"]) == (daemon.url, 1)
    assert main(["import", "hermes", "--yes"]) == 0
    assert said(daemon) == ["User: question 1 of past", "User: one"]
    assert main(["import", "hermes", "--yes", "--session", "past"]) == 0
    assert daemon.asked() == 1


@pytest.mark.parametrize("command", [["retain", os.devnull], ["import", "hermes"]])
def test_commands_that_cannot_start_it(command, daemon, home, capsys, monkeypatch):
    """Why there is no daemon is said once; a start that failed names its log."""
    History(home).db.close()
    configure(home, mode="local_embedded", bank_id="b")
    command = [*command, "--state", str(home / "hindsight" / "outbox")]
    daemon.let("fail")
    assert main(command) == UNREACHABLE
    begun, failed = capsys.readouterr().err.splitlines()
    assert "daemon is starting" in begun
    assert "hindsight-embed.log tells why" in failed
    monkeypatch.setattr(embedded, "missing", lambda settings: "no hindsight-embed")
    assert main(command) == USAGE
    assert capsys.readouterr().err == "hindsight-exec: no hindsight-embed\n"


def test_it_is_brought_back(chat, daemon):
    """A daemon that stopped is started again by the next turn; one that runs is found without."""
    daemon.let()
    provider = chat()
    provider.sync_turn("one", "ok")
    until(lambda: said(daemon) == ["User: one"])
    provider.shutdown()
    embedded._daemons.clear()  # as in another process
    provider = chat()
    provider.sync_turn("two", "ok")
    until(lambda: len(said(daemon)) == 2)
    assert daemon.asked() == 1
    daemon.kill()
    provider.sync_turn("three", "ok")
    until(lambda: len(said(daemon)) == 3)
    assert daemon.asked() == 2


def test_a_start_that_fails(chat, daemon, caplog, monkeypatch):
    """A start that fails is told once, with the log's name, and not tried again at each request."""
    monkeypatch.setattr(embedded, "_PAUSES", (1000,))
    daemon.let("fail")
    provider = chat()
    provider.sync_turn("one", "ok")
    until(lambda: "could not be started" in caplog.text)
    for _ in range(3):
        answer = json.loads(provider.handle_tool_call("hindsight_recall", {"query": "q"}))
        assert "hindsight-embed.log" in answer["error"]
    assert daemon.asked() == 1
    errors = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert len(errors) == 1
    assert provider.get_status_config()["waiting"].startswith("1 turn,")


def test_no_process_can_be_started(chat, daemon, home, caplog):
    """Where not even the log can be opened, recall says so, and the turn waits."""
    (home / "logs").write_text("a file")
    provider = chat()
    provider.sync_turn("one", "ok")
    answer = json.loads(provider.handle_tool_call("hindsight_recall", {"query": "q"}))
    assert "could not be started" in answer["error"]
    assert provider.get_status_config()["waiting"].startswith("1 turn,")
    (home / "logs").unlink()
    daemon.let()
    provider.shutdown()
    provider = chat(llm_model="m")  # other settings are tried at once
    until(lambda: said(daemon) == ["User: one"])


def test_settings_that_come_while_a_start_fails(daemon, home, monkeypatch):
    """What failed with the old ones is tried with the new ones at once."""
    configure(home, mode="local_embedded")
    one = embedded.daemon_of(Settings.load(home))
    start = embedded._start

    def fail(settings, environ):
        configure(home, mode="local_embedded", llm_model="new")
        embedded.daemon_of(Settings.load(home))  # on another thread, a new session
        raise OSError("no process")

    monkeypatch.setattr(embedded, "_start", fail)
    with pytest.raises(Unavailable, match="no process"):
        one.find()
    monkeypatch.setattr(embedded, "_start", start)
    with pytest.raises(Starting):
        one.find()


def test_the_profiles_environment(chat, daemon):
    """What the settings state is written for the owner only; what others wrote there stays."""
    daemon.profile.parent.mkdir(parents=True)
    daemon.profile.write_text("# mine\nexport HINDSIGHT_API_LLM_MODEL='old'\nOTHER=\"1\"\n")
    daemon.profile.chmod(0o644)
    daemon.let()
    provider = chat(llm_model="new", llm_api_key="SECRET", idle_timeout=7)
    provider.sync_turn("one", "ok")
    until(lambda: said(daemon) == ["User: one"])
    lines = daemon.profile.read_text().splitlines()
    assert lines[:3] == ["# mine", "export HINDSIGHT_API_LLM_MODEL=new", 'OTHER="1"']
    assert sorted(lines[3:]) == [
        "HINDSIGHT_API_LLM_API_KEY=SECRET",
        "HINDSIGHT_API_PORT=" + daemon.url.rpartition(":")[2],
        "HINDSIGHT_EMBED_DAEMON_IDLE_TIMEOUT=7",
    ]
    assert stat.S_IMODE(daemon.profile.stat().st_mode) == 0o600
    assert "SECRET" not in str(provider.get_status_config())


def test_another_configuration_starts_it_anew(chat, daemon):
    """A change of model restarts the daemon; another provider drops what only the old one can use."""
    daemon.let()
    provider = chat(llm_provider="openai_compatible", llm_base_url="http://l/v1", llm_model="a")
    provider.sync_turn("one", "ok")
    until(lambda: said(daemon) == ["User: one"])
    first = (daemon.folder / "pid").read_text()
    provider.shutdown()
    provider = chat(llm_provider="groq")
    provider.sync_turn("two", "ok")
    until(lambda: len(said(daemon)) == 2)
    assert (daemon.folder / "pid").read_text() != first
    kept = daemon.profile.read_text()
    assert "HINDSIGHT_API_LLM_PROVIDER=groq" in kept
    assert "BASE_URL" not in kept
    assert "MODEL" not in kept


def test_the_port_changes(chat, daemon):
    """Turns wait for the daemon, not for its port: where it answers, they arrive."""
    daemon.let()
    provider = chat()
    provider.sync_turn("one", "ok")
    until(lambda: said(daemon) == ["User: one"])
    daemon.kill()
    daemon.url = f"http://127.0.0.1:{free_port()}"
    (daemon.folder / "port").write_text(daemon.url.rpartition(":")[2])
    provider.sync_turn("two", "ok")
    until(lambda: "User: two" in said(daemon))


STARTS = """
import sys, warnings
warnings.simplefilter("always", ResourceWarning)
from pathlib import Path
from hindsight_exec import Settings
from hindsight_exec.errors import Starting
from hindsight_exec.hermes import embedded

daemon = embedded.daemon_of(Settings.load(Path(sys.argv[1])))
try:
    daemon.find()
except Starting:
    say("starting")
"""


def test_a_process_that_ends_before_it_is_up(daemon, home, run):
    """The start goes on when the process that wanted it has ended, in silence."""
    configure(home, mode="local_embedded")
    ended = run(STARTS, str(home), PYTHONPATH=os.environ["PYTHONPATH"])
    assert ended == (0, "starting\n", "")
    daemon.let()
    until(daemon.answers)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(
    "fork",
    [
        "os.fork",
        pytest.param(
            "ctypes.PyDLL(None).fork",
            marks=pytest.mark.skipif(
                sys.implementation.name != "cpython", reason="forks in C, through CPython's ctypes"
            ),
        ),
    ],
)
def test_a_forked_child_finds_it(daemon, home, run, fork):
    """A child does not wait for its parent's starter, which it can learn nothing of."""
    configure(home, mode="local_embedded")
    program = STARTS + (
        "import ctypes, os, time\n"
        "from hindsight_exec.executor.process import renew_if_forked\n"
        "from hindsight_exec.hermes.embedded import address\n"
        "warnings.simplefilter('ignore', DeprecationWarning)  # fork with threads\n"
        f"if child := {fork}():\n"
        "    say('child', os.waitpid(child, 0)[1])\n"
        "    sys.exit()\n"
        "renew_if_forked()  # as each request does first: a fork in C runs no hook\n"
        "Path(sys.argv[2]).write_text('start')\n"
        "while not address(daemon.settings):\n"
        "    time.sleep(0.02)\n"
        "say(daemon.find())\n"
    )
    ended = run(
        program, str(home), str(daemon.folder / "gate"), PYTHONPATH=os.environ["PYTHONPATH"]
    )
    assert ended == (0, f"starting\n{daemon.url}\nchild 0\n", "")


def test_a_starter_that_nobody_asks_about(daemon, home):
    """It can be forgotten while it runs, and leaves no zombie."""

    def is_there(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            return True
        return False

    configure(home, mode="local_embedded")
    pid = embedded.Daemon(Settings.load(home)).start().pid
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        gc.collect()
    assert told == []
    assert is_there(pid)
    daemon.let("fail")
    until(lambda: not is_there(pid))


def test_what_is_missing(home, clean, monkeypatch):
    """Without the package, or for root, memory is off, and what to do is said."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    configure(home, mode="local_embedded")
    assert "pip install hindsight-embed" in HindsightMemoryProvider().unavailable_reason()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "root" in HindsightMemoryProvider().unavailable_reason()
    (check,) = checks.server_checks(Settings.load(home))
    assert (check.state, "another user" in check.remedy) == ("failed", True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert HindsightMemoryProvider().is_available()


def test_root_starts_nothing(daemon, home, monkeypatch):
    """Whoever asks, as `flush` may: where the daemon cannot be, none is started."""
    monkeypatch.delenv("HINDSIGHT_EMBED_API_DATABASE_URL")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    configure(home, mode="local_embedded")
    with pytest.raises(Unavailable, match="cannot be used by root"):
        embedded.daemon_of(Settings.load(home)).find()
    assert daemon.asked() == 0


def test_the_key_of_another_server(home, clean, monkeypatch):
    """A key for the Hindsight API does not go to the daemon, and its URL reaches nobody else."""
    monkeypatch.setenv("HINDSIGHT_API_KEY", "SECRET")
    configure(home, mode="local", apiKey="SECRET", api_url="http://other.invalid", profile="a/b")
    settings = Settings.load(home)
    assert settings.api_key is None
    assert settings.api_url == "http://hindsight-embed.invalid/a-b"
    assert resolve_credential(settings.credential, settings.api_url) == ""


def test_doctor(chat, daemon, home, monkeypatch):
    """The doctor tells a daemon that does not run from one that answers, and starts none."""
    monkeypatch.setattr(embedded, "program", lambda: "")
    configure(home, mode="local_embedded", bank_id="b")
    settings = Settings.load(home)
    (check,) = checks.server_checks(settings)
    assert (check.state, "uv" in check.remedy) == ("failed", True)
    monkeypatch.setattr(embedded, "program", lambda: "hindsight-api")
    (check,) = checks.server_checks(settings)
    assert (check.name, check.state) == ("embedded server", "warning")
    assert daemon.asked() == 0
    daemon.let()
    provider = chat()
    provider.sync_turn("one", "ok")
    until(lambda: said(daemon) == ["User: one"])
    assert [check.state for check in checks.server_checks(settings)] == ["ok", "ok", "ok"]
    other = where.chosen_settings(home / "hindsight" / "outbox", daemon.url + "/x", None, None)
    assert checks.server_checks(other)[0].name == "server"  # the one that was named


def test_setup(daemon, home, monkeypatch, capsys):
    """`hermes memory setup` asks for the LLM, starts the daemon, and tries it; the key is not shown."""
    monkeypatch.setattr(embedded, "program", lambda: "hindsight-api")
    daemon.let()
    answers = ["local_embedded", "openrouter", "", "m", "SECRET", "b", ""]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(answers)))
    HindsightMemoryProvider().post_setup(str(home), {})
    shown = capsys.readouterr().out
    assert shown.count("]: ") == 6
    assert "SECRET" not in shown
    assert "server: " + daemon.url in shown
    assert "Ready" in shown
    assert "HINDSIGHT_LLM_API_KEY=SECRET" in (home / ".env").read_text()
    kept = daemon.profile.read_text()
    assert "HINDSIGHT_API_LLM_PROVIDER=openai\n" in kept
    assert "HINDSIGHT_API_LLM_BASE_URL=https://openrouter.ai/api/v1\n" in kept


def test_setup_that_fails(daemon, home, monkeypatch, capsys):
    """A daemon that does not come up is told by setup, with the log that says why."""
    monkeypatch.setattr(embedded, "program", lambda: "hindsight-api")
    daemon.let("fail")
    monkeypatch.setattr("sys.stdin", io.StringIO("local_embedded\n\n\n\n\n\n"))
    HindsightMemoryProvider().post_setup(str(home), {})
    shown = capsys.readouterr().out
    assert "did not start; see" in shown
    assert "Ready" not in shown


def test_what_goes_from_the_profile(tmp_path):
    """One provider's endpoint, model and key are no other's; tuning and a key of its own stay."""
    there = {
        "HINDSIGHT_API_LLM_PROVIDER": "openai",
        "HINDSIGHT_API_LLM_MODEL": "m",
        "HINDSIGHT_API_LLM_API_KEY": "k",
        "HINDSIGHT_API_LLM_BASE_URL": "http://l",
        "HINDSIGHT_API_LLM_MAX_RETRIES": "1",
    }
    provider, model, key, endpoint, _ = there
    assert embedded._changes(there, {}) == {}
    assert embedded._changes(there, {provider: "openai"}) == {endpoint: None}
    assert embedded._changes({key: "k"}, {provider: "openai"}) == {provider: "openai"}
    assert embedded._changes(there, {provider: "groq", model: "n"}) == {
        provider: "groq",
        model: "n",
        key: None,
        endpoint: None,
    }


def test_variables(tmp_path):
    """A file that is not there is made, and taking out what is not there is no error."""
    set_variables(tmp_path / "a" / ".env", {"X": "1", "Y": None})
    assert (tmp_path / "a" / ".env").read_text() == "X=1\n"


def test_the_first_start_is_announced(home, daemon):
    """Where the daemon was never up, the user is told once that it takes minutes; later not."""
    told = []
    configure(home, mode="local_embedded", bank_id="b")
    for _ in range(2):
        provider = HindsightMemoryProvider()
        daemon.let()
        provider.initialize(
            "s", hermes_home=str(home), agent_context="primary", warning_callback=told.append
        )
        until(lambda: embedded.address(Settings.load(home)))
        until(daemon.answers)
        provider.shutdown()
    (text,) = told
    assert "first time" in text
    assert "minutes" in text


def test_more_of_the_daemons_environment(chat, daemon, home):
    """A mirror, the offline mode and other variables reach the daemon; a change starts it anew."""
    daemon.let()
    chat(
        hf_endpoint="http://mirror",
        hf_offline=True,
        embedded_environment={"HINDSIGHT_X": "1", "Y": "2"},
    )
    until(lambda: daemon.asked() == 1)
    until(lambda: embedded._agrees(Settings.load(home)))
    there = embedded._profile_of(Settings.load(home))
    assert {
        "HF_ENDPOINT": "http://mirror",
        "HF_HUB_OFFLINE": "1",
        "HINDSIGHT_X": "1",
    }.items() <= there.items()
    assert json.loads((daemon.folder / "environ").read_text())["Y"] == "2"
    chat(hf_endpoint="http://mirror").sync_turn("one", "ok")
    until(lambda: daemon.asked() == 2)
    until(lambda: embedded._agrees(Settings.load(home)))
    assert "HF_HUB_OFFLINE" not in embedded._profile_of(Settings.load(home))


def test_the_status_names_the_llm(chat, daemon):
    """The status tells provider, model and endpoint of the LLM; the defaults as such."""
    daemon.let()
    shown = chat(llm_provider="openrouter").get_status_config()
    assert shown["LLM provider"] == "openrouter"
    assert shown["LLM base URL"].startswith("https://openrouter.ai/")
    shown = chat(llm_provider="groq").get_status_config()
    assert shown["LLM model"] == "openai/gpt-oss-120b (default)"
    assert shown["LLM base URL"] == "the provider's own"


def test_a_compatible_server_needs_its_address(home, daemon):
    """Without an endpoint, what is meant for an own LLM would go to OpenAI: memory stays off."""
    configure(home, mode="local_embedded", llm_provider="openai_compatible")
    assert "llm_base_url" in embedded.missing(Settings.load(home))


def test_a_program_that_hermes_keeps(home, daemon, monkeypatch):
    """The daemon is started by the uvx that Hermes keeps, where there is no other."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(embedded.sysconfig, "get_path", lambda name: str(home))
    assert embedded.program() == ""
    uvx = home / "bin" / "uvx"
    uvx.parent.mkdir()
    uvx.write_text("#!/bin/sh\n")
    uvx.chmod(0o755)
    assert embedded.program() == str(uvx)


def test_the_starter_of_a_plugins_folder():
    """The starter finds the package where this process has it, though it is not installed."""
    place = str(Path(embedded.__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-S", "-c", embedded._STARTER, place],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "JSONDecodeError" in ended.stderr  # it waits for the settings, and there are none
