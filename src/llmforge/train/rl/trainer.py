"""RolloutTrainer: ForgeTrainer whose rows are drawn by the policy itself, before the optimizer steps that use them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback

from llmforge.data.build import DataSets
from llmforge.data.example import EncodedSet
from llmforge.data.plan import Batch
from llmforge.errors import RecipeError, RunError
from llmforge.model.adapters import ADAPTER
from llmforge.train.callbacks import Watch
from llmforge.train.rl.agreement import check_agreement
from llmforge.train.rl.ema import WeightAverage
from llmforge.train.rl.evaluation import HeldOut, gain
from llmforge.train.rl.experience import Experience
from llmforge.train.rl.plan import RolloutPlan, RolloutStep
from llmforge.train.rl.rewards import Rewards
from llmforge.train.rl.roles import ACTOR, CRITIC, REFERENCE, Roles, adapter_weights
from llmforge.train.rl.rollout import Roller, seed_of
from llmforge.train.rl.samples import Sample
from llmforge.train.rl.saving import load_models, load_progress, save_models, save_progress
from llmforge.train.rl.state import PATIENCE, RolloutState
from llmforge.train.steps import StepPlan, StepShape, filler
from llmforge.train.trainer import ForgeTrainer

if TYPE_CHECKING:
    from llmforge.train.rl.stage import RolloutStage

SAMPLES_FILE = "rollouts.jsonl"


class RolloutTrainer(ForgeTrainer):
    """One rank's loop of drawing, rewarding and learning.

    Args:
        model: all roles; `plan` names the prompts of each roll-out.
        data: prompts and their examples, to learn from and held out.
        roller: draws replies. rewards: rewards them.
    """

    plan: RolloutPlan  # type: ignore[assignment]  # steps of prompts, not of rows
    stage: RolloutStage

    def __init__(self, *, data: DataSets, roller: Roller, rewards: Rewards, **options: Any):
        super().__init__(eval_sets=data.evals, **options)
        self.roles: Roles = self.forge_model
        self.data, self.roller, self.rewards = data, roller, rewards
        self.held_out = HeldOut(data.evals, data.eval_examples, self.args.seed)
        self.progress: RolloutState = self.stage.first_state()
        self.experience: Experience | None = None
        self.average: WeightAverage | None = None
        if self.stage.ema_decay:
            self.average = WeightAverage(adapter_weights(self.roles.policy, ADAPTER), self.stage.ema_decay)
        self.add_callback(RolloutWatch(self))
        self.batches: list[Batch] = []
        self.ratio_max = 0.0
        self.num_rollouts = 0  # of this process
        self.alarmed: dict[str, int] = {}  # kind of alarm -> the last roll-out that had it
        for line in self.roles.memory(self.average.num_bytes if self.average else 0):
            self.say(f"memory: {line}")

    # One optimizer step

    def floating_point_ops(self, inputs: Any) -> int:
        return super().floating_point_ops(self.batches)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Draw replies where the step begins a roll-out, then learn from its share of them."""
        step: RolloutStep = inputs
        if step.update == 0 or self.experience is None:
            self.experience = self.roll_out(step)
        self.stage.learn_from(self.experience)
        self.batches = self.lay(self.experience.rows, self.plan.chosen(step))
        loss = super().training_step(model, self.batches, num_items_in_batch)
        self.ratio_max = max(self.ratio_max, *self.gather([self.stage.ratio_max]))
        for name, value in self.progress.numbers.items():
            self.meter.metrics.setdefault(name, []).append(value)
        return loss

    def lay(self, rows: EncodedSet, chosen: list[int]) -> list[Batch]:
        """Rows as batches; fillers where other ranks have more of them."""
        plan = StepPlan(
            rows,
            StepShape(self.plan.shape.rows_per_pass, max(1, len(chosen))),
            seed=0,
            pad_id=self.plan.pad_id,
            line=self.plan.line,
            shuffle=False,
        )
        chosen = sorted(chosen, key=lambda row: -int(rows.lengths[row]))
        batches = plan.passes([[row] for row in chosen])
        missing = int(max(self.gather([len(batches)]))) - len(batches)
        return batches + [filler(batches[-1])] * missing

    def gather(self, numbers: list[Any]) -> list[Any]:
        """The items of all ranks."""
        return gather_object(numbers) if self.args.world_size > 1 else list(numbers)

    # Roll-outs

    @torch.no_grad()
    def roll_out(self, step: RolloutStep) -> Experience:
        """Draw and reward replies, and note what all roles say about them.

        Raises:
            RunError: a prompt that cannot be answered, a reward that is no number, rewards that never differ.
        """
        started = time.perf_counter()
        self.roles.eval()
        if not self.num_rollouts:
            self.say(check_agreement(self.roles, self.roller, self.plan.rows, self._lay_all))
        self.num_rollouts += 1
        seeds = [seed_of(self.args.seed, step.epoch, place) for place in step.places]
        samples = self.roller.draw(self.plan.rows, self.data.train_examples, step.prompts, seeds, self.plan.replies)
        self.roller.release()
        drawn = time.perf_counter() - started
        rewards, parts = self.rewards(samples)
        experience = Experience.of(samples, rewards)
        self._ask_roles(experience)
        everywhere = self.gather(rewards)
        self.progress.take_rewards(everywhere)
        self.stage.judge(experience, self.progress, self.gather)
        self._check_numbers(experience, samples)
        self._note(step, samples, rewards, parts, experience, drawn)
        self._watch(everywhere, samples)
        self.roles.train()
        return experience

    def _lay_all(self, rows: EncodedSet) -> list[Batch]:
        return self.lay(rows, list(range(len(rows))))

    def _ask_roles(self, experience: Experience) -> None:
        """Log-probabilities and values of every action, by the trainer's own passes.

        Where each reply is learned from once and nobody else is asked, the pass of the loss itself knows them.
        """
        if len(self.roles.table) == 1 and self.plan.updates == 1:
            return
        total = int(experience.offsets[-1])
        numbers = experience.numbers
        names = ["logprobs", *(["ref_logprobs"] if REFERENCE in self.roles.table else [])]
        if self.stage.has_critic:
            names.append("values")
        for name in names:
            numbers[name] = torch.zeros(total)
        for batch in self._lay_all(experience.rows):
            if not batch.num_rows:
                continue
            places = experience.places(batch)
            with self.compute_loss_context_manager():
                now = self.roles(batch)
                numbers["logprobs"][places] = now.logprobs.float().cpu()
                if now.values is not None:
                    numbers["values"][places] = now.values.float().cpu()
                if REFERENCE in self.roles.table:
                    numbers["ref_logprobs"][places] = self.roles.logprobs(REFERENCE, batch).float().cpu()

    def _check_numbers(self, experience: Experience, samples: list[Sample]) -> None:
        """Raises RunError for a NaN in what is about to be learned from, naming the row."""
        for name, numbers in experience.numbers.items():
            if bool(torch.isfinite(numbers).all()):
                continue
            action = int((~torch.isfinite(numbers)).nonzero()[0])
            reply = int((torch.from_numpy(experience.offsets) > action).nonzero()[0]) - 1
            raise RunError(
                f"train: {name} of the reply to {samples[reply].source} is {float(numbers[action])} at step "
                f"{self.state.global_step + 1}; nothing was learned from it. Lower learning_rate"
            )

    def _note(
        self,
        step: RolloutStep,
        samples: list[Sample],
        rewards: list[float],
        parts: dict[str, list[float]],
        experience: Experience,
        drawn_s: float,
    ) -> None:
        """Numbers of the roll-out for the log, over all ranks, and the replies themselves for people."""
        tokens = [float(sample.num_tokens) for sample in samples]
        kl = [0.0] * len(samples)
        if "ref_logprobs" in experience.numbers:
            difference = experience.numbers["logprobs"] - experience.numbers["ref_logprobs"]
            kl = experience.sum_per_reply(difference).tolist()
        sums = self.sum_over_ranks(
            len(samples), sum(rewards), sum(kl), sum(tokens), sum(sample.ended for sample in samples),
            *(sum(scores) for scores in parts.values()),
        )  # fmt: skip
        count, reward, kl_sum, num_tokens, ended, *of_parts = sums
        numbers = {"reward": reward / count, "reward_ema": self.progress.reward_ema or 0.0}
        if len(parts) > 1:
            numbers |= {f"reward_{name}": value / count for name, value in zip(parts, of_parts, strict=True)}
        if REFERENCE in self.roles.table:
            numbers |= {"kl": kl_sum / count, "kl_per_token": kl_sum / num_tokens}
        if self.stage.has_critic:
            numbers["kl_coef"] = self.progress.kl_coef
        numbers |= {"reply_tokens": num_tokens / count, "ended_share": ended / count}
        numbers["rollout_ms"] = round(1000 * drawn_s, 1)
        self.progress.numbers = numbers
        if self.args.process_index == 0:
            with open(self.run.path / SAMPLES_FILE, "a", encoding="utf-8") as file:
                for sample, value, nats in zip(samples, rewards, kl, strict=True):
                    line = {
                        "step": self.state.global_step, "file": sample.source.file, "row": sample.source.row,
                        "prompt": sample.messages[-1].content, "reply": sample.reply, "reward": value,
                        "kl": round(nats, 4), "tokens": sample.num_tokens, "ended": sample.ended,
                    }  # fmt: skip
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _watch(self, rewards: list[float], samples: list[Sample]) -> None:
        """Alarms about a roll-out, and the reasons to stop.

        Raises:
            RunError: no two replies had different rewards since the run began.
        """
        step = self.state.global_step + 1
        short = [sample for sample in samples if sample.num_tokens <= 1]
        if short:
            self.alarm(
                "short", f"step {step}: {len(short)} of {len(samples)} replies have one token, for example that to "
                f"{short[0].source}; look at them in {SAMPLES_FILE}",
            )  # fmt: skip
        if self.progress.alike:
            names = " + ".join(source.name for source in self.rewards.sources)
            said = f"the reward ({names}) is {rewards[0]:g} for all {len(rewards)} replies"
            if not self.progress.varied and self.progress.alike >= PATIENCE:
                raise RunError(
                    f"train: {said} of {PATIENCE} roll-outs from the start, so nothing can be learned. Give a reward "
                    "that tells replies apart, easier prompts, or a higher rollout_temperature"
                )
            self.alarm("alike", f"step {step}: {said}; nothing can be learned from that")
        kl, limit = self.progress.numbers.get("kl_per_token"), self.stage.rl.ppo_max_kl
        if kl is not None and limit is not None and kl > limit:
            self.alarm(
                "kl", f"step {step}: KL to the reference is {kl:.3g} nats a token, above ppo_max_kl {limit:g}; "
                "training stops after this step. Raise the KL coefficient or lower learning_rate",
            )  # fmt: skip
            self.control.should_training_stop = True

    def alarm(self, kind: str, text: str) -> None:
        """Say an alarm, each kind only where the roll-out before had none of it."""
        if self.alarmed.get(kind, -2) < self.num_rollouts - 1:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, Watch):
                    callback.say(self.state, text)
        self.alarmed[kind] = self.num_rollouts

    # Optimizer: rates and clipping by role

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Groups of the actor and of the critic, which has its own learning rate; vectors have no weight decay."""
        if self.optimizer is None:
            args = self.args
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(args, self.forge_model)
            rates = {ACTOR: args.learning_rate, CRITIC: self.stage.critic_rate(args.learning_rate)}
            groups = [
                {"params": chosen, "lr": rates[role], "weight_decay": decay}
                for role, parameters in self._by_role().items()
                for decay, chosen in (
                    (args.weight_decay, [p for p in parameters if p.ndim > 1]),
                    (0.0, [p for p in parameters if p.ndim <= 1]),
                )
                if chosen
            ]
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _by_role(self) -> dict[str, list[nn.Parameter]]:
        found = {ACTOR: self.roles.actor_parameters(), CRITIC: self.roles.critic_parameters()}
        return {role: parameters for role, parameters in found.items() if parameters}

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Each role by itself, so that a critic far off does not slow the actor; the norm of both is returned."""
        self.accelerator.unscale_gradients()
        norms = [
            torch.nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)
            for parameters in self._by_role().values()
        ]
        return torch.linalg.vector_norm(torch.stack(norms))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs["ratio_max"], self.ratio_max = self.ratio_max, 0.0
        super().log(logs, start_time)

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Rewards of replies to the held-out prompts, and their gain over the first evaluation of the run."""
        if not self.held_out.sets:
            raise RecipeError("evaluation needs prompts: set val_size or eval_dataset")
        started = time.perf_counter()
        self.roles.eval()
        share = self.args.process_index, self.args.world_size
        each, found = self.held_out.measure(self.roller, self.rewards, self.gather, *share)
        self.roller.release()
        self.roles.train()
        if self.progress.first_eval:
            found |= gain(self.progress.first_eval, each)
        else:
            self.progress.first_eval = each
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - started, 4)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.meter.skip_time(time.perf_counter() - started)
        return metrics

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The models; with a checkpoint also what only a resumed run needs."""
        if not self.args.should_save or output_dir is None:
            return
        folder = Path(output_dir)
        save_models(self.roles, self.average, folder)
        if _internal_call:
            in_use = self.experience if self.state.global_step % self.plan.updates else None
            save_progress(self.roles, self.progress, in_use, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_models(self.roles, self.average, folder)
        self.progress, self.experience = load_progress(self.roles, folder)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if not self.agreed_signal and best:  # a stopped run is gone on with, not finished
            load_models(self.roles, self.average, Path(best))


class RolloutWatch(TrainerCallback):
    """What happens around the optimizer's steps: the averaged actor, and a file of replies that a resumed run cuts."""

    def __init__(self, trainer: RolloutTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        path = self.trainer.run.path / SAMPLES_FILE
        if args.process_index == 0 and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < state.global_step]
            path.write_text("".join(kept), encoding="utf-8")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.average is not None:
            self.trainer.average.update(adapter_weights(self.trainer.roles.policy, ADAPTER))
