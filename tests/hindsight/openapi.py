"""Checks requests and answers against a server's own OpenAPI description."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, unquote

from .proxy import Exchange

TYPES: dict[str, Any] = {
    "array": list,
    "boolean": bool,
    "integer": int,
    "null": type(None),
    "number": (int, float),
    "object": dict,
    "string": str,
}


class OpenAPI:
    def __init__(self, description: dict[str, Any]) -> None:
        self.description = description
        self.routes = []
        for path, operations in description["paths"].items():
            # A document's id is the rest of the path, slashes and all.
            pattern = re.sub(
                r"\\{(\w+)\\}",
                lambda name: "(.+)" if name[1] == "document_id" else "([^/]+)",
                re.escape(path),
            )
            for method, operation in operations.items():
                self.routes.append((method.upper(), re.compile(pattern), operation))

    def problems(self, exchange: Exchange) -> Iterator[str]:
        """What of a request, or of its answer, is not as described."""
        found = [
            operation
            for method, pattern, operation in self.routes
            if method == exchange.method and pattern.fullmatch(exchange.path)
        ]
        if not found:
            yield f"{exchange.method} {exchange.path}: no such request"
            return
        operation = found[0]
        yield from self._query(operation, exchange)
        described = operation.get("requestBody")
        if described:
            schema = described["content"]["application/json"]["schema"]
            if exchange.headers.get("content-type") != "application/json":
                yield f"its Content-Type is {exchange.headers.get('content-type')}"
            # What a request has and the server does not know is ignored there: a mistake here.
            yield from self.differences(json.loads(exchange.body), schema, "body", strict=True)
        elif exchange.body:
            yield "it has a body"
        yield from self.answer_problems(operation, exchange)

    def answer_problems(self, operation: dict[str, Any], exchange: Exchange) -> Iterator[str]:
        described = operation["responses"].get(str(exchange.status))
        if described and "content" in described:
            schema = described["content"]["application/json"]["schema"]
            yield from self.differences(json.loads(exchange.answer), schema, "answer")

    def _query(self, operation: dict[str, Any], exchange: Exchange) -> Iterator[str]:
        known = {
            parameter["name"]: parameter["schema"]
            for parameter in operation.get("parameters", ())
            if parameter["in"] == "query"
        }
        for name, text in parse_qsl(exchange.target.partition("?")[2], keep_blank_values=True):
            if name not in known:
                yield f"no such parameter: {name}"
                continue
            values: list[Any] = [text, [text]]
            if re.fullmatch(r"-?\d+", text):
                values.append(int(text))
            if all(list(self.differences(value, known[name], name)) for value in values):
                yield f"parameter {name}: {unquote(text)!r} does not fit"

    def differences(
        self, value: Any, schema: dict[str, Any], where: str, *, strict: bool = False
    ) -> Iterator[str]:
        """How a value differs from a JSON schema, as far as FastAPI writes them."""
        if "$ref" in schema:
            schema = self.description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        choices = schema.get("anyOf") or schema.get("oneOf")
        if choices:
            found = [list(self.differences(value, one, where, strict=strict)) for one in choices]
            if all(found):
                yield from min(found, key=len)
        kind = schema.get("type")
        if kind and (
            not isinstance(value, TYPES[kind])
            or (isinstance(value, bool) and kind in ("integer", "number"))
        ):
            yield f"{where}: {value!r:.80} is no {kind}"
            return
        if "enum" in schema and value not in schema["enum"]:
            yield f"{where}: {value!r} is none of {schema['enum']}"
        if "const" in schema and value != schema["const"]:
            yield f"{where}: {value!r} is not {schema['const']!r}"
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            least, most = schema.get("minimum", value), schema.get("maximum", value)
            if not least <= value <= most:
                yield f"{where}: {value!r} is not from {least} to {most}"
        if isinstance(value, list) and "items" in schema:
            for index, item in enumerate(value):
                yield from self.differences(
                    item, schema["items"], f"{where}[{index}]", strict=strict
                )
        if isinstance(value, dict):
            yield from self._object(value, schema, where, strict=strict)

    def _object(
        self, value: dict[str, Any], schema: dict[str, Any], where: str, *, strict: bool
    ) -> Iterator[str]:
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties", not properties or not strict)
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{where}: {name} is missing"
        for name, item in value.items():
            described = properties.get(name, others)
            if described is False:
                yield f"{where}: {name} is unknown"
            elif isinstance(described, dict):
                yield from self.differences(item, described, f"{where}.{name}", strict=strict)
