"""EncodedEngine: a model that another server runs. Prompts go there as token ids of our template, and token ids come
back; text, stop words and tool calls are read from them here, as for the local engine. No torch.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmforge.errors import require
from llmforge.infer.local.draw import Choice
from llmforge.infer.local.intake import Intake, Limits
from llmforge.infer.local.raw import conversation_ids, raw_ids
from llmforge.infer.local.reply import GrowingReply, Job
from llmforge.infer.local.text import ReplyText, StopStrings, TextStream
from llmforge.infer.protocol import (
    Capabilities,
    Conversation,
    Embeddings,
    EngineBusy,
    EngineFailure,
    EngineStats,
    EngineUnavailable,
    GenerateRequest,
    ModelCard,
    Piece,
    RequestError,
    Sampling,
    Scores,
    TokenIds,
    UnknownModel,
    Usage,
)

if TYPE_CHECKING:
    import aiohttp

    from llmforge.data.templates.template import Template
    from llmforge.data.tokenizer import Tokenizer

log = logging.getLogger(__name__)
CONTEXT = 8  # last prompt tokens that decide how a continued text begins
CONNECT_S = 10.0
DRAIN_POLL_S = 0.05


@dataclass(frozen=True)
class Step:
    """What one event of the other server's stream brought."""

    choices: Sequence[Choice] = ()
    finish: str | None = None  # "stop" or "length", when it ended the reply
    cached_tokens: int = 0


