"""Small pieces of HTML, with everything that is not ours escaped."""

from __future__ import annotations

import html
from typing import Any

VOID = ("br", "hr", "img", "input")
# For a gr.HTML with buttons that choose something: its `select` event brings the button's data-pick.
PICK = (
    "element.addEventListener('click', (event) => { const button = event.target.closest('[data-pick]');"
    " if (button) trigger('select', { value: button.dataset.pick }); });"
)


class Safe(str):
    """HTML that may stand in a page as it is."""


def tag(name: str, *children: Any, **attributes: Any) -> Safe:
    """An element; children that are not `Safe` are escaped, None is left out.

    `_` at the end of an attribute goes (class_, for_), elsewhere it becomes "-"; True is an attribute without a value.
    """
    shown = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        shown += f" {key}" if value is True else f' {key}="{escape(value)}"'
    if name in VOID:
        return Safe(f"<{name}{shown}>")
    return Safe(f"<{name}{shown}>{join(*children)}</{name}>")


def escape(value: Any) -> Safe:
    """Text as HTML shows it."""
    return value if isinstance(value, Safe) else Safe(html.escape(str(value)))


def join(*parts: Any) -> Safe:
    """Parts one after the other, escaped where needed; lists are opened, None is left out."""
    out = []
    for part in parts:
        if part is None:
            continue
        out.append(join(*part) if isinstance(part, (list, tuple)) else escape(part))
    return Safe("".join(out))
