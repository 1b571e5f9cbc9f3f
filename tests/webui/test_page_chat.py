"""The page Chat in a browser, against a server that says the last message back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import PATIENCE_S, Board, choose, no_evil, serious, settled, shoot
from own_words import foreign
from projects import EVIL

sys.path.append(str(Path(__file__).parents[1] / "serve"))
from echo_engine import EchoEngine
from live_server import Server

from llmforge.process import process_start

pytestmark = pytest.mark.web
LONG = PATIENCE_S * 4000
BOTH_CHOSEN = "[0, 1].every(i => document.querySelector(`#chat-model-${i} input`)?.value)"
GROWING = """(n) => {
  const answers = [...document.querySelectorAll(".side .assistant p:not(.bad)")];
  return answers.filter((p) => p.textContent.length > 5).length === n;
}"""


@pytest.fixture(scope="module")
def echo() -> Iterator[tuple[EchoEngine, str]]:
    engine = EchoEngine(constraints={"json_schema"})
    with Server(engine) as server:
        yield engine, f"{server.url}/v1"


def connected(open_page: Any, board: Board, url: str, columns: int = 1, **about: Any) -> Any:
    """The page with the echo server's two models to choose from."""
    page = open_page(f"{board.url}/chat", **about)
    settled(page)
    page.locator("#chat-other button").first.click()
    page.locator("#chat-url").locator("input, textarea").fill(url)
    page.locator("#chat-connect").click()
    page.wait_for_selector("#chat-trouble .good")
    page.locator(f"#chat-columns label:has-text('{columns}')").click()
    page.wait_for_function(
        "(n) => [...Array(n).keys()].every(i => document.querySelector(`#chat-model-${i} input`)?.value)", arg=columns
    )
    return page


def ask(page: Any, text: str) -> None:
    page.locator("#chat-prompt textarea").fill(text)
    page.keyboard.press("Enter")


def closed_by(engine: EchoEngine, number: int) -> bool:
    until = time.monotonic() + PATIENCE_S
    while engine.closed < number and time.monotonic() < until:
        time.sleep(0.05)
    return engine.closed >= number


def test_two_answers_grow_at_once_and_stop_ends_both(board: Board, echo: Any, open_page: Any) -> None:
    engine, url = echo
    page = connected(open_page, board, url, 2)
    closed = engine.closed
    ask(page, "drip " * 60)
    page.wait_for_function(GROWING, arg=2)
    page.wait_for_selector("#chat-send:disabled")  # one question at a time
    began = time.monotonic()
    page.keyboard.press("Escape")
    page.wait_for_selector(".side >> nth=1 >> text=stopped")
    print(f"stopped after {time.monotonic() - began:.2f} s")
    assert closed_by(engine, closed + 2)
    page.wait_for_selector("#chat-send:enabled")
    settled(page)
    assert serious(page) == []
    shoot(page, "chat-two-en")


def test_a_page_that_is_left_frees_the_server(board: Board, echo: Any, open_page: Any) -> None:
    engine, url = echo
    page = connected(open_page, board, url)
    closed = engine.closed
    ask(page, "drip " * 60)
    page.wait_for_function(GROWING, arg=1)
    page.close()
    assert closed_by(engine, closed + 1)


def test_answers_settings_tokens_and_copies(board: Board, echo: Any, open_page: Any) -> None:
    engine, url = echo
    page = connected(open_page, board, url)
    page.locator("#chat-settings button").first.click()
    page.locator("#chat-seed input").fill("7")
    page.locator("#chat-seed input").press("Tab")
    page.wait_for_timeout(500)  # until the page knows
    ask(page, EVIL)
    page.wait_for_selector(".side small:has-text('tokens in')")
    assert engine.asked[-1].sampling.seed == 7
    assert page.locator(".side .bubble.assistant p").inner_text() == EVIL
    no_evil(page)
    page.locator("#chat-retry").click()
    page.wait_for_function("document.querySelectorAll('.side .bubble').length === 2")
    page.wait_for_selector(".side small:has-text('tokens in')")
    page.locator("#chat-edit").click()
    page.wait_for_function(f"document.querySelector('#chat-prompt textarea').value === {json.dumps(EVIL)}")
    ask(page, "ab")
    page.wait_for_selector(".side small:has-text('2 tokens in')")
    page.locator("#chat-raw button").first.click()
    page.locator("#chat-raw-show").click()
    page.wait_for_selector("#chat-raw-text .token")
    assert page.locator(".token").all_inner_texts() == ["a", "b"]
    page.locator("#chat-copy button").first.click()
    page.wait_for_selector("#chat-copy >> text=OpenAI(base_url")
    settled(page)
    assert serious(page) == []
    shoot(page, "chat-settings-en")


