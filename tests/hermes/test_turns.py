"""From a turn to a document: what `sync_turn` keeps, and when it goes."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest

from hindsight_exec import HindsightClient
from hindsight_exec.errors import HindsightExecError
from hindsight_exec.hermes import HindsightMemoryProvider, stored
from hindsight_exec.hermes.scrub import is_synthetic, scrub

from .recording import LIMIT, configure

if TYPE_CHECKING:
    from pathlib import Path

TOLD = {
    "platform": "telegram",
    "user_id": "u1",
    "user_name": "Ada",
    "chat_id": "c1",
    "chat_name": "Home",
    "chat_type": "dm",
    "thread_id": "t1",
    "agent_identity": "coder",
    "agent_workspace": "hermes",
}


def waiting(home: Path) -> str:
    """What `hermes memory status` says of turns on disk."""
    return HindsightMemoryProvider().get_status_config({})["waiting"]


def test_the_shape_of_a_document(make, hindsight):
    """A document is a flat list of labelled messages, with lineage tags, metadata and context."""
    provider = make(
        "s1",
        {**TOLD, "parent_session_id": "s0"},
        retain_tags=["mine", "session:s1"],
        retain_source="hermes",
        retain_user_prefix="Mensch",
        retain_context="kontext",
        observation_scopes="per_tag",
    )
    provider.sync_turn("Grüße 🎉", "Hallo", session_id="s1", messages=[])
    provider.shutdown()
    (item,) = hindsight.items()
    user, assistant = json.loads(item["content"])
    assert (user["role"], user["content"]) == ("user", "Mensch: Grüße 🎉")
    assert (assistant["role"], assistant["content"]) == ("assistant", "Assistant: Hallo")
    assert user["timestamp"] == assistant["timestamp"]
    assert "🎉" in item["content"]
    assert item["document_id"].startswith("s1/")
    assert item["tags"] == ["mine", "session:s1", "parent:s0"]
    assert item["context"] == "kontext"
    assert item["observation_scopes"] == "per_tag"
    metadata = item["metadata"]
    told = {key: value for key, value in TOLD.items() if key != "agent_workspace"}
    assert told.items() <= metadata.items()
    assert (metadata["source"], metadata["session_id"]) == ("hermes", "s1")
    assert (metadata["message_count"], metadata["turn_index"]) == ("2", "1")
    assert metadata["retained_at"].endswith("Z")


def test_one_worker_for_all_turns(make, hindsight):
    """One thread delivers all turns of a provider, and of the next provider too."""
    first, second = make("a"), make("b")
    workers = set()
    for number in range(3):
        for provider in (first, second):
            provider.sync_turn(f"turn {number}", "ok")
            provider._writer.flush()
            workers.add(provider._writer.worker)
    (worker,) = workers
    assert isinstance(worker, threading.Thread)
    assert len(hindsight.said()) == 6


def test_a_flush_waits_for_all_turns(make, hindsight):
    """The writer's flush returns once the server has all turns given so far."""
    provider = make()
    assert provider._writer.counters().waiting == 0
    for number in range(5):
        provider.sync_turn(f"turn {number}", "ok")
    assert provider._writer.counters().waiting == 5
    provider._writer.flush()
    assert provider._writer.counters().waiting == 0
    assert hindsight.said() == [f"turn {number}" for number in range(5)]


def test_shutdown_delivers_then_closes_the_client(make, hindsight, monkeypatch):
    """`shutdown` returns when all that waited was delivered and the client is closed; again, it does nothing."""
    events = []
    close = HindsightClient.close

    async def noting(client):
        events.append(f"closed after {len(hindsight.items())}")
        await close(client)

    monkeypatch.setattr(HindsightClient, "close", noting)
    provider = make()
    for number in range(5):
        provider.sync_turn(f"turn {number}", "ok")
    provider.shutdown()
    assert hindsight.said() == [f"turn {number}" for number in range(5)]
    assert events == ["closed after 1"]
    requests = len(hindsight.requests("/memories"))
    provider.shutdown()
    provider.on_session_end([])
    provider.on_session_switch("other")
    assert len(hindsight.requests("/memories")) == requests
    assert events == ["closed after 1"]


