"""LocalCore against transformers' own generate, on tiny random models."""

from __future__ import annotations

import itertools

import pytest
import torch
import transformers

from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.infer.local.core import LocalCore
from llmforge.infer.protocol import GenerateRequest, Sampling, TokenIds

HEADS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**HEADS, "intermediate_size": 64, "num_key_value_heads": 2}
SIZES = {
    "Llama": LLAMA,
    "Qwen2": LLAMA,
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Falcon": HEADS,
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "Gemma2": {**LLAMA, "head_dim": 8, "sliding_window": 6, "tie_word_embeddings": False},
}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


def random_model(name, vocab_size):
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=vocab_size, **SIZES[name], eos_token_id=2, pad_token_id=0
    )
    config.initializer_range = 0.3  # flat random models repeat one token; this one wanders
    return getattr(transformers, f"{name}{'LMHeadModel' if name == 'GPT2' else 'ForCausalLM'}")(config).eval()


@pytest.fixture(scope="module")
def model(tokenizer):
    return random_model("Llama", len(tokenizer))


@pytest.fixture(scope="module")
def core(model, tokenizer):
    return LocalCore(model, tokenizer, get_template("chatml", tokenizer))


PROMPTS = [[9, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120], [7, 8], [44, 45, 46, 47, 48], [5]]


def ask(ids, **sampling):
    return GenerateRequest("m", TokenIds(tuple(ids)), Sampling(**{"temperature": 0, "max_new_tokens": 12, **sampling}))


def theirs(model, ids, **settings):
    config = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=12, eos_token_id=settings.pop("eos", 2), pad_token_id=0, **settings
    )
    return model.generate(torch.tensor([ids]), generation_config=config)[0, len(ids) :].tolist()


@pytest.mark.parametrize("name", SIZES)
def test_greedy_tokens_are_those_of_transformers_alone_and_in_a_mixed_batch(name, tokenizer):
    model = random_model(name, len(tokenizer))
    core = LocalCore(model, tokenizer, get_template("chatml", tokenizer))
    expected = [theirs(model, ids) for ids in PROMPTS]
    alone = [core.generate_all([ask(ids)])[0][0] for ids in PROMPTS]
    together = [replies[0] for replies in core.generate_all([ask(ids) for ids in PROMPTS])]
    assert [list(reply.token_ids) for reply in alone] == expected
    assert [list(reply.token_ids) for reply in together] == expected
    assert any(len(set(tokens)) > 3 for tokens in expected)  # the comparison says something


def test_repetition_penalty_means_what_transformers_means(core, model):
    reply = core.generate_all([ask(PROMPTS[0], repetition_penalty=1.7)])[0][0]
    assert list(reply.token_ids) == theirs(model, PROMPTS[0], repetition_penalty=1.7)


def test_replies_that_end_early_leave_the_batch_without_changing_the_others(core, model):
    lengths = [2, 12, 3, 1]
    replies = core.generate_all([ask(ids, max_new_tokens=n) for ids, n in zip(PROMPTS, lengths, strict=True)])
    for ids, n, (reply,) in zip(PROMPTS, lengths, replies, strict=True):
        assert list(reply.token_ids) == theirs(model, ids)[:n]


def test_pieces_join_to_the_whole_reply(core):
    requests = [ask(ids, ignore_eos=True, max_new_tokens=30) for ids in PROMPTS]
    whole = core.generate_all(requests)
    parts = list(core.generate(requests))
    for number, (reply,) in enumerate(whole):
        pieces = [piece for other, piece in parts if other == number]
        assert "".join(piece.text for piece in pieces) == reply.text
        assert tuple(itertools.chain(*(piece.token_ids for piece in pieces))) == reply.token_ids
        assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)


def test_a_seeded_reply_is_the_same_alone_and_in_a_batch(core):
    settings = {"temperature": 1.3, "top_p": 0.9, "seed": 2020}
    alone = core.generate_all([ask(PROMPTS[2], **settings)])[0][0]
    others = [ask(PROMPTS[0], temperature=0.7, top_k=5), ask(PROMPTS[1]), ask(PROMPTS[3], temperature=2.0, min_p=0.1)]
    batched = core.generate_all([*others, ask(PROMPTS[2], **settings)])[3][0]
    assert batched.token_ids == alone.token_ids
    other_seed = core.generate_all([ask(PROMPTS[2], **{**settings, "seed": 7})])[0][0]
    assert other_seed.token_ids != alone.token_ids


