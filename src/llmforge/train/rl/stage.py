"""What the stages ppo and grpo share: which models they need, and how the trainer hands them a roll-out."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from llmforge.config.schema import Recipe
from llmforge.data.build import DataSets
from llmforge.data.plan import Batch
from llmforge.errors import RecipeError
from llmforge.model.adapters import ADAPTER
from llmforge.model.attention import supports_forest, use_forest_attention
from llmforge.model.lean import take_lean_layers
from llmforge.model.pissa import changes_base
from llmforge.train.batching import ROUNDING
from llmforge.train.losses import Stage, Start
from llmforge.train.rl.advantages import Gather
from llmforge.train.rl.experience import Experience
from llmforge.train.rl.objective import is_clipped
from llmforge.train.rl.plan import RolloutPlan
from llmforge.train.rl.reward_model import Closing, ModelReward, load_judges
from llmforge.train.rl.rewards import reward_sources
from llmforge.train.rl.roles import BASE, REFERENCE, Roles, base_of, copy_adapter, switch_off_dropout
from llmforge.train.rl.rollout import Roller
from llmforge.train.rl.state import RolloutState
from llmforge.train.rl.trainer import RolloutTrainer
from llmforge.train.steps import Line, StepShape


class RolloutStage(Stage):
    """A stage that learns from replies it draws itself."""

    has_critic: bool
    default_replies: int  # to a prompt, where the recipe does not say

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.rl = recipe.rl
        self.experience: Experience | None = None
        self.ratio_max = 0.0  # largest ratio of new to old probability in the passes of a step

    def longest_row(self, data: DataSets) -> int:
        """Prompt and reply together."""
        return super().longest_row(data) + self.recipe.generate.max_new_tokens

    def prepare(self, start: Start) -> None:
        """Load and join what the roles need beside the policy.

        Raises:
            RecipeError: a reward model that does not fit, or no reward at all.
        """
        recipe, policy = self.recipe, start.loaded.model
        if changes_base(policy.active_peft_config):
            raise RecipeError(
                f"lora_init: {recipe.finetune.lora_init} changes the base, which the reference needs as it was; leave "
                "lora_init and pissa_init out"
            )
        reference: str | None = None
        if self.needs_reference:
            fresh = recipe.finetune.create_new_adapter or not recipe.model.adapter_name_or_path
            reference = BASE if fresh else REFERENCE
            if not fresh:
                copy_adapter(policy, ADAPTER, REFERENCE)
        critic, reward = load_judges(recipe, start.loaded, self.has_critic)
        self.roles = Roles(policy, reference, critic, reward)
        if base_of(policy).is_gradient_checkpointing:  # turned on because the longest row needs it
            self.roles.activation_checkpointing_enable()
        self.line = start.line
        for model in self.roles.models()[1:]:  # a base of its own goes through the same batches
            take_lean_layers(model)
            if self.line is not None and supports_forest(base_of(model)) is None:
                use_forest_attention(base_of(model))
            else:
                self.line = None
        if self.line is not None and self.has_critic:  # actor and critic are in memory together
            self.line = Line(max(self.line.tokens // 2, ROUNDING), self.line.share)
        switch_off_dropout(self.roles)
        closing = Closing.of(start.loaded.template, start.loaded.tokenizer)
        scorer = ModelReward(self.roles, self.line, start.pad_id, closing) if reward is not None else None
        self.rewards = reward_sources(recipe, scorer)

    def trainer(self, start: Start, shape: StepShape, options: dict[str, Any]) -> RolloutTrainer:
        recipe, train = self.recipe, self.recipe.train
        plan = RolloutPlan(
            start.data.train,
            shape,
            replies=self.replies,
            buffer=self.rl.ppo_buffer_size,
            epochs=self.rl.ppo_epochs,
            seed=train.seed if train.data_seed is None else train.data_seed,
            pad_id=start.pad_id,
            line=self.line,
            shuffle=not train.disable_shuffling,
            epoch_rows=start.data.epoch_rows,
        )
        return RolloutTrainer(
            model=self.roles,
            plan=plan,
            data=start.data,
            roller=Roller(recipe, start.loaded, self.roles),
            rewards=self.rewards,
            **options,
        )

    @property
    def replies(self) -> int:
        return self.rl.num_generations or self.default_replies

    @property
    def ema_decay(self) -> float:
        """Of the averaged actor; 0 for none."""
        return 0.0

    def critic_rate(self, learning_rate: float) -> float:
        """Peak learning rate of the critic."""
        return learning_rate

    def first_state(self) -> RolloutState:
        return RolloutState()

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether the reference's log-probabilities are needed."""

    @abstractmethod
    def judge(self, experience: Experience, state: RolloutState, gather: Gather) -> None:
        """Add `advantages` (and `returns`) to the numbers of a roll-out."""

    def learn_from(self, experience: Experience) -> None:
        """The roll-out that the next batches come from."""
        self.experience, self.ratio_max = experience, 0.0

    def now(self, name: str, batch: Batch, device: torch.device) -> Tensor:
        """(N,) numbers of the roll-out for the batch's entries."""
        assert self.experience is not None
        return self.experience.at(name, batch, device)

    def old_logprobs(self, logprobs: Tensor, batch: Batch) -> Tensor:
        """(N,) nats when the replies were drawn; those of now in the one step that learns from them."""
        assert self.experience is not None
        if "logprobs" not in self.experience.numbers:
            return logprobs.detach()
        return self.now("logprobs", batch, logprobs.device)

    @torch.no_grad()
    def clipped(self, logprobs: Tensor, old: Tensor) -> Tensor:
        """How many actions are beyond the clip range; the largest ratio is remembered."""
        if len(logprobs):
            self.ratio_max = max(self.ratio_max, float(torch.exp(logprobs - old).max()))
        return is_clipped(logprobs, old, self.rl.ppo_clip).sum().float()
