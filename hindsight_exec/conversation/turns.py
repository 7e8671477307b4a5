"""Turns, the documents that hold them, and the items that are sent.

Pure: no threads, no disk, no HTTP. ``docs/architecture.md`` gives the reasons: a
document holds a few turns of one session as a FLAT JSON list of messages, which
Hindsight cuts between messages. It is written once, under an id that sorts by
time, and tagged with its session.
"""

# ruff: noqa: TRY004 (every wrong argument is a ValueError)

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence  # isinstance() is slow with those of typing
from dataclasses import dataclass, replace
from datetime import datetime, timezone, tzinfo
from functools import cached_property
from typing import Any, Optional

from .encoder import to_json
from .times import parse_iso

# The server removes both (Hindsight 1.1.0). SQLite and UTF-8 reject the second,
# so a turn that holds one could not be stored at all.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

#: Longer contents, in characters, are stored beside the JSON. The worker writes
#: them into it later: this takes 0.3 ms for 100 KiB, and the user would wait.
_LONG = 4000

#: Longest identifier that is sent unchanged, in characters. Document ids and tags
#: are index keys on the server, which PostgreSQL limits to some 2700 bytes.
_LONGEST_IDENTIFIER = 255


@dataclass(frozen=True)
class Destination:
    """The bank that a request goes to: server, credential reference and bank."""

    url: str
    credential: str
    bank: str


@dataclass(frozen=True)
class Source:
    """What the turns of one document share: destination, session and attributes.

    Attributes:
        url: The server, without secrets.
        credential: Reference to where the key for ``url`` is configured; "" for
            none. Never the key itself.
        bank: The memory bank.
        session: The conversation; prefix of the document ids.
        context: The item's description of its content, or "".
        tags: Tags of the document.
        metadata: Pairs of strings, sorted.
        observation_scopes: JSON text, or "".
    """

    url: str
    credential: str
    bank: str
    session: str
    context: str = ""
    tags: tuple[str, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    observation_scopes: str = ""

    @property
    def destination(self) -> Destination:
        return Destination(self.url, self.credential, self.bank)

    @cached_property
    def _hash(self) -> int:
        return hash((self.session, self.destination, self.context, self.tags, self.metadata))

    def __hash__(self) -> int:
        return self._hash  # used half a dozen times a turn


@dataclass(frozen=True)
class Turn:
    """A turn as it is stored.

    Attributes:
        given_at: POSIX time in seconds.
        index: The turn's number in its session, from 1.
        payload: The messages as JSON, without the brackets of the list. With
            long contents it has three parts, separated by line ends: the
            numbers of the messages with long contents, the list of messages
            with the lengths of these contents in their places, and the
            contents, concatenated.
        sizes: The length of each message's JSON in characters; long contents
            count without backslashes.
    """

    given_at: float
    index: int
    payload: str
    sizes: tuple[int, ...] = ()

    @property
    def chars(self) -> int:
        return sum(self.sizes)

    @property
    def json(self) -> str:
        """The messages as JSON, without the brackets of the list."""
        return payload_json(self.payload)


def payload_json(payload: str) -> str:
    """Return :attr:`Turn.json` of a payload; a damaged payload is returned unchanged."""
    if not payload.startswith("["):
        return payload
    try:
        numbers, kept, contents = payload.split("\n", 2)
        messages, start = json.loads(kept), 0
        for number in json.loads(numbers):
            end = start + messages[number]["content"]
            messages[number]["content"], start = contents[start:end], end
        return to_json(messages)[1:-1]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return payload


def storable(text: str) -> str:
    """Return the text without U+0000 and lone surrogates, which the server removes too."""
    if not text.isascii():
        try:
            text.encode()  # much faster than the pattern, and nearly always sufficient
        except UnicodeEncodeError:
            return _UNSTORABLE.sub("", text)
    return text.replace("\x00", "") if "\x00" in text else text


def identifier(text: str) -> str:
    """Return a session or tag that the server can index: long ones end in a hash."""
    text = storable(text)
    if len(text) <= _LONGEST_IDENTIFIER:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{text[: _LONGEST_IDENTIFIER - 17]}-{digest}"


def session_tag(session: str) -> str:
    """Return the tag of the session's documents."""
    return identifier(f"session:{identifier(session)}")


def source(
    *,
    url: str,
    credential: str,
    bank: str,
    session: str,
    context: Optional[str] = None,
    tags: Iterable[str] = (),
    metadata: Optional[Mapping[str, Any]] = None,
    observation_scopes: Any = None,
) -> Source:
    """Return the :class:`Source` of a caller's arguments; each tag once, ``session:`` last.

    Raises:
        ValueError: ``bank`` or ``session`` is empty, ``tags`` is a single text,
            ``metadata`` is not a mapping, or ``observation_scopes`` is not JSON.
    """
    for text in (bank, session):
        if type(text) is not str:  # it may not even be hashable
            _check_texts(bank, session)
    if not isinstance(tags, (tuple, list)):  # concrete types are checked thirty times as fast
        _check_tags(tags)
    pairs: tuple[tuple[str, str], ...] = ()
    if metadata:
        if not isinstance(metadata, Mapping):
            raise ValueError(f"metadata must be a mapping, not {metadata!r:.80}")
        pairs = tuple((str(key), str(one)) for key, one in metadata.items() if one is not None)
    scopes = observation_scopes
    fields = (
        *(url, credential, bank, session, str(context or ""), tuple(map(str, tags)), pairs),
        "" if scopes is None else _storable_json("observation_scopes", scopes),
    )
    known = _known.get(fields)  # mostly the one of the previous turn
    if known is None:
        _check_texts(bank, session)
        if len(_known) >= 1024:
            _known.clear()
        known = _known[fields] = _storable_source(Source(*fields))
    return known


def _check_texts(bank: Any, session: Any) -> None:
    for name, value in (("bank", bank), ("session", session)):
        if not isinstance(value, str) or not storable(value).strip():
            raise ValueError(f"{name} must be a text that is not empty, not {value!r:.80}")


def _check_tags(tags: Any) -> None:
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise ValueError(f"tags must be a list of texts, not {tags!r:.80}")


# Not `lru_cache`: PyPy's has a lock, and a fork may leave it held for ever.
# A dict has one where there is no GIL, so a child begins with another dict.
_known: dict[tuple[Any, ...], Source] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: globals().update(_known={}))


