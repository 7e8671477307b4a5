"""What runs a command every few minutes: systemd's user timers, launchd, or cron."""

from __future__ import annotations

import os
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Sequence, Union

from hindsight_exec.errors import ConfigError, HindsightExecError
from hindsight_exec.settings.folders import absolute

_NAME = "hindsight-exec-flush"
# Ends our line in a table of cron's.
_MARK = "# hindsight-exec service"


# Each class is a scheduler for the user who calls. `show` returns what `install` writes, as text;
# `install` and `uninstall` return what the user has to know.


class Systemd:
    """A timer of the user's own service manager. With lingering it runs without a login, too."""

    name = "systemd"

    @staticmethod
    def is_there() -> bool:
        return _ends_well("systemctl", "--user", "show-environment")

    @staticmethod
    def _folder() -> Path:
        return config_folder() / "systemd" / "user"

    def _units(self, command: Sequence[str], every: float) -> dict[str, str]:
        # Its own quoting: a percent sign begins a specifier, a dollar sign a variable.
        words = (re.sub(r'(["\\])', r"\\\1", word) for word in command)
        start = " ".join(f'"{word.replace("%", "%%").replace("$", "$$")}"' for word in words)
        about = "Deliver the turns that ended processes left to Hindsight"
        return {
            f"{_NAME}.service": f"[Unit]\nDescription={about}\n\n"
            f"[Service]\nType=oneshot\nNice=10\nExecStart={start}\n",
            f"{_NAME}.timer": f"[Unit]\nDescription={about}, every {every:.0f} seconds\n\n"
            f"[Timer]\nOnStartupSec=1min\nOnUnitInactiveSec={every:.0f}s\n\n"
            "[Install]\nWantedBy=timers.target\n",
        }

    def show(self, command: Sequence[str], every: float) -> str:
        units = self._units(command, every).items()
        return "\n".join(f"# {self._folder() / name}\n{text}" for name, text in units)

    def install(self, command: Sequence[str], every: float) -> list[str]:
        self._folder().mkdir(parents=True, exist_ok=True)
        for name, text in self._units(command, every).items():
            (self._folder() / name).write_text(text, encoding="utf-8")
        _run("systemctl", "--user", "daemon-reload")
        _run("systemctl", "--user", "enable", "--now", f"{_NAME}.timer")
        if _ends_well("loginctl", "enable-linger"):
            return []
        return [
            "the timer stops when you log out; to keep it running, ask an administrator for"
            f" 'loginctl enable-linger {os.environ.get('USER', '')}'".rstrip()
        ]

    def uninstall(self) -> list[str]:
        _ends_well("systemctl", "--user", "disable", "--now", f"{_NAME}.timer")
        for name in self._units([], 0):
            (self._folder() / name).unlink(missing_ok=True)
        _ends_well("systemctl", "--user", "daemon-reload")
        return []

    def is_installed(self) -> bool:
        return _ends_well("systemctl", "--user", "is-active", "--quiet", f"{_NAME}.timer")


class Launchd:
    """A launch agent of macOS."""

    name = "launchd"

    @staticmethod
    def is_there() -> bool:
        return sys.platform == "darwin"

    @staticmethod
    def _file() -> Path:
        return absolute("~/Library/LaunchAgents") / f"{_NAME}.plist"

    @staticmethod
    def _domain() -> str:
        return f"gui/{absolute('~').stat().st_uid}"

    def show(self, command: Sequence[str], every: float) -> str:
        agent = {
            "Label": _NAME,
            "ProgramArguments": list(command),
            "StartInterval": int(every),
            "RunAtLoad": True,
            "ProcessType": "Background",
        }
        return plistlib.dumps(agent).decode()

    def install(self, command: Sequence[str], every: float) -> list[str]:
        self._file().parent.mkdir(parents=True, exist_ok=True)
        self._file().write_text(self.show(command, every), encoding="utf-8")
        _ends_well("launchctl", "bootout", f"{self._domain()}/{_NAME}")
        _run("launchctl", "bootstrap", self._domain(), str(self._file()))
        return []

    def uninstall(self) -> list[str]:
        _ends_well("launchctl", "bootout", f"{self._domain()}/{_NAME}")
        self._file().unlink(missing_ok=True)
        return []

    def is_installed(self) -> bool:
        return _ends_well("launchctl", "print", f"{self._domain()}/{_NAME}")


class Cron:
    """A line in the user's table of cron's."""

    name = "cron"

    @staticmethod
    def is_there() -> bool:
        return shutil.which("crontab") is not None

    def show(self, command: Sequence[str], every: float) -> str:
        minutes = every / 60
        hours = minutes / 60
        if minutes in (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30):
            when = f"*/{minutes:.0f} * * * *"
        elif hours in (1, 2, 3, 4, 6, 8, 12):
            when = f"0 */{hours:.0f} * * *"
        elif hours == 24:
            when = "0 0 * * *"
        else:
            raise ConfigError(
                f"cron cannot run anything every {every:g} seconds: choose an interval that divides"
                " an hour or a day, such as 15min or 2h"
            )
        # A percent sign ends a command of cron's. Its output would be mailed: each run notes it.
        line = " ".join(map(shlex.quote, command)).replace("%", r"\%")
        return f"{when} {line} >/dev/null 2>&1 {_MARK}"

    def install(self, command: Sequence[str], every: float) -> list[str]:
        self._write([*self._others(), self.show(command, every)])
        return ["cron must run on this machine; 'service status' tells whether it does"]

    def uninstall(self) -> list[str]:
        if self.is_installed():
            self._write(self._others())
        return []

    def is_installed(self) -> bool:
        return any(line.endswith(_MARK) for line in self._lines())

    def _lines(self) -> list[str]:
        """The table as it is; none without a table, or without cron.

        Raises:
            HindsightExecError: It cannot be read. Taken for empty, it would be overwritten.
        """
        try:
            return _run("crontab", "-l").splitlines()
        except HindsightExecError as error:
            if re.search("no crontab for|No such file or directory", str(error)):
                return []
            raise

    def _others(self) -> list[str]:
        return [line for line in self._lines() if not line.endswith(_MARK)]

    def _write(self, lines: list[str]) -> None:
        _run("crontab", "-", given="".join(f"{line}\n" for line in lines))


Scheduler = Union[Systemd, Launchd, Cron]
_ALL: tuple[type[Scheduler], ...] = (Systemd, Launchd, Cron)


def choose(name: str | None) -> Scheduler:
    """The scheduler of that name, else the first that is there."""
    for kind in _ALL:
        if kind.name == name or (name is None and kind.is_there()):
            return kind()
    raise ConfigError("neither systemd, launchd nor cron is available; run 'flush' by other means")


def config_folder() -> Path:
    """Where programs of the user keep their configuration."""
    base = Path(os.environ.get("XDG_CONFIG_HOME", "").strip())
    return base if base.is_absolute() else absolute("~/.config")


def _ends_well(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603
    except OSError:
        return False


def _run(*command: str, given: str = "") -> str:
    """Return what one of the system's programs prints.

    Raises:
        HindsightExecError: It failed, in its own words, or there is none.
    """
    try:
        done = subprocess.run(  # noqa: S603
            command,
            input=given,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # a user's table keeps its bytes
            check=False,
        )
    except OSError as error:
        raise HindsightExecError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode:
        words = (done.stderr or done.stdout).strip()
        raise HindsightExecError(f"{shlex.join(command)} failed: {words}")
    return done.stdout
