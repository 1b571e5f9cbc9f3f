"""What holds of every page: its language, its looks on a phone, axe, no request elsewhere, no error in the console."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from browsing import Board, serious, settled, shoot, sideways

FOLDER = Path(__file__).parents[2] / "webui/pages"
PAGES = {("" if path.stem == "home" else path.stem): path.stem for path in FOLDER.glob("[a-z]*.py")}
pytestmark = pytest.mark.web
# Not the board's own words: data, keys, recipes, logs, what somebody may choose, and the other language's name.
DATA = "pre, code, textarea, input, td, .cm-editor, [role=listbox], .bubble p, .queue .title, #language, .brand, style"
NAMES = {
    "forge", "yaml", "json", "csv", "excel", "jsonl", "enter", "shift", "esc", "ctrl", "api", "gpu", "cpu", "gb", "mb",
    "kb", "lora", "curl", "python", "usd", "dpo", "kto", "ppo", "grpo", "sft", "rm", "url", "v1", "s", "min", "h",
    "linux", "torch", "data", "runs",
}  # fmt: skip
TEXTS = """(data) => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (node.textContent.trim() && parent && !parent.closest(data) && parent.offsetParent !== null)
      found.push(node.textContent.trim());
  }
  for (const field of document.querySelectorAll("[placeholder], [aria-label], [title]"))
    if (field.offsetParent !== null && !field.closest("#language"))
      for (const name of ["aria-label", "title"]) if (field.getAttribute(name)) found.push(field.getAttribute(name));
  return found;
}"""


@pytest.mark.parametrize("address", PAGES)
def test_english_and_light_on_a_desk(address: str, board: Board, open_page: Any) -> None:
    page = open_page(f"{board.url}/{address}")
    settled(page)
    foreign = [text for text in page.evaluate(TEXTS, DATA) if re.search("[\u4e00-\u9fff]", text)]
    assert foreign == []
    assert serious(page) == []
    shoot(page, f"{PAGES[address]}-en-light")


@pytest.mark.parametrize("address", PAGES)
def test_chinese_and_dark_on_a_phone(address: str, board: Board, open_page: Any) -> None:
    page = open_page(f"{board.url}/{address}", language="zh", theme="dark", width=390)
    settled(page)
    texts = page.evaluate(TEXTS, DATA)
    foreign = [w for text in texts for w in re.findall("[A-Za-z]{2,}[0-9]*", text) if w.lower() not in NAMES]
    assert foreign == []
    assert sideways(page) == 0
    assert serious(page) == []
    shoot(page, f"{PAGES[address]}-zh-dark-390")


@pytest.mark.parametrize("address", PAGES)
def test_chinese_light_and_english_dark(address: str, board: Board, open_page: Any) -> None:
    page = open_page(f"{board.url}/{address}", language="zh")
    settled(page)
    assert serious(page) == []
    shoot(page, f"{PAGES[address]}-zh-light")
    page = open_page(f"{board.url}/{address}", theme="dark", width=390)
    settled(page)
    assert serious(page) == []
    assert sideways(page) == 0
    shoot(page, f"{PAGES[address]}-en-dark-390")


def test_the_language_switch_changes_this_browser_alone(board: Board, open_page: Any) -> None:
    mine, other = (open_page(f"{board.url}/data") for _ in range(2))
    mine.locator("#language").click()
    mine.wait_for_selector("h1:has-text('数据')")
    other.reload()
    other.wait_for_selector("h1:has-text('Data')")
    mine.reload()
    mine.wait_for_selector("h1:has-text('数据')")
