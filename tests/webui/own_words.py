"""The board's own words on a page: not data, keys, recipes, logs, nor what somebody may choose."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# Marked as data or as another language by the pages themselves; the switch names the other language.
DATA = (
    "pre, code, textarea, input, .data, [lang]:not(html), .cm-editor, [role=listbox] [role=option], .bubble p, .pick,"
    " .queue .title, .side h2, .page-home td, .page-runs td, #language, .brand, style, script"
)
NAMES = {
    "forge", "yaml", "json", "csv", "excel", "jsonl", "enter", "shift", "esc", "ctrl", "api", "gpu", "cpu", "gb", "mb",
    "kb", "lora", "curl", "python", "usd", "dpo", "kto", "ppo", "grpo", "sft", "rm", "url", "v1", "openai",
    "linux", "torch",
}  # fmt: skip
TEXTS = """(data) => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (node.textContent.trim() && parent && !parent.closest(data) && parent.offsetParent !== null)
      found.push(node.textContent.trim());
  }
  for (const field of document.querySelectorAll("[aria-label], [title], [placeholder]"))
    if (field.offsetParent !== null && !field.closest("#language, .data, .bubble p"))
      for (const name of ["aria-label", "title", "placeholder"]) {
        const text = field.getAttribute(name);
        if (text && !/[\\/>]/.test(text)) found.push(text);  // not a path, an address or an expression as an example
      }
  return found;
}"""
UNFOLD = """() => {
  for (const fold of document.querySelectorAll("#page details")) fold.open = true;
  for (const fold of document.querySelectorAll("#page button.label-wrap:not(.open)")) fold.click();
}"""


def unfold(page: Any) -> None:
    """Open everything on a page that is folded."""
    page.evaluate(UNFOLD)
    page.wait_for_timeout(500)


def foreign(page: Any, language: str, names: Iterable[str] = ()) -> list[str]:
    """Words of another language than the page's among the board's own; `names` are those of the test's data."""
    texts = page.evaluate(TEXTS, DATA)
    if language == "en":
        return [text for text in texts if re.search("[\u4e00-\u9fff]", text)]
    known = NAMES | {word.lower() for name in names for word in re.findall("[A-Za-z]+", name)}
    return [text for text in texts if any(w.lower() not in known for w in re.findall("[A-Za-z]{2,}", text))]
