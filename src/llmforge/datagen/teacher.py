"""The teacher: one or several engines asked for an answer, with patience, pacing and fallbacks.

Engines never try again by themselves; this module alone does, so that nothing is asked twice behind its back.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from llmforge.config.load import load_recipe
from llmforge.config.names import ENGINES
from llmforge.data.example import Message, Role
from llmforge.datagen.budget import FREE, Price, known_price, price_of
from llmforge.datagen.environment import secret
from llmforge.datagen.keys import DatasetRecipe, TeacherConfig
from llmforge.datagen.pace import Pacer
from llmforge.datagen.recipe import expand_url
from llmforge.errors import ForgeError, RecipeError, nearest
from llmforge.infer.protocol import (
    Conversation,
    Engine,
    EngineBusy,
    EngineFailure,
    EngineUnavailable,
    GenerateRequest,
    RequestError,
    Sampling,
    UnknownModel,
    Usage,
)

MODES = ("json_schema", "json_object", "text")  # the strictest first
FATAL_CODES = ("invalid_api_key", "insufficient_quota")
FIRST_DELAY_S, DELAY_GROWTH, LONGEST_DELAY_S = 0.5, 1.5, 30.0
DOWN_S = 60.0  # how long a server that failed is left alone while another one answers
TRIES_WITH_FALLBACK = 2
SHORTER, SHORTENINGS = 0.8, 3  # of max_tokens, when prompt and answer do not fit the context
FALLBACK_KEYS = ("base_url", "model", "key_env", "price")
BY_PROMPT = "Answer with one JSON object that fits this JSON Schema, and nothing else:\n"


@dataclass(frozen=True)
class Answer:
    """What a teacher wrote."""

    text: str
    finish_reason: str
    usage: Usage | None
    teacher: str
    price: Price
    maybe_paid: int = 0  # earlier requests for it that brought no answer and may be on the bill all the same


class TeacherFailed(Exception):
    """No server answered; `cause` is counted, `maybe_paid` counts requests that may be on the bill."""

    def __init__(self, cause: str, detail: str, maybe_paid: int = 0):
        super().__init__(detail)
        self.cause, self.detail, self.maybe_paid = cause, detail, maybe_paid


class Refused(Exception):
    """The server will not answer this row, however often it is asked."""


@dataclass
class Endpoint:
    """One engine and what was learned about it."""

    name: str
    engine: Engine
    model: str
    price: Price
    pacer: Pacer
    modes: list[str]  # that may be tried still, the first is in use
    down_until: float = 0.0
    gone: str | None = None  # why it is not asked any more
    without: set[str] = field(default_factory=set)  # sampling fields it does not take


class Teacher:
    """All endpoints of a recipe, the first one asked first."""

    def __init__(self, config: TeacherConfig, endpoints: Sequence[Endpoint]):
        self.config, self.endpoints = config, list(endpoints)
        self.switches: list[str] = []  # what was said about fallbacks, for the manifest

    @classmethod
    def of(cls, recipe: DatasetRecipe) -> Teacher:
        """The teacher of a recipe; a local model is loaded here.

        Raises:
            RecipeError: a URL, key or price that is missing; a model that cannot be loaded.
        """
        config = recipe.teacher
        endpoints = []
        given = [{"base_url": config.base_url, "model": config.model, "key_env": config.key_env, "price": config.price}]
        for number, entry in enumerate([*given, *config.fallback]):
            where = "teacher" if number == 0 else f"teacher.fallback[{number}]"
            endpoint = _endpoint(where, entry, recipe, has_others=bool(config.fallback))
            if endpoint is not None:
                endpoints.append(endpoint)
        if not endpoints:
            raise RecipeError("teacher.base_url: no environment variable of any base_url is set")
        return cls(config, endpoints)

    @property
    def price(self) -> Price:
        """The highest price a request may have."""
        prices = [endpoint.price for endpoint in self.endpoints]
        return Price(max(p.tokens_in for p in prices), max(p.tokens_out for p in prices))

    async def start(self) -> None:
        for endpoint in self.endpoints:
            await endpoint.engine.start()

    async def stop(self) -> None:
        for endpoint in self.endpoints:
            with contextlib.suppress(ForgeError):
                await endpoint.engine.stop()

    async def ask(self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any] | None, seed: int) -> Answer:
        """The answer of the first endpoint that gives one.

        Raises:
            TeacherFailed: none did, for now.
            Refused: one says that this row cannot be answered.
            RecipeError: no endpoint can ever answer (key, model or quota).
        """
        failed: TeacherFailed | None = None
        now = time.monotonic()
        living = [endpoint for endpoint in self.endpoints if endpoint.gone is None]
        for endpoint in sorted(living, key=lambda e: e.down_until > now):
            others = [other for other in living if other is not endpoint]
            try:
                return await self._ask(endpoint, messages, schema, seed, has_others=bool(others))
            except TeacherFailed as error:
                failed = error
                endpoint.down_until = time.monotonic() + DOWN_S
                self._say(endpoint, error.detail, others)
            except RequestError as error:
                endpoint.gone = str(error)
                self._say(endpoint, str(error), others)
        if failed is not None:
            raise failed
        raise RecipeError("; ".join(f"teacher {e.name}: {e.gone}" for e in self.endpoints))

    def _say(self, endpoint: Endpoint, what: str, others: Sequence[Endpoint]) -> None:
        if not others:
            return
        text = f"teacher {endpoint.name} fails ({what}); {', '.join(other.name for other in others)} is asked instead"
        if text not in self.switches:
            self.switches.append(text)
            print(text, file=sys.stderr)

    async def _ask(
        self,
        endpoint: Endpoint,
        messages: Sequence[Mapping[str, str]],
        schema: Mapping[str, Any] | None,
        seed: int,
        has_others: bool,
    ) -> Answer:
        """One endpoint's answer, tried again after 429, 5xx and silence until patience ends."""
        ends_at = time.monotonic() + self.config.patience_s
        delay, tries, max_tokens, shortened, maybe_paid = FIRST_DELAY_S, 0, self.config.max_tokens, 0, 0
        while True:
            tries += 1
            mode = endpoint.modes[0]
            request = self._request(endpoint, messages, schema, seed, mode, max_tokens)
            sent_at = await endpoint.pacer.enter()
            settled = False
            try:
                answer = await _collect(endpoint, request)
                settled = True
                await endpoint.pacer.taken(sent_at)
                return dataclasses.replace(answer, maybe_paid=maybe_paid)
            except EngineBusy as error:
                settled = True
                await endpoint.pacer.refused(sent_at, error.retry_after_s)
                if time.monotonic() + error.retry_after_s > ends_at:
                    raise TeacherFailed("teacher:busy", str(error), maybe_paid) from None
                continue
            except (UnknownModel, RequestError) as error:
                if isinstance(error, UnknownModel) or error.code in FATAL_CODES:
                    raise
                if error.code == "context_length_exceeded" and shortened < SHORTENINGS:
                    shortened, max_tokens = shortened + 1, max(1, int(max_tokens * SHORTER))
                    continue
                if _step_down(endpoint, error, mode, self.config.mode):
                    continue
                raise Refused(str(error)) from None
            except (EngineUnavailable, EngineFailure) as error:
                maybe_paid += isinstance(error, EngineFailure) or "in time" in str(error)
                cause = "teacher:timeout" if "in time" in str(error) else "teacher:unavailable"
                cause = "teacher:unreadable" if isinstance(error, EngineFailure) else cause
                pause = delay * random.uniform(0.5, 1.5)
                if (has_others and tries >= TRIES_WITH_FALLBACK) or time.monotonic() + pause > ends_at:
                    raise TeacherFailed(cause, str(error), maybe_paid) from None
            finally:
                if not settled:
                    await endpoint.pacer.failed()
            await asyncio.sleep(pause)
            delay = min(delay * DELAY_GROWTH, LONGEST_DELAY_S)

    def _request(
        self,
        endpoint: Endpoint,
        messages: Sequence[Mapping[str, str]],
        schema: Mapping[str, Any] | None,
        seed: int,
        mode: str,
        max_tokens: int,
    ) -> GenerateRequest:
        constraint: dict[str, Any] | None = None
        turns = [Message(cast("Role", m["role"]), m["content"]) for m in messages]
        if schema is not None and mode == "json_schema":
            constraint = {"type": "json_schema", "schema": dict(schema)}
        elif self.config.mode != "text" or schema is not None:
            constraint = {"type": "json_object"} if mode != "text" else None
        if schema is not None and mode != "json_schema":
            last = max(i for i, turn in enumerate(turns) if turn.role == "user")
            content = f"{turns[last].content}\n\n{BY_PROMPT}{json.dumps(schema, ensure_ascii=False)}"
            turns[last] = Message("user", content)
        sampling = Sampling(
            max_new_tokens=max_tokens,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            seed=None if "seed" in endpoint.without else seed,
        )
        return GenerateRequest(
            endpoint.model, Conversation(tuple(turns)), sampling, constraint, deadline_s=self.config.timeout_s
        )


