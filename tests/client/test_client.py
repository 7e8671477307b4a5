"""HindsightClient against a scripted server: what it sends, what it makes of answers."""

from __future__ import annotations

import asyncio
import copy
import gc
import gzip
import logging
import pickle
import socket
import threading
import time
import traceback
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from email.utils import formatdate

import aiohttp
import pytest
from scripted_server import CERTIFICATE, ScriptedServer, answering

from hindsight_exec.client.api import HindsightClient
from hindsight_exec.client.urls import normalise_url
from hindsight_exec.errors import (
    BadResponse,
    ConfigError,
    HindsightExecError,
    Rejected,
    ServerError,
    Unauthorized,
    Unavailable,
)

KEY = "hs-secret-4711"
RETAINED = {"success": True, "operation_id": "op", "items_count": 1}

# Older versions of aiohttp do not wait for TLS transports, nor for such with
# bytes unsent: a loop that ends at once leaves them to the garbage collector.
OLD = tuple(map(int, aiohttp.__version__.split(".")[:2])) < (3, 13)
pytestmark = [pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")] if OLD else []


@pytest.fixture(autouse=True, scope="module")
def left_behind():
    """Let what these tests leave be collected here, not in another test."""
    yield
    with warnings.catch_warnings():
        if OLD:
            warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def ask(url, call, **options):
    """Return what `call(client)` gives on a loop of its own."""

    async def main():
        async with HindsightClient(url, **options) as client:
            return await call(client)

    return asyncio.run(main())


def version(client):
    return client.version()


def failure(url, call=version, **options):
    with pytest.raises(HindsightExecError) as caught:
        ask(url, call, **options)
    return caught.value


def answered(*answer, call=version, **options):
    """Return the error that an answer becomes."""
    with ScriptedServer(answering(answer)) as server:
        return failure(server.url, call, **options)


def sent(call, answer):
    """Return the request that a call sends, and what it makes of the answer."""
    with ScriptedServer(answering((200, answer))) as server:
        result = ask(server.url, call)
        (request,) = server.requests
        return request, result


# --- requests ----------------------------------------------------------------


def test_retain_sends_items_as_json_and_bytes_as_they_are():
    """An item given as bytes reaches the server byte for byte, beside serialised ones."""
    raw = '{ "content":"Grüße 👋",  "document_id":"s/1"}'.encode()
    request, result = sent(
        lambda c: c.retain("bänk", [raw, {"content": "zwei"}], operation_id="0-1"), RETAINED
    )
    assert (request.method, request.target) == ("POST", "/v1/default/banks/b%C3%A4nk/memories")
    assert raw in request.body
    assert request.json == {
        "items": [{"content": "Grüße 👋", "document_id": "s/1"}, {"content": "zwei"}],
        "async": True,
        "operation_id": "0-1",
    }
    assert request.headers["content-type"] == "application/json"
    assert result == RETAINED


def test_retain_can_be_synchronous_and_without_an_id():
    """asynchronous=False is sent as such, and no operation_id unless one is given."""
    request, _ = sent(lambda c: c.retain("b", [], asynchronous=False), RETAINED)
    assert request.json == {"items": [], "async": False}


def test_lone_surrogates_are_sent_as_escapes():
    """Text that UTF-8 cannot hold does not keep the rest from being sent."""
    request, _ = sent(lambda c: c.retain("b", [{"content": "a\ud800ü"}]), RETAINED)
    assert b'"a\\ud800\\u00fc"' in request.body


def test_a_large_body_arrives_whole():
    """A body of many megabytes is sent in pieces under one Content-Length."""
    content = "ä" * 3_000_000
    request, _ = sent(lambda c: c.retain("b", [{"content": content}]), RETAINED)
    assert request.json["items"][0]["content"] == content
    assert int(request.headers["content-length"]) == len(request.body)
    assert "transfer-encoding" not in request.headers


@pytest.mark.parametrize(
    "call,method,target,body,answer",
    [
        (lambda c: c.version(), "GET", "/version", None, {"api_version": "1.1.0"}),
        (lambda c: c.health(), "GET", "/health", None, {"status": "healthy"}),
        (
            lambda c: c.operation("b", "0-1"),
            "GET",
            "/v1/default/banks/b/operations/0-1",
            None,
            {"status": "not_found"},
        ),
        (
            lambda c: c.retry_operation("b", "0-1"),
            "POST",
            "/v1/default/banks/b/operations/0-1/retry",
            None,
            {"success": True},
        ),
        (
            lambda c: c.documents("b", limit=7, query="a b&c", tags=["x:1", "y"]),
            "GET",
            "/v1/default/banks/b/documents?limit=7&offset=0&q=a+b%26c&tags=x%3A1&tags=y",
            None,
            {"items": [{"id": "d"}], "total": 1},
        ),
        (
            lambda c: c.recall("b", "what?", tags=("t",), tags_match="any_strict"),
            "POST",
            "/v1/default/banks/b/memories/recall",
            {"query": "what?", "tags": ["t"], "tags_match": "any_strict"},
            {"results": [{"id": "1", "text": "that"}]},
        ),
        (
            lambda c: c.reflect("b", "why?", budget="low"),
            "POST",
            "/v1/default/banks/b/reflect",
            {"query": "why?", "budget": "low"},
            {"text": "because"},
        ),
        (
            lambda c: c.bank_config("b"),
            "GET",
            "/v1/default/banks/b/config",
            None,
            {"config": {}, "overrides": {}},
        ),
        (
            lambda c: c.update_bank_config("b", {"retain_mission": "facts"}),
            "PATCH",
            "/v1/default/banks/b/config",
            {"updates": {"retain_mission": "facts"}},
            {"config": {}, "overrides": {}},
        ),
        (
            lambda c: c.update_bank("b", {"reflect_mission": "help"}),
            "PUT",
            "/v1/default/banks/b",
            {"reflect_mission": "help"},
            {"bank_id": "b"},
        ),
    ],
)
def test_each_method_is_one_request(call, method, target, body, answer):
    """Every method sends the request of the API and hands its answer back."""
    request, result = sent(call, answer)
    assert (request.method, request.target) == (method, target)
    assert (request.json if request.body else None) == body
    if isinstance(result, (str, list)):
        assert result in answer.values()
    else:
        assert result == answer


def test_an_older_server_calls_it_version():
    """The version is found under either name."""
    assert sent(version, {"version": "0.4.0"})[1] == "0.4.0"


@pytest.mark.parametrize(
    "document_id,path",
    [
        ("s/0192-ab", "s/0192-ab"),
        ("ü ?#%/&+;", "%C3%BC%20%3F%23%25/%26%2B%3B"),
        ("a//b", "a%2F%2Fb"),
        ("/a.b/", "%2Fa%2Eb%2F"),
        ("../x", "%2E%2E%2Fx"),
        ("..", "%2E%2E"),
        ("a\r\nHost: evil\0", "a%0D%0AHost%3A%20evil%00"),
    ],
)
def test_any_document_id_fits_into_a_path(document_id, path):
    """A document id is quoted so that no server or proxy on the way reads it differently."""
    request, _ = sent(lambda c: c.document("b", document_id), {"original_text": "t"})
    assert request.target == "/v1/default/banks/b/documents/" + path
    request, _ = sent(lambda c: c.delete_document("b", document_id), {})
    assert (request.method, request.target.endswith(path)) == ("DELETE", True)


@pytest.mark.parametrize(
    "call,named",
    [
        (lambda c: c.retain("a/b", []), "'a/b'"),
        (lambda c: c.retain("", []), "''"),
        (lambda c: c.recall("ä" * 97, "q"), "192"),
        (lambda c: c.recall("\ud800", "q"), "surrogate"),
        (lambda c: c.document("b", ""), "document id"),
        (lambda c: c.delete_document("b", None), "None"),
        (lambda c: c.operation("b", ""), "operation id"),
    ],
)
def test_ids_that_no_url_can_hold_are_refused(call, named):
    """An unusable id is a ConfigError, a ValueError, that names it, before anything is sent."""
    with ScriptedServer(answering((200, {}))) as server:
        error = failure(server.url, call)
        assert isinstance(error, ConfigError)
        assert isinstance(error, ValueError)
        assert named in str(error)
        assert server.requests == []


def test_a_bank_id_may_have_192_bytes():
    """The API's bound on bank ids counts UTF-8 bytes, and is allowed."""
    request, _ = sent(lambda c: c.reflect("ä" * 96, "q"), {"text": ""})
    assert request.target.count("%C3%A4") == 96


# --- URLs --------------------------------------------------------------------


@pytest.mark.parametrize(
    "given,normalised",
    [
        (" HTTP://LocalHost:80/ ", "http://localhost"),
        ("https://h.example:443/api//", "https://h.example/api"),
        ("http://h:8888/a%20b/ü", "http://h:8888/a%20b/%C3%BC"),
        ("http://[::1]:8888/", "http://[::1]:8888"),
        ("https://MÜNCHEN.example", "https://xn--mnchen-3ya.example"),
        ("http://my_service:1", "http://my_service:1"),
    ],
)
def test_a_url_has_one_spelling(given, normalised):
    """Equal servers have equal URLs, and normalising twice changes nothing."""
    assert HindsightClient(given).url == normalised
    assert normalise_url(normalised) == normalised


@pytest.mark.parametrize(
    "url,remedy",
    [
        ("localhost:8888", "http://"),
        ("", "http://"),
        ("ftp://h", "http://"),
        ("http://", "no host"),
        ("http://h:99999", "ort"),
        ("http://h:x", "ort"),
        ("http://h/a b", "spaces"),
        ("http://h\\x", "backslash"),
        ("http://[::g]", "http://localhost:8888"),
        (f"http://user:{KEY}@h", "user and password"),
        (f"http://h/?key={KEY}", "query"),
        ("http://" + "a" * 64 + ".example", "http"),
        ("http://a..b", "http"),
        (None, "text"),
    ],
)
def test_an_unusable_url_is_named_with_its_remedy(url, remedy):
    """A wrong URL is a ConfigError that shows it without secrets and says what to write."""
    with pytest.raises(ConfigError, match=remedy) as caught:
        HindsightClient(url)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("option", ["timeout", "connect_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), "5", None, True])
def test_time_outs_are_checked(option, value):
    """A time-out that is no positive number of seconds is refused by name."""
    with pytest.raises(ConfigError, match=option):
        HindsightClient("http://localhost", **{option: value})


def test_a_path_prefix_is_kept():
    """A server behind a path is asked under that path."""
    with ScriptedServer(answering((200, {"api_version": "1"}))) as server:
        ask(server.url + "/memory/api/", version)
        assert server.requests[0].target == "/memory/api/version"


def test_ipv6_literals_work():
    """A server is reached by its IPv6 address."""
    try:
        server = ScriptedServer(answering((200, {"api_version": "6"})), host="::1")
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        assert ask(server.url, version) == "6"


def test_host_names_work():
    """A server is reached by name."""
    with ScriptedServer(answering((200, {"api_version": "1"}))) as server:
        assert ask(f"http://localhost:{server.port}", version) == "1"


# --- the key -----------------------------------------------------------------


def test_the_key_is_sent_as_bearer():
    """The key goes into the Authorization header, without the blanks around it."""
    with ScriptedServer(answering((200, {"api_version": "1"}))) as server:
        ask(server.url, version, api_key=f" {KEY}\n")
        ask(server.url, version)
        with_key, without = server.requests
        assert with_key.headers["authorization"] == f"Bearer {KEY}"
        assert "authorization" not in without.headers


@pytest.mark.parametrize("key", ["two\nlines", "nul\0", "schlüssel"])
def test_a_key_that_no_header_carries_is_refused_unseen(key):
    """A key with odd characters is refused by an error that does not show it."""
    with pytest.raises(ConfigError) as caught:
        HindsightClient("http://localhost", api_key=key)
    assert key not in str(caught.value)


def everything_about(error):
    """All that an error and what it refers to would show."""
    seen = set()
    texts = ["".join(traceback.format_exception(type(error), error, error.__traceback__))]
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        texts += [repr(error), str(error), repr(vars(error)), repr(error.args)]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


@pytest.mark.parametrize(
    "script",
    [
        answering((401, {"detail": f"unknown key {KEY}"})),
        answering((503, f"no {KEY} today".encode())),
        answering((200, [KEY])),
        answering((200, {"api_version": [KEY]})),
        answering((302, b"", {"Location": f"http://u:{KEY}@h/?k={KEY}"})),
        lambda c: (c.request(), c.raw(b"SSH-2.0-OpenSSH\r\n\r\n")),
        lambda c: (c.request(), c.reset()),
        lambda c: c.request(),
    ],
)
def test_the_key_appears_nowhere(script, caplog):
    """No repr, log or error shows the key, not even one that the server sends back."""
    caplog.set_level(logging.DEBUG)
    with ScriptedServer(script) as server:
        error = failure(server.url, api_key=KEY)
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert isinstance(error, ServerError)
    assert KEY not in everything_about(error)
    assert KEY not in caplog.text
    client = HindsightClient("http://localhost:1", api_key=KEY)
    assert repr(client) == "<HindsightClient 'http://localhost:1' with a key>"


def test_a_redirect_is_not_followed():
    """A redirect is a BadResponse that names its target; the key goes nowhere else."""
    with ScriptedServer(answering((200, {"api_version": "1"}))) as other:
        target = f"{other.url}/version"
        with ScriptedServer(answering((307, b"", {"Location": target + "?a=b"}))) as server:
            error = failure(server.url, api_key=KEY)
        assert other.connections == 0
    assert isinstance(error, BadResponse)
    assert (error.status, target in error.detail, "a=b" in error.detail) == (307, True, False)


@pytest.mark.parametrize(
    "url,key,warned",
    [
        ("http://memory.example", KEY, True),
        ("http://192.0.2.1:8888", KEY, True),
        ("http://memory.example", None, False),
        ("https://memory.example", KEY, False),
        ("http://localhost:8888", KEY, False),
        ("http://api.localhost", KEY, False),
        ("http://127.1.2.3", KEY, False),
        ("http://[::1]", KEY, False),
    ],
)
def test_a_key_over_plain_http_is_warned_of(url, key, warned, own_log):
    """One warning says that a key leaves this machine unencrypted."""
    HindsightClient(url, api_key=key)
    assert len(own_log.records) == warned
    assert all(record.name == "hindsight_exec" for record in own_log.records)


# --- statuses ----------------------------------------------------------------


@pytest.mark.parametrize(
    "status,kind",
    [
        *((status, Unavailable) for status in (408, 429, 499, 500, 502, 503, 504, 529, 402, 407)),
        *((status, Rejected) for status in (400, 404, 405, 409, 413, 422, 418)),
        *((status, Unauthorized) for status in (401, 403)),
        *((status, BadResponse) for status in (300, 304, 600)),
    ],
)
def test_a_status_is_one_kind_of_error(status, kind):
    """Every status but 2xx is one of the four errors, with all that is known about it."""
    with ScriptedServer(answering((status, {"detail": "why"} if status != 304 else b""))) as server:
        error = failure(server.url, lambda c: c.documents("b", query="private"))
        assert type(error) is kind
        assert error.method == "GET"
        assert error.url == server.url + "/v1/default/banks/b/documents"
        assert error.status == status
        if kind is not BadResponse:
            assert error.detail == "why"
            assert str(error) == f"GET {error.url}: HTTP {status}: why"


@pytest.mark.parametrize(
    "body,detail",
    [
        ({"detail": "plain"}, "plain"),
        ({"error": "other"}, "other"),
        ({"detail": {"code": 7}}, '{"code": 7}'),
        (
            {"detail": [{"loc": ["body", "items", 0], "msg": "wrong", "input": "private"}]},
            "body.items.0: wrong",
        ),
        (b"<h1>\nBad\r\n\tGateway\x1b[31m</h1>", "<h1> Bad Gateway\ufffd[31m</h1>"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"", ""),
        (b"[" * 50_000, "[" * 499 + "…"),
        (b"x" * 1_000_000, "x" * 499 + "…"),
    ],
)
def test_the_detail_is_one_bounded_line(body, detail):
    """What the server says is kept, as one line of at most 500 printable characters."""
    assert answered(422, body).detail in (detail, "")
    if len(body) < 60_000:
        assert answered(422, body).detail == detail


@pytest.mark.parametrize(
    "value,seconds",
    [
        ("7", 7),
        ("0", 0),
        ("999999", 3600),
        ("9" * 400, 3600),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("1e3", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 9999 07:28:00 GMT", 3600),
        ("Wed, 21 Oct 99999999 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value, seconds):
    """Retry-After is understood in both forms, and kept between 0 and 3600 seconds."""
    assert answered(503, {}, {"Retry-After": value}).retry_after == seconds


def test_retry_after_as_a_date_to_come():
    """A date is turned into the seconds until then."""
    error = answered(429, {}, {"Retry-After": formatdate(time.time() + 1800, usegmt=True)})
    assert 0 < error.retry_after <= 1800


def test_errors_survive_pickle_and_copy():
    """An error keeps its attributes where it is copied or crosses processes."""
    error = Unavailable("GET", "http://h/", 503, "busy", 7.0)
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(same), str(same)) == (Unavailable, "GET http://h/: HTTP 503: busy")
        assert (same.status, same.retry_after) == (503, 7.0)


# --- answers -----------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>captive portal</html>",
        b"\xff",
        '{"api_version": "1"}'.encode("utf-16"),
        b'{"api_version": "1"',
        b'{"api_version": NaN}',
        b'{"api_version": "1", "n": 1e999}',
        b'{"api_version": "1", "n": ' + b"9" * 5000 + b"}",
        b"[" * 200_000,
        b"[]",
        b"null",
        b"{}",
        b'{"api_version": 1}',
    ],
)
def test_an_answer_that_is_not_the_api_is_a_bad_response(body):
    """Whatever a 2xx answer holds instead of the JSON of the API is a BadResponse."""
    error = answered(200, body)
    assert type(error) is BadResponse
    assert error.status == 200
    assert len(error.detail) <= 500


@pytest.mark.parametrize(
    "call,body",
    [
        (lambda c: c.health(), {"status": 1}),
        (lambda c: c.retain("b", []), {}),
        (lambda c: c.retain("b", []), {"success": False}),
        (lambda c: c.retain("b", []), {"success": True, "operation_id": 7}),
        (lambda c: c.operation("b", "1"), {"status": None}),
        (lambda c: c.document("b", "d"), {"original_text": 1}),
        (lambda c: c.documents("b"), {"items": {}, "total": 0}),
        (lambda c: c.documents("b"), {"items": [1], "total": 0}),
        (lambda c: c.documents("b"), {"items": [], "total": True}),
        (lambda c: c.recall("b", "q"), {"results": None}),
        (lambda c: c.recall("b", "q"), {"results": [{"text": None}]}),
        (lambda c: c.reflect("b", "q"), {"text": []}),
        (lambda c: c.bank_config("b"), {"config": []}),
    ],
)
def test_wrong_types_are_a_bad_response(call, body):
    """A field that callers rely on has its type, or the answer is refused."""
    assert type(answered(200, body, call=call)) is BadResponse


def test_a_compressed_answer_is_read():
    """gzip is asked for, and understood."""
    body = gzip.compress(b'{"api_version": "1"}')
    with ScriptedServer(answering((200, body, {"Content-Encoding": "gzip"}))) as server:
        assert ask(server.url, version) == "1"
        assert server.requests[0].headers["accept-encoding"] == "gzip"


def bomb():
    """Return 40 MB in some kilobytes."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join([*(packer.compress(bytes(2**20)) for _ in range(40)), packer.flush()])


@pytest.mark.parametrize(
    "encoding,body",
    [
        ("gzip", bomb()),
        ("gzip", b"not gzip"),
        ("gzip", gzip.compress(b'{"api_version": "1"}', mtime=0)[:-9]),
        ("br", b"?"),
        ("identity", b" " * (33 * 2**20)),
    ],
)
def test_an_answer_is_bounded_and_decodable(encoding, body):
    """An answer of more than 32 MiB when decoded, or in an odd encoding, is refused."""
    error = answered(200, body, {"Content-Encoding": encoding})
    assert type(error) is BadResponse
    assert error.status == 200


def test_an_endless_error_answer_is_not_read_to_its_end():
    """Of an error's answer only the beginning is read."""

    def script(connection):
        connection.request()
        connection.raw(b"HTTP/1.1 500 Oops\r\n\r\n")
        while True:
            connection.raw(bytes(2**16))

    with ScriptedServer(script) as server:
        assert failure(server.url).status == 500


# --- connections -------------------------------------------------------------


def test_a_refused_connection_is_unavailable():
    """Nobody listening is Unavailable, caused by the OSError."""
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        port = sock.getsockname()[1]
    error = failure(f"http://127.0.0.1:{port}")
    assert type(error) is Unavailable
    assert (error.status, error.retry_after) == (None, None)
    assert isinstance(error.__cause__, OSError)


def test_an_unknown_host_is_unavailable():
    """A name that does not resolve is Unavailable."""
    error = failure("http://no-such-host.invalid")
    assert type(error) is Unavailable
    assert isinstance(error.__cause__, socket.gaierror)


def test_a_connection_has_a_bound():
    """A server that does not accept is Unavailable after the connect time-out."""
    with closing(socket.socket()) as sock, closing(socket.socket()) as filler:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        filler.setblocking(False)
        filler.connect_ex(sock.getsockname())
        others = [socket.socket() for _ in range(3)]
        for other in others:  # the queue is full, further connections hang
            other.setblocking(False)
            other.connect_ex(sock.getsockname())
        error = failure(f"http://127.0.0.1:{sock.getsockname()[1]}", connect_timeout=0.3)
        for other in others:
            other.close()
    assert type(error) is Unavailable
    assert error.detail == "no connection within 0.3 s"


def test_the_connect_time_out_covers_the_name_lookup():
    """A lookup that hangs is Unavailable after the connect time-out."""
    gate = threading.Event()

    async def main():
        loop = asyncio.get_running_loop()
        pool = ThreadPoolExecutor(1)
        loop.set_default_executor(pool)
        pool.submit(gate.wait)
        try:
            async with HindsightClient("http://localhost:1", connect_timeout=0.3) as client:
                await client.version()
        finally:
            gate.set()

    with pytest.raises(Unavailable, match="no connection within"):
        asyncio.run(main())


def test_an_answer_has_a_bound():
    """A server that does not answer is Unavailable after the total time-out."""
    with ScriptedServer(lambda c: (c.request(), c.request())) as server:
        error = failure(server.url, timeout=0.3)
    assert type(error) is Unavailable
    assert error.detail == "no response within 0.3 s"


@pytest.mark.parametrize(
    "script,kind",
    [
        (lambda c: c.request(), Unavailable),
        (lambda c: (c.request(), c.reset()), Unavailable),
        (lambda c: (c.request(), c.raw(b"HTTP/1.1 200 OK\r\nContent-Le")), Unavailable),
        (
            lambda c: (c.request(), c.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")),
            Unavailable,
        ),
        (lambda c: (c.request(), c.raw(b"SSH-2.0-OpenSSH\r\n\r\n")), BadResponse),
        (
            lambda c: (c.request(), c.raw(b"HTTP/1.1 413 No\r\nContent-Length: 9\r\n\r\n{")),
            Rejected,
        ),
    ],
)
def test_a_broken_answer(script, kind):
    """A connection lost is Unavailable, one that is not HTTP a BadResponse; a status counts."""
    with ScriptedServer(script) as server:
        assert type(failure(server.url, lambda c: c.retain("b", []))) is kind


def test_a_refusal_while_the_body_is_sent_is_heard():
    """An answer given before a large body has arrived is what the caller gets."""

    def script(connection):
        head = connection.head()
        connection.answer(413, {"detail": "too large"})
        connection.stream.read(int(head.headers["content-length"]))

    with ScriptedServer(script) as server:
        error = failure(server.url, lambda c: c.retain("b", [{"content": "x" * 5_000_000}]))
    assert type(error) is Rejected
    assert error.detail == "too large"


def drops_second_request(connection):
    """Answer a request, and close on the next, as a server that gave up idling does."""
    connection.request()
    connection.answer(200, {"success": True, "text": "", "api_version": "1", "config": {}})
    if connection.server.connections == 1:
        connection.request()
        return
    while connection.request() is not None:
        connection.answer(200, {"success": True, "text": "", "api_version": "1", "config": {}})


@pytest.mark.parametrize(
    "call",
    [
        version,
        lambda c: c.reflect("b", "q"),
        lambda c: c.retain("b", [{"content": "x" * 2_000_000}], operation_id="1"),
        lambda c: c.update_bank_config("b", {}),
    ],
)
def test_an_idempotent_request_is_sent_again_once(call):
    """A kept connection that turns out to be closed costs an idempotent request nothing."""

    async def twice(client):
        await client.version()
        return await call(client)

    with ScriptedServer(drops_second_request) as server:
        ask(server.url, twice)
        assert server.connections == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.retain("b", [{"content": "x"}]),
        lambda c: c.retain("b", [], asynchronous=False, operation_id="1"),
        lambda c: c.retry_operation("b", "1"),
    ],
)
def test_what_is_not_idempotent_is_never_sent_twice(call):
    """A request that might be done twice fails instead, and its caller decides."""

    async def twice(client):
        await client.version()
        return await call(client)

    with ScriptedServer(drops_second_request) as server:
        assert type(failure(server.url, twice)) is Unavailable
        assert server.connections == 1
        assert len(server.requests) == 2


def test_a_fresh_connection_that_fails_is_not_tried_again():
    """Only a kept connection is a reason to send a second time."""
    with ScriptedServer(lambda c: c.request()) as server:
        assert type(failure(server.url, lambda c: c.reflect("b", "q"))) is Unavailable
        assert len(server.requests) == 1


def test_hundreds_of_requests_at_once():
    """No pool makes one request wait for another's end."""
    everyone = threading.Barrier(150)

    def script(connection):
        connection.request()
        everyone.wait()
        connection.answer(200, {"text": "done"})

    async def many(client):
        return await asyncio.gather(*(client.reflect("b", str(n)) for n in range(150)))

    with ScriptedServer(script) as server:
        assert ask(server.url, many) == ["done"] * 150


def test_a_client_works_on_one_loop_after_another():
    """Each loop has connections of its own, and closing is no end."""
    with ScriptedServer(answering((200, {"api_version": "1"}))) as server:
        client = HindsightClient(server.url)

        async def main():
            first = await client.version()
            await client.close()
            await client.close()
            second = await client.version()
            await client.close()
            return first, second

        assert asyncio.run(main()) == ("1", "1")
        assert asyncio.run(main()) == ("1", "1")
        assert server.connections == 4


# --- TLS and proxies ---------------------------------------------------------


@pytest.fixture
def certificate(tmp_path):
    file = tmp_path / "ca.pem"
    file.write_text(CERTIFICATE)
    return str(file)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_own_certificates_are_trusted(variable, certificate, monkeypatch):
    """A CA of one's own is named by the variables that other tools read."""
    monkeypatch.setenv(variable, certificate)
    with ScriptedServer(answering((200, {"api_version": "1"})), tls=True) as server:
        assert ask(server.url, version, api_key=KEY) == "1"
        assert ask(f"https://localhost:{server.port}", version) == "1"


def test_an_unknown_certificate_is_unavailable():
    """A certificate that nobody vouches for gets no request and no key."""
    with ScriptedServer(answering((200, {"api_version": "1"})), tls=True) as server:
        error = failure(server.url, api_key=KEY)
        assert server.requests == []
    assert type(error) is Unavailable
    assert "certificate verify failed" in error.detail


def test_a_missing_ca_file_is_named(monkeypatch, tmp_path):
    """A CA variable that names no file is Unavailable, and told."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    error = failure("https://127.0.0.1:1")
    assert type(error) is Unavailable
    assert "REQUESTS_CA_BUNDLE" in error.detail


def test_plain_http_where_tls_is_expected_is_unavailable():
    """A server that speaks no TLS is Unavailable."""
    with ScriptedServer(lambda c: (c.sock.recv(9), c.raw(b"HTTP/1.1 400 No\r\n\r\n"))) as server:
        assert type(failure(server.url.replace("http", "https"))) is Unavailable


@pytest.mark.parametrize("spelling", ["http://user:pass%40@{}", "user:pass%40@{}"])
def test_http_goes_through_the_proxy(spelling, monkeypatch):
    """http_proxy is heeded, its user and password sent to it."""
    with ScriptedServer(answering((200, {"api_version": "1"}))) as proxy:
        monkeypatch.setenv("http_proxy", spelling.format(f"127.0.0.1:{proxy.port}"))
        assert ask("http://hindsight.example/p", version) == "1"
        (request,) = proxy.requests
        assert request.target == "http://hindsight.example/p/version"
        assert request.headers["proxy-authorization"] == "Basic dXNlcjpwYXNzQA=="


def test_https_goes_through_a_tunnel(certificate, monkeypatch):
    """https_proxy carries TLS to the server itself; the proxy never sees the key."""

    def script(connection):
        connection.request()
        connection.raw(b"HTTP/1.1 200 Connected\r\n\r\n")
        connection.start_tls()
        connection.request()
        connection.answer(200, {"api_version": "1"})

    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    with ScriptedServer(script) as proxy:
        monkeypatch.setenv("https_proxy", f"http://user:pass@127.0.0.1:{proxy.port}")
        assert ask("https://hindsight.example", version, api_key=KEY) == "1"
        connect, inner = proxy.requests
    assert (connect.method, connect.target) == ("CONNECT", "hindsight.example:443")
    assert connect.headers["proxy-authorization"].startswith("Basic ")
    assert "authorization" not in connect.headers
    assert inner.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("url", ["http://hindsight.example", "https://hindsight.example"])
def test_a_proxy_that_refuses_is_unavailable(url, monkeypatch):
    """A proxy's refusal says nothing about the request; its password is not shown."""
    with ScriptedServer(answering((407, {}))) as proxy:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://user:{KEY}@127.0.0.1:{proxy.port}")
        error = failure(url)
    assert type(error) is Unavailable
    assert "407" in str(error)
    assert KEY not in everything_about(error)


def test_a_proxy_of_another_kind_is_unavailable(monkeypatch):
    """A proxy that aiohttp cannot use is told, and not passed by."""
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    assert type(failure("http://hindsight.example")) is Unavailable


@pytest.mark.parametrize(
    "port, words",
    [
        ("notaport", "the proxy's URL is invalid; correct http_proxy"),
        ("1", "no connection to the proxy"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(port, words, monkeypatch):
    """What is wrong with the proxy is told, and its password is not shown."""
    monkeypatch.setenv("http_proxy", f"http://user:{KEY}@127.0.0.1:{port}")
    error = failure("http://hindsight.example")
    assert type(error) is Unavailable
    assert words in str(error)
    assert KEY not in everything_about(error)


@pytest.mark.parametrize("no_proxy", ["", "hindsight.example", ".example", "*"])
def test_no_proxy_is_heeded(no_proxy, monkeypatch):
    """Named hosts, and this machine always, are asked directly."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", no_proxy)
    with ScriptedServer(answering((200, {"api_version": "1"}))) as server:
        assert ask(server.url, version) == "1"
    through_proxy = "127.0.0.1" in failure("http://hindsight.example:1").detail
    assert through_proxy == (not no_proxy)


def test_netrc_is_not_read(monkeypatch, tmp_path):
    """Credentials of a .netrc neither replace the key nor clash with it."""
    (tmp_path / "netrc").write_text("default login user password wrong\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with ScriptedServer(answering((200, {"api_version": "1"}))) as server:
        ask(server.url, version, api_key=KEY)
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_without_aiohttp(run):
    """Commands and the worker name the missing package in one line; turns are kept."""
    ended = run(
        """
        import sys
        sys.modules["aiohttp"] = None
        from hindsight_exec import RetainWriter, Settings
        from hindsight_exec.cli.main import main
        url = "http://127.0.0.1:1"
        say(main(["serve", "--port", "0"]))
        say(main(["memories", "list", "--url", url, "--bank", "b"]))
        writer = RetainWriter(Settings(api_url=url, bank_id="b"), state="state")
        say(writer.put([{"role": "user", "content": "one"}], session="s"))
        writer.close()
        say(writer.counters().waiting)
        """
    )
    assert (ended.status, ended.out) == (0, "1\n3\nTrue\n1\n")
    assert "Traceback" not in ended.err
    assert ended.err.count("aiohttp for ") == 1
    assert "-m pip install aiohttp'" in ended.err
    assert "1 turn is saved on disk" in ended.err