def _storable_source(given: Source) -> Source:
    session = identifier(given.session)
    tags = [*map(identifier, given.tags), session_tag(session)]
    return replace(
        given,
        bank=storable(given.bank),
        session=session,
        context=storable(given.context),
        tags=tuple(dict.fromkeys(tag for tag in tags if tag)),
        metadata=tuple(sorted((storable(key), storable(one)) for key, one in given.metadata)),
    )


def turn_messages(
    user: str,
    assistant: str,
    *,
    at: datetime,
    user_prefix: str = "User",
    assistant_prefix: str = "Assistant",
) -> list[dict[str, str]]:
    """Return the messages of a turn with their prefixes; an empty side is left out."""
    stamp = at.isoformat()
    sides = (("user", user_prefix, user), ("assistant", assistant_prefix, assistant))
    return [
        {"role": role, "content": f"{prefix}: {text}" if prefix else text, "timestamp": stamp}
        for role, prefix, text in sides
        if text.strip()
    ]


def turn(messages: Sequence[Mapping[str, Any]], *, given_at: float, index: int) -> Turn:
    """Return a turn that is ready to be stored.

    Raises:
        ValueError: There is no message, or one of them is not a JSON object.
    """
    if not messages:
        raise ValueError("a turn needs at least one message")
    texts, sizes, numbers, contents = [], [], [], []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) and not isinstance(message, Mapping):
            raise ValueError(f"a message must be a mapping, not {message!r:.80}")
        kept, beside = dict(message), 0
        content = kept.get("content")
        if isinstance(content, str) and len(content) > _LONG:
            content = storable(content)
            kept["content"] = length = len(content)
            beside = length + len('""') - len(str(length))
            numbers.append(number)
            contents.append(content)
        texts.append(_storable_json("a message", kept))
        sizes.append(len(texts[-1]) + beside)
    payload = ", ".join(texts)
    if numbers:
        payload = "".join([to_json(numbers), "\n[", payload, "]\n", *contents])
    return Turn(given_at, index, payload, tuple(sizes))


