"""What Hermes checks before it takes a plugin in: its scan of the files, and `plugins validate`."""

from __future__ import annotations

import re

import pytest

from .hosts import HERMES, marks

pytestmark = marks
since_022 = pytest.mark.skipif(
    HERMES is None or HERMES.generation < (0, 22), reason="Hermes before 0.22 does not check this"
)

SCAN = """
import sys
from pathlib import Path
from tools.plugin_guard import scan_plugin

found = scan_plugin(Path(sys.argv[1]))
print(found.verdict)
for one in found.findings:
    if one.severity in ("high", "critical"):
        print(one.severity, one.category, f"{one.file}:{one.line}", one.match)
"""


@since_022
def test_the_scan(host, clone):
    """Neither a clone of the repository nor what install writes holds anything that needs a consent."""
    for folder in (clone, host.home / "plugins" / "hindsight_exec"):
        out = host.run([host.python, "-c", SCAN], str(folder))
        assert out.splitlines()[-1:] == ["safe"], out


@since_022
def test_validation(host, clone, checkout):
    """`hermes plugins validate`, as the catalog runs it, passes without a warning."""
    # From a checkout: beside a wheel it takes every installed package for a part of Hermes.
    host.use(checkout)
    out = host.run(host.hermes, "plugins", "validate", str(clone))
    assert "Validation passed" in out
    assert re.findall(r"^[⚠✗] (?!install out of sync).*", out, re.MULTILINE) == []


@since_022
def test_the_entry_of_the_catalog(host, clone):
    """The catalog's loader takes our entry once a release has filled in what only it knows."""
    entry = (clone / "plugin-catalog" / "hindsight_exec.yaml").read_text()
    for key, value in (("repo", "https://x.example/o/r"), ("sha", "a" * 40), ("maintainer", "o")):
        assert f'{key}: ""' in entry
        entry = entry.replace(f'{key}: ""', f"{key}: {value}")
    folder = host.folder / "catalog"
    folder.mkdir()
    (folder / "hindsight_exec.yaml").write_text(entry)
    program = (
        "import sys; from pathlib import Path; from hermes_cli.plugin_catalog import load_catalog;"
        "print(load_catalog(Path(sys.argv[1])))"
    )
    out = host.run([host.python, "-c", program], str(folder))
    assert "name='hindsight_exec'" in out
    assert "category='memory'" in out
