"""Nothing long runs on the event loop: not the tokeniser, not the reading of a large body."""

from __future__ import annotations

import threading

import httpx
import pytest
from live_server import QUESTION

from llmforge.serve.body import AT_ONCE
from llmforge.serve.wire_chat import ChatRequest

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def threads(server, monkeypatch):
    """Names of what ran -> threads it ran in."""
    found = {}

    def watch(owner, name):
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            found.setdefault(name, set()).add(threading.current_thread())
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    watch(server.engine.fleet.intake.tokenizer, "ids")
    watch(ChatRequest, "model_validate_json")
    return found


def test_prompts_are_tokenised_beside_the_event_loop(server, threads):
    server.ask(max_tokens=1)
    server.client.completions.create(model="tuned", prompt=QUESTION, max_tokens=1)
    httpx.post(f"{server.url}/tokenize", json={"model": "tuned", "prompt": QUESTION})
    assert threads["ids"]
    assert server.thread not in threads["ids"]


def test_a_large_body_is_read_beside_the_event_loop_and_a_small_one_on_it(server, threads):
    small = {"model": "tuned", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    large = {**small, "metadata": {"x": "y" * (2 * AT_ONCE)}}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=small).status_code == 200
    assert threads.pop("model_validate_json") == {server.thread}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=large).status_code == 400
    assert server.thread not in threads["model_validate_json"]
