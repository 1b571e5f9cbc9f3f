"""Loading a reward model beside the policy: on its base where that is the same one, else as a second copy."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llmforge.config.load import load_recipe
from llmforge.config.schema import Recipe
from llmforge.data.example import IGNORE, Encoded, EncodedSet, Message
from llmforge.data.templates.template import Template
from llmforge.data.tokenizer import Tokenizer
from llmforge.errors import RecipeError
from llmforge.model.adapters import ADAPTER, add_lora, attach_adapter
from llmforge.model.loading import LoadedModel, load_model
from llmforge.model.sources import resolve_model
from llmforge.model.value_head import FILE, ValueHead, has_value_head, load_value_head, new_value_head
from llmforge.runs import read_manifest
from llmforge.train.rl.roles import BASE, CRITIC, REWARD, Role, Roles, copy_adapter
from llmforge.train.rl.samples import Sample
from llmforge.train.steps import Line, StepPlan, StepShape

ROWS_TOGETHER = 16  # rows of a padded pass


class Closing(NamedTuple):
    """What follows a reply's text in a training row: its end token, and what the template writes behind that."""

    ids: tuple[int, ...]
    stops: frozenset[int]

    @classmethod
    def of(cls, template: Template, tokenizer: Tokenizer) -> Closing:
        row = template.encode(tokenizer, [Message("user", "?"), Message("assistant", "!")]).input_ids
        stops = frozenset(template.stop_ids(tokenizer))
        first = next((i for i in reversed(range(len(row))) if row[i] in stops), len(row))
        return cls(tuple(row[first:]), stops)

    def close(self, reply: Sequence[int]) -> list[int]:
        """A drawn reply as a training row would hold it."""
        text = reply[:-1] if reply[-1] in self.stops else reply
        return [*text, *self.ids]


class ModelReward:
    """Scores replies by the reward role: the value at the end of the conversation, which is closed as in training.

    A reward model has learned what to say at the token that ends a reply. At any other token its values lie on a level
    of their own, so a reply that was cut is closed too, or being cut would be rewarded or punished by chance.
    """

    def __init__(self, roles: Roles, line: Line | None, pad_id: int, closing: Closing):
        self.roles, self.line, self.pad_id, self.closing = roles, line, pad_id, closing

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        ids = [[*sample.prompt_ids, *self.closing.close(sample.reply_ids)] for sample in samples]
        rows = EncodedSet.of([Encoded(row, [IGNORE] * (len(row) - 1) + row[-1:]) for row in ids])
        shape = StepShape(ROWS_TOGETHER, 1)
        plan = StepPlan(rows, shape, seed=0, pad_id=self.pad_id, line=self.line, shuffle=False, shift=0)
        scores = torch.zeros(len(rows))
        for step in range(plan.num_steps):
            for batch in plan[0, step]:
                values = self.roles.values(REWARD, batch).float().cpu()
                scores[torch.from_numpy(batch.rows[batch.row])] = values
        return scores.tolist()


def is_url(reward_model: str | None) -> bool:
    return reward_model is not None and reward_model.startswith(("http://", "https://"))


def load_judges(recipe: Recipe, loaded: LoadedModel, with_critic: bool) -> tuple[Role | None, Role | None]:
    """(critic, reward) as the recipe asks for them.

    A critic starts as a copy of the reward model; without one, as a copy of the actor with a head of zeros.

    Raises:
        RecipeError: the folder holds no reward model, or one of another tokenizer or template.
    """
    folder = recipe.rl.reward_model
    if folder is None or is_url(folder):
        return (_fresh_critic(loaded.model) if with_critic else None), None
    path = Path(folder)
    if not has_value_head(path):
        raise RecipeError(f"reward_model: {folder} has no {FILE}, so it is no reward model; train one with stage: rm")
    theirs = load_recipe([folder, f"device={recipe.model.device}"], "chat")
    _check_manifest(path, loaded)
    if _shares_base(recipe, theirs, loaded):
        model, adapter = attach_adapter(loaded.model, path, REWARD), REWARD
    else:
        judge = load_model(replace(theirs, finetune=recipe.finetune), for_training=False)
        model, adapter = judge.model, ADAPTER if theirs.model.adapter_name_or_path else BASE
    head = load_value_head(model, path)
    reward = Role(model, adapter, head)
    if not with_critic:
        return None, reward
    critic_head = copy.deepcopy(head).requires_grad_(True)
    if adapter == BASE:  # a reward model trained whole; the critic learns an adapter on it
        model = add_lora(model, recipe.finetune, [])
        return Role(model, ADAPTER, critic_head), Role(model, BASE, head)
    copy_adapter(model, adapter, CRITIC)
    return Role(model, CRITIC, critic_head), reward


def _fresh_critic(policy: Any) -> Role:
    copy_adapter(policy, ADAPTER, CRITIC)
    head = new_value_head(policy)
    torch.nn.init.zeros_(head.weight)  # the first returns are then the rewards themselves
    return Role(policy, CRITIC, _learning(head))


def _learning(head: ValueHead) -> ValueHead:
    return head.requires_grad_(True)


def _shares_base(recipe: Recipe, theirs: Recipe, loaded: LoadedModel) -> bool:
    """Whether the reward model is one adapter on the very weights that the policy's adapter sits on."""
    merged = recipe.model.adapter_name_or_path
    merged = merged if recipe.finetune.create_new_adapter else merged[:-1]
    if merged or len(theirs.model.adapter_name_or_path) != 1 or recipe.model.resize_vocab or theirs.model.resize_vocab:
        return False
    return resolve_model(theirs.model).resolve() == loaded.folder.resolve()


def _check_manifest(path: Path, loaded: LoadedModel) -> None:
    """Raises RecipeError when the reward model reads other ids or other conversations than the policy writes."""
    manifest = read_manifest(path) or {}
    if manifest.get("tokenizer_hash", loaded.tokenizer.vocab_hash) != loaded.tokenizer.vocab_hash:
        raise RecipeError(
            f"reward_model: {path} was trained on the base {manifest.get('base_model')}, whose tokenizer is not the "
            "policy's; train a reward model on a base with the same tokenizer, or serve it and give its URL"
        )
    if manifest.get("template_hash", loaded.template.hash()) != loaded.template.hash():
        raise RecipeError(
            f"reward_model: {path} was trained with the template {manifest.get('template')}, the policy uses "
            f"{loaded.template.name}; write template: {manifest.get('template')}"
        )
