"""What the policy is compared with: log-probabilities of replies under the reference model.

The reference is the model as it is before the first step, or a model the recipe names. It answers in one of two ways.
A fresh LoRA adapter that is switched off leaves that model, so each batch is asked twice. Otherwise, and where rows
come again, every row is asked once before training and the numbers are kept beside the run: a second model needs no
memory while training, and a resumed run meets the same numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled

from llmforge.config.schema import Recipe
from llmforge.data.example import EncodedSet
from llmforge.data.groups import MemberNumbers, member_offsets
from llmforge.data.plan import Batch
from llmforge.errors import RecipeError
from llmforge.model.arena import closed
from llmforge.model.forward import token_logprobs
from llmforge.model.loading import LoadedModel, load_model
from llmforge.model.pissa import changes_base
from llmforge.runs import settle_file
from llmforge.train.batching import choose_batching
from llmforge.train.losses import Start
from llmforge.train.steps import Line, StepPlan, StepShape

FILE = "reference.safetensors"
ROWS_AT_ONCE = 64  # groups among which shared starts are looked for; the passes themselves stay in budget


def reply_logprobs(model: nn.Module, batch: Batch) -> Tensor:
    """(num_rows,) log-probability of each row's learned tokens, a sum in fp64, nats."""
    tokens = token_logprobs(model, batch).double()
    return tokens.new_zeros(len(batch.marks)).index_add(0, torch.from_numpy(batch.row).to(tokens.device), tokens)


def reply_lengths(batch: Batch) -> Tensor:
    """(num_rows,) learned tokens of each row."""
    return torch.from_numpy(np.bincount(batch.row, minlength=len(batch.marks)))


class Reference:
    """The reference of a run; ask it for the rows of a batch after `prepare`."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        tune = recipe.finetune
        self.named = bool(tune.ref_model or tune.ref_model_adapters)

    def prepare(self, start: Start) -> None:
        """Ask for all rows of all sets, where that is to be done before training.

        Raises:
            RecipeError: the named model has another vocabulary; or the weights are in pieces (ZeRO-3) and no adapter
                can be switched off.
        """
        asked = self.recipe.finetune.precompute_ref_log_probs
        possible = not is_deepspeed_zero3_enabled()
        again = self.rows_come_again(len(start.data.train), start.num_ranks)
        off = not self.named and self.adapter_off_is_start(start.loaded.model)
        if not possible and (asked or not off):
            raise RecipeError(
                "deepspeed: with ZeRO-3 the reference can only be a new LoRA adapter switched off; take "
                "configs/deepspeed/z2.json, or finetuning_type: lora without ref_model"
            )
        if off and (not possible or asked is False or (asked is None and not again)):
            start.say("reference: the adapter switched off, for each batch")
            return
        sets = {"train": start.data.train, **{f"eval {name}": rows for name, rows in start.data.evals.items()}}
        digests = {name: self.digest(rows) for name, rows in sets.items()}
        path = Path(start.folder) / FILE
        kept = read_numbers(path, digests) if start.resumed else None
        if kept is None:
            kept = self.ask(sets, start)
            if start.rank == 0:
                write_numbers(path, kept, digests)
        start.say(f"reference: asked once for all rows before training, kept in {path.name}")
        for name, rows in sets.items():
            rows.reference = MemberNumbers(member_offsets(rows), kept[name])

    def rows_come_again(self, num_rows: int, num_ranks: int) -> bool:
        train = self.recipe.train
        if train.max_steps <= 0:
            return train.num_train_epochs > 1
        rows_per_step = train.per_device_train_batch_size * train.gradient_accumulation_steps * num_ranks
        return train.max_steps * rows_per_step > num_rows

    def adapter_off_is_start(self, model: Any) -> bool:
        """Whether the model without its adapter is the model before the first step."""
        tune, given = self.recipe.finetune, self.recipe.model.adapter_name_or_path
        fresh = tune.create_new_adapter or not given
        return tune.finetuning_type == "lora" and fresh and not changes_base(model.active_peft_config)

    def ask(self, sets: dict[str, EncodedSet], start: Start) -> dict[str, np.ndarray]:
        """Log-probabilities of all members of all rows, flat, by the name of the set."""
        if not self.named:
            return {name: ask_rows(start.loaded.model, rows, start.line, start) for name, rows in sets.items()}
        other = self.load(start.loaded)
        longest = max(int(rows.lengths.max()) for rows in sets.values())
        line = choose_batching(self.recipe, other, longest).line
        return {name: ask_rows(other, rows, line, start) for name, rows in sets.items()}

    def load(self, policy: LoadedModel) -> Any:
        tune, model = self.recipe.finetune, self.recipe.model
        changed = replace(
            model,
            model_name_or_path=tune.ref_model or model.model_name_or_path,
            adapter_name_or_path=tune.ref_model_adapters,
            quantization_bit=tune.ref_model_quantization_bit,
        )
        loaded = load_model(replace(self.recipe, model=changed), for_training=False)
        if loaded.tokenizer.vocab_hash != policy.tokenizer.vocab_hash:
            raise RecipeError(
                f"ref_model: {loaded.folder} has another vocabulary than {policy.folder}, so their log-probabilities "
                "cannot be compared"
            )
        return loaded.model

    def digest(self, rows: EncodedSet) -> str:
        """What the numbers depend on: the rows and the reference."""
        tune = self.recipe.finetune
        said = json.dumps([tune.ref_model, tune.ref_model_adapters, tune.ref_model_quantization_bit])
        return hashlib.sha256(said.encode() + rows.input_ids.tobytes() + rows.labels.tobytes()).hexdigest()

    @torch.no_grad()
    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """(num_rows,) log-probabilities, summed over each row's learned tokens, nats."""
        if batch.reference is not None:
            return torch.from_numpy(batch.reference).to(next(model.parameters()).device)
        with adapter_off(model), closed():
            return reply_logprobs(model, batch)