def test_turns_after_shutdown_wait_on_disk(make, hindsight, home):
    """After `shutdown` a turn is kept on disk and sent by nobody; the next provider delivers it."""
    provider = make()
    provider.sync_turn("before", "ok")
    provider.shutdown()
    requests = hindsight.requests("/memories") + hindsight.requests("/recall")
    provider.sync_turn("after", "ok")
    provider.queue_prefetch("after")
    assert provider.prefetch("after") == ""
    assert waiting(home).startswith("1 turn,")
    assert hindsight.requests("/memories") + hindsight.requests("/recall") == requests
    make("next")
    hindsight.wait_for("/memories", 2)
    assert hindsight.said() == ["before", "after"]


def test_turns_of_a_provider_that_never_sent_before_shutdown(make, hindsight, home):
    """The first turn of a provider may come after its `shutdown`, and is kept all the same."""
    provider = make()
    provider.shutdown()
    provider.sync_turn("late", "ok")
    assert waiting(home).startswith("1 turn,")


def test_taken_up_again(make, hindsight, home):
    """A provider that is initialised again works again, with what is configured by then."""
    provider = make("first")
    provider.sync_turn("one", "ok")
    provider.shutdown()
    provider.initialize("second", hermes_home=str(home), agent_context="primary")
    provider.sync_turn("two", "ok")
    configure(home, api_url=hindsight.url, bank_id="other")
    provider.initialize("third", hermes_home=str(home), agent_context="primary")
    assert hindsight.said() == ["one", "two"]
    provider.sync_turn("three", "ok")
    provider.shutdown()
    assert hindsight.said("other") == ["three"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child(run, hindsight, home):
    """A forked child recalls and gives turns by itself, and both processes end in silence."""
    configure(home, api_url=hindsight.url)
    ended = run(
        """
        import os, sys, warnings
        from hindsight_exec.hermes import HindsightMemoryProvider
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads
        provider = HindsightMemoryProvider()
        provider.initialize("s", hermes_home=sys.argv[1], agent_context="primary")
        def talk(name):
            provider.sync_turn(name, "ok")
            assert "result" in provider.handle_tool_call("hindsight_recall", {"query": name})
        talk("before")
        child = os.fork()
        if not child:
            talk("child")
            sys.exit(7)
        _, status = os.waitpid(child, 0)
        assert os.WEXITSTATUS(status) == 7
        talk("parent")
        provider.shutdown()
        """,
        str(home),
    )
    assert (ended.status, ended.err) == (0, "")
    assert sorted(hindsight.said()) == ["before", "child", "parent"]


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise SystemError"])
def test_no_shutdown_at_all(run, hindsight, home, ending):
    """A process that never calls `shutdown` drains at its exit, in silence."""
    configure(home, api_url=hindsight.url)
    ended = run(
        f"""
        import sys
        from hindsight_exec.hermes import HindsightMemoryProvider
        provider = HindsightMemoryProvider()
        provider.initialize("s", hermes_home=sys.argv[1], agent_context="primary")
        provider.queue_prefetch("x")
        for number in range(5):
            provider.sync_turn(f"turn {{number}}", "ok")
        {ending}
        """,
        str(home),
    )
    assert hindsight.said() == [f"turn {number}" for number in range(5)]
    noise = ended.err.replace("SystemError", "").strip()
    assert not noise or ending.startswith("raise")
    assert "Unclosed" not in ended.err
    assert "cannot schedule" not in ended.err


@pytest.mark.parametrize("length", [1, 700, 5000])
def test_every_third_turn(make, hindsight, length):
    """With retain_every_n_turns = 3 a document has three turns, whatever their length and
    however long they are apart; the rest goes at the end."""
    provider = make(retain_every_n_turns=3, retain_idle_seconds=0)
    said = [f"turn {number} " + "x" * length for number in range(8)]
    for text in said:
        provider.sync_turn(text, "ok")
    hindsight.wait_for_turns(6)
    provider.shutdown()
    assert hindsight.said() == said
    assert [len(document.messages) for document in hindsight.documents()] == [6, 6, 4]


def test_a_provider_built_again_and_again(make, hindsight):
    """124 providers in a row for one session: each turn is stored once, and counted on."""
    providers = [make() for _ in range(124)]
    for number, provider in enumerate(providers):
        provider.sync_turn(f"turn {number}", "ok")
    providers[0].on_session_end([])
    for provider in providers:
        provider.shutdown()
    assert hindsight.said() == [f"turn {number}" for number in range(124)]
    indices = [int(document.metadata["turn_index"]) for document in hindsight.documents()]
    assert indices == sorted(indices)
    assert indices[-1] == 124


def test_a_switch_sends_what_is_held_once(make, hindsight):
    """A new session sends the held turns under the old identifiers, once, also when the end was told before."""
    provider = make("old", {"parent_session_id": "older"}, bank_id_template="b-{session}")
    provider.sync_turn("one", "ok", session_id="old")
    provider.sync_turn("two", "ok", session_id="old")
    provider.on_session_end([{"role": "user", "content": "one"}])
    provider.on_session_switch("new", parent_session_id="old", reset=True, reason="new_session")
    hindsight.wait_for("/memories")
    provider.sync_turn("three", "ok", session_id="new")
    provider.shutdown()
    (old,) = hindsight.documents("b-old")
    (new,) = hindsight.documents("b-new")
    assert [m["content"] for m in old.messages if m["role"] == "user"] == ["User: one", "User: two"]
    assert (old.tags, new.tags) == (["session:old", "parent:older"], ["session:new", "parent:old"])
    assert (old.metadata["session_id"], new.metadata["session_id"]) == ("old", "new")


def test_a_switch_to_the_same_session(make, hindsight):
    """Compression in place goes on with the document; an undone turn ends it."""
    provider = make("s", {"parent_session_id": "p"})
    provider.sync_turn("one", "ok")
    provider.on_session_switch("s", parent_session_id="s", reason="compression")
    provider.sync_turn("two", "ok")
    provider.on_session_switch("s", rewound=True)
    hindsight.wait_for("/memories")
    provider.sync_turn("three", "ok")
    provider.shutdown()
    documents = hindsight.documents()
    assert [len(document.messages) for document in documents] == [4, 2]
    assert all(document.tags == ["session:s", "parent:p"] for document in documents)


def test_a_turn_that_comes_late(make, hindsight):
    """A turn given after the switch, for the session before, is that session's."""
    provider = make("old", {"parent_session_id": "older"})
    provider.on_session_switch("new", parent_session_id="old")
    provider.sync_turn("late", "ok", session_id="old")
    provider.sync_turn("now", "ok")
    provider.shutdown()
    assert [(document.tags, document.id[:4]) for document in hindsight.documents()] == [
        (["session:new", "parent:old"], "new/"),
        (["session:old", "parent:older"], "old/"),
    ]


def test_an_unnamed_session(make, hindsight):
    """A session without an id has its turns stored as well."""
    provider = make("")
    provider.on_session_switch("")
    provider.sync_turn("hello", "ok", session_id="")
    provider.shutdown()
    assert hindsight.said() == ["hello"]


@pytest.mark.parametrize("context", ["subagent", "cron", "flush"])
def test_only_the_primary_agent_writes(make, hindsight, home, context):
    """Other agents write nothing, neither turns nor notes nor missions."""
    provider = make(told={"agent_context": context}, bank_mission="m")
    provider.sync_turn("secret plan", "ok")
    answer = json.loads(provider.handle_tool_call("hindsight_retain", {"content": "x"}))
    assert "read-only" in answer["error"]
    assert "hindsight_retain" not in json.dumps(provider.get_tool_schemas())
    assert "hindsight_retain" not in provider.system_prompt_block()
    provider.queue_prefetch("may read")
    hindsight.wait_for("/recall")
    provider.shutdown()
    assert {one.path.rpartition("/")[2] for one in hindsight.seen} <= {"health", "recall"}
    assert waiting(home) == "0 turns"


def test_retaining_switched_off(make, hindsight):
    """With auto_retain off no turn is kept, but a note is."""
    provider = make(auto_retain=False)
    provider.sync_turn("not this", "ok")
    provider.handle_tool_call("hindsight_retain", {"content": "but this"})
    provider.shutdown()
    assert [item["content"] for item in hindsight.items()] == ["but this"]


def contents(item):
    return [message["content"] for message in json.loads(item["content"])]


def test_what_is_no_conversation(make, hindsight):
    """Injected memories are scrubbed, and turns in which nobody said anything are not retained."""
    provider = make()
    block = "<memory-context>\n[System note: …]\n\n- old memory\n</memory-context>"
    provider.sync_turn(f"real question\n\n{block}", f"{block}\nreal answer")
    provider.sync_turn("", "answer to nothing")
    provider.sync_turn("  ", "")
    provider.sync_turn(block, "answer to a memory")
    provider.shutdown()
    (item,) = hindsight.items()
    assert contents(item) == ["User: real question", "Assistant: real answer"]


@pytest.mark.parametrize(
    "text",
    [
        "[IMPORTANT: Background process 7 completed normally (exit code 0).\nOutput:\n…]",
        "[IMPORTANT: 3 background processes completed for this session.\n…]",
        "[IMPORTANT: 2 background subagent delegations completed for this session. …]",
        "[ASYNC DELEGATION COMPLETE — d1]\nresult",
        "[Continuing toward your standing goal]\nGoal: x",
        "[Goal set] Continue with the goal you were just given",
        "[Heartbeat — recurring instruction, fires every 5m]\nlook",
        "[System: the previous turn ended UNFINISHED — the API call failed]",
    ],
)
def test_findings(make, hindsight, text):
    """A turn that the runtime began keeps its answer; the user's side is marked as the runtime's."""
    provider = make()
    provider.sync_turn(text, "The build is green.")
    provider.sync_turn("thanks", "ok")
    provider.shutdown()
    (item,) = hindsight.items()
    first = text.partition("\n")[0]
    assert contents(item) == [
        f"Runtime (not the user): {first}",
        "Assistant: The build is green.",
        "User: thanks",
        "Assistant: ok",
    ]


@pytest.mark.parametrize(
    "mark, synthetic",
    [
        ({"_verification_stop_synthetic": True}, True),
        ({"display_kind": "internal_notification"}, True),
        ({"display_kind": "async_delegation_complete"}, True),
        ({"display_kind": "steer"}, False),
        ({"display_kind": None}, False),
        ({}, False),
    ],
)
def test_marks_of_the_host(mark, synthetic):
    """Hermes marks the messages that nobody typed; a steering message is a person's."""
    messages = [
        {"role": "user", "content": "Please check that.", **mark},
        {"role": "assistant", "content": "ok"},
    ]
    assert is_synthetic("Please check that.", messages) == synthetic
    assert not is_synthetic("another question", messages)


class Snapshot:
    """As a later Hermes may pass `messages`."""

    def __init__(self, found):
        self.found = found

    def messages(self):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.mark.parametrize(
    "messages",
    [
        Snapshot([{"role": "user", "content": "hello"}]),
        Snapshot(RuntimeError("gone")),
        Snapshot(None),
        [None, "text", 5, {"role": "user", "content": [{"type": "text", "text": "hello"}, None]}],
        [{"role": "user", "content": {"a": 1}}, {"role": 7}],
        {"role": "user", "content": None},
        "hello",
        7,
    ],
)
def test_messages_of_any_shape(make, hindsight, messages):
    """Whatever the host passes as messages, the turn is kept."""
    provider = make()
    provider.sync_turn("hello", "ok", session_id="s", messages=messages)
    provider.shutdown()
    assert [contents(item) for item in hindsight.items()] == [["User: hello", "Assistant: ok"]]


def test_contents_of_any_shape(make, hindsight):
    """Texts that are lists of parts, or something else, are kept as text."""
    provider = make()
    provider.sync_turn([{"type": "text", "text": "look"}, {"type": "image_url"}], "ok")
    provider.sync_turn("and?", None)
    provider.sync_turn({"odd": 1}, ["fine"])
    provider.shutdown()
    (item,) = hindsight.items()
    assert contents(item) == [
        "User: look\n[image]",
        "Assistant: ok",
        "User: and?",
        "User: {'odd': 1}",
        "Assistant: fine",
    ]


def test_a_marked_snapshot(make, hindsight):
    """The mark of a message counts in a snapshot, too."""
    provider = make()
    said = [{"role": "user", "content": "result of the job", "display_kind": "process_complete"}]
    provider.sync_turn("result of the job", "found it", messages=Snapshot(said))
    provider.shutdown()
    assert contents(hindsight.items()[0])[0] == "Runtime (not the user): result of the job"


def test_authors_of_a_shared_chat(make, hindsight):
    """In a shared chat bank, tags and metadata are those of who wrote the turn."""
    provider = make("s", TOLD, bank_id_template="of-{user}")
    provider.sync_turn("by the opener", "ok", session_id="s")
    provider.sync_turn("by Bob", "ok", session_id="s", turn_author={"id": "u2", "name": "Bob"})
    bot = {"id": "b1", "name": None, "is_bot": True}
    provider.sync_turn("by a bot", "ok", session_id="s", turn_author=bot)
    provider.sync_turn("nobody named", "ok", turn_author={"id": None, "name": None})
    provider.shutdown()
    (bob,), (robot,) = hindsight.documents("of-u2"), hindsight.documents("of-b1")
    assert bob.tags == ["session:s", "user:u2"]
    assert (bob.metadata["user_id"], bob.metadata["user_name"]) == ("u2", "Bob")
    assert (robot.metadata["user_id"], robot.metadata["author_is_bot"]) == ("b1", "true")
    assert "user_name" not in robot.metadata
    assert hindsight.said("of-u1") == ["by the opener", "nobody named"]


def test_a_note_of_who_writes(make, hindsight):
    """What the model retains on purpose is the note of who wrote the turn."""
    provider = make("s", TOLD, bank_id_template="of-{user}")
    provider.on_turn_start(1, "keep it", author_id="u2", author_name="Bob", author_is_bot=False)
    provider.handle_tool_call("hindsight_retain", {"content": "Bob's note"})
    provider.on_turn_start(2, "mine", author_id=None, author_name=None, author_is_bot=False)
    provider.handle_tool_call("hindsight_retain", {"content": "Ada's note"})
    provider.shutdown()
    assert [document.messages for document in hindsight.documents("of-u2")] == ["Bob's note"]
    assert [document.messages for document in hindsight.documents("of-u1")] == ["Ada's note"]


def test_a_checkpoint(make, hindsight):
    """A checkpoint keeps what no turn has brought; a turn that comes later is not kept twice."""
    provider = make()
    provider.sync_turn("one", "ok 1")
    evidence = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "ok 1"},
        {"role": "user", "content": "interrupted"},
        {"role": "user", "content": [{"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "let me look"},
        {"role": "tool", "content": "…"},
    ]
    assert provider.on_pre_compress(evidence, require_checkpoint=True) == ""
    assert provider.on_pre_compress(evidence, require_checkpoint=True) == ""
    provider.sync_turn("two", "ok 2")
    provider.sync_turn("two", "ok 3")
    provider.shutdown()
    (item,) = hindsight.items()
    assert contents(item) == [
        "User: one",
        "Assistant: ok 1",
        "User: interrupted",
        "User: two",
        "Assistant: let me look",
        "Assistant: ok 2",
        "User: two",
        "Assistant: ok 3",
    ]


RESUMED = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "the password is hunter2x"},
    {"role": "user", "content": "interrupted"},
]


