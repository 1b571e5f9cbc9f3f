"""mode: selfinstruct: a teacher thinks up new tasks after the pattern of seed tasks and of those accepted so far.

Requests come in rounds that see the same pool, and tasks are judged in the order of requests, so the rows do not
depend on which answer came first.

Source: Wang et al. 2023, Self-Instruct, arXiv:2212.10560: 8 shots of which 2 are machine-made, ROUGE-L below 0.7.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmforge.config.paths import bundled
from llmforge.data.files import read_rows
from llmforge.datagen.answer import check_schema, cut_list, read_json
from llmforge.datagen.copies import normalised, rouge_l, units
from llmforge.datagen.keys import DatasetRecipe
from llmforge.datagen.ledger import Entry
from llmforge.datagen.prompt import Prompt
from llmforge.datagen.session import GenerateResult, Session, open_session
from llmforge.datagen.slots import draw_of
from llmforge.datagen.task import Task, digest
from llmforge.datagen.work import end_entry
from llmforge.errors import RecipeError
from llmforge.runs import sha256_file

PROMPT = "configs/prompts/selfinstruct.j2"
FIELDS = ("instruction", "input", "output")
BARREN_ROUNDS = 3  # rounds without a new task after which asking on is a waste
TEXT = {"type": "string"}


def task_schema(num_tasks: int) -> dict[str, Any]:
    """The schema of an answer."""
    properties = {"instruction": {**TEXT, "minLength": 1}, "input": TEXT, "output": {**TEXT, "minLength": 1}}
    item = {"type": "object", "properties": properties, "required": list(FIELDS), "additionalProperties": False}
    tasks = {"type": "array", "items": item, "minItems": 1, "maxItems": num_tasks}
    return {"type": "object", "properties": {"tasks": tasks}, "required": ["tasks"], "additionalProperties": False}


@dataclass
class Pool:
    """Seed tasks, accepted tasks, and what a new one is held against."""

    recipe: DatasetRecipe
    seeds: list[dict[str, str]]
    accepted: list[dict[str, Any]] = field(default_factory=list)
    _known: list[list[str]] = field(default_factory=list)
    _outputs: dict[str, str] = field(default_factory=dict)  # instruction and input -> output
    _instances: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._known = [units(seed["instruction"]) for seed in self.seeds]

    def shots(self, index: int) -> list[dict[str, str]]:
        """The examples of a request, seeds and machine-made ones mixed."""
        config, draw = self.recipe.selfinstruct, draw_of(self.recipe.seed, "shots", index)
        shots = draw.sample(self.seeds, min(config.seed_shots, len(self.seeds)))
        made = draw.sample(self.accepted, min(config.machine_shots, len(self.accepted)))
        shots += [{key: row[key] for key in FIELDS} for row in made]
        draw.shuffle(shots)
        return shots

    def problem(self, task: dict[str, str], request: str) -> tuple[str, str] | None:
        """Why a new task is not taken: (cause, detail)."""
        config = self.recipe.selfinstruct
        instruction, length = task["instruction"], len(units(task["instruction"]))
        if not config.min_length <= length <= config.max_length:
            return "length", f"the instruction has {length} words; {config.min_length} to {config.max_length} are taken"
        text = " ".join(task[key] for key in FIELDS).casefold()
        if blocked := next((word for word in config.blocked if word.casefold() in text), None):
            return "blocked", f"holds the word {blocked!r}"
        if normalised(task["input"]) and normalised(task["input"]) == normalised(task["output"]):
            return "echo", "the output repeats the input"
        key = f"{normalised(instruction)}\n{normalised(task['input'])}"
        if key in self._outputs:
            same = self._outputs[key] == normalised(task["output"])
            return ("duplicate", "the same task again") if same else ("conflict", "the same task with another output")
        instance = f"{request}\n{normalised(instruction)}"
        if 0 < self._instances[instance] < config.max_instances:
            return None  # another input for an instruction of the same answer
        if self._instances[instance]:
            return "instances", f"the instruction has {config.max_instances} rows already"
        mine, highest = units(instruction), config.max_similarity
        if any(rouge_l(mine, known, highest) > highest for known in self._known):
            return "similar", f"an earlier instruction is alike (ROUGE-L above {highest:g})"
        return None

    def add(self, record: dict[str, Any], request: str) -> None:
        """Take an accepted row in; later tasks are held against it at once."""
        self.accepted.append(record)
        instance = f"{request}\n{normalised(record['instruction'])}"
        if not self._instances[instance]:
            self._known.append(units(record["instruction"]))
        self._instances[instance] += 1
        key = f"{normalised(record['instruction'])}\n{normalised(record['input'])}"
        self._outputs[key] = normalised(record["output"])


def self_instruct(recipe: DatasetRecipe, preview: int | None) -> GenerateResult:
    """Ask for tasks until `rows` are accepted.

    Raises:
        RecipeError: seeds that are no tasks.
    """
    assert recipe.selfinstruct.seeds is not None
    assert recipe.rows is not None
    wanted = min(recipe.rows, preview or recipe.rows)
    pool = Pool(recipe, read_seeds(Path(recipe.selfinstruct.seeds)))
    path = recipe.prompt or bundled(PROMPT)
    assert path is not None, f"{PROMPT} is shipped with Forge"
    prompt = Prompt.of_file(str(path), frozenset({"shots", "num_tasks", "blocked"}))
    config = vars(recipe.selfinstruct) | {"seeds": sha256_file(Path(recipe.selfinstruct.seeds))}
    digests = {"seed": digest(recipe.seed), "selfinstruct": digest(config), "prompt": digest(prompt.text)}
    session = open_session(recipe, digests)
    return session.run(_rounds(session, pool, prompt, wanted), wanted)


async def _rounds(session: Session, pool: Pool, prompt: Prompt, wanted: int) -> str | None:
    """Rounds of requests, each judged before the next one is asked."""
    config, barren, number = session.recipe.selfinstruct, 0, 0
    async with session.asking(_judge, wanted, in_parts=True) as asking:
        while len(pool.accepted) < wanted and barren < BARREN_ROUNDS:
            first = number * config.round
            tasks = [_task(session.recipe, pool, prompt, index) for index in range(first, first + config.round)]
            await asking.run(tasks)
            before = len(pool.accepted)
            for task in tasks:
                part = session.ledger.history.row(task.id).part
                if part is not None:
                    await _settle(session, pool, part)
            if asking.stopped_by is not None:
                return asking.stopped_by
            barren = 0 if len(pool.accepted) > before else barren + 1
            number += 1
    if len(pool.accepted) < wanted:
        return f"{BARREN_ROUNDS} rounds brought no new task; more seed tasks or a higher temperature may help"
    return None


def _task(recipe: DatasetRecipe, pool: Pool, prompt: Prompt, index: int) -> Task:
    config = recipe.selfinstruct
    values = {"shots": pool.shots(index), "num_tasks": config.tasks, "blocked": config.blocked}
    message = {"role": "user", "content": prompt.render(values)}
    return Task(index, f"request-{index:06d}", None, {}, {}, (message,), task_schema(config.tasks))


def _judge(task: Task, text: str, finish_reason: str) -> dict[str, Any]:
    """The tasks of an answer; of one that was cut the last task is left out."""
    assert task.schema is not None
    was_cut = finish_reason == "length"
    value = {"tasks": cut_list(text, "tasks")} if was_cut else read_json(text, finish_reason).value
    check_schema(value, task.schema)
    return {**task.facts(), "out": value, "repaired": False}


async def _settle(session: Session, pool: Pool, part: Entry) -> None:
    """Rows out of one answer: each task is accepted or rejected with its cause."""
    record, request = part["record"], part["id"]
    if str(part["cause"] or "").startswith("teacher:"):
        return  # asked again by the next run
    if part["cause"] is not None:
        row = {**record, "id": f"{request}-none"}
        await _close(session, end_entry(row, part["cause"], part["detail"]))
        return
    for number, task in enumerate(record["out"]["tasks"]):
        row = {**record, "id": f"{request}-{number}", "index": record["index"] * 100 + number, "out": task, **task}
        row["messages"] = record["messages"]
        problem = pool.problem(task, request)
        if problem is None:
            pool.add(row, request)
        await _close(session, end_entry(row, *(problem or ())))


async def _close(session: Session, entry: Entry) -> None:
    """Write a row once; a resumed run only takes it into the pool again."""
    if session.ledger.history.row(entry["id"]).end is None:
        await session.ledger.append(entry)
        session.work.write_row(entry["id"], session.ledger.history.row(entry["id"]))


def read_seeds(path: Path) -> list[dict[str, str]]:
    """Seed tasks: rows of instruction, input and output, or self-instruct's own with `instances`.

    Raises:
        RecipeError: a row without instruction or output; names it.
    """
    seeds = []
    for number, row in read_rows(path, remark=lambda text: None):
        instances: Sequence[Any] = row.get("instances") or [row] if isinstance(row, dict) else []
        for instance in instances[:1]:
            seed = {**row, **instance}
            seeds.append({key: str(seed.get(key) or "").strip() for key in FIELDS})
        if not instances or not (seeds[-1]["instruction"] and seeds[-1]["output"]):
            raise RecipeError(f"{path} row {number}: expected instruction, input and output")
    if not seeds:
        raise RecipeError(f"{path}: no seed tasks")
    return seeds
