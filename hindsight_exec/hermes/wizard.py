"""What ``hermes memory setup`` asks: no more than the mode needs, and Enter keeps what there is.

Hermes' own walk over the schema asks for every key, knows nothing of what
config.json holds, and shows the end of the API key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional

from hindsight_exec.client.urls import CLOUD_URL, LOCAL_URL, normalise_url
from hindsight_exec.errors import ConfigError
from hindsight_exec.hermes import embedded, host, setup
from hindsight_exec.settings.config import Settings, configurable
from hindsight_exec.settings.dotenv import HERMES, with_variables
from hindsight_exec.settings.files import read_bytes, write_file
from hindsight_exec.settings.llm import PROVIDERS
from hindsight_exec.settings.values import PARSERS, WrongValue

from .plugin_folder import NAME
from .yaml_edit import with_provider

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["run"]

_ITEMS = {item.name: item for item in configurable()}
_ASKED = {
    "cloud": ("api_key", "bank_id"),
    "local_external": ("api_url", "api_key", "bank_id"),
    "local_embedded": ("llm_provider", "llm_base_url", "llm_model", "llm_api_key", "bank_id"),
}
_HINTS = {
    "api_key": f"from {setup.KEY_PAGE}, or of your own server",
    "llm_base_url": "only where it is not the provider's own",
    "llm_api_key": "none for a local one",
}

_GOOD, _BAD = "\N{CHECK MARK}", "\N{BALLOT X}"


def run(home: Path) -> None:
    """Ask on the terminal, save the answers, and try the connection. Ctrl-C changes nothing."""
    print("\n  Hindsight memory. Enter keeps the value in [brackets], '-' empties it.\n")
    try:
        settings = Settings.load(home, host.environment(), host_loaded=True)
        # The source may be the user's own file, which the new one replaces.
        values = setup.read_config(settings.source or home / "hindsight" / "config.json")
        answers = _ask(settings)
        written = _save(home, values, answers)
    except (KeyboardInterrupt, EOFError):
        print("\n  Nothing was changed.\n")
        return
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        print(f"\n  Not set up: {error}\n")
        return
    print(f"\n  Saved in {', '.join(map(str, written))}.")
    changed = {_ITEMS[name].metadata["env"] for name in answers}  # the host holds the old values
    environ = {key: value for key, value in host.environment().items() if key not in changed}
    _try(Settings.load(home, environ, host_loaded=True))


def _ask(settings: Settings) -> Dict[str, Any]:
    """Return the answers that change a value."""
    answers: Dict[str, Any] = {}
    mode = _answer("mode", settings.mode) or settings.mode
    answers["mode"] = mode
    moved = mode != settings.mode or bool(settings.unusable)
    if moved and mode != "local_embedded":
        answers["api_url"] = CLOUD_URL if mode == "cloud" else LOCAL_URL
    for name in _ASKED[mode]:
        url = answers.get("api_url", settings.api_url)
        if name == "api_key" and settings.api_key and url != settings.api_url:
            print(f"  The current key belongs to {settings.api_url or 'an unusable URL'}.")
        hint = _HINTS.get(name, "")
        if name == "llm_model":
            provider = answers.get("llm_provider", settings.llm_provider) or "openai"
            hint = f"default: {PROVIDERS.get(provider) or 'none'}"
        answer = _answer(name, answers.get(name, getattr(settings, name)), hint)
        if answer is not None:
            answers[name] = answer
    return answers


def _answer(name: str, current: Any, hint: str = "") -> Optional[str]:
    """Return a valid answer; "" empties the value, None keeps it."""
    item = _ITEMS[name]
    about = item.metadata
    secret = about["kind"] == "secret"
    hint = ", ".join(about["choices"]) or hint
    words = about["doc"].rstrip(".") + (f" ({hint})" if hint else "")
    shown = ("set" if current else "none") if secret else current or "none"
    while True:
        ask = host.ask_secret if secret else input
        typed = ask(f"  {words} [{shown}]: ").strip()
        if not typed:
            return None
        if typed == setup.EMPTY and not item.default:
            return ""
        try:
            parsed = str(PARSERS[about["kind"]](typed, item))
            return normalise_url(parsed) if name == "api_url" else parsed
        except (WrongValue, ConfigError) as error:
            print(f"    It must be {error}." if isinstance(error, WrongValue) else f"    {error}.")


def _save(home: Path, values: Dict[str, Any], answers: Dict[str, Any]) -> List[Path]:
    """Write config.json, the keys to .env, and memory.provider. Return the files written."""
    config, dotenv, yaml = home / "hindsight" / "config.json", home / ".env", home / "config.yaml"
    text = read_bytes(yaml).decode()
    activated = with_provider(text, NAME)  # it raises before anything is written
    variables: Dict[str, Optional[str]] = {}
    for name, answer in answers.items():
        about = _ITEMS[name].metadata
        if about["kind"] == "secret":
            for key in (name, *about["aliases"]):
                values.pop(key, None)
            variables[about["env"]] = answer or None
        else:
            values[name] = answer
    files = {config: setup.config_bytes(values)}
    if variables:
        files[dotenv] = with_variables(read_bytes(dotenv), variables, HERMES, dotenv)
    if activated != text:
        files[yaml] = activated.encode()
    setup.link_for_panel(home)
    for path, content in files.items():
        write_file(path, content)
    return list(files)


def _try(settings: Settings) -> None:
    from .checks import server_checks  # noqa: PLC0415 - brings the client

    problem = setup.missing(settings)
    if problem:
        print(f"  {_BAD} {problem}\n")
        return
    works = settings.mode != "local_embedded" or _start(settings)
    print("  Trying the connection ...")
    for check in server_checks(settings):
        works = works and check.state != "failed"
        print(f"  {_BAD if check.state == 'failed' else _GOOD} {check.name}: {check.found}")
        if check.remedy:
            print(f"      {check.remedy}")
    if works:
        print("  Ready: start a new session.\n")
    else:
        print("  Turns are saved on disk until the server takes them. After the repair, run")
        print("      'hermes hindsight_exec doctor' or this setup again.\n")


def _start(settings: Settings) -> bool:
    """Start the daemon and wait for it. Return False if it failed while we waited."""
    print("  Starting Hindsight's daemon. The first start takes minutes; Ctrl-C stops waiting ...")
    starter = embedded.daemon_of(settings).start()
    try:
        if starter is not None and starter.wait() == 0:
            return True
    except KeyboardInterrupt:
        print("\n  The daemon continues to start in the background.")
        return True
    print(f"  {_BAD} the daemon did not start; see {embedded.log_of(settings)}")
    return False
