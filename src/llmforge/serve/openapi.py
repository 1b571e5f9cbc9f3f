"""The description of the API, as JSON and as a page that loads nothing from elsewhere."""

from __future__ import annotations

import html
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from llmforge.serve.wire_chat import ChatRequest
from llmforge.serve.wire_text import (
    CompletionRequest,
    DegradeRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    LoadAdapterRequest,
    ScoreRequest,
    TokenizeRequest,
    UnloadAdapterRequest,
)

BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/score": ScoreRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/admin/degrade": DegradeRequest,
    "/v1/load_lora_adapter": LoadAdapterRequest,
    "/v1/unload_lora_adapter": UnloadAdapterRequest,
}
PLACE = "#/components/schemas/"
TEXT = {"type": "string"}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": {"anyOf": [TEXT, {"type": "null"}]},
                "code": {"anyOf": [TEXT, {"type": "null"}]},
            },
        }
    },
}
STREAMED = {"text/event-stream": {"schema": TEXT}}
STYLE = "body{font:16px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}code{background:#eee;padding:0 .2em}"


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document. Bodies are read by `read_body`, so FastAPI does not know them by itself."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes, servers=app.servers)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Error"] = ERROR
    error = {"description": "An error in OpenAI's shape", "content": {"application/json": {"schema": ref("Error")}}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"] |= {"4XX": error, "5XX": error}
        if path in BODIES:
            schema = BODIES[path].model_json_schema(ref_template=PLACE + "{model}")
            schemas |= schema.pop("$defs", {})
            schemas[BODIES[path].__name__] = schema
            content = {"application/json": {"schema": ref(BODIES[path].__name__)}}
            operations["post"]["requestBody"] = {"required": True, "content": content}
        if path.endswith("/completions"):
            operations["post"]["responses"]["200"]["content"] |= STREAMED
    return document


def ref(name: str) -> dict[str, str]:
    return {"$ref": PLACE + name}


def page(document: dict[str, Any]) -> str:
    """The document for people."""
    parts = [f"<!doctype html><title>Forge API</title><style>{STYLE}</style>"]
    parts.append(f"<h1>Forge {document['info']['version']}</h1>")
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(operation.get('description', ''))}</p>")
            if path in BODIES and method == "post":
                schema = schemas[BODIES[path].__name__]
                needed = set(schema.get("required", ()))
                fields = [
                    f"<code>{html.escape(name)}</code>{' (needed)' if name in needed else ''}"
                    for name in schema["properties"]
                ]
                parts.append(f"<p>Fields: {', '.join(fields)}</p>")
    parts.append("<p>Types and ranges: <a href='openapi.json'>openapi.json</a></p>")
    return "\n".join(parts)
