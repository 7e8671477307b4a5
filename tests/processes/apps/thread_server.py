"""A web server in a non-daemon thread: it goes on when main has ended, until GET /stop."""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import handling


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/stop":
            threading.Thread(target=server.shutdown).start()
        body = handling.serve()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


# One thread for all requests: 3.12.0 to 3.12.2 can start none when main has ended.
server = HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
threading.Thread(target=server.serve_forever).start()
