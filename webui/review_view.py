"""A review as HTML: the list of rows, the row as it stands or as a form, what was changed, what it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from llmforge.datagen.patches import DECIDED
from llmforge.datagen.pointer import value_at
from llmforge.datagen.review import Item
from llmforge.metrics.json_text import MISSING, canonical_json
from llmforge.webui.markup import Safe, tag
from llmforge.webui.review_queue import Place, Queue
from llmforge.webui.words import Words

LONGEST_COMPARED = 3000  # characters of a text whose changes are marked inside; longer ones are shown whole
SIGNS = {"pending": "○", "accepted": "✓", "edited": "✎", "rejected": "✕", "skipped": "↷"}
FACTS = ("slots", "compute", "variant", "messages")


def show_list(words: Words, queue: Queue, place: Place) -> Safe:
    """The rows around the current one, as buttons."""
    items, start, total = queue.window(place)
    if not items:
        return tag("p", words("review.none"), class_="calm")
    lines = [
        tag(
            "li",
            tag(
                "button",
                tag("span", SIGNS[item.state], class_=f"sign {item.state}", aria_hidden="true"),
                tag("span", queue.title(item.id), class_="title"),
                tag("span", words(f"review.state_{item.state}"), class_="unseen"),
                type="button",
                data_pick=item.id,
                aria_current="true" if item.id == place.row else None,
            ),
        )
        for item in items
    ]
    told = words("review.shown", first=start + 1, last=start + len(items), all=total)
    return tag("nav", tag("p", told, class_="calm"), tag("ol", *lines), class_="queue", aria_label=words("review.list"))


def show_progress(words: Words, queue: Queue) -> Safe:
    """How far the review is, and how good the rows are."""
    counts = queue.counts()
    done, total = sum(counts[state] for state in DECIDED), sum(counts.values())
    told = words("review.progress", done=done, all=total)
    chips = [
        tag("span", f"{SIGNS[state]} {words(f'review.state_{state}')} {n:,}", class_=f"chip {state}")
        for state, n in counts.items()
    ]
    rate = queue.errors()
    shares = rate and {"rate": f"{rate.rate:.1%}", "low": f"{rate.low:.1%}", "high": f"{rate.high:.1%}"}
    return tag(
        "div",
        tag("progress", value=done, max=max(total, 1), aria_label=told),
        tag("p", told, " ", *chips),
        tag("p", words("review.part_told", n=total, all=len(queue.review.rows)), class_="calm")
        if queue.is_part
        else None,
        tag("p", words("review.rate", **shares), class_="calm") if shares else None,
        class_="progress",
    )


def show_row(
    words: Words, queue: Queue, item: Item | None, editing: bool, given: Mapping[str, str], wrong: Sequence[str]
) -> Safe:
    """The row as it stands, or with `editing` as a form with what was typed (`given`) and what is wrong with it."""
    if item is None:
        return tag("p", words("review.nothing"), class_="calm")
    parts = _editor(queue, item, given) if editing else _fields(queue, item)
    reviewed = item.reviewed
    state = tag("span", f"{SIGNS[item.state]} {words(f'review.state_{item.state}')}", class_=f"chip {item.state}")
    by = words("review.by", author=reviewed.author) if reviewed.author else ""
    return tag(
        "article",
        tag("h2", words("review.row", id=item.id), " ", state, " ", tag("small", by, class_="calm")),
        tag("p", words("review.stale", why=reviewed.stale), class_="warn") if reviewed.stale else None,
        tag("ul", *(tag("li", line) for line in wrong), class_="bad", role="alert") if wrong else None,
        *parts,
        None if editing else _schema(words, queue, item),
        None if editing else _changes(words, item),
        data_row=item.id,
        class_="record",
    )


def _fields(queue: Queue, item: Item) -> list[Safe]:
    found = []
    for place in queue.review.fields:
        value = value_at(item.reviewed.row, place)
        if value is not MISSING:
            text = tag("p", value or "–", class_="data") if isinstance(value, str) else tag("pre", pretty(value))
            found.append(tag("section", tag("h3", name_of(place), class_="data"), text))
    return found


def _editor(queue: Queue, item: Item, given: Mapping[str, str]) -> list[Safe]:
    found = []
    for number, place in enumerate(queue.review.fields):
        value = value_at(item.reviewed.row, place)
        if value is MISSING:
            continue
        text = given.get(place, value if isinstance(value, str) else pretty(value))
        id = f"field-{number}"
        area = tag(
            "textarea",
            text,
            id=id,
            data_field=place,
            rows=min(max(text.count("\n") + 2, len(text) // 90 + 2, 2), 18),
            spellcheck="false" if not isinstance(value, str) else None,
            class_="json" if not isinstance(value, str) else None,
        )
        found.append(tag("section", tag("label", name_of(place), for_=id, class_="data"), area))
    return found


def _schema(words: Words, queue: Queue, item: Item) -> Safe | None:
    if queue.schema is None:
        return None
    wrong = queue.wrong(item)
    if not wrong:
        return tag("p", words("review.schema_good"), class_="good")
    return tag(
        "section",
        tag("h3", words("review.schema_bad"), class_="bad"),
        tag("ul", *(tag("li", w, class_="data") for w in wrong)),
    )


def _changes(words: Words, item: Item) -> Safe | None:
    """What reviewers changed, from how the row was made."""
    lines = []
    for name, made in item.made.items():
        now = item.reviewed.row.get(name)
        if canonical_json(made) != canonical_json(now):
            old, new = (value if isinstance(value, str) else pretty(value) for value in (made, now))
            lines.append(tag("section", tag("h4", name, class_="data"), tag("pre", *marked(old, new), class_="diff")))
    return tag("details", tag("summary", words("review.changes")), *lines, open=True) if lines else None


def marked(old: str, new: str) -> list[Safe | str]:
    """Both texts in one, with what went and what came."""
    if max(len(old), len(new)) > LONGEST_COMPARED:
        return [tag("del", old), "\n", tag("ins", new)]
    found: list[Safe | str] = []
    for what, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if what == "equal":
            found.append(old[a:b])
            continue
        found += [tag("del", old[a:b])] if b > a else []
        found += [tag("ins", new[c:d])] if d > c else []
    return found


def show_facts(words: Words, item: Item | None) -> Safe:
    """The facts a made row came from; nothing for a row of a file."""
    facts = {name: item.made[name] for name in FACTS if item.made.get(name)} if item else {}
    if not facts:
        return Safe("")
    parts = [tag("section", tag("h4", name, class_="data"), tag("pre", pretty(value))) for name, value in facts.items()]
    return tag("details", tag("summary", words("review.facts")), *parts)


def show_similar(words: Words, queue: Queue, row: str) -> Safe:
    """Rows that say nearly the same, as buttons."""
    found = queue.similar(row)
    if not found:
        return tag("p", words("review.similar_none"), class_="calm")
    lines = [
        tag(
            "li",
            tag("button", f"{share:.0%}  {queue.title(id)}", type="button", data_pick=id),
        )
        for id, share in found
    ]
    return tag("nav", tag("h3", words("review.similar")), tag("ol", *lines), class_="queue")


def name_of(place: str) -> str:
    """A JSON Pointer as people write it."""
    return place[1:].replace("/", ".").replace("~1", "/").replace("~0", "~")


def pretty(value: Any) -> str:
    """JSON to read."""
    return json.dumps(value, ensure_ascii=False, indent=2)
