"""Drafts: what is foreseen, when it is worth it, and that no reply is another for it."""

from __future__ import annotations

import pytest
import torch
import transformers

from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.infer.local import drafts
from llmforge.infer.local.core import LocalCore
from llmforge.infer.local.drafts import LONGEST, Drafter, Drafting, Luck, num_alike
from llmforge.infer.local.packed import Packing, filled_up
from llmforge.infer.local.paged import BLOCK_SIZE
from llmforge.infer.protocol import Conversation, GenerateRequest, Message, Sampling, TokenIds

PRICE = 0.1
PROMPTS = [[5, 6, 7, 8, 5, 6], [*range(20, 60)], [9], [30, 31] * 9]


def drafter(num_given=0):
    return Drafter(Drafting(), num_given)


@pytest.mark.parametrize(
    ("tokens", "foreseen"),
    [
        ([1, 2, 3, 4, 9, 1, 2], [3, 4, 9]),  # behind the same two
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2]),  # where they came last
        ([1, 2, 3, 4, 9, 2], [3, 4, 9]),  # behind the same one
        ([7, 8, 7, 8], [7, 8, 7]),  # which goes round
        ([4, 4], [4, 4, 4]),
        ([1, 2, 3], []),
        ([1], []),
    ],
)
def test_what_stood_behind_the_same_tokens_is_foreseen(tokens, foreseen):
    one = drafter()
    for end in range(1, len(tokens) + 1):  # as a reply grows
        one.worth(tokens[:end], PRICE)
    assert one.draft(tokens, 3) == foreseen
    at_once = drafter()
    at_once.worth(tokens, PRICE)
    assert at_once.draft(tokens, 3) == foreseen


@pytest.mark.parametrize(
    ("share", "price", "tokens"),
    [(0.5, 0.2, 2), (0.5, 0.9, 1), (0.5, 1.0, 0), (0.9, 4.0, 2), (0.0, 0.01, 0), (1.0, 100.0, LONGEST)],
)
def test_a_draft_goes_on_while_its_odds_are_better_than_the_price(share, price, tokens):
    assert Luck(share).worth(price) == tokens  # for example 0.5 ** 2 = 0.25 > 0.2 * 0.75, but 0.125 < 0.2 * 0.875


def test_luck_is_learnt_from_the_reply_drafted_or_not_and_new_replies_begin_with_it():
    repeats, wanders = [1, 2, 3] * 20, [1, 2, *(x for n in range(10, 40) for x in (1, n))]
    common = Drafting()
    lucky, unlucky = Drafter(common, 3), Drafter(common, 2)
    lucky.worth(repeats, PRICE)
    assert lucky.luck.share > 0.95
    assert common.luck.share > 0.6
    assert Drafter(common, 0).luck.share == common.luck.share
    unlucky.worth(wanders, PRICE)
    assert unlucky.luck.share < 0.05
    prompt_only = Drafter(common, len(repeats))
    before = prompt_only.luck.share
    prompt_only.worth(repeats, PRICE)
    assert prompt_only.luck.share == before


def test_num_alike_stops_at_the_first_difference_or_the_shorter_end():
    assert [num_alike(*pair) for pair in (([1, 2, 3], [1, 2, 4]), ([1], [1, 2]), ([], [1]), ([2], [1]))] == [2, 1, 0, 0]


