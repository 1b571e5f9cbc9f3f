"""ForgeTrainer: transformers' Trainer with one loader item per optimizer step and an exact mean over its tokens."""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from llmforge.config.schema import FinetuneConfig
from llmforge.data.example import EncodedSet
from llmforge.data.plan import Batch
from llmforge.errors import RecipeError, RunError, nearest
from llmforge.model.adapters import count_parameters, loraplus_groups
from llmforge.model.arena import Arena
from llmforge.model.forward import check_isolation
from llmforge.model.value_head import KEY, load_value_head, save_value_head, value_head_of
from llmforge.runs import RunDir
from llmforge.train.checkpoint import prune, seal
from llmforge.train.evaluation import EvaluationAbandoned, evaluation_metrics, evaluation_sums, joined
from llmforge.train.generation import ReplyScores
from llmforge.train.losses import LossSum, Stage
from llmforge.train.meter import Meter
from llmforge.train.steps import StepPlan, step_loader
from llmforge.train.stop import SIGNALS, StopSignal


class ForgeTrainer(Trainer):
    """One rank's training loop.

    The loss of a step is the sum over all passes and ranks divided by what the stage counts in all of them, so it does
    not depend on passes, ranks or packing.

    Args:
        eval_sets: rows to evaluate on, by name.
        reply_scores: generates and scores replies after the losses of an evaluation.
        stop: the signal to obey at the end of a step.
        meter: where the steps are counted.
        arena: memory for what a pass keeps.
        early_stopping: evaluations without a better metric before training ends.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainingArguments,
        plan: StepPlan,
        stage: Stage,
        run: RunDir,
        stop: StopSignal,
        meter: Meter,
        eval_sets: dict[str, EncodedSet],
        reply_scores: ReplyScores | None = None,
        loraplus: FinetuneConfig | None = None,
        arena: Arena | None = None,
        nan_policy: str = "stop",
        early_stopping: int | None = None,
        say: Callable[[str], None] = print,
        callbacks: list[Any] | None = None,
    ):
        self.plan, self.stage, self.run, self.stop = plan, stage, run, stop
        self.reply_scores = reply_scores
        self.loraplus, self.arena, self.nan_policy = loraplus, arena, nan_policy
        self.early_stopping, self.say = early_stopping, say
        self.meter, self.eval_sets = meter, eval_sets
        self.forge_model: Any = model  # the unwrapped model
        self.agreed_signal = 0  # the signal all ranks know about and stop at
        super().__init__(
            model=model, args=args, train_dataset=plan, eval_dataset=eval_sets or None, callbacks=callbacks
        )
        self.remove_callback(PrinterCallback)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.accelerator.distributed_type == DistributedType.NO and not self.args.torch_compile:
            # Nothing wraps the model; accelerate would import all of DeepSpeed to look.
            self.accelerator.unwrap_model = lambda model, *args, **kwargs: model

    # Rows

    def get_train_dataloader(self) -> DataLoader:
        return step_loader(self.plan, self.args.dataloader_num_workers)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, None]:
        # The range comes first: when it ends, zip must not have taken a step that nobody computes.
        return [batches for _, batches in zip(range(num_batches), epoch_iterator, strict=False)], None

    def floating_point_ops(self, inputs: Any) -> int:
        """6 per parameter and token (forward 2, backward 4), the usual estimate for dense models."""
        tokens = sum(batch.num_tokens for batch in inputs if batch.num_rows)
        return 6 * tokens * self._num_parameters

    @functools.cached_property
    def _num_parameters(self) -> int:
        return count_parameters(self.forge_model)[1]

    def _prepare_for_training(self, *args: Any) -> tuple[nn.Module, DataLoader]:
        model, loader = super()._prepare_for_training(*args)
        if self.plan.packed and self.plan.line is None:
            check_isolation(model)  # here, since before this ZeRO-3 has the weights in pieces
        return model, loader

    # One optimizer step

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """All passes of one optimizer step; returns the mean loss over the global batch."""
        batches: list[Batch] = inputs
        model.train()
        schedule_free = getattr(self.optimizer, "train", None)
        if callable(schedule_free):  # such an optimizer keeps two sets of weights
            schedule_free()
        real = [batch for batch in batches if batch.num_rows]
        count, learned, tokens, computed, *wishes = self.sum_over_ranks(
            sum(self.stage.count(batch) for batch in real),
            sum(len(batch.target) for batch in real),
            sum(batch.row_tokens for batch in real),
            sum(batch.num_tokens for batch in real),
            *(self.stop.received == number for number in SIGNALS),
        )
        self.agreed_signal = next((number for number, wish in zip(SIGNALS, wishes, strict=True) if wish), 0)
        with self.compute_loss_context_manager():
            self.stage.begin_step(model, batches, self.sum_over_ranks)
        scale = self.args.world_size / max(count, 1)  # DDP and DeepSpeed average over the ranks
        parts: list[LossSum] = []
        means: dict[str, float] = {}
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            with self._sync(model, last), self.arena.open() if self.arena else contextlib.nullcontext():
                with self.compute_loss_context_manager():
                    part = self.stage.loss(model, batch)
                loss = part.sum * float(batch.num_rows > 0)  # a filler takes part and counts nothing
                if batch.num_rows:
                    parts.append(LossSum(part.sum.detach(), part.metrics, part.counts))
                if last:  # before the backward pass, in which DeepSpeed already takes the optimizer step
                    means = self._means(parts, part, count)
                    self._check_finite("loss", means["loss"])
                self.accelerator.backward(loss * scale, **self._backward_options())
        self.meter.add(int(tokens), int(computed), int(learned), means)
        return torch.tensor(means["loss"], device=self.args.device)

    def _means(self, parts: list[LossSum], some: LossSum, count: float) -> dict[str, float]:
        """Loss and metrics of the step, over all ranks; the numbers leave the device here, once a step.

        A metric that counts something else than the stage is left out of a step that has none of it.
        """
        names, counted = list(some.metrics), list(some.counts)
        sums = [sum(float(part.sum) for part in parts)]
        sums += [sum(float(part.metrics[name]) for part in parts) for name in names]
        sums += [sum(part.counts[name] for part in parts) for name in counted]
        summed = self.sum_over_ranks(*sums)
        counts = dict(zip(counted, summed[1 + len(names) :], strict=True))
        over = {name: counts.get(name, max(count, 1)) for name in ["loss", *names]}
        values = zip(["loss", *names], summed, strict=False)
        return {name: value / over[name] for name, value in values if over[name]}

    def _sync(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager:
        """Gradients are exchanged in the last pass only."""
        if last or self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            self.accelerator.gradient_state._set_sync_gradients(last)
            return contextlib.nullcontext()
        return self.accelerator.no_sync(model=model)

    def _backward_options(self) -> dict[str, Any]:
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return {"scale_wrt_gas": False}
        if "lomo" in str(self.args.optim).lower():
            return {"learning_rate": self._get_learning_rate()}
        return {}

    def sum_over_ranks(self, *values: float) -> list[float]:
        if self.args.world_size == 1:
            return list(values)
        summed = self.accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=self.args.device), "sum")
        return summed.tolist()

    def _check_finite(self, what: str, value: float) -> None:
        if math.isfinite(value) or self.nan_policy == "warn":
            return
        raise RunError(
            f"train: {what} is {value} at step {self.state.global_step + 1}. The weights of the last checkpoint are "
            "unharmed. Lower learning_rate, set max_grad_norm, look at the rows of this step, or set nan_policy: warn"
        )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # Loss scaling of fp16 tries scales that overflow and then leaves the step out; that is no fault.
        self.meter.last_norm = None if norm is None else float(norm)
        if self.meter.last_norm is not None and not self.args.fp16:
            self._check_finite("gradient norm", self.meter.last_norm)
        return norm

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.loraplus is not None:
            args = self.args
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(args, self.forge_model)
            groups = loraplus_groups(self.forge_model, self.loraplus, args.learning_rate, args.weight_decay)
            self.optimizer = optimizer_class(groups, **options)
            return self.optimizer
        return super().create_optimizer(model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.meter.take())
        super().log(logs, start_time)

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The stage's loss and metrics, over all sets and for each of several; scores of replies behind them."""
        started = time.perf_counter()
        sets: dict[str, EncodedSet] = eval_dataset or self.eval_sets
        if not sets:
            raise RecipeError("evaluation needs rows: set val_size or eval_dataset")
        metrics: dict[str, float] = {}
        parts = [evaluation_sums(self, rows) for rows in sets.values()]
        if len(sets) > 1:
            for name, sums in zip(sets, parts, strict=True):
                metrics.update(evaluation_metrics(f"{metric_key_prefix}_{name}", sums, self.stage.per_token))
        metrics.update(evaluation_metrics(metric_key_prefix, joined(parts), self.stage.per_token))
        if self.reply_scores is not None:
            share = self.args.process_index, self.args.world_size
            scores = self.reply_scores(self.accelerator.unwrap_model(self.model_wrapped), gather_object, *share)
            metrics.update({f"{metric_key_prefix}_{name}": value for name, value in scores.items()})
        elapsed = time.perf_counter() - started
        metrics[f"{metric_key_prefix}_runtime"] = round(elapsed, 4)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.meter.skip_time(time.perf_counter() - started)
        return metrics

    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        """As in Trainer, but a stop signal comes before an evaluation, and ends one that runs."""
        if self.args.world_size == 1:
            self.agreed_signal = self.stop.received
        if self.agreed_signal:
            self.control.should_evaluate = False
            self.control.should_save = self.control.should_training_stop = True
        evaluates = self.control.should_evaluate
        try:
            super()._maybe_log_save_evaluate(*args, **options)
            if evaluates and self.early_stopping:
                self._stop_early(self.early_stopping)
        except EvaluationAbandoned:
            self.agreed_signal = self.stop.received
            self.control.should_training_stop = True
            self._save_checkpoint(self.forge_model, None)

    def _stop_early(self, patience: int) -> None:
        """Count evaluations since the best one in the log history, so that a resumed run counts on."""
        best = self.state.best_global_step or 0
        worse = len({e["step"] for e in self.state.log_history if "eval_loss" in e and e["step"] > best})
        if worse >= patience:
            self.say(
                f"early stop: {worse} evaluations without a better {self.args.metric_for_best_model}; best: step {best}"
            )
            self.control.should_training_stop = True

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        try:
            return super()._determine_best_metric(metrics=metrics, trial=trial)
        except KeyError:
            wanted, found = self.args.metric_for_best_model, [name.removeprefix("eval_") for name in metrics]
            raise RecipeError(
                f"metric_for_best_model: {wanted!r} is not measured.{nearest(wanted, found)} "
                f"Measured: {', '.join(sorted(found))}; rouge and bleu-4 need predict_with_generate: true"
            ) from None

    def _load_best_model(self) -> None:
        if not self.agreed_signal:  # a stopped run is gone on with, not finished
            super()._load_best_model()
            if self.state.best_model_checkpoint:
                self._load_head(Path(self.state.best_model_checkpoint))

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write checkpoint-N under a temporary name, list its files, rename it, and only then remove older ones.

        Raises:
            RunError: it could not be written; those before it are whole.
        """
        final = self.run.path / f"checkpoint-{self.state.global_step}"
        if self._saved_step == self.state.global_step:
            return  # the end of an epoch and a stop may ask for the same step twice
        started = time.perf_counter()
        temporary = self.run.path / f".{final.name}.tmp"
        try:
            self._write_checkpoint(temporary, final)
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch and safetensors have exceptions of their own for a full disk.
            shutil.rmtree(temporary, ignore_errors=True)
            raise RunError(f"save: {final} could not be written: {error}. Checkpoints before it are whole") from error
        self._saved_step = self.state.global_step
        self.meter.skip_time(time.perf_counter() - started)

    def _write_checkpoint(self, temporary: Path, final: Path) -> None:
        self.store_flos()
        if self.args.should_save:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step:
            best = self.run.path / f"checkpoint-{self.state.best_global_step}"
            if best == final or best.is_dir():
                self.state.best_model_checkpoint = str(best)
        self.save_model(str(temporary), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(temporary))
            self._save_scaler(str(temporary))
            self._save_rng_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(temporary / "trainer_state.json"))
            seal(temporary, final)
            best_path = self.state.best_model_checkpoint
            prune(self.run, self.args.save_total_limit, Path(best_path) if best_path else None)
        self.accelerator.wait_for_everyone()

    _saved_step = -1

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        head = value_head_of(self.forge_model)
        weight = None
        if head is not None:  # a file of its own: no library knows it as a part of the model
            state_dict = dict(self.forge_model.state_dict() if state_dict is None else state_dict)
            (name,) = [name for name in state_dict if f".{name}".endswith(f".{KEY}")]
            weight = state_dict.pop(name)
        super()._save(output_dir, state_dict)
        if self.args.should_save and output_dir:
            if weight is not None:
                save_value_head(weight, Path(output_dir))
            # A pickle of the arguments and an empty model card: recipe.yaml and manifest.json say it, and run nothing.
            for name in ("training_args.bin", "README.md"):
                (Path(output_dir) / name).unlink(missing_ok=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_head(Path(resume_from_checkpoint))

    def _load_head(self, folder: Path) -> None:
        head = value_head_of(self.forge_model)
        if head is not None and not self.is_deepspeed_enabled:  # DeepSpeed's own checkpoint holds every weight
            head.weight.data.copy_(load_value_head(self.forge_model, folder).weight)

    def _init_training_state(self, *args: Any) -> tuple[int, int]:
        start = super()._init_training_state(*args)
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.state.is_world_process_zero = self.is_world_process_zero()
        if self.state.best_global_step:  # the run folder may have moved since the checkpoint was written
            best = self.run.path / f"checkpoint-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        return start
