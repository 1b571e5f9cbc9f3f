"""The board's chat as a client of a real server on a loopback port."""

import asyncio
import json
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("llmforge.webui")
pytest.importorskip("httpx")
sys.path.append(str(Path(__file__).parents[1] / "serve"))
from echo_engine import EchoEngine
from live_server import Server

from llmforge.errors import RecipeError
from llmforge.webui import chat_client
from llmforge.webui.board import Board
from llmforge.webui.chat_client import Asked, Reply, Target, as_curl, as_python
from llmforge.webui.talk import Talk


@pytest.fixture(scope="module")
def served():
    engine = EchoEngine(constraints={"json_schema"})
    with Server(engine) as server:
        yield engine, f"{server.url}/v1"


def ask(url: str, text: str, **drawn) -> Reply:
    reply, target = Reply(), Target(url, "echo")
    body = Asked(**drawn).body("echo", [{"role": "user", "content": text}])
    asyncio.run(chat_client.fill(reply, target, body))
    return reply


def test_a_reply_arrives_whole_with_its_tokens(served) -> None:
    reply = ask(served[1], "你好 there")
    assert (reply.text, reply.state, reply.finish, reply.tokens) == ("你好 there", "done", "stop", 8)


def test_a_refusal_is_told_in_the_servers_words(served) -> None:
    reply = ask(served[1], "huge")
    assert reply.state == "failed"
    assert "900" in str(reply.error)


def test_a_server_that_is_gone_is_told() -> None:
    assert "ConnectError" in str(ask("http://127.0.0.1:9/v1", "hi").error)


def test_leaving_ends_the_request_on_the_server(served) -> None:
    engine, url = served

    async def leave() -> Reply:
        reply = Reply()
        body = Asked().body("echo", [{"role": "user", "content": "drip" * 50}])
        task = asyncio.create_task(chat_client.fill(reply, Target(url, "echo"), body))
        while not reply.text:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return reply

    closed = engine.closed
    reply = asyncio.run(leave())
    assert (reply.state, reply.text[:4]) == ("stopped", "drip"[: len(reply.text)])
    until = time.monotonic() + 20
    while engine.closed == closed and time.monotonic() < until:
        time.sleep(0.02)
    assert engine.closed == closed + 1


def test_the_settings_reach_the_engine(served) -> None:
    engine, url = served
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    ask(url, "hi", temperature=0.3, top_p=0.5, seed=7, max_tokens=5, schema=schema)
    request = engine.asked[-1]
    drawn = request.sampling
    assert (drawn.temperature, drawn.top_p, drawn.seed, drawn.max_new_tokens) == (0.3, 0.5, 7, 5)
    assert request.constraint == {"type": "json_schema", "schema": schema}
    ask(url, "hi", decoder="greedy", temperature=0.9)
    assert engine.asked[-1].sampling.temperature == 0


def test_contrastive_search_is_asked_for_by_name() -> None:
    body = Asked("contrastive", temperature=0.9, top_k=4, penalty_alpha=0.6).body("m", [])
    assert body == {"model": "m", "messages": [], "top_k": 4, "penalty_alpha": 0.6, "decoder": "contrastive"}


def test_names_tokens_and_rewards_come_from_the_server(served) -> None:
    url = served[1]
    messages = [{"role": "user", "content": "ab"}]
    assert asyncio.run(chat_client.models(url)) == ["echo", "org/tuned"]
    assert asyncio.run(chat_client.tokens(Target(url, "echo"), messages)) == ([97, 98], ["a", "b"])
    assert asyncio.run(chat_client.score(Target(url, "echo"), messages)) == 2.0


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://169.254.169.254/v1", "http://me:pass@host/v1", ""])
def test_addresses_that_are_no_servers_are_refused(url: str) -> None:
    with pytest.raises(RecipeError):
        asyncio.run(chat_client.models(url))


def test_a_page_that_is_no_server_is_told(served) -> None:
    with pytest.raises(RecipeError, match="404"):
        asyncio.run(chat_client.models(served[1] + "/nothing"))


def test_copies_hold_the_request_and_no_key(served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    target = Target(served[1], "echo", "MY_KEY")
    body = Asked("contrastive", top_k=4).body("echo", [{"role": "user", "content": "it's"}])
    curl, python = as_curl(target, body), as_python(target, body)
    assert "sk-very-secret" not in curl + python
    assert "it'\\''s" in curl
    compile(python, "copied", "exec")
    assert "extra_body={'top_k': 4, 'decoder': 'contrastive'}" in python


def test_a_vote_is_kept_with_who_was_who(tmp_path: Path) -> None:
    one, two = (Target("http://127.0.0.1:1/v1", name) for name in ("base", "tuned"))
    talk = Talk()
    talk.begin([(one, "base"), (two, "tuned")], "ask", "", blind=True)
    for column in talk.columns:
        column.reply.text = f"from {column.name}"
        column.close()
    assert talk.is_hidden
    talk.vote(Board(tmp_path), "A")
    (line,) = map(json.loads, (tmp_path / "work/chat_votes.jsonl").read_text().splitlines())
    assert line["vote"] == "A"
    assert line["messages"] == [{"role": "user", "content": "ask"}]
    assert [answer["text"] for answer in line["answers"]] == [f"from {answer['model']}" for answer in line["answers"]]
    assert not talk.is_hidden


def test_asking_again_sends_the_same_question(tmp_path: Path) -> None:
    talk = Talk()
    target = Target("http://127.0.0.1:1/v1", "m")
    talk.begin([(target, "m")], "first", "be brief", blind=False)
    talk.columns[0].reply.text = "answer"
    talk.columns[0].close()
    assert talk.drop_last() == "first"
    talk.begin([(target, "m")], "second", "", blind=False)
    assert talk.columns[0].messages == [{"role": "user", "content": "second"}]
