"""What is wrong with a recipe that makes data: each problem at its key, in the reader's language, with a fix."""

from __future__ import annotations

import re
from typing import Any

from llmforge.config.values import check, convert
from llmforge.config.yaml_text import shown
from llmforge.datagen.recipe import dataset_keys
from llmforge.errors import RecipeError, nearest
from llmforge.webui.form import expectation
from llmforge.webui.making import to_text, values_of
from llmforge.webui.markup import Safe, tag
from llmforge.webui.refusal import Refusal
from llmforge.webui.sentences import in_words
from llmforge.webui.words import Words
from llmforge.webui.wrong import Wrong

LINE = re.compile(r"^(?:\S.*? )??(?:line \d+: )?([a-z_][\w.]*): (.*)")
NO_KEY = "no such key"
MISSING = "missing"
# For the gr.HTML that shows them: a fix brings the number of its problem.
FIX = (
    "element.addEventListener('click', (event) => { const button = event.target.closest('[data-fix]');"
    " if (button) trigger('select', { number: Number(button.dataset.fix) }); });"
)


def problems_of(error: RecipeError, text: str) -> list[Wrong[str]]:
    """The problems that an error tells, one a line; a refusal of the board is about its field.

    Args:
        text: the recipe that it is about.
    """
    if isinstance(error, Refusal):
        return [Wrong(error.field, str(error))]
    first, *rest = str(error).splitlines()
    return [_wrong(line.strip(), text) for line in rest or [first]]


def told(words: Words, wrong: Wrong[str], text: str) -> str:
    """A problem in the reader's language where the board knows what the key takes, else in the checker's words."""
    if NO_KEY in wrong.message:
        return words("train.no_such_key")
    if wrong.message.startswith(MISSING):
        return words("make.missing")
    key, values = dataset_keys().get(wrong.key), _values(text)
    if key is None or wrong.key not in values:
        return in_words(words, wrong.message)
    value = values[wrong.key]
    try:
        fine = check(convert(value, key.type), key.rule, key.type, key.choices, value) is None
    except ValueError:
        fine = False
    return (
        in_words(words, wrong.message)
        if fine
        else words("train.wrong", got=shown(value), expected=expectation(words, key))
    )


def show_problems(words: Words, found: list[Wrong[str]], text: str) -> Safe:
    """All problems, each with a button that fixes it where there is a fix."""
    items = []
    for number, wrong in enumerate(found):
        said = told(words, wrong, text)
        button = None
        if wrong.fixed is not None:
            label = words(f"train.fix_{wrong.fix}", to=wrong.to, key=wrong.key)
            button = tag("button", label, type="button", class_="button", data_fix=number)
        message = tag("span", said, lang="en" if said == wrong.message else None)
        items.append(tag("li", tag("code", wrong.key) if wrong.key else None, " ", message, " ", button))
    top = tag("p", words("make.failed_check"), class_="bad verdict", role="alert")
    return tag("section", top, tag("ul", *items, class_="problems"), class_="check")


def _wrong(line: str, text: str) -> Wrong[str]:
    match = LINE.match(line)
    key, message = (match[1], match[2]) if match else ("", line)
    values = _values(text)
    if key not in values:
        return Wrong(key if key in dataset_keys() else "", message if key in dataset_keys() else line)
    if NO_KEY in message:
        near = re.search(r"'(.+)'", nearest(key, dataset_keys()))
        if near is None:
            return _removed(key, message, values)
        renamed = {near[1] if name == key else name: value for name, value in values.items()}
        return Wrong(key, message, to_text(renamed), "rename", near[1])
    if meant := re.search(r"Did you mean '([^']+)'\?", message):
        return Wrong(key, message, to_text({**values, key: meant[1]}), "value", meant[1])
    known = dataset_keys().get(key)
    is_typed = known is not None and re.match(r"got .* expected", message)
    return _removed(key, message, values) if is_typed and key != "name" else Wrong(key, message)


def _removed(key: str, message: str, values: dict[str, Any]) -> Wrong[str]:
    rest = {name: value for name, value in values.items() if name != key}
    return Wrong(key, message, to_text(rest), "remove", key)


def _values(text: str) -> dict[str, Any]:
    try:
        return values_of(text)
    except RecipeError:
        return {}  # the text as a whole is wrong, and its problem says where
