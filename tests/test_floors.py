"""The rooms of the package stand on floors, and imports point down only."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Iterator

import pytest

import hindsight_exec

PACKAGE = Path(hindsight_exec.__file__).parent

#: The rooms, from the ground up. Rooms of one floor do not know each other.
FLOORS = (
    {"errors"},
    {"executor", "conversation"},
    {"outbox", "client", "server"},
    {"settings"},
    {"delivery"},
    {"hermes"},
    {"cli"},
)
#: The longest file, in lines, of a room; of all others.
LONGEST = {"executor": 250}
LONGEST_ELSEWHERE = 400

#: Known violations, until they are mended: imports that point up, modules that import each other,
#: and files that are too long. These sets only shrink.
UPWARD: set[tuple[str, str]] = set()
CIRCLES: list[tuple[str, ...]] = []
TOO_LONG: set[str] = set()


def modules(package: Path) -> dict[str, Path]:
    """All modules by their names within the package; `""` is the package itself."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, name: str, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that a file imports, wherever the import stands in it."""
    # Relative imports count from the package that holds the file.
    parts = name.split(".") if name else []
    package = parts if path.name == "__init__.py" else parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
            targets = [target[1:] for target in targets if target[0] == "hindsight_exec"]
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = package[: len(package) - node.level + 1] + base
            elif base[:1] == ["hindsight_exec"]:
                base = base[1:]
            else:
                continue
            targets = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for target in targets:
            # `from room import module` names a module, `from module import name` does not.
            while ".".join(target) not in known:
                target.pop()
            yield ".".join(target)


def graph(package: Path) -> dict[str, set[str]]:
    """What each module imports. The package's own `__init__` and `__main__` are entry points."""
    known = modules(package)
    return {
        name: set(imports(path, name, known)) - {"", name}
        for name, path in known.items()
        if name not in ("", "__main__")
    }


def room(module: str) -> str:
    return module.partition(".")[0]


def upward(imported: dict[str, set[str]]) -> set[tuple[str, str]]:
    """The imports that do not point down."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    return {
        (module, target)
        for module, targets in imported.items()
        for target in targets
        if room(module) != room(target)
        and floor[module.partition(".")[0]] <= floor[target.partition(".")[0]]
    }


def circles(imported: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """The groups of modules that import each other, directly or by way of others."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        to_do = [start]
        while to_do:
            for target in imported.get(to_do.pop(), ()):
                if target not in found:
                    found.add(target)
                    to_do.append(target)
        return found

    below = {module: reached(module) for module in imported}
    groups = {
        tuple(sorted(other for other in below[module] if module in below.get(other, ())))
        for module in imported
    }
    return sorted(filter(None, groups))


def too_long(package: Path) -> set[str]:
    return {
        name
        for name, path in modules(package).items()
        if len(path.read_text(encoding="utf-8").splitlines())
        > LONGEST.get(room(name), LONGEST_ELSEWHERE)
    }


def test_imports_point_down() -> None:
    """A module imports only from its own room and from the floors below."""
    assert upward(graph(PACKAGE)) == UPWARD


def test_no_modules_import_each_other() -> None:
    """There is no circle of imports, neither between rooms nor within one."""
    assert circles(graph(PACKAGE)) == CIRCLES


def test_files_are_short() -> None:
    """No file of the product passes 400 lines, and none of the executor 250."""
    assert too_long(PACKAGE) == TOO_LONG


@pytest.mark.parametrize(
    "line",
    [
        "from hindsight_exec.cli.console import say",
        "from hindsight_exec.cli import console",
        "import hindsight_exec.cli.console",
        "from ..cli.console import say",
        "from ..cli import console as seen",
        "if TYPE_CHECKING:\n    from ..cli.console import say",
        "def late():\n    from hindsight_exec.cli.console import say",
        "try:\n    from ..cli import console\nexcept ImportError:\n    pass",
    ],
)
def test_an_import_that_is_turned_around_is_found(tmp_path: Path, line: str) -> None:
    """One import that points up is named, in whatever form and place it stands."""
    package = tmp_path / "hindsight_exec"
    for name in ("client/api.py", "cli/console.py", "cli/main.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("from __future__ import annotations\n")
    for name in ("__init__.py", "client/__init__.py", "cli/__init__.py"):
        (package / name).write_text("")
    (package / "cli/main.py").write_text("from ..client.api import get\nfrom . import console\n")
    assert upward(graph(package)) == set()
    assert circles(graph(package)) == []
    (package / "client/api.py").write_text(f"{line}\n")
    assert upward(graph(package)) == {("client.api", "cli.console")}
    (package / "cli/console.py").write_text("from hindsight_exec.client import api\n")
    assert circles(graph(package)) == [("cli.console", "client.api")]


def test_rooms_of_one_floor_do_not_know_each_other() -> None:
    """An import between two rooms of one floor points up, too."""
    assert upward({"outbox.store": {"client.api"}}) == {("outbox.store", "client.api")}


def test_tests_have_names_of_their_own() -> None:
    """No two test files outside packages share a name: only one of them could be imported."""
    here = Path(__file__).parent
    files = [*here.glob("*.py"), *here.glob("*/*.py")]
    names = [
        path.name
        for path in files
        if not (path.parent / "__init__.py").exists() and path.name != "conftest.py"
    ]
    assert [name for name in names if names.count(name) > 1] == []
