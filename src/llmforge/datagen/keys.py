"""Every key a recipe of `kind: dataset` may hold: type, default, range, meaning, said once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmforge.config.option import option
from llmforge.config.schema import Origin
from llmforge.datagen import step_keys
from llmforge.datagen.step_keys import (
    CalibrateConfig,
    CleanConfig,
    ContaminationConfig,
    ConvertConfig,
    DiversifyConfig,
    NearConfig,
    SplitConfig,
)

ANSWERS = ("auto", "json_schema", "json_object", "text")


@dataclass(frozen=True)
class TeacherConfig:
    """Who writes the answers: an OpenAI-compatible server, or with no base_url a model on this machine."""

    base_url: str | None = option(
        None, "URL of an OpenAI-compatible server; ${NAME} stands for an environment variable."
    )
    model: str | None = option(
        None, "The server's name of the model; without base_url a model as in model_name_or_path."
    )
    key_env: str | None = option(None, "Environment variable (or line of .env) that holds the server's key.")
    mode: str = option(
        "auto",
        "How the answer is bound to its schema; auto takes json_schema, then json_object, then text, as offered.",
        choices=ANSWERS,
    )
    template: str = option("auto", "Chat template of a model on this machine.")
    temperature: float = option(1.0, "Flatness of the distribution.", at_least=0)
    top_p: float = option(1.0, "Smallest set of tokens with this probability.", above=0, at_most=1)
    max_tokens: int = option(1024, "Tokens an answer may have.", at_least=1)
    parallel: int = option(4, "Requests under way at once, at most.", at_least=1, at_most=256)
    retries: int = option(3, "Answers asked for per row at most; a later one is told what was wrong.", at_least=1)
    timeout_s: float = option(120.0, "Seconds a request may take.", above=0)
    connect_timeout_s: float = option(10.0, "Seconds a connection may take.", above=0)
    patience_s: float = option(300.0, "Seconds a request is tried again after 429, 5xx or silence.", at_least=0)
    budget_usd: float | None = option(None, "Money that may be spent, over all runs of this data set.", at_least=0)
    budget_tokens: int | None = option(None, "Tokens that may be spent, prompts included.", at_least=0)
    price: dict = option(
        {}, "USD per million tokens, {in: 10, out: 30}, where the price table does not know the model."
    )
    fallback: list[Any] = option([], "Servers asked when this one fails: mappings of base_url, model, key_env, price.")


@dataclass(frozen=True)
class DedupeConfig:
    """Which accepted rows are copies of earlier ones."""

    field: str = option("", "Fields compared, joined by +, such as instruction+input; empty: none are.")
    method: str = option("exact", "exact on normalised text, or also rouge_l.", choices=("exact", "rouge_l"))
    max: float = option(0.7, "Highest ROUGE-L between two rows that both stay.", above=0, at_most=1)
    zh: str = option("chars", "What ROUGE-L counts in Chinese text.", choices=("chars", "words"))


@dataclass(frozen=True)
class StoreConfig:
    """Where rows are kept while the data set is made."""

    dir: str | None = option(None, "Folder of the data set at work; default work/NAME.", path="output")


@dataclass(frozen=True)
class SelfInstructConfig:
    """mode: selfinstruct: new tasks after the pattern of seed tasks."""

    seeds: str | None = option(None, "Seed tasks: rows of instruction, input, output.", path="input")
    seed_shots: int = option(6, "Seed tasks shown in each request.", at_least=1)
    machine_shots: int = option(2, "Accepted tasks shown in each request.", at_least=0)
    tasks: int = option(4, "Tasks asked for in each request.", at_least=1, at_most=32)
    round: int = option(8, "Requests that see the same pool of accepted tasks.", at_least=1)
    blocked: list[str] = option([], "Words no task may hold, such as image or file.")
    min_length: int = option(3, "Shortest instruction, in words or Chinese characters.", at_least=1)
    max_length: int = option(150, "Longest instruction, in words or Chinese characters.", at_least=1)
    max_similarity: float = option(0.7, "Highest ROUGE-L of an instruction with any earlier one.", above=0, at_most=1)
    max_instances: int = option(5, "Rows with one and the same instruction, at most.", at_least=1)


@dataclass(frozen=True)
class LabelConfig:
    """mode: label: clues, a reason, then a label, several times; the majority decides."""

    rows: str | None = option(None, "File of rows to label.", path="input")
    field: str = option("text", "Column that holds the text.")
    labels: str | None = option(
        None, "YAML or text file of labels; `name: meaning` lines or one name a line.", path="input"
    )
    votes: int = option(3, "Times each row is asked.", at_least=1, at_most=33)
    gold: str | None = option(None, "Column of the known label, for a confusion matrix; output.label looks into JSON.")


@dataclass(frozen=True)
class DatasetRecipe:
    """How a data set is made, from slots to checked rows; review and conversion read their own keys of it."""

    kind: str = option("dataset", "Says that this recipe makes a data set.", choices=("dataset",))
    name: str | None = option(None, "Name of the data set, also in dataset_info.json.")
    mode: str = option("slots", "Where rows come from.", choices=("slots", "rules", "selfinstruct", "label"))
    seed: int = option(42, "Seed of everything random.", at_least=0)
    rows: int | None = option(None, "Rows to ask for; default: what the quotas add up to.", at_least=1)
    slots: dict = option({}, "Facts of each row, sampled by code: name -> how.")
    variants: dict = option({}, "{by: SLOT}: one pass over the rows for each value of that choice.")
    compute: dict = option({}, "Numbers computed from the slots: name -> expression.")
    prompt: str | None = option(None, "Jinja file of what the teacher is asked.", path="input")
    system: str | None = option(None, "Jinja file of the teacher's system text.", path="input")
    output_schema: str | None = option(None, "JSON Schema (2020-12) of the answer.", path="input")
    facts: dict = option({}, "Places in the answer -> expressions; each becomes a const of the row's schema.")
    checks: list[str] | dict = option([], "Expressions that hold for every accepted row.")
    row: dict = option({}, "The training row: instruction and input as Jinja text or file, output as an expression.")
    max_rejected: float = option(
        0.5, "Share of rejected rows above which the run ends with code 3.", at_least=0, at_most=1
    )
    refill: int = option(
        0,
        "Times that spare rows are made for rejected ones, with their quota values and fresh other slots.",
        at_least=0,
    )
    register: str | None = option(None, "dataset_info.json that learns the data set's name.", path="output")
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    dedupe: DedupeConfig = field(default_factory=DedupeConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    selfinstruct: SelfInstructConfig = field(default_factory=SelfInstructConfig)
    label: LabelConfig = field(default_factory=LabelConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    clean: CleanConfig = field(default_factory=CleanConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    near: NearConfig = field(default_factory=NearConfig)
    diversify: DiversifyConfig = field(default_factory=DiversifyConfig)
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)
    origins: dict[str, Origin] = field(default_factory=dict)  # of given keys
    files: tuple[str, ...] = ()  # recipe files read

    @property
    def folder(self) -> Path:
        """The folder all steps of this data set share."""
        return Path(self.store.dir or f"work/{self.name}")


GROUPS: dict[str, type] = {
    "teacher": TeacherConfig,
    "dedupe": DedupeConfig,
    "store": StoreConfig,
    "selfinstruct": SelfInstructConfig,
    "label": LabelConfig,
    **step_keys.GROUPS,
}
