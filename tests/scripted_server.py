"""An HTTP server that does as told, on real sockets: each connection runs a script."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

# For localhost, 127.0.0.1 and hindsight.example, signed by itself, until 2120.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgatFHNrbZCqeFNKGL
e8yzlIwtksKWyR5Hj8IWI71zq9ahRANCAATsKFm2iOS3E4FU4yQn0VCPCNZypXDv
fpbKwoqEMfiAc8jAB5YUQR/QsnE2nT27KG+Dies9aELAuiU3dOdCadZg
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBgDCCASagAwIBAgIBATAKBggqhkjOPQQDAjAPMQ0wCwYDVQQDDAR0ZXN0MCAX
DTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAPMQ0wCwYDVQQDDAR0ZXN0
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE7ChZtojktxOBVOMkJ9FQjwjWcqVw
736WysKKhDH4gHPIwAeWFEEf0LJxNp09uyhvg4nrPWhCwLolN3TnQmnWYKNxMG8w
LQYDVR0RBCYwJIIJbG9jYWxob3N0ghFoaW5kc2lnaHQuZXhhbXBsZYcEfwAAATAP
BgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwIBhjAdBgNVHQ4EFgQUftN0yqhL
l8jfLnoA2rldxIzOdsMwCgYIKoZIzj0EAwIDSAAwRQIhAL/aT5p3hLW5IiJrjSsQ
OHmF8RoXFqlRSuxm/iXG/kubAiAfh1Zi3gA0f90NrZQxywHCLXHQZjh558ApdVhw
98W+wA==
-----END CERTIFICATE-----
"""


class Request:
    """What a client sent."""

    def __init__(self, method, target, headers, body):
        self.method = method
        self.target = target
        self.headers = headers  # names in lower case
        self.body = body

    @property
    def json(self):
        return json.loads(self.body)


class Connection:
    """One client's connection, as its script sees it."""

    def __init__(self, server, sock):
        self.server = server
        self.sock = sock
        self.stream = sock.makefile("rb")

    def head(self):
        """Read a request up to its body; None at the end of the connection."""
        line = self.stream.readline()
        if not line:
            return None
        method, target, _ = line.decode("latin-1").split(" ", 2)
        headers = {}
        while (line := self.stream.readline().decode("latin-1").rstrip("\r\n")) != "":
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        request = Request(method, target, headers, b"")
        self.server.requests.append(request)
        return request

    def request(self):
        """Read a request; None at the end of the connection."""
        request = self.head()
        if request is not None:
            request.body = self.stream.read(int(request.headers.get("content-length", 0)))
        return request

    def answer(self, status=200, body=None, headers=()):
        """Answer with an object (as JSON) or bytes, as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        lines = [f"HTTP/1.1 {status} Scripted", f"Content-Length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in dict(headers).items()]
        self.raw("\r\n".join([*lines, "", ""]).encode() + content)

    def raw(self, data):
        self.sock.sendall(data)

    def reset(self):
        """End the connection with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self):
        self.stream.close()
        self.sock.close()

    def start_tls(self):
        """Be the TLS server from here on, as behind a proxy's CONNECT."""
        self.stream.close()
        self.sock = tls_context().wrap_socket(self.sock, server_side=True)
        self.stream = self.sock.makefile("rb")


def tls_context():
    """Context of a TLS server that shows CERTIFICATE."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "certificate.pem"
        file.write_text(CERTIFICATE)
        context.load_cert_chain(file)
    return context


def answering(*answers):
    """Give a script that answers a connection's requests: (status, body, headers)."""
    left = list(answers)

    def script(connection):
        while connection.request() is not None:
            connection.answer(*(left.pop(0) if len(left) > 1 else left[0]))

    return script


class ScriptedServer:
    """Runs `script(connection)` on a thread for every connection, then closes it."""

    def __init__(self, script, *, tls=False, host="127.0.0.1"):
        self.script = script
        self.requests = []
        self.connections = 0
        self.tls = tls_context() if tls else None
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.create_server((host, 0), family=family, backlog=100)
        self.port = self.socket.getsockname()[1]
        where = f"[{host}]" if ":" in host else host
        self.url = f"http{'s' if tls else ''}://{where}:{self.port}"
        self.open = set()
        self.closed = False
        self.mistakes = []

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind, *_):
        self.closed = True
        # Closing it would not wake accept().
        socket.create_connection(self.socket.getsockname()[:2]).close()
        self.socket.close()
        for sock in list(self.open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if kind is None:
            assert not self.mistakes, self.mistakes

    def _accept(self):
        while True:
            try:
                sock, _ = self.socket.accept()
            except OSError:
                return
            if self.closed:
                sock.close()
                return
            self.connections += 1
            self.open.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        plain = sock
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls is not None:
                sock = self.tls.wrap_socket(sock, server_side=True)
            connection = Connection(self, sock)
            try:
                self.script(connection)
            finally:
                connection.close()
        except OSError:
            pass  # the client has gone
        except Exception as error:
            self.mistakes.append(error)  # of the script, which the test must not miss
        finally:
            self.open.discard(plain)
            plain.close()