def _storable_json(name: str, value: Any) -> str:
    try:
        text = storable(to_json(value))
        # The escape of U+0000, or a text about it. Looking for one character first
        # is a hundred times faster, and the user waits.
        if "\\" in text and "\\u0000" in text:
            text = storable(to_json(storable_values(value)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be JSON: {error}") from error
    return text


def storable_values(value: Any) -> Any:
    """Return a JSON value with all its texts :func:`storable`, the keys too."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, Mapping):
        return {storable_values(key): storable_values(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable_values(one) for one in value]
    return value


def document_item(source: Source, document_id: str, turns: Sequence[Turn]) -> bytes:
    """Return the item for a document of ``turns``, as JSON in UTF-8."""
    content = "[" + ", ".join(turn.json for turn in turns) + "]"
    return _item(
        source,
        document_id,
        content,
        timestamp=_local(turns[0].given_at, _zone(turns[0])),
        retained_at=turns[-1].given_at,
        counts={
            "message_count": str(sum(len(turn.sizes) for turn in turns)),
            "turn_index": str(turns[-1].index),
        },
    )


def text_item(source: Source, document_id: str, text: str, at: float, timestamp: str = "") -> bytes:
    """Return the item for a text that a user asked to remember."""
    stamp = storable(timestamp) or _local(at, None)
    return _item(source, document_id, storable(text), timestamp=stamp, retained_at=at)


def _item(
    source: Source,
    document_id: str,
    content: str,
    *,
    timestamp: str,
    retained_at: float,
    counts: Optional[Mapping[str, str]] = None,
) -> bytes:
    about = {"retained_at": _utc(retained_at), "session_id": source.session}
    item: dict[str, Any] = {
        "content": content,
        "document_id": document_id,
        "timestamp": timestamp,
        "tags": list(source.tags),
        "metadata": {**dict(source.metadata), **about, **(counts or {})},
    }
    if source.context:
        item["context"] = source.context
    if source.observation_scopes:
        item["observation_scopes"] = json.loads(source.observation_scopes)
    return to_json(item).encode()


# Looks SHA-256 up in OpenSSL now. Up to uWSGI 2.0.26, a worker that loaded the application itself
# runs Python's exit hooks when OpenSSL has cleaned up: the first look-up would crash there.
hashlib.sha256()


def _zone(turn: Turn) -> Optional[tzinfo]:
    """The zone in which a turn's first message states its time, if it does.

    UTC is what programs write: it tells nothing of where the people are.
    """
    try:
        message, _ = json.JSONDecoder().raw_decode(turn.json)
        at = parse_iso(message["timestamp"])
        return at.tzinfo if at.utcoffset() else None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _local(at: float, zone: Optional[tzinfo]) -> str:
    # With an offset: the server resolves words such as "yesterday" against it.
    return datetime.fromtimestamp(at, zone).astimezone(zone).isoformat()


def _utc(at: float) -> str:
    stamp = datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds")
    return stamp.replace("+00:00", "Z")


def time_ordered_id(at: float, key: str = "") -> str:
    """Return a UUID (version 7) as text; such texts sort by ``at``, POSIX time in seconds.

    The bits after the time are random, or a hash of ``key``.

    The 12 bits after the milliseconds are a finer fraction of the time (RFC
    9562, method 3), so turns that are a quarter of a microsecond apart sort
    correctly. (``uuid.uuid7`` is new in Python 3.14, and takes no time argument.)
    """
    milliseconds, rest = divmod(round(at * 1e9), 1_000_000)
    # A key may hold lone surrogates; they are removed only from what is sent.
    made_of = key.encode("utf-8", "surrogatepass")
    rest_of_it = hashlib.sha256(made_of).digest()[:8] if key else os.urandom(8)
    number = int.from_bytes(rest_of_it, "big") >> 2
    value = milliseconds << 80 | 7 << 76 | (rest * 4096 // 1_000_000) << 64 | 2 << 62 | number
    return str(uuid.UUID(int=value))


def document_id(session: str, at: float, content: str) -> str:
    """Return the id of the document that begins with ``content`` at the time ``at``.

    Equal arguments give equal ids. So a document that is built twice replaces
    itself: after the disk lost the record of it, or when it is imported again.
    The ids of a session sort by ``at``, POSIX time in seconds: the time of the
    turn, not of the document, so turns that waited for the next start sort
    before those that came meanwhile.
    """
    return f"{session}/{time_ordered_id(at, content)}"
