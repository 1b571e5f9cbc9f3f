"""Predict: generate for every row of the test sets, write what came out, score it.

The order: find the folder, render the prompts, take over what an interrupted run left, load the model, generate the
rest, score, write. Rows in = rows written + rows left out with a reason.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmforge.config.dump import dump_recipe
from llmforge.config.schema import Recipe
from llmforge.data.example import RowRef
from llmforge.data.prompts import PromptRow, build_prompts
from llmforge.errors import RecipeError, RunError
from llmforge.eval.predictions import Prediction, PredictionFile, read_predictions
from llmforge.eval.progress import Progress
from llmforge.infer.defaults import sampling_of
from llmforge.infer.protocol import GenerateRequest, TokenIds
from llmforge.metrics.scores import Scores, Table, check_metrics, score
from llmforge.model.hub import adapter_folder
from llmforge.model.sources import resolve_model, say
from llmforge.runs import RunDir, atomic_write, sha256_file

if TYPE_CHECKING:
    from llmforge.data.templates.template import Template
    from llmforge.data.tokenizer import Tokenizer
    from llmforge.model.loading import LoadedModel

RESULTS = "predict_results.json"


@dataclass(frozen=True)
class PredictResult:
    """What predict wrote.

    Attributes:
        path: generated_predictions.jsonl.
        scores: the numbers of predict_results.json, each name with `predict_` before it.
        tables: confusion matrix, fields and the like.
        left_out: rows that got no prediction, with the reason.
        notes: what a reader has to know about the numbers.
    """

    path: Path
    scores: dict[str, float]
    tables: dict[str, Table] = field(default_factory=dict)
    left_out: list[tuple[RowRef, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The form of predict_results.json: LLaMA-Factory's flat numbers, then what it does not have."""
        return {
            **self.scores,
            "tables": {name: table.as_dict() for name, table in self.tables.items()},
            "left_out": [{"file": source.file, "row": source.row, "reason": why} for source, why in self.left_out],
            "notes": self.notes,
        }


def predict(recipe: Recipe) -> PredictResult:
    """Generate for the recipe's test sets and score the replies.

    Writes generated_predictions.jsonl while it runs; called again after an interruption it goes on with the rows that
    are missing. A reply does not depend on which rows are generated together: each has its own seed.

    Raises:
        RecipeError: no test set, an unknown metric, no folder to write to, or predictions there that were made with
            other settings.
        RunError: not one row could be predicted, or another process writes to the folder.
    """
    check_metrics(recipe.eval.metrics, recipe.eval)
    folder = predictions_dir(recipe)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"output_dir: {folder} cannot be made: {error.strerror}") from None
    with RunDir(folder).lock() as notice:
        if notice:
            print(notice, file=sys.stderr)
        return _predict_into(folder, recipe)


def _predict_into(target: Path, recipe: Recipe) -> PredictResult:
    from llmforge.model.loading import load_model, load_text

    folder = resolve_model(recipe.model)
    tokenizer, template = load_text(recipe, folder)
    rows, reports = build_prompts(recipe, tokenizer, template)
    check_metrics(recipe.eval.metrics, recipe.eval, [row.label for row in rows])
    left_out = [rejected for report in reports for rejected in report.rejected]
    wanted = {row.row: (row.prompt_text, row.label) for row in rows}
    started = time.monotonic()
    with closing(PredictionFile(target)) as file:
        done = file.begin(settings_of(recipe, folder, tokenizer, template), wanted, recipe.train.overwrite_output_dir)
        atomic_write(target / "predict_recipe.yaml", dump_recipe(recipe))
        missing = [row for row in rows if row.row not in done]
        if done:
            print(f"{len(done)} of {len(rows)} rows are predicted already", file=sys.stderr)
        if missing:  # else the scores are all there is to do, and the model need not be loaded
            progress = Progress(len(missing), "rows predicted")
            for row, prediction, problem in generate(recipe, load_model(recipe, for_training=False), missing):
                if prediction is None:
                    left_out.append((row.source, problem))
                else:
                    done[row.row] = prediction
                    file.append(prediction)
                progress.advance()
        if not done:
            raise RunError(f"predict: no row could be predicted; {left_out[0][0]}: {left_out[0][1]}")
        runtime_s = time.monotonic() - started
        timing = {"predict_runtime": runtime_s, "predict_samples_per_second": len(missing) / max(runtime_s, 1e-9)}
        return _score(file, list(done.values()), recipe, sorted(left_out), timing)