def test_n_replies_differ_and_the_first_is_the_one_of_n_1(core):
    three = core.generate_all([ask(PROMPTS[0], temperature=1.0, seed=5, n=3)])[0]
    one = core.generate_all([ask(PROMPTS[0], temperature=1.0, seed=5)])[0]
    assert len({reply.token_ids for reply in three}) == 3
    assert three[0].token_ids == one[0].token_ids


def test_n_greedy_replies_are_equal(core):
    assert len({reply.token_ids for reply in core.generate_all([ask(PROMPTS[0], n=2)])[0]}) == 1


def test_a_stop_id_of_the_request_ends_with_stop_and_stays_out_of_the_text(core, model, tokenizer):
    tokens = theirs(model, PROMPTS[0])
    reply = core.generate_all([ask(PROMPTS[0], stop_ids=(tokens[4],))])[0][0]
    cut = tokens.index(tokens[4])
    assert list(reply.token_ids) == tokens[: cut + 1]
    assert reply.finish_reason == "stop"
    assert reply.text == tokenizer.decode(tokens[:cut], skip_special=True).rstrip("\ufffd")


def test_a_reply_that_stops_by_itself_on_the_last_allowed_token_says_stop(core, model):
    tokens = theirs(model, PROMPTS[0])
    cut = tokens.index(tokens[4])
    reply = core.generate_all([ask(PROMPTS[0], stop_ids=(tokens[4],), max_new_tokens=cut + 1)])[0][0]
    assert reply.finish_reason == "stop"
    assert core.generate_all([ask(PROMPTS[0], max_new_tokens=3)])[0][0].finish_reason == "length"


def test_ignore_eos_goes_on_past_the_templates_stop(core, tokenizer):
    bias = {tokenizer.eos_id: 100.0}
    (stopped,), (going,) = core.generate_all([ask([5], logit_bias=bias), ask([5], logit_bias=bias, ignore_eos=True)])
    assert stopped.token_ids == (tokenizer.eos_id,)
    assert stopped.finish_reason == "stop"
    assert stopped.text == ""
    assert going.token_ids == (tokenizer.eos_id,) * 12
    assert going.finish_reason == "length"


def test_a_stop_string_across_tokens_is_cut_off(core):
    whole = core.generate_all([ask(PROMPTS[1], ignore_eos=True, max_new_tokens=20)])[0][0].text
    stop = whole[3:9]
    reply = core.generate_all([ask(PROMPTS[1], ignore_eos=True, max_new_tokens=20, stop=(stop,))])[0][0]
    assert reply.text == whole[: whole.index(stop)]
    assert reply.finish_reason == "stop"


def test_usage_counts_the_prompt_once_and_every_new_token(core):
    pieces = [piece for _, piece in core.generate([ask(PROMPTS[0], n=2, ignore_eos=True)])]
    usages = [piece.usage for piece in pieces if piece.usage]
    assert len(usages) == 1
    assert (usages[0].prompt_tokens, usages[0].completion_tokens) == (len(PROMPTS[0]), 24)


def test_logprobs_are_those_of_the_model_and_come_with_alternatives(core, model):
    reply = core.generate_all([ask(PROMPTS[0], logprobs=3, max_new_tokens=4, ignore_eos=True)])[0][0]
    ids = torch.tensor([PROMPTS[0] + list(reply.token_ids)])
    with torch.no_grad():
        expected = model(ids).logits.log_softmax(-1)[0, len(PROMPTS[0]) - 1 :]
    assert len(reply.logprobs) == 4
    for step, entry in enumerate(reply.logprobs):
        assert entry.logprob == pytest.approx(expected[step, entry.token_id].item(), abs=1e-4)
        assert [id for id, _, _ in entry.top] == expected[step].topk(3).indices.tolist()
        assert entry.top[0][0] == entry.token_id  # greedy


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(tokenizer):
    model = random_model("GPT2", len(tokenizer))
    core = LocalCore(model, tokenizer, get_template("chatml", tokenizer))
    ok, long = core.generate_all([ask([5] * 255), ask([5] * 300)])
    assert len(ok[0].token_ids) == 1
    assert ok[0].finish_reason == "length"
    assert long[0].finish_reason == "error"
    assert "300 tokens" in long[0].error
    assert "256 tokens" in long[0].error


