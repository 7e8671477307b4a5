"""``hindsight-exec hermes install | uninstall | status``: the plugin's folder in Hermes.

A record beside the files says what was written and changed. Nothing else is ever
overwritten or removed, and everything can be undone.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

from hindsight_exec.errors import ConfigError
from hindsight_exec.settings.config import Settings
from hindsight_exec.settings.files import read_bytes, write_file
from hindsight_exec.settings.folders import absolute, default_hermes_home

from . import setup
from .eviction import eviction
from .plugin_folder import NAME, contents
from .yaml_edit import disabled_plugins, provider_of, with_provider, without_disabled

__all__ = ["add_arguments", "main"]

# The provider that Hermes 0.19 bundles, and the catalog's plugin of later versions.
BUNDLED = "hindsight"
_RECORD = "installed.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the commands to the parser of ``hindsight-exec hermes``."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--home",
        type=Path,
        metavar="DIR",
        help="Hermes' folder (default: HERMES_HOME, else ~/.hermes)",
    )
    common.add_argument("--json", action="store_true", help="print JSON")
    changing = argparse.ArgumentParser(add_help=False)
    changing.add_argument("--yes", action="store_true", help="answer yes to every question")
    changing.add_argument("--dry-run", action="store_true", help="show the changes, make none")

    commands = parser.add_subparsers(dest="hermes_command", metavar="COMMAND", required=True)
    install = commands.add_parser(
        "install",
        parents=[common, changing],
        help="install the plugin, and offer to make it the provider",
        description="Write the plugin's folder into Hermes' own, and offer to make it the memory"
        " provider. The rest of the configuration stays. If an update of Hermes switched the"
        " plugin off, switch it on again.",
        epilog=_examples("install", "install --from-bundled --dry-run"),
    )
    install.add_argument(
        "--from-bundled",
        action="store_true",
        help="take over from the Hindsight provider of Hermes, bundled or from the catalog;"
        " configuration, bank and history stay",
    )
    install.add_argument(
        "--no-activate", action="store_true", help="leave memory.provider as it is"
    )
    commands.add_parser(
        "uninstall",
        parents=[common, changing],
        help="undo what install did; no turn is removed",
        description="Undo what install did. Turns that wait stay where they are.",
        epilog=_examples("uninstall", "uninstall --dry-run"),
    )
    commands.add_parser(
        "status",
        parents=[common],
        help="show what is installed, active, and waiting",
        description="The exit status is 0 when the plugin is installed and is the memory provider.",
        epilog=_examples("status", "status --json"),
    )


def _examples(*commands: str) -> str:
    return "".join(["examples:\n", *(f"  hindsight-exec hermes {one}\n" for one in commands)])


def main(args: argparse.Namespace) -> int:
    """Run a command and return the exit status: 0 done, 1 it could not be done."""
    home = absolute(args.home or default_hermes_home(os.environ))
    try:
        if args.hermes_command == "status":
            return _status(home, as_json=args.json)
        if not home.is_dir():
            raise ConfigError(f"no folder {home}; start Hermes once, or name its folder by --home")
        if args.hermes_command == "uninstall":
            return _carry_out(_uninstall(home), home, args)
        if not args.from_bundled:
            plan = _install(home, args, activate=_wants_it_active(home, args))
            return _carry_out(plan, home, args)
        plan = _install(home, args, activate=True)
        if not (args.yes or args.dry_run or not plan.changes or _agreed(plan)):
            print("nothing was changed", file=sys.stderr)
            return 1
        return _carry_out(plan, home, args)
    except (ConfigError, OSError) as error:
        print(f"hindsight-exec: {error}", file=sys.stderr)
        return 1


# -- what is to be done ------------------------------------------------------------------


@dataclass
class _Plan:
    """Files as they shall be (None: gone), and what to say about it."""

    files: Dict[Path, Optional[bytes]] = field(default_factory=dict)
    changes: List[str] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    panel: Optional[bool] = None  # whether the desktop panel's file is linked, or no more
    remove: List[Path] = field(default_factory=list)  # folders that go if nothing is left in them


def _install(home: Path, args: argparse.Namespace, *, activate: bool) -> _Plan:
    plan = _Plan(panel=True)
    folder = home / "plugins" / NAME
    record = _read_record(folder)
    before = json.dumps(record)
    if _is_clone(folder):
        plan.notes.append(
            f"{folder} is a clone and stays; 'hermes plugins update {NAME}' renews it"
        )
    else:
        _write_folder(plan, folder, record)
    text, settings = _read_config(home), Settings.load(home)
    if args.from_bundled:
        active = provider_of(text)
        if active not in (BUNDLED, NAME):
            raise ConfigError(
                f"memory.provider is {active or 'not set'}, not {BUNDLED}: leave out --from-bundled"
            )
        _keep_bank(plan, record, home, settings)
        if (home / "plugins" / BUNDLED).is_dir():
            plan.notes.append(
                f"the catalog's plugin stays in {home / 'plugins' / BUNDLED}, unused;"
                f" 'hermes plugins remove {BUNDLED}' removes it"
            )
    repair = "provider_before" in record and not args.no_activate
    _activate(plan, record, home, text, activate=activate, repair=repair)
    if plan.files or before != json.dumps(record):
        plan.files[folder / _RECORD] = json.dumps(record, indent=2).encode() + b"\n"

    where = f"bank {settings.bank_id_template or settings.bank_id!r} at {settings.api_url or 'no server'}"
    plan.notes.append(f"configuration: {settings.source or 'the environment'} ({where})")
    problem = setup.missing(settings)
    if problem:
        plan.notes.append(f"not ready yet: {problem}")
    elif importlib.util.find_spec("hermes_cli") is None or setup.missing_package():
        plan.notes.append(f"'hermes memory setup {NAME}' installs what it needs beside Hermes")
    return plan


def _write_folder(plan: _Plan, folder: Path, record: Dict[str, Any]) -> None:
    """Plan the folder's files as they are in this version."""
    written: Dict[str, str] = record.setdefault("files", {})
    files = contents()
    exists = folder.is_dir()
    for name in (*files, *(written.keys() - files.keys())):
        path, content = folder / name, files.get(name)
        found = path.read_bytes() if path.is_file() else None
        if found == content:
            continue
        if found is not None and _digest(found) != written.get(name):
            if content is None:
                continue  # the user changed what this version no longer has
            raise ConfigError(
                f"{path} was not written by this command, or was changed since: move it away"
            )
        plan.files[path] = content
    if plan.files:
        plan.changes.append(f"{'renew' if exists else 'write'} {folder} ({len(plan.files)} files)")
    record["files"] = {name: _digest(content) for name, content in files.items()}