def generate(
    recipe: Recipe, loaded: LoadedModel, rows: Sequence[PromptRow]
) -> Iterator[tuple[PromptRow, Prediction | None, str]]:
    """(row, its prediction, "") as replies end, or (row, None, why there is none), in an order of the core's own."""
    from llmforge.infer.local.core import LocalCore

    core = LocalCore(
        loaded.model,
        loaded.tokenizer,
        loaded.template,
        max_rows=recipe.train.per_device_eval_batch_size,
        token_budget=sys.maxsize,  # the recipe says how many rows run together
        skip_special=recipe.generate.skip_special_tokens,
    )
    texts = [""] * len(rows)
    requests = [
        GenerateRequest(
            "", TokenIds(tuple(row.prompt_ids)), sampling_of(recipe.generate, seed=recipe.train.seed + row.row)
        )
        for row in rows
    ]
    for number, piece in core.generate(requests):
        row = rows[number]
        texts[number] += piece.text
        if piece.finish_reason == "error":
            yield row, None, piece.error or "generation failed"
        elif piece.finish_reason is not None:
            yield row, Prediction(row.row, row.prompt_text, texts[number], row.label, piece.finish_reason), ""


def predictions_dir(recipe: Recipe) -> Path:
    """Where predictions go: `output_dir`, or its folder `predict` when a training run lives there.

    Raises:
        RecipeError: the recipe has no output_dir.
    """
    if recipe.train.output_dir is None:
        raise RecipeError("output_dir: predict needs a folder to write to, for example output_dir=runs/predict")
    folder = Path(recipe.train.output_dir)
    run = RunDir(folder)
    return folder / "predict" if run.manifest_path.exists() or run.state_path.exists() or run.results() else folder


def settings_of(recipe: Recipe, folder: Path, tokenizer: Tokenizer, template: Template) -> dict[str, Any]:
    """Everything but the rows that predictions depend on, in words that a message about a difference can show."""
    drawing = sampling_of(recipe.generate, seed=recipe.train.seed)
    used = (
        ("temperature", "top_p", "top_k", "seed") if drawing.temperature else ("temperature",)
    )  # greedy needs no more
    adapters = [adapter_folder(recipe.model, name, say) for name in recipe.model.adapter_name_or_path]
    return {
        "model": f"{folder.name} {_folder_identity(folder)}",
        "adapters": [f"{adapter.name} {_folder_identity(adapter)}" for adapter in adapters],
        "template": f"{template.name} {template.hash()[:12]}",
        "tokenizer": tokenizer.vocab_hash[:12],
        "infer_dtype": recipe.model.infer_dtype,
        "quantization_bit": recipe.model.quantization_bit,
        "skip_special_tokens": recipe.generate.skip_special_tokens,
        **{name: getattr(drawing, name) for name in ("max_new_tokens", "max_length", "repetition_penalty", *used)},
    }


def _folder_identity(folder: Path) -> str:
    """A short hash that changes when the weights do: of an adapter's bytes, of a large file's name, size and time."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")]):
        status = path.stat()
        large = status.st_size > 1 << 28  # 256 MB take about 0.2 s
        mark = f"{status.st_size}:{status.st_mtime_ns}" if large else sha256_file(path)
        digest.update(f"{path.name}:{mark};".encode())
    return digest.hexdigest()[:12]


def score_predictions(path: Path, recipe: Recipe) -> PredictResult:
    """Score a predictions file anew, ours or LLaMA-Factory's, by the recipe's metrics; writes the scores beside it.

    Raises:
        RecipeError: no such file, a line that is no prediction, or an empty file.
    """
    predictions = list(read_predictions(path))
    if not predictions:
        raise RecipeError(f"{path}: holds no predictions")
    scores = _scores_of(predictions, recipe)
    return _write_results(path, scores, [], {}, len(predictions))


def _score(
    file: PredictionFile,
    predictions: list[Prediction],
    recipe: Recipe,
    left_out: list[tuple[RowRef, str]],
    timing: dict[str, float],
) -> PredictResult:
    """Score the predictions and write both files, whole."""
    predictions.sort(key=lambda prediction: prediction.row)
    scores = _scores_of(predictions, recipe)
    for prediction, row in zip(predictions, scores.per_row, strict=True):
        prediction.scores = row
    file.finish(predictions)
    return _write_results(file.path, scores, left_out, timing, len(predictions))


def _scores_of(predictions: Sequence[Prediction], recipe: Recipe) -> Scores:
    replies, labels = [p.predict for p in predictions], [p.label for p in predictions]
    return score(recipe.eval.metrics, replies, labels, recipe.eval)


def _write_results(
    path: Path, scores: Scores, left_out: list[tuple[RowRef, str]], timing: dict[str, float], num_rows: int
) -> PredictResult:
    values = {f"predict_{name}": value for name, value in scores.values.items()}
    counts = {"predict_rows": num_rows, "predict_rows_left_out": len(left_out)}
    result = PredictResult(path, {**values, **counts, **timing}, scores.tables, left_out, scores.notes)
    atomic_write(path.parent / RESULTS, json.dumps(result.as_dict(), indent=1, ensure_ascii=False) + "\n")
    return result
