"""Mode local_embedded with hindsight-embed itself: its daemon starts, is found, and comes back."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path
from typing import Any, Iterator

import pytest
from children import Process

import hindsight_exec

from .server import VARIABLE, Hindsight, eventually, request

pytestmark = [pytest.mark.hindsight, pytest.mark.timeout(600)]


class Chat:
    """A process with the provider, and with Hindsight's packages beside it."""

    def __init__(self, folder: Path, python: str, environment: dict[str, str]) -> None:
        self.errors = folder / "errors"
        self.environment = environment
        with self.errors.open("ab") as errors:
            self.process = Process(
                [python, str(Path(__file__).with_name("chatter.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                cwd=folder,
            )

    def tell(self, line: str) -> str:
        """Its answer, without the first word."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, self.errors.read_text()[-4000:]
        return answer.strip().partition(" ")[2]

    def end(self) -> None:
        out, _ = self.process.communicate(timeout=120)
        assert (self.process.returncode, out) == (0, ""), self.errors.read_text()[-4000:]

    def close(self) -> None:
        self.process.close()


@pytest.fixture
def chat(hindsight: Hindsight, tmp_path: Path) -> Iterator[Any]:
    """Starts chats of one user; the daemon ends with the test."""
    question = "import hindsight_embed"
    if subprocess.run([hindsight.python, "-c", question], check=False).returncode:
        pytest.skip(f"the Python of {VARIABLE} has no hindsight-embed")
    home = tmp_path / "hermes"
    (home / "hindsight").mkdir(parents=True)
    (home / "hindsight" / "config.json").write_text(
        json.dumps(
            {
                "mode": "local_embedded",
                "bank_id": "b",
                "retain_idle_seconds": 0,
                "llm_provider": "openai_compatible",
                "llm_base_url": hindsight.models.url,
                "llm_model": "stub",
            }
        )
    )
    (home / ".env").write_text("HINDSIGHT_LLM_API_KEY=SECRET\n")
    # Only our package: what else is beside it is of another environment.
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "hindsight_exec").symlink_to(Path(hindsight_exec.__file__).parent)
    environment = {
        **hindsight.environment,
        "HOME": str(tmp_path),
        "HERMES_HOME": str(home),
        "PYTHONPATH": str(packages),
        # PostgreSQL refuses root, which the tests may be; it has a user of its own here.
        "HINDSIGHT_EMBED_API_DATABASE_URL": hindsight.ask("database", name=f"d{tmp_path.name}"),
    }
    chats: list[Chat] = []

    def chat() -> Chat:
        chats.append(Chat(tmp_path, hindsight.python, environment))
        return chats[-1]

    yield chat
    last = chat()
    try:
        last.tell("clean")
    finally:
        for one in chats:
            one.close()


def test_the_real_daemon(chat: Any, hindsight: Hindsight, tmp_path: Path) -> None:
    """Started beside the chat, found by the next one, and brought back after it stopped."""
    asked = hindsight.models.asked
    first = chat()
    first.tell("turn the door is blue")
    assert json.loads(first.tell("recall which colour has the door?")) == ""
    first.end()  # nobody waits for the daemon
    profile = tmp_path / ".hindsight" / "profiles" / "hermes.env"

    def url() -> str:
        lines = profile.read_text().splitlines() if profile.exists() else []
        return next(
            (one for one in lines if one.startswith("HINDSIGHT_API_PORT=")),
            "",
        ).replace("HINDSIGHT_API_PORT=", "http://127.0.0.1:")

    def said() -> list[str]:
        status, page = request("GET", f"{url()}/v1/default/banks/b/documents?limit=100")
        texts = []
        for item in page["items"] if status == 200 else ():
            path = f"/v1/default/banks/b/documents/{item['id'].replace('/', '%2F')}"
            document = request("GET", url() + path)[1]
            texts.append(json.loads(document["original_text"])[0]["content"])
        return sorted(texts)

    eventually(url, seconds=240, pause=0.5)
    second = chat()
    second.tell("turn the window is green")
    two = ["User: the door is blue", "User: the window is green"]
    eventually(lambda: said() == two, pause=0.5)
    eventually(lambda: hindsight.models.asked > asked)  # the LLM of config.json
    assert "HINDSIGHT_API_LLM_API_KEY=SECRET" in profile.read_text()
    assert stat.S_IMODE(profile.stat().st_mode) == 0o600
    # As docs/operations.md has it.
    program = str(Path(hindsight.python).with_name("hindsight-embed"))
    stop = [program, "-p", "hermes", "daemon", "stop"]
    subprocess.run(stop, env=second.environment, check=True, stdout=subprocess.DEVNULL)
    second.tell("turn the roof is red")
    second.tell("join")
    three = [two[0], "User: the roof is red", two[1]]
    eventually(lambda: said() == three, pause=0.5)
    second.end()
    log = tmp_path / "hermes" / "logs" / "hindsight-embed.log"
    assert "Daemon" in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert "SECRET" not in log.read_text() + (tmp_path / "errors").read_text()
