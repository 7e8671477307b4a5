"""Sessions in projects that name a bank of their own."""

from __future__ import annotations

import pytest

from hindsight_exec.hermes import HindsightMemoryProvider, identity

from .recording import configure
from .test_tools import call


@pytest.fixture
def project(clean, monkeypatch):
    """A project's folder, with a file; returns how to write it."""
    monkeypatch.setattr(identity, "_ignored", set())
    folder = clean / "src" / "app"
    (folder / ".hindsight").mkdir(parents=True)

    def write(text='bank_id = "app"'):
        (folder / ".hindsight" / "config.toml").write_text(text)
        return {"cwd": str(folder), "platform": "cli"}

    return write


def say(provider, text="question"):
    provider.sync_turn(text, "ok")
    provider.shutdown()


def test_a_trusted_project(make, hindsight, project):
    """Turns, notes, recalls, the prompt and the status are those of the project's bank."""
    provider = make(told=project(), bank_id="own", trusted_project_dirs=["~/src"])
    provider.queue_prefetch("question")
    provider.prefetch("question")
    call(provider, "hindsight_retain", content="note")
    assert "in the bank app." in provider.system_prompt_block()
    provider.on_session_switch("t", parent_session_id="s")
    say(provider)
    assert len(hindsight.documents("app")) == 2
    assert hindsight.items()
    assert {one.path.split("/")[4] for one in hindsight.seen if "/banks/" in one.path} == {"app"}


def test_the_folder_of_the_process(make, hindsight, project, monkeypatch):
    """A host that does not say where a session works, as before 0.22, works in its own folder."""
    monkeypatch.chdir(project()["cwd"])
    for name, platform in (("a", "cli"), ("b", "telegram")):
        told = {"platform": platform}
        say(make(name, told, bank_id="own", trusted_project_dirs=["~/src"]), name)
    assert (hindsight.said("app"), hindsight.said("own")) == (["a"], ["b"])


def test_the_status(make, home, hindsight, project, monkeypatch):
    """`hermes memory status` names the bank of the project it is called in, or what is wrong."""
    monkeypatch.chdir(project()["cwd"])
    configure(home, api_url=hindsight.url, trusted_project_dirs=["~/src"])
    assert HindsightMemoryProvider().get_status_config({})["bank of this project"] == "app"
    project("bank_id = 5")
    shown = HindsightMemoryProvider().get_status_config({})["bank of this project"]
    assert "bank_id must be text, not 5" in shown


def test_the_file_goes_first(make, hindsight, project):
    """A project's file goes before the template; its copy goes to the bank without the project."""
    values = {"bank_id": "own", "bank_id_template": "t-{project}", "mirror_to_own_bank": True}
    say(make(told=project(), trusted_project_dirs=["~/src"], **values))
    assert hindsight.said("app") == hindsight.said("t") == ["question"]


def test_people_of_a_chat(make, hindsight, project):
    """Where the host names a user, a project's file does not merge the banks of several people."""
    told = {**project(), "user_id": "ada"}
    say(make(told=told, bank_id_template="of-{user}", trusted_project_dirs=["~/src"]))
    assert hindsight.said("of-ada") == ["question"]


def test_an_untrusted_project(make, hindsight, project, caplog):
    """The file of another project is ignored; one line, said once, tells how to trust it."""
    shown = []
    told = {**project("bank_id = "), "warning_callback": shown.append}
    for name in ("a", "b"):
        say(make(name, told, bank_id="own", trusted_project_dirs=["~/other"]), name)
    assert hindsight.said("own") == ["a", "b"]
    assert len(shown) == caplog.text.count("is ignored") == 1
    assert f"add {told['cwd']} to trusted_project_dirs" in shown[0]


def test_nothing_but_the_bank_counts(make, hindsight, project):
    """A project cannot name a server or a key, nor show more, nor keep more."""
    text = """
        bank_id = "app"
        api_url = "http://127.0.0.1:9"
        api_key = "stolen"
        mode = "cloud"
        additional_banks = ["own"]
        redact = false
        trusted_project_dirs = ["/"]
    """
    provider = make(told=project(text), bank_id="own", trusted_project_dirs=["~/src"])
    provider.queue_prefetch("question")
    provider.prefetch("question")
    say(provider, "the password is hunter2x")
    assert hindsight.said("app") == ["the password is [redacted]"]
    assert {one.key for one in hindsight.seen} == {None}
    assert hindsight.requests("/banks/own/memories/recall") == []


@pytest.mark.parametrize("text", ["bank_id = ", "bank_id = 5", 'bank_id = "a/b"'])
def test_a_wrong_file(make, hindsight, project, text, caplog):
    """A trusted file that names no usable bank turns memory off there, says why, and sends nothing."""
    shown = []
    told = {**project(text), "warning_callback": shown.append}
    provider = make(told=told, bank_id="own", trusted_project_dirs=["~/src"], forget_tool=True)
    assert provider.system_prompt_block() == ""
    provider.on_turn_start(1, "question")
    assert provider.prefetch("question") == ""
    for tool in ("hindsight_retain", "hindsight_recall"):
        assert "config.toml" in call(provider, tool, content="x", query="x")["error"]
    say(provider)
    assert hindsight.seen == []
    assert len(shown) == 1
    assert shown[0].startswith("Hindsight memory is off: ")
    assert "config.toml" in shown[0]
    assert shown[0] in caplog.text


def test_a_file_that_became_wrong(make, hindsight, project):
    """A provider that begins a session in such a project keeps nothing of it in the bank before."""
    values = {"bank_id": "own", "trusted_project_dirs": ["~/src"]}
    provider = make("a", {"platform": "telegram"}, **values)
    provider.sync_turn("one", "ok")
    provider.initialize("b", **project("bank_id = 5"))
    provider.sync_turn("two", "ok")
    provider.initialize("c", **project())
    say(provider, "three")
    assert (hindsight.said("own"), hindsight.said("app")) == (["one"], ["three"])
