"""The edit of Hermes' config.yaml: one value changes, and no other byte."""

from __future__ import annotations

import sys

import pytest

from hindsight_exec.errors import ConfigError
from hindsight_exec.hermes.yaml_edit import (
    disabled_plugins,
    provider_of,
    with_provider,
    without_disabled,
)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "memory:\n  provider: new\n"),
        ("# c\n", "# c\nmemory:\n  provider: new\n"),
        ("a: 1", "a: 1\nmemory:\n  provider: new\n"),
        ("memory:\n", "memory:\n  provider: new\n"),
        ("memory:", "memory:\n  provider: new\n"),
        ("memory: ~  # c\n", "memory: {provider: new}  # c\n"),
        ("memory: {}\n", "memory: {provider: new}\n"),
        ("memory: {on: true}\n", "memory: {provider: new, on: true}\n"),
        ("memory: {provider: x}\n", "memory: {provider: new}\n"),
        ("memory: {provider: x, on: true}  # c\n", "memory: {provider: new, on: true}  # c\n"),
        ("memory:\n    on: true\n", "memory:\n    provider: new\n    on: true\n"),
        ("memory:\n  # c\n  on: true\n", "memory:\n  # c\n  provider: new\n  on: true\n"),
        ("memory:   # x\n  provider:\n", "memory:   # x\n  provider: new\n"),
        ("memory:\n  provider:   # c\n  a: 1\n", "memory:\n  provider: new   # c\n  a: 1\n"),
        ("memory:\n  provider: 'old'   # c\n", "memory:\n  provider: new   # c\n"),
        ('memory:\n  provider: ""\n', "memory:\n  provider: new\n"),
        ("memory:\n  'provider' : x\n", "memory:\n  'provider' : new\n"),
        ('"memory": {}\n', '"memory": {provider: new}\n'),
        ("memory:\r\n  provider: old\r\n", "memory:\r\n  provider: new\r\n"),
        ("memory:\r\n  on: 1\r\n", "memory:\r\n  provider: new\r\n  on: 1\r\n"),
        ("\ufeffmemory:\n  provider: old\n", "\ufeffmemory:\n  provider: new\n"),
        ("memory: &a\n  on: true\n", "memory: &a\n  provider: new\n  on: true\n"),
        (
            "x:\n  memory:\n    provider: a\n",
            "x:\n  memory:\n    provider: a\nmemory:\n  provider: new\n",
        ),
        (
            "memory:\n  a:\n    provider: x\nb:\n  provider: y\n",
            "memory:\n  provider: new\n  a:\n    provider: x\nb:\n  provider: y\n",
        ),
    ],
)
def test_setting_the_provider(text, expected):
    """Only memory.provider changes; comments, order, quotes and line ends stay."""
    assert with_provider(text, "new") == expected
    assert provider_of(expected) == "new"
    assert provider_of(with_provider(expected, "")) == ""


@pytest.mark.parametrize(
    "text",
    [
        "memory: [a]\n",
        "memory: on\n",
        "x: &a {provider: x}\nmemory: *a\n",
        "memory: &a\n  provider: x\nother: *a\n",
        "memory:\n  provider: &p x\nother: *p\n",
        "memory:\n  provider: >\n    x\n",
        "{a: 1}\n",
        "a: 1\n...\n",
    ],
)
def test_forms_that_are_not_edited(text):
    """Where another value would change with it the file is left alone, with the remedy named."""
    with pytest.raises(ConfigError, match=r"hermes config set memory\.provider new'$"):
        with_provider(text, "new")


@pytest.mark.parametrize("text", ["a: [1\n", "- a\n", "a", "memory:\nmemory:\n", "a: b: c\n"])
def test_not_a_mapping(text):
    """What is not the YAML of a mapping is an error, and not a file without a provider."""
    for call in (provider_of, disabled_plugins, lambda text: with_provider(text, "new")):
        with pytest.raises(ConfigError, match=r"config\.yaml .*correct it first"):
            call(text)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("plugins:\n  disabled: [a]\n", "plugins:\n  disabled: []\n"),
        ("plugins:\n  disabled: [ a , ]  # c\n", "plugins:\n  disabled: []  # c\n"),
        ("plugins:\n  disabled: [a, b]\n", "plugins:\n  disabled: [b]\n"),
        ("plugins:\n  disabled: [b, a]\n", "plugins:\n  disabled: [b]\n"),
        ("plugins:\n  disabled: [b, a, c]\n", "plugins:\n  disabled: [b, c]\n"),
        ("plugins:\n  disabled:\n  - a\nx: 1\n", "plugins:\n  disabled: []\nx: 1\n"),
        ("plugins:\n  disabled:\n    - b\n    - a", "plugins:\n  disabled:\n    - b\n"),
        (
            "plugins:\r\n  disabled:\r\n  - a  # c\r\n  - b\r\n",
            "plugins:\r\n  disabled:\r\n  - b\r\n",
        ),
    ],
)
def test_enabling_a_plugin_again(text, expected):
    """A name is taken out of plugins.disabled, and nothing else changes."""
    assert "a" in disabled_plugins(text)
    assert without_disabled(text, "a") == expected
    assert "a" not in disabled_plugins(expected)


def test_without_the_library(monkeypatch):
    """Where ruamel.yaml is missing the error names it."""
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)
    with pytest.raises(ConfigError, match=r"ruamel\.yaml is not installed"):
        provider_of("memory:\n  provider: x\n")
