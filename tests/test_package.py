"""The package as a whole: its public names, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hindsight_exec


def test_import_is_light():
    """Importing the package, or its executor, brings neither aiohttp, asyncio nor sqlite3."""
    code = (
        "import sys, hindsight_exec\n"
        "from hindsight_exec import DrainingExecutor, ExecutorClosed\n"
        "print(sorted({'aiohttp', 'asyncio', 'sqlite3'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_public_names():
    """Every public name is importable, listed by dir(), and sorted in __all__."""
    assert hindsight_exec.__all__ == sorted(hindsight_exec.__all__)
    for name in hindsight_exec.__all__:
        assert getattr(hindsight_exec, name) is not None
    assert set(hindsight_exec.__all__) <= set(dir(hindsight_exec))


def test_every_exception_is_public():
    """All of the package's exceptions can be imported from the package itself."""
    from hindsight_exec import errors

    raised = [name for name, value in vars(errors).items() if isinstance(value, type)]
    assert len(raised) > 10
    for name in raised:
        assert getattr(hindsight_exec, name) is getattr(errors, name)
        assert name in hindsight_exec.__all__


def test_unknown_name():
    """A name the package does not have is an AttributeError that names it."""
    with pytest.raises(AttributeError, match="module 'hindsight_exec' has no attribute 'Nonsense'"):
        _ = hindsight_exec.Nonsense


def test_installed_metadata():
    """The installed distribution has the package's version and its entry points."""
    from importlib import metadata

    assert metadata.version("hindsight-exec") == hindsight_exec.__version__
    points = {
        (point.group, point.value)
        for point in metadata.distribution("hindsight-exec").entry_points
        if point.name.replace("-", "_") == "hindsight_exec"
    }
    assert points == {
        ("console_scripts", "hindsight_exec.cli.main:main"),
        ("hermes_agent.memory_providers", "hindsight_exec.hermes"),
        ("hermes_agent.plugins", "hindsight_exec.hermes"),
    }


def test_the_plugin_has_the_version_of_the_package():
    """The manifest that Hermes reads of a checkout names the package's version."""
    manifest = Path(__file__).parent.parent / "plugin.yaml"
    if not manifest.is_file():
        pytest.skip("the sources are not beside the tests")
    assert f"version: {hindsight_exec.__version__}\n" in manifest.read_text(encoding="utf-8")
