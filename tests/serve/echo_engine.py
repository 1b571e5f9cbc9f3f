"""An engine with known answers: it says the last message back, one character a piece."""

from __future__ import annotations

import asyncio
import dataclasses

from llmforge.data.example import Message, ToolCall
from llmforge.infer.protocol import (
    Capabilities,
    EngineBusy,
    EngineFailure,
    EngineStats,
    EngineUnavailable,
    ModelCard,
    Piece,
    PromptTooLong,
    Sampling,
    TokenLogprob,
    Usage,
)


class EchoEngine:
    """Words in the last message make it fail in known ways; `asked` keeps the requests, `closed` counts early ends."""

    def __init__(self):
        self.asked, self.closed, self.ready = [], 0, False

    async def start(self):
        self.ready = True

    async def stop(self, drain_s=0.0):
        self.ready = False

    def models(self):
        return [ModelCard("echo", "echo", None, 100), ModelCard("org/tuned", "echo", "runs/tuned", 100)]

    def capabilities(self):
        return Capabilities(
            frozenset(field.name for field in dataclasses.fields(Sampling)) - {"min_p", "penalty_alpha"}
        )

    def stats(self):
        return EngineStats(0, 0, 0, 0, self.ready)

    async def generate(self, request):
        self.asked.append(request)
        text = request.prompt.messages[-1].content
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
                if text == "drip":
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
        if request.prompt.tools:
            calls = (ToolCall("get_weather", {"city": "杭州"}),) if text == "weather" else ()
            message = Message("assistant", "" if calls else text, calls, "because" if calls else None)
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
