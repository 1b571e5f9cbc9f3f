"""The models of PPO and GRPO on one or two copies of a base: a role is an adapter, switched on for a pass.

    actor      policy base + the adapter that is trained and saved
    reference  policy base, with the adapter as it was at the start where one is continued
    critic     judge base + an adapter of its own + a value head
    reward     judge base + the reward model's adapter + its head, frozen

The judge base is the policy base itself, unless the reward model was trained on another one.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from llmforge.data.plan import Batch
from llmforge.model.adapters import ADAPTER
from llmforge.model.forward import token_logprobs, token_logprobs_and_entropy
from llmforge.model.value_head import ValueHead, state_values

ACTOR, REFERENCE, CRITIC, REWARD = "actor", "reference", "critic", "reward"
BASE = ""  # the adapter name of a role that is the base alone
MB = 10**6


class Role(NamedTuple):
    """Which model a role runs on, with which of its adapters, and the head that reads its states."""

    model: Any
    adapter: str
    head: ValueHead | None = None


class Pass(NamedTuple):
    """What actor and critic say about a batch, (N,) each, in the order of `batch.state`."""

    logprobs: Tensor
    entropy: Tensor | None
    values: Tensor | None


class Roles(nn.Module):
    """All roles as one module, so that optimizer, DDP and checkpoints see every weight once.

    Args:
        policy: the PEFT model whose adapter "default" learns.
        reference: adapter of the reference on the same base, or BASE; None when no reference is asked.
        critic, reward: where they are, None without them. A critic's head learns, a reward's does not.
    """

    def __init__(self, policy: Any, reference: str | None, critic: Role | None = None, reward: Role | None = None):
        super().__init__()
        self.policy = policy
        learns = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
        self.table: dict[str, Role] = {ACTOR: Role(policy, ADAPTER)}
        if reference is not None:
            self.table[REFERENCE] = Role(policy, reference)
        for name, role in ((CRITIC, critic), (REWARD, reward)):
            if role is not None:
                self.table[name] = role
        for name in (CRITIC, REWARD):
            if name in self.table:
                self.add_module(f"{name}_model", self.table[name].model)
                self.add_module(f"{name}_head", self.table[name].head)
        self.requires_grad_(False)
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_(name in learns)
        for parameter in self.critic_parameters():
            parameter.requires_grad_(True)
        self._switches = {id(role.model): _switches(role.model) for role in self.table.values()}

    @property
    def config(self) -> Any:
        """The policy's config; the trainer asks for one."""
        return self.policy.config

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[Role]:
        """Run with the adapter of a role. Which weights learn does not change, as it would by peft's set_adapter."""
        role = self.table[name]
        layers = self._switches[id(role.model)]
        before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
        for layer in layers:
            layer._disable_adapters = role.adapter == BASE
            if role.adapter != BASE:
                layer._active_adapter = [role.adapter]
        try:
            yield role
        finally:
            for layer, (active, disabled) in zip(layers, before, strict=True):
                layer._active_adapter, layer._disable_adapters = active, disabled

    def forward(self, batch: Batch, entropy: bool = False) -> Pass:
        """Actor and critic in one call, since DDP wants all weights that learn between forward and backward."""
        with self.using(ACTOR) as actor:
            if entropy:
                logprobs, uncertainty = token_logprobs_and_entropy(actor.model, batch)
            else:
                logprobs, uncertainty = token_logprobs(actor.model, batch), None
        values = None
        if CRITIC in self.table:
            with self.using(CRITIC) as critic:
                assert critic.head is not None
                values = state_values(critic.model, critic.head, batch)
        return Pass(logprobs, uncertainty, values)

    def logprobs(self, name: str, batch: Batch) -> Tensor:
        """(N,) nats of the batch's targets under actor or reference."""
        with self.using(name) as role:
            return token_logprobs(role.model, batch)

    def values(self, name: str, batch: Batch) -> Tensor:
        """(N,) what critic or reward head reads from the batch's states."""
        with self.using(name) as role:
            assert role.head is not None
            return state_values(role.model, role.head, batch)

    def actor_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.policy.named_parameters() if p.requires_grad and not self._is_critics(name)]

    def critic_parameters(self) -> list[nn.Parameter]:
        """The critic's adapter and head."""
        if CRITIC not in self.table:
            return []
        role = self.table[CRITIC]
        assert role.head is not None
        return [p for name, p in role.model.named_parameters() if _belongs(name, role.adapter)] + [
            *role.head.parameters()
        ]

    def _is_critics(self, name: str) -> bool:
        role = self.table.get(CRITIC)
        return role is not None and role.model is self.policy and _belongs(name, role.adapter)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute activations in the backward pass, each layer with the adapter it ran with.

        Actor and critic run one after the other before the backward pass, in which the other one would be active.
        `options` are those of transformers' own method.
        """
        for model in self.models():
            layers = self._switches[id(model)]
            with_adapter = {"context_fn": functools.partial(_contexts, layers), "use_reentrant": False}
            base_of(model).activation_checkpointing_enable(
                activation_checkpointing_kwargs={**(activation_checkpointing_kwargs or {}), **with_adapter}, **options
            )

    @property
    def is_activation_checkpointing(self) -> bool:
        return any(base_of(model).is_gradient_checkpointing for model in self.models())

    def models(self) -> list[Any]:
        """The different copies of a base."""
        return list({id(role.model): role.model for role in self.table.values()}.values())

    def memory(self, ema: int = 0) -> list[str]:
        """Lines of a table: bytes of the weights of each copy and role, and what separate copies would take.

        Args:
            ema: bytes of the averaged weights.
        """
        own = {name: _bytes(self._own(role)) for name, role in self.table.items()}
        bases = [_bytes([p for n, p in model.named_parameters() if not _is_adapter(n)]) for model in self.models()]
        lines = [f"base copy {i + 1}: {size / MB:,.1f} MB" for i, size in enumerate(bases)]
        lines += [
            f"{name}: {size / MB:,.1f} MB of its own{', learns' if name in (ACTOR, CRITIC) else ''}"
            for name, size in own.items()
        ]
        if ema:
            lines.append(f"actor_ema: {ema / MB:,.1f} MB of its own")
        whole = sum(bases[self.models().index(role.model)] for role in self.table.values()) + (bases[0] if ema else 0)
        copies = len(own) + bool(ema)
        lines.append(
            f"weights together {(sum(bases) + sum(own.values()) + ema) / MB:,.1f} MB; as {copies} models of their own "
            f"{(whole + sum(own.values()) + ema) / MB:,.1f} MB"
        )
        return lines

    def _own(self, role: Role) -> list[Tensor]:
        mine = [p for name, p in role.model.named_parameters() if role.adapter and _belongs(name, role.adapter)]
        return mine + list(role.head.parameters() if role.head is not None else [])


def base_of(model: Any) -> Any:
    """The transformers model under a PEFT one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def copy_adapter(model: Any, source: str, name: str) -> None:
    """One more adapter on the model, with the settings and weights of `source`."""
    config = copy.deepcopy(model.peft_config[source])
    config.init_lora_weights = True
    model.add_adapter(name, config)
    weights = peft.get_peft_model_state_dict(model, adapter_name=source)
    peft.set_peft_model_state_dict(model, weights, adapter_name=name)


