"""`hindsight-exec import hermes`: what Hermes had before, each session once."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import sqlite3
import time
import urllib.request
from pathlib import Path

import pytest
from serving import Serving, documents, stored

from hindsight_exec.cli.main import main
from hindsight_exec.errors import ConfigError
from hindsight_exec.hermes.history import past_sessions

from .recording import configure

pytestmark = pytest.mark.slow

AT = 1_760_000_000.0  # an autumn day of 2025

# As hermes-agent 0.19.0 makes them, with the columns that count.
TABLES = """
CREATE TABLE sessions (id TEXT PRIMARY KEY, source TEXT, user_id TEXT, chat_id TEXT,
    chat_type TEXT, thread_id TEXT, model_config TEXT, parent_session_id TEXT,
    started_at REAL, title TEXT);
CREATE TABLE messages (id INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT, role TEXT,
    content TEXT, timestamp REAL, observed INTEGER DEFAULT 0, active INTEGER DEFAULT 1,
    compacted INTEGER DEFAULT 0);
"""


class History:
    """Writes a state.db."""

    def __init__(self, home: Path) -> None:
        self.db = sqlite3.connect(home / "state.db", isolation_level=None)
        self.db.executescript(TABLES)
        self.at = AT

    def session(self, name, *, source="cli", parent=None, config=None):
        self.at += 100
        self.db.execute(
            "INSERT INTO sessions (id, source, parent_session_id, model_config, started_at, title)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (name, source, parent, config, self.at, f"about {name}"),
        )

    def say(self, session, role, content, **columns):
        self.at += 1
        row = {"session_id": session, "role": role, "content": content, "timestamp": self.at}
        row.update(columns)
        places = ", ".join("?" * len(row))
        self.db.execute(
            f"INSERT INTO messages ({', '.join(row)}) VALUES ({places})", list(row.values())
        )

    def talk(self, session, *numbers, **columns):
        for number in numbers:
            self.say(session, "user", f"question {number} of {session}", **columns)
            self.say(session, "assistant", f"answer {number} of {session}", **columns)


@pytest.fixture
def history(home):
    history = History(home)
    yield history
    history.db.close()


@pytest.fixture
def server(tmp_path):
    server = Serving(tmp_path / "data")
    yield server
    server.close()


@pytest.fixture
def run(home, server, capsys):
    """Runs the command; returns its exit status, what it printed and what it noted."""
    configure(home, api_url=server.url, bank_id="b", retain_document_chars=200)

    def run(*arguments):
        capsys.readouterr()
        status = main(["import", "hermes", "--home", str(home), *arguments])
        return (status, *capsys.readouterr())

    return run


def said(session, *numbers):
    return [
        text
        for number in numbers
        for text in (
            f"User: question {number} of {session}",
            f"Assistant: answer {number} of {session}",
        )
    ]


def texts(home):
    return {
        past.identity.session: [(turn.user, turn.assistant) for turn in past.turns]
        for past in past_sessions(home)
    }


def test_sessions_are_imported_once(history, run, server, home):
    """Each session arrives whole, in order and dated by its turns; a second run does nothing."""
    for name in ("one", "two"):
        history.session(name)
        history.talk(name, *range(20))
    status, out, _ = run("--yes")
    assert (status, out) == (0, "40 of 40 turns stored\n")
    expected = {name: said(name, *range(20)) for name in ("one", "two")}
    assert stored(server.url) == expected
    first = documents(server.url)[0]
    # Hermes' own time, with the offset of this machine.
    assert time.strftime("%Y-%m-%d", time.localtime(AT)) in json.dumps(first["retain_params"])
    assert first["document_metadata"]["platform"] == "cli"
    assert run("--yes")[1].startswith("session")
    assert stored(server.url) == expected
    assert not list((home / "hindsight" / "outbox").glob("*.db"))


def test_a_dry_run_changes_nothing(history, run, server, home):
    """It says what would be imported and what it costs, and neither file nor server changes."""
    history.session("one")
    history.talk("one", 1, 2)
    before = (home / "state.db").read_bytes()
    status, out, _ = run("--dry-run")
    assert status == 0
    assert "1 session to import, with 2 turns: about 1 call of the server's LLM" in out
    (session,) = json.loads(run("--dry-run", "--json")[1])["sessions"]
    assert (session["session"], session["state"], session["turns"]) == ("one", "new", 2)
    assert documents(server.url) == []
    assert (home / "state.db").read_bytes() == before


def test_it_asks_first(history, run, server, monkeypatch):
    """Without a terminal to ask on and without --yes nothing is imported."""
    history.session("one")
    history.talk("one", 1)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    status, _, err = run()
    assert status == 2
    assert "--yes" in err
    assert documents(server.url) == []


def test_an_import_that_was_killed_goes_on(history, run, server, home):
    """Whatever part of a session was sent before, all of it is stored once afterwards."""
    history.session("one")
    history.talk("one", *range(30))
    assert run("--yes")[0] == 0
    everything = documents(server.url)
    journal = home / "hindsight" / "outbox" / "imported.jsonl"
    lines = journal.read_text().split()
    # Killed after the session had begun, in the middle of a line.
    journal.write_text(journal.read_text().rpartition("\n")[0] + '\n["http')
    assert len(lines) > 1
    status, out, _ = run("--yes")
    assert (status, out) == (0, "30 of 30 turns stored\n")
    again = documents(server.url)
    assert [one["id"] for one in again] == [one["id"] for one in everything]
    assert stored(server.url) == {"one": said("one", *range(30))}


def test_what_the_bank_has_is_left_out(history, run, server):
    """Sessions that were retained live, by whichever provider, are not imported again."""
    for name in ("ours", "theirs", "new"):
        history.session(name)
        history.talk(name, 1)
    assert run("--yes", "--session", "ours")[0] == 0
    url = f"{server.url}/v1/default/banks/b/memories"
    item = {"content": "[]", "document_id": "theirs", "update_mode": "append"}
    body = json.dumps({"items": [item], "async": False}).encode()
    urllib.request.urlopen(
        urllib.request.Request(url, body, {"Content-Type": "application/json"})
    ).close()
    states = {
        session["session"]: session["state"]
        for session in json.loads(run("--dry-run", "--json")[1])["sessions"]
    }
    assert states == {"ours": "done", "theirs": "in the bank", "new": "new"}


def test_a_session_in_use_is_left_alone(history, run):
    """One of the last hour may still go on, and is retained live; naming it imports it."""
    history.session("now")
    history.at = time.time() - 60
    history.talk("now", 1)
    (session,) = json.loads(run("--dry-run", "--json")[1])["sessions"]
    assert session["state"] == "in use"
    (session,) = json.loads(run("--dry-run", "--json", "--session", "now")[1])["sessions"]
    assert session["state"] == "new"


def test_since(history, run):
    """Only sessions that were used since a date."""
    history.session("old")
    history.talk("old", 1)
    assert json.loads(run("--dry-run", "--json", "--since", "2026-01-01")[1])["sessions"] == []
    status, _, noted = run("--since", "yesterday")
    assert status == 2
    assert "invalid date 'yesterday' (expected YYYY-MM-DD)" in noted


def test_what_was_no_conversation(history, home):
    """Left out: schedules, delegates, what was undone, onlookers and injected memories."""
    history.session("cron", source="cron")
    history.talk("cron", 1)
    history.session("child", parent="talk", config='{"_delegate_from": "talk"}')
    history.talk("child", 1)
    history.session("talk", config="{broken")
    history.talk("talk", 1)
    history.talk("talk", 2, active=0)
    history.talk("talk", 3, observed=1)
    history.say("talk", "user", "[System: Continue now. Where you were.]")
    history.say("talk", "assistant", "on it")
    history.say("talk", "tool", "output")
    history.say(
        "talk", "user", "<memory-context>old</memory-context>\nhello", active=0, compacted=1
    )
    parts = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    history.say("talk", "assistant", f"\x00json:{json.dumps(parts)}")
    history.session("empty")
    assert texts(home) == {
        "talk": [
            ("question 1 of talk", "answer 1 of talk"),
            ("[System: Continue now. Where you were.]", "on it"),
            ("hello", "hi\n[image]"),
        ]
    }


def test_findings(history, home, run, server):
    """What the assistant found after a notice of the runtime is kept, and the notice marked."""
    history.session("talk")
    history.say("talk", "user", "[ASYNC DELEGATION COMPLETE — d1]\nlong output")
    history.say("talk", "assistant", "The build is green.")
    history.say("talk", "user", "[System: The active model for this chat has changed to x]")
    history.say("talk", "user", "and now?")
    history.say("talk", "assistant", "Ship it.")
    status, _, _ = run("--yes")
    assert status == 0
    assert stored(server.url) == {
        "talk": [
            "Runtime (not the user): [ASYNC DELEGATION COMPLETE — d1]",
            "Assistant: The build is green.",
            "User: and now?",
            "Assistant: Ship it.",
        ]
    }


def test_skills(history, home):
    """What a user typed with a skill is theirs; the skill's own text is not."""
    invoked = '[IMPORTANT: The user has invoked the "deploy" skill'
    given = "The user has provided the following instruction alongside the skill invocation: "
    bundle = '[IMPORTANT: The user has invoked the "web" skill bundle, which loads two.]'
    history.session("talk")
    for text in (
        f"{invoked}, indicating …]\n\n# Deploy\nStep.\n\n{given}the blog\ntonight",
        f"{invoked}, indicating …]\n\n# Deploy\n\n{given}again\n\n[Runtime note: fast]",
        f"{bundle}\n\nUser instruction: draw it\n\n[Loaded as part of the bundle]\n{given}no",
        f"{invoked}, indicating …]\n\n# Deploy\nStep.",
    ):
        history.say("talk", "user", text)
        history.say("talk", "assistant", "Done.")
    (past,) = past_sessions(home)
    assert [turn.user for turn in past.turns] == ["the blog\ntonight", "again", "draw it"]