def resumed(make, **values):
    """A provider in a session that another one had before, and a required checkpoint there."""
    provider = make("s", **values)
    assert provider.on_pre_compress(RESUMED, require_checkpoint=True) == ""
    assert provider.on_pre_compress(RESUMED, require_checkpoint=True) == ""
    return provider


@pytest.mark.parametrize("state", ["held", "stored", "nested"])
def test_a_checkpoint_in_a_resumed_session(make, hindsight, state):
    """What an earlier process was given is not kept again, whether it waits or is stored."""
    first = make("s")
    first.sync_turn("one", "the password is hunter2x")
    if state != "held":
        first.shutdown()
    if state == "nested":  # as the bundled provider writes documents
        (document,) = hindsight.documents()
        text = json.dumps([document.messages])
        hindsight.answer(f"/documents/{document.id}", 200, {"id": "x", "original_text": text})
        hindsight.answer("/documents", 200, {"items": [{"id": document.id}], "total": 1})
    second = resumed(make)
    second.sync_turn("interrupted", "ok")
    second.sync_turn("one", "again")  # what is said again is a new turn
    for provider in (first, second):
        provider.shutdown()
    sent = [content for item in hindsight.items() for content in contents(item)]
    assert sorted(sent) == sorted(
        [
            "User: one",
            "Assistant: the password is [redacted]",
            "User: interrupted",
            "Assistant: ok",
            "User: one",
            "Assistant: again",
        ]
    )


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_checkpoint_when_the_server_cannot_be_asked(make, hindsight, status):
    """What the server may have and cannot be asked for is kept again: nothing is lost."""
    first = make("s", retain_async=False)
    first.sync_turn("one", "the password is hunter2x")
    first.shutdown()
    hindsight.answer("/documents", status, {"detail": "no"})
    second = resumed(make)
    second.shutdown()
    sent = [content for item in hindsight.items() for content in contents(item)]
    assert sent.count("User: one") == 2
    assert sent.count("User: interrupted") == 1


