"""Read your own writes: what the server has not processed yet is recalled all the same."""

from __future__ import annotations

import threading

import pytest

from hindsight_exec.conversation.turns import Destination
from hindsight_exec.delivery.unprocessed import search_unprocessed
from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.outbox.search import Query, terms
from hindsight_exec.settings.config import Settings

from .recording import LIMIT, configure
from .test_recall import found
from .test_tools import call

FACT = "My dog is called Rex."


def asked(provider, message="What is my dog called?"):
    """What the model sees of memory in a session's first turn."""
    provider.on_turn_start(1, message)
    return provider.prefetch(message)


def test_a_held_turn(make, hindsight):
    """What was said in one session is in the next session's first prompt, though it is held."""
    first = make("a")
    first.sync_turn(FACT, "Good boy!")
    shown = asked(make("b"))
    assert '- "User: My dog is called Rex. Assistant: Good boy!" (said at ' in shown
    assert "not yet processed)" in shown
    assert hindsight.items() == []


@pytest.mark.parametrize("state", ["queued", "accepted"])
def test_a_turn_on_its_way(make, hindsight, state):
    """Turns are found while they are being sent, and while the server processes them."""
    first = make("a", retain_idle_seconds=0)
    if state == "accepted":
        hindsight.answer_operations("pending")
        first.sync_turn(FACT, "ok")
        first._writer.flush()
        assert asked(make("b")).count("Rex") == 1
        return
    with hindsight.holding("/memories"):
        first.sync_turn(FACT, "ok")
        hindsight.wait_for("/memories")
        assert asked(make("b")).count("Rex") == 1


def test_once_the_server_knows_it(make, hindsight):
    """What the server has processed is its own to recall."""
    first = make("a", retain_async=False)
    first.sync_turn(FACT, "ok")
    first.shutdown()
    assert "not yet processed" not in asked(make("b"))


def test_nothing_twice(make, hindsight):
    """A turn that the server has processed already, but not said so, is shown once."""
    first = make("a", retain_idle_seconds=0)
    hindsight.answer_operations("pending")
    first.sync_turn(FACT, "ok")
    first._writer.flush()
    (item,) = hindsight.items()
    memory = {"id": "1", "text": "The dog is Rex.", "document_id": item["document_id"]}
    hindsight.answer("/recall", 200, {"results": [memory]})
    shown = asked(make("b"))
    assert shown.count("Rex") == 1
    assert "not yet processed" not in shown


def test_the_server_is_down(make, hindsight):
    """With the server down recall answers from disk, and says so."""
    make("a").sync_turn(FACT, "ok")
    second = make("b")
    hindsight.stop()
    shown = asked(second)
    assert "Rex" in shown
    assert "cannot be searched" in shown
    answer = call(second, "hindsight_recall", query="dog")["result"]
    assert "cannot be searched" in answer
    assert "1. User: My dog is called Rex." in answer
    hindsight.start()


@pytest.mark.slow
def test_the_server_is_slow(make, hindsight):
    """With a server that does not answer in time what is on disk is shown."""
    make("a").sync_turn(FACT, "ok")
    second = make("b", recall_wait_seconds=0.5)
    with hindsight.holding("/recall"):
        second.on_turn_start(1, "What is my dog called?")
        hindsight.wait_for("/recall")
        shown = second.prefetch("What is my dog called?")
        assert "Rex" in shown
        assert "cannot be searched" not in shown
        assert second.prefetch("again") == ""


def test_the_tool(make, hindsight):
    """The recall tool finds it, and marks it."""
    make("a").sync_turn(FACT, "ok")
    hindsight.answer("/recall", *found("An older memory."))
    result = call(make("b"), "hindsight_recall", query="my dog")["result"]
    first, second = result.splitlines()
    assert first.startswith("1. User: My dog is called Rex. Assistant: ok (said at ")
    assert second == "2. An older memory."


def test_a_note(make, hindsight):
    """What the model retains on purpose is found until it is processed."""
    first = make("a")
    with hindsight.holding("/memories"):
        call(first, "hindsight_retain", content=FACT)
        assert f'- "{FACT}" (said at' in asked(make("b"))


