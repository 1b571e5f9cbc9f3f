"""The tour: every page with something on it, in Chinese and English; the pictures of docs/board.md are made here.

`FORGE_WEB_TOUR=docs/board make test-web` writes them.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import PATIENCE_S, Board, choose, serious, settled, start_board
from own_words import foreign
from projects import fill_tour, teacher_says

sys.path.append(str(Path(__file__).parents[1] / "serve"))
from echo_engine import EchoEngine
from live_server import Server

from llmforge.datagen.recipe import load_dataset_recipe
from llmforge.datagen.review import Review
from llmforge.runs import RunDir

pytestmark = pytest.mark.web
PICTURES = os.environ.get("FORGE_WEB_TOUR")
COLOURS = 256  # a picture of few is small
WIDE, TALLEST = 1180, 1000
LONG = PATIENCE_S * 1000
SHIPPED = Path(__file__).parents[2] / "data"
# What is data in this project: names of models, runs, data sets, labels and recipe keys.
NAMES = ("echo", "org tuned", "runs reports rank too fast two epochs untuned", "support", "small chat", "models",
         "work report classify en zh train test", "exact match", "dataset auto")  # fmt: skip
ASKED = {
    "en": "Sort this report, answer with JSON: a smell of gas in the cellar of 12 Linden Square.",
    "zh": "判断这份报告属于哪一类，用 JSON 回答：草场巷 47 号地下室有燃气味。",
}
SAID = {
    "en": ("It could be a leak. Please call the gas company and leave the building at once.", '{"label": "gas"}'),
    "zh": ("可能是泄漏。请联系燃气公司，并立刻离开大楼。", '{"label": "泄漏"}'),
}


class Answers(EchoEngine):
    """A teacher; and an untuned model that chats beside a tuned one that answers as it learned."""

    def pieces(self, request: Any, text: str) -> Iterator[Any]:
        if "question" in text:
            return super().pieces(request, teacher_says(text))
        return super().pieces(request, SAID["zh" if "报告" in text else "en"][request.model != "echo"])


@pytest.fixture(scope="module")
def answers() -> Iterator[str]:
    with Server(Answers(constraints={"json_schema"})) as server:
        yield f"{server.url}/v1"


@pytest.fixture(scope="module", params=["en", "zh"])
def toured(request: pytest.FixtureRequest, tiny_model_dir: Path, answers: str) -> Iterator[tuple[str, Board]]:
    """(language, the board over the project of the tour, in a folder whose name can be shown)."""
    language = request.param
    with tempfile.TemporaryDirectory(prefix="my-project-", ignore_cleanup_errors=True) as place:
        folder = fill_tour(Path(place), language, tiny_model_dir, SHIPPED, answers)
        board = _at_work(folder)
        yield language, board
        board.stop()


def _at_work(folder: Path) -> Board:
    """A board over the project, some of whose rows are made and reviewed."""
    made = [sys.executable, "-m", "llmforge.cli", "data", "generate", "recipes/support.yaml", "--preview", "16"]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    _review(folder / "recipes/support.yaml", folder / "work/support")
    return start_board(folder)


def _review(path: Path, work: Path) -> None:
    """Decide about the first rows: one is rejected, one edited."""
    review = Review.open(load_dataset_recipe([str(path), f"store.dir={work}"], "review"))
    for number, id in enumerate(list(review.rows)[:12]):
        state = "rejected" if number == 4 else "accepted"
        new = {"/output": f"{review.rows[id]['output']} :-)"} if number == 7 else {}
        review.decide(id, "edited" if new else state, "ann", new)


@pytest.fixture
def show(toured: tuple[str, Board], open_page: Any) -> Callable[[str], Any]:
    """show(address) -> the page in the tour's language; the run at work gives a sign of life."""
    language, board = toured

    def opened(address: str) -> Any:
        RunDir(board.folder / "runs/reports-two-epochs").heartbeat()
        return open_page(f"{board.url}/{address}", language=language, width=WIDE, height=TALLEST)

    return opened


