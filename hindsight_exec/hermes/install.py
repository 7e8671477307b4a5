"""``hindsight-exec hermes install | uninstall | status``: the plugin's folder in Hermes.

What is written is a shim of a few lines: the code stays in the package. A
record of what was written is kept beside it, so that nothing else is ever
overwritten or removed, and everything can be undone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

from hindsight_exec import __version__
from hindsight_exec.errors import ConfigError
from hindsight_exec.hermes import setup
from hindsight_exec.settings.config import Settings
from hindsight_exec.settings.folders import default_hermes_home

from .yaml_edit import provider_of, with_provider

__all__ = ["add_arguments", "main"]

NAME = "hindsight_exec"
BUNDLED = "hindsight"
_RECORD = "installed.json"

_HEADER = "# Written by 'hindsight-exec hermes install', and removed by 'hindsight-exec hermes uninstall'.\n"
FILES: Dict[str, str] = {
    "__init__.py": _HEADER
    + '''"""Hindsight memory that never loses a turn; the code is in the package hindsight-exec."""

try:
    from hindsight_exec.hermes import register  # calls ctx.register_memory_provider
except ImportError as error:
    import logging
    import sys

    _WHY = f"hindsight-exec cannot be imported ({error}): install it with {sys.executable} -m pip"

    def register(ctx):
        logging.getLogger("hindsight_exec").error("memory is off: %s", _WHY)
''',
    "plugin.yaml": _HEADER
    + f"""name: {NAME}
version: {__version__}
description: "Hindsight memory that never loses a turn."
pip_dependencies:
  - hindsight-exec
