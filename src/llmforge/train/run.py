"""One rank's whole training, from a checked recipe to the run folder that holds the result."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy

from llmforge.config.load import dump_recipe
from llmforge.config.names import STAGES
from llmforge.config.schema import Recipe
from llmforge.data.build import DataSets
from llmforge.data.marked import show_labels
from llmforge.errors import ForgeError, RecipeError
from llmforge.model.arena import Arena
from llmforge.model.eva import init_eva
from llmforge.model.loading import LoadedModel, load_model
from llmforge.runs import RunDir, atomic_write, read_manifest
from llmforge.train.ahead import ReadAhead, read_texts
from llmforge.train.arguments import training_arguments
from llmforge.train.batching import Batching, choose_batching
from llmforge.train.callbacks import JsonlLog, Pace, ProgressLine, Watch
from llmforge.train.checkpoint import find_checkpoint
from llmforge.train.console import clock
from llmforge.train.generation import ReplyScores
from llmforge.train.heartbeat import heartbeat
from llmforge.train.losses import Stage, Start
from llmforge.train.manifest import data_part, manifest
from llmforge.train.memory import card_peaks, is_out_of_memory, out_of_memory
from llmforge.train.meter import Meter
from llmforge.train.plot import plot_loss
from llmforge.train.preview import trainable_line
from llmforge.train.report import Report
from llmforge.train.result import save_result
from llmforge.train.steps import StepPlan, StepShape
from llmforge.train.stop import StoppedByUser, StopSignal
from llmforge.train.trackers import trackers
from llmforge.train.trainer import ForgeTrainer


def run(recipe: Recipe, ahead: ReadAhead | None = None) -> Path:
    """Train as the recipe says; return the run folder. `ahead` reads the texts already.

    Raises:
        RecipeError, RunError: with what to change. run.json then says "failed".
        StoppedByUser: SIGTERM or SIGINT came; what was saved is named in it.
    """
    if recipe.train.output_dir is None:
        raise RecipeError("output_dir: train needs a folder to write to, for example output_dir: runs/first")
    _quieten_libraries()
    rank = int(os.environ.get("RANK", "0"))
    folder = RunDir(Path(recipe.train.output_dir))
    report = Report(folder, rank)
    stop = _stop_signal(report)
    with stop.installed():
        if rank:
            return _OneRun(recipe, folder, report, stop, ahead).train()
        folder.make()
        with folder.lock() as notice:
            if not recipe.train.resume_from_checkpoint:
                RunDir.create(folder.path, overwrite=recipe.train.overwrite_output_dir)
            report.start(stage=recipe.finetune.stage, model=recipe.model.model_name_or_path)
            if notice:
                report.say(notice)
            with _told(report):
                atomic_write(folder.recipe_path, dump_recipe(recipe))
                return _OneRun(recipe, folder, report, stop, ahead).train()


def _quieten_libraries() -> None:
    """Progress bars and notes of the libraries; ours say the same once."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft|accelerate|torch")


def _stop_signal(report: Report) -> StopSignal:
    def first(number: int) -> None:
        report.state(state="stopping")
        report.say(f"{signal.Signals(number).name}: finishing this step and saving; a second signal stops at once")

    def second(number: int) -> None:
        report.state(state="stopped", error="stopped at once by a second signal; the step was not saved")

    return StopSignal(first, second)


@contextlib.contextmanager
def _told(report: Report) -> Iterator[None]:
    """Whatever ends the run stands in run.json."""
    try:
        yield
    except StoppedByUser as stopped:
        report.state(state="stopped", exit_code=stopped.exit_code, saved=stopped.saved)
        raise
    except BaseException as error:
        text = str(error) if isinstance(error, ForgeError) else f"{type(error).__name__}: {error}"
        code = error.exit_code if isinstance(error, ForgeError) else 1
        report.state(state="failed", error=text, exit_code=code)
        raise
    report.state(state="finished", phase="done", exit_code=0)


