"""Models that the board loads: a child of `forge-cli api` that answers, and is unloaded when nobody asks it."""

import asyncio
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("llmforge.webui")
sys.path.append(str(Path(__file__).parents[1] / "serve"))
from echo_engine import EchoEngine
from live_server import Server as LiveServer

from llmforge.webui import chat_client
from llmforge.webui.board import Board
from llmforge.webui.chat_client import Asked, Reply, Target
from llmforge.webui.chat_models import choices, show_status, target_of
from llmforge.webui.servers import Server, servers, start_server, stop_server
from llmforge.webui.unloading import Idleness, work_of
from llmforge.webui.words import Words

PATIENCE_S = 900
EN = Words("en")


@pytest.fixture
def board(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Board]:
    shutil.copytree(tiny_model_dir, tmp_path / "models/tiny")
    board = Board(tmp_path)
    yield board
    for server in servers(board):
        stop_server(server)


def ready(server: Server) -> list[str]:
    until = time.monotonic() + PATIENCE_S
    while not (names := server.models()) and time.monotonic() < until:
        assert server.is_alive, server.last_words()
        time.sleep(0.1)
    return names


def gone(server: Server) -> bool:
    until = time.monotonic() + PATIENCE_S
    while server.is_alive and time.monotonic() < until:
        time.sleep(0.1)
    return not server.is_alive


def ask(target: Target, text: str, **drawn: object) -> Reply:
    reply = Reply()
    body = Asked(max_tokens=8, **drawn).body(target.model, [{"role": "user", "content": text}])
    asyncio.run(chat_client.fill(reply, target, body))
    return reply


def test_a_model_of_the_project_is_loaded_asked_and_unloaded(board: Board) -> None:
    server = start_server(board, "models/tiny")
    assert "is loading" in show_status(board, EN)
    assert ready(server) == ["tiny"]
    assert start_server(board, "models/tiny").pid == server.pid  # one that runs is taken
    (choice,) = choices(board, EN, [])[0]
    target = target_of(choice[1])
    first, again = (ask(target, "打印机卡纸了", temperature=1.0, seed=7) for _ in range(2))
    assert (first.state, first.error) == ("done", None)
    assert 0 < first.tokens <= 8
    assert first.text == again.text
    alike = ask(target, "打印机卡纸了", decoder="contrastive", top_k=4, penalty_alpha=0.6)
    assert alike.state == "done"
    ids, texts = asyncio.run(chat_client.tokens(target, [{"role": "user", "content": "hi"}]))
    assert len(ids) == len(texts) > 0
    assert "".join(texts).startswith("<|im_start|>user")
    stop_server(server)
    assert gone(server)
    assert servers(board) == []


@pytest.mark.slow
def test_a_model_nobody_asks_is_unloaded(board: Board) -> None:
    server = start_server(board, "models/tiny", idle_minutes=0.02)
    assert gone(server)
    assert server.went_idle
    assert "was unloaded: nobody asked it for 0.02 minutes" in show_status(board, EN)


def test_requests_keep_a_model_loaded_and_looking_after_it_does_not() -> None:
    with LiveServer(EchoEngine()) as live:
        idle = Idleness(int(live.url.rpartition(":")[2]), 1)
        assert not idle.is_over()
        seen, since = idle.seen, idle.since
        assert not idle.is_over()
        assert (idle.seen, idle.since) == (seen, since)
        assert ask(Target(f"{live.url}/v1", "echo"), "hi").state == "done"
        assert not idle.is_over()
        assert idle.since > since
        idle.since -= 61
        assert idle.is_over()


def test_a_request_under_way_counts_as_asked() -> None:
    text = 'forge_running 1.0\nforge_waiting 2.0\nforge_requests_total{model="m",path="/v1/chat/completions"} 3.0\n'
    assert work_of(text + 'forge_requests_total{model="",path="/metrics",status="200"} 9.0\n') == (3.0, 3.0)