def _activate(
    plan: _Plan, record: Dict[str, Any], home: Path, text: str, *, activate: bool, repair: bool
) -> None:
    """Plan what makes the plugin the provider, or brings it back after an update of Hermes."""
    config = home / "config.yaml"
    active, edited = provider_of(text), text
    evicted = eviction(home)
    if evicted is not None:
        plan.notes.append(evicted.found)
    wanted = activate or (evicted is not None and repair)
    if active != NAME and not wanted:
        plan.notes.append(
            f"memory.provider is {active or 'not set'}; to use this one:"
            f" hermes config set memory.provider {NAME}"
        )
    elif active != NAME:
        if evicted is None:
            record.setdefault("provider_before", active)
        edited = with_provider(edited, NAME)
        plan.changes.append(f"set memory.provider in {config}: {active or '(none)'} -> {NAME}")
    if NAME in disabled_plugins(text) and (wanted or active == NAME):
        edited = without_disabled(edited, NAME)
        plan.changes.append(f"take {NAME} out of plugins.disabled in {config}")
    if edited != text:
        plan.files[config] = edited.encode()


def _keep_bank(plan: _Plan, record: Dict[str, Any], home: Path, settings: Settings) -> None:
    """The bundled provider passes over HINDSIGHT_BANK_ID where there is a config.json; we do not."""
    if settings.source is None or settings.unusable:
        return
    default = Settings.load(home, {**os.environ, "HINDSIGHT_BANK_ID": ""})
    without = Settings.bank_id
    if settings.bank_id == without or default.bank_id != without:
        return
    raw = setup.read_config(settings.source)
    if raw.get("bank_id") or raw.get("bankId"):
        return
    plan.files[settings.source] = setup.config_bytes({**raw, "bank_id": without})
    record["bank_added_to"] = str(settings.source)
    plan.changes.append(
        f"name bank_id {without!r} in {settings.source}: the bundled provider used it,"
        f" in spite of HINDSIGHT_BANK_ID={settings.bank_id}"
    )


