"""Files of environment variables: read as their owner reads them, changed without touching a
byte of what stands beside the change.

Two programs own such files. Hermes loads its ``.env`` with python-dotenv and
cleans it first. hindsight-embed reads a profile's file with a simpler parser
of its own. python-dotenv does not write them here: its `set_key` drops a byte
order mark, turns CRLF into LF and raises for bytes that are not UTF-8.
"""

from __future__ import annotations

import codecs
import io
import os
import re
from functools import partial
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

from hindsight_exec.errors import ConfigError

from .files import read_bytes, write_file

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["EMBED", "HERMES", "Dialect", "read_variables", "set_variables", "with_variables"]


class Entry(NamedTuple):
    """A piece of the file's text. All pieces joined are the text."""

    name: Optional[str]
    value: Optional[str]
    text: str


class Dialect(NamedTuple):
    """How one program reads its file."""

    split: Callable[[str], List[Entry]]
    spellings: Tuple[Callable[[str], str], ...]
    """Ways to write a value, the plainest first."""
    expand: bool
    """Whether ``${NAME}`` and ``${NAME:-default}`` stand for other variables."""


def _split_dotenv(text: str) -> List[Entry]:
    try:
        from dotenv.parser import parse_stream  # noqa: PLC0415 - only where there is a file
    except ImportError as error:
        raise ConfigError("python-dotenv is not installed: pip install python-dotenv") from error
    bindings = parse_stream(io.StringIO(text, newline=""))
    return [Entry(one.key, one.value, one.original.string) for one in bindings]


def _split_embed(text: str) -> List[Entry]:
    # As hindsight-embed 1.1.0: no comments after a value, no escapes, and every line boundary
    # of str.splitlines counts.
    entries = []
    for line in text.splitlines(keepends=True):
        name, equals, value = line.strip().partition("=")
        name = name.removeprefix("export ")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        known = equals and not name.startswith("#")
        entries.append(Entry(name.strip() if known else None, value, line))
    return entries


def _quoted(value: str, quote: str) -> str:
    return quote + value.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote


_QUOTED = (partial(_quoted, quote="'"), partial(_quoted, quote='"'))
HERMES = Dialect(_split_dotenv, (str, *_QUOTED), expand=True)
EMBED = Dialect(_split_embed, (str, '"{}"'.format), expand=False)


def read_variables(
    path: Path, dialect: Dialect = HERMES, environ: Optional[Mapping[str, str]] = None
) -> Dict[str, str]:
    """Return the variables of a file; none if there is no file.

    Args:
        path: The file.
        dialect: Whose file it is.
        environ: What a reference to another variable may stand for, beside the
            file's own; ``os.environ`` without it.

    Raises:
        ConfigError: The file exists and cannot be read.
    """
    raw = read_bytes(path)
    try:
        return _variables(raw, dialect, os.environ if environ is None else environ)
    except ConfigError as error:
        if b"HINDSIGHT_" not in raw.replace(b"\0", b""):
            return {}
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _variables(raw: bytes, dialect: Dialect, environ: Mapping[str, str]) -> Dict[str, str]:
    mark, _, text = _decode(raw)
    if not dialect.expand:
        stated = [(one.name, one.value) for one in dialect.split("\ufeff" * bool(mark) + text)]
        return {name: value for name, value in stated if name and value is not None}
    # Hermes 0.19 to 0.22 take out NULs and the blanks at both ends of a line before they load.
    lines = re.split(r"\r\n|\r|\n", text.replace("\0", ""))
    text = "\n".join(line if line.lstrip()[:1] == "#" else line.strip() or line for line in lines)
    found: Dict[str, Optional[str]] = {}
    for one in dialect.split(text):
        if one.name is not None:
            found[one.name] = one.value and _expand(one.value, {**environ, **found})
    return {name: _clean(name, value) for name, value in found.items() if value is not None}


def _expand(value: str, known: Mapping[str, Optional[str]]) -> str:
    from dotenv.variables import parse_variables  # noqa: PLC0415 - as above

    return "".join(part.resolve(known) for part in parse_variables(value))


def _clean(name: str, value: str) -> str:
    # A key that was copied from a web page or a PDF brings characters that no HTTP header takes;
    # Hermes drops them.
    if name.endswith(("_KEY", "_TOKEN", "_SECRET")):
        return value.encode("ascii", "ignore").decode()
    return value


