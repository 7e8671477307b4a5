"""Every turn that a process gave is stored once, whatever kind of process it was."""

from __future__ import annotations

import re
import sys

import pytest

from .models import MODELS

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(300),  # PyInstaller builds a program
    pytest.mark.skipif(sys.platform == "win32", reason="the hosts need POSIX"),
]


NAMES = [re.sub(r"\W+", "-", model.name).lower() for model in MODELS]


@pytest.mark.parametrize("model", MODELS, ids=NAMES)
def test_turns_are_stored_once(live, model):
    """What it gave is stored once, at the latest when its model says so, without any noise."""
    assert live(model).problems(model) == []
