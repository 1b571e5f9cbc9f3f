"""What is known of one request, for the access log and the metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from llmforge.infer.protocol import Piece


@dataclass
class Record:
    """One request from its head to its end; `route` is the address as a pattern, so that it can label a metric."""

    id: str
    method: str
    path: str
    client: str = ""
    route: str = "other"
    model: str = ""  # a served name, or nothing
    stream: bool = False
    status: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish: list[str] = field(default_factory=list)
    queue_s: float | None = None
    first_s: float | None = None
    total_s: float = 0.0
    error: str = ""
    said: Any = None  # messages or prompt, only where they may be logged
    started_at: float = field(default_factory=time.monotonic)
    last_piece_at: float = 0.0

    def see(self, piece: Piece) -> float | None:
        """Note a piece; returns the seconds since the one before it."""
        now = time.monotonic()
        gap = now - self.last_piece_at if self.last_piece_at else None
        self.last_piece_at = now
        if self.first_s is None:
            self.first_s = now - self.started_at
        if piece.finish_reason is not None:
            self.finish.append(piece.finish_reason)
        if piece.usage is not None:
            self.prompt_tokens += piece.usage.prompt_tokens
            self.cached_tokens += piece.usage.cached_tokens
            self.completion_tokens += piece.usage.completion_tokens
        return gap

    def body(self) -> dict[str, Any]:
        """The line of the access log."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + "Z",
            "id": self.id,
            "client": self.client,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "ms": round(self.total_s * 1000, 1),
        }
        if self.model:
            line |= {
                "model": self.model,
                "stream": self.stream,
                "queue_ms": _ms(self.queue_s),
                "first_token_ms": _ms(self.first_s),
                "prompt_tokens": self.prompt_tokens,
                "cached_tokens": self.cached_tokens,
                "completion_tokens": self.completion_tokens,
                "finish": ",".join(self.finish),
            }
        if self.error:
            line["error"] = self.error
        if self.said is not None:
            line["said"] = self.said
        return line


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
