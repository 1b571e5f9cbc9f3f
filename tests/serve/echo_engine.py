"""An engine with known answers: it says the last message back, one character a piece."""

from __future__ import annotations

import asyncio
import dataclasses

from llmforge.data.example import Message, ToolCall
from llmforge.data.templates.tools import get_syntax
from llmforge.errors import RecipeError
from llmforge.infer.protocol import (
    Capabilities,
    Embeddings,
    EngineBusy,
    EngineFailure,
    EngineStats,
    EngineUnavailable,
    ModelCard,
    Piece,
    PromptTooLong,
    Sampling,
    Scores,
    TokenIds,
    TokenLogprob,
    Usage,
)


class EchoEngine:
    """Words in the last message make it fail in known ways; `asked` keeps the requests, `closed` counts early ends."""

    def __init__(self, constraints=(), tool_format=None):
        self.asked, self.closed, self.ready, self.adapters = [], 0, False, []
        self.constraints, self.tool_format = frozenset(constraints), tool_format

    async def start(self):
        self.ready = True

    async def stop(self, drain_s=0.0):
        self.ready = False

    def models(self):
        tasks, most = frozenset({"generate", "embed", "score"}), 400
        echo = ModelCard("echo", "echo", None, 100, (), tasks, self.tool_format, most)
        return [echo, ModelCard("org/tuned", "echo", "runs/tuned", 100), *self.adapters]

    def capabilities(self):
        names = frozenset(field.name for field in dataclasses.fields(Sampling)) - {"min_p", "penalty_alpha"}
        return Capabilities(names, self.constraints, tokenize=True, max_running=8)

    async def tokenize(self, model, prompt):
        return [ord(letter) for letter in (prompt if isinstance(prompt, str) else prompt.messages[-1].content)]

    async def detokenize(self, model, ids):
        return "".join(map(chr, ids))

    async def embed(self, model, texts, pooling="", max_tokens=None):
        self.asked.append((texts, pooling, max_tokens))
        if texts == ["slow"]:
            await asyncio.sleep(60)
        return Embeddings([[0.6, -0.8] for _ in texts], 3 * len(texts))

    async def score(self, model, conversations):
        scores = [
            float(len(c.messages[-1].content)) if c.messages[-1].content != "huge" else None for c in conversations
        ]
        reasons = ["too long" if score is None else None for score in scores]
        return Scores(scores, 5 * len(scores), [[0.0, score or 0.0] for score in scores], reasons)

    async def load_adapter(self, name, path):
        if name in [card.id for card in self.models()]:
            raise RecipeError(f"adapters: a model called {name!r} is served already")
        self.adapters.append(ModelCard(name, "echo", path, 100))

    async def unload_adapter(self, name):
        self.adapters = [card for card in self.adapters if card.id != name]

    def stats(self):
        return EngineStats(0, 0, 0, 0, self.ready)

    async def generate(self, request):
        self.asked.append(request)
        is_raw = isinstance(request.prompt, TokenIds)
        text = "".join(map(chr, request.prompt.ids)) if is_raw else request.prompt.messages[-1].content
        refusals = {
            "huge": PromptTooLong(900, 100),
            "busy": EngineBusy("64 requests wait already", 2.5),
            "gone": EngineUnavailable("the engine is draining"),
            "broken": EngineFailure("the model gave no usable logits"),
            "bug": ZeroDivisionError("secret detail"),
        }
        if text in refusals:
            raise refusals[text]
        done = False
        try:
            if text == "slow":
                await asyncio.sleep(60)
            for piece in self.pieces(request, text):
                yield piece
                if text == "half":
                    raise EngineFailure("the card caught fire")
                if text.startswith("drip"):
                    await asyncio.sleep(0.05)
            done = True
        finally:
            self.closed += not done

    def pieces(self, request, text):
        sampling = request.sampling
        letters = text[: sampling.max_new_tokens]
        reason = "length" if len(letters) < len(text) else "stop"
        used = Usage(len(text), len(letters) * sampling.n, 1)
        message = None
        if getattr(request.prompt, "tools", ()):
            calls = (ToolCall("get_weather", {"city": "杭州"}),) if text == "weather" else ()
            message = Message("assistant", "" if calls else text, calls, "because" if calls else None)
            if text.startswith("<"):  # a reply in Qwen's own form
                content, calls = get_syntax("qwen").parse(text)
                message = Message("assistant", content, calls)
            reason = "tool_calls" if calls else reason
        for place, letter in enumerate(letters):
            for index in range(sampling.n):
                logprobs = None
                if sampling.logprobs is not None:
                    top = ((7, "x", -1.5),) * sampling.logprobs
                    logprobs = (TokenLogprob(ord(letter), letter, -0.5, top),)
                last = place == len(letters) - 1
                yield Piece(
                    index,
                    (ord(letter),),
                    letter,
                    logprobs,
                    reason if last else None,
                    used if last and index == sampling.n - 1 else None,
                    message=message if last else None,
                )
