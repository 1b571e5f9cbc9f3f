"""What the Check step shows: problems with their fixes, what a run will take, and what the checker said."""

from __future__ import annotations

from llmforge.webui.amounts import duration, size
from llmforge.webui.checking import Found
from llmforge.webui.devices import Device
from llmforge.webui.estimate import Guess
from llmforge.webui.form import Given
from llmforge.webui.form import wrong as form_wrong
from llmforge.webui.markup import Safe, tag
from llmforge.webui.sentences import in_words, show_sentence
from llmforge.webui.words import Words
from llmforge.webui.wrong import Wrong

FIX = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-fix]');
  if (button) trigger('select', { number: Number(button.dataset.fix) });
});
"""


def show_check(
    words: Words, found: Found, guess: Guess, device: Device | None, preview: Safe | None, given: Given
) -> Safe:
    """The whole report; `preview` is the first row as the model will see it."""
    if found.problems:
        items = [_problem(words, number, wrong, given) for number, wrong in enumerate(found.problems)]
        top = tag("p", words("train.problems", n=len(found.problems)), class_="bad verdict", role="alert")
        return tag("section", top, tag("ul", *items, class_="problems"), class_="check")
    facts = {
        "rows": f"{guess.rows:,}" if guess.rows is not None else "-",
        "steps": f"{guess.steps:,}" if guess.steps is not None else "-",
        "tokens": f"{guess.tokens:,}" if guess.tokens else "-",
        "memory": _memory(words, guess, device),
        "time": words("train.about", amount=duration(words, guess.seconds))
        if guess.seconds
        else words("train.no_time"),
    }
    numbers = [tag("div", tag("dt", words(f"train.fact.{key}")), tag("dd", value)) for key, value in facts.items()]
    tight = device is not None and guess.memory is not None and guess.memory > device.free
    return tag(
        "section",
        tag("p", words("train.fine"), class_="good verdict", role="status"),
        tag("dl", *numbers, class_="facts"),
        tag("p", words("train.tight"), class_="warn") if tight else None,
        tag("ul", *(tag("li", show_sentence(words, remark)) for remark in found.remarks), class_="remarks")
        if found.remarks
        else None,
        tag("details", tag("summary", words("train.first_row")), preview) if preview else None,
        tag(
            "details",
            tag("summary", words("train.told")),
            tag("ul", *(tag("li", show_sentence(words, line)) for line in found.fine), class_="told"),
        ),
        class_="check",
    )


def _memory(words: Words, guess: Guess, device: Device | None) -> str:
    if guess.memory is None:
        return words("train.no_memory")
    told = words("train.about", amount=size(guess.memory))
    return told if device is None else words("train.of_free", amount=told, free=size(device.free))


def _problem(words: Words, number: int, wrong: Wrong[Given], given: Given) -> Safe:
    """A problem with its key, and the button that puts it right."""
    button = None
    if wrong.fixed is not None:
        text = words(f"train.fix_{wrong.fix}", to=wrong.to, key=wrong.key)
        button = tag("button", text, type="button", class_="button", data_fix=number)
    message = _by_form(words, wrong, given) or show_sentence(words, wrong.message)
    return tag("li", tag("code", wrong.key) if wrong.key else None, " ", message, " ", button)


def told_of(words: Words, wrong: Wrong[Given], given: Given) -> str:
    """A problem in the reader's language, as it stands at its field."""
    return _by_form(words, wrong, given) or in_words(words, wrong.message)


def _by_form(words: Words, wrong: Wrong[Given], given: Given) -> str | None:
    """What the form itself knows to be wrong with a key."""
    if wrong.fix == "rename":
        return words("train.no_such_key")
    return form_wrong(words, wrong.key, given.get(wrong.key))


def show_facts(words: Words, names: list[str], counts: dict[str, int | None]) -> Safe:
    """What is known of the chosen data sets."""
    if not names:
        link = tag("a", words("train.to_data"), href="data")
        return tag("p", words("train.no_data"), " ", link, class_="calm")
    rows = [
        tag(
            "li",
            tag("strong", name),
            ": ",
            words("train.rows", n=count) if count is not None else words("train.no_file"),
        )
        for name, count in counts.items()
    ]
    return tag("ul", *rows, class_="chosen")
