"""Projects for the board's tests: one with good, bad and evil things on every page, and one to be shown to people."""

from __future__ import annotations

import json
import math
import os
import random
import re
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

SUPPORT = """\
kind: dataset
name: support
rows: 20
slots:
  topic: {choice: [%s]}
  tone: {choice: [%s]}
teacher: {model: echo, base_url: "%s", temperature: 0.8, max_tokens: 400}
prompt: prompts/support.j2
output_schema: schemas/support.json
row: {instruction: "{{ out.question }}", output: out.answer}
convert: {format: alpaca}
register: data/dataset_info.json
"""
SLOTS = {
    "en": ("a broken printer, a lost password, a late parcel, a wrong invoice", "polite, angry, brief"),
    "zh": ("打印机故障, 忘记密码, 包裹延误, 发票错误", "礼貌, 生气, 简短"),
}
PROMPTS = {
    "en": "Write a {{ tone }} question of a customer about {{ topic }}, and the helpful answer of a support agent.\n"
    'Answer as JSON: {"question": "...", "answer": "..."}\n',
    "zh": "请写一位顾客语气{{ tone }}的问题，主题是{{ topic }}，并写出客服的回答。\n"
    '用 JSON 回答：{"question": "...", "answer": "..."}\n',
}
SCHEMA = """\
{
  "type": "object",
  "properties": {
    "question": {"type": "string", "minLength": 5},
    "answer": {"type": "string", "minLength": 5}
  },
  "required": ["question", "answer"]
}
"""


def teacher_says(asked: str) -> str:
    """What a teacher answers to the prompt of the tour's recipe."""
    if match := re.search(r"question of a customer about ((?:an? )?(.+?)), and", asked):
        question = f"Hello, I have {match[1]} since this morning. What can I do?"
        answer = f"I am sorry about the {match[2]}. Please send us your number, and we look into it today."
    else:
        topic = re.search(r"主题是(.+?)，", asked)
        question = f"您好，我遇到了{topic[1] if topic else '问题'}，该怎么办？"
        answer = f"很抱歉出现{topic[1] if topic else '问题'}。请告诉我们单号，我们今天就处理。"
    return json.dumps({"question": question, "answer": answer}, ensure_ascii=False)


def fill_tour(folder: Path, language: str, model: Path, shipped: Path, teacher: str) -> Path:
    """The sample data of a language, a recipe that makes rows, runs, and predictions before and after.

    Args:
        model: a model folder.
        shipped: the folder of the data sets that come with Forge.
        teacher: the address of a server that answers as `teacher_says`.
    """
    names = [f"report_classify_{language}_{part}" for part in ("train", "test")]
    (folder / "data").mkdir(parents=True)
    for name in names:
        shutil.copy(shipped / f"{name}.jsonl", folder / "data")
    registry = {name: {"file_name": f"{name}.jsonl"} for name in names}
    (folder / "data/dataset_info.json").write_text(json.dumps(registry, indent=1), encoding="utf-8")
    shutil.copytree(model, folder / "models/small-chat")
    files = {
        "support.yaml": SUPPORT % (*SLOTS[language], teacher),
        "prompts/support.j2": PROMPTS[language],
        "schemas/support.json": SCHEMA,
    }
    for name, text in files.items():
        (folder / "recipes" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "recipes" / name).write_text(text, encoding="utf-8")
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
