"""From the reference in an outbox row back to the API key, which is never on disk there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

from hindsight_exec.client.urls import EMBEDDED_URL, normalise_url
from hindsight_exec.errors import ConfigError

from . import keyring
from .config import configurable
from .folders import default_hermes_home
from .reading import read

__all__ = ["resolve_credential"]


def resolve_credential(reference: str, url: str, state: Optional[Path] = None) -> Optional[str]:
    """Return the key that ``reference`` stands for, read anew each time. Safe from any thread.

    Args:
        reference: What the row says.
        url: The server.
        state: The state directory that holds the row. If it is that of a Hermes folder, and
            the folder that the row names is gone, this one was renamed or moved.

    Returns:
        None if the configuration that ``reference`` names is gone or names another
        server: then nothing may be sent; "" if no key is needed there.
    """
    if not reference:
        return ""
    if reference.startswith("hermes:") and state is not None:
        gone = not Path(reference[len("hermes:") :]).exists()
        if gone and state.parts[-2:] == ("hindsight", "outbox"):
            reference = f"hermes:{state.absolute().parents[1]}"
    try:
        url = normalise_url(url)
    except ConfigError:
        return None
    handed = keyring.recall(reference, url)
    handed_key = handed.key if handed else None
    if reference.startswith("given:"):
        # A later process of the same program: the environment may hold the key.
        key = handed_key or os.environ.get("HINDSIGHT_API_KEY", "")
        return key if key and (handed_key or keyring.reference(url, key) == reference) else None
    environ = dict(os.environ)
    own = environ.pop("HINDSIGHT_API_KEY", "")
    home: Optional[Path] = None
    if reference.startswith("hermes:"):
        home = Path(reference[len("hermes:") :])
        if default_hermes_home(os.environ).absolute() != home:
            # Another profile's configuration must not be completed from ours.
            shared = ("HOME", "HERMES_MANAGED_DIR")
            environ, own = {name: environ[name] for name in shared if name in environ}, ""
    elif reference != "env":
        return handed_key
    found = read(configurable(), home, environ, named=bool(own or handed))
    if found.unusable or not found.configured or found.values["api_url"] != url:
        return handed_key
    if url.startswith(EMBEDDED_URL):
        return ""  # keys are other servers'
    key = found.values["api_key"]
    # A host's key is meant for this profile, and goes before our own reading of the `.env`,
    # until the user puts another one there. The process's variable may be another profile's.
    if handed and key in (None, handed.in_dotenv) and found.key_in_dotenv == handed.in_dotenv:
        return handed.key
    return key or handed_key or own