def test_a_checkpoint_of_an_agent_that_knows_no_user(make, hindsight, home):
    """A gateway compresses with an agent of its own: whose chat it is, the session's row says."""
    with contextlib.closing(sqlite3.connect(home / "state.db")) as db:
        db.execute("CREATE TABLE sessions (id, source, user_id, chat_id, chat_type, thread_id)")
        db.execute("INSERT INTO sessions VALUES ('s', 'telegram', 'anna', '77', 'dm', NULL)")
        db.commit()
    provider = make(told={"platform": "telegram"}, bank_id="team", bank_id_template="{user}")
    evidence = [{"role": "user", "content": "private"}]
    assert provider.on_pre_compress(evidence, require_checkpoint=True) == ""
    provider._writer.flush()
    assert hindsight.said("anna") == ["private"]
    assert hindsight.said("team") == []


def test_a_checkpoint_of_what_the_user_wants_not_kept(make, hindsight):
    """retain_skip_patterns count at a checkpoint, too: neither question nor answer is kept."""
    provider = make(retain_skip_patterns=["^off the record"])
    evidence = [
        {"role": "user", "content": "off the record: my salary"},
        {"role": "assistant", "content": "Noted, your salary."},
        {"role": "user", "content": "and now?"},
    ]
    assert provider.on_pre_compress(evidence, require_checkpoint=True) == ""
    provider._writer.flush()
    assert hindsight.said() == ["and now?"]