def test_max_length_counts_prompt_and_reply(core):
    reply = core.generate_all([ask(PROMPTS[0], max_length=15, ignore_eos=True)])[0][0]
    assert len(reply.token_ids) == 15 - len(PROMPTS[0])


def test_without_a_limit_the_reply_fills_the_context(tokenizer):
    core = LocalCore(random_model("GPT2", len(tokenizer)), tokenizer, get_template("chatml", tokenizer))
    assert len(core.generate_all([ask([5] * 250, max_new_tokens=None, ignore_eos=True)])[0][0].token_ids) == 6


def test_a_request_past_its_deadline_ends_with_timeout_and_the_others_go_on(core):
    late = GenerateRequest("m", TokenIds((5, 6)), Sampling(temperature=0, max_new_tokens=400), deadline_s=0.05)
    (first,), (second,) = core.generate_all([late, ask(PROMPTS[1], ignore_eos=True)])
    assert first.finish_reason == "timeout"
    assert len(first.token_ids) < 400
    assert len(second.token_ids) == 12


def test_a_cancelled_job_ends_at_the_next_step(core):
    job = core.prepare(ask([5], max_new_tokens=400, ignore_eos=True))
    core.submit(job)
    for _ in range(3):
        core.step()
    job.cancelled = True
    assert [piece.finish_reason for _, piece in core.step()] == ["cancelled"]
    assert core.is_idle
    assert core.stats().blocks_used == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("top_p", 5.0),
        ("temperature", -1.0),
        ("max_new_tokens", -5),
        ("logit_bias", {99999: 1.0}),
        ("stop", ("",)),
    ],
)
def test_a_setting_without_meaning_is_refused_by_name(core, field, value):
    reply = core.generate_all([ask([5], **{field: value})])[0][0]
    assert reply.finish_reason == "error"
    assert reply.error.startswith(f"{field}: got ")


def test_a_constraint_that_is_not_known_is_refused_by_name(core):
    request = GenerateRequest("m", TokenIds((5,)), constraint={"type": "yaml"})
    assert "'yaml'" in core.generate_all([request])[0][0].error


def test_a_model_in_training_is_left_as_it_was(model, tokenizer):
    model.train()
    try:
        LocalCore(model, tokenizer, get_template("chatml", tokenizer)).generate_all([ask([5])])
        assert all(module.training for module in model.modules())
        assert torch.is_grad_enabled()
    finally:
        model.eval()


def test_requests_run_on_the_adapter_they_name(tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    plain = random_model("Llama", len(tokenizer))
    expected = {"base": theirs(plain, PROMPTS[0])}
    model = get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj", "v_proj", "o_proj"]), adapter_name="first")
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj", "v_proj", "o_proj"]))
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    for name, adapter in (("a", "first"), ("b", "second")):
        model.set_adapter(adapter)
        expected[name] = theirs(model, PROMPTS[0])
    core = LocalCore(
        model, tokenizer, get_template("chatml", tokenizer), served={"base": "", "a": "first", "b": "second"}
    )
    names = ["a", "base", "b", "a"]
    replies = core.generate_all([GenerateRequest(n, TokenIds(tuple(PROMPTS[0])), ask([5]).sampling) for n in names])
    assert [list(reply.token_ids) for (reply,) in replies] == [expected[name] for name in names]
    assert len({tuple(tokens) for tokens in expected.values()}) == 3
    unknown = core.generate_all([GenerateRequest("c", TokenIds((5,)))])[0][0]
    assert unknown.error == "model 'c' is not served here; known: base, a, b"


def test_nan_logits_end_one_reply_with_an_error(tokenizer):
    model = random_model("Llama", len(tokenizer))
    with torch.no_grad():
        model.model.embed_tokens.weight[77] = float("nan")
    good, bad = LocalCore(model, tokenizer, get_template("chatml", tokenizer)).generate_all(
        [ask(PROMPTS[1]), ask([77, 5])]
    )
    assert bad[0].finish_reason == "error"
    assert "NaN" in bad[0].error
    assert list(good[0].token_ids) == theirs(model, PROMPTS[1])
