"""Stands in for the models a Hindsight server asks: embeddings and chat completions, no download."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Optional

DIMENSIONS = 384


def embedding(text: str) -> list[float]:
    """A hashed bag of words: texts that share words are near each other."""
    vector = [0.0] * DIMENSIONS
    for word in re.findall(r"\w+", text.lower()):
        digest = hashlib.md5(word.encode(), usedforsecurity=False).digest()
        vector[int.from_bytes(digest[:4], "big") % DIMENSIONS] += 1.0
    return vector


class Models:
    """An HTTP server of its own thread. Safe from any thread.

    `trouble`, once set, is what the chat model answers every request with, as an error.
    `asked` counts the chat completions asked for, `characters` those of their prompts.
    """

    def __init__(self) -> None:
        self.trouble: Optional[str] = None
        self.asked = self.characters = 0
        models = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = models._answer(self.path, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                """A server that is killed leaves its requests: nothing to say."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path.endswith("/embeddings"):
            texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
            data = []
            for index, text in enumerate(texts):
                vector: Any = embedding(str(text))
                if body.get("encoding_format") == "base64":
                    packed = struct.pack(f"<{DIMENSIONS}f", *vector)
                    vector = base64.b64encode(packed).decode()
                data.append({"object": "embedding", "index": index, "embedding": vector})
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            return 200, {"object": "list", "model": "stub", "data": data, "usage": usage}
        self.asked += 1
        self.characters += sum(len(str(message.get("content"))) for message in body["messages"])
        if self.trouble is not None:
            error = {"message": self.trouble, "type": "server_error", "code": None}
            return 500, {"error": error}
        message = tool_call(body) if body.get("tools") else facts(body)
        return 200, {
            "id": "stub",
            "object": "chat.completion",
            "created": 0,
            "model": "stub",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }


def facts(body: dict[str, Any]) -> dict[str, Any]:
    """One fact: the last words of the request."""
    said = body["messages"][-1]["content"]
    fact = {
        "what": re.sub(r"\s+", " ", said if isinstance(said, str) else json.dumps(said))[-2000:],
        **dict.fromkeys(("when", "where", "who", "why"), "N/A"),
        "fact_kind": "conversation",
        "fact_type": "world",
        "entities": [],
    }
    return {"role": "assistant", "content": json.dumps({"facts": [fact]})}


def tool_call(body: dict[str, Any]) -> dict[str, Any]:
    """The quickest way to an answer among the tools offered, with the arguments it requires."""
    tools = {tool["function"]["name"]: tool["function"] for tool in body["tools"]}
    quickest = [name for name in ("done", "answer_ready", *tools) if name in tools]
    choice = body.get("tool_choice")
    name = choice["function"]["name"] if isinstance(choice, dict) else quickest[0]
    schema = tools[name]["parameters"]
    values: dict[object, object] = {"integer": 1, "boolean": True, "array": [], "object": {}}
    arguments = {
        key: values.get(schema["properties"][key].get("type"), "what the stub answers")
        for key in schema.get("required", ())
    }
    function = {"name": name, "arguments": json.dumps(arguments)}
    call = {"id": f"call-{name}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}