def test_findings_of_kanban_workers(history, home):
    """A worker of Hermes' kanban board is imported as it is retained live, its prompt marked."""
    history.session("task", source="kanban")
    history.say("task", "user", "work kanban task t_1")
    history.say("task", "assistant", "The build is green.")
    (past,) = past_sessions(home)
    (turn,) = past.turns
    assert (turn.from_runtime, turn.assistant) == (True, "The build is green.")


def test_kinds_of_messages(history, home):
    """Hermes 0.20 and later mark what nobody typed; what a person steers with is theirs."""
    history.db.execute("ALTER TABLE messages ADD COLUMN display_kind TEXT")
    history.session("talk")
    history.say("talk", "user", "job 7 is done", display_kind="process_complete")
    history.say("talk", "assistant", "It found nothing.")
    history.say("talk", "user", "look again", display_kind="steer")
    history.say("talk", "assistant", "Here it is.")
    (past,) = past_sessions(home)
    assert [turn.from_runtime for turn in past.turns] == [True, False]


def test_secrets_are_hidden(history, home, run, server):
    """An import hides the secrets that a live turn hides; imported again, it is stored once."""
    history.session("talk")
    for number in range(8):
        history.say("talk", "user", f"the password is hunter{number}x " + "y" * 900)
        history.say("talk", "assistant", "noted " + "z" * 900)
    configure(home, api_url=server.url, bank_id="b", redact=False)
    assert run("--yes")[0] == 0
    ids = [document["id"] for document in documents(server.url)]
    assert len(ids) > 1
    journal = home / "hindsight" / "outbox" / "imported.jsonl"
    journal.write_text(journal.read_text().replace('"done"', '"begun"'))  # as if it was killed
    configure(home, api_url=server.url, bank_id="b")
    assert run("--yes")[0] == 0
    assert [document["id"] for document in documents(server.url)] == ids
    assert "hunter" not in json.dumps(stored(server.url))
    assert "[redacted]" in json.dumps(stored(server.url))


