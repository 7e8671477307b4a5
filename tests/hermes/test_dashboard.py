"""The settings in Hermes' dashboard and desktop: saving one changes that one, and nothing else."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import urllib.error
import urllib.request

import pytest
from serving import free_port

from hindsight_exec import Settings
from hindsight_exec.hermes.yaml_edit import provider_of
from hindsight_exec.settings.config import configurable

from .hosts import HERMES, marks, until

pytestmark = marks

TOKEN = "token-of-the-test"
CONFIGURED = {
    "mode": "local_external",
    "apiUrl": "http://127.0.0.1:1",
    "bank_id": "mine",
    "recall_tags": ["a", "b"],
    "recall_budget": "high",
    "retain_async": False,
    "timeout": 7,
    "mine": {"kept": True},
}
# What a user might choose instead, where it does not follow from the kind of the value.
OTHERS = {
    "text": "other",
    "bank": "other",
    "template": "{profile}",
    "label": "Other",
    "profile": "other",
    "url": "http://127.0.0.1:2",
    "secret": "SECRET",
    "list": "world",
    "folders": '["/src"]',
    "patterns": '["^x"]',
    "scopes": "per_tag",
    "banks": '{"u": "b"}',
    "variables": '{"A": "b"}',
}


class Dashboard:
    """The server behind the dashboard and the desktop."""

    def __init__(self, host, surface):
        self.port = free_port()
        self.query = f"?surface={surface}" if surface else ""
        host.environment["HERMES_DASHBOARD_SESSION_TOKEN"] = TOKEN
        self.output = (host.folder / "dashboard").open("w+")
        self.process = host.start(
            [host.python, "-m", "uvicorn", "hermes_cli.web_server:app", f"--port={self.port}"],
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )

        def up():
            assert self.process.poll() is None, self.printed()
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 1),
            ):
                return True
            return False

        until(up, "the dashboard never listened")

    def printed(self):
        self.output.seek(0)
        return self.output.read()

    def ask(self, method, body=None):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/memory/providers/hindsight_exec/config{self.query}",
            json.dumps(body).encode() if body else None,
            {"Content-Type": "application/json", "X-Hermes-Session-Token": TOKEN},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def shown(self):
        status, payload = self.ask("GET")
        assert status == 200, (payload, self.printed())
        return {field["key"]: field for field in payload["fields"]}


def other(item, settings):
    """A value that is not the one that counts."""
    kind, value = item.metadata["kind"], getattr(settings, item.name)
    if kind == "choice":
        return next(one for one in item.metadata["choices"] if one != value)
    if kind == "bool":
        return not value
    if kind in ("int", "number"):
        return (value or 0) + 1
    if kind == "list" and item.metadata["choices"]:
        return next(one for one in item.metadata["choices"] if (one,) != value)
    return OTHERS[kind]


@pytest.fixture(params=["declared", None], ids=["desktop", "dashboard"])
def dashboard(host, request):
    if HERMES.generation >= (0, 22):
        # It calls a provider ready whose dependencies its package manager has installed.
        host.use(request.getfixturevalue("checkout"))
        host.run(host.hermes, "memory", "setup", "hindsight_exec")
    dashboard = Dashboard(host, request.param)
    yield dashboard
    dashboard.output.close()


def test_each_setting(host, dashboard):
    """PUT one field: the file, the key's variable and memory.provider show that change alone."""
    config, dotenv = host.home / "hindsight" / "config.json", host.home / ".env"
    config.write_text(json.dumps(CONFIGURED))
    dotenv.write_text("HINDSIGHT_RETAIN_SOURCE=source\nOTHER=1\n")
    shown = dashboard.shown()
    assert shown["mode"]["value"] == "local_external"
    assert shown["api_url"]["value"] == "http://127.0.0.1:1"
    assert shown["bank_id"]["value"] == "mine"
    assert shown["recall_budget"]["value"] == "high"
    assert shown["retain_source"]["value"] == "source"
    assert str(shown["timeout"]["value"]) in ("7", "7.0")
    assert str(shown["retain_async"]["value"]).lower() == "false"
    assert "a" in shown["recall_tags"]["value"]
    for item in configurable():
        embedded = item.metadata["group"] == "Embedded"
        if embedded and not dashboard.query:
            continue  # shown in the mode only that needs a package which is not here
        config.write_text(json.dumps(CONFIGURED))
        dotenv.write_text("HINDSIGHT_RETAIN_SOURCE=source\nOTHER=1\n")
        before = Settings.load(host.home, {})
        value = other(item, before)
        status, answer = dashboard.ask("PUT", {"values": {item.name: value}})
        # The dashboard saves the mode, then says what it needs.
        assert status == 200 or item.name == "mode", (item.name, answer, dashboard.printed())
        saved, after = json.loads(config.read_text()), Settings.load(host.home, {})
        changed = {
            one.name
            for one in configurable()
            if getattr(before, one.name) != getattr(after, one.name)
        }
        assert changed == {item.name}
        assert provider_of((host.home / "config.yaml").read_text()) == "hindsight_exec"
        names = {item.name, *item.metadata["aliases"]}
        assert {key: value for key, value in saved.items() if key not in names} == {
            key: value for key, value in CONFIGURED.items() if key not in names
        }
        if item.metadata["kind"] == "secret":
            assert saved == CONFIGURED
            assert f"{item.metadata['env']}=SECRET" in dotenv.read_text()
        assert dotenv.read_text().count("=") == 2 + (item.metadata["kind"] == "secret")


def test_a_wrong_value(host, dashboard):
    """A value that cannot be used is refused by the dashboard, with the reason, and nothing is saved."""
    if dashboard.query:
        pytest.skip("the desktop checks what it declares: kinds and choices")
    config = host.home / "hindsight" / "config.json"
    config.write_text(json.dumps(CONFIGURED))
    status, answer = dashboard.ask("PUT", {"values": {"timeout": -1}})
    assert status == 400
    assert "timeout" in json.dumps(answer)
    assert json.loads(config.read_text()) == CONFIGURED
