"""How quick the board is: medians of several rounds in a real browser, beside what is promised.

    python benchmarks/board_times.py [ROUNDS]

Needs what `make test-web` needs, and an idle machine. The project it makes holds 10,000 rows to review, 20 runs of
5,000 points, one of 100,000, and a data set of 20,000 rows; the chat's server answers letter by letter.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS / "webui"), str(TESTS / "serve")]
# ruff: noqa: E402
from browsing import QUIET, Board, choose, chromium, start_board
from echo_engine import EchoEngine
from live_server import Server
from projects import write_lines

from llmforge.runs import RunDir

ROUNDS = 5
# Page -> what shows that its first values have arrived, not only its frame.
READY = {
    "": "#home-lamp table", "data": "[data-pick]", "make": "#make-recipe input", "review": "#review-open",
    "train": "#field-model_name_or_path input", "runs": "[data-tick]", "chat": "#chat-status p", "eval": "#eval-said p",
}  # fmt: skip
PAGE_S, CLICK_S, STOP_S, REVIEW_S, PLOT_S, RELOAD_S, RESTART_S = 2.5, 1.0, 1.0, 2.0, 1.0, 3.0, 5.0
NO_BAR = math.inf


def fill(folder: Path) -> None:
    """The project."""
    asked = [{"id": f"r{i}", "instruction": f"report {i}", "output": {"floor": i}} for i in range(10_000)]
    write_lines(folder / "data/many.jsonl", asked)
    write_lines(folder / "data/large.jsonl", [{"instruction": f"ask {i}", "output": f"say {i}"} for i in range(20_000)])
    registry = {"large": {"file_name": "large.jsonl"}}
    (folder / "data/dataset_info.json").write_text(json.dumps(registry), encoding="utf-8")
    for name, points in (*((f"many-{i:02}", 5_000) for i in range(20)), ("long", 100_000)):
        run = RunDir(folder / "runs" / name)
        run.path.mkdir(parents=True)
        losses = (0.5 + 2 * math.exp(-4 * step / points) + (step % 97) / 970 for step in range(points))
        lines = [json.dumps({"current_steps": step, "loss": loss}) + "\n" for step, loss in enumerate(losses)]
        run.log_path.write_text("".join(lines), encoding="utf-8")
        run.write_state(state="finished", step=points, total_steps=points, start_time=time.time())


class Bench:
    """A browser on a board; `measured` has the seconds of all rounds by what was done."""

    def __init__(self, browser: Any, board: Board, chat_url: str):
        self.browser, self.board, self.chat_url = browser, board, chat_url
        self.measured: dict[tuple[str, float], list[float]] = {}

    def time(self, what: str, bar_s: float, act: Callable[[], object]) -> None:
        began = time.perf_counter()
        act()
        self.measured.setdefault((what, bar_s), []).append(time.perf_counter() - began)

    def page(self, address: str, ready: str = "") -> Any:
        """A page in a browser of its own, which has nothing in its cache."""
        page = self.browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        page.goto(f"{self.board.url}/{address}")
        page.wait_for_selector(ready or READY[address.partition("?")[0]])
        return page

    def round(self) -> None:
        for address in READY:
            self.time(f"page /{address}", PAGE_S, lambda address=address: self.page(address))
        self.review()
        self.train()
        self.runs()
        self.data()
        self.chat()
        self.close()
        self.restart()
        self.close()

    def close(self) -> None:
        for context in self.browser.contexts:
            context.close()

    def review(self) -> None:
        page = self.page("review?source=data/many.jsonl")
        choose(page, "review-source", "data/many.jsonl")
        page.locator("#review-author").locator("input, textarea").fill("ann")
        page.locator("h1").click()

        def opened() -> None:
            page.locator("#review-open").click()
            page.wait_for_selector(".record")

        self.time("10,000 rows open for review", REVIEW_S, opened)
        for _ in range(10):
            here = page.locator(".record").get_attribute("data-row")

            def decided(here: str | None = here) -> None:
                page.keyboard.press("a")
                page.wait_for_selector(f".record:not([data-row='{here}'])")

            self.time("a decision by key, next row shown", CLICK_S, decided)

    def train(self) -> None:
        page = self.page("train?data=large")
        choose(page, "field-model_name_or_path", "models/none")
        for button, then in (("#next-data", "#next-method"), ("#next-method", "#next-check")):
            page.click(button)
            page.wait_for_selector(f"{then}:visible")

        def told() -> None:
            page.click("#next-check")
            page.wait_for_selector("#train-report p")

        self.time("Check says what it does", CLICK_S, told)
        page.wait_for_selector("#train-report .verdict")

    def runs(self) -> None:
        page = self.page("runs?run=runs/many-00", "polyline")

        def reloaded() -> None:
            page.reload()
            page.wait_for_selector(".run-head .badge")

        def drawn() -> None:
            page.click("[data-run='runs/long']")
            page.wait_for_selector("#runs-curves .legend:has-text('runs/long')")

        self.time("reload, the run back", RELOAD_S, reloaded)
        page.wait_for_selector("polyline")
        self.time("a run of 100,000 points drawn", PLOT_S, drawn)
        for number in range(20):

            def ticked(name: str = f"many-{number:02}") -> None:
                page.click(f"[data-tick='runs/{name}']")
                page.wait_for_selector(f"#runs-curves .legend:has-text('{name}')")

            self.time("one more of 20 runs drawn", CLICK_S, ticked)

    def data(self) -> None:
        page = self.page("data")
        page.locator("[data-pick=large]").click()
        page.wait_for_selector(".row-card")

        def told() -> None:
            page.locator("#data-check").click()
            page.wait_for_selector("#data-view [role=status]")

        self.time("Check all rows says what it does", CLICK_S, told)
        page.wait_for_selector(".doctor")

    def chat(self) -> None:
        page = self.page("chat")
        page.locator("#chat-other button").first.click()
        page.locator("#chat-url").locator("input, textarea").fill(self.chat_url)
        page.locator("#chat-connect").click()
        page.wait_for_selector("#chat-trouble .good")
        page.locator("#chat-columns label:has-text('2')").click()
        page.wait_for_function("document.querySelector('#chat-model-1 input')?.value")
        page.locator("#chat-prompt textarea").fill("drip " * 60)

        def sent() -> None:
            page.keyboard.press("Enter")
            page.wait_for_selector(".side >> nth=1 >> small")

        def stopped() -> None:
            page.keyboard.press("Escape")
            page.wait_for_selector(".side >> nth=1 >> text=stopped")

        page.locator("#chat-prompt textarea").focus()
        self.time("a question says that it waits", CLICK_S, sent)
        page.wait_for_timeout(1000)
        self.time("Stop ends two answers", STOP_S, stopped)

    def restart(self) -> None:
        """The board dies as in a power cut and comes back."""
        self.board.kill()

        def again() -> None:
            self.board.process = start_board(self.board.folder, port=self.board.port).process

        self.time("a killed board answers again", NO_BAR, again)
        self.time("then the run is shown", RESTART_S, lambda: self.page("runs?run=runs/long", ".run-head .badge"))

    def table(self) -> str:
        lines = ["| what | median s | slowest s | promised s |", "|---|---|---|---|"]
        for (what, bar), took in self.measured.items():
            promised = "-" if bar == NO_BAR else f"{bar:g}"
            lines.append(f"| {what} | {statistics.median(took):.2f} | {max(took):.2f} | {promised} |")
        return "\n".join(lines)


def main(rounds: int) -> int:
    """Print the table; 1 when a median is over its bar."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright, Server(EchoEngine()) as server:
        fill(Path(place))
        board = start_board(Path(place))
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(QUIET))
        bench = Bench(browser, board, f"{server.url}/v1")
        try:
            bench.page("")  # the first page that a board ever sends reads gradio's files
            for _ in range(rounds):
                bench.round()
        finally:
            browser.close()
            board.stop()
        print(bench.table())
        return int(any(statistics.median(took) > bar for (_, bar), took in bench.measured.items()))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS))