def test_copies_in_the_own_bank(history, home, run, server):
    """With mirror_to_own_bank a project's session is imported into both banks, each once."""
    history.session("one")
    history.talk("one", 1, 2)
    history.session("two")
    history.talk("two", 1)
    history.db.execute("ALTER TABLE sessions ADD COLUMN cwd TEXT")
    history.db.execute("UPDATE sessions SET cwd = '/src/app' WHERE id = 'one'")
    banks = {"bank_id": "b", "bank_id_template": "{project}"}
    configure(home, api_url=server.url, **banks)
    assert run("--yes", "--session", "one")[0] == 0
    assert (stored(server.url), set(stored(server.url, "app"))) == ({}, {"one"})
    configure(home, api_url=server.url, **banks, mirror_to_own_bank=True)
    found = json.loads(run("--dry-run", "--json")[1])["sessions"]
    assert [(one["session"], one["bank"], one["state"]) for one in found] == [
        ("one", "app", "done"),
        ("one", "b", "new"),
        ("two", "b", "new"),
    ]
    status, out, _ = run("--yes")
    assert (status, out) == (0, "3 of 3 turns stored\n")
    assert set(stored(server.url)) == {"one", "two"}
    assert stored(server.url)["one"] == stored(server.url, "app")["one"]
    assert run("--yes")[1].startswith("session")