def test_a_schema_binds_the_answer_and_what_a_server_cannot_do_is_told(board: Board, echo: Any, open_page: Any) -> None:
    engine, url = echo
    page = connected(open_page, board, url)
    page.locator("#chat-settings button").first.click()
    page.locator("#chat-schema .cm-content").click()
    page.keyboard.insert_text('{"type": ')
    ask(page, "bound")
    page.wait_for_selector("#chat-trouble .trouble >> text=not valid JSON")
    page.locator("#chat-schema .cm-content").click()
    page.keyboard.press("Control+End")
    page.keyboard.insert_text('"object"}')
    page.wait_for_timeout(500)
    ask(page, "bound")
    page.wait_for_selector(".side small:has-text('tokens in')")
    assert engine.asked[-1].constraint == {"type": "json_schema", "schema": {"type": "object"}}
    assert not page.is_visible("#chat-alpha")
    page.locator("#chat-decoder label:has-text('Contrastive')").click()
    page.wait_for_selector("#chat-alpha input[type=number]")
    ask(page, "ab")
    page.wait_for_selector(".side .bad >> text=decoder")  # this engine has no contrastive search


def test_a_reward_model_scores_every_answer(board: Board, echo: Any, open_page: Any) -> None:
    folder = board.folder / ".forge/servers/judge"
    folder.mkdir(parents=True)
    about = {"target": "runs/judge", "port": int(echo[1].split(":")[2].split("/")[0]), "scores": True,
             "pid": os.getpid(), "process_start": process_start(os.getpid()), "started_at": time.time()}  # fmt: skip
    (folder / "server.json").write_text(json.dumps(about))  # as if the board had loaded one: this process serves it
    try:
        page = connected(open_page, board, echo[1])
        page.wait_for_selector("#chat-reward input")
        choose(page, "chat-reward", "runs/judge")
        page.locator("h1").click()
        ask(page, "five!")
        page.wait_for_selector(".side small:has-text('reward 5.000')")
    finally:
        shutil.rmtree(folder)


def test_a_blind_vote_is_kept_and_only_then_are_names_shown(board: Board, echo: Any, open_page: Any) -> None:
    page = connected(open_page, board, echo[1], 2)
    page.locator("#chat-blind input").check()
    ask(page, "which is better?")
    page.wait_for_selector("#chat-vote-a")
    names = page.locator(".side h2").all_inner_texts()
    assert [name.lower() for name in names] == ["answer a", "answer b"]
    page.locator("#chat-vote-tie").click()
    page.wait_for_selector("#chat-trouble >> text=work/chat_votes.jsonl")
    assert any("echo" in name for name in page.locator(".side h2").all_inner_texts())
    line = json.loads((board.folder / "work/chat_votes.jsonl").read_text().splitlines()[-1])
    assert (line["vote"], line["blind"]) == ("tie", True)
    assert sorted(answer["model"] for answer in line["answers"]) == ["echo", "org/tuned"]


def test_a_refusal_a_bad_schema_and_no_model_are_told_at_the_page(board: Board, echo: Any, open_page: Any) -> None:
    page = open_page(f"{board.url}/chat", language="zh", theme="dark", width=390)
    settled(page)
    ask(page, "你好")
    page.wait_for_selector("#chat-trouble .trouble")
    shoot(page, "chat-none-zh-dark-390")
    assert serious(page) == []
    page = connected(open_page, board, echo[1], language="zh")
    ask(page, "huge")
    page.wait_for_selector(".side .bad >> text=900")
    settled(page)
    assert foreign(page, "zh", ["echo org tuned"]) == []


@pytest.fixture(scope="module")
def tuned(board: Board, tiny_model_dir: Path) -> str:
    """A finished run of the tiny model in the board's project."""
    shutil.copytree(tiny_model_dir, board.folder / "models/small")
    words = ["train", "model_name_or_path=models/small", "dataset=questions", "template=chatml", "max_steps=1",
             "output_dir=runs/tuned", "device=cpu"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "llmforge.cli", *words], cwd=board.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return "runs/tuned"


def test_one_click_on_a_finished_run_loads_it_beside_its_base(board: Board, tuned: str, open_page: Any) -> None:
    page = open_page(f"{board.url}/runs?run={tuned}")
    page.locator("#run-actions a:has-text('Chat')").click()
    page.wait_for_selector("#chat-status .calm:has-text('loading')")
    page.wait_for_selector("#chat-status .good:has-text('tuned is ready')", timeout=LONG)
    page.wait_for_function(BOTH_CHOSEN, timeout=LONG)
    page.locator("#chat-settings button").first.click()
    page.locator("#chat-max-tokens input[type=number]").fill("8")
    page.locator("h1").click()
    ask(page, "Where is office 1?")
    page.wait_for_selector(".side >> nth=1 >> .assistant small:has-text('tokens in')", timeout=LONG)
    page.wait_for_selector(".side >> nth=0 >> .assistant small:has-text('tokens in')", timeout=LONG)
    assert "base" in page.locator(".side h2").nth(1).inner_text()
    page.locator("#chat-status button").first.click()
    page.wait_for_selector("#chat-status >> text=Nothing is loaded")
