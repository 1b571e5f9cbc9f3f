"""Asking a chat server over HTTP, as any OpenAI-compatible client does; leaving ends the request on the server."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from llmforge.errors import RecipeError, RunError
from llmforge.infer.remote import check_url
from llmforge.webui.refusal import Refusal

CONNECT_S, READ_S = 10.0, 300.0
Message = dict[str, str]


@dataclass(frozen=True)
class Target:
    """A model behind a URL; `key_env` names the environment variable that holds the server's key."""

    url: str
    model: str
    key_env: str = ""

    def headers(self) -> dict[str, str]:
        """Raises:
        Refusal: the variable is not set.
        """
        if not self.key_env:
            return {}
        if not (key := os.environ.get(self.key_env)):
            raise Refusal("chat.no_key", name=self.key_env)
        return {"Authorization": f"Bearer {key}"}


@dataclass(frozen=True)
class Asked:
    """How a reply is drawn; what is None is left to the server."""

    decoder: str = "sample"
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    penalty_alpha: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    schema: Mapping[str, Any] | None = None

    def body(self, model: str, messages: Sequence[Message]) -> dict[str, Any]:
        """The request as it is sent, fit to be copied."""
        return {"model": model, "messages": list(messages), **self.settings}

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of a request that say how it is drawn."""
        sent: dict[str, Any] = {}
        names = {"sample": ("temperature", "top_p"), "contrastive": ("top_k", "penalty_alpha"), "greedy": ()}
        for name in (*names[self.decoder], "repetition_penalty", "max_tokens", "seed"):
            if (value := getattr(self, name)) is not None:
                sent[name] = value
        if self.decoder == "greedy":
            sent["temperature"] = 0
        if self.decoder == "contrastive":
            sent["decoder"] = "contrastive"
        if self.schema is not None:
            schema = {"name": "answer", "schema": dict(self.schema), "strict": True}
            sent["response_format"] = {"type": "json_schema", "json_schema": schema}
        return sent


@dataclass
class Reply:
    """A reply as it grows; `state` is waiting, writing, done, stopped or failed."""

    text: str = ""
    state: str = "waiting"
    finish: str = ""
    error: Exception | None = None
    tokens: int = 0
    began: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    took_s: float = 0.0
    score: float | None = None

    @property
    def is_over(self) -> bool:
        return self.state in ("done", "stopped", "failed")


async def fill(reply: Reply, target: Target, body: Mapping[str, Any]) -> None:
    """Stream one reply into `reply`; a failure is told there. Cancelling closes the connection and frees the server."""
    try:
        async for piece in _pieces(target, body):
            choice = (piece.get("choices") or [{}])[0]
            if text := (choice.get("delta") or {}).get("content"):
                reply.first_s = reply.first_s or time.monotonic() - reply.began
                reply.text += text
                reply.state = "writing"
            reply.finish = choice.get("finish_reason") or reply.finish
            if usage := piece.get("usage"):
                reply.tokens = usage.get("completion_tokens", 0)
        reply.state = "done"
    except (RecipeError, RunError) as error:
        reply.state, reply.error = "failed", error
    except httpx.HTTPError as error:
        reply.state, reply.error = "failed", _gone(target, error)
    except (ValueError, TypeError, AttributeError, LookupError):  # events of another shape
        reply.state, reply.error = "failed", Refusal("chat.no_json", url=target.url)
    finally:
        reply.took_s = time.monotonic() - reply.began
        if not reply.is_over:
            reply.state = "stopped"


async def models(url: str, key_env: str = "") -> list[str]:
    """The names a server serves.

    Raises:
        RecipeError: it is no server's URL; a Refusal where its key is missing or it does not answer so.
    """
    target = Target(check_url(url), "", key_env)
    found = await _post(target, "models", None)
    return [str(card["id"]) for card in found.get("data", [])]


async def tokens(target: Target, messages: Sequence[Message]) -> tuple[list[int], list[str]]:
    """(ids, texts) of the prompt as the model reads it, on servers of Forge.

    Raises:
        Refusal: the server cannot say.
    """
    body = {"model": target.model, "messages": list(messages), "return_token_strs": True}
    found = await _post(Target(target.url.removesuffix("/v1"), target.model, target.key_env), "tokenize", body)
    return list(found["tokens"]), list(found.get("token_strs") or [])


async def score(target: Target, messages: Sequence[Message]) -> float | None:
    """The reward of a conversation; None where it is too long for the reward model.

    Raises:
        Refusal: the server gives no scores.
    """
    found = await _post(target, "score", {"model": target.model, "messages": list(messages)})
    value = found["data"][0]["score"]
    return None if value is None else float(value)


def as_curl(target: Target, body: Mapping[str, Any]) -> str:
    """The request for a shell; a single quote in it is written as the shell wants it."""
    text = json.dumps(body, ensure_ascii=False, indent=1).replace("'", "'\\''")
    key = f' \\\n  -H "Authorization: Bearer ${target.key_env}"' if target.key_env else ""
    return f"curl {target.url}/chat/completions -H 'Content-Type: application/json'{key} \\\n  -d '{text}'"


def as_python(target: Target, body: Mapping[str, Any]) -> str:
    """The request for the package openai; fields it does not know go through extra_body."""
    known = {"model", "messages", "temperature", "top_p", "max_tokens", "seed", "response_format"}
    key = f'os.environ["{target.key_env}"]' if target.key_env else '"none"'
    given = [f"    {name}={value!r}," for name, value in body.items() if name in known]
    if extra := {name: value for name, value in body.items() if name not in known}:
        given.append(f"    extra_body={extra!r},")
    lines = ["import os", ""] if target.key_env else []
    lines += ["from openai import OpenAI", "", f"client = OpenAI(base_url={target.url!r}, api_key={key})"]
    lines += ["reply = client.chat.completions.create(", *given, ")", "print(reply.choices[0].message.content)"]
    return "\n".join(lines)


async def _pieces(target: Target, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The events of a streamed answer."""
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with (
        _client(target) as client,
        client.stream("POST", f"{target.url}/chat/completions", json=asked, headers=target.headers()) as answer,
    ):
        if answer.status_code != 200:
            await answer.aread()
            raise _refused(answer)
        async for line in answer.aiter_lines():
            if not line.startswith("data:"):
                continue
            text = line[5:].strip()
            if text == "[DONE]":
                return
            piece = json.loads(text)
            if "error" in piece:
                raise RunError(str(piece["error"].get("message", piece["error"])))
            yield piece