def _uninstall(home: Path) -> _Plan:
    plan = _Plan(panel=False)
    folder = home / "plugins" / NAME
    record = _read_record(folder)
    if not record:
        plan.notes.append(f"{folder} was not installed by this command")
    for name, digest in record.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            continue
        if _digest(path.read_bytes()) != digest:
            plan.notes.append(f"{path} was changed since and stays")
            continue
        plan.files[path] = None
    if plan.files:
        plan.changes.append(f"remove {folder} ({len(plan.files)} files)")
    config, text = home / "config.yaml", _read_config(home)
    if "provider_before" in record and provider_of(text) == NAME:
        before = record["provider_before"]
        if text == with_provider("", NAME) and not before:
            plan.files[config] = None  # there was none
            plan.changes.append(f"remove {config}, which holds nothing else")
        else:
            plan.files[config] = with_provider(text, before).encode()
            plan.changes.append(f"set memory.provider in {config}: {NAME} -> {before or '(none)'}")
    source = Path(record.get("bank_added_to", os.devnull))
    if "bank_added_to" in record and source.is_file():
        values = setup.read_config(source)
        if values.pop("bank_id", None) == Settings.bank_id:
            plan.files[source] = setup.config_bytes(values)
            plan.changes.append(f"take bank_id out of {source} again")
    if record:
        plan.files[folder / _RECORD] = None
        parents = {(folder / name).parent for name in record.get("files", ())}
        plan.remove = [*sorted(parents - {folder}, reverse=True), folder]
        plan.notes.append(f"turns that wait stay in {setup.state_of(home)}")
    return plan


def _carry_out(plan: _Plan, home: Path, args: argparse.Namespace) -> int:
    if not args.dry_run:
        for path, content in plan.files.items():
            if content is not None:
                write_file(path, content)
            elif path.exists():
                path.unlink()
        for folder in plan.remove:
            _remove_empty(folder)
        (setup.link_for_panel if plan.panel else setup.unlink_for_panel)(home)
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
    active = provider_of(_read_config(home))
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
    files = contents()
    if not written:
        installed = "as a clone" if _is_clone(folder) else "no"
    elif any(not (folder / name).is_file() for name in written):
        installed = "incomplete: run 'hindsight-exec hermes install'"
    elif any(read_bytes(folder / name) != content for name, content in files.items()):
        installed = "of another version, or changed: run 'hindsight-exec hermes install'"
    else:
        installed = "yes"
    active = provider_of(_read_config(home))
    evicted = eviction(home)
    shown = {
        "hermes": str(home),
        "installed": installed,
        "memory.provider": active or "(none)",
        **({"switched off": f"{evicted.found}; {evicted.remedy}"} if evicted else {}),
        **setup.status(Settings.load(home), home),
    }
    if as_json:
        print(json.dumps(shown))
    else:
        for name, value in shown.items():
            print(f"{name}: {value}")
    return 0 if installed in ("yes", "as a clone") and active == NAME and not evicted else 1


# -- files ---------------------------------------------------------------------------------


def _read_config(home: Path) -> str:
    path = home / "config.yaml"
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: correct it first") from error


def _is_clone(folder: Path) -> bool:
    return (folder / ".git").exists() and (folder / "plugin.yaml").is_file()


def _read_record(folder: Path) -> Dict[str, Any]:
    try:
        record = json.loads(read_bytes(folder / _RECORD) or b"{}")
    except ValueError:
        record = {}
    return record if isinstance(record, dict) else {}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _remove_empty(folder: Path) -> None:
    """Remove a folder that is empty but for what Python made of the files that were in it."""
    cache = folder / "__pycache__"
    for path in cache.glob("*.pyc"):
        path.unlink()
    for path in (cache, folder):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