def set_variables(
    path: Path, changes: Mapping[str, Optional[str]], dialect: Dialect = HERMES
) -> None:
    """Set variables in a file, or take them out (None). All other bytes stay.

    Raises:
        ConfigError: The file cannot be changed safely, and was left as it is.
        OSError: It cannot be read or written.
    """
    raw = read_bytes(path)
    changed = with_variables(raw, changes, dialect, path)
    if changed != raw:
        write_file(path, changed)


def with_variables(
    raw: bytes, changes: Mapping[str, Optional[str]], dialect: Dialect, path: Path
) -> bytes:
    """Return a file's bytes with variables set or taken out (None); see `set_variables`.

    Raises:
        ConfigError: The changed file would be read otherwise than it should.
    """
    try:
        dialect.split(_decode(raw)[2])
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be changed: {error} (nothing was written)") from error
    for name, value in changes.items():
        texts = [None] if value is None else [spell(value) for spell in dialect.spellings]
        for text in texts:
            changed = _with_variable(raw, name, text, dialect)
            if _reads_as(changed, raw, name, value, dialect):
                raw = changed
                break
        else:
            raise ConfigError(
                f"{path}: {name} cannot be {'removed' if value is None else 'set'} without a change"
                f" to other variables; correct the file in an editor (nothing was written)"
            )
    return raw


def _with_variable(raw: bytes, name: str, value: Optional[str], dialect: Dialect) -> bytes:
    mark, encoding, text = _decode(raw)
    entries = dialect.split(text)
    places = [index for index, one in enumerate(entries) if one.name == name]
    newline = next(iter(re.findall(r"\r\n|\n|\r", text)), "\n")
    pieces = [one.text for one in entries]
    for index in places:
        # What stands above it belongs to the piece, too: blank lines.
        blank, line, end = _frame(pieces[index])
        assigned = ""
        if value is not None and index == places[-1]:  # the last one counts
            export = "export " if line.lstrip().startswith(("export ", "export\t")) else ""
            assigned = f"{export}{name}={value}{end or newline}"
        pieces[index] = blank + assigned
    if value is not None and not places:
        before = "" if not text or text.endswith(("\n", "\r")) else newline
        pieces.append(f"{before}{name}={value}{newline}")
    text = "".join(pieces)
    if mark and value is not None and re.match(rf"(export\s+)?{re.escape(name)}=", text):
        # Hermes 0.19 and hindsight-embed take a mark for a part of the first line's name.
        text = newline + text
    return mark + text.encode(encoding, "surrogateescape")


def _frame(text: str) -> Tuple[str, str, str]:
    """A piece's blank lines before the name, the rest, and its line ending."""
    found = re.fullmatch(r"((?:\s*[\r\n])?)(.*?)((?:\r\n|\r|\n)?)", text, re.DOTALL)
    assert found is not None  # noqa: S101 - it matches everything
    return found[1], found[2], found[3]


def _reads_as(
    changed: bytes, before: bytes, name: str, value: Optional[str], dialect: Dialect
) -> bool:
    """Whether the change is what a reader sees, and all that it sees."""

    def others(raw: bytes) -> List[Tuple[Optional[str], Optional[str]]]:
        entries = dialect.split(_decode(raw)[2])
        return [(one.name, one.value) for one in entries if one.name not in (name, None)]

    try:
        found = _variables(changed, dialect, {}).get(name)
        return found == value and others(changed) == others(before)
    except UnicodeError:
        return False


def _decode(raw: bytes) -> Tuple[bytes, str, str]:
    """The byte order mark, the encoding and the text, as Hermes 0.20 and later find them.

    Raises:
        ConfigError: The encoding is one that Hermes does not read either.
    """
    if raw.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise ConfigError("it is UTF-32; save it as UTF-8")
    for mark, encoding in (
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF8, "utf-8"),
        (b"", "utf-8"),
    ):
        if raw.startswith(mark):
            body = raw[len(mark) :]
            try:
                return mark, encoding, body.decode(encoding)
            except UnicodeDecodeError:
                return mark, "latin-1", body.decode("latin-1")
    raise AssertionError("every file starts with the empty mark")