# --- in a core ---


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def model(tokenizer):
    """A flat random model: it soon repeats itself, as what is drafted here does."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=512, initializer_range=0.1, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def core_over(model, tokenizer, **sizes):
    return LocalCore(model, tokenizer, get_template("chatml", tokenizer), **sizes)


def ask(ids, **sampling):
    settings = {"temperature": 0, "max_new_tokens": 60, "ignore_eos": True, **sampling}
    return GenerateRequest("m", TokenIds(tuple(ids)), Sampling(**settings))


def written(core, requests):
    return [[reply.token_ids for reply in replies] for replies in core.generate_all(requests)]


def theirs(model, ids, count=60):
    config = transformers.GenerationConfig(do_sample=False, max_new_tokens=count, eos_token_id=None, pad_token_id=0)
    return tuple(model.generate(torch.tensor([ids]), generation_config=config)[0, len(ids) :].tolist())


def test_replies_are_those_of_generate_in_far_fewer_steps(model, tokenizer):
    core = core_over(model, tokenizer)
    assert written(core, [ask(ids) for ids in PROMPTS]) == [[theirs(model, ids)] for ids in PROMPTS]
    stats = core.stats()
    assert stats.steps <= 40  # a token a step would be 60
    assert stats.kept_tokens >= 100
    assert stats.completion_tokens == 60 * len(PROMPTS)
    # Every token but the last ones was computed once; what was read in vain is not counted.
    assert stats.computed_tokens == sum(map(len, PROMPTS)) + 59 * len(PROMPTS)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 30])
def test_a_reply_is_never_longer_than_asked(model, tokenizer, count):
    requests = [ask(ids, max_new_tokens=count) for ids in PROMPTS]
    assert written(core_over(model, tokenizer), requests) == [[theirs(model, ids, count)] for ids in PROMPTS]


def test_a_stop_inside_a_draft_ends_the_reply_there(model, tokenizer):
    ids = PROMPTS[3]
    whole = theirs(model, ids)
    stop = whole[-1]
    core = core_over(model, tokenizer)
    request = ask(ids, stop_ids=(stop,))
    [[reply]] = core.generate_all([request])
    assert reply.token_ids == whole[: whole.index(stop) + 1]
    assert reply.finish_reason == "stop"
    assert core.is_idle
    assert core.stats().blocks_used == 0


def test_without_room_for_drafts_the_text_is_the_same(model, tokenizer):
    core = core_over(model, tokenizer, token_budget=9 * BLOCK_SIZE)
    assert written(core, [ask(ids) for ids in PROMPTS]) == [[theirs(model, ids)] for ids in PROMPTS]
    assert core.stats().preempted > 0
    assert core.stats().kept_tokens > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0, "seed": 3},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"logit_bias": {7: 1.0}},
        {"logprobs": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_where_a_choice_depends_on_more_than_its_place_nothing_is_drafted(model, tokenizer, settings, monkeypatch):
    core = core_over(model, tokenizer)
    beside = [ask(PROMPTS[3]), ask(PROMPTS[3], **settings)]
    both = written(core, beside)
    assert core.stats().drafted_tokens > 0  # of the other row
    monkeypatch.setattr(drafts, "LONGEST", 0)
    alone = core_over(model, tokenizer)
    assert written(alone, beside[1:]) == both[1:]
    assert alone.stats().drafted_tokens == 0


def test_a_reply_that_a_grammar_binds_is_the_same_with_and_without_drafts(model, tokenizer, monkeypatch):
    schema = {"type": "array", "items": {"enum": ["leak", "pressure"]}, "minItems": 6, "maxItems": 6}
    prompt = Conversation((Message("user", '["leak", "pressure", "leak", "pressure"]'),))
    request = GenerateRequest(
        "m", prompt, Sampling(temperature=0, max_new_tokens=120), constraint={"type": "json_schema", "schema": schema}
    )
    core = core_over(model, tokenizer)
    with_drafts = written(core, [request, ask(PROMPTS[0])])
    monkeypatch.setattr(drafts, "LONGEST", 0)
    assert written(core_over(model, tokenizer), [request, ask(PROMPTS[0])]) == with_drafts


def test_a_line_filled_up_for_packed_products_gives_the_same(model, tokenizer):
    names = [name for name, layer in model.named_modules() if type(layer) is torch.nn.Linear]
    expected = [[theirs(model, ids)] for ids in PROMPTS]
    packing = Packing(model, names)
    try:
        for count in (1, len(PROMPTS)):  # lines of one token and of many, none of them what oneDNN computes at once
            core = core_over(model, tokenizer)
            assert written(core, [ask(ids) for ids in PROMPTS[:count]]) == expected[:count]
    finally:
        packing.undo()


def test_lines_are_filled_up_in_pieces():
    assert [filled_up(count) for count in (256, 257, 300, 512)] == [256, 260, 304, 512]


def test_the_caches_memory_can_be_taken_before_it_is_needed(model, tokenizer):
    import psutil

    core = core_over(model, tokenizer, token_budget=1 << 17)
    size = core._ready().pool.num_blocks * BLOCK_SIZE * core._ready().bytes_per_token
    before = psutil.Process().memory_info().rss
    core.take_cache()
    assert psutil.Process().memory_info().rss - before > 0.9 * size
    assert written(core, [ask(PROMPTS[0])]) == [[theirs(model, PROMPTS[0])]]
