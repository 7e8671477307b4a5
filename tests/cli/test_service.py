"""Scheduled runs: what is registered runs in an environment as empty as the scheduler's."""

from __future__ import annotations

import json
import os
import plistlib
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator

import pytest
from running import Cli
from serving import Serving, stored, texts

import hindsight_exec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="POSIX schedulers"),
]

# A stand-in for cron's program: its table is a file.
CRONTAB = """#!/bin/sh
case $1 in
-l) cat "$TABLE" 2>/dev/null || { echo "no crontab for me" >&2; exit 1; } ;;
-) cat >"$TABLE" ;;
esac
"""
# A stand-in for systemd's: it notes how it was called.
SYSTEMCTL = """#!/bin/sh
echo "$0 $*" >>"$CALLS"
"""
KEY = "sesame-key"
OTHERS = "# mine\n0 5 * * * true\n"


@pytest.fixture
def secured() -> Iterator[Serving]:
    serving = Serving(api_key=KEY)
    yield serving
    serving.close()


@pytest.fixture
def shell(cli: Cli, secured: Serving) -> Cli:
    """A shell whose variables name a server and its key, and where a killed process left turns."""
    tools = cli.folder / "tools"
    tools.mkdir()
    for name in ("crontab", "systemctl", "loginctl"):
        program = tools / name
        program.write_text(CRONTAB if name == "crontab" else SYSTEMCTL)
        program.chmod(0o755)
    cli.environ.update(
        PATH=f"{tools}:/usr/bin:/bin",
        TABLE=str(cli.folder / "table"),
        CALLS=str(cli.folder / "calls"),
        HINDSIGHT_API_URL=secured.url,
        HINDSIGHT_API_KEY=KEY,
        HINDSIGHT_BANK_ID="b",
        XDG_CONFIG_HOME="",
    )
    leave = (
        "import os, sys; from pathlib import Path; from hindsight_exec import RetainWriter, Settings\n"
        "writer = RetainWriter(Settings.load(), state=Path(sys.argv[1]))\n"
        "for number in range(3): writer.put([\n"
        "    {'role': 'user', 'content': f'User: {number} '},\n"
        "    {'role': 'assistant', 'content': f'Assistant: {number} '}], session='s')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", leave, str(cli.state)], env=cli.environ, check=False)
    assert cli("status", "--json").json["waiting"] == 3
    return cli


def run_as_cron(cli: Cli, line: str) -> int:
    """Run a command as cron does: with /bin/sh, at home, and hardly any variables."""
    home = cli.environ["HOME"]
    return subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=home,
        env={"HOME": home, "LOGNAME": "me", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        timeout=100,
        check=False,
    ).returncode


def config(cli: Cli) -> Path:
    return Path(cli.environ["HOME"]) / ".config" / "hindsight-exec" / "service.json"


def test_cron(shell: Cli, secured: Serving) -> None:
    """cron's line delivers without PATH and variables; other lines stay; uninstall undoes it."""
    table = Path(shell.environ["TABLE"])
    table.write_text(OTHERS)
    for every in ("10min", "5min"):  # the second replaces the first
        done = shell("service", "install", "--scheduler", "cron", "--every", every)
        assert done.status == 0, done.err
        assert KEY not in done.out + done.err
        assert "the API key of this shell was copied to" in done.err
    *others, line = table.read_text().splitlines()
    assert others == OTHERS.splitlines()
    assert stat.S_IMODE(config(shell).stat().st_mode) == 0o600
    assert "no run yet" in shell("service", "status").out

    minutes, command = line.split(" ", 5)[0], line.split(" ", 5)[5]
    assert minutes == "*/5"
    began = time.time()
    assert run_as_cron(shell, command) == 0
    assert began <= shell("service", "status", "--json").json["last_at"] <= time.time()
    assert stored(secured.url, key=KEY) == {"s": texts(range(3))}
    done = shell("service", "status")
    assert done.status == 0
    assert re.fullmatch(r"ok: cron runs it every 5 min; last run \d+ s ago\n", done.out)
    checks = {check["name"]: check for check in shell("doctor", "--json").json}
    assert checks["service"]["state"] == "ok"

    assert shell("service", "uninstall").status == 0
    assert table.read_text() == OTHERS
    assert list(config(shell).parent.iterdir()) == []
    assert shell("service", "status").status == 1


