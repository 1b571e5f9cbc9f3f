"""VllmEngine: vLLM's own server, as a child process in an environment of its own, or wherever `base_url` says.

Prompts go there as token ids of our template, so that a model reads what it was trained on. Adapters are served by
name; one that vLLM cannot serve is refused before it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmforge.config.schema import Recipe
from llmforge.errors import RecipeError, RunError
from llmforge.infer.encoded import EncodedEngine, Step
from llmforge.infer.local.draw import Choice
from llmforge.infer.local.intake import Limits
from llmforge.infer.local.reply import GrowingReply, Job
from llmforge.infer.protocol import ModelCard, RequestError, Sampling
from llmforge.infer.remote import check_url
from llmforge.process import free_port

SAMPLING = frozenset(Sampling.__dataclass_fields__) - {"penalty_alpha"}
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of --max-lora-rank
DTYPES = {"auto": "auto", "float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
START_S = 900.0
POLL_S = 0.5
STOP_S = 20.0
LAST_LINES = 15
PR_SET_PDEATHSIG = 1


class VllmEngine(EncodedEngine):
    """One vLLM server.

    Args:
        folder: of the base.
        adapters: served name -> folder.
        base: served name of the base.
    """

    def __init__(self, recipe: Recipe, folder: Path, adapters: Mapping[str, Path], base: str):
        from llmforge.model.text import load_text

        tokenizer, template = load_text(recipe, folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        context = int(config.get("max_position_embeddings") or 2048)
        limits = Limits(int(config["vocab_size"]), context, frozenset(template.stop_ids(tokenizer)))
        tool_format = template.tool_syntax
        cards = [ModelCard(name, base, str(path), context, tool_format=tool_format) for name, path in adapters.items()]
        cards.append(ModelCard(base, base, None, context, tool_format=tool_format))
        super().__init__(
            "vllm", tokenizer, template, limits, cards, {card.id: card.id for card in cards}, sampling=SAMPLING,
            skip_special=recipe.generate.skip_special_tokens,
        )  # fmt: skip
        self.recipe, self.folder, self.base, self.adapters = recipe, folder, base, dict(adapters)
        self.url = check_url(recipe.serve.base_url) if recipe.serve.base_url else ""
        self._key = os.environ.get(recipe.serve.key_env, "") if recipe.serve.key_env else ""
        self._process: subprocess.Popen | None = None
        self._log: Path | None = None

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> VllmEngine:
        """The recipe's base with its adapters, by `vllm_python` or `base_url`.

        Raises:
            RecipeError: neither is given, or an adapter that vLLM cannot serve.
        """
        from llmforge.model.adapter_files import check_adapter
        from llmforge.model.hub import adapter_folder
        from llmforge.model.sources import resolve_model, say

        serve, model = recipe.serve, recipe.model
        if not serve.base_url and not serve.vllm_python:
            raise RecipeError(
                "infer_backend: vllm needs vllm_python (the interpreter of an environment with vLLM) or base_url"
            )
        if serve.vllm_python and not os.access(serve.vllm_python, os.X_OK):
            raise RecipeError(f"vllm_python: {serve.vllm_python} is no program that can be run")
        if len(model.adapter_name_or_path) > 1:
            raise RecipeError(
                "adapter_name_or_path: vLLM merges nothing; export the first ones merged, or serve one of them"
            )
        folder = resolve_model(model)
        base = str(model.model_name_or_path or folder).rstrip("/").split("/")[-1]
        named = {str(path).rstrip("/").split("/")[-1]: path for path in model.adapter_name_or_path}
        if serve.served_model_name:
            named = dict.fromkeys([serve.served_model_name], *named.values()) if named else {}
            base = base if named else serve.served_model_name
        adapters = {}
        for name, path in {**named, **serve.adapters}.items():
            found = adapter_folder(model, str(path), say)
            check_adapter(found, folder)
            if reason := unservable(found):
                raise RecipeError(
                    f"adapters: {name}: vLLM cannot serve it: {reason}; export it merged, or serve it local"
                )
            adapters[name] = found
        return cls(recipe, folder, adapters, base)

    async def start(self) -> None:
        """Start the server, or find it, and wait until it answers.

        Raises:
            RunError: it ended, or does not answer; holds its last lines.
        """
        if not self.recipe.serve.base_url:
            port = free_port()
            self.url = f"http://127.0.0.1:{port}/v1"
            self._key = secrets.token_urlsafe(24)
            self._launch(port)
        await super().start()
        await self._until_ready()

    def _launch(self, port: int) -> None:
        serve = self.recipe.serve
        fd, path = tempfile.mkstemp(prefix="forge-vllm-", suffix=".log")
        self._log = Path(path)
        print(f"starting vLLM, which may take minutes; it writes to {path}", file=sys.stderr, flush=True)
        env = os.environ | {"VLLM_API_KEY": self._key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        if serve.kv_cache_gb and self.recipe.model.device == "cpu":
            env["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(serve.kv_cache_gb)))
        with os.fdopen(fd, "wb") as output:
            self._process = subprocess.Popen(
                self.command(port), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env,
                process_group=0, preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )  # fmt: skip

    def command(self, port: int) -> list[str]:
        """The server's command line. The module, since the `vllm` program of some builds does not start."""
        serve, model = self.recipe.serve, self.recipe.model
        words = [
            str(serve.vllm_python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.folder),
            "--served-model-name", self.base, "--host", "127.0.0.1", "--port", str(port),
            "--dtype", DTYPES[model.infer_dtype], "--max-num-seqs", str(serve.worker_rows),
            "--tensor-parallel-size", str(serve.tensor_parallel_size), "--generation-config", "vllm",
        ]  # fmt: skip
        if self.adapters:
            rank = max(_adapter_config(path)["r"] for path in self.adapters.values())
            words += ["--enable-lora", "--max-lora-rank", str(next(r for r in RANKS if r >= rank))]
            words += ["--max-loras", str(len(self.adapters)), "--lora-modules"]
            words += [f"{name}={path}" for name, path in self.adapters.items()]
        return [*words, *serve.vllm_args]

    async def _until_ready(self) -> None:
        import aiohttp

        assert self._session is not None
        ends_at = time.monotonic() + (START_S if self._process else 10.0)
        while True:
            why = ""
            try:
                async with self._session.get(f"{self.url}/models") as answer:
                    found = (await answer.json())["data"] if answer.status == 200 else []
                    why = f"it answers {answer.status}"
                    if found:
                        break
            except (aiohttp.ClientError, OSError, ValueError, KeyError) as error:
                why = type(error).__name__
            if not self.is_alive:
                raise RunError(f"vLLM ended while it started:{self._last_lines()}")
            if time.monotonic() > ends_at:
                raise RunError(f"vLLM does not answer at {self.url} ({why}){self._last_lines()}")
            await asyncio.sleep(POLL_S)
        if absent := [name for name in self.served if name not in {card["id"] for card in found}]:
            names = ", ".join(card["id"] for card in found)
            raise RunError(f"the vLLM server at {self.url} serves {names}, but not {', '.join(absent)}")

    def _last_lines(self) -> str:
        if self._log is None:
            return ""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        return "\n" + "\n".join(lines)

    async def stop(self, drain_s: float = 0.0) -> None:
        """Let running requests end, then end the child."""
        await super().stop(drain_s)
        process, self._process = self._process, None
        if process is None:
            return
        for number, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, patience_s)
        if self._log:
            self._log.unlink(missing_ok=True)

    @property
    def is_alive(self) -> bool:
        return self._process is None or self._process.poll() is None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def request(self, job: Job, index: int) -> tuple[str, dict[str, Any]]:
        """vLLM's /v1/completions with token ids in and out."""
        sampling = job.request.sampling
        body: dict[str, Any] = {
            "model": self.served[job.request.model], "prompt": job.prompt_ids, "max_tokens": job.max_new_tokens,
            "stream": True, "return_token_ids": True, "temperature": sampling.temperature, "top_p": sampling.top_p,
            "top_k": sampling.top_k, "min_p": sampling.min_p, "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty, "frequency_penalty": sampling.frequency_penalty,
            "seed": (job.seed + index) % 2**63, "ignore_eos": sampling.ignore_eos,
            "stop_token_ids": sorted(job.stop_ids), "priority": 0, "skip_special_tokens": False,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        if sampling.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
        if sampling.logprobs is not None:
            body |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
        if job.request.constraint is not None:
            body["response_format"] = _response_format(job.request.constraint)
        return f"{self.url}/completions", body

    def read(self, event: dict[str, Any], reply: GrowingReply) -> Step:
        choices: list[Choice] = []
        finish, num_top = None, reply.job.request.sampling.logprobs
        for choice in event.get("choices") or ():
            if choice.get("token_ids") is None and choice.get("text"):
                raise RequestError("this vLLM does not send token ids; version 0.10.2 or newer is needed")
            choices += _choices(choice.get("token_ids") or (), choice.get("logprobs"), num_top)
            finish = choice.get("finish_reason") or finish
        return Step(choices, finish)


def _choices(ids: Any, logprobs: dict[str, Any] | None, num_top: int | None) -> list[Choice]:
    if not logprobs or num_top is None:
        return [Choice(id) for id in ids]
    found = []
    for id, logprob, top in zip(ids, logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        others = [(int(name.removeprefix("token_id:")), value) for name, value in (top or {}).items()]
        others.sort(key=lambda other: -other[1])
        found.append(Choice(id, logprob, tuple(others[:num_top])))
    return found


def _response_format(constraint: Mapping[str, Any]) -> dict[str, Any]:
    if constraint["type"] == "json_schema":
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": constraint["schema"]}}
    return {"type": "json_object"}


def unservable(folder: Path) -> str | None:
    """Why vLLM cannot serve an adapter, with the setting that is at fault; None when it can."""
    config = _adapter_config(folder)
    rules = (
        (config.get("peft_type") != "LORA", f"peft_type {config.get('peft_type')} is not LORA"),
        (config.get("modules_to_save"), f"modules_to_save {config.get('modules_to_save')}"),
        (config.get("use_dora"), "use_dora"),
        (config.get("bias", "none") != "none", f"bias {config.get('bias')}"),
        (config.get("lora_bias"), "lora_bias"),
        (config.get("rank_pattern"), "rank_pattern: ranks differ between layers"),
        (config.get("alpha_pattern"), "alpha_pattern: alphas differ between layers"),
        (config.get("trainable_token_indices"), "trainable_token_indices"),
        (config.get("layer_replication"), "layer_replication"),
        (config.get("r", 0) > RANKS[-1], f"lora_rank {config.get('r')} is above {RANKS[-1]}"),
        (
            {"lm_head", "embed_tokens"} & set(_listed(config.get("target_modules"))),
            "it changes the embeddings or the head",
        ),
    )
    return next((reason for broken, reason in rules if broken), None)


def _listed(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


def _adapter_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return config


def _die_with_parent() -> None:
    """A server that nobody uses any more holds gigabytes: Linux ends it with the process that started it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
