"""Rows and findings of a data set as HTML: chat bubbles, what is learned of them, errors by cause, lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from llmforge.config.load import load_recipe
from llmforge.data.encode import EncodeOptions, encode_examples
from llmforge.data.example import Example, Message, RowReport
from llmforge.data.inspect import Findings
from llmforge.data.marked import Span, spans
from llmforge.data.templates.template import LabelPolicy, Template
from llmforge.data.tokenizer import Tokenizer
from llmforge.model.sources import local_folder
from llmforge.model.text import load_text
from llmforge.webui.charts import histogram
from llmforge.webui.markup import Safe, tag
from llmforge.webui.refusal import Refusal
from llmforge.webui.sentences import show_sentence
from llmforge.webui.words import Words

NAMED_ROWS = 12  # row numbers listed for each cause
LONGEST_SHOWN = 4000  # characters of a message or of the marked text


@dataclass(frozen=True)
class Reader:
    """How a model reads rows."""

    tokenizer: Tokenizer
    template: Template
    options: EncodeOptions

    @classmethod
    def of(cls, model: str, cutoff_len: int) -> Reader | None:
        """The reader of a model that is here; None where no model is named.

        Raises:
            RecipeError: it is not here (a Refusal), or has no tokenizer.
        """
        if not model:
            return None
        recipe = load_recipe([f"model_name_or_path={model}", f"cutoff_len={cutoff_len}"], "show")
        folder = local_folder(recipe.model)
        if folder is None:
            raise Refusal("data.model_not_here", name=model)
        data = recipe.data
        policy = LabelPolicy(data.train_on_prompt, data.mask_history)
        options = EncodeOptions("sft", policy, data.cutoff_len, data.truncation, False)
        tokenizer, template = load_text(recipe, folder)
        return cls(tokenizer, template, options)

    def read(self, example: Example) -> tuple[list[list[Span]], list[int], list[str]]:
        """(spans, numbers of tokens, remarks) of the rows an example becomes; its better reply stands for a pair."""
        whole = replace(example, messages=(*example.messages, example.chosen)) if example.chosen else example
        options = replace(self.options, stage="sft" if example.text is None else "pt")
        rows, report = encode_examples(
            [whole],
            self.template,
            self.tokenizer,
            stage=options.stage,
            policy=options.policy,
            cutoff_len=options.cutoff_len,
            truncation=options.truncation,
            packing=False,
        )
        remarks = [what for _, what in (*report.rejected, *report.fixed)]
        return [spans(self.tokenizer, row) for row in rows], [len(row.input_ids) for row in rows], remarks


def show_examples(
    words: Words, examples: Sequence[Example], report: RowReport, reader: Reader | None, legend: bool = True
) -> Safe:
    """A few rows as conversations, and what was left out on the way to them; `legend` says what the colours mean."""
    cards = [_example(words, example, reader) for example in examples]
    lost = [
        tag("li", words("data.row", n=source.row), ": ", show_sentence(words, why))
        for source, why in report.rejected[:NAMED_ROWS]
    ]
    return tag(
        "div",
        tag("p", words("data.legend_learned" if reader else "data.legend_no_model"), class_="calm") if legend else None,
        tag("div", *cards, class_="rows"),
        tag("div", tag("h3", words("data.left_out")), tag("ul", *lost)) if lost else None,
        class_="preview",
    )


def _example(words: Words, example: Example, reader: Reader | None) -> Safe:
    marked, counts, remarks = reader.read(example) if reader else ([], [], [])
    learned = "\n".join(span.text for row in marked for span in row if span.trained)
    bubbles = [_bubble(words, message, message.content.strip() in learned) for message in example.messages]
    for name, reply in (("chosen", example.chosen), ("rejected", example.rejected)):
        if reply:
            bubbles.append(_bubble(words, reply, name == "chosen" and bool(learned), words(f"data.{name}")))
    if example.text is not None:
        bubbles.append(tag("div", _cut(example.text), class_="bubble text" + (" learned" if learned else "")))
    head = [words("data.row", n=example.source.row)]
    if counts:
        head.append(words("data.tokens", n=sum(counts)))
    if example.label is not None:
        head.append(words("data.verdict_good" if example.label else "data.verdict_bad"))
    texts = [tag("pre", *map(_span, row), class_="marked") for row in marked]
    return tag(
        "article",
        tag("header", " · ".join(head)),
        tag("div", *bubbles, class_="chat"),
        tag("details", tag("summary", words("data.as_read")), *texts) if texts else None,
        tag("ul", *(tag("li", show_sentence(words, one)) for one in remarks), class_="warn") if remarks else None,
        class_="card row-card",
    )


def _bubble(words: Words, message: Message, learned: bool, name: str = "") -> Safe:
    calls = [tag("pre", f"{call.name} {json.dumps(call.arguments, ensure_ascii=False)}") for call in message.tool_calls]
    return tag(
        "div",
        tag("span", name or words(f"data.role_{message.role}"), class_="who"),
        tag("p", _cut(message.content)) if message.content else None,
        *calls,
        class_=f"bubble {message.role}" + (" learned" if learned else ""),
    )


def _span(span: Span) -> Safe:
    text = span.text if span.label is None else f"{span.text}→{span.label}"
    return tag("mark" if span.trained else "span", _cut(text))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} …"


def show_findings(words: Words, found: Findings) -> Safe:
    """What the check of a whole data set found: rows by cause, then duplicates, labels, lookups, lengths."""
    report = found.report
    causes: list[tuple[str, str, list[int]]] = []
    for reason in report.reasons():
        rows = [source.row for source, why in report.rejected if why == reason]
        causes.append(("bad", show_sentence(words, reason), rows))
    fixed: dict[str, list[int]] = {}
    for source, what in report.fixed:
        fixed.setdefault(what, []).append(source.row)
    causes += [("warn", show_sentence(words, what), rows) for what, rows in fixed.items()]
    double = found.duplicates
    if double["rows"]:
        repeated = [row for group in double["groups"] for row in group[1:]]
        causes.append(("warn", words("data.duplicates", n=double["rows"]), repeated))
    if double["conflicts"]:
        asked = [row for group in double["conflict_groups"] for row in group]
        causes.append(("warn", words("data.conflicts", n=double["conflicts"]), asked))
    if found.lookups:
        rows = [one["row"] for one in found.lookups]
        causes.append(("warn", words("data.lookups", n=len(rows)), rows))
    lines = [
        tag(
            "tr",
            tag("td", words("data.cause_bad" if kind == "bad" else "data.cause_warn"), class_=kind),
            tag("td", what),
            tag("td", f"{len(rows):,}", class_="number"),
            tag("td", _rows(words, rows)),
        )
        for kind, what, rows in causes
    ]
    columns = ("kind", "cause", "rows", "where")
    head = tag("tr", *(tag("th", words(f"data.col_{name}"), scope="col", class_=_align(name)) for name in columns))
    table = tag("div", tag("table", tag("thead", head), tag("tbody", *lines)), class_="scroll", tabindex="0")
    state = "good" if not report.rejected else "bad"
    summary = words("data.usable", ok=report.rows_out, all=report.rows_in)
    return tag(
        "div",
        tag("p", tag("strong", summary, class_=state)),
        tag("p", words("data.never_edited"), class_="calm"),
        table if lines else tag("p", words("data.no_problems"), class_="good"),
        _labels(words, found.labels) if found.labels else None,
        _lengths(words, found.lengths),
        tag("ul", *(tag("li", show_sentence(words, note)) for note in report.notes)) if report.notes else None,
        class_="doctor",
    )


def _rows(words: Words, rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:NAMED_ROWS])
    return shown + (words("data.and_more", n=len(rows) - NAMED_ROWS) if len(rows) > NAMED_ROWS else "")


def _labels(words: Words, labels: Mapping[str, int]) -> Safe:
    most = max(labels.values())
    lines = [
        tag(
            "tr",
            tag("td", name, class_="data"),
            tag("td", tag("meter", str(n), value=n, max=most, aria_label=name), class_="data"),
            tag("td", f"{n:,}"),
        )
        for name, n in list(labels.items())[:30]
    ]
    return tag("div", tag("h3", words("data.labels")), tag("table", tag("tbody", *lines)))


def _lengths(words: Words, lengths: Mapping[str, Any] | None) -> Safe:
    if not lengths or "histogram" not in lengths:
        return tag("p", words("data.no_lengths"), class_="calm")
    told = words(
        "data.length_line",
        longer=lengths["longer"],
        cutoff=lengths["cutoff_len"],
        median=lengths["p50"],
        most=lengths["max"],
        fits=lengths["cutoff_99"],
    )
    shown = histogram(
        lengths["histogram"]["edges"],
        lengths["histogram"]["counts"],
        line=lengths["cutoff_len"],
        line_label=words("data.cutoff_line", n=lengths["cutoff_len"]),
        label=words("data.lengths") + ": " + told,
    )
    return tag("div", tag("h3", words("data.lengths")), shown, tag("p", told))


def link_to_use(words: Words, name: str) -> Safe:
    """Leads to the page Fine-tune with this data set chosen."""
    return tag("a", words("data.use"), href=f"train?data={quote(name)}", class_="button")


def show_entries(words: Words, lines: Sequence[Mapping[str, Any]], chosen: str) -> Safe:
    """The registry as a table; a name is a button."""
    names = ("name", "kind", "rows", "format", "hash", "checked")
    body = [
        tag(
            "tr",
            tag("td", tag("button", line["name"], type="button", class_="pick", data_pick=line["name"])),
            tag("td", line["kind"]),
            tag("td", line["rows"], class_="number"),
            tag("td", line["format"]),
            tag("td", tag("code", line["hash"]) if line["hash"] else "–"),
            tag("td", line["checked"]),
            aria_selected="true" if line["name"] == chosen else None,
            class_="chosen" if line["name"] == chosen else None,
        )
        for line in lines
    ]
    head = tag("tr", *(tag("th", words(f"data.head_{name}"), scope="col", class_=_align(name)) for name in names))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll", tabindex="0")


def _align(column: str) -> str | None:
    """The class of a column's head: numbers stand at the right."""
    return "number" if column == "rows" else None
