"""Rows to be answered: prompt ids as training saw them, and the reference reply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmforge.config.schema import Recipe
from llmforge.data.example import Example, Message, RowRef, RowReport
from llmforge.data.gather import eval_rows, held_out_rows
from llmforge.data.templates.template import Template
from llmforge.data.tokenizer import Tokenizer
from llmforge.errors import RecipeError


@dataclass(frozen=True)
class PromptRow:
    """One prompt.

    Attributes:
        row: counted from 0 over all rows to be answered.
        dataset: name of the data set.
        messages: the turns before the reply.
        prompt_ids: what the model is fed; equal to the training row up to the reply.
        prompt_text: the same for people.
        label: the reference reply as the model should write it, "" where the row has none.
    """

    row: int
    source: RowRef
    dataset: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    prompt_ids: list[int]
    prompt_text: str
    label: str


def build_prompts(recipe: Recipe, tokenizer: Tokenizer, template: Template) -> tuple[list[PromptRow], list[RowReport]]:
    """Prompts of eval_dataset, or of the rows that val_size holds out when there is none, and reports on every row.

    A row without a reply is fine here. Prompts are never cut: a model that cannot take one says so.

    Raises:
        RecipeError: no data set to answer, wrong files or entries, or not one usable row.
    """
    if not recipe.data.eval_dataset and not (recipe.data.dataset and recipe.data.val_size):
        raise RecipeError(
            "eval_dataset: nothing is given to predict on; name a data set, or hold rows out with val_size"
        )
    # Held-out rows are read as training reads them, so that they are the same.
    rows = eval_rows(recipe, "prompt") if recipe.data.eval_dataset else held_out_rows(recipe, recipe.finetune.stage)
    prompts: list[PromptRow] = []
    for name, examples in rows.evals.items():
        report = RowReport(f"prompts {name}", rows_in=len(examples))
        for example in examples:
            try:
                prompts.append(prompt_row(len(prompts), example, tokenizer, template))
            except RecipeError as error:
                report.reject(example.source, str(error))
        report.rows_out = report.rows_in - len(report.rejected)
        rows.reports.append(report)
    if not prompts:
        reasons = [reason for report in rows.reports for reason in report.reasons()]
        raise RecipeError(f"eval_dataset: no row can be made a prompt: {reasons[0] if reasons else 'it holds no rows'}")
    return prompts, rows.reports


def prompt_row(row: int, example: Example, tokenizer: Tokenizer, template: Template) -> PromptRow:
    """The prompt and reference reply of one example.

    Raises:
        RecipeError: the template cannot write it.
    """
    has_reply = example.messages[-1].role == "assistant"
    messages = example.messages[:-1] if has_reply else example.messages
    ids = template.encode(tokenizer, messages, example.tools, add_generation_prompt=True).input_ids
    text = template.text(tokenizer, messages, example.tools, add_generation_prompt=True)
    label = _label(example, len(ids), tokenizer, template) if has_reply else ""
    return PromptRow(row, example.source, example.dataset, messages, example.tools, ids, text, label)


def _label(example: Example, prompt_length: int, tokenizer: Tokenizer, template: Template) -> str:
    """The reply's text; calls and reasoning as the template has the model write them."""
    reply = example.messages[-1]
    if not reply.tool_calls and reply.reasoning is None:
        return reply.content
    whole = template.encode(tokenizer, example.messages, example.tools).input_ids
    return tokenizer.decode(whole[prompt_length:], skip_special=True).strip()
