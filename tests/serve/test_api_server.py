"""The whole server over a loopback port: a run folder of a tiny model, OpenAI's own client, real connections."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from live_server import GREEDY, QUESTION, Server

from llmforge.config.load import load_recipe
from llmforge.errors import RecipeError
from llmforge.infer.command import main as chat
from llmforge.serve.command import main as api


def streamed(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_chat_plain_streamed_and_predict_give_the_same_greedy_text(server, run_dir, tmp_path, capsys):
    from llmforge.eval.predict import predict

    plain = server.ask().choices[0].message.content
    assert plain
    assert streamed(server.ask(stream=True)) == plain
    capsys.readouterr()
    assert chat([str(run_dir), *GREEDY, "--prompt", QUESTION]) == 0
    assert capsys.readouterr().out == plain + "\n"
    rows = [{"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "x"}]}]
    (tmp_path / "test.json").write_text(json.dumps(rows, ensure_ascii=False))
    words = [
        str(run_dir),
        *GREEDY,
        f"eval_dataset={tmp_path / 'test.json'}",
        "dataset=[]",
        f"output_dir={tmp_path / 'p'}",
    ]
    result = predict(load_recipe([*words, "metrics=[exact_match]"], "predict"))
    predictions = [json.loads(line) for line in result.path.read_text(encoding="utf-8").splitlines()]
    assert predictions[0]["predict"] == plain


def test_the_adapter_and_its_base_are_served_by_name(server, tiny_model_dir):
    names = [model.id for model in server.client.models.list()]
    assert names == ["tuned", tiny_model_dir.name]
    assert server.ask().choices[0].message.content != server.ask(model=names[1]).choices[0].message.content


def test_parallel_streams_do_not_mix(server):
    texts = [f"question {i}" for i in range(8)]
    alone = [streamed(server.ask(text, stream=True)) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda text: streamed(server.ask(text, stream=True)), texts))
    assert together == alone
    assert len(set(alone)) > 4


def test_a_seed_repeats_the_reply_alone_and_among_others(server):
    def draw(seed):
        return server.ask(temperature=1.0, top_p=1.0, seed=seed).choices[0].message.content

    first = draw(2020)
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(draw, [1, 2020, 2, 2020]))
    assert again[1] == again[3] == first
    assert len({first, *again}) == 3


def test_stop_strings_cut_in_streams_too(server):
    whole = server.ask().choices[0].message.content
    stop = whole[4:6]
    cut = whole[: whole.index(stop)]
    assert server.ask(stop=stop).choices[0].message.content == cut
    chunks = list(server.ask(stop=[stop], stream=True))
    assert streamed(chunks) == cut
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_prefix_is_continued(server):
    whole = server.ask(max_tokens=8).choices[0].message.content
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": whole}]
    answer = server.client.chat.completions.create(model="tuned", messages=messages, max_tokens=8)
    assert answer.usage.prompt_tokens > server.ask(max_tokens=8).usage.prompt_tokens
    assert answer.choices[0].message.content


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(server):
    with pytest.raises(openai.BadRequestError) as refused:
        server.ask("printer " * 2000)
    assert refused.value.code == "context_length_exceeded"
    assert "512 tokens" in refused.value.message


def test_a_token_outside_the_vocabulary_is_refused_by_field(server):
    with pytest.raises(openai.BadRequestError) as refused:
        server.ask(logit_bias={"99999": 5})
    assert refused.value.param == "logit_bias"


def test_a_closed_stream_frees_the_engine(server):
    chunks = server.ask(stream=True, max_tokens=450, extra_body={"ignore_eos": True}, n=4)
    next(iter(chunks))
    chunks.close()
    assert server.becomes_idle()
    assert server.ask().choices[0].message.content


def test_a_client_that_leaves_a_plain_request_frees_the_engine(server):
    body = {"model": "tuned", "messages": [{"role": "user", "content": "hi"}], "n": 8, "max_tokens": 450}
    text = json.dumps({**body, "ignore_eos": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    before = server.engine.stats().completion_tokens
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
        while not server.engine.stats().running:
            time.sleep(0.005)
    assert server.becomes_idle()
    assert server.engine.stats().completion_tokens - before < 8 * 450


@pytest.mark.parametrize("megabytes", [2, 20])
def test_a_large_body_gets_an_answer_not_a_broken_connection(server, megabytes):
    for content in (b"x" * (megabytes << 20), (b"x" * 65536 for _ in range(megabytes * 16))):
        response = httpx.post(f"{server.url}/v1/chat/completions", content=content)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"
    assert server.ask().choices


def test_a_taken_port_ends_in_one_line(server, run_dir):
    with pytest.raises(RecipeError, match=f"port: {server.port} on 127.0.0.1 is in use"):
        api([str(run_dir), *GREEDY, f"port={server.port}"])


def test_other_machines_need_a_key(run_dir, monkeypatch):
    monkeypatch.delenv("FORGE_API_KEY", raising=False)
    with pytest.raises(RecipeError, match="FORGE_API_KEY"):
        api([str(run_dir), *GREEDY, "host=0.0.0.0"])


def test_a_missing_extra_is_one_line(run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(RecipeError, match=r"pip install 'llmforge\[serve\]'"):
        api([str(run_dir), *GREEDY])


def test_sigterm_lets_a_running_stream_end_and_exits_0(run_dir):
    process = subprocess.Popen(
        [sys.executable, "-m", "llmforge.cli", "api", str(run_dir), *GREEDY, "port=0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address = next(line for line in process.stdout if line.startswith("Serving ")).split(" on ")[1].split(" ")[0]
        client = openai.OpenAI(base_url=address, api_key="none", max_retries=8)
        stream = client.chat.completions.create(
            model="tuned",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=400,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        chunks = [next(iter(stream))]
        process.send_signal(signal.SIGTERM)
        chunks += list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        _, errors = process.communicate()
    assert "Traceback" not in errors


def test_replies_that_outlast_the_drain_end_with_an_error_and_no_traceback(run_dir, caplog):
    stopping = Server.of_run(run_dir, max_running=1)
    long = {"max_tokens": 450, "n": 8, "extra_body": {"ignore_eos": True}}
    with ThreadPoolExecutor(1) as pool:
        stream = stopping.ask(stream=True, **long)
        next(iter(stream))
        plain = pool.submit(stopping.ask, **long)  # waits behind the stream
        while not stopping.server.serving.line.num_waiting:
            time.sleep(0.005)
        stopping.server.should_exit = True
        with pytest.raises(openai.APIError, match="the engine was stopped"):
            list(stream)
        with pytest.raises(openai.InternalServerError, match="the server is stopping") as refused:
            plain.result(timeout=10)
    assert refused.value.status_code == 503
    stopping.thread.join(timeout=10)
    assert not stopping.thread.is_alive()
    assert "Traceback" not in caplog.text
