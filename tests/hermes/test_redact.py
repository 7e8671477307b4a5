"""What is hidden before it gets to the disk, and what is not."""

from __future__ import annotations

import pytest

from hindsight_exec.hermes.redact import redact

from .test_turns import contents


def made(prefix, length, alphabet="a1B2c3D4e5F6g7H8"):
    """Put together here, so that no scanner takes the test for a leak."""
    return prefix + (alphabet * 20)[:length]


SECRETS = [
    made("AK" + "IA", 16, "A1B2C3D4"),
    made("gh" + "p_", 36),
    made("github" + "_pat_", 60),
    made("gl" + "pat-", 20),
    made("xo" + "xb-", 40),
    made("sk" + "-", 48),
    made("sk" + "-ant-api03-", 60),
    made("AI" + "za", 35),
    made("sk" + "_live_", 24),
    made("h" + "f_", 34),
    made("np" + "m_", 36),
    made("123456789:" + "AA", 33),
    made("ey" + "J", 20) + made(".ey" + "J", 40) + made(".", 43),
    "-----BEGIN RSA PRIVATE" + " KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE" + " KEY-----",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_tokens(secret):
    """Formats of well-known keys are hidden wherever they stand, the words around them are not."""
    assert redact(f"use {secret}, please") == "use [redacted], please"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("Authorization: Bearer abcdef0123456789abcdef", "Authorization: Bearer [redacted]"),
        ("postgres://me:s3cret@db/x", "postgres://me:[redacted]@db/x"),
        ("my password is hunter2x", "my password is [redacted]"),
        ('"api_key": "k3yk3yk3y"', '"api_key": "[redacted]"'),
        ("export FOO_TOKEN=abc123def456", "export FOO_TOKEN=[redacted]"),
        (
            "https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXX",
            "https://hooks.slack.com/services/[redacted]",
        ),
    ],
)
def test_named_secrets(text, shown):
    """What a name, a header or a URL says is secret is hidden."""
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "the door is blue",
        "max_tokens: 4096",
        "token = count_tokens(text)",
        "password: <yours>",
        "the password is on the fridge",
        "commit 3c1638f0a1b2c3d4e5f60718293a4b5c6d7e8f90",
        "id 123e4567-e89b-12d3-a456-426614174000",
        "https://example.org/a:b/c@d",
        "api_key = os.environ['KEY1']",
        "sk-eleton and sk-ip-this-word-as-it-is-long",
        "2026-11-22T14:30:00+01:00",
    ],
)
def test_what_is_no_secret(text):
    """Prose, code, hashes and identifiers stay."""
    assert redact(text) == text


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit", ["a", "a:", "://a:", "password", "-----BEGIN PRIVATE KEY-----", "eyJa."]
)
def test_long_texts(unit):
    """The time grows with the length of a text, and no faster: a quadratic one does not end."""
    text = unit * (500_000 // len(unit))
    assert len(redact(text)) <= len(text)


def test_secrets_do_not_get_to_the_disk(make, hindsight, home):
    """A secret of a turn or a note is neither on disk nor on the server."""
    provider = make(retain_idle_seconds=1000)
    hindsight.stop()
    provider.sync_turn(f"my key is {SECRETS[0]}", "noted")
    note = {
        "content": f"key {SECRETS[1]}",
        "context": f"told {SECRETS[1]}",
        "metadata": {"source": SECRETS[1]},
    }
    provider.handle_tool_call("hindsight_retain", note)
    raw = b"".join(path.read_bytes() for path in (home / "hindsight" / "outbox").iterdir())
    assert SECRETS[0].encode() not in raw
    assert SECRETS[1].encode() not in raw
    hindsight.start()
    provider._writer.flush()
    sent = "".join(item["content"] for item in hindsight.items())
    assert sent.count("[redacted]") == 2


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"redact": False}, [f"User: private: {SECRETS[1]}", "Assistant: fine"]),
        ({"retain_skip_patterns": ["^private"]}, None),
        ({"retain_skip_patterns": ["^public"]}, ["User: private: [redacted]", "Assistant: fine"]),
        ({"retain_strip_patterns": ["private: "]}, ["User: [redacted]", "Assistant: fine"]),
        ({"retain_strip_patterns": [".*"]}, None),
        ({"retain_roles": ["user"]}, ["User: private: [redacted]"]),
        ({"retain_max_chars": 7}, ["User: private […]", "Assistant: fine"]),
    ],
)
def test_what_the_user_wants_kept(make, hindsight, values, expected):
    """Patterns, roles and a bound decide what of a turn is kept."""
    provider = make(**values)
    provider.sync_turn(f"private: {SECRETS[1]}", "fine")
    provider.shutdown()
    assert [contents(item) for item in hindsight.items()] == ([expected] if expected else [])


@pytest.mark.parametrize("key", ["retain_skip_patterns", "retain_strip_patterns"])
def test_a_wrong_pattern(make, hindsight, key):
    """A pattern that is no regular expression keeps nothing at all until it is corrected."""
    provider = make(**{key: ["("]})
    assert key in provider.unavailable_reason()
    provider.sync_turn("private", "fine")
    provider.shutdown()
    assert hindsight.items() == []
