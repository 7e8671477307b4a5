"""The memory provider on a real Hindsight: what it keeps, recalls and forgets there."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Callable, Iterator

import pytest
from hermes.recording import configure

from hindsight_exec.hermes import HindsightMemoryProvider

from .proxy import Proxy
from .server import eventually, request

if TYPE_CHECKING:
    from pathlib import Path

    from .server import Server

pytestmark = [pytest.mark.hindsight, pytest.mark.timeout(180)]

FACT = "My dog is called Rex and he sleeps in the kitchen."
QUESTION = "Where does my dog Rex sleep?"
# Without an LLM there are no observations: what is stored is recalled as it is.
ALL = ["world", "experience", "observation"]

Chat = Callable[..., HindsightMemoryProvider]


@pytest.fixture
def chat(tmp_path: Path, bank: str, server: Server) -> Iterator[Chat]:
    """Makes providers of one Hermes folder: `chat(session, key=value…)`."""
    home = tmp_path / "hermes"
    home.mkdir()
    made: list[HindsightMemoryProvider] = []

    def chat(
        session: str, url: str = "", told: dict[str, str] | None = None, **values: Any
    ) -> HindsightMemoryProvider:
        given = {"recall_types": ALL, "recall_wait_seconds": 7, **values}
        configure(home, api_url=url or server.url, bank_id=bank, **given)
        provider = HindsightMemoryProvider()
        provider.initialize(session, hermes_home=str(home), **(told or {}))
        made.append(provider)
        return provider

    yield chat
    for provider in made:
        provider.shutdown()


def asked(provider: HindsightMemoryProvider, message: str = QUESTION) -> str:
    """What the model sees of memory in a session's first turn."""
    provider.on_turn_start(1, message)
    return provider.prefetch(message)


def call(provider: HindsightMemoryProvider, tool: str, **args: Any) -> str:
    return str(json.loads(provider.handle_tool_call(tool, args)).get("result"))


def processed(provider: HindsightMemoryProvider, session: str) -> None:
    """Wait until the server has processed what was said in the session."""
    writer = provider._writer
    assert writer is not None
    assert writer.flush(60, session=session, completed=True)


def test_a_fact_is_known_in_the_next_session(chat: Chat) -> None:
    """Before the server has processed a fact it comes from the disk, then from the server; once."""
    first = chat("a")
    first.sync_turn(FACT, "Good to know.", session_id="a")
    shown = asked(chat("b"))
    assert shown.count("kitchen") == 1
    assert "not yet processed" in shown
    processed(first, "a")
    shown = asked(chat("c"))
    assert shown.count("kitchen") == 1
    assert "not yet processed" not in shown


def test_a_fact_is_known_with_the_server_down(chat: Chat) -> None:
    """With the server down the next session knows what was said, and that memory is away."""
    url = "http://127.0.0.1:9"
    chat("a", url).sync_turn(FACT, "Good to know.", session_id="a")
    shown = asked(chat("b", url))
    assert "kitchen" in shown
    assert "cannot be searched" in shown


def test_a_fact_is_known_with_a_slow_server(chat: Chat, server: Server) -> None:
    """A server that answers later than a turn waits delays what it knows, not what was said."""
    with Proxy(server.url, lambda _: time.sleep(3)) as proxy:
        first, second = chat("a", proxy.url), chat("b", proxy.url, recall_wait_seconds=1)
        first.sync_turn(FACT, "Good to know.", session_id="a")
        shown = asked(second)
        proxy.plan = lambda _: None
        for provider in (first, second):
            provider.shutdown()
    assert shown.count("kitchen") == 1
    assert "not yet processed" in shown


def test_secrets_do_not_get_there(chat: Chat, server: Server, bank: str) -> None:
    """What looks like a secret is not stored."""
    first = chat("a")
    first.sync_turn("My password is hunter2x, keep it.", "No.", session_id="a")
    processed(first, "a")
    url = f"{server.url}/v1/default/banks/{bank}/documents"
    (item,) = request("GET", url)[1]["items"]
    text = request("GET", f"{url}/{item['id']}")[1]["original_text"]
    assert "hunter2x" not in text
    assert "[redacted]" in text


def test_scores(chat: Chat, server: Server, bank: str) -> None:
    """The server scores what it recalls, in the form that recall_min_score reads.

    Without a reranker and with words only, it says nothing absolute: nothing is left out.
    """
    first = chat("a", recall_min_score=0.99)
    call(first, "hindsight_retain", content=FACT)
    processed(first, "a")
    url = f"{server.url}/v1/default/banks/{bank}/memories/recall"
    (memory,) = request("POST", url, {"query": QUESTION})[1]["results"]
    assert {"final", "reranker", "semantic"} <= set(memory["scores"])
    shown = "kitchen" in call(first, "hindsight_recall", query=QUESTION)
    known = [memory["scores"][name] for name in ("reranker", "semantic")]
    score = next((one for one in known if one is not None), 1.0)
    assert shown == (score >= 0.99)