def test_a_table_that_cannot_be_read(shell: Cli) -> None:
    """A table that crontab fails to show is left alone, and its words are shown."""
    table, program = Path(shell.environ["TABLE"]), shell.folder / "tools" / "crontab"
    install = ("service", "install", "--scheduler", "cron")
    assert shell(*install).status == 0
    table.write_text(OTHERS + table.read_text())
    before = table.read_bytes()
    program.write_text(CRONTAB.replace("-l)", "-l) echo 'Input/output error' >&2; exit 1;;\n-L)"))
    for command in (install, ("service", "uninstall")):
        done = shell.one_line(*command)
        assert (done.status, "crontab -l failed: Input/output error" in done.err) == (1, True)
    assert table.read_bytes() == before
    done = shell("service", "status")
    assert (done.status, done.out) == (1, "crontab -l failed: Input/output error\n")
    program.unlink()
    shell.environ["PATH"] = str(program.parent)
    assert "cron has lost it" in shell("service", "status").out
    assert shell("service", "uninstall").status == 0


def test_a_table_in_another_encoding(shell: Cli) -> None:
    """Lines that are not UTF-8 keep their bytes."""
    table = Path(shell.environ["TABLE"])
    table.write_bytes("# Café\n".encode("latin-1"))
    assert shell("service", "install", "--scheduler", "cron").status == 0
    assert shell("doctor").out
    assert table.read_bytes().startswith("# Café\n".encode("latin-1"))
    assert shell("service", "uninstall").status == 0
    assert table.read_bytes() == "# Café\n".encode("latin-1")


def test_a_damaged_configuration(shell: Cli) -> None:
    """It counts as none, and another installation mends it."""
    assert shell("service", "install", "--scheduler", "cron").status == 0
    config(shell).write_text('{"every": 300}')
    assert "not installed" in shell("service", "status").out
    assert shell.one_line("service", "run", str(config(shell))).status == 2
    assert shell("service", "install", "--scheduler", "cron").status == 0
    assert Path(shell.environ["TABLE"]).read_text().count("\n") == 1


