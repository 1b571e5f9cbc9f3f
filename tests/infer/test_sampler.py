"""The sampler on logits written by hand."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from llmforge.infer.local.sampler import Draw, Sampler, uniform
from llmforge.infer.protocol import Sampling

LOGITS = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]  # probabilities of tokens 0 to 3


def drawn(sampling, logits=LOGITS, num_draws=2000, prompt=()):
    """How often each token comes in `num_draws` independent rows."""
    sampler = Sampler([Draw(sampling, seed, 0, prompt) for seed in range(num_draws)], len(logits), torch.device("cpu"))
    return Counter(c.token_id for c in sampler.choose(torch.tensor([logits] * num_draws), [0] * num_draws))


def several(sampling, logits, num_steps, prompt=()):
    """The tokens of one row over several steps with the same logits."""
    sampler = Sampler([Draw(sampling, 0, 0, prompt)], len(logits), torch.device("cpu"))
    return [sampler.choose(torch.tensor([logits]), [step])[0].token_id for step in range(num_steps)]


def greedy(**settings):
    return Sampling(temperature=0, **settings)


def test_uniform_numbers_are_uniform_and_depend_on_each_argument():
    draws = [uniform(seed, index, step) for seed in range(20) for index in range(20) for step in range(20)]
    assert len(set(draws)) == 8000
    assert sum(draws) / 8000 == pytest.approx(0.5, abs=0.01)
    assert max(abs(sum(d < q for d in draws) / 8000 - q) for q in (0.1, 0.25, 0.75, 0.9)) < 0.02
    assert uniform(2020, 0, 3) == uniform(2020, 0, 3)
    assert 0 <= uniform(-1, 0, 0) < 1


def test_temperature_1_draws_the_models_own_probabilities():
    counts = drawn(Sampling())
    assert [counts[i] / 2000 for i in range(4)] == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.04)


def test_temperature_divides_the_logits():
    counts = drawn(Sampling(temperature=0.5))  # probabilities squared: .25 .09 .0225 .0025, over .365
    assert counts[0] / 2000 == pytest.approx(0.25 / 0.365, abs=0.04)


def test_temperature_0_and_almost_0_take_the_likeliest():
    assert drawn(Sampling(temperature=0), num_draws=20) == {0: 20}
    assert drawn(Sampling(temperature=1e-30), num_draws=20) == {0: 20}


def test_a_huge_temperature_draws_evenly():
    counts = drawn(Sampling(temperature=1e9))
    assert [counts[i] / 2000 for i in range(4)] == pytest.approx([0.25] * 4, abs=0.04)


def test_top_k_keeps_the_likeliest_and_ties():
    assert set(drawn(Sampling(top_k=2))) == {0, 1}
    assert set(drawn(Sampling(top_k=100))) == {0, 1, 2, 3}
    assert set(drawn(Sampling(top_k=1), logits=[1.0, 1.0, 0.0])) == {0, 1}


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.49, {0}), (0.51, {0, 1}), (0.79, {0, 1}), (0.81, {0, 1, 2}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_smallest_set_with_that_mass(top_p, kept):
    assert set(drawn(Sampling(top_p=top_p))) == kept


def test_top_p_counts_mass_within_top_k():
    assert set(drawn(Sampling(top_k=2, top_p=0.62))) == {0}  # 0.5 of 0.8 is 0.625


def test_min_p_comes_after_top_p():
    assert set(drawn(Sampling(top_p=0.82, min_p=0.25))) == {
        0,
        1,
        2,
    }  # within min_p's three, 0.82 would be reached by two


def test_min_p_is_a_share_of_the_likeliest():
    assert set(drawn(Sampling(min_p=0.25))) == {0, 1, 2}  # 0.125 and more
    assert set(drawn(Sampling(min_p=1.0))) == {0}


def test_top_p_over_a_flat_vocabulary_larger_than_the_first_look():
    sampler = Sampler([Draw(Sampling(top_p=0.5), 0, 0, ())], 40_000, torch.device("cpu"))
    scaled = torch.linspace(0, -0.001, 40_000)[None]
    threshold = sampler._threshold(scaled)
    assert (scaled >= threshold).sum().item() == pytest.approx(20_000, abs=20)


def test_few_and_many_kept_tokens_give_the_same_draw():
    """With a wide vocabulary the draw runs over the kept tokens alone; next to an open row over all of them."""
    torch.manual_seed(0)
    logits = torch.randn(1, 1000).mul(4).round()  # rounded: many ties
    for seed in range(50):
        narrow = Draw(Sampling(top_k=20, top_p=0.9), seed, 0, ())
        alone = Sampler([narrow], 1000, torch.device("cpu")).choose(logits, [0])[0]
        beside = Sampler([Draw(Sampling(), 1, 0, ()), narrow], 1000, torch.device("cpu"))
        assert beside.choose(logits.repeat(2, 1), [0, 0])[1] == alone


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_prompt_and_reply():
    assert several(greedy(repetition_penalty=2.0), [3.0, 2.0, -1.0], 3, prompt=[0]) == [1, 0, 0]  # 1.5<2; then 1.5>1
    assert several(greedy(repetition_penalty=2.0), [-1.0, -1.5, -9.0], 1, prompt=[0]) == [1]  # -2 < -1.5


def test_presence_penalty_is_taken_once_per_token_of_the_reply_only():
    assert several(greedy(presence_penalty=1.5), [3.0, 2.0, 0.0], 4, prompt=[0]) == [0, 1, 0, 0]


def test_frequency_penalty_grows_with_each_use():
    assert several(greedy(frequency_penalty=0.6), [3.0, 2.0, 0.0], 5) == [
        0,
        0,
        1,
        0,
        1,
    ]  # 3, 2.4, 1.8<2, 1.8>1.4, 1.2<1.4


def test_logit_bias_forces_and_forbids():
    assert drawn(Sampling(logit_bias={3: 100.0}), num_draws=50) == {3: 50}
    assert set(drawn(Sampling(logit_bias={0: -100.0, 1: -100.0}))) == {2, 3}


def test_each_row_keeps_its_own_settings_when_rows_leave():
    draws = [
        Draw(Sampling(), 1, 0, ()),
        Draw(greedy(logit_bias={2: 50.0}), 2, 0, ()),
        Draw(greedy(frequency_penalty=1.0), 3, 0, ()),
    ]
    sampler = Sampler(draws, 4, torch.device("cpu"))
    logits = torch.tensor([LOGITS] * 3)
    assert [c.token_id for c in sampler.choose(logits, [0, 0, 0])][1:] == [2, 0]
    sampler.arrange([1, 2])
    assert [c.token_id for c in sampler.choose(logits[:2], [1, 1])] == [2, 1]


def test_a_row_that_comes_later_brings_what_its_reply_holds_already():
    sampler = Sampler([Draw(Sampling(), 1, 0, ())], 4, torch.device("cpu"))
    back = Draw(greedy(frequency_penalty=1.0, repetition_penalty=1.5), 2, 0, (3,), [0, 0])
    sampler.arrange([0], [back])
    assert sampler.counts[1].tolist() == [2, 0, 0, 0]
    assert sampler.seen[1].tolist() == [True, False, False, True]
    assert sampler.choose(torch.tensor([[3.0, 2.5, 0.0, 2.8]] * 2), [0, 2])[1].token_id == 1  # 3/1.5 - 2; 2.5; 2.8/1.5


def test_a_row_without_numbers_gets_no_token_and_the_others_do():
    sampler = Sampler([Draw(Sampling(), i, 0, ()) for i in range(3)], 2, torch.device("cpu"))
    chosen = sampler.choose(torch.tensor([[math.nan, 0.0], [0.0, -100.0], [-math.inf, -math.inf]]), [0, 0, 0])
    assert [c and c.token_id for c in chosen] == [None, 0, None]


def test_logprobs_are_the_models_own_whatever_the_temperature():
    sampler = Sampler([Draw(greedy(logprobs=2, logit_bias={3: 50.0}), 0, 0, ())], 4, torch.device("cpu"))
    choice = sampler.choose(torch.tensor([LOGITS]), [0])[0]
    assert choice.token_id == 3
    assert choice.logprob == pytest.approx(math.log(0.05))
    assert [id for id, _ in choice.top] == [0, 1]
    assert [logprob for _, logprob in choice.top] == pytest.approx(LOGITS[:2])
