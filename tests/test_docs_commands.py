"""Every command that the documents show is run: here, or by the test or step that stands beside it."""

from __future__ import annotations

import argparse
import configparser
import contextlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import pytest
from children import Process
from hermes.test_history import History
from serving import documents
from test_docs import DOCUMENTS, ROOT

from hindsight_exec import Settings
from hindsight_exec.cli.dead_letters import entries
from hindsight_exec.cli.main import make_parser
from hindsight_exec.conversation import turns
from hindsight_exec.outbox import spool
from hindsight_exec.outbox.store import Outbox

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the commands are a POSIX shell's")


@dataclass(frozen=True)
class Run:
    """How a command is run here, where a turn waits, another is dead, and Hermes had a session.

    Attributes:
        line: What is run, where the text leaves something open.
        before: A command that is run before.
        answer: What is typed when it asks.
        shows: What its output has, among other things.
        stored: The session of which the server has a document afterwards; without it none.
    """

    line: str = ""
    before: str = ""
    answer: str = ""
    shows: tuple[str, ...] = ()
    stored: str = ""


IMPORT = ("past", "1 session to import, with 1 turn: about 1 call")
HERE = {
    "hindsight-exec hermes install": Run(
        answer="y", shows=("set memory.provider", "hindsight -> hindsight_exec")
    ),
    "hindsight-exec hermes uninstall": Run(
        before="hindsight-exec hermes install --from-bundled --yes",
        shows=("remove ", "hindsight_exec -> hindsight"),
    ),
    "hindsight-exec status": Run(shows=("waiting   1 turn, the oldest for", "dead      1 turn: ")),
    "status --watch": Run(
        "hindsight-exec status --watch 0.1 | grep -m 2 waiting",
        shows=("waiting   1 turn, the oldest for",),
    ),
    "hindsight-exec outbox list": Run(shows=(" held ", "User: what waits")),
    "outbox show ID": Run("hindsight-exec outbox show ID", shows=("User: what waits", "session s")),
    "outbox purge": Run("hindsight-exec outbox purge", answer="y", shows=("2 turns erased",)),
    "outbox purge [--session ID]": Run(
        "hindsight-exec outbox purge --session s", answer="y", shows=("2 turns erased",)
    ),
    "hindsight-exec dead list": Run(shows=(" dead ", "rejected: the server's words")),
    "dead list": Run("hindsight-exec dead list", shows=("rejected: the server's words",)),
    "dead retry": Run("hindsight-exec dead retry --all", shows=("1 dead letter queued again",)),
    "dead discard": Run("hindsight-exec dead discard --all", shows=("1 dead letter erased",)),
    "hindsight-exec doctor": Run(
        shows=("state directory: ", "SQLite: ", "configuration: ", "server: ", "key: accepted")
    ),
    "hindsight-exec import hermes --dry-run": Run(shows=IMPORT),
    "hindsight-exec import hermes": Run(
        answer="y", shows=(*IMPORT, "1 of 1 turn stored"), stored="past"
    ),
    "hindsight-exec retain talk.jsonl --bank notes": Run(
        shows=("1 of 1 turn stored in bank 'notes'", "as session 'talk'")
    ),
    "hindsight-exec memories forget": Run(
        "hindsight-exec memories forget --session s --dry-run",
        shows=("0 documents would be deleted",),
    ),
    "hindsight-exec flush": Run(shows=("no turns are waiting",), stored="s"),
    "hindsight-exec status --check --max-age 1h": Run(
        "hindsight-exec status --check --max-age 1h; test $? = 1", shows=("1 dead letter in ",)
    ),
    "hindsight-exec status --prometheus": Run(
        shows=("# TYPE hindsight_exec_waiting_turns gauge", '/outbox"} 1'),
    ),
    'eval "$(hindsight-exec completion bash)"': Run(
        'eval "$(hindsight-exec completion bash)" && complete -p hindsight-exec',
        shows=("-F _shtab_hindsight_exec",),
    ),
}

