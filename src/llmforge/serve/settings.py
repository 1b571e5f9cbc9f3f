"""What a server is run with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llmforge.config.schema import Recipe
from llmforge.infer.defaults import sampling_of
from llmforge.infer.protocol import Sampling


@dataclass(frozen=True)
class Settings:
    """The server's side of a recipe's group `serve`; the keys say there what they mean.

    Attributes:
        defaults: sampling for what a request leaves out.
        hosts: names a request may give in its Host header; empty for any. A server without a key names its own, so that
            a web page whose name was pointed at this machine cannot talk to it.
    """

    defaults: Sampling = field(default_factory=Sampling)
    api_key: str | None = None
    api_keys_file: Path | None = None
    model_aliases: Mapping[str, str] = field(default_factory=dict)
    max_queue: int = 64
    max_running: int | None = None
    queue_timeout_s: float = 60.0
    deadline_s: float | None = None
    drain_s: float = 30.0
    rate_limit: int | None = None
    rate_limit_total: int | None = None
    max_body_bytes: int = 4 << 20
    strict_400: bool = False
    cors_origins: tuple[str, ...] = ()
    root_path: str = ""
    access_log: str | None = None
    log_prompts: bool = False
    degrade_auto: str = "off"
    degrade_text: str = "The service is busy. Please try again later."
    degrade_file: Path | None = None
    hosts: frozenset[str] = frozenset()

    @classmethod
    def from_recipe(cls, recipe: Recipe, hosts: frozenset[str] = frozenset()) -> Settings:
        """The settings of a resolved recipe."""
        said = recipe.serve
        return cls(
            defaults=sampling_of(recipe.generate),
            api_key=said.api_key,
            api_keys_file=Path(said.api_keys_file) if said.api_keys_file else None,
            model_aliases=said.model_aliases,
            max_queue=said.max_queue,
            max_running=said.max_running,
            queue_timeout_s=said.queue_timeout_s,
            deadline_s=said.deadline_s,
            drain_s=said.drain_s,
            rate_limit=said.rate_limit,
            rate_limit_total=said.rate_limit_total,
            max_body_bytes=said.max_body_bytes,
            strict_400=said.strict_400,
            cors_origins=tuple(said.cors_origins),
            root_path=said.root_path.rstrip("/"),
            access_log=said.access_log,
            log_prompts=said.log_prompts,
            degrade_auto=said.degrade_auto,
            degrade_text=said.degrade_text,
            degrade_file=Path(said.degrade_file) if said.degrade_file else None,
            hosts=hosts,
        )