def test_a_checkpoint_when_the_server_hangs(make, hindsight, monkeypatch):
    """A checkpoint waits a bounded time for the server."""
    monkeypatch.setattr(stored, "_WAIT", 0.2)
    with hindsight.holding("/documents"):
        second = resumed(make)
        assert hindsight.wait_for("/documents")
    second.shutdown()
    sent = [content for item in hindsight.items() for content in contents(item)]
    assert sent.count("User: interrupted") == 1


@pytest.mark.parametrize(
    "told, values",
    [
        ({}, {"durability": "memory"}),
        ({}, {"auto_retain": False}),
        ({"agent_context": "cron"}, {}),
        ({}, {"api_url": "nonsense"}),
    ],
)
def test_a_checkpoint_that_cannot_be_confirmed(make, told, values):
    """What is not on disk is not confirmed: Hermes keeps its context."""
    provider = make(told=told, **values)
    evidence = [{"role": "user", "content": "one"}]
    with pytest.raises(HindsightExecError):
        provider.on_pre_compress(evidence, require_checkpoint=True)
    assert provider.on_pre_compress(evidence) == ""


def test_a_checkpoint_without_a_disk(make, home, hindsight):
    """Turns that only memory could take are not confirmed, though they are delivered."""
    (home / "hindsight").mkdir()
    (home / "hindsight" / "outbox").write_text("in the way", encoding="utf-8")
    hindsight.answer("/documents", 500, {"detail": "no"})
    provider = make()
    provider.sync_turn("one", "ok")
    with pytest.raises(HindsightExecError, match="memory only"):
        provider.on_pre_compress([{"role": "user", "content": "one"}], require_checkpoint=True)
    provider.shutdown()
    sent = [content for item in hindsight.items() for content in contents(item)]
    assert "User: one" in sent


