"""Losses of supervised positions equal the plain computation, for every way a model treats its logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as T

from llmforge.data.example import IGNORE, Encoded
from llmforge.data.plan import lay_packed, lay_padded
from llmforge.errors import RecipeError
from llmforge.model import forward
from llmforge.model.forward import check_isolation, token_losses, token_scores, token_states

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: T.LlamaConfig(**SIZES),
    "qwen3": lambda: T.Qwen3Config(**SIZES, head_dim=8),
    "gemma2, soft cap": lambda: T.Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0),
    "granite, divided": lambda: T.GraniteConfig(**SIZES, logits_scaling=4.0),
    "cohere, scaled": lambda: T.CohereConfig(**SIZES, logit_scale=0.25),
    "bloom, alibi": lambda: T.BloomConfig(
        vocab_size=300, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    ),
    "glm4": lambda: T.Glm4Config(**SIZES, head_dim=8),
}
SHAPES = ((12, 5), (7, 3), (20, 15), (3, 1))  # tokens of a row, and how many of them are prompt


def make(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return T.AutoModelForCausalLM.from_config(CONFIGS[name]()).double().eval()


@pytest.fixture(scope="module")
def rows() -> list[Encoded]:
    draw = np.random.default_rng(1)
    ids = [draw.integers(3, 300, size).tolist() for size, _ in SHAPES]
    return [Encoded(row, [IGNORE] * p + row[p:]) for row, (_, p) in zip(ids, SHAPES, strict=True)]


def plain(model: torch.nn.Module, rows: list[Encoded]) -> torch.Tensor:
    """Each row alone, logits of all positions, the textbook shift."""
    losses = []
    for row in rows:
        logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        losses.append(F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORE)[labels != IGNORE])
    return torch.cat(losses)


def tolerance_of(name: str, attention: str = "") -> float:
    """1e-12, but where transformers computes in fp32 whatever the weights are: eager softmax, Cohere's norm."""
    return 1e-6 if attention == "eager" or name.startswith(("gemma2", "bloom", "cohere")) else 1e-12


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "in chunks"])
@pytest.mark.parametrize("name", CONFIGS)
def test_padded_losses_and_gradients_equal_the_plain_ones(name, chunked, rows, monkeypatch):
    if chunked:
        monkeypatch.setattr(forward, "MAX_LOGITS", 2 * 300)
    model = make(name)
    expected, got = plain(model, rows), token_losses(model, lay_padded(rows, range(4)))
    tolerance = tolerance_of(name)
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)
    weights = [p for p in model.parameters() if p.requires_grad]
    for mine, theirs in zip(
        torch.autograd.grad(got.sum(), weights), torch.autograd.grad(expected.sum(), weights), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=1e-5 if tolerance > 1e-9 else 1e-9)


@pytest.mark.parametrize(
    ("name", "attention"),
    [(n, a) for n in CONFIGS for a in ("sdpa", "eager") if n[:5] != "bloom" and (n[:6], a) != ("gemma2", "sdpa")],
)
def test_packed_rows_have_the_losses_they_have_alone(name, attention, rows):
    model = make(name)
    model.set_attn_implementation(attention)
    check_isolation(model)
    tolerance = tolerance_of(name, attention)
    torch.testing.assert_close(
        token_losses(model, lay_packed(rows, range(4))), plain(model, rows), atol=tolerance, rtol=0
    )


def test_models_whose_packed_rows_see_each_other_are_refused_by_name():
    with pytest.raises(RecipeError, match="BloomForCausalLM"):
        check_isolation(make("bloom, alibi"))
    torch.manual_seed(0)
    falcon = T.FalconForCausalLM(
        T.FalconConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, eos_token_id=2)
    )
    with pytest.raises(RecipeError, match=r"FalconForCausalLM.*packing: false"):
        check_isolation(falcon)


def test_logits_are_made_for_supervised_positions_only(rows):
    model, seen = make("cohere, scaled"), []  # a plain head makes its logits in chunks, see test_head_loss.py
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    batch = lay_padded(rows, range(4))
    token_losses(model, batch)
    assert seen == [(1, len(batch.target), 300)]
    assert len(batch.target) == (12 - 5) + (7 - 3) + (20 - 15) + (3 - 1)


def test_states_are_those_that_predict_the_targets(rows):
    model = make("llama")
    batch = lay_padded(rows, range(4))
    states = token_states(model, batch)
    hidden = model.model(torch.tensor([rows[0].input_ids])).last_hidden_state[0]
    torch.testing.assert_close(states[:7], hidden[4:11], atol=1e-12, rtol=0)


def test_label_smoothing_shares_its_part_among_all_tokens(rows):
    model, batch = make("llama"), lay_padded(rows, range(4))
    logprobs = torch.log_softmax(model.lm_head(token_states(model, batch)), dim=-1)
    expected = 0.9 * -logprobs.gather(1, torch.tensor(batch.target)[:, None])[:, 0] - 0.1 * logprobs.mean(dim=-1)
    torch.testing.assert_close(token_losses(model, batch, label_smoothing=0.1), expected, atol=1e-12, rtol=0)


def test_equal_logits_cost_ln_2_a_token():
    model = T.LlamaForCausalLM(T.LlamaConfig(**{**SIZES, "vocab_size": 2, "pad_token_id": None})).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    losses, right = token_scores(model, lay_padded([Encoded([0, 1, 1, 0], [IGNORE, 1, 1, 0])], [0]))
    torch.testing.assert_close(losses, torch.full((3,), np.log(2.0), dtype=torch.float32))
    assert right.tolist() == [False, False, True]  # of equal logits the first is the likeliest


def test_a_peft_model_gives_the_losses_of_its_active_adapter(rows):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        make("llama"), LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    )
    batch = lay_padded(rows, range(4))
    torch.testing.assert_close(token_losses(model, batch), plain(model, rows), atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_virtual_tokens_before_a_row_do_not_move_its_targets(rows, method):
    from llmforge.config.schema import FinetuneConfig
    from llmforge.model.adapters import add_peft

    keys = {"finetuning_type": "peft", "peft_type": method, "peft_kwargs": {"num_virtual_tokens": 3}}
    model = add_peft(make("llama"), FinetuneConfig(**keys), []).eval()
    batch = lay_padded(rows, range(4))
    ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask).long()
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] :].reshape(-1, 300)
    expected = torch.nn.functional.cross_entropy(
        logits[torch.from_numpy(batch.state)], torch.from_numpy(batch.target), reduction="none"
    )
    torch.testing.assert_close(token_losses(model, batch), expected, atol=1e-6, rtol=1e-6)