@contextlib.contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """The (wrapped) model without its adapter, in eval mode: a reference drops nothing at random."""
    inner = model
    while not hasattr(inner, "disable_adapter"):
        inner = inner.module
    training = model.training
    model.eval()
    try:
        with inner.disable_adapter():
            yield
    finally:
        model.train(training)


@torch.no_grad()
def ask_rows(model: Any, rows: EncodedSet, line: Line | None, start: Start) -> np.ndarray:
    """(members,) log-probabilities of all members of the rows, in their order; all ranks take part."""
    shape = StepShape(max(1, ROWS_AT_ONCE // start.num_ranks), 1, start.num_ranks, start.rank)
    plan = StepPlan(rows, shape, seed=0, pad_id=start.pad_id, line=line, shuffle=False)
    begins = member_offsets(rows)
    found = np.zeros(int(begins[-1]))
    training = model.training
    model.eval()
    for step in range(plan.num_steps):
        for batch in plan[0, step]:
            if batch.num_rows:
                within = np.arange(len(batch.group)) - np.searchsorted(batch.group, batch.group)
                found[begins[batch.rows] + within] = reply_logprobs(model, batch).cpu().numpy()
    model.train(training)
    if start.num_ranks > 1:
        shared = torch.from_numpy(found).to(next(model.parameters()).device)
        torch.distributed.all_reduce(shared)
        found = shared.cpu().numpy()
    return found


def write_numbers(path: Path, numbers: dict[str, np.ndarray], digests: dict[str, str]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(numbers, temporary, digests)
    settle_file(temporary)
    temporary.replace(path)


def read_numbers(path: Path, digests: dict[str, str]) -> dict[str, np.ndarray] | None:
    """The numbers of an earlier start of this run, or None when they are not there or of other rows."""
    try:
        with safe_open(path, "np") as file:
            if file.metadata() != digests:
                return None
            return {name: file.get_tensor(name) for name in digests}
    except (OSError, SafetensorError):
        return None