def test_the_identity_signature(home, hindsight):
    """A gateway rebuilds its agent when a setting changes; it asks a provider that serves nobody."""
    configure(home, api_url=hindsight.url, bank_id="a")
    provider = HindsightMemoryProvider()
    first = provider.identity_signature()
    assert first == HindsightMemoryProvider().identity_signature()
    assert json.loads(json.dumps(first)) == first
    configure(home, api_url=hindsight.url, bank_id_template="{user}")
    second = provider.identity_signature()
    assert second != first
    configure(home, api_url=hindsight.url, bank_id_template="{user}", auto_retain=False)
    assert provider.identity_signature() != second


def test_a_memory_write_of_later_hosts(make):
    """Hooks take what later hosts pass."""
    provider = make()
    provider.on_memory_write("replace", "user", "new", {"x": 1}, previous_content="old")
    provider.on_memory_write("replace", "user", "new", metadata={"previous_content": "old"})


def test_without_aiohttp(run, home, hindsight):
    """Without aiohttp turns are kept, and the host, the log and the status name the package."""
    configure(home, api_url=hindsight.url)
    ended = run(
        """
        import logging, sys
        sys.modules["aiohttp"] = None
        from hindsight_exec.hermes import HindsightMemoryProvider
        warned = []
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
        provider = HindsightMemoryProvider()
        provider.initialize("s", hermes_home=sys.argv[1], warning_callback=warned.append)
        assert provider.is_available()
        provider.sync_turn("one", "ok")
        print(provider.prefetch("one"))
        say(warned)
        say(provider.get_status_config())
        """,
        str(home),
    )
    assert ended.status == 0
    assert ended.out.count("pip install aiohttp") >= 3
    assert "'waiting': '1 turn" in ended.out