def test_sessions_of_projects(history, home, run, server, clean):
    """Past sessions go to the bank that a trusted project names, and wrong files leave them out."""
    history.db.execute("ALTER TABLE sessions ADD COLUMN cwd TEXT")
    for name, text in (("app", 'bank_id = "p"'), ("bad", "bank_id = 5")):
        folder = clean / "src" / name
        (folder / ".hindsight").mkdir(parents=True)
        (folder / ".hindsight" / "config.toml").write_text(text)
        history.session(name)
        history.talk(name, 1)
        history.db.execute("UPDATE sessions SET cwd = ? WHERE id = ?", (str(folder), name))
    configure(home, api_url=server.url, bank_id="b", trusted_project_dirs=["~/src"])
    status, _, err = run("--yes")
    assert status == 0
    assert "session bad is left out: " in err
    assert "bank_id must be text, not 5" in err
    assert (stored(server.url), set(stored(server.url, "p"))) == ({}, {"app"})


def test_what_an_import_costs(history, run):
    """The estimate counts as the server extracts: document by document, a call at least for each."""
    for number in range(20):
        history.session(f"s{number}")
        history.talk(f"s{number}", 1)
    history.session("long")
    for _ in range(4):
        history.say("long", "user", "x" * 2900)
        history.say("long", "assistant", "y" * 2900)
    out = run("--dry-run")[1]
    assert "with 24 turns: about 28 calls of the server's LLM" in out
    assert "0.4 million characters" in out
    assert (
        sum(one["extractions"] for one in json.loads(run("--dry-run", "--json")[1])["sessions"])
        == 28
    )


def test_copies_that_compression_made(history, home):
    """A summary and the messages copied around it are no new turns; what is said twice is."""
    history.session("long")
    history.talk("long", *range(6), active=0, compacted=1)
    history.say("long", "user", "yes", active=0, compacted=1)
    history.say("long", "assistant", "done", active=0, compacted=1)
    history.talk("long", 0)  # the head
    history.say("long", "user", "[CONTEXT COMPACTION — REFERENCE ONLY] Earlier turns …")
    history.talk("long", 5)  # the tail
    history.talk("long", 6)
    history.say("long", "user", "yes")
    history.say("long", "assistant", "done")
    history.session("longer", parent="long")
    history.talk("long", 6, session_id="longer")  # copied into the continuation
    history.talk("longer", 7)
    numbered = [(f"question {n} of long", f"answer {n} of long") for n in range(7)]
    yes = ("yes", "done")
    assert texts(home) == {
        "long": [*numbered[:6], yes, numbered[6], yes],
        "longer": [("question 7 of longer", "answer 7 of longer")],
    }