async def _post(target: Target, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
    async with _client(target) as client:
        try:
            method = "GET" if body is None else "POST"
            answer = await client.request(method, f"{target.url}/{path}", json=body, headers=target.headers())
            if answer.status_code != 200:
                raise _refused(answer)
            found = answer.json()
        except httpx.HTTPError as error:
            raise _gone(target, error) from None
        except ValueError:
            raise Refusal("chat.no_json", url=target.url) from None
    if not isinstance(found, dict):
        raise Refusal("chat.no_json", url=target.url)
    return found


def _client(target: Target) -> httpx.AsyncClient:
    """A client that follows no redirect, which could lead a key elsewhere; a proxy cannot reach this machine."""
    host = urlsplit(target.url).hostname or ""
    is_here = host in ("localhost", "::1") or host.startswith("127.")
    timeout = httpx.Timeout(READ_S, connect=CONNECT_S)
    return httpx.AsyncClient(timeout=timeout, follow_redirects=False, trust_env=not is_here)


def _gone(target: Target, error: httpx.HTTPError) -> Refusal:
    return Refusal("chat.no_answer", url=target.url, why=type(error).__name__)


def _refused(answer: httpx.Response) -> Refusal:
    """What the server says, in its own words."""
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.text[:200]
    return Refusal("chat.refuses", status=str(answer.status_code), message=message)