async def _collect(endpoint: Endpoint, request: GenerateRequest) -> Answer:
    text, reason, usage = "", "error", None
    async for piece in endpoint.engine.generate(request):
        text += piece.text
        reason = piece.finish_reason or reason
        usage = piece.usage or usage
        if piece.finish_reason == "error":
            raise Refused(piece.error or "the server ended the answer with an error")
        if piece.finish_reason == "timeout":
            raise EngineUnavailable("no whole answer in time")
    return Answer(text, reason, usage, endpoint.name, endpoint.price)


def _step_down(endpoint: Endpoint, error: RequestError, mode: str, asked: str) -> bool:
    """Whether the request can be made in a way this server may know."""
    said = f"{error.param} {error}".lower()
    if any(word in said for word in ("response_format", "json_schema", "json mode", "guided")):
        if asked != "auto" and mode == asked:
            raise RecipeError(f"teacher.mode: {endpoint.name} does not offer {asked}: {error}")
        if endpoint.modes[0] == mode and len(endpoint.modes) > 1:
            endpoint.modes.pop(0)
        return endpoint.modes[0] != mode
    if "seed" in said and "seed" not in endpoint.without:
        endpoint.without.add("seed")
        return True
    return False


def _endpoint(where: str, entry: Any, recipe: DatasetRecipe, has_others: bool) -> Endpoint | None:
    """One endpoint, or None when its URL names an environment variable that is not set and others are there."""
    config = recipe.teacher
    if not isinstance(entry, dict):
        raise RecipeError(f"{where}: got {entry!r}, expected a mapping of {', '.join(FALLBACK_KEYS)}")
    for key in entry:
        if key not in FALLBACK_KEYS:
            raise RecipeError(f"{where}: no such key {key!r}.{nearest(key, FALLBACK_KEYS)}")
    model, url, price = entry.get("model"), entry.get("base_url"), entry.get("price") or {}
    if not model:
        raise RecipeError(f"{where}.model: missing")
    if url is None:
        engine = _local(str(model), config)
        return _made(str(model), engine, engine.models()[0].id, FREE, config, is_local=True)
    expanded = expand_url(str(url))
    if expanded is None:
        if not has_others:
            raise RecipeError(f"{where}.base_url: {url} names an environment variable that is not set")
        print(f"{where}.base_url: {url} is not set; the next one is asked", file=sys.stderr)
        return None
    counts_money = config.budget_usd is not None
    cost = known_price(str(model), price) if counts_money else price_of(str(model), price) or FREE
    key = secret(str(entry["key_env"]), recipe, where) if entry.get("key_env") else None
    engine = ENGINES.get("remote")(
        expanded, str(model), api_key=key, timeout_s=config.timeout_s, connect_timeout_s=config.connect_timeout_s
    )
    return _made(f"{model} at {expanded}", engine, str(model), cost, config)


def _made(
    name: str, engine: Engine, model: str, price: Price, config: TeacherConfig, is_local: bool = False
) -> Endpoint:
    offered = engine.capabilities().constraints
    modes = [mode for mode in MODES if mode == "text" or mode in offered]
    if config.mode != "auto":
        if config.mode not in modes:
            raise RecipeError(f"teacher.mode: {name} does not offer {config.mode}; it offers {', '.join(modes)}")
        modes = [config.mode]
    pacer = Pacer(config.parallel, config.parallel) if is_local else Pacer(config.parallel)
    return Endpoint(name, engine, model, price, pacer, modes)


def _local(model: str, config: TeacherConfig) -> Engine:
    """A model of this machine behind the local engine."""
    words = [f"model_name_or_path={model}", f"template={config.template}", f"max_queue={config.parallel}"]
    recipe = load_recipe(words, "api")
    engine: Engine = ENGINES.get("local").from_recipe(recipe)
    return engine
