"""Reads and edits the few values of Hermes' config.yaml that decide which provider is active.

ruamel.yaml says where each value stands, and the new one is spliced into the
text: every other byte stays as it is. Written by the library, the user's lines
would be indented and quoted anew; ``hermes config set`` drops the comments.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Optional, Tuple

from hindsight_exec.errors import ConfigError

__all__ = ["disabled_plugins", "provider_of", "with_provider", "without_disabled"]


def provider_of(text: str) -> str:
    """Return ``memory.provider``; "" where it is not set.

    Raises:
        ConfigError: The text is not the YAML of a mapping, or ruamel.yaml is missing.
    """
    found = _section(_values(text), "memory").get("provider")
    return found.strip() if isinstance(found, str) else ""


def disabled_plugins(text: str) -> List[str]:
    """Return ``plugins.disabled``: what Hermes does not load, or has switched off.

    Raises:
        ConfigError: As `provider_of`.
    """
    found = _section(_values(text), "plugins").get("disabled")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def with_provider(text: str, name: str) -> str:
    """Return the text with ``memory.provider`` set to ``name``.

    Raises:
        ConfigError: As `provider_of`, or the value cannot be set without changing another.
    """
    value = name or "''"
    values = _values(text)
    values["memory"] = {**_section(values, "memory"), "provider": name}
    return _checked(
        lambda: _set_provider(text, value),
        values,
        f"run 'hermes config set memory.provider {value}'",
    )


def without_disabled(text: str, name: str) -> str:
    """Return the text with ``name`` taken out of ``plugins.disabled``.

    Raises:
        ConfigError: As `with_provider`.
    """
    left = [other for other in disabled_plugins(text) if other != name]
    values = _values(text)
    values["plugins"] = {**_section(values, "plugins"), "disabled": left}
    return _checked(
        lambda: _take_out(text, name), values, f"take {name} out of plugins.disabled in config.yaml"
    )


# -- parsing -----------------------------------------------------------------------------


def _parser() -> Any:
    try:
        from ruamel.yaml import YAML  # noqa: PLC0415 - every Hermes has it; a program need not
    except ImportError as error:
        raise ConfigError(
            "ruamel.yaml is not installed, so config.yaml cannot be read; pip install ruamel.yaml"
        ) from error
    return YAML(typ="safe", pure=True)


def _parsed(parse: Callable[[], Any]) -> Any:
    from ruamel.yaml.error import YAMLError  # noqa: PLC0415 - as above

    try:
        return parse()
    except (YAMLError, ValueError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where is not None else ""
        raise ConfigError(f"config.yaml is not valid YAML{line}: correct it first") from error


def _values(text: str) -> Dict[str, Any]:
    parser = _parser()
    found = _parsed(lambda: parser.load(text))
    if found is not None and not isinstance(found, dict):
        raise ConfigError("config.yaml does not hold a mapping: correct it first")
    return found or {}


def _section(values: Dict[str, Any], name: str) -> Dict[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _child(mapping: Any, name: str) -> Optional[Tuple[Any, Any]]:
    """The nodes of a key and its value."""
    pairs = mapping.value if mapping is not None and mapping.id == "mapping" else ()
    return next(((key, value) for key, value in pairs if key.value == name), None)


# -- splicing ------------------------------------------------------------------------------


def _checked(edit: Callable[[], Optional[str]], expected: Dict[str, Any], remedy: str) -> str:
    """What the edit makes, if it changes what it should and nothing else.

    Aliases, anchors and tags can make a value part of another one: the result tells.
    """
    edited = edit()
    try:
        if edited is not None and _values(edited) == expected:
            return edited
    except ConfigError:
        pass
    raise ConfigError(f"config.yaml has a form that is not edited here; {remedy}")


def _set_provider(text: str, value: str) -> Optional[str]:
    newline = "\r\n" if "\r\n" in text else "\n"
    parser = _parser()
    root = _parsed(lambda: parser.compose(text))
    found = _child(root, "memory")
    if found is None:
        before = newline if text and not text.endswith("\n") else ""
        return f"{text}{before}memory:{newline}  provider: {value}{newline}"
    key, memory = found
    provider = _child(memory, "provider")
    if provider is not None:
        return _replaced(text, *provider, value)
    if memory.id == "scalar" and str(memory.tag).endswith(":null"):
        if memory.start_mark.index < memory.end_mark.index:
            return _replaced(text, key, memory, f"{{provider: {value}}}")
        end = text.find("\n", key.end_mark.index)
        end = len(text) if end < 0 else end + 1
        before = "" if text[:end].endswith("\n") else newline
        return f"{text[:end]}{before}  provider: {value}{newline}{text[end:]}"
    if memory.id != "mapping":
        return None
    if memory.flow_style:
        at = memory.start_mark.index + text[memory.start_mark.index :].index("{") + 1
        return f"{text[:at]}provider: {value}{', ' if memory.value else ''}{text[at:]}"
    first = memory.value[0][0].start_mark
    return (
        f"{text[: first.index]}provider: {value}{newline}{' ' * first.column}{text[first.index :]}"
    )


def _replaced(text: str, key: Any, node: Any, value: str) -> Optional[str]:
    """The text with another scalar in the place of this one."""
    if node.id != "scalar" or getattr(node, "style", None) in ("|", ">"):
        return None
    start, end = node.start_mark.index, node.end_mark.index
    if start == end:  # nothing stands there: its mark is that of what follows
        start = end = text.index(":", key.end_mark.index) + 1
        value = f" {value}"
    return f"{text[:start]}{value}{text[end:]}"


def _take_out(text: str, name: str) -> Optional[str]:
    parser = _parser()
    root = _parsed(lambda: parser.compose(text))
    plugins = _child(root, "plugins")
    disabled = _child(plugins[1] if plugins else None, "disabled")
    if disabled is None or disabled[1].id != "sequence":
        return None
    key, names = disabled
    left = [item for item in names.value if item.value != name]
    if not left:
        start = text.index(":", key.end_mark.index) + 1
        end = names.value[-1].end_mark.index
        closing = text[end:].index("]") + 1 if names.flow_style else 0
        return f"{text[:start]} []{text[end + closing :]}"
    for item in reversed([item for item in names.value if item.value == name]):
        start, end = item.start_mark.index, item.end_mark.index
        if names.flow_style:
            following = re.match(r"\s*,\s*", text[end:])
            preceding = re.search(r"\s*,\s*$", text[:start])
            end += following.end() if following else 0
            start = preceding.start() if preceding and not following else start
        else:  # the whole line
            start = text.rindex("\n", 0, start) + 1
            end = text.find("\n", end)
            end = len(text) if end < 0 else end + 1
        text = text[:start] + text[end:]
    return text
