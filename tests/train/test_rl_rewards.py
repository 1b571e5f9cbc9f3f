"""Rewards: the shipped functions by hand, weights, a server that scores, numbers that running state keeps."""

from __future__ import annotations

import json
import statistics
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from llmforge.config.schema import RlConfig
from llmforge.data.example import Message, RowRef
from llmforge.errors import RecipeError, RunError
from llmforge.train.rl.functions import exact_match, json_valid, regex
from llmforge.train.rl.rewards import Rewards, RewardServer, Source
from llmforge.train.rl.samples import Sample
from llmforge.train.rl.state import RolloutState


def sample(reply, label="", row=1):
    asked = (Message("user", "What is it?"),)
    return Sample(asked, reply, label, RowRef("rows.json", row), ended=True, num_tokens=3)


def test_json_valid_takes_objects_and_lists_alone():
    replies = ['{"a": 1}', " [1, 2]\n", '```json\n{"a": 1}\n```', '{"a": 1} and more', "1", '"text"', "", '{"a": NaN']
    assert json_valid([sample(reply) for reply in replies], RlConfig()) == [1, 1, 0, 0, 0, 0, 0, 0]


def test_exact_match_leaves_blanks_out_and_names_a_row_without_a_reply():
    assert exact_match([sample(" fire\n", "fire"), sample("Fire", "fire")], RlConfig()) == [1, 0]
    with pytest.raises(RecipeError, match=r"exact_match needs a reply to compare with; rows.json row 7 has none"):
        exact_match([sample("fire", "", row=7)], RlConfig())


def test_regex_looks_anywhere_and_refuses_what_is_no_expression():
    options = RlConfig(reward_pattern=r"\d{2}:\d{2}")
    assert regex([sample("at 12:30."), sample("at noon")], options) == [1, 0]
    with pytest.raises(RecipeError, match=r"reward_pattern: '\(' is no regular expression"):
        regex([], RlConfig(reward_pattern="("))
    with pytest.raises(RecipeError, match="reward_pattern: missing"):
        regex([], RlConfig())


def test_rewards_are_weighted_sums_and_every_part_is_kept():
    rewards = Rewards([Source("a", 1.0, lambda s: [1, 2]), Source("b", -0.5, lambda s: [4, 0])])
    assert rewards([sample("x"), sample("y")]) == ([-1.0, 2.0], {"a": [1.0, 2.0], "b": [4.0, 0.0]})


def test_a_function_that_raises_is_named():
    with pytest.raises(RunError, match="reward mine failed: ZeroDivisionError"):
        Rewards([Source("mine", 1.0, lambda s: [1 / 0])])([sample("x")])


@pytest.fixture
def server():
    """A reward server that scores a reply by its length, and keeps what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer({"data": [{"id": "judge"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body))
            if body["model"] == "absent":
                return self.answer({"error": {"message": "model 'absent' is not served here"}}, 404)
            scores = [len(messages[-1]["content"]) for messages in body["conversations"]]
            self.answer({"data": [{"index": i, "score": score} for i, score in enumerate(scores)]})

        def answer(self, value, status=200):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *args):
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/v1", asked
    httpd.shutdown()
    httpd.server_close()


def test_a_server_scores_whole_conversations(server):
    url, asked = server
    assert RewardServer(url, None)([sample("four"), sample("three")]) == [4.0, 5.0]
    path, body = asked[0]
    assert (path, body["model"]) == ("/v1/score", "judge")
    assert body["conversations"][0] == [
        {"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "four"}
    ]  # fmt: skip


def test_a_server_that_refuses_or_is_away_is_named(server):
    url, _ = server
    with pytest.raises(RunError, match=r"/score answered 404: .*not served here"):
        RewardServer(url, "absent")([sample("x")])
    with pytest.raises(RunError, match=r"reward_model: http://127.0.0.1:1/v1/score gives no answer"):
        RewardServer("http://127.0.0.1:1/v1", "judge")([sample("x")])


def test_running_numbers_equal_those_over_all_scores():
    state, scores = RolloutState(), [1.0, 4.0, 2.0, 2.0]
    state.take_rewards(scores[:2])
    state.take_rewards(scores[2:])
    assert state.mean == pytest.approx(statistics.mean(scores))
    assert state.deviation == pytest.approx(statistics.stdev(scores))
    assert state.reward_ema == pytest.approx(0.9 * 2.5 + 0.1 * 2.0)
    assert (state.alike, state.varied) == (1, True)
    assert RolloutState.loads(state.dumps()) == state


def test_equal_scores_have_deviation_one():
    state = RolloutState()
    state.take_rewards([3.0, 3.0])
    assert state.deviation == 1.0