@pytest.mark.parametrize(
    "told, values, sees",
    [
        ({"user_id": "me"}, {"bank_id_template": "of-{user}"}, True),
        ({"user_id": "you"}, {"bank_id_template": "of-{user}"}, False),
        ({"user_id": "me"}, {"bank_id_template": "of-{user}", "recall_unprocessed": False}, False),
        ({"user_id": "me"}, {"bank_id_template": "of-{user}", "recall_tags": ["mine"]}, True),
        ({"user_id": "me"}, {"bank_id_template": "of-{user}", "recall_tags": ["other"]}, False),
        (
            {"user_id": "me"},
            {
                "bank_id_template": "of-{user}",
                "recall_tags": ["mine", "other"],
                "recall_tags_match": "all",
            },
            False,
        ),
    ],
)
def test_what_a_session_may_see(make, hindsight, told, values, sees):
    """Only turns of the same bank, and with the tags that recall asks for."""
    mine = make("a", {"user_id": "me"}, bank_id_template="of-{user}", retain_tags=["mine"])
    mine.sync_turn(FACT, "ok")
    assert ("Rex" in asked(make("b", told, retain_tags=["mine"], **values))) == sees


def test_the_running_session_is_not_searched(make, hindsight):
    """What was said in this very session is in its context already."""
    provider = make("a")
    provider.sync_turn(FACT, "ok")
    assert "Rex" not in asked(provider)


def test_another_server(make, hindsight, home, tmp_path):
    """A turn that goes to another server is not shown."""
    make("a").sync_turn(FACT, "ok")
    assert "Rex" not in asked(make("b", api_url="http://127.0.0.1:9"))


def test_turns_of_another_process(make, hindsight, home, start, run):
    """Turns that a live process holds are found through its file, which stays its own."""
    configure(home, api_url=hindsight.url)
    child = start(
        """
        import sys
        from hindsight_exec.hermes import HindsightMemoryProvider
        provider = HindsightMemoryProvider()
        provider.initialize("a", hermes_home=sys.argv[1])
        provider.sync_turn("My dog is called Rex.", "ok")
        say("given")
        sys.stdin.read()
        import time; time.sleep(60)
        """,
        str(home),
    )
    child.wait_for("given")
    assert "Rex" in asked(make("b"))
    assert hindsight.items() == []
    child.process.kill()
    child.end()
    ended = run(
        """
        import sys
        from hindsight_exec.hermes import HindsightMemoryProvider
        provider = HindsightMemoryProvider()
        provider.initialize("c", hermes_home=sys.argv[1])
        assert provider._writer.deliver_all(30)
        """,
        str(home),
    )
    assert ended.status == 0
    assert hindsight.said() == [FACT]


def test_a_file_that_cannot_be_read(make, hindsight, home):
    """A damaged file hides nothing that is in others."""
    make("a").sync_turn(FACT, "ok")
    folder = home / "hindsight" / "outbox"
    (folder / "0.db").write_bytes(b"no database" * 1000)
    assert "Rex" in asked(make("b"))


def fill(folder, settings, count):
    """Many turns that wait, and one that fits, the oldest."""
    writer = RetainWriter(settings, state=folder)
    for number in range(count):
        text = FACT if number == 0 else f"Turn {number} is about something else. " + "x" * 1000
        writer.put([{"role": "user", "content": text}], session=f"s{number % 50}")
    return writer


def test_a_search_is_bounded(tmp_path, hindsight):
    """A search stops at its deadline, and no put waits for it meanwhile."""
    settings = Settings(api_url=hindsight.url, durability="normal", retain_idle_seconds=1000)
    hindsight.stop()
    writer = fill(tmp_path / "state", settings, 3000)
    query = Query(
        Destination(settings.api_url, settings.credential, "hermes"),
        "other",
        terms({"rex", "dog"}),
        lambda source: True,
    )
    # Where a document holds it by now, the message after it is shown as its answer.
    (found,) = search_unprocessed(writer.folder, query, 60)
    assert found.text.startswith(FACT)
    assert search_unprocessed(writer.folder, query, 0) == []
    done = threading.Event()

    def searching():
        while not done.is_set():
            search_unprocessed(writer.folder, query, 1)

    thread = threading.Thread(target=searching)
    thread.start()
    writer.put([{"role": "user", "content": "new"}], session="s")
    done.set()
    thread.join()
    hindsight.start()
    writer.close(0)


