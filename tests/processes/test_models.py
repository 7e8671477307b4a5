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


def _case(model):
    marks = [pytest.mark.xfail(strict=True, reason=f"issue {model.fails}")] if model.fails else []
    return pytest.param(model, id=re.sub(r"\W+", "-", model.name).lower(), marks=marks)


@pytest.mark.parametrize("model", [_case(model) for model in MODELS])
def test_turns_are_stored_once(live, model):
    """What it gave is stored once, at the latest when its model says so, without any noise."""
    assert live(model).problems(model) == []