def _contexts(layers: Sequence[Any]) -> tuple[Any, Any]:
    """Contexts of a layer's forward pass and of its recomputation."""
    return contextlib.nullcontext(), _as_now(layers)


def _as_now(layers: Sequence[Any]) -> contextlib.AbstractContextManager:
    """A context in which all adapter switches are as they are at this call."""
    now = [(layer._active_adapter, layer._disable_adapters) for layer in layers]

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
        for layer, (active, disabled) in zip(layers, now, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled
        try:
            yield
        finally:
            for layer, (active, disabled) in zip(layers, before, strict=True):
                layer._active_adapter, layer._disable_adapters = active, disabled

    return again()


def switch_off_dropout(model: nn.Module) -> None:
    """Dropout 0 in every layer: ratios of probabilities mean something only when both passes run the same network."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout_p", "attn_pdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _switches(model: Any) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def _belongs(name: str, adapter: str) -> bool:
    return f".{adapter}." in name


def _is_adapter(name: str) -> bool:
    return ".lora_" in name or ".modules_to_save." in name


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@torch.no_grad()
def adapter_weights(model: Any, adapter: str) -> dict[str, Tensor]:
    """An adapter's tensors by their names in its file, not copied."""
    return peft.get_peft_model_state_dict(model, adapter_name=adapter)
