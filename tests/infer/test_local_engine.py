"""The engine: many askers, one core, and nobody's trouble is another's."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest
import torch
import transformers

from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError
from llmforge.infer.local.core import LocalCore
from llmforge.infer.local.engine import LocalEngine
from llmforge.infer.local.fleet import ThreadFleet
from llmforge.infer.local.messages import Begin
from llmforge.infer.local.served import ServedModels
from llmforge.infer.protocol import (
    Conversation,
    EngineBusy,
    EngineFailure,
    EngineUnavailable,
    GenerateRequest,
    ModelCard,
    Piece,
    RequestError,
    Sampling,
    TokenIds,
    UnknownModel,
)

POISON = 77  # a token whose embedding is broken


@pytest.fixture(scope="module")
def core(tiny_model_dir):
    tokenizer = load_tokenizer(tiny_model_dir)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = float("nan")
    return LocalCore(model, tokenizer, get_template("chatml", tokenizer), served={"tiny": ""}, max_rows=4)


def asking(*ids, n=1, deadline_s=None, **sampling):
    settings = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True, "n": n, **sampling}
    return GenerateRequest("tiny", TokenIds(ids), Sampling(**settings), deadline_s=deadline_s)


async def collect(engine, request):
    return [piece async for piece in engine.generate(request)]


def ids_of(pieces):
    return tuple(id for piece in pieces for id in piece.token_ids)


@contextlib.asynccontextmanager
async def started(core, **settings):
    engine = LocalEngine(ServedModels(core, [ModelCard("tiny", "tiny", None, 512)]), **settings)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def test_eight_parallel_requests_each_get_their_own_reply(core):
    async def scenario():
        async with started(core) as engine:
            requests = [asking(5, 6, 7 + i) for i in range(8)]
            return await asyncio.gather(*(collect(engine, request) for request in requests))

    replies = asyncio.run(scenario())
    expected = [reply.token_ids for (reply,) in core.generate_all([asking(5, 6, 7 + i) for i in range(8)])]
    assert [ids_of(pieces) for pieces in replies] == expected


def test_replies_that_nobody_reads_as_they_grow_come_in_two_pieces_and_are_the_same(core):
    async def scenario():
        async with started(core) as engine:
            request = asking(5, 6, 7, n=2, temperature=1.0, seed=3, logprobs=2, max_new_tokens=12)
            return [await collect(engine, replace(request, streams=streams)) for streams in (True, False)]

    grown, whole = asyncio.run(scenario())
    for index in range(2):
        parts, two = ([piece for piece in pieces if piece.index == index] for pieces in (grown, whole))
        assert len(parts) > len(two) == 2
        assert two[0] == parts[0]
        assert Piece.joined(two) == replace(Piece.joined(parts), usage=two[-1].usage)
        assert len(Piece.joined(two).logprobs) == 12
    assert sum(piece.usage is not None for piece in whole) == 1


def test_a_request_that_fails_ends_alone_and_the_engine_lives(core):
    async def scenario():
        async with started(core) as engine:
            results = await asyncio.gather(
                *(collect(engine, asking(i, 9)) for i in (5, POISON, 6)), return_exceptions=True
            )
            after = await collect(engine, asking(5, 9))
            return results, after

    (first, poisoned, third), after = asyncio.run(scenario())
    assert isinstance(poisoned, EngineFailure)
    assert "NaN" in str(poisoned)
    assert len(ids_of(first)) == len(ids_of(third)) == 8
    assert ids_of(after) == ids_of(first)


def test_an_exception_inside_the_model_fails_the_request_that_causes_it(core):
    """The planted module fails on one id only, in the middle of a batch."""

    def explode(module, inputs):
        if (inputs[0] == 66).any():
            raise RuntimeError("planted")

    hook = core.model.model.embed_tokens.register_forward_pre_hook(explode)

    async def scenario():
        async with started(core) as engine:
            return await asyncio.gather(*(collect(engine, asking(i, 9)) for i in (5, 66, 6, 7)), return_exceptions=True)

    try:
        results = asyncio.run(scenario())
    finally:
        hook.remove()
    assert isinstance(results[1], EngineFailure)
    assert [len(ids_of(results[i])) for i in (0, 2, 3)] == [8, 8, 8]


def test_closing_the_iterator_cancels_within_a_step(core):
    async def scenario():
        async with started(core) as engine:
            pieces = engine.generate(asking(5, max_new_tokens=400))
            await anext(pieces)
            assert engine.stats().running == 1
            await pieces.aclose()
            for _ in range(100):
                if not engine.stats().running:
                    break
                await asyncio.sleep(0.01)
            return engine.stats()

    stats = asyncio.run(scenario())
    assert stats.running == 0
    assert stats.completion_tokens < 400


def test_a_full_queue_refuses_with_a_time_to_wait(core):
    async def scenario():
        async with started(core, max_queue=2) as engine:
            long = engine.generate(asking(5, n=4, max_new_tokens=500))
            await anext(long)
            waiting = [asyncio.create_task(collect(engine, asking(6))) for _ in range(2)]
            while engine.stats().waiting < 2 and not any(task.done() for task in waiting):
                await asyncio.sleep(0)
            with pytest.raises(EngineBusy) as refused:
                await collect(engine, asking(7))
            await long.aclose()
            return refused.value, await asyncio.gather(*waiting)

    refused, served = asyncio.run(scenario())
    assert refused.retry_after_s >= 1
    assert [len(ids_of(pieces)) for pieces in served] == [8, 8]


def test_an_idle_engine_without_queue_serves_one(core):
    async def scenario():
        async with started(core, max_queue=0) as engine:
            return await collect(engine, asking(6))

    assert len(ids_of(asyncio.run(scenario()))) == 8


def test_a_deadline_in_the_queue_is_unavailable_and_one_while_running_is_timeout(core):
    async def scenario():
        async with started(core) as engine:
            slow = asking(5, n=4, max_new_tokens=450, deadline_s=0.4, logprobs=0)  # which nothing is drafted for
            running = asyncio.create_task(collect(engine, slow))
            await asyncio.sleep(0.1)
            with pytest.raises(EngineUnavailable, match="no room"):
                await collect(engine, asking(6, deadline_s=0.05))
            return await running

    last = {piece.index: piece.finish_reason for piece in asyncio.run(scenario()) if piece.finish_reason}
    assert last == {0: "timeout", 1: "timeout", 2: "timeout", 3: "timeout"}


def test_an_unknown_model_is_refused_with_the_list(core):
    async def scenario():
        async with started(core) as engine:
            with pytest.raises(UnknownModel, match="'tinny' is not served here; known: tiny"):
                await collect(engine, GenerateRequest("tinny", TokenIds((5,))))
            return engine.stats()

    assert asyncio.run(scenario()).waiting == 0


def test_a_conversation_that_the_template_refuses_names_the_messages(core):
    async def scenario():
        async with started(core) as engine:
            with pytest.raises(RequestError) as refused:
                await collect(engine, GenerateRequest("tiny", Conversation(())))
            return refused.value

    assert asyncio.run(scenario()).param == "messages"


def test_draining_lets_running_requests_end_and_refuses_new_ones(core):
    async def scenario():
        engine = LocalEngine(ServedModels(core, [ModelCard("tiny", "tiny")]))
        with pytest.raises(EngineUnavailable, match="not started"):
            await collect(engine, asking(5))
        await engine.start()
        running = asyncio.create_task(collect(engine, asking(5, max_new_tokens=60)))
        await asyncio.sleep(0.02)
        stopping = asyncio.create_task(engine.stop(drain_s=20))
        await asyncio.sleep(0)
        with pytest.raises(EngineUnavailable, match="draining"):
            await collect(engine, asking(5))
        await stopping
        return await running

    assert len(ids_of(asyncio.run(scenario()))) == 60


def test_stopping_without_drain_ends_what_runs_and_says_so(core):
    pieces = []

    async def scenario():
        engine = LocalEngine(ServedModels(core, [ModelCard("tiny", "tiny")]))
        await engine.start()

        async def ask():
            async for piece in engine.generate(asking(5, max_new_tokens=450)):
                pieces.append(piece)

        running = asyncio.create_task(ask())
        while not pieces:
            await asyncio.sleep(0.01)
        await engine.stop()
        await running

    with pytest.raises(EngineUnavailable, match="the engine was stopped"):
        asyncio.run(scenario())
    assert 0 < len(ids_of(pieces)) < 450


def test_a_server_and_its_application_may_both_stop_the_engine(core):
    async def scenario():
        engine = LocalEngine(ServedModels(core, [ModelCard("tiny", "tiny")]))
        await engine.start()
        running = asyncio.create_task(collect(engine, asking(5, max_new_tokens=450)))
        while not (engine.stats().running or running.done()):
            await asyncio.sleep(0)
        patient = asyncio.create_task(engine.stop(5.0))
        await asyncio.sleep(0)  # it waits for the request by now
        await engine.stop()
        await patient
        with pytest.raises(EngineUnavailable, match="the engine was stopped"):
            await running

    asyncio.run(scenario())


def test_a_request_that_is_read_while_the_engine_stops_is_told_so(core):
    async def scenario():
        engine = LocalEngine(ServedModels(core, [ModelCard("tiny", "tiny")]))
        await engine.start()
        early = asyncio.create_task(collect(engine, asking(5)))
        await asyncio.sleep(0)  # it is admitted, and its prompt is read in a thread
        await engine.stop()
        with pytest.raises(EngineUnavailable, match="was stopped"):
            await asyncio.wait_for(early, 20)

    asyncio.run(scenario())


def test_a_stopped_engine_gives_its_core_back_empty(core):
    async def scenario():
        engine = LocalEngine(ServedModels(core, [ModelCard("tiny", "tiny")]))
        await engine.start()
        running = asyncio.create_task(collect(engine, asking(5, max_new_tokens=450)))
        while not (core.stats().running or running.done()):
            await asyncio.sleep(0)
        await engine.stop()
        assert core.is_idle
        with pytest.raises(EngineUnavailable, match="was stopped"):
            await running

    asyncio.run(scenario())


def test_adapters_come_and_go_while_the_engine_runs(tiny_model_dir, tmp_path):
    from peft import LoraConfig, get_peft_model

    tokenizer = load_tokenizer(tiny_model_dir)

    def fresh():
        return transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)

    torch.manual_seed(0)
    tuned = get_peft_model(fresh(), LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False))
    tuned.peft_config["default"].base_model_name_or_path = str(tiny_model_dir)
    tuned.save_pretrained(tmp_path / "v1.0")
    template = get_template("chatml", tokenizer)
    core = LocalCore(fresh(), tokenizer, template, served={"tiny": ""})
    expected = LocalCore(tuned, tokenizer, template).generate_all([asking(5, 6)])[0][0].token_ids

    async def scenario():
        async with started(core) as engine:
            base = ids_of(await collect(engine, asking(5, 6)))
            await engine.load_adapter("v1.0", str(tmp_path / "v1.0"))
            names = [card.id for card in engine.models()]
            with_adapter = GenerateRequest("v1.0", TokenIds((5, 6)), asking().sampling)
            adapted = ids_of(await collect(engine, with_adapter))
            assert ids_of(await collect(engine, asking(5, 6))) == base
            with pytest.raises(RecipeError, match="served already"):
                await engine.load_adapter("v1.0", str(tmp_path / "v1.0"))
            await engine.unload_adapter("v1.0")
            with pytest.raises(UnknownModel):
                await collect(engine, with_adapter)
            with pytest.raises(UnknownModel):
                await engine.unload_adapter("tiny")
            return base, adapted, names

    base, adapted, names = asyncio.run(scenario())
    assert names == ["tiny", "v1.0"]
    assert adapted == expected != base


def test_a_dead_worker_leaves_nobody_waiting(core):
    class Falling(LocalCore):
        def step(self):
            if self.stats().completion_tokens > 20:
                raise MemoryError("planted")
            return super().step()

    falling = Falling(core.model, core.tokenizer, core.template, served={"tiny": ""}, max_rows=1)

    async def scenario():
        engine = LocalEngine(ServedModels(falling, [ModelCard("tiny", "tiny")]))
        await engine.start()
        asked = [asyncio.create_task(collect(engine, asking(5, max_new_tokens=300))) for _ in range(3)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        is_ready = engine.stats().ready
        with pytest.raises(EngineUnavailable, match="dead"):
            await collect(engine, asking(5))
        await engine.stop()
        return results, is_ready

    results, is_ready = asyncio.run(scenario())
    assert [type(result) for result in results] == [EngineUnavailable] * 3
    assert not is_ready


class Silent:
    """A worker that takes jobs and never answers."""

    max_rows = 64

    def __init__(self):
        self.begun = []

    def start(self, hear):
        pass

    def send(self, message):
        if isinstance(message, Begin):
            self.begun.append(message.job.prompt_ids)


class SilentFleet(ThreadFleet):
    def __init__(self, served, together):
        super().__init__(served)
        self.workers, self.together = [Silent(), Silent()], together

    def stop(self):
        pass


@pytest.mark.parametrize(("together", "expected"), [(8, [(0, 0), (4, 0), (8, 2), (8, 5), (10, 10)]),
                                                    (0, [(0, 0), (2, 2), (5, 5), (7, 6), (10, 10)])])  # fmt: skip
def test_the_first_few_rows_share_the_worker_that_can_borrow_the_cores_of_the_other(core, together, expected):
    async def story():
        fleet = SilentFleet(ServedModels(core, [ModelCard("tiny", "tiny", None, 512)]), together)
        engine = LocalEngine(fleet)
        await engine.start()
        asked, found = [], []
        for count in (0, 4, 6, 3, 7):
            for _ in range(count):
                asked.append(asyncio.create_task(collect(engine, asking(5, 6, len(asked)))))
                while sum(len(worker.begun) for worker in fleet.workers) < len(asked):
                    await asyncio.sleep(0)
            found.append(tuple(len(worker.begun) for worker in fleet.workers))
        await engine.stop()
        ended = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(end) for end in ended} == {EngineUnavailable}
        return found

    assert asyncio.run(story()) == expected


def test_a_request_goes_where_its_prefix_is_known_until_that_worker_has_more_to_do(core):
    async def story():
        fleet = SilentFleet(ServedModels(core, [ModelCard("tiny", "tiny", None, 512)]), 0)
        engine = LocalEngine(fleet)
        await engine.start()
        asked = []
        for ids in ((5,) * 96, (7,) * 96, (5,) * 96, (5,) * 96, (5,) * 96, (5,) * 96):
            asked.append(asyncio.create_task(collect(engine, asking(*ids))))
            while sum(len(worker.begun) for worker in fleet.workers) < len(asked):
                await asyncio.sleep(0)
        await engine.stop()
        await asyncio.gather(*asked, return_exceptions=True)
        return [[ids[0] for ids in worker.begun] for worker in fleet.workers]

    # 32 tokens of a reply each, and what is not known of a prompt: 128 and 128, 160, 192, 224, then 256 here or there.
    assert asyncio.run(story()) == [[5, 5, 5, 5, 5], [7]]