def test_systemd(shell: Cli, secured: Serving) -> None:
    """The units are enabled and linger; what they start delivers; uninstall removes them."""
    assert shell("service", "install").status == 0  # the first that is there
    units = Path(shell.environ["HOME"]) / ".config" / "systemd" / "user"
    timer, unit = (units / f"hindsight-exec-flush.{kind}" for kind in ("timer", "service"))
    calls = Path(shell.environ["CALLS"]).read_text()
    for call in ("daemon-reload", "enable --now hindsight-exec-flush.timer", "enable-linger"):
        assert call in calls
    assert "OnUnitInactiveSec=300s" in timer.read_text()
    if shutil.which("systemd-analyze"):
        command = ["systemd-analyze", "--user", "verify", str(timer), str(unit)]
        verified = subprocess.run(
            command,
            env={**shell.environ, "XDG_RUNTIME_DIR": str(shell.folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (verified.returncode, verified.stderr) == (0, "")
    (start,) = [
        line.partition("=")[2]
        for line in unit.read_text().splitlines()
        if line.startswith("ExecStart=")
    ]
    assert run_as_cron(shell, start) == 0
    assert stored(secured.url, key=KEY) == {"s": texts(range(3))}
    assert shell("service", "status", "--json").json["last_status"] == 0
    assert shell("service", "uninstall").status == 0
    assert list(units.iterdir()) == []


def test_another_scheduler_takes_over(shell: Cli) -> None:
    """Only the scheduler that was chosen last runs it."""
    units = Path(shell.environ["HOME"]) / ".config" / "systemd" / "user"
    table = Path(shell.environ["TABLE"])
    for name in ("systemd", "cron", "systemd"):
        assert shell("service", "install", "--scheduler", name).status == 0
        has_line = table.exists() and "hindsight-exec service" in table.read_text()
        assert (any(units.iterdir()), has_line) == (name == "systemd", name == "cron")


@pytest.mark.parametrize(
    "every, when",
    [
        ("1min", "*/1 * * * *"),
        ("30min", "*/30 * * * *"),
        ("60min", "0 */1 * * *"),
        ("2h", "0 */2 * * *"),
        ("1d", "0 0 * * *"),
        *((every, "") for every in ("90s", "45min", "90min", "5h", "2d")),
    ],
)
def test_intervals_that_cron_has(shell: Cli, every: str, when: str) -> None:
    """Cron runs it as often as was asked for, or not at all."""
    done = shell("service", "install", "--scheduler", "cron", "--every", every)
    table = Path(shell.environ["TABLE"])
    if when:
        assert table.read_text().startswith(f"{when} /")
    else:
        assert done.status == 2
        assert "choose an interval that divides an hour or a day" in done.err
        assert not table.exists()
        assert not config(shell).exists()


def test_one_service_for_each_user(shell: Cli) -> None:
    """Whoever installs it for another directory is told that the first one's runs end."""
    folders = [shell.folder / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    install = ("service", "install", "--scheduler", "cron", "--state")
    assert "replaces" not in shell(*install, str(folders[0])).err
    assert "replaces" not in shell(*install, str(folders[0])).err
    assert f"this replaces the runs for {folders[0]}" in shell(*install, str(folders[1])).err


def test_the_first_scheduler_stays_until_another_has_taken_over(shell: Cli) -> None:
    """Where the other one cannot be registered, the runs go on as before."""
    assert shell("service", "install", "--scheduler", "systemd").status == 0
    shell.environ["TABLE"] = str(shell.folder / "missing" / "table")
    assert shell("service", "install", "--scheduler", "cron").status != 0
    units = Path(shell.environ["HOME"]) / ".config" / "systemd" / "user"
    assert len([*units.iterdir()]) == 2
    done = shell("service", "status")
    assert (done.status, done.out.split()[:2]) == (0, ["ok:", "systemd"])


def test_names_that_schedulers_would_read(shell: Cli, tmp_path: Path) -> None:
    """Paths with spaces, percent signs, quotes and dollars reach the program as they are."""
    place = tmp_path / "a b%c'd$HOME\"e"
    place.mkdir()
    shell.environ["XDG_CONFIG_HOME"] = str(place)
    expected = str(place / "hindsight-exec" / "service.json")
    shown = {
        kind: shell("service", "install", "--dry-run", "--scheduler", kind).out
        for kind in ("systemd", "launchd", "cron")
    }
    (start,) = [line for line in shown["systemd"].splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(start.partition("=")[2].replace("%%", "%").replace("$$", "$"))
    assert words[-1] == expected
    assert plistlib.loads(shown["launchd"].encode())["ProgramArguments"][-1] == expected
    command = shown["cron"].split(" ", 5)[5].replace("\\%", "%")
    assert shlex.split(command, comments=True)[-3] == expected
    assert not Path(shell.environ["TABLE"]).exists()
    assert not config(shell).exists()


def test_a_run_that_fails_is_seen(shell: Cli, secured: Serving) -> None:
    """A run that could not deliver, one that is late and one that was lost are problems."""
    table = Path(shell.environ["TABLE"])
    assert shell("service", "install", "--scheduler", "cron").status == 0
    kept = json.loads(config(shell).read_text())
    kept["environment"]["HINDSIGHT_API_URL"] = "http://127.0.0.1:1"
    config(shell).write_text(json.dumps(kept))
    assert run_as_cron(shell, table.read_text().split(" ", 5)[5]) == 1
    done = shell("service", "status")
    assert done.status == 1
    assert f"{secured.url} is not configured here; set HINDSIGHT_API_URL" in done.out
    checks = {check["name"]: check for check in shell("doctor", "--json").json}
    assert checks["service"]["state"] == "failed"

    last = config(shell).with_name("service-last.json")
    last.write_text(json.dumps({"at": 1e9, "status": 0, "output": ""}))
    assert "cron has not run it for" in shell("service", "status").out
    table.write_text("")
    assert "cron has lost it" in shell("service", "status").out


def test_nothing_to_schedule_with(cli: Cli) -> None:
    """Where there is no scheduler, that is one line and status 2."""
    if sys.platform == "darwin":
        pytest.skip("launchd is always there")
    cli.environ["PATH"] = str(cli.folder)
    done = cli.one_line("service", "install")
    assert done.status == 2
    assert "neither systemd, launchd nor cron is available" in done.err


def test_the_package_runs_by_its_path(cli: Cli) -> None:
    """`python FOLDER` is the command, needs no installation, and shadows no module."""
    package = Path(hindsight_exec.__file__).parent
    alone = cli.folder / "plugins" / "hindsight_exec"
    shutil.copytree(package, alone, ignore=shutil.ignore_patterns("__pycache__"))
    (alone.parent / "json.py").write_text("raise ImportError('shadowed')")
    done = subprocess.run(
        [sys.executable, "-S", str(alone), "--version"],
        env={**cli.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"hindsight-exec {hindsight_exec.__version__}\n", "")