@pytest.mark.parametrize(
    "text, rest",
    [
        ("plain", "plain"),
        ("a <Memory-Context >x</ memory-context> b", "a  b"),
        ("question\n<memory-context>\ncut off …", "question"),
        ("how do I close <memory-context>?", "how do I close ?"),
        ("[System note: Your previous turn was cut.]\n\nreal", "real"),
        ("[System note: A new message has arrived. Go.] [System note: Your previous turn …]x", "x"),
        ("[System note: mine] stays", "[System note: mine] stays"),
    ],
)
def test_scrub(text, rest):
    """What Hermes puts around a message goes, what the user wrote stays."""
    assert scrub(text) == rest
    assert not is_synthetic(scrub(text))


def test_the_server_is_down(make, hindsight, home):
    """With the server down turns wait; the user hears of it once, and once when all have arrived."""
    told = []
    heard = threading.Condition()

    def status(text):
        with heard:
            told.append(text)
            heard.notify_all()

    provider = make(told={"status_callback": status}, retain_idle_seconds=0)
    hindsight.stop()
    for number in range(3):
        provider.sync_turn(f"turn {number}", "ok")
    with heard:
        assert heard.wait_for(lambda: len(told) >= 1, LIMIT)
    assert waiting(home).startswith("3 turns, the oldest for ")
    hindsight.start()
    provider._writer.flush()
    with heard:
        assert heard.wait_for(lambda: len(told) >= 2, LIMIT)
    assert hindsight.said() == [f"turn {number}" for number in range(3)]
    assert len(told) == 2


def test_shutdown_with_the_server_down(make, hindsight, home):
    """With the server down `shutdown` leaves the turns on disk, and the next start delivers them."""
    provider = make()
    hindsight.stop()
    provider.sync_turn("kept", "ok")
    provider.shutdown()
    assert waiting(home).startswith("1 turn,")
    hindsight.start()
    make("next")
    hindsight.wait_for("/memories")
    assert hindsight.said() == ["kept"]


def test_a_callback_that_fails(make, hindsight):
    """What the host's callback raises stops nothing."""

    def status(text):
        raise RuntimeError("the screen is gone")

    provider = make(told={"status_callback": status}, retain_idle_seconds=0)
    hindsight.stop()
    provider.sync_turn("one", "ok")
    hindsight.start()
    provider._writer.flush()
    assert hindsight.said() == ["one"]


