"""GgufEngine: a .gguf file run by llama.cpp, whose server xllamacpp carries inside this process.

The quickest way to serve one client at a time on a CPU. The prompt is encoded by our template, so a served model reads
what it was trained on; sampling follows the order of the local engine (temperature first, then top_k, top_p, min_p).
"""

from __future__ import annotations

import asyncio
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.config.schema import Recipe
from llmforge.errors import RecipeError, RunError, require
from llmforge.infer.encoded import EncodedEngine, Step
from llmforge.infer.local.draw import Choice
from llmforge.infer.local.intake import Limits
from llmforge.infer.local.reply import GrowingReply, Job
from llmforge.infer.protocol import ModelCard

# presence_penalty and frequency_penalty count the prompt's tokens too in llama.cpp, which is not what they mean.
SAMPLING = frozenset({
    "max_new_tokens", "max_length", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop",
    "stop_ids", "logit_bias", "logprobs", "ignore_eos", "n",
})  # fmt: skip
SAMPLERS = ["penalties", "temperature", "top_k", "top_p", "min_p"]
CACHE_BYTES = 4 << 30
NO_BOUND = 2**31 - 1


@dataclass(frozen=True)
class Shape:
    """What a file says of its model; `bytes_per_token` are those of a token's keys and values in fp16."""

    context: int
    vocab_size: int
    bytes_per_token: int