def test_no_history(home, run, capsys):
    """A folder without one, or with another's file, is named."""
    with pytest.raises(ConfigError, match=r"state\.db"):
        next(past_sessions(home))
    (home / "state.db").write_text("no database")
    assert run()[0] == 2
    with pytest.raises(ConfigError, match="cannot be read"):
        next(past_sessions(home))


def test_a_folder_that_does_not_know_the_server(tmp_path, server, home, monkeypatch, capsys):
    """The environment's server takes another folder's sessions; advice names that folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    history = History(elsewhere)
    monkeypatch.setenv("HINDSIGHT_API_URL", server.url)
    for session, bank in (("one", "b"), ("two", "_reserved")):
        history.session(session)
        history.talk(session, 1)
        monkeypatch.setenv("HINDSIGHT_BANK_ID", bank)
        main(["import", "hermes", "--home", str(elsewhere), "--yes", "--session", session])
        out, err = capsys.readouterr()
        if bank == "b":
            assert out == "1 of 1 turn stored\n", err
    state = elsewhere / "hindsight" / "outbox"
    assert f"the server refused 1 turn; run 'hindsight-exec dead list --state {state}'" in err
    history.db.close()


def test_a_journal_that_was_damaged(history, run, home):
    """Lines that say nothing are left out."""
    history.session("one")
    history.talk("one", 1)
    assert run("--yes")[0] == 0
    journal = home / "hindsight" / "outbox" / "imported.jsonl"
    journal.write_bytes(b"\xff\n[[1], 2, 3, 4]\n" + journal.read_bytes())
    assert run("--yes")[1].startswith("session")


def test_two_imports_at_once(history, run, home):
    """The second one is told that another runs."""
    history.session("one")
    history.talk("one", 1)
    assert run("--dry-run")[0] == 0
    with (home / "hindsight" / "outbox" / "imported.jsonl").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, _, err = run("--yes")
    assert status == 2
    assert "another import runs" in err


@pytest.mark.hermes
def test_sessions_of_the_real_host(home, run, server):
    """What Hermes' own code wrote, compressed in place, is read as it was said."""
    state = pytest.importorskip("hermes_state", reason="hermes-agent is not installed")
    with contextlib.closing(state.SessionDB(db_path=home / "state.db")) as db:
        db.create_session("real", "telegram")
        for number in range(8):
            for role, what in (("user", "question"), ("assistant", "answer")):
                db.append_message(
                    "real", role, f"{what} {number} of real", timestamp=AT + number * 60
                )
        db.archive_and_compact(
            "real",
            [
                {"role": "user", "content": "[CONTEXT COMPACTION — REFERENCE ONLY] so far …"},
                {"role": "user", "content": "question 7 of real"},
                {"role": "assistant", "content": "answer 7 of real"},
            ],
        )
        db.append_message("real", "user", "question 8 of real", timestamp=AT + 1000)
        db.append_message("real", "assistant", "answer 8 of real", timestamp=AT + 1001)
    status, _, err = run("--yes", "--session", "real")
    assert (status, err) == (0, "")
    assert stored(server.url) == {"real": said("real", *range(9))}


def test_an_import_in_another_time_zone(history, run, server, home, monkeypatch):
    """A session's documents are named by its times, not by the zone that they are stored with."""
    history.session("one")
    history.talk("one", *range(5))
    monkeypatch.setenv("HERMES_TIMEZONE", "Asia/Kolkata")
    assert run("--yes")[0] == 0
    first = [one["id"] for one in documents(server.url)]
    assert "+05:30" in json.dumps(documents(server.url))
    (home / "hindsight" / "outbox" / "imported.jsonl").unlink()
    monkeypatch.setenv("HERMES_TIMEZONE", "Europe/Berlin")
    assert run("--yes", "--session", "one")[0] == 0
    assert [one["id"] for one in documents(server.url)] == first
