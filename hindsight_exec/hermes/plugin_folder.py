"""What the folder of a Hermes plugin holds: a few files that Hermes loads, and the package.

The package is in the folder because Hermes 0.22 installs what a plugin depends on
anew with every update, and from registries only: what pip put beside Hermes is gone
then. The files are those at the top of the repository, so that a clone of it is such
a folder, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict

import hindsight_exec

__all__ = ["FILES", "NAME", "contents"]

#: The plugin, its folder, and the provider in Hermes' configuration.
NAME = "hindsight_exec"

_FIND_PACKAGE = """\
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("hindsight_exec") is None:
    sys.path.append(str(Path(__file__).resolve().parent))
"""

FILES: Dict[str, str] = {
    "__init__.py": '''\
"""Makes this folder a plugin of Hermes, which loads it and calls `register`.

The code is the package `hindsight_exec`: the installed one, else the one in this folder.
"""

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

if __name__ == "hindsight_exec":
    # Not Hermes, but a program that found a folder of this name in front of the package: it gets
    # the package.
    spec = spec_from_file_location(__name__, FOLDER / __name__ / "__init__.py")
    sys.modules[__name__] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[__name__])
elif find_spec("hindsight_exec") is None:
    sys.path.append(str(FOLDER))


def register(ctx):
    """Hand Hermes a memory provider."""
    from hindsight_exec.hermes import HindsightMemoryProvider  # noqa: PLC0415 - found only now

    # Hermes 0.19 also registers memory plugins as general ones, whose ctx takes no provider.
    if hasattr(ctx, "register_memory_provider"):
        ctx.register_memory_provider(HindsightMemoryProvider())
''',
    "cli.py": f'''\
"""`hermes hindsight_exec ...`: Hermes loads this file alone, by its path. See `__init__.py`."""

{_FIND_PACKAGE}
from hindsight_exec.hermes.cli import hindsight_exec_command, register_cli

__all__ = ["hindsight_exec_command", "register_cli"]
''',
    "config_schema.py": f'''\
"""The settings in Hermes' desktop: Hermes loads this file alone, by its path. See `__init__.py`."""

{_FIND_PACKAGE}
from hindsight_exec.hermes.config_schema import CONFIG_SCHEMA

__all__ = ["CONFIG_SCHEMA"]
''',
    "plugin.yaml": f"""\
name: {NAME}
version: {hindsight_exec.__version__}
description: "Hindsight memory that never loses a turn."
requires_hermes: ">=0.19"
pip_dependencies:
  - aiohttp>=3.9.1,<4
""",
}


def contents() -> Dict[str, bytes]:
    """Return all files by their paths within the folder, the package as it runs here."""
    files = {name: text.encode() for name, text in FILES.items()}
    package = Path(hindsight_exec.__file__).parent
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files[f"{NAME}/{path.relative_to(package).as_posix()}"] = path.read_bytes()
    return files
