"""The head in stretches gives the head's own logits."""

from __future__ import annotations

import torch
import transformers

from llmforge.infer.local.head import STRETCH, split_head


def test_logits_of_a_wide_vocabulary_are_those_of_the_whole_head():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=2 * STRETCH + 100,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        whole = model(ids).logits
        split_head(model)
        assert "forward" in vars(model.lm_head)
        assert torch.allclose(model(ids).logits, whole, atol=1e-6)


def test_a_narrow_head_stays_as_it_is(tiny_model_dir):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    split_head(model)
    assert "forward" not in vars(model.lm_head)
