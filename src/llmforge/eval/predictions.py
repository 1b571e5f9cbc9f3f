"""The file of predictions: it grows row by row, an interrupted run goes on with it, and it ends whole and in order."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from llmforge.errors import RecipeError
from llmforge.runs import RunDir, atomic_write

STATE_VERSION = 1
SYNC_EVERY_S = 5.0
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class Prediction:
    """One line of generated_predictions.jsonl; `row` counts the rows of all data sets, from 0; no label is ""."""

    row: int
    prompt: str
    predict: str
    label: str
    finish_reason: str
    scores: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """The JSON line, with its end; UTF-8 text, or ASCII escapes for a surrogate, which UTF-8 cannot hold."""
        text = json.dumps(asdict(self), ensure_ascii=False)
        return (text if text.isascii() or not SURROGATE.search(text) else json.dumps(asdict(self))) + "\n"


def read_predictions(path: Path) -> Iterator[Prediction]:
    """The lines of a predictions file, LLaMA-Factory's (prompt, predict, label) included.

    Raises:
        RecipeError: no such file, or a line that is no prediction; names file and line.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: no such file of predictions")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _read_line(line, number - 1, f"{path} line {number}")


def _read_line(line: str, row: int, where: str) -> Prediction:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise RecipeError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: got {type(value).__name__}, expected an object with predict and label")
    for name in ("predict", "label"):
        if not isinstance(value.get(name), str):
            raise RecipeError(f"{where}: {name}: got {value.get(name)!r}, expected text")
    prompt, finish_reason, scores = (value.get(name) for name in ("prompt", "finish_reason", "scores"))
    return Prediction(
        value.get("row", row), prompt or "", value["predict"], value["label"], finish_reason or "", scores or {}
    )


class PredictionFile:
    """generated_predictions.jsonl of a folder; predict_state.json beside it says what the lines depend on."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = RunDir(folder).predictions_path
        self.state_path = folder / "predict_state.json"
        self._file: IO[str] | None = None
        self._synced = 0.0

    def begin(
        self, settings: Mapping[str, Any], wanted: Mapping[int, tuple[str, str]], overwrite: bool
    ) -> dict[int, Prediction]:
        """Open the file for appending and return the predictions that are there already.

        Args:
            settings: everything but the rows that the predictions depend on, as JSON values.
            wanted: row -> (prompt, label) of every row to predict.
            overwrite: throw away lines that were made with other settings or for other rows.

        Raises:
            RecipeError: such lines are there and `overwrite` is false; names the settings that differ.
        """
        done = {p.row: p for p in self._whole_lines()}
        if done and (differences := self._differences(settings, wanted, done)):
            if not overwrite:
                raise RecipeError(
                    f"{self.path} holds {len(done)} predictions made differently:\n"
                    + "".join(f"  {difference}\n" for difference in differences)
                    + "Give another output_dir, or overwrite_output_dir=true to throw them away"
                )
            done = {}
        state = {"version": STATE_VERSION, "settings": dict(settings)}
        atomic_write(self.state_path, json.dumps(state, indent=1, ensure_ascii=False) + "\n")
        self._rewrite(done.values())  # without the half line that a killed process may have left
        self._file = self.path.open("a", encoding="utf-8")
        return done

    def append(self, prediction: Prediction) -> None:
        """Add one line: a killed process loses nothing, a power cut the lines of some seconds."""
        assert self._file is not None, "begin() opens the file"
        self._file.write(prediction.line())
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_EVERY_S:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Close the file as it is; the next `begin` goes on with it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self, predictions: Sequence[Prediction]) -> None:
        """Replace the lines by the complete ones, ordered by row, in one step."""
        self.close()
        self._rewrite(sorted(predictions, key=lambda p: p.row))

    def _rewrite(self, predictions: Iterable[Prediction]) -> None:
        atomic_write(self.path, "".join(p.line() for p in predictions))

    def _whole_lines(self) -> Iterator[Prediction]:
        """Lines of an earlier run; the last one may be cut off, any other damage is an error."""
        if not self.path.is_file():
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            if number == len(lines) and not line.endswith(b"\n"):
                return
            yield _read_line(line.decode("utf-8"), number - 1, f"{self.path} line {number}")

    def _differences(
        self, settings: Mapping[str, Any], wanted: Mapping[int, tuple[str, str]], done: Mapping[int, Prediction]
    ) -> list[str]:
        """What separates the lines that are there from those that are wanted, for people."""
        if not self.state_path.is_file():
            return [f"{self.state_path.name} is missing, so nobody knows how"]
        before = json.loads(self.state_path.read_text(encoding="utf-8"))["settings"]
        now = json.loads(json.dumps(settings))
        found = [
            f"{name}: {before.get(name)!r} then, {now.get(name)!r} now"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        other = [row for row, p in done.items() if wanted.get(row) != (p.prompt, p.label)]
        if other:
            found.append(f"data: row {min(other)} is another one" + f" ({len(other)} such rows)" * (len(other) > 1))
        return found
