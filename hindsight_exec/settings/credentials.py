"""From the reference in an outbox row back to the API key, which is never on disk there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

from hindsight_exec.client.urls import EMBEDDED_URL, normalise_url
from hindsight_exec.errors import ConfigError

from . import keyring
from .config import configurable
from .dotenv import read_dotenv
from .folders import default_hermes_home
from .reading import read

__all__ = ["resolve_credential"]


def resolve_credential(reference: str, url: str) -> Optional[str]:
    """The key that ``reference`` stands for, read anew each time. Safe from any thread.

    Returns:
        None if the configuration that ``reference`` names is gone or names another
        server: then nothing may be sent; "" if no key is needed there.
    """
    if not reference:
        return ""
    try:
        url = normalise_url(url)
    except ConfigError:
        return None
    given = keyring.recall(reference, url)
    if reference.startswith("given:"):
        # A later process of the same program: the environment may hold the key.
        key = given or os.environ.get("HINDSIGHT_API_KEY", "")
        return key if key and (given or keyring.reference(url, key) == reference) else None
    environ = dict(os.environ)
    own = environ.pop("HINDSIGHT_API_KEY", "")
    home: Optional[Path] = None
    if reference.startswith("hermes:"):
        home = Path(reference[len("hermes:") :])
        if default_hermes_home(os.environ).absolute() != home:
            # Another profile's configuration must not be completed from ours.
            environ, own = {"HOME": environ.get("HOME", "")}, ""
        environ.update(read_dotenv(home / ".env"))
    elif reference != "env":
        return given
    found = read(configurable(), home, environ, named=bool(own or given))
    if found.unusable or not found.configured or found.values["api_url"] != url:
        return given
    if url.startswith(EMBEDDED_URL):
        return ""  # keys are other servers'
    # What a host handed over was meant for this profile; the process' variable may be another's.
    return found.values.get("api_key") or given or own