HOST, CI = "tests/hermes/test_host.py", ".ci/run"
SUITE = "is a part of these tests, or runs for long; that it finds its tests is checked"
#: What cannot be run here: why, and what runs each instead. A place is a file and a word in it.
ELSEWHERE = {
    "needs a registry of packages": {
        "python3 -m venv .venv && .venv/bin/pip install '.[cli]' && .venv/bin/hindsight-exec demo": (
            CI,
            "demo_step",
        ),
        "python3 -m venv .venv && .venv/bin/pip install '.[cli,test]' && .venv/bin/pytest": (
            CI,
            "readme_step",
        ),
        "python3 -m venv .venv && .venv/bin/pip install -e '.[cli,test,hermes]' && .venv/bin/pytest": (
            CI,
            "readme_step",
        ),
        "pip install .": (CI, "readme_step"),
        "pip install '.[cli]'": (CI, "demo_step"),
        "pip install --no-deps .": ("tests/test_package.py", "pip install --no-deps"),
        "pip install tox": (CI, 'pip" install -q "tox'),
        "pip install '.[embedded]'": ("tox.ini", "hindsight-embed=="),
        "pip install hindsight-all": ("tox.ini", "hindsight-api-slim[embedded-db]=="),
    },
    "would register with the scheduler of this machine": {
        f"hindsight-exec service {command}": (
            "tests/cli/test_service.py",
            f'"service", "{command}"',
        )
        for command in ("install", "status", "uninstall")
    },
    "does not end by itself": {
        "hindsight-exec serve --memory": (
            "tests/test_docs_commands.py",
            '"serve", "--port", "0", "--memory"',
        ),
    },
    "needs Hermes, which has an environment of its own": {
        "hermes plugins install URL --no-enable": (HOST, "test_the_repository_is_a_plugin"),
        "hermes config set memory.provider hindsight_exec": (
            HOST,
            "test_the_repository_is_a_plugin",
        ),
        "hermes hindsight_exec status": (HOST, "test_commands"),
        "hermes hindsight_exec import": (HOST, "test_one_question"),
        "hermes memory status": (HOST, "test_commands"),
        "hermes memory setup": (HOST, "test_setup"),
        "hermes memory setup hindsight_exec": (HOST, "test_setup"),
        "hermes profile create --clone": (
            "tests/hermes/test_matrix.py",
            '"profile", "create", "work", "--clone"',
        ),
        "hindsight-exec hermes status": (
            "tests/hermes/test_package_manager.py",
            '"hermes", "status"',
        ),
    },
    "needs a real Hindsight": {
        "hindsight-embed -p hermes daemon stop": (
            "tests/hindsight/test_embedded.py",
            '"-p", "hermes", "daemon", "stop"',
        ),
        "hindsight-admin decommission-worker": (
            "tests/hindsight/test_scale.py",
            "decommission-worker",
        ),
        "hindsight-admin decommission-worker NAME --yes": (
            "tests/hindsight/test_scale.py",
            "decommission-worker",
        ),
    },
    "makes environments of its own; that each is there is checked": {
        ".ci/run": (CI, "tox_step"),
        "ruff format": ("tox.ini", "ruff format --check"),
        'pytest -m "not soak and not processes"': ("tox.ini", '-m "not soak and not processes"'),
        "python -m pytest": ("tests/test_package.py", "`python -m pytest`"),
        "pytest tests/outbox": ("tests/outbox/test_outbox.py", "import pytest"),
        **{
            f"tox -e {name}": (CI, step)
            for name, step in (
                ("py39", "${found[$name]}"),
                ("lowest", "tox_step lowest"),
                ("lint", "tox_step lint"),
                ("types", "tox_step types"),
                ("wheel", "tox_step wheel"),
                ("docs", "tox_step docs"),
                ("hermes", "tox_step hermes"),
                ("hermes-022", "tox_step hermes-022"),
                ("hindsight", "tox_step hindsight"),
                ("processes", "tox_step processes"),
            )
        },
        **{
            f"tox -e {name}": ("tox.ini", words)
            for name, words in (
                ("hindsight-soak", "hindsight and soak"),
                ("soak", "soak and not hermes"),
                ("bench", "python -m benchmarks"),
            )
        },
    },
    SUITE: {
        "python -m benchmarks.pictures": ("tests/test_pictures.py", '"-m", "benchmarks.pictures"'),
        "python -m exit.matrix FOLDER": ("tests/exit/test_matrix.py", "matrix.main("),
        **{
            f"pytest {words}": (f"tests/{words.rpartition(' ')[2]}", "import pytest")
            for words in (
                "exit/test_matrix.py",
                "-m soak exit/test_matrix.py",
                "delivery/test_kills.py",
                "-m soak delivery/test_kills.py",
                "-m soak delivery/test_scale.py",
                "-m soak hermes/test_gateway_soak.py",
                "delivery/test_faults.py",
                "-m soak delivery/test_faults.py",
                "test_machine.py",
                "-m soak test_machine.py",
                "client/test_client.py",
                "executor/test_cpython_suite.py",
                "-m soak outbox/test_forks.py",
                "powercut/test_power_cuts.py",
                "-m soak powercut/test_power_cuts.py",
            )
        },
    },
}
NOT_HERE = {command: place for group in ELSEWHERE.values() for command, place in group.items()}