def stop_at(page: Any, language: str, name: str) -> None:
    """A stop of the tour: its words are of one language, axe finds nothing, and its picture is taken."""
    settled(page)
    assert foreign(page, language, NAMES) == []
    assert serious(page) == []
    if PICTURES:
        from PIL import Image

        tall = min(
            page.evaluate("document.querySelector('#page').getBoundingClientRect().bottom + scrollY") + 24, TALLEST
        )
        data = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WIDE, "height": tall})
        folder = Path(PICTURES)
        folder.mkdir(parents=True, exist_ok=True)
        few = Image.open(io.BytesIO(data)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        few.save(folder / f"{name}_{language}.png", optimize=True)


def test_home(toured: Any, show: Any) -> None:
    page = show("")
    page.wait_for_selector("#home-jobs a")
    page.wait_for_selector("#home-lamp table")
    stop_at(page, toured[0], "home")


def test_data(toured: Any, show: Any) -> None:
    language, _ = toured
    page = show("data")
    page.wait_for_selector("[data-pick]")
    choose(page, "data-model", "models/small-chat")
    page.locator(f"[data-pick=report_classify_{language}_test]").click()
    page.wait_for_selector(".row-card mark", state="attached")
    page.locator("h1").click()
    stop_at(page, language, "data")
    page.locator("#data-check").click()
    page.wait_for_selector(".doctor", timeout=LONG)
    page.locator("#data-view").scroll_into_view_if_needed()
    stop_at(page, language, "data_check")


def test_make(toured: Any, show: Any) -> None:
    page = show("make?recipe=recipes/support.yaml")
    page.wait_for_selector("#make-status .tiles", timeout=LONG)
    page.locator("#make-check").click()
    page.wait_for_selector("#make-result .good", timeout=LONG)
    stop_at(page, toured[0], "make")


def test_review(toured: Any, show: Any) -> None:
    page = show("review?source=recipes/support.yaml")
    page.wait_for_function("document.querySelector('#review-source input')?.value")
    page.locator("#review-author").locator("input, textarea").fill("ann")
    page.locator("#review-open").click()
    page.wait_for_selector(".record", timeout=LONG)
    page.locator("h1").click()
    stop_at(page, toured[0], "review")


def test_train(toured: Any, show: Any) -> None:
    language, _ = toured
    page = show(f"train?data=report_classify_{language}_train")
    page.click("#field-model_name_or_path input")
    page.click("[role=option]:has-text('models/small-chat')")
    page.wait_for_selector("#train-model-told p")
    page.click("#next-data")
    page.wait_for_selector("#field-dataset input")
    page.click("#next-method")
    page.wait_for_selector("#train-preset input")
    stop_at(page, language, "train")
    page.click("#next-check")
    page.wait_for_selector(".check .good", timeout=LONG)
    stop_at(page, language, "train_check")


def test_runs(toured: Any, show: Any) -> None:
    page = show("runs?run=runs/reports-rank-8")
    page.wait_for_selector(".run-head")
    page.click("[data-tick='runs/reports-rank-16']")
    page.wait_for_selector("#runs-curves .legend:has-text('reports-rank-16')")
    stop_at(page, toured[0], "runs")


def test_chat(toured: Any, show: Any, answers: str) -> None:
    language, _ = toured
    page = show("chat")
    settled(page)
    page.locator("#chat-other button").first.click()
    page.locator("#chat-url").locator("input, textarea").fill(answers)
    page.locator("#chat-connect").click()
    page.wait_for_selector("#chat-trouble .good")
    page.locator("#chat-columns label:has-text('2')").click()
    page.wait_for_function("document.querySelector('#chat-model-1 input')?.value")
    page.locator("#chat-prompt textarea").fill(ASKED[language])
    page.keyboard.press("Enter")
    page.wait_for_selector("#chat-votes button", timeout=LONG)
    page.locator("#chat-other button").first.click()
    stop_at(page, language, "chat")


def test_eval(toured: Any, show: Any) -> None:
    sides = [f"work/predictions/{name}/generated_predictions.jsonl" for name in ("untuned", "reports-rank-8")]
    page = show(f"eval?before={sides[0]}&after={sides[1]}")
    page.wait_for_function("document.querySelector('#eval-after input')?.value.includes('rank')")
    page.locator("#eval-compare").click()
    page.wait_for_selector(".scores", timeout=LONG)
    stop_at(page, toured[0], "eval")