def test_several_banks(chat: Chat, bank: str) -> None:
    """Another bank is recalled from, and its memories are marked."""
    other = f"{bank}-other"
    there = chat("x", bank_id_template=other)
    call(there, "hindsight_retain", content=FACT)
    processed(there, "x")
    shown = asked(chat("a", bank_id_template="", additional_banks=[other]))
    assert f"(bank {other})" in shown
    assert "kitchen" in shown


def test_the_own_bank(chat: Chat, server: Server, bank: str, tmp_path: Path) -> None:
    """A project's document is in both banks under one id, and is shown once, and forgotten in both."""
    folder = tmp_path / "app"
    (folder / ".hindsight").mkdir(parents=True)
    project = f"{bank}-app"
    (folder / ".hindsight" / "config.toml").write_text(f'bank_id = "{project}"')
    values = {"mirror_to_own_bank": True, "additional_banks": [bank], "forget_tool": True}
    values["trusted_project_dirs"] = [str(tmp_path)]
    first = chat("a", **values, told={"cwd": str(folder)})
    first.sync_turn(FACT, "Good to know.", session_id="a")
    processed(first, "a")
    urls = [f"{server.url}/v1/default/banks/{one}/documents" for one in (bank, project)]
    (one,), (other,) = (request("GET", url)[1]["items"] for url in urls)
    assert one["id"] == other["id"]
    shown = asked(chat("b", **values, told={"cwd": str(folder)}))
    assert shown.count("kitchen") == 1
    assert "kitchen" in asked(chat("c", **values, told={"platform": "telegram"}))
    assert one["id"] in call(first, "hindsight_forget", query=QUESTION)
    assert "1 were there" in call(first, "hindsight_forget", document_ids=[one["id"]])
    assert [request("GET", url)[1]["total"] for url in urls] == [0, 0]


def test_a_checkpoint_in_a_resumed_session(chat: Chat, server: Server, bank: str) -> None:
    """What the server has of a session is not kept again when Hermes compresses it later."""
    first = chat("a")
    first.sync_turn(FACT, "Good to know.", session_id="a")
    processed(first, "a")
    evidence = [
        {"role": "user", "content": FACT},
        {"role": "assistant", "content": "Good to know."},
        {"role": "user", "content": "interrupted"},
    ]
    second = chat("a")
    assert second.on_pre_compress(evidence, require_checkpoint=True) == ""
    second.shutdown()
    processed(second, "a")
    url = f"{server.url}/v1/default/banks/{bank}/documents"
    texts = [
        request("GET", f"{url}/{item['id']}")[1]["original_text"]
        for item in request("GET", url)[1]["items"]
    ]
    assert sum(text.count("kitchen") for text in texts) == 1
    assert sum(text.count("interrupted") for text in texts) == 1


def test_forgetting(chat: Chat, server: Server, bank: str) -> None:
    """A document that was listed and chosen is gone, and with it what was drawn from it."""
    first = chat("a", forget_tool=True)
    call(first, "hindsight_retain", content=FACT)
    processed(first, "a")
    planned = call(first, "hindsight_forget", query=QUESTION)
    document = planned.splitlines()[1].partition(": ")[0]
    assert call(first, "hindsight_forget", document_ids=[document]).startswith("1 of 1")
    eventually(lambda: "kitchen" not in call(first, "hindsight_recall", query=QUESTION))


def test_a_mental_model(
    chat: Chat, thinking: Server, bank: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A mental model is found by its id; one that is empty or not there leaves the prompt alone.

    The stand-in for the LLM cannot write one.
    """
    url = f"{thinking.url}/v1/default/banks/{bank}"
    first = chat("a", thinking.url)
    call(first, "hindsight_retain", content=FACT)
    processed(first, "a")
    made = {"id": "me", "name": "Me", "source_query": "Who am I?"}
    status, answer = request("POST", f"{url}/mental-models", made)
    assert status == 200, answer
    eventually(lambda: request("GET", f"{url}/mental-models/me")[0] == 200)
    prompt = first.system_prompt_block()
    assert chat("b", thinking.url, mental_model_id="me").system_prompt_block() == prompt
    assert "mental_model_id" not in caplog.text
    assert chat("c", thinking.url, mental_model_id="nobody").system_prompt_block() == prompt
    assert "mental_model_id 'nobody' cannot be shown" in caplog.text
