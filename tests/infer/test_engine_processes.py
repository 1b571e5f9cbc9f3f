"""An engine whose workers are processes: the same replies, one worker's death is not the others'."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection

import psutil
import pytest
import torch
import transformers

from llmforge.config.load import load_recipe
from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError
from llmforge.infer.local.core import LocalCore
from llmforge.infer.local.engine import LocalEngine
from llmforge.infer.local.messages import Quit
from llmforge.infer.local.process_fleet import ProcessWorker
from llmforge.infer.protocol import (
    EngineUnavailable,
    GenerateRequest,
    PromptTooLong,
    RequestError,
    Sampling,
    TokenIds,
)

WORDS = ["template=chatml", "replicas=2", "served_model_name=tiny"]


@pytest.fixture(scope="module")
def recipe(tiny_model_dir):
    return load_recipe([*WORDS, f"model_name_or_path={tiny_model_dir}"], "api")


@pytest.fixture(scope="module")
def core(tiny_model_dir):
    tokenizer = load_tokenizer(tiny_model_dir)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    return LocalCore(model, tokenizer, get_template("chatml", tokenizer))


def asking(*ids, model="tiny", constraint=None, **sampling):
    settings = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": constraint is None, **sampling}
    return GenerateRequest(model, TokenIds(ids), Sampling(**settings), constraint)


async def collect(engine, request):
    return tuple([id async for piece in engine.generate(request) for id in piece.token_ids])


def workers_of(engine):
    return [psutil.Process(worker.pid) for worker in engine.fleet.workers]


def run(recipe, scenario):
    """The scenario over a started engine; afterwards no process is left."""

    async def whole():
        engine = LocalEngine.from_recipe(recipe)
        family = [psutil.Process(engine.fleet.process.pid)]
        await engine.start()
        family += workers_of(engine)
        try:
            return await scenario(engine)
        finally:
            await engine.stop()
            assert not [process for process in family if process.is_running()]

    return asyncio.run(whole())


def test_two_workers_give_the_replies_of_one_core_and_share_what_they_are_told(recipe, core, tmp_path, tiny_model_dir):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tuned = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False))
    tuned.peft_config["default"].base_model_name_or_path = str(tiny_model_dir)
    tuned.save_pretrained(tmp_path / "tuned")
    requests = [asking(5, 6, 7 + i) for i in range(12)]
    expected = [reply.token_ids for (reply,) in core.generate_all(requests)]
    adapted = [
        reply.token_ids for (reply,) in LocalCore(tuned, core.tokenizer, core.template).generate_all(requests[:4])
    ]

    async def scenario(engine):
        assert len(workers_of(engine)) == 2
        assert await asyncio.gather(*(collect(engine, request) for request in requests)) == expected
        await engine.load_adapter("tuned", str(tmp_path / "tuned"))
        both = [asking(5, 6, 7 + i, model=model) for model in ("tuned", "tiny") for i in range(4)]
        assert await asyncio.gather(*(collect(engine, request) for request in both)) == [*adapted, *expected[:4]]
        with pytest.raises(RecipeError, match="'tuned' is served already"):
            await engine.load_adapter("tuned", str(tmp_path / "tuned"))
        for process in workers_of(engine):
            process.kill()
        while engine.stats().workers_died < 2:
            await asyncio.sleep(0.01)
        assert await collect(engine, asking(5, 6, 7, model="tuned")) == adapted[0]  # new workers know it too
        with pytest.raises(PromptTooLong):
            await collect(engine, asking(*[5] * 600))
        nonsense = asking(5, constraint={"type": "json_schema", "schema": {"type": "nonsense"}})
        with pytest.raises(RequestError, match="cannot bind a reply"):
            await collect(engine, nonsense)
        return engine.stats()

    stats = run(recipe, scenario)
    assert stats.ready
    assert (stats.workers, stats.workers_died, stats.blocks_used) == (2, 2, 0)
    assert stats.completion_tokens == 8 * (12 + 8 + 1)


def test_a_killed_worker_takes_only_the_replies_it_had_begun(tiny_model_dir, core):
    async def scenario(engine):
        long = [asking(5, i, max_new_tokens=480) for i in range(4)]
        running = [engine.generate(request) for request in long]
        for pieces in running:
            await anext(pieces)
        workers_of(engine)[0].kill()
        ended = await asyncio.gather(*(rest_of(pieces) for pieces in running), return_exceptions=True)
        after = await asyncio.gather(*(collect(engine, asking(5, i)) for i in range(6)))
        return ended, after, engine.stats()

    async def rest_of(pieces):
        return [piece async for piece in pieces][-1].finish_reason

    recipe = load_recipe([*WORDS, f"model_name_or_path={tiny_model_dir}", "threads=1"], "api")  # each has two of them
    ended, after, stats = run(recipe, scenario)
    assert sorted(str(end) if isinstance(end, str) else type(end).__name__ for end in ended) == [
        "EngineUnavailable",
        "EngineUnavailable",
        "length",
        "length",
    ]
    assert after == [reply.token_ids for (reply,) in core.generate_all([asking(5, i) for i in range(6)])]
    assert (stats.workers, stats.workers_died, stats.ready) == (2, 1, True)


def test_nobody_waits_for_a_worker_that_reads_nothing_during_a_step():
    ours, theirs = socket.socketpair()
    worker = ProcessWorker(Connection(ours.detach()), max_rows=1, pid=0)
    worker.start(lambda message: None)
    messages = [f"{number}" * 20_000 for number in range(100)]  # more than the connection holds

    def send_all():
        for message in messages:
            worker.send(message)

    sending = threading.Thread(target=send_all, daemon=True)
    sending.start()
    sending.join(60)
    assert not sending.is_alive()
    with Connection(theirs.detach()) as other:
        assert [other.recv() for _ in messages] == messages
        worker.send(Quit())
        worker.close()
        assert other.recv() == Quit()


def test_a_single_worker_that_dies_turns_readiness_off(tiny_model_dir):
    words = [f"model_name_or_path={tiny_model_dir}", "template=chatml", "replicas=1", "served_model_name=tiny"]

    async def scenario(engine):
        pieces = engine.generate(asking(5, max_new_tokens=480))
        await anext(pieces)
        engine.fleet.process.kill()
        with pytest.raises(EngineUnavailable, match="died"):
            async for _ in pieces:
                pass
        return engine.stats()

    assert not run(load_recipe(words, "api"), scenario).ready


def test_what_cannot_be_loaded_is_said_by_the_engines_process(tiny_model_dir, tmp_path):
    words = [f"model_name_or_path={tiny_model_dir}", "template=chatml"]
    (tmp_path / "empty").mkdir()
    recipe = load_recipe([*words, f'adapters={{"a": "{tmp_path / "empty"}"}}'], "api")
    with pytest.raises(RecipeError, match="empty"):
        LocalEngine.from_recipe(recipe)
    with pytest.raises(RecipeError, match="replicas: got 'many'"):
        LocalEngine.from_recipe(load_recipe([*words, "replicas=many"], "api"))


def test_the_engines_own_process_needs_no_torch():
    script = (
        "import sys, llmforge.infer.local.process_fleet, llmforge.infer.local.engine; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_what_a_worker_tells_needs_no_torch():
    # else the first answer of all waits until torch is there
    script = (
        "import pickle, sys; from llmforge.infer.local.messages import Came; import llmforge.infer.local.core as core;"
        "sys.stdout.buffer.write(pickle.dumps(Came([], core.CoreStats(0, 0))))"
    )
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout
    script = "import pickle, sys; pickle.load(sys.stdin.buffer); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], input=told, check=False).returncode == 0