class _OneRun:
    """The steps of a training in their order; what one finds, the next ones read from here."""

    def __init__(self, recipe: Recipe, folder: RunDir, report: Report, stop: StopSignal, ahead: ReadAhead | None):
        self.recipe, self.folder, self.report, self.stop, self.ahead = recipe, folder, report, stop, ahead
        self.meter = Meter()
        self.longest_row = 0

    def train(self) -> Path:
        beat = heartbeat(self.folder, self.meter, self.report.console) if self.report.main else contextlib.nullcontext()
        try:
            with beat:
                return self._train()
        except Exception as error:
            if is_out_of_memory(error):
                raise out_of_memory(self.recipe, self.report.phase_name, self.longest_row) from None
            raise

    def _train(self) -> Path:
        recipe, report = self.recipe, self.report
        args, notices = training_arguments(recipe)
        checkpoint = self._checkpoint(args, notices)
        for notice in notices:
            report.say(f"note: {notice}")
        stage: Stage = STAGES.get(recipe.finetune.stage)(recipe)

        with args.main_process_first(desc="data"):  # the others read what rank 0 fetched and encoded
            report.phase("tokenise", "the rows of all data sets")
            texts = self.ahead.take() if self.ahead else read_texts(recipe)
        model_folder, tokenizer, template, data = texts.model_folder, texts.tokenizer, texts.template, texts.data
        report.say(f"template: {template.name}, {len(tokenizer):,} tokens in the vocabulary")
        stage.check(data)
        before = read_manifest(self.folder.path) if checkpoint else None
        about = manifest(recipe, model_folder, tokenizer, template) | data_part(data.reports, data.hashes)
        self._describe(data, about, checkpoint)

        report.phase("load", str(model_folder))
        set_seed(recipe.train.seed)  # new adapter weights are drawn while loading
        loaded = load_model(recipe, for_training=True, text=(tokenizer, template))
        stage.extend(loaded.model)
        fresh = recipe.finetune.create_new_adapter or not recipe.model.adapter_name_or_path
        if recipe.finetune.lora_init == "eva" and fresh and not checkpoint:
            init_eva(loaded.model, data.train)
        self.longest_row = stage.longest_row(data)
        batching = choose_batching(recipe, loaded.model, self.longest_row, (before or {}).get("tokens_per_pass"))
        report.say(trainable_line(loaded.model))

        self._check_evaluation(args, data)
        report.say(batching.told)
        if report.main and batching.line:
            self._write_manifest(about | {"tokens_per_pass": batching.line.tokens})

        start = self._start(args, loaded, data, batching, resumed=bool(checkpoint))
        stage.prepare(start)
        trainer = self._trainer(args, stage, start, batching.arena)
        self._sizes(trainer, data)
        stage.begin(start)
        report.state(state="running", phase="train")
        self.stop.deferred = True  # from here on a signal waits for the step; when all steps are done, for the result
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.agreed_signal:
            raise self._stopped(trainer)
        return self._finish(trainer, loaded)

    def _checkpoint(self, args: TrainingArguments, notices: list[str]) -> Path | None:
        """Rank 0 looks for the checkpoint; all ranks take its answer."""
        wanted = self.recipe.train.resume_from_checkpoint
        answer: list[Any] = [None]
        if self.report.main and wanted:
            found, skipped = find_checkpoint(self.folder, wanted)
            notices += skipped
            notices.append(f"going on from {found}" if found else "no whole checkpoint here yet: starting at step 0")
            answer = [found]
        if args.world_size > 1:
            torch.distributed.broadcast_object_list(answer)
        return answer[0]

    def _describe(self, data: DataSets, about: dict[str, Any], checkpoint: Path | None) -> None:
        """Manifest, data report, the first row with its labels, and rows that were left out."""
        if not self.report.main:
            return
        if checkpoint:
            about["resumed_from"] = str(checkpoint)
        self._write_manifest(about)
        atomic_write(self.folder.data_report_path, json.dumps(data.as_dict(), indent=1, ensure_ascii=False) + "\n")
        for note in data.notes:
            self.report.say(f"note: {note}")
        for part in data.reports:
            for reason, count in part.reasons().items():
                self.report.say(f"data: {part.name}: {count} rows left out: {reason}")

    def _check_evaluation(self, args: TrainingArguments, data: DataSets) -> None:
        """A set so small that nothing is held out trains without evaluation, unless the result depends on it."""
        if data.evals or args.eval_strategy == "no":
            return
        if args.load_best_model_at_end or self.recipe.train.early_stopping_steps:
            raise RecipeError("val_size: no row is held out, so there is no best checkpoint to find; give eval_dataset")
        self.report.say("note: no row is held out, so nothing is evaluated")
        args.eval_strategy, args.do_eval = IntervalStrategy.NO, False

    def _write_manifest(self, about: dict[str, Any]) -> None:
        atomic_write(self.folder.manifest_path, json.dumps(about, indent=1, ensure_ascii=False) + "\n")

    def _start(
        self, args: TrainingArguments, loaded: LoadedModel, data: DataSets, batching: Batching, *, resumed: bool
    ) -> Start:
        return Start(
            loaded,
            data,
            batching.line,
            loaded.tokenizer.pad_id or 0,
            self.folder.path,
            resumed,
            args.world_size,
            args.process_index,
            self.report.say,
        )

    def _trainer(self, args: TrainingArguments, stage: Stage, start: Start, arena: Arena | None) -> ForgeTrainer:
        recipe, train, report = self.recipe, self.recipe.train, self.report
        loaded, data = start.loaded, start.data
        if report.main:
            row = show_labels(loaded.tokenizer, data.train[0], report.console.terminal)
            report.say(f"first row, trained tokens {'in green' if report.console.terminal else 'in ⟦⟧'}:\n{row}")
        shape = StepShape(
            train.per_device_train_batch_size, train.gradient_accumulation_steps, args.world_size, args.process_index
        )
        pace = Pace()
        callbacks = [
            JsonlLog(self.folder, pace),
            ProgressLine(self.folder, report.console, pace, self.meter),
            Watch(self.folder, report.console, self.meter),
            *(trackers(train.report_to, report.say) if report.main else []),
        ]
        options: dict[str, Any] = {
            "args": args,
            "stage": stage,
            "run": self.folder,
            "stop": self.stop,
            "meter": self.meter,
            "loraplus": recipe.finetune if recipe.finetune.loraplus_lr_ratio else None,
            "arena": arena,
            "nan_policy": train.nan_policy,
            "early_stopping": train.early_stopping_steps,
            "say": report.say,
            "callbacks": callbacks,
        }
        if (own := stage.trainer(start, shape, options)) is not None:
            return own
        plan = StepPlan(
            data.train,
            shape,
            seed=train.seed if train.data_seed is None else train.data_seed,
            pad_id=start.pad_id,
            pack_to=recipe.data.cutoff_len if stage.packs else None,
            line=start.line,
            group_by_length=train.group_by_length,
            drop_last=args.dataloader_drop_last,
            shuffle=not train.disable_shuffling,
            shift=stage.shift,
            aside=stage.aside,
            epoch_rows=data.epoch_rows,
        )
        scores = ReplyScores(recipe, loaded, data.eval_examples) if recipe.eval.predict_with_generate else None
        return ForgeTrainer(model=loaded.model, plan=plan, eval_sets=data.evals, reply_scores=scores, **options)

    def _sizes(self, trainer: ForgeTrainer, data: DataSets) -> None:
        """Rows, tokens and steps, said before the first step."""
        plan, ranks, tokens = trainer.plan, trainer.plan.shape.num_ranks, int(data.train.lengths.sum())
        steps = trainer.args.max_steps
        if steps < 0:
            steps = math.ceil(trainer.args.num_train_epochs * plan.num_steps)
        held_out = "".join(f", {len(rows):,} rows of {name} held out" for name, rows in data.evals.items())
        self.report.say(
            f"data: {len(plan):,} rows, {tokens:,} tokens, longest {self.longest_row}{held_out}\n"
            f"train: {steps:,} steps of {plan.shape.rows_per_step} {'sequences' if plan.packed else 'rows'} "
            f"({plan.num_steps:,} steps an epoch{f', {ranks} ranks' if ranks > 1 else ''})"
        )
        self.report.state(total_steps=steps)

    def _stopped(self, trainer: ForgeTrainer) -> StoppedByUser:
        self.report.state(step=trainer.state.global_step)
        name = f"checkpoint-{trainer.state.global_step}"
        saved = str(self.folder.path / name)
        if trainer.args.save_only_model:
            self.report.say(
                f"stopped: {saved} is saved, without optimizer state (save_only_model), so it cannot be resumed"
            )
        else:
            self.report.say(
                f"stopped: {saved} is saved. Go on with:\n"
                f"  forge-cli train {self.folder.path} resume_from_checkpoint=true"
            )
        return StoppedByUser(trainer.agreed_signal, saved)

    def _next_commands(self) -> list[str]:
        """What the folder is good for now; predict only where the recipe names rows to score."""
        data, stage = self.recipe.data, self.recipe.finetune.stage
        scores = stage == "sft" and (data.eval_dataset or data.val_size)
        return [*(["chat"] if stage != "rm" else ["api"]), *(["predict"] if scores else []), "export"]

    def _finish(self, trainer: ForgeTrainer, loaded: LoadedModel) -> Path:
        """Save the result, then train_results.json, whose presence says that everything is there."""
        report, folder = self.report, self.folder
        results = {k: v for h in trainer.state.log_history for k, v in h.items() if k.startswith(("train_", "total_"))}
        if self.recipe.train.do_eval and trainer.eval_dataset:
            report.phase("eval", "held-out rows")
            results |= trainer.evaluate()
        report.phase("save", str(folder.path))
        peaks = card_peaks(trainer.accelerator)
        started = time.monotonic()
        save_result(trainer, loaded, folder, self.recipe.finetune)
        if report.main:
            if self.recipe.train.plot_loss and folder.log_path.exists() and (notice := plot_loss(folder)):
                report.say(f"note: {notice}")
            results |= peaks
            results |= {
                "epoch": trainer.state.epoch, "steps": trainer.state.global_step,
                "supervised_tokens": self.meter.total_supervised, "tokens": self.meter.total_tokens,
                "computed_tokens": self.meter.total_computed,
            }  # fmt: skip
            atomic_write(folder.results_path, json.dumps(results, indent=1) + "\n")
            gone = clock(results.get("train_runtime", 0.0))
            saved = self.meter.total_computed < self.meter.total_tokens
            shared = f" Of {self.meter.total_tokens:,} tokens in rows {self.meter.total_computed:,} were computed."
            report.say(
                f"done: {trainer.state.global_step} steps in {gone}, saved in {time.monotonic() - started:.1f} s."
                f"{shared if saved else ''}\n"
                + "\n".join(
                    f"  forge-cli {command} {shlex.quote(str(folder.path))}" for command in self._next_commands()
                )
            )
        trainer.accelerator.wait_for_everyone()
        return folder.path