PROGRAMS = frozenset(
    re.findall(
        r"\S+",
        "hindsight-exec hindsight-embed hindsight-admin hindsight-api hermes pip pipx uv uvx python"
        " python3 pytest tox ruff mypy git docker curl eval source export cd sudo systemctl crontab"
        " chmod rm mv cp kill",
    )
)


def _has_commands(action: argparse.Action) -> bool:
    return isinstance(action, argparse._SubParsersAction)


def _parsers() -> Iterator[argparse.ArgumentParser]:
    found = [make_parser(["completion"])]
    while found:
        yield found[-1]
        for action in found.pop()._actions:
            if _has_commands(action):
                found += action.choices.values()


COMMANDS = next(
    frozenset(action.choices) for action in next(_parsers())._actions if _has_commands(action)
)


def _is_command(text: str) -> bool:
    first, *more = text.split()
    return text == ".ci/run" or bool(first in PROGRAMS | COMMANDS and more and more[0] != "…")


def _spans(text: str) -> list[str]:
    return [span for span in re.findall(r"`([^`\n]+)`", text) if span.strip()]


def _shown(text: str) -> Iterator[str]:
    """The commands in a document: lines of its blocks, and what stands between backticks."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for language, block in fence.findall(text):
        lines = block.splitlines()
        if language == "sh":
            for line in lines:
                command, _, comment = line.partition("  #")
                yield command.strip()
                yield from filter(_is_command, _spans(comment))
        elif language == "crontab":
            yield from (line.split(None, 5)[5] for line in lines)
        elif language == "ini":
            yield from re.findall(r"^ExecStart=(.*)$", block, re.MULTILINE)
        elif language != "python":
            assert not any(map(_is_command, filter(str.strip, lines))), f"not marked as sh: {block}"
    yield from filter(_is_command, _spans(fence.sub("", text)))


SHOWN = {
    document.name: list(_shown(document.read_text(encoding="utf-8"))) for document in DOCUMENTS
}


def test_every_command_is_run() -> None:
    """Each is in one of the two lists, and the lists hold no other."""
    shown = set(itertools.chain(*SHOWN.values()))
    listed = {**HERE, **NOT_HERE}
    assert len(listed) == len(HERE) + len(NOT_HERE)
    assert shown - set(listed) == set(), "neither run here nor listed with what runs it"
    assert set(listed) - shown == set(), "no document shows it any more"


@pytest.mark.parametrize("command", NOT_HERE)
def test_what_runs_it_instead(command: str) -> None:
    """The test or step that is named is there."""
    name, words = NOT_HERE[command]
    if name.startswith(".") and not (ROOT / name).exists():
        pytest.skip(f"the sdist has no {name}")
    assert words in (ROOT / name).read_text(encoding="utf-8")


def test_environments() -> None:
    """What the documents call an environment of tox is one."""
    known: set[str] = set()
    read = configparser.RawConfigParser()
    read.read(ROOT / "tox.ini", encoding="utf-8")
    for section in [*read.sections(), *read["tox"]["env_list"].split()]:
        parts = re.split(r"\{([^}]*)\}", section.replace("testenv:", ""))
        known.update(map("".join, itertools.product(*(part.split(",") for part in parts))))
    text = "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    named = {span.split()[2] for span in _spans(text) if span.startswith("tox -e ")}
    named |= {
        span
        for span in _spans(text)
        if re.fullmatch(r"(py|pypy)3\d+|(hermes|hindsight)-(py3\d+|old|soak|old-soak)", span)
    }
    assert len(named) > 10
    assert named - known == set()


def test_options() -> None:
    """An option that stands alone is one of ours."""
    known = {option for parser in _parsers() for option in parser._option_string_actions}
    named = {
        span.split()[0]
        for document in DOCUMENTS
        for span in _spans(document.read_text(encoding="utf-8"))
        if span.startswith("--")
    }
    assert "--from-bundled" in named
    assert named - known == set()


@pytest.mark.slow
@pytest.mark.parametrize("marker", ["not soak", "soak"])
def test_suites_are_there(marker: str) -> None:
    """Commands that run a part of these tests find some to run."""
    wanted = [
        words
        for words in map(shlex.split, ELSEWHERE[SUITE])
        if words[0] == "pytest" and (words[1] == "-m") is (marker == "soak")
    ]
    files = [words[-1] for words in wanted]
    assert files
    found = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"),
            *("-m", marker, *files),
        ],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
    )
    for file in files:
        # That of CPython needs an interpreter that carries its tests, and says so.
        assert re.search(f"{re.escape(file)}(::|:[0-9]+: )", found.stdout), found.stdout


def test_the_examples_of_the_help() -> None:
    """Each command's help ends with examples, and the command line takes them."""
    parsers = [one for one in _parsers() if not any(map(_has_commands, one._actions))]
    assert len(parsers) > 15
    for parser in parsers:
        lines = re.findall(
            r"^  (?:eval \"\$\()?hindsight-exec (.*)", parser.epilog or "", re.MULTILINE
        )
        assert lines, parser.prog
        for line in lines:
            assert f"hindsight-exec {line}".startswith(parser.prog)
            words = shlex.split(re.split(r"[|<>)#]", line)[0])
            make_parser(words).parse_args(words)


