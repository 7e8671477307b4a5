"""The contract with the real host's memory manager, called as each Hermes calls it."""

from __future__ import annotations

import inspect
import json

import pytest

from hindsight_exec.errors import HindsightExecError
from hindsight_exec.hermes import HindsightMemoryProvider
from hindsight_exec.hermes.scrub import is_synthetic

from .hosts import HERMES, marks
from .recording import LIMIT, configure
from .test_recall import found
from .test_turns import contents

pytestmark = marks

LATER = pytest.mark.skipif(
    HERMES is None or HERMES.generation < (0, 22), reason="Hermes 0.22 and later do this"
)


@pytest.fixture
def manager(home, hindsight):
    """The host's manager with our provider in a session."""
    from agent.memory_manager import MemoryManager

    made = []

    def manager(session="s", values=None, **told):
        configure(home, api_url=hindsight.url, **(values or {}))
        manager = MemoryManager()
        manager.add_provider(HindsightMemoryProvider())
        manager.initialize_all(
            session,
            platform="telegram",
            hermes_home=str(home),
            **{"agent_context": "primary", **told},
        )
        made.append(manager)
        return manager

    yield manager
    for one in made:
        one.shutdown_all()


def test_a_turn(manager, hindsight):
    """A turn goes from the manager to the server, once, and the next one has its memories."""
    one = manager()
    hindsight.answer("/recall", *found("the door is blue"))
    one.on_turn_start(1, "what about the door?")
    assert "the door is blue" in one.prefetch_all("what about the door?", session_id="s")
    messages = [{"role": "user", "content": "what about the door?"}]
    one.sync_all("what about the door?", "It is blue.", session_id="s", messages=messages)
    one.queue_prefetch_all("what about the door?", session_id="s")
    assert one.flush_pending(LIMIT)
    hindsight.wait_for("/recall", 2)
    one.on_session_end(messages)
    one.shutdown_all()
    assert hindsight.said() == ["what about the door?"]


def test_read_only_contexts(manager):
    """Where memory is read-only the manager offers no tool that writes."""
    names = {schema["name"] for schema in manager(agent_context="cron").get_all_tool_schemas()}
    assert names == {"hindsight_recall", "hindsight_reflect"}
    assert "hindsight_retain" in json.dumps(manager("t").get_all_tool_schemas())


def test_a_memory_write(manager):
    """What Hermes notes for itself is taken note of in silence, by whatever signature."""
    one = manager()
    one.on_memory_write("replace", "user", "new", metadata={"previous_content": "old"})
    one.on_delegation("task", "result", child_session_id="c")
    one.on_session_switch("t", parent_session_id="s", reset=True, reason="new_session")


def test_what_nobody_typed():
    """The host's own texts for what nobody typed are known as such."""
    from hermes_cli import goals
    from tools.process_registry import format_process_notification

    done = {"session_id": "p1", "command": "make", "exit_code": 0, "output": "ok"}
    delegated = {
        "type": "async_delegation",
        "delegation_id": "d1",
        "status": "completed",
        "goal": "look",
        "summary": "found",
        "results": [],
    }
    texts = [
        format_process_notification(done),
        format_process_notification({**done, "type": "watch_match", "pattern": "x"}),
        format_process_notification(delegated),
    ]
    texts += [
        text
        for name, text in vars(goals).items()
        if isinstance(text, str)
        and name.startswith(("CONTINUATION_PROMPT", "GOAL_ALREADY", "KANBAN_GOAL"))
    ]
    if HERMES is not None and HERMES.generation >= (0, 20):
        from hermes_cli.heartbeat import HEARTBEAT_PROMPT_TEMPLATE

        texts.append(HEARTBEAT_PROMPT_TEMPLATE)
    assert len(texts) > 5
    assert [text for text in texts if not is_synthetic(text)] == []


@LATER
def test_authors(manager, hindsight):
    """The manager passes who wrote a turn, and it is that person's."""
    one = manager(values={"bank_id_template": "of-{user}"}, user_id="opener")
    author = {"id": "bob", "name": "Bob", "is_bot": False}
    one.on_turn_start(1, "hello there", author_id="bob", author_name="Bob", author_is_bot=False)
    one.sync_all("by Bob", "ok", session_id="s", turn_author=author)
    one.sync_all("by the opener", "ok", session_id="s")
    assert one.flush_pending(LIMIT)
    one.shutdown_all()
    assert hindsight.said("of-bob") == ["by Bob"]
    assert hindsight.said("of-opener") == ["by the opener"]


@LATER
def test_a_required_checkpoint(manager, hindsight):
    """A required checkpoint is confirmed: what was given is on disk, and so is the rest then."""
    one = manager()
    assert one.supports_pre_compress_checkpoint()
    one.sync_all("one", "ok", session_id="s")
    assert one.flush_pending(LIMIT)
    evidence = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "two"},
    ]
    assert one.on_pre_compress(evidence, evidence_messages=evidence, require_checkpoint=True) == ""
    one.sync_all("two", "fine", session_id="s")
    one.shutdown_all()
    (item,) = hindsight.items()
    assert contents(item) == ["User: one", "Assistant: ok", "User: two", "Assistant: fine"]


@LATER
def test_a_checkpoint_that_is_not_confirmed(manager):
    """Without a disk the host keeps its context."""
    one = manager(values={"durability": "memory"})
    evidence = [{"role": "user", "content": "one"}]
    with pytest.raises(HindsightExecError):
        one.on_pre_compress(evidence, evidence_messages=evidence, require_checkpoint=True)


@LATER
def test_the_signature_that_rebuilds_agents(home, hindsight):
    """The host finds what a cached agent depends on in a provider that serves nobody."""
    configure(home, api_url=hindsight.url)
    signature = HindsightMemoryProvider().identity_signature()
    assert signature
    assert all(name.startswith("hindsight_exec.") for name in signature)


def test_signatures():
    """Every method takes what this host's base class says it may pass."""
    from agent.memory_provider import MemoryProvider

    for name, method in inspect.getmembers(MemoryProvider, inspect.isfunction):
        if name.startswith("_"):
            continue
        ours = inspect.signature(getattr(HindsightMemoryProvider, name)).parameters
        anything = any(one.kind is one.VAR_KEYWORD for one in ours.values())
        for parameter in inspect.signature(method).parameters.values():
            if parameter.kind is not parameter.VAR_KEYWORD:
                assert parameter.name in ours or anything, (name, parameter.name)
