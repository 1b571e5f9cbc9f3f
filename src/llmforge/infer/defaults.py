"""How a recipe says replies are drawn, as a `Sampling`."""

from __future__ import annotations

from llmforge.config.schema import GenerateConfig
from llmforge.infer.protocol import Sampling


def sampling_of(generate: GenerateConfig, *, seed: int | None = None) -> Sampling:
    """The `Sampling` of the keys of group generate; `do_sample: false` is greedy whatever the temperature."""
    return Sampling(
        max_new_tokens=generate.max_new_tokens,
        max_length=generate.max_length,
        temperature=generate.temperature if generate.do_sample else 0.0,
        top_p=generate.top_p,
        top_k=generate.top_k,
        repetition_penalty=generate.repetition_penalty,
        seed=seed,
    )