""",
    "config_schema.py": _HEADER + "from hindsight_exec.hermes.config_schema import CONFIG_SCHEMA\n",
    "cli.py": _HEADER + f"from hindsight_exec.hermes.cli import {NAME}_command, register_cli\n",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the commands to the parser of ``hindsight-exec hermes``."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--home",
        type=Path,
        metavar="DIR",
        help="Hermes' folder (default: HERMES_HOME, else ~/.hermes)",
    )
    common.add_argument("--json", action="store_true", help="for scripts")
    changing = argparse.ArgumentParser(add_help=False)
    changing.add_argument("--yes", action="store_true", help="do not ask: yes to all")
    changing.add_argument("--dry-run", action="store_true", help="show the changes, make none")

    commands = parser.add_subparsers(dest="hermes_command", metavar="COMMAND", required=True)
    install = commands.add_parser(
        "install",
        parents=[common, changing],
        help="install the plugin, and offer to make it the provider",
        description="Writes the plugin's folder into Hermes' own, and offers to make it the memory"
        " provider. All else of the configuration stays.",
        epilog=_examples("install", "install --from-bundled --dry-run"),
    )
    install.add_argument(
        "--from-bundled",
        action="store_true",
        help="take over from Hermes' own Hindsight provider, keeping configuration and bank",
    )
    install.add_argument(
        "--no-activate", action="store_true", help="leave memory.provider as it is"
    )
    commands.add_parser(
        "uninstall",
        parents=[common, changing],
        help="undo what install did; no turn is removed",
        description="Undoes what install did. Turns that wait stay where they are.",
        epilog=_examples("uninstall", "uninstall --dry-run"),
    )
    commands.add_parser(
        "status",
        parents=[common],
        help="what is installed, active, and waiting",
        description="The exit status is 0 when the plugin is installed and is the memory provider.",
        epilog=_examples("status", "status --json"),
    )


def _examples(*commands: str) -> str:
    return "".join(["examples:\n", *(f"  hindsight-exec hermes {one}\n" for one in commands)])


def main(args: argparse.Namespace) -> int:
    """Runs a command. Returns the exit status: 0 done, 1 it could not be done."""
    home = Path(args.home or default_hermes_home(os.environ)).expanduser().absolute()
    if args.hermes_command == "status":
        return _status(home, as_json=args.json)
    try:
        if not home.is_dir():
            raise ConfigError(
                f"{home} is no folder: start Hermes once, or name its folder by --home"
            )
        if args.hermes_command == "uninstall":
            return _carry_out(_uninstall(home), args)
        if not args.from_bundled:
            return _carry_out(_install(home, args, activate=_wants_it_active(home, args)), args)
        plan = _install(home, args, activate=True)
        if not (args.yes or args.dry_run or not plan.changes or _agreed(plan)):
            print("nothing was changed", file=sys.stderr)
            return 1
        return _carry_out(plan, args)
    except (ConfigError, OSError) as error:
        print(f"hindsight-exec: {error}", file=sys.stderr)
        return 1


# -- what is to be done ------------------------------------------------------------------


@dataclass
class _Plan:
    """Files as they shall be (None: gone), and what to tell about it."""

    files: Dict[Path, Optional[str]] = field(default_factory=dict)
    changes: List[str] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    remove: Optional[Path] = None  # a folder that is removed if empty then


def _install(home: Path, args: argparse.Namespace, *, activate: bool) -> _Plan:
    plan = _Plan()
    folder = home / "plugins" / NAME
    record = _read_record(folder)
    written = record.setdefault("files", {})
    for name, text in FILES.items():
        path = folder / name
        there = _read(path)
        if there == text:
            continue
        if there is not None and _digest(there) != written.get(name):
            raise ConfigError(
                f"{path} was not written by this command, or was changed: move it away"
            )
        plan.files[path] = text
        plan.changes.append(f"{'write' if there is None else 'renew'} {path}")
    record["files"] = {name: _digest(text) for name, text in FILES.items()}

    config = home / "config.yaml"
    text = _read(config) or ""
    active = provider_of(text)
    settings = Settings.load(home)
    if args.from_bundled:
        with_provider(text, NAME)  # who cannot read the file does not know what it names
        if active not in (BUNDLED, NAME):
            raise ConfigError(
                f"memory.provider is {active or 'not set'}, not {BUNDLED}: leave out --from-bundled"
            )
        _keep_bank(plan, record, home, settings)
    if active != NAME and not activate:
        plan.notes.append(
            f"memory.provider is {active or 'not set'}; to use this one:"
            f" hermes config set memory.provider {NAME}"
        )
    elif active != NAME:
        record.setdefault("provider_before", active)
        plan.files[config] = with_provider(text, NAME)
        plan.changes.append(f"set memory.provider in {config}: {active or '(none)'} -> {NAME}")
    if plan.files or _read_record(folder) != record:
        plan.files[folder / _RECORD] = json.dumps(record, indent=2) + "\n"

    where = f"bank {settings.bank_id_template or settings.bank_id!r} at {settings.api_url or 'no server'}"
    plan.notes.append(f"configuration: {settings.source or 'the environment'} ({where})")
    problem = setup.missing(settings)
    if problem:
        plan.notes.append(f"not ready yet: {problem}")
    return plan


def _keep_bank(plan: _Plan, record: Dict[str, Any], home: Path, settings: Settings) -> None:
    """The bundled provider passes over HINDSIGHT_BANK_ID where there is a config.json; we do not."""
    if settings.source is None or settings.unusable:
        return
    default = Settings.load(home, {**os.environ, "HINDSIGHT_BANK_ID": ""})
    without = Settings.bank_id
    if settings.bank_id == without or default.bank_id != without:
        return
    raw = json.loads(settings.source.read_text(encoding="utf-8-sig"))
    if raw.get("bank_id") or raw.get("bankId"):
        return
    text = json.dumps({**raw, "bank_id": without}, indent=2, ensure_ascii=False) + "\n"
    plan.files[settings.source] = text
    record["bank_added_to"] = str(settings.source)
    plan.changes.append(
        f"name bank_id {without!r} in {settings.source}: the bundled provider used it,"
        f" in spite of HINDSIGHT_BANK_ID={settings.bank_id}"
    )


def _uninstall(home: Path) -> _Plan:
    plan = _Plan()
    folder = home / "plugins" / NAME
    record = _read_record(folder)
    if not record:
        plan.notes.append(f"nothing of ours is in {folder}")
    for name, digest in record.get("files", {}).items():
        path = folder / name
        there = _read(path)
        if there is None:
            continue
        if _digest(there) != digest:
            plan.notes.append(f"{path} was changed by someone and stays")
            continue
        plan.files[path] = None
        plan.changes.append(f"remove {path}")
    config = home / "config.yaml"
    text = _read(config) or ""
    if "provider_before" in record and provider_of(text) == NAME:
        before = record["provider_before"]
        if text == with_provider("", NAME) and not before:
            plan.files[config] = None  # there was none
            plan.changes.append(f"remove {config}, which holds nothing else")
        else:
            plan.files[config] = with_provider(text, before)
            plan.changes.append(f"set memory.provider in {config}: {NAME} -> {before or '(none)'}")
    source = Path(record.get("bank_added_to", os.devnull))
    raw = _read(source) if "bank_added_to" in record else None
    if raw is not None:
        values = json.loads(raw)
        if values.pop("bank_id", None) == Settings.bank_id:
            plan.files[source] = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
            plan.changes.append(f"take bank_id out of {source} again")
    if record:
        plan.files[folder / _RECORD] = None
        plan.remove = folder
        plan.notes.append(f"turns that wait stay in {setup.state_of(home)}")
    return plan


def _carry_out(plan: _Plan, args: argparse.Namespace) -> int:
    if not args.dry_run:
        for path, text in plan.files.items():
            if text is not None:
                setup.write_private(path, text)
            elif path.exists():
                path.unlink()
        if plan.remove is not None:
            _remove_if_empty(plan.remove)
    if args.json:
        shown = {"changed": not args.dry_run, "changes": plan.changes, "notes": plan.notes}
        print(json.dumps(shown))
    else:
        for line in plan.changes or ["nothing to change"]:
            print(f"would {line}" if args.dry_run and plan.changes else line)
        for line in plan.notes:
            print(line)
    return 0


def _wants_it_active(home: Path, args: argparse.Namespace) -> bool:
    if args.no_activate:
        return False
    active = provider_of(_read(home / "config.yaml") or "")
    if args.yes or args.dry_run or active == NAME or not sys.stdin.isatty():
        return bool(args.yes or args.dry_run)
    return _answered(f"Use it as the memory provider, instead of {active or 'none'}?")


def _agreed(plan: _Plan) -> bool:
    for line in [*plan.changes, *plan.notes]:
        print(line, file=sys.stderr)
    if sys.stdin.isatty():
        return _answered("Make these changes?")
    print("Say --yes to make these changes.", file=sys.stderr)
    return False


def _answered(question: str) -> bool:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _status(home: Path, *, as_json: bool) -> int:
    folder = home / "plugins" / NAME
    written = _read_record(folder).get("files", {})
    if not written:
        installed = "no"
    elif any(_read(folder / name) is None for name in FILES):
        installed = "incomplete: run 'hindsight-exec hermes install'"
    elif any(_read(folder / name) != text for name, text in FILES.items()):
        installed = "of another version, or changed: run 'hindsight-exec hermes install'"
    else:
        installed = "yes"
    active = provider_of(_read(home / "config.yaml") or "")
    shown = {
        "hermes": str(home),
        "installed": installed,
        "memory.provider": active or "(none)",
        **setup.status(Settings.load(home), home),
    }
    if as_json:
        print(json.dumps(shown))
    else:
        for name, value in shown.items():
            print(f"{name}: {value}")
    return 0 if installed == "yes" and active == NAME else 1


# -- files ---------------------------------------------------------------------------------


def _read(path: Path) -> Optional[str]:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError:
        return ""  # not ours, whatever it is


def _read_record(folder: Path) -> Dict[str, Any]:
    try:
        record = json.loads(_read(folder / _RECORD) or "{}")
    except ValueError:
        record = {}
    return record if isinstance(record, dict) else {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _remove_if_empty(folder: Path) -> None:
    cache = folder / "__pycache__"  # Python's, of the files that were ours
    if cache.is_dir():
        for path in cache.glob("*.pyc"):
            path.unlink()
        if not any(cache.iterdir()):
            cache.rmdir()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
