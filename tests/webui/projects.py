"""Projects for the board's tests: one with good, bad and evil things on every page, and one to be shown to people."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

from llmforge.process import process_start
from llmforge.runs import RunDir

EVIL = '<img src=x onerror="window.evil=1"><script>window.evil=1</script>[x](javascript:window.evil=1)'
SUMS = """\
kind: dataset
name: sums
mode: rules
rows: 6
slots: {n: {int: [1, 9]}}
compute: {double: n * 2}
row: {instruction: "Twice {{ n }}?", output: compute.double}
"""


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def fill_project(folder: Path, tokenizer: Path) -> Path:
    """Data sets with good, bad and evil rows, predictions of two models, a recipe that needs no teacher."""
    questions = [{"instruction": f"Where is office {i}?", "input": "", "output": f"On floor {i}."} for i in range(1, 6)]
    questions += [{"instruction": EVIL, "input": "", "output": EVIL}, {"instruction": "", "output": "no question"}]
    write_lines(folder / "data/questions.jsonl", questions)
    pairs = [{"prompt": f"打印机 {i} 坏了", "chosen": "我马上来。", "rejected": "不知道。"} for i in range(4)]
    write_lines(folder / "data/pairs.jsonl", pairs)
    registry = {
        "questions": {"file_name": "questions.jsonl"},
        "pairs": {
            "file_name": "pairs.jsonl",
            "ranking": True,
            "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "query": None},
        },
    }
    (folder / "data/dataset_info.json").write_text(json.dumps(registry, indent=1), encoding="utf-8")
    shutil.copytree(tokenizer, folder / "models/tiny")
    before = [("cat", "cat"), ("cow", "dog"), ("cow", "dog"), (EVIL, "dog")]
    after = [("cow", "cat"), ("dog", "dog"), ("dog", "dog"), ("dog", "dog")]
    for name, answers in (("base", before), ("tuned", after)):
        lines = [
            {"row": i, "prompt": f"animal {i} {EVIL}", "predict": said, "label": wanted, "finish_reason": "stop"}
            for i, (said, wanted) in enumerate(answers)
        ]
        write_lines(folder / f"work/predictions/{name}/generated_predictions.jsonl", lines)
    (folder / "recipes").mkdir()
    (folder / "recipes/sums.yaml").write_text(SUMS, encoding="utf-8")
    return folder


# -- the project of the tour ------------------------------------------------------------------------------------------

TICKETS = {
    "en": """\
kind: dataset
name: tickets
mode: rules
rows: 40
slots:
  device: {choice: [printer, scanner, badge reader, projector]}
  trouble: {choice: [is jammed, does not start, shows an error, is too slow]}
  floor: {int: [1, 9]}
compute: {desk: floor * 100 + 1}
row:
  instruction: "Which desk takes this ticket? The {{ device }} on floor {{ floor }} {{ trouble }}."
  output: compute.desk
""",
    "zh": """\
kind: dataset
name: tickets
mode: rules
rows: 40
slots:
  device: {choice: [打印机, 扫描仪, 门禁, 投影仪]}
  trouble: {choice: [卡住了, 打不开, 报错, 太慢]}
  floor: {int: [1, 9]}
compute: {desk: floor * 100 + 1}
row:
  instruction: "这张工单归哪个服务台？{{ floor }} 楼的{{ device }}{{ trouble }}。"
  output: compute.desk
""",
}


def fill_tour(folder: Path, language: str, model: Path, shipped: Path) -> Path:
    """The sample data of a language, a recipe that makes rows, runs, and predictions before and after.

    Args:
        model: a model folder.
        shipped: the folder of the data sets that come with Forge.
    """
    names = [f"report_classify_{language}_{part}" for part in ("train", "test")]
    (folder / "data").mkdir(parents=True)
    for name in names:
        shutil.copy(shipped / f"{name}.jsonl", folder / "data")
    registry = {name: {"file_name": f"{name}.jsonl"} for name in names}
    (folder / "data/dataset_info.json").write_text(json.dumps(registry, indent=1), encoding="utf-8")
    shutil.copytree(model, folder / "models/small-chat")
    (folder / "recipes").mkdir()
    (folder / "recipes/tickets.yaml").write_text(TICKETS[language], encoding="utf-8")
    _runs(folder, names[0])
    _predictions(folder, folder / f"data/{names[1]}.jsonl")
    return folder


def _runs(folder: Path, dataset: str) -> None:
    """Two that are done, one that failed, and one at work (which this process stands for)."""
    about = (("reports-rank-8", "finished", 8, 1.0), ("reports-rank-16", "finished", 16, 0.8),
             ("reports-too-fast", "failed", 8, 3.0), ("reports-two-epochs", "running", 8, 0.9))  # fmt: skip
    for number, (name, state, rank, scale) in enumerate(about):
        run = RunDir(folder / "runs" / name)
        run.path.mkdir(parents=True)
        lines = {"model_name_or_path": "models/small-chat", "template": "chatml", "stage": "sft", "dataset": dataset,
                 "finetuning_type": "lora", "lora_rank": rank, "learning_rate": 0.001 * scale}  # fmt: skip
        run.recipe_path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()), encoding="utf-8")
        steps, total = (60 if state == "failed" else 120 if state == "running" else 174), 174
        dice = random.Random(number)
        with open(run.log_path, "w", encoding="utf-8") as log:
            for step in range(2, steps + 1, 2):
                loss = 0.06 + 1.9 * math.exp(-step / (28 / scale)) + dice.uniform(-0.04, 0.06)
                line = {"current_steps": step, "total_steps": total, "loss": round(loss * scale, 4),
                        "lr": 0.001 * (1 - step / total), "tokens_per_second": 812 + dice.randint(-9, 9)}  # fmt: skip
                log.write(json.dumps(line) + "\n")
                if step % 40 == 0:
                    log.write(json.dumps({"current_steps": step, "eval_loss": round(loss * scale + 0.03, 4)}) + "\n")
        (run.path / "console.log").write_text(f"forge-cli: train {dataset}\nstep {steps} of {total}\n", "utf-8")
        me = {"pid": os.getpid(), "process_start": process_start(os.getpid())} if state == "running" else {}
        why = {"error": "the loss is not a number since step 58; a lower learning_rate helps"}
        run.write_state(
            state=state, phase="train", step=steps, total_steps=total, start_time=time.time() - 4000 + 600 * number,
            **me, **(why if state == "failed" else {}),
        )  # fmt: skip


def _predictions(folder: Path, test: Path) -> None:
    """What a model says to the test rows before (a little more than half right) and after (nearly all)."""
    rows = [json.loads(line) for line in test.read_text(encoding="utf-8").splitlines()][:80]
    labels = sorted({row["output"] for row in rows})
    for name, right in (("untuned", 0.55), ("reports-rank-8", 0.95)):
        dice = random.Random(name)
        lines = []
        for number, row in enumerate(rows):
            said = row["output"] if dice.random() < right else dice.choice(labels)
            lines.append({"row": number, "prompt": row["input"], "predict": said, "label": row["output"]})
        write_lines(folder / f"work/predictions/{name}/generated_predictions.jsonl", lines)
