"""The package as a whole: its public names, and what importing it costs."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

import hindsight_exec

ROOT = Path(__file__).parent.parent


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


def test_the_package_under_test_is_the_installed_one(run: Any):
    """Tests import the package that the processes they start import, also with `python -m pytest`."""
    ended = run("import hindsight_exec; print(hindsight_exec.__file__)")
    assert (ended.out, ended.err) == (f"{hindsight_exec.__file__}\n", "")


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
    assert f"version: {hindsight_exec.__version__}\n" in _source("plugin.yaml")
    assert f'version: "{hindsight_exec.__version__}"\n' in _source(
        "plugin-catalog/hindsight_exec.yaml"
    )


def test_pre_commit_checks_with_the_ruff_of_tox():
    """The hooks have the version that `tox -e lint` has."""
    versions = set(re.findall(r"ruff==[\d.]+", _source("tox.ini")))
    assert len(versions) == 1
    assert set(re.findall(r"ruff==[\d.]+", _source(".pre-commit-config.yaml"))) == versions


def test_links_of_the_readme_work_on_an_index_page():
    """The README that a package shows links to its repository, at the tag of its version."""
    _source("hindsight_exec/__init__.py")  # has the version
    index_page = runpy.run_path(str(ROOT / "setup.py"))["index_page"]
    page = index_page("https://x.example/o/r")
    relative = re.findall(r"\]\(((?!https:)[^)]+)\)", _source("README.md"))
    assert relative
    assert not re.findall(r"\]\((?!https:)", page)
    tag = f"v{hindsight_exec.__version__}"
    assert page.count(f"(https://x.example/o/r/blob/{tag}/") + page.count(
        f"(https://x.example/o/r/raw/{tag}/"
    ) == len(relative)
    assert f"](https://x.example/o/r/raw/{tag}/docs/demo.svg)" in page
    assert index_page("") == _source("README.md")


EXECUTOR_ALONE = """
import importlib.util
import sys
from hindsight_exec import DrainingExecutor, ExecutorClosed
from hindsight_exec.executor import call_at_exit

assert importlib.util.find_spec("aiohttp") is None
pool = DrainingExecutor(max_workers=2, drain_timeout=60)
assert list(pool.map(pow, [2, 3], [5, 2])) == [32, 9]
call_at_exit(lambda: print("closed"))
pool.submit(print, "drained")
"""


def test_the_executor_needs_nothing_else(tmp_path: Path) -> None:
    """In an environment with the package and none of its dependencies the executor works."""
    venv.create(tmp_path, with_pip=False, symlinks=os.name == "posix")
    python = next(tmp_path.glob("[bS]*/python*"))
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(where, capture_output=True, text=True, timeout=60, check=True).stdout
    # What `pip install --no-deps` does with a wheel; pip itself would want its setuptools.
    package = Path(hindsight_exec.__file__).parent
    shutil.copytree(package, Path(site.strip()) / "hindsight_exec")
    done = subprocess.run(
        [python, "-c", EXECUTOR_ALONE],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "drained\nclosed\n", "")


def _source(name: str) -> str:
    if not (ROOT / name).is_file():
        pytest.skip("the sources are not beside the tests")
    return (ROOT / name).read_text(encoding="utf-8")
