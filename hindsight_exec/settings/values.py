"""Checks one value of config.json or of the environment, a function for each kind of key."""

from __future__ import annotations

import ast
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Tuple

from hindsight_exec.client.urls import MAX_BANK_BYTES, bank_problem, normalise_url

from .banks import FIELDS, expand, usable_bank

if TYPE_CHECKING:
    from dataclasses import Field

__all__ = ["PARSERS", "WrongValue", "brief"]


#: Threads cannot wait longer than so many seconds (threading.TIMEOUT_MAX on Windows: 49 days).
_MOST = 4_000_000


class WrongValue(Exception):  # noqa: N818 - not an error of the program
    """What a value must be, and what is used in its place (None: the default)."""

    def __init__(self, must_be: str, instead: Any = None) -> None:
        super().__init__(must_be)
        self.instead = instead


def _text(value: Any, _: Field[Any]) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise WrongValue("text")
    return str(value)


def _label(value: Any, item: Field[Any]) -> str:
    return _text(value, item).strip() or str(item.default)


def _bank(value: Any, item: Field[Any]) -> str:
    bank = _text(value, item).strip()
    if bank_problem(bank):
        raise WrongValue(
            f"text of at most {MAX_BANK_BYTES} bytes without '/'", usable_bank(bank) or None
        )
    return bank


def _template(value: Any, item: Field[Any]) -> str:
    template = _text(value, item)
    try:
        expand(template, dict.fromkeys(FIELDS, "x"))
    except ValueError as error:
        fields = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise WrongValue(
            f"a template over {fields} ({error}); without one, bank_id counts", ""
        ) from None
    return template


def _table(value: Any) -> Dict[str, Any]:
    table = _literal(value) if isinstance(value, str) and value.strip() else value or {}
    if isinstance(table, tuple):
        table = dict(table)
    if not isinstance(table, dict):
        raise WrongValue("an object")
    return {str(name): one for name, one in table.items()}


def _banks(value: Any, item: Field[Any]) -> Tuple[Tuple[str, str], ...]:
    try:
        return tuple((user, _bank(bank, item)) for user, bank in _table(value).items())
    except WrongValue as wrong:
        raise WrongValue(f"an object of banks by user, each {wrong}") from None


def _variables(value: Any, item: Field[Any]) -> Tuple[Tuple[str, str], ...]:
    table = tuple((name, _text(one, item)) for name, one in _table(value).items())
    if not all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name, _ in table):
        raise WrongValue("an object of variables by name")
    return table


def _profile(value: Any, item: Field[Any]) -> str:
    profile = _label(value, item)
    # It names files, and hindsight-embed names its database so.
    usable = re.sub(r"[^a-zA-Z0-9_-]", "-", profile)
    if usable != profile:
        raise WrongValue("letters, digits, - and _", usable)
    return profile


def _secret(value: Any, item: Field[Any]) -> str:
    key = _text(value, item).strip()
    if not key.isascii() or not key.isprintable():
        raise WrongValue("printable ASCII")
    return key


def _url(value: Any, _: Field[Any]) -> str:
    return normalise_url(value)


def _choice(value: Any, item: Field[Any]) -> str:
    text = value.strip().lower() if isinstance(value, str) else value
    if text not in item.metadata["choices"]:
        raise WrongValue("one of " + ", ".join(item.metadata["choices"]))
    return str(text)


def _bool(value: Any, _: Field[Any]) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True}
    words.update({"false": False, "no": False, "off": False, "0": False})
    answer = words.get(str(value).strip().lower())
    if answer is None:
        raise WrongValue("true or false")
    return answer


def _number(value: Any, item: Field[Any]) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not item.metadata["minimum"] <= number <= _MOST:
        raise WrongValue(f"a number {_range(item)}")
    return number


def _int(value: Any, item: Field[Any]) -> int:
    try:
        number = _number(value, item)
    except WrongValue:
        number = math.nan
    if not number.is_integer():
        raise WrongValue(f"a whole number {_range(item)}")
    return int(number)


def _range(item: Field[Any]) -> str:
    return f"from {max(item.metadata['minimum'], 0):g} to {_MOST}"


def _literal(text: str) -> Any:
    """What JSON text holds, or text that a desktop panel made of a list; None for other text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _list(value: Any, item: Field[Any]) -> Tuple[str, ...]:
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        parsed = _literal(str(value))
        value = parsed if isinstance(parsed, list) else str(value).split(",")
    if not isinstance(value, (list, tuple)) or any(isinstance(one, (dict, list)) for one in value):
        raise WrongValue("a list, or text with commas")
    entries = tuple(dict.fromkeys(str(one).strip() for one in value if str(one).strip()))
    choices = item.metadata["choices"]
    if choices and not set(entries) <= set(choices):
        known = tuple(entry for entry in entries if entry in choices)
        raise WrongValue("out of " + ", ".join(choices), known or item.default)
    return entries


def _folders(value: Any, item: Field[Any]) -> Tuple[str, ...]:
    try:
        found = tuple(Path(one).expanduser() for one in _list(value, item))
    except (KeyError, RuntimeError):  # no such user, or no home (KeyError: on 3.9)
        found = (Path(),)
    if not all(path.is_absolute() for path in found):
        raise WrongValue("a list of absolute folders")
    return tuple(map(str, found))


def _patterns(value: Any, _: Field[Any]) -> Tuple[str, ...]:
    parsed = _literal(value) if isinstance(value, str) else value
    # Text that is no list is one pattern: commas mean something in it.
    patterns = parsed if isinstance(parsed, (list, tuple)) else [value]
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError, RecursionError, OverflowError):
            raise WrongValue(
                f"a list of regular expressions, and {brief(pattern)} is none"
            ) from None
    return tuple(dict.fromkeys(one for one in patterns if one))


_SCOPES = ("combined", "per_tag", "all_combinations", "shared")


def _scopes(value: Any, _: Field[Any]) -> Any:
    if isinstance(value, str):
        text = value.strip()
        if text in _SCOPES:
            return text
        value = _literal(text)
    if isinstance(value, (list, tuple)):
        # A flat list of tags is one scope.
        scopes = value if any(isinstance(one, (list, tuple)) for one in value) else [value]
        scopes = [[one] if isinstance(one, str) else one for one in scopes]
        if all(
            isinstance(one, (list, tuple)) and all(isinstance(tag, str) for tag in one)
            for one in scopes
        ):
            cleaned = [tuple(tag.strip() for tag in one if tag.strip()) for one in scopes]
            return tuple(one for one in cleaned if one) or None
    raise WrongValue(", ".join(_SCOPES) + " or a list of lists of tags")


_ALL: Tuple[Callable[[Any, Field[Any]], Any], ...] = (
    *(_text, _url, _label, _bank, _template, _banks, _variables, _profile, _secret),
    *(_choice, _bool, _number, _int, _list, _folders, _patterns, _scopes),
)
#: By the kind of a key: "text" is read by `_text`.
PARSERS = {parser.__name__[1:]: parser for parser in _ALL}


def brief(value: Any) -> str:
    """How a message quotes a value."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
