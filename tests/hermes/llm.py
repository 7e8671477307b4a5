"""A stand-in for a language model: an OpenAI-compatible server that says one thing.

Asked to delegate, it calls the tool that does.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPLY = "Noted, all of it."


class FakeLLM:
    """Answers every chat completion with `REPLY`, streamed or not."""

    def __init__(self) -> None:
        self.chats: list[dict[str, Any]] = []
        self.answered = threading.Condition()
        llm = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                model = {"id": "fake-model", "object": "model", "context_length": 131072}
                self._send({"object": "list", "data": [model]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                said, reason = _says(body)
                if body.get("stream"):
                    self._stream(said, reason)
                else:
                    message = {"role": "assistant", **said}
                    choice = {"index": 0, "message": message, "finish_reason": reason}
                    self._send(_chat("chat.completion", choices=[choice]))
                with llm.answered:
                    llm.chats.append(body)
                    llm.answered.notify_all()

            def _send(self, answer: Any) -> None:
                data = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _stream(self, said: dict[str, Any], reason: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                for delta, ending in (({"role": "assistant", **said}, None), ({}, reason)):
                    choice = {"index": 0, "delta": delta, "finish_reason": ending}
                    chunk = _chat("chat.completion.chunk", choices=[choice])
                    self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _says(body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """`REPLY`, or a call of the tool that a message asks for: `delegate: what`."""
    last = body["messages"][-1]
    text = last["content"] if isinstance(last.get("content"), str) else json.dumps(last)
    tools = {tool["function"]["name"]: tool["function"] for tool in body.get("tools", ())}
    if last["role"] != "user" or "delegate: " not in text or "delegate_task" not in tools:
        return {"content": REPLY}, "stop"
    task = {"goal": text.partition("delegate: ")[2].split()[0]}
    takes = tools["delegate_task"]["parameters"]["properties"]
    arguments = json.dumps(task if "goal" in takes else {"tasks": [task]})
    call = {"name": "delegate_task", "arguments": arguments}
    return {
        "tool_calls": [{"index": 0, "id": "1", "type": "function", "function": call}]
    }, "tool_calls"


def _chat(kind: str, **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"id": "1", "object": kind, "created": 0, "model": "fake-model", "usage": usage, **more}