# -- run here ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The embedded server, as `hindsight-exec serve` runs it."""
    command = ["serve", "--port", "0", "--memory", "--until-eof"]
    with Process(
        [sys.executable, "-m", "hindsight_exec", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


class Place:
    """A user's folder, with Hermes in it, where a turn waits, and a shell."""

    def __init__(self, folder: Path, url: str) -> None:
        self.user = folder / "user"
        self.url = url
        self.bank = folder.name
        home = self.user / ".hermes"
        configured = {"mode": "local_external", "api_url": url, "bank_id": self.bank}
        _write(self.user / ".hindsight" / "config.json", json.dumps(configured))
        said = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
        _write(self.user / "talk.jsonl", "\n".join(map(json.dumps, said)))
        _write(home / "config.yaml", "memory:\n  provider: hindsight\n")
        ours = _write(
            self.user / ".local" / "bin" / "hindsight-exec",
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m hindsight_exec "$@"\n',
        )
        ours.chmod(0o755)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HINDSIGHT_", "HERMES_", "XDG_"))
        }
        self.environ = {
            **kept,
            "HOME": str(self.user),
            "HERMES_HOME": str(home),
            "PATH": f"{ours.parent}{os.pathsep}{os.environ['PATH']}",
        }
        history = History(home)
        history.session("past")
        history.talk("past", 1)
        history.db.close()
        self._keep(home / "hindsight" / "outbox", Settings.load(home, self.environ))

    def _keep(self, folder: Path, settings: Settings) -> None:
        """What ended processes left: a turn that waits, and one that the server refused."""
        source = turns.source(
            url=settings.api_url,
            credential=settings.credential,
            bank=settings.bank_id,
            session="s",
            context=None,
            tags=(),
            metadata=None,
            observation_scopes=None,
        )
        messages = [{"role": "user", "content": "User: what waits"}]
        claim = spool.create(folder)
        with contextlib.closing(Outbox(claim.path)) as outbox:
            _, destination = outbox.put_document(source, "s/dead", b'{"content": "dead"}', 1.0)
            ((number, _),) = outbox.ready(destination, 1)
            batch = outbox.make_batch(destination, [number], "an operation")
            outbox.mark_dead(batch, "rejected", "the server's words")
            outbox.put(source, turns.turn(messages, given_at=2.0, index=1))
        claim.release()
        self.waits = next(entry.name for entry in entries([folder]) if entry.row["state"] == "held")

    def shell(self, line: str, answer: str = "") -> str:
        """Runs a line, on a terminal as far as it asks; what it printed."""
        terminal, ours = os.openpty()
        try:
            os.write(terminal, f"{answer}\n".encode())
            ended = subprocess.run(
                ["bash", "-c", line.replace("%h", str(self.user)).replace(" ID", f" {self.waits}")],
                env=self.environ,
                cwd=self.user,
                stdin=ours,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                timeout=100,
                check=False,
            )
        finally:
            os.close(ours)
            os.close(terminal)
        assert ended.returncode == 0, ended.stdout
        return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", HERE)
def test_command(command: str, tmp_path: Path, server: str) -> None:
    """It does what the text says, and ends with status 0."""
    if "completion" in command:
        pytest.importorskip("shtab", reason="completion comes with the extra `cli`")
    place, run = Place(tmp_path, server), HERE[command]
    if run.before:
        place.shell(run.before)
    printed = place.shell(run.line or command, run.answer)
    for words in run.shows:
        assert words in printed
    sessions = {found["id"].partition("/")[0] for found in documents(server, place.bank)}
    assert run.stored in sessions if run.stored else not sessions


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