class EncodedEngine(ABC):
    """What the engines over other servers share; one of them says how a request looks and how an answer is read.

    Args:
        name: of the engine, for errors.
        served: served name -> what the other server calls it.
        sampling: names of the Sampling fields it honours.
        max_running: replies it decodes together.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        template: Template,
        limits: Limits,
        cards: Sequence[ModelCard],
        served: Mapping[str, str],
        *,
        sampling: frozenset[str],
        constraints: frozenset[str] = frozenset({"json_object", "json_schema"}),
        max_running: int = 0,
        skip_special: bool = True,
    ):
        self.name, self.tokenizer, self.template = name, tokenizer, template
        self.cards, self.served = {card.id: card for card in cards}, dict(served)
        self.skip_special = skip_special
        self._can = Capabilities(
            sampling, constraints, tokenize=True, max_running=max_running, engine=f"the {name} engine"
        )
        self._intake = Intake(tokenizer, template, limits, self.served)
        self._session: aiohttp.ClientSession | None = None
        self._state = "not started"
        self._running = self._prompt_tokens = self._completion_tokens = 0

    # --- what an engine of this kind says ---

    @abstractmethod
    def request(self, job: Job, index: int) -> tuple[str, dict[str, Any]]:
        """URL and body for reply number `index` of a job."""

    @abstractmethod
    def read(self, event: dict[str, Any], reply: GrowingReply) -> Step:
        """One event of its stream; `reply` is what came before."""

    @property
    def headers(self) -> dict[str, str]:
        return {}

    @property
    def is_alive(self) -> bool:
        """Whether the server behind it still runs, as far as this process can tell."""
        return True

    # --- the engine protocol ---

    async def start(self) -> None:
        """Open the way to the server."""
        require("aiohttp", "serve", f"infer_backend: {self.name}")
        import aiohttp

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            headers=self.headers,
        )
        self._state = "ready"

    async def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, let the others go on for `drain_s` seconds, then cut them."""
        session, self._session = self._session, None
        if session is None:
            return
        self._state = "draining"
        ends_at = time.monotonic() + drain_s
        while self._running and time.monotonic() < ends_at:
            await asyncio.sleep(DRAIN_POLL_S)
        self._state = "stopped"
        await session.close()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """See Engine. Each reply is a request of its own to the server; closing this closes them."""
        session = self._session
        if session is None or self._state != "ready" or not self.is_alive:
            raise EngineUnavailable(f"the {self.name} engine is {self._state if self.is_alive else 'dead'}")
        self._check(request)
        job = await asyncio.to_thread(self._intake.prepare, request, time.monotonic())
        pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        replies = [asyncio.create_task(self._reply(session, job, index, pieces)) for index in range(job.num_rows)]
        self._running += 1
        remaining, num_tokens, cached = len(replies), 0, 0
        try:
            while remaining:
                piece = await pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                num_tokens += len(piece.token_ids)
                cached += piece.usage.cached_tokens if piece.usage else 0
                if piece.finish_reason is not None:
                    remaining -= 1
                    if piece.finish_reason == "error":
                        raise EngineFailure(piece.error or "the request failed")
                    usage = None if remaining else Usage(len(job.prompt_ids), num_tokens, cached // len(replies))
                    piece = replace(piece, usage=usage)
                yield piece
        finally:
            self._running -= 1
            self._prompt_tokens += len(job.prompt_ids)
            self._completion_tokens += num_tokens
            for reply in replies:
                reply.cancel()
            await asyncio.gather(*replies, return_exceptions=True)

    async def embed(
        self, model: str, texts: Sequence[str | TokenIds], pooling: str = "", max_tokens: int | None = None
    ) -> Embeddings:
        raise RequestError(f"the {self.name} engine makes no embeddings; infer_backend: local does")

    async def score(self, model: str, conversations: Sequence[Conversation | TokenIds]) -> Scores:
        raise RequestError(f"the {self.name} engine gives no reward scores; infer_backend: local does")

    async def tokenize(self, model: str, prompt: Conversation | str) -> list[int]:
        if isinstance(prompt, str):
            return raw_ids(self.tokenizer, prompt)
        return await asyncio.to_thread(conversation_ids, self.template, self.tokenizer, prompt)

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids))

    async def load_adapter(self, name: str, path: str) -> None:
        raise RequestError(f"the {self.name} engine loads no adapters while it runs")

    async def unload_adapter(self, name: str) -> None:
        raise RequestError(f"the {self.name} engine loads no adapters while it runs")

    def models(self) -> list[ModelCard]:
        return list(self.cards.values())

    def capabilities(self) -> Capabilities:
        return self._can

    def stats(self) -> EngineStats:
        ready = self._state == "ready" and self.is_alive
        return EngineStats(self._running, 0, self._prompt_tokens, self._completion_tokens, ready)

    # --- inside ---

    def _check(self, request: GenerateRequest) -> None:
        """Raises:
        RequestError: a field this engine does not honour, by the engine's and the field's name.
        """
        plain = Sampling()
        for name in Sampling.__dataclass_fields__:
            if name not in self._can.sampling and getattr(request.sampling, name) != getattr(plain, name):
                raise RequestError(f"{name}: the {self.name} engine does not have it", param=name)
        kind = request.constraint.get("type") if request.constraint else None
        if kind is not None and kind not in self._can.constraints:
            raise RequestError(f"response_format: the {self.name} engine has no {kind!r}", param="response_format")

    async def _reply(
        self, session: aiohttp.ClientSession, job: Job, index: int, pieces: asyncio.Queue[Piece | Exception]
    ) -> None:
        """Put the pieces of one reply into the queue, or what kept them from coming."""
        import aiohttp

        reply = GrowingReply(0, job, index, self._text(job), self.tokenizer, self.template)
        left = None if job.deadline_at is None else max(0.0, job.deadline_at - time.monotonic())
        try:
            async with asyncio.timeout(left):
                url, body = self.request(job, index)
                async with session.post(url, json=body) as answer:
                    if answer.status != 200:
                        raise await self._refused(answer)
                    async for event in _events(answer.content):
                        if "error" in event:
                            raise EngineFailure(f"the {self.name} server failed: {event['error']}")
                        for piece in self._take(reply, self.read(event, reply)):
                            pieces.put_nowait(piece)
                        if reply.ended:
                            return
                raise EngineFailure(f"the {self.name} server ended a reply without saying why")
        except TimeoutError:
            timeout = reply.interrupted()
            pieces.put_nowait(timeout or EngineFailure(f"the {self.name} server is silent"))
        except (aiohttp.ClientError, ConnectionError) as error:
            pieces.put_nowait(EngineUnavailable(f"the {self.name} server was lost ({type(error).__name__})"))
        except Exception as error:
            if not isinstance(error, (EngineFailure, EngineBusy, EngineUnavailable, RequestError)):
                log.exception("reading an answer of %s failed", self.name)
                error = EngineFailure(f"the {self.name} server's answer cannot be read ({type(error).__name__})")
            pieces.put_nowait(error)

    def _take(self, reply: GrowingReply, step: Step) -> list[Piece]:
        found = []
        for choice in step.choices:
            if not reply.ended and (piece := reply.take(choice)) is not None:
                found.append(piece)
        if step.finish is not None and not reply.ended:
            found.append(reply.end("length" if step.finish == "length" else "stop"))
        if reply.ended and found and step.cached_tokens:
            found[-1] = replace(found[-1], usage=Usage(0, 0, step.cached_tokens))
        return found

    async def _refused(self, answer: aiohttp.ClientResponse) -> Exception:
        text = await answer.text()
        try:
            said = json.loads(text)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = text[:300]
        if answer.status == 429:
            return EngineBusy(f"the {self.name} server is busy: {said}")
        if answer.status == 404:
            return UnknownModel(str(said)[:80], list(self.served))
        if answer.status >= 500:
            return EngineUnavailable(f"the {self.name} server answers {answer.status}: {said}")
        return RequestError(f"the {self.name} server refuses the request: {said}")

    def _text(self, job: Job) -> ReplyText:
        prompt = job.request.prompt
        chat = prompt if isinstance(prompt, Conversation) else None
        continues = chat is not None and bool(chat.messages) and chat.messages[-1].role == "assistant"
        context = job.prompt_ids[-CONTEXT:] if continues else ()
        # Some tool syntaxes mark calls with control tokens, which the reader of the reply needs.
        stream = TextStream(self.tokenizer, context=context, skip_special=self.skip_special and not job.has_tools)
        return ReplyText(stream, StopStrings(job.stop), lead="" if continues else self.template.lead)


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The JSON of server-sent events, however long a line is."""
    rest = b""
    while part := await content.readany():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
            if data and data != b"[DONE]":
                yield json.loads(data)
