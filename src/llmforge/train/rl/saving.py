"""What a PPO or GRPO run saves: the actor as the run's own adapter, critic and averaged actor in folders beside it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmforge.model.adapters import ADAPTER
from llmforge.model.value_head import load_value_head, save_value_head
from llmforge.train.rl.ema import WeightAverage
from llmforge.train.rl.experience import Experience
from llmforge.train.rl.roles import ACTOR, CRITIC, REFERENCE, Role, Roles, adapter_weights
from llmforge.train.rl.state import RolloutState

ADAPTER_FILE = "adapter_model.safetensors"
STATE_FILE, EXPERIENCE_FILE = "rollout_state.json", "rollout.safetensors"
CRITIC_FOLDER, EMA_FOLDER, REFERENCE_FOLDER = "critic", "actor_ema", "reference"


def learned(roles: Roles, folder: Path) -> list[tuple[Role, Path]]:
    """The roles that learn, each with the folder it is kept in: the actor is the run itself."""
    places = {ACTOR: folder, CRITIC: folder / CRITIC_FOLDER}
    return [(roles.table[name], place) for name, place in places.items() if name in roles.table]


def save_models(roles: Roles, average: WeightAverage | None, folder: Path) -> None:
    """Adapters and heads, each in PEFT's layout, so that every folder can be served or gone on from."""
    for role, place in learned(roles, folder):
        save_adapter(role.model, role.adapter, place)
        if role.head is not None:
            save_value_head(role.head, place)
    if average is not None:
        save_adapter(roles.policy, ADAPTER, folder / EMA_FOLDER, average.weights)


def save_adapter(model: Any, adapter: str, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """One adapter of the model, with its own weights or others in their place."""
    folder.mkdir(parents=True, exist_ok=True)
    found = adapter_weights(model, adapter) if weights is None else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
    save_file(tensors, folder / ADAPTER_FILE, {"format": "pt"})
    config = copy.deepcopy(model.peft_config[adapter])
    config.inference_mode = True
    if config.base_model_name_or_path is None:
        config.base_model_name_or_path = model.get_base_model().name_or_path
    config.save_pretrained(str(folder))


def save_progress(roles: Roles, state: RolloutState, experience: Experience | None, folder: Path) -> None:
    """What only a resumed run needs: running numbers, the reference where it is an adapter, replies in use."""
    (folder / STATE_FILE).write_text(state.dumps(), encoding="utf-8")
    reference = own_reference(roles)
    if reference is not None:
        save_adapter(reference.model, reference.adapter, folder / REFERENCE_FOLDER)
    if experience is not None:
        save_file(experience.tensors(), folder / EXPERIENCE_FILE)


def own_reference(roles: Roles) -> Role | None:
    """The reference where it is an adapter of its own, not the base."""
    role = roles.table.get(REFERENCE)
    return role if role is not None and role.adapter else None


@torch.no_grad()
def load_models(roles: Roles, average: WeightAverage | None, folder: Path) -> None:
    """The counterpart of `save_models`, in place."""
    for role, place in learned(roles, folder):
        _load_adapter(role.model, role.adapter, place)
        if role.head is not None:
            role.head.weight.copy_(load_value_head(role.model, place).weight)
    if average is not None:
        kept = load_file(folder / EMA_FOLDER / ADAPTER_FILE)
        for name, tensor in average.weights.items():
            tensor.copy_(kept[name])


def load_progress(roles: Roles, folder: Path) -> tuple[RolloutState, Experience | None]:
    """The counterpart of `save_progress`."""
    reference = own_reference(roles)
    if reference is not None:
        _load_adapter(reference.model, reference.adapter, folder / REFERENCE_FOLDER)
    path = folder / EXPERIENCE_FILE
    experience = Experience.from_tensors(load_file(path)) if path.exists() else None
    return RolloutState.loads((folder / STATE_FILE).read_text(encoding="utf-8")), experience


def _load_adapter(model: Any, adapter: str, folder: Path) -> None:
    set_peft_model_state_dict(model, load_file(folder / ADAPTER_FILE), adapter_name=adapter)
