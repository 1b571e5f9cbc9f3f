"""What holds of every page: its language, its looks on a phone, axe, no request elsewhere, no error in the console."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browsing import Board, serious, settled, shoot, sideways, start_board
from own_words import foreign, unfold

FOLDER = Path(__file__).parents[2] / "webui/pages"
PAGES = {("" if path.stem == "home" else path.stem): path.stem for path in FOLDER.glob("[a-z]*.py")}
pytestmark = pytest.mark.web
# Notes every text that is on the page at any moment and that nobody should see: a label before its translation, or the
# name that gradio gives a component without one.
UNNAMED = """
window.unnamed = [];
const bare = /__i18n__|translation_metadata|^(Dropdown|Textbox|Number|Radio|Checkbox|HTML|Code)$/;
new MutationObserver((changes) => {
  for (const { addedNodes } of changes)
    for (const node of addedNodes) {
      const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
      for (let text = node.nodeType === 3 ? node : walker.nextNode(); text; text = walker.nextNode())
        if (bare.test(text.data.trim()) && !text.parentElement?.closest("script, style"))
          window.unnamed.push(text.data);
    }
}).observe(document, { childList: true, subtree: true });
"""


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("address", PAGES)
def test_a_page_in_both_themes_on_a_desk_and_on_a_phone(
    address: str, language: str, board: Board, open_page: Any
) -> None:
    page = open_page(f"{board.url}/{address}", language=language)
    page.add_init_script(UNNAMED)
    page.reload()
    page.wait_for_selector("h1")
    settled(page)
    assert page.evaluate("window.unnamed") == []
    assert page.title() == f"{page.inner_text('h1')} · Forge"
    for theme in ("light", "dark"):
        for width in (1440, 390):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(300)
            assert page.evaluate("document.body.classList.contains('dark')") == (theme == "dark")
            assert serious(page) == []
            assert sideways(page) == 0
            shoot(page, f"{PAGES[address]}-{language}-{theme}-{width}")
        page.locator("#dark").click()
    unfold(page)
    assert foreign(page, language) == []
    assert serious(page) == []


def test_the_language_switch_changes_this_browser_alone(board: Board, open_page: Any) -> None:
    mine, other = (open_page(f"{board.url}/data") for _ in range(2))
    mine.locator("#language").click()
    mine.wait_for_selector("h1:has-text('数据')")
    other.reload()
    other.wait_for_selector("h1:has-text('Data')")
    mine.reload()
    mine.wait_for_selector("h1:has-text('数据')")


def test_an_open_page_tells_when_the_board_is_gone_and_when_it_is_back(project: Path, open_page: Any) -> None:
    running = start_board(project)
    page = open_page(f"{running.url}/review", language="zh")
    settled(page)
    running.kill()
    page.wait_for_selector("#gone >> text=看板没有响应")
    running = start_board(project, port=running.port)
    page.wait_for_selector("#gone", state="detached")
    running.stop()
