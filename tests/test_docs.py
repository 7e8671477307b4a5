"""What the documents show works as it stands."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any, Iterator

import pytest
from serving import Serving, documents

import hindsight_exec

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
]

if not (ROOT / "docs").is_dir():
    pytest.skip("the documents are not beside the tests", allow_module_level=True)


def _snippets() -> list[Any]:
    return [
        pytest.param(code, id=f"{document.name}-{number}")
        for document in DOCUMENTS
        for number, code in enumerate(
            re.findall(r"^```python\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)
        )
    ]


def test_every_snippet_is_found() -> None:
    """None is indented, in a list for example, where it would not be run."""
    fences = sum(document.read_text().count("```python") for document in DOCUMENTS)
    assert fences == len(_snippets())


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    """Where the snippets send to."""
    serving = Serving()
    yield serving
    serving.close()


@pytest.mark.parametrize("code", _snippets())
def test_snippet(code: str, run: Any, server: Serving, tmp_path: Path) -> None:
    """A snippet runs to its end, and says nothing on stderr. What it puts is stored."""
    code = code.replace("http://localhost:8888", server.url)
    ended = run(code, HINDSIGHT_EXEC_STATE=str(tmp_path / "state"))
    assert (ended.status, ended.err) == (0, "")
    if "writer.put(" in code:
        bank = re.search('bank_id="(.*?)"', code)
        assert bank is not None
        assert documents(server.url, bank[1])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document: Path) -> None:
    """A link to a file of the project finds it."""
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_every_page_has_its_place() -> None:
    """The site's table of contents, docs/toc.yml, names each document."""
    toc = (ROOT / "docs" / "toc.yml").read_text(encoding="utf-8")
    for document in DOCUMENTS:
        name = document.relative_to(ROOT).with_suffix("").as_posix()
        assert re.search(rf"^(root:|  - file:) {name}$", toc, re.MULTILINE), name


def test_the_api_reference_is_complete() -> None:
    """Each public name has its entry, and no other has one."""
    page = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8")
    entries = re.findall(r"^\.\. auto\w+:: (\w+)", page, re.MULTILINE)
    assert sorted([*entries, "__version__"]) == sorted(hindsight_exec.__all__)


def test_the_configuration_reference_is_current() -> None:
    """The page is what its program writes from `Settings`."""
    page = runpy.run_path(str(ROOT / "docs" / "configuration.py"))["page"]
    assert page() == (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_the_matrix_of_hosts_is_current() -> None:
    """The table is what its program writes from the results."""
    page = runpy.run_path(str(ROOT / "docs" / "hermes.py"))["page"]
    assert page() == (ROOT / "docs" / "hermes.md").read_text(encoding="utf-8")