class GgufEngine(EncodedEngine):
    """One .gguf file.

    Args:
        slots: replies decoded together, each with the model's whole context.
        threads: of the computation.
    """

    def __init__(self, path: Path, name: str, recipe: Recipe, *, slots: int, threads: int, shape: Shape):
        from llmforge.model.text import load_text

        folder = tokenizer_dir(path, recipe)
        tokenizer, template = load_text(recipe, folder)
        limits = Limits(shape.vocab_size, shape.context, frozenset(template.stop_ids(tokenizer)))
        cards = [ModelCard(name, name, None, shape.context, tool_format=template.tool_syntax)]
        super().__init__(
            "gguf", tokenizer, template, limits, cards, {name: name}, sampling=SAMPLING, max_running=slots,
            skip_special=recipe.generate.skip_special_tokens,
        )  # fmt: skip
        self.path, self.slots, self.threads, self.shape = path, slots, threads, shape
        self._key = secrets.token_urlsafe(24)  # other users of this machine may not ask the inner server
        self._server: Any = None

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> GgufEngine:
        """The file of `model_name_or_path`, with `worker_rows`, `threads` and `kv_cache_gb`.

        Raises:
            RecipeError: no .gguf file, adapters, or the extra is missing.
        """
        require("xllamacpp", "gguf", "infer_backend: gguf")
        path = Path(recipe.model.model_name_or_path or "").expanduser()
        if path.suffix != ".gguf" or not path.is_file():
            raise RecipeError(
                f"model_name_or_path: got {recipe.model.model_name_or_path!r}, infer_backend: gguf serves a .gguf file"
            )
        if recipe.model.adapter_name_or_path or recipe.serve.adapters:
            raise RecipeError("adapters: infer_backend: gguf serves none; export the adapter merged, or serve it local")
        shape = read_shape(path)
        budget = int((recipe.serve.kv_cache_gb or 0) * 1e9) or CACHE_BYTES
        slots = max(1, min(recipe.serve.worker_rows, budget // max(1, shape.context * shape.bytes_per_token)))
        threads = recipe.serve.threads if isinstance(recipe.serve.threads, int) else len(os.sched_getaffinity(0))
        name = recipe.serve.served_model_name or path.stem
        return cls(path, name, recipe, slots=slots, threads=threads, shape=shape)

    async def start(self) -> None:
        """Load the file."""
        await super().start()
        self._server = await asyncio.to_thread(self._load)

    def _load(self) -> Any:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(self.path)
        params.port, params.api_keys, params.ui, params.verbosity = 0, [self._key], False, 0
        params.n_parallel, params.n_ctx = self.slots, self.slots * self.shape.context
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self.threads
        params.cache_ram_mib = 0
        try:
            return xllamacpp.Server(params)
        except Exception as error:
            raise RunError(f"{self.path}: llama.cpp cannot serve this file ({error})") from error

    async def stop(self, drain_s: float = 0.0) -> None:
        """Let running requests end, then free the model."""
        await super().stop(drain_s)
        server, self._server = self._server, None
        if server is not None:
            await asyncio.to_thread(_drop, [server])

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"}

    def request(self, job: Job, index: int) -> tuple[str, dict[str, Any]]:
        """llama.cpp's own /completion, which takes and gives token ids."""
        sampling = job.request.sampling
        body: dict[str, Any] = {
            "prompt": job.prompt_ids, "n_predict": job.max_new_tokens, "stream": True, "return_tokens": True,
            "cache_prompt": True, "samplers": SAMPLERS, "temperature": sampling.temperature, "top_k": sampling.top_k,
            "top_p": sampling.top_p, "min_p": sampling.min_p, "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": self.shape.context, "seed": (job.seed + index) % NO_BOUND,
            "ignore_eos": sampling.ignore_eos,
            "logit_bias": [[token, bias] for token, bias in sampling.logit_bias.items()],
        }  # fmt: skip
        if sampling.logprobs is not None:
            body["n_probs"] = max(1, sampling.logprobs)
        if job.request.constraint is not None:
            body["json_schema"] = job.request.constraint.get("schema") or {"type": "object"}
        return f"{self._server.listening_address}/completion", body

    def read(self, event: dict[str, Any], reply: GrowingReply) -> Step:
        known = {entry["id"]: entry for entry in event.get("completion_probabilities") or ()}
        ids = list(event.get("tokens") or ())
        if event.get("tokens_predicted", 0) > len(reply.token_ids) + len(ids) and event.get("content"):
            # llama.cpp sends the text of a character whose bytes were several tokens, but the last one's id alone.
            ids = self.tokenizer.ids(event["content"], after="text")
        choices = [_choice(token, known.get(token), reply.job.request.sampling.logprobs or 0) for token in ids]
        if not event.get("stop"):
            return Step(choices)
        finish = "length" if event.get("stop_type") == "limit" else "stop"
        return Step(choices, finish, (event.get("timings") or {}).get("cache_n", 0))


def _choice(token: int, entry: dict[str, Any] | None, num_top: int) -> Choice:
    if entry is None:
        return Choice(token)
    top = tuple((other["id"], other["logprob"]) for other in entry["top_logprobs"][:num_top])
    return Choice(token, entry["logprob"], top)


def _drop(held: list[Any]) -> None:
    """End a server; it waits for its threads, so this belongs in a thread of its own."""
    held.clear()


def read_shape(path: Path) -> Shape:
    """Context, vocabulary and size of a token's keys and values (fp16), from the file's header.

    Raises:
        RecipeError: no GGUF file, or one without these.
    """
    gguf = require("gguf", "gguf", f"reading {path.name}")
    try:
        reader = gguf.GGUFReader(path)
        value = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        kind = value["general.architecture"]
        heads = value[f"{kind}.attention.head_count"]
        kv_heads = value.get(f"{kind}.attention.head_count_kv", heads)
        width = value.get(f"{kind}.attention.key_length", value[f"{kind}.embedding_length"] // heads)
        vocab_size = len(reader.fields["tokenizer.ggml.tokens"].data)
        per_token = value[f"{kind}.block_count"] * 2 * kv_heads * width * 2
        return Shape(int(value[f"{kind}.context_length"]), vocab_size, int(per_token))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RecipeError(f"{path}: not a GGUF file of a language model ({error})") from None


def tokenizer_dir(path: Path, recipe: Recipe) -> Path:
    """The folder of the tokenizer: beside the file, where exports write it, else converted from the file."""
    if (path.parent / "tokenizer.json").is_file():
        return path.parent
    from llmforge.model.sources import resolve_model

    return resolve_model(recipe.model)
