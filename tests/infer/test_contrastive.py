"""Contrastive search against a slow reference without a cache, and against numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
import transformers

from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.infer.local.contrastive import ContrastiveSearch, pick
from llmforge.infer.local.core import LocalCore
from llmforge.infer.protocol import Capabilities, GenerateRequest, RequestError, Sampling, TokenIds
from llmforge.serve.translate import to_sampling
from llmforge.serve.wire_chat import ChatRequest

SIZES = {
    "Llama": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "num_key_value_heads": 2,
    },
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
}  # fmt: skip
PROMPT = [9, 30, 40, 50, 60, 9, 30]
USER = [{"role": "user", "content": "x"}]


def random_model(name):
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(vocab_size=200, **SIZES[name])
    config.initializer_range = 0.3
    return getattr(transformers, f"{name}{'LMHeadModel' if name == 'GPT2' else 'ForCausalLM'}")(config).eval()


@torch.no_grad()
def reference(model, ids, k, alpha, steps):
    """REQUIREMENTS 2.10 word by word: every candidate is appended and the whole text computed anew."""
    ids = list(ids)
    for _ in range(steps):
        probabilities = model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
        best = (-torch.inf, None)
        for v in probabilities.topk(k).indices.tolist():
            states = model(input_ids=torch.tensor([[*ids, v]]), output_hidden_states=True).hidden_states[-1][0]
            likeness = max(F.cosine_similarity(states[-1], state, dim=0).item() for state in states[:-1])
            best = max(best, ((1 - alpha) * probabilities[v].item() - alpha * likeness, v))
        ids.append(best[1])
    return ids[-steps:]


def write(model, k, alpha, steps):
    search = ContrastiveSearch(model, PROMPT, k=k, alpha=alpha)
    return [search.take(search.logits) for _ in range(steps)]


@pytest.mark.parametrize("name", SIZES)
def test_twenty_tokens_are_those_of_the_slow_reference(name):
    model = random_model(name)
    ours = write(model, 4, 0.6, 20)
    assert ours == reference(model, PROMPT, 4, 0.6, 20)
    assert ours != reference(model, PROMPT, 1, 0.0, 20)  # and something else than greedy


@pytest.mark.parametrize(("k", "alpha"), [(1, 0.6), (4, 0.0)])
def test_one_candidate_or_no_penalty_is_greedy(k, alpha):
    model = random_model("Llama")
    settings = transformers.GenerationConfig(do_sample=False, max_new_tokens=12, pad_token_id=0)
    greedy = model.generate(torch.tensor([PROMPT]), generation_config=settings)[0, len(PROMPT) :].tolist()
    assert write(model, k, alpha, 12) == greedy


def test_the_choice_worked_out_by_hand():
    context = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    states = torch.tensor([[3.0, 0.0], [-1.0, -1.0], [1.0, 1.0]])
    # Likeness: 1, -0.7071, 0.7071. Scores at 0.6: 0.4 * 0.5 - 0.6, 0.4 * 0.3 + 0.4243, 0.4 * 0.2 - 0.4243.
    assert pick(torch.tensor([0.5, 0.3, 0.2]), states, context, 0.6) == 1
    assert pick(torch.tensor([0.5, 0.3, 0.2]), states, context, 0.0) == 0


def test_a_forbidden_token_is_no_candidate():
    model = random_model("Llama")
    search = ContrastiveSearch(model, PROMPT, k=4, alpha=0.6)
    scores = torch.full_like(search.logits, -torch.inf)
    scores[[17, 18]] = search.logits[[17, 18]]
    assert search.take(scores) in (17, 18)


# In the core


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def core(tokenizer):
    torch.manual_seed(1)
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **SIZES["Llama"])
    config.initializer_range = 0.3
    model = transformers.LlamaForCausalLM(config).eval()
    return LocalCore(model, tokenizer, get_template("chatml", tokenizer))


def ask(**sampling):
    settings = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True, **sampling}
    return GenerateRequest("m", TokenIds(tuple(PROMPT)), Sampling(**settings))


SEARCH = {"penalty_alpha": 0.6, "top_k": 4}


def test_a_request_searches_beside_others_that_draw(core):
    expected = reference(core.model, PROMPT, 4, 0.6, 12)
    replies = core.generate_all([ask(), ask(**SEARCH, n=2), ask(temperature=1, seed=3)])
    alone = core.generate_all([ask()])[0][0]
    assert [list(reply.token_ids) for reply in replies[1]] == [expected, expected]
    assert replies[0][0].token_ids == alone.token_ids != tuple(expected)
    assert {reply.finish_reason for group in replies for reply in group} == {"length"}
    assert core.is_idle


def test_bias_and_logprobs_hold_in_a_search(core):
    first = reference(core.model, PROMPT, 4, 0.6, 1)[0]
    (reply,) = core.generate_all([ask(**SEARCH, logit_bias={first: -100.0}, logprobs=2, max_new_tokens=3)])[0]
    assert first not in reply.token_ids
    with torch.no_grad():
        logprobs = core.model(input_ids=torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    assert reply.logprobs[0].logprob == pytest.approx(logprobs[reply.token_ids[0]].item(), abs=1e-4)
    assert [id for id, _, _ in reply.logprobs[0].top] == logprobs.topk(2).indices.tolist()


@pytest.mark.parametrize("wrong", [{"penalty_alpha": 1.5, "top_k": 4}, {"penalty_alpha": 0.6}])
def test_a_search_without_sense_is_refused_by_name(core, wrong):
    with pytest.raises(RequestError, match=r"penalty_alpha: got .*top_k from 1 to 64"):
        core.prepare(ask(**wrong))


def test_without_a_penalty_the_servers_contrastive_decoder_is_greedy():
    body = ChatRequest(model="m", messages=USER, decoder="contrastive", penalty_alpha=0, temperature=0.8, top_k=4)
    capabilities = Capabilities(frozenset(field.name for field in dataclasses.fields(Sampling)))
    sampling = to_sampling(body, Sampling(temperature=0.9), capabilities)
    assert (sampling.temperature, sampling.penalty_alpha) == (0.0, 0.0)
    body = ChatRequest(model="m", messages=USER, decoder="contrastive")
    sampling = to_sampling(body, Sampling(), capabilities)
    assert (sampling.penalty_alpha, sampling.top_k) == (0.6, 4)