GIVE = """
import sys
from hindsight_exec.hermes import HindsightMemoryProvider
provider = HindsightMemoryProvider()
provider.initialize("a", hermes_home=sys.argv[1], agent_context="primary")
provider.sync_turn("My dog is called Rex.", "ok")
"""


@pytest.mark.parametrize("context", ["cron", "subagent"])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_where_memory_is_read_only(make, hindsight, home, run, context, elsewhere):
    """Scheduled jobs and delegates find it, in the process that gave it and in another."""
    hindsight.stop()
    if elsewhere:
        configure(home, api_url=hindsight.url, drain_timeout=0)
        assert run(GIVE, str(home)).status == 0
    else:
        make("a", drain_timeout=0).sync_turn(FACT, "ok")
    files = sorted((home / "hindsight" / "outbox").iterdir())
    reader = make("b", {"agent_context": context}, drain_timeout=0)
    for _ in range(2):
        assert asked(reader).count("Rex") == 1
        assert "Rex" in call(reader, "hindsight_recall", query="dog")["result"]
    reader.shutdown()
    if elsewhere:  # nothing was opened for writing, made or adopted
        left = sorted((home / "hindsight" / "outbox").iterdir())
        assert [path.suffix for path in left if path.suffix == ".db"] == [".db"]
        assert {path.name for path in files} <= {path.name for path in left}
    hindsight.start()
    writer = make("c")
    writer.sync_turn("later", "ok")
    assert writer._writer.deliver_all(LIMIT)
    assert hindsight.said() == ["My dog is called Rex.", "later"]


@pytest.mark.parametrize(
    "said, message, found_it",
    [
        ("The front door is painted blue.", "which colour has my front door?", True),
        ("I painted the doors.", "Who did the painting of the door?", True),
        ("My favourite colour is blue.", "What should I cook tonight?", False),
        ("我的狗叫雷克斯。", "我的狗叫什么名字？", True),
        ("x " * 3000 + "The safe is behind the mirror." + " y" * 3000, "where is the safe", True),
        ("the role of the content", "what is the role of the user's content?", False),
    ],
)
def test_what_fits(make, hindsight, said, message, found_it):
    """Words count by their stems; a long message is shown around what was found."""
    make("a", retain_document_chars=100_000).sync_turn(said, "ok")
    shown = asked(make("b"), message)
    assert ("not yet processed" in shown) == found_it
    assert len(shown) < 1500


def test_what_there_is_no_observation_of(make, hindsight):
    """Facts of what was processed lately are recalled, though only observations are asked for."""
    first = make("a", retain_async=False)
    first.sync_turn(FACT, "ok")
    first.on_session_end([])
    assert first._writer.flush(LIMIT, completed=True)
    (item,) = hindsight.items()
    memories = [
        {"id": "1", "text": "The dog is Rex.", "type": "world", "document_id": item["document_id"]},
        {"id": "2", "text": "An old fact.", "type": "world", "document_id": "old/1"},
        {"id": "3", "text": "An observation.", "type": "observation"},
    ]
    hindsight.answer("/recall", 200, {"results": memories})
    second = make("b")
    second.on_turn_start(1, "What is my dog called?")
    fresh, usual = hindsight.wait_for("/recall", 2)
    assert fresh.body["prefer_observations"] is True
    assert "types" not in fresh.body
    assert usual.body["types"] == ["observation"]
    shown = second.prefetch("What is my dog called?")
    assert '- "The dog is Rex." (new)' in shown
    assert "old fact (new)" not in shown


def test_nothing_more_is_asked_where_facts_are_recalled_anyway(make, hindsight):
    """A second question is asked only where it may bring something."""
    first = make("a", retain_async=False)
    first.sync_turn(FACT, "ok")
    first.on_session_end([])
    assert first._writer.flush(LIMIT, completed=True)
    asked(make("b", recall_types=["world", "observation"]))
    assert len(hindsight.requests("/recall")) == 1
    asked(first)  # its own session's documents are in its context
    assert len(hindsight.requests("/recall")) == 2