def test_keys_of_profiles(hindsight, home, tmp_path, make):
    """Each profile's turns go with its own key, though one process serves both."""
    profiles = {}
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / ".env").write_text(f"HINDSIGHT_API_KEY=key-{name}\n", encoding="utf-8")
        profiles[name] = make(name, where=folder, bank_id=name)
    for name, provider in profiles.items():
        provider.sync_turn(f"said in {name}", "ok")
        provider.shutdown()
    keys = {one.path.split("/")[-2]: one.key for one in hindsight.requests("/memories")}
    assert keys == {"a": "Bearer key-a", "b": "Bearer key-b"}


def test_missions_are_applied(make, hindsight):
    """Configured missions are set in the background where the bank has others, and only then."""
    first = make(bank_mission="reflect so", bank_retain_mission="retain so")
    hindsight.wait_for("/config", 1, "PATCH")
    assert json.loads(first.handle_tool_call("hindsight_recall", {"query": "x"}))
    assert hindsight.requests("/config", "PATCH")[0].body == {
        "updates": {"reflect_mission": "reflect so", "retain_mission": "retain so"}
    }
    config = hindsight.get("/v1/default/banks/hermes/config")["config"]
    assert (config["reflect_mission"], config["retain_mission"]) == ("reflect so", "retain so")
    second = make("t", bank_mission="reflect so")
    hindsight.wait_for("/config", 2, "GET")
    second.queue_prefetch("x")
    hindsight.wait_for("/recall")
    second.shutdown()
    assert len(hindsight.requests("/config", "PATCH")) == 1


def test_missions_where_bank_settings_are_off(make, hindsight):
    """A server without bank settings gets the missions through the bank's profile."""
    hindsight.answer("/config", 404, {"detail": "Not found"})
    hindsight.answer("/banks/hermes", 200, {})
    make(bank_mission="so")
    (request,) = hindsight.wait_for("/banks/hermes", 1, "PUT")
    assert request.body == {"reflect_mission": "so"}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_forked_anywhere_in_the_provider(run, hindsight, home):
    """Wherever another thread is inside the provider at a fork, the child can use it."""
    configure(home, api_url=hindsight.url)
    ended = run(
        """
        import os, queue, signal, sys, threading, warnings
        from pathlib import Path
        import hindsight_exec.hermes.provider as module
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads
        provider = module.HindsightMemoryProvider()
        provider.initialize("s", hermes_home=sys.argv[1], agent_context="primary")
        mine = [str(Path(module.__file__).with_name(name + ".py"))
                for name in ("provider", "recall", "sessions")]
        stopped, go_on = queue.Queue(), queue.Queue()

        def trace(frame, event, arg):
            if frame.f_code.co_filename not in mine:
                return None
            if event == "line":
                stopped.put((Path(frame.f_code.co_filename).name, frame.f_lineno))
                go_on.get()
            return trace

        def use():
            sys.settrace(trace)
            provider.queue_prefetch("first")
            provider.on_session_switch("t")
            provider.prefetch("second")
            provider.shutdown()
            sys.settrace(None)
            stopped.put(None)

        threading.Thread(target=use, daemon=True).start()
        while True:
            line = stopped.get(timeout=30)
            if line is None:
                break
            child = os.fork()
            if not child:
                signal.alarm(20)
                provider.on_session_switch("child")
                provider.queue_prefetch("of the child")
                provider.shutdown()
                os._exit(0)
            _, status = os.waitpid(child, 0)
            assert not status, (line, status)
            go_on.put(None)
        """,
        str(home),
    )
    assert (ended.status, ended.err) == (0, "")


def test_the_clock_of_hermes(make, hindsight, monkeypatch):
    """A turn's time, and its document's, are in the zone that Hermes is set to."""
    monkeypatch.setenv("HERMES_TIMEZONE", "Asia/Kolkata")
    provider = make(retain_idle_seconds=0)
    provider.sync_turn("what is on tonight?", "a concert")
    provider.shutdown()
    (item,) = [
        item
        for one in hindsight.seen
        if one.path.endswith("/memories")
        for item in one.body["items"]
    ]
    stamps = [item["timestamp"], *(one["timestamp"] for one in json.loads(item["content"]))]
    assert [stamp[-6:] for stamp in stamps] == ["+05:30"] * 3
