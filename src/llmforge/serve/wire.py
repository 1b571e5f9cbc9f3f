"""What the bodies of all addresses share. A field is honoured or refused by name, never dropped."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

MAX_STOPS = 16
MAX_STOP_CHARS = 1000
MAX_N = 32
MAX_IDS = 1 << 20
INT64 = 2**63


class Body(BaseModel):
    """Strict: no unknown fields, no "5" for 5, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


def as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def check_bias(value: dict[str, float]) -> dict[str, float]:
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise ValueError(f"keys are token ids, got {token[:20]!r}")
        if not -100 <= bias <= 100:
            raise ValueError(f"the bias of token {token} must lie between -100 and 100")
    return value


Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]],
    BeforeValidator(as_list),
    Field(max_length=MAX_STOPS),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
Id = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[Id], Field(max_length=MAX_IDS)]


class Sampled(Body):
    """How a reply is drawn; what is left out, or null, comes from the recipe. For max_length null has a meaning."""

    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, float], AfterValidator(check_bias)] | None = None
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    n: int | None = Field(None, ge=1, le=MAX_N)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    stop: Stops | None = None
    # Ours, under the names other servers use too.
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    max_length: int | None = Field(None, ge=1, lt=2**31)
    decoder: Literal["sample", "greedy", "contrastive"] | None = None
    penalty_alpha: float | None = Field(None, ge=0, le=1)
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[Id], Field(max_length=64)] | None = None
    # Form of the answer.
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # The asker's name; accepted, without effect on the reply.
    user: str | None = None
