"""The page Data in a browser."""

from __future__ import annotations

import json
from typing import Any

import pytest
from browsing import Board, choose, no_evil, serious, settled, shoot, sideways
from own_words import foreign

pytestmark = pytest.mark.web


def test_a_data_set_is_shown_as_the_model_reads_it_and_checked_row_by_row(board: Board, open_page: Any) -> None:
    page = open_page(f"{board.url}/data")
    page.wait_for_selector("[data-pick]")
    choose(page, "data-model", "models/tiny")
    page.get_by_role("button", name="questions").click()
    page.wait_for_selector(".row-card >> nth=4")
    card = page.locator(".row-card").first
    assert "Row 1 · " in card.inner_text()
    assert "tokens" in card.inner_text()
    assert "On floor 1." in card.locator(".bubble.learned").inner_text()
    card.locator("summary").click()
    assert "On floor 1." in card.locator("mark").first.inner_text()
    page.locator("#data-from input").fill("5")
    page.locator("#data-show").click()
    page.wait_for_selector("article:has-text('Row 6')")
    assert "<img src=x" in page.locator(".row-card").nth(1).inner_text()
    no_evil(page)
    page.locator("#data-check").click()
    page.wait_for_selector(".doctor")
    doctor = page.locator(".doctor").inner_text()
    assert "6 of 7 rows are usable." in doctor
    assert page.locator(".doctor svg.chart .cut").count() == 1
    bad = page.locator(".doctor tr:has(td.bad)")
    assert bad.count() == 1
    assert bad.locator("td").last.inner_text() == "7"
    page.locator("#data-copy").click()
    page.wait_for_selector("#data-view >> text=questions_usable is saved with 6 rows")
    page.wait_for_selector("[data-pick=questions_usable]")
    page.locator("#data-check").click()
    page.wait_for_selector(".doctor")
    settled(page)
    assert serious(page) == []
    shoot(page, "data-check-en")
    page.locator("#data-command button").first.click()
    page.wait_for_selector("#data-command:has-text('forge-cli data check dataset=questions')")


def test_a_sheet_is_uploaded_mapped_and_added_and_stays_as_it_was(board: Board, open_page: Any, tmp_path: Any) -> None:
    sheet = tmp_path / "帮助 desk.csv"
    sheet.write_text("frage,antwort\nHow do I log in?,With your badge.\n", encoding="utf-8")
    page = open_page(f"{board.url}/data")
    page.get_by_role("tab", name="Add data").click()
    page.set_input_files("#data-upload input[type=file]", str(sheet))
    page.wait_for_selector("#data-said >> text=2 columns")
    page.wait_for_selector("#data-part-prompt.wrong >> text=Choose the column.")  # nothing says which column is which
    choose(page, "data-part-prompt", "frage")
    choose(page, "data-part-response", "antwort")
    page.wait_for_selector("#data-preview .bubble.assistant")
    assert page.locator("#data-mapping .wrong").count() == 0
    settled(page)
    assert serious(page) == []
    shoot(page, "data-add-en")
    page.locator("#data-name").locator("input, textarea").fill("desk")
    page.locator("#data-add").click()
    page.wait_for_selector("#data-said >> text=desk is added")
    entry = json.loads((board.folder / "data/dataset_info.json").read_text())["desk"]
    assert entry["columns"] == {"prompt": "frage", "response": "antwort", "query": None}
    assert (board.folder / "data" / entry["file_name"]).read_bytes() == sheet.read_bytes()
    page.reload()
    page.wait_for_selector("[data-pick=desk]")


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "data/none.csv"])
def test_a_path_that_is_no_file_of_the_project_is_refused_at_the_page(board: Board, open_page: Any, path: str) -> None:
    page = open_page(f"{board.url}/data")
    page.get_by_role("tab", name="Add data").click()
    page.locator("#data-path").locator("input, textarea").fill(path)
    page.locator("#data-look").click()
    page.wait_for_selector("#data-said .trouble")
    assert "cannot be read" in page.locator(".trouble").inner_text()


def test_on_a_phone_nothing_scrolls_sideways(board: Board, open_page: Any) -> None:
    page = open_page(f"{board.url}/data", language="zh", theme="dark", width=390)
    page.locator("[data-pick=pairs]").click()
    page.wait_for_selector(".bubble")
    settled(page)
    assert sideways(page) == 0
    assert serious(page) == []
    assert foreign(page, "zh", ["questions", "pairs", "desk"]) == []
    shoot(page, "data-rows-zh-dark-390")
    page.locator("#data-check").click()
    page.wait_for_selector(".doctor")
    settled(page)
    assert sideways(page) == 0
    assert foreign(page, "zh", ["questions", "pairs", "desk"]) == []


def test_what_is_refused_is_told_in_chinese(board: Board, open_page: Any, tmp_path: Any) -> None:
    page = open_page(f"{board.url}/data", language="zh")
    page.get_by_role("tab", name="添加数据").click()
    page.locator("#data-look").click()
    page.wait_for_selector("#data-said .trouble >> text=请上传文件或填写路径。")
    page.locator("#data-path").locator("input, textarea").fill("../../etc/passwd")
    page.locator("#data-look").click()
    page.wait_for_selector("#data-said .trouble >> text=在项目文件夹")
    (sheet := tmp_path / "two.csv").write_text("frage,antwort\nWo?,Hier.\n", encoding="utf-8")
    page.set_input_files("#data-upload input[type=file]", str(sheet))
    page.wait_for_selector("#data-part-response.wrong >> text=请选择列。")
    settled(page)
    assert foreign(page, "zh", ["two csv"]) == []
