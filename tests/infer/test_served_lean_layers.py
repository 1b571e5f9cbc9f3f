"""Lean layers give what the library's layers give, with adapters too, and only where they do."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import transformers

from llmforge.infer.local import packed
from llmforge.infer.local.lean_layers import LeanLayer, put_back, take_lean_forms
from llmforge.infer.local.lora_batch import AdapterBatch
from llmforge.infer.local.packed import pack
from llmforge.infer.local.paged import KeyValues, PagedStep, Span, Wanted, paged_attention

IDS = [7, 8, 9, 10, 11, 12, 13]


@pytest.fixture(autouse=True)
def _faster(monkeypatch):
    monkeypatch.setattr(packed, "is_faster", lambda plain_s, packed_s: True)  # whatever this machine is doing


def model(family="Llama", **settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=300, num_key_value_heads=2, pad_token_id=0, eos_token_id=1, **sizes, **settings
    )
    made = getattr(transformers, f"{family}ForCausalLM")(config).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if "norm" in name:  # all ones otherwise, which hides much
            parameter.uniform_(0.5, 1.5)
    return made


def paged_logits(model, adapters=None, name=""):
    """Two texts in two steps: the first in two pieces, the second beside its second piece."""
    cache, logits = KeyValues(4), []
    for pieces in ([(1, 0, 4)], [(1, 4, 7), (2, 0, 7)]):
        spans, at = [], 0
        for block, start, end in pieces:
            spans.append(Span(at, start, end - start, [block]))
            at += end - start
        ids = torch.tensor([[id for _, start, end in pieces for id in IDS[start:end]]])
        places = torch.tensor([[place for _, start, end in pieces for place in range(start, end)]])
        step = PagedStep.of(cache, spans, torch.device("cpu"))
        with torch.no_grad(), paged_attention(model, step):
            if adapters is None:
                logits.append(model(ids, position_ids=places, use_cache=False).logits[0])
            else:
                with adapters.using([(name, at)]):
                    logits.append(model(ids, position_ids=places, use_cache=False).logits[0])
    return torch.cat(logits)


def wanted_logits(model, adapters=None, name=""):
    """The logits of three of the eleven tokens in the second of these steps, when nobody asks for more."""
    cache = KeyValues(4)
    steps = [[Span(0, 0, 4, [1])], [Span(0, 4, 3, [1]), Span(3, 0, 7, [2]), Span(10, 0, 1, [3])]]
    for spans in steps:
        step = PagedStep.of(cache, spans, torch.device("cpu"), length=sum(span.count for span in spans) + 1)
        places = [place for span in spans for place in range(span.start, span.end)] + [0]
        ids = [IDS[place] for place in places]
        if len(spans) > 1:
            step.wanted = Wanted(torch.tensor([2, 8, 9]), [Span(0, 6, 1, [1]), Span(1, 5, 2, [2])])
        with torch.no_grad(), paged_attention(model, step), contextlib.ExitStack() as stack:
            if adapters is not None:
                wanted = [(name, 1), ("", 2)] if len(spans) > 1 else None
                stack.enter_context(adapters.using([(name, spans[0].count), ("", len(ids) - spans[0].count)], wanted))
            kept = torch.tensor([2, 8, 9]) if len(spans) > 1 else 0
            inputs = {"position_ids": torch.tensor([places]), "use_cache": False, "logits_to_keep": kept}
            logits = model(torch.tensor([ids]), **inputs).logits[0]
    return logits


def make_lean(model, is_packed):
    take_lean_forms(model)
    assert not is_packed or pack(model) is not None


def lean_layers(model):
    return [module for module in model.modules() if isinstance(vars(module).get("forward"), LeanLayer)]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Llama", {}),
        ("Llama", {"attention_bias": True, "rope_theta": 5e5}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 8}),
        ("Mistral", {"head_dim": 16, "sliding_window": 3}),
        ("Olmo", {}),  # norms without weights
    ],
)
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_paged_pass_gives_the_same_logits(family, settings, is_packed):
    made = model(family, **settings)
    before = paged_logits(made)
    make_lean(made, is_packed)
    assert len(lean_layers(made)) == 2
    assert torch.allclose(paged_logits(made), before, atol=1e-5)


@pytest.mark.parametrize(("family", "settings"), [("Llama", {}), ("Mistral", {"sliding_window": 3})])
@pytest.mark.parametrize("is_packed", [False, True])
def test_the_last_layer_computes_only_what_is_wanted(family, settings, is_packed, monkeypatch):
    made = model(family, **settings)
    before = wanted_logits(made)
    make_lean(made, is_packed)
    rows = []
    down = made.model.layers[1].mlp.down_proj
    own = down.forward
    monkeypatch.setitem(vars(down), "forward", lambda x: rows.append(x.shape[-2]) or own(x))
    assert torch.allclose(wanted_logits(made), before, atol=1e-5)
    assert rows == [5, 3]


@pytest.mark.parametrize("part", ["post_attention_layernorm", "self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"])
def test_an_adapter_changes_its_own_of_the_wanted_tokens(part):
    plain = model()
    lean = copy.deepcopy(plain)
    make_lean(lean, is_packed=True)
    logits = []
    for made in (plain, lean):
        adapters = AdapterBatch(made)
        adapters.add("more", {f"model.layers.1.{part}": lambda x, y: y.mul_(1.5).add_(0.1)})
        before = wanted_logits(made)
        logits.append(wanted_logits(made, adapters, "more"))
        assert not torch.allclose(logits[-1][0], before[0], atol=1e-3)
        assert torch.allclose(logits[-1][1:], before[1:], atol=1e-5)
    assert torch.allclose(*logits, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Granite", {"residual_multiplier": 0.5}),  # Llama's parts, another formula
        ("Glm", {"head_dim": 8}),  # rotary positions by pairs
        ("Ministral3", {"head_dim": 8}),  # queries far from the start are scaled
        ("Gemma2", {"head_dim": 8}),  # norms by 1 + weight, four in a layer
    ],
)
def test_layers_of_another_formula_keep_their_own_forward(family, settings):
    made = model(family, **settings)
    before = paged_logits(made)
    take_lean_forms(made)
    assert not lean_layers(made)
    assert torch.allclose(paged_logits(made), before, atol=1e-5)


def test_bf16_is_taken_by_the_formula_in_fp32():
    made, other = model().bfloat16(), model("Granite", residual_multiplier=0.99).bfloat16()  # less than a rounding off
    before = paged_logits(made).float()
    take_lean_forms(made)
    take_lean_forms(other)
    assert (len(lean_layers(made)), len(lean_layers(other))) == (2, 0)
    assert torch.allclose(paged_logits(made).float(), before, atol=0.02)


def test_another_precision_keeps_its_own_forward():
    assert take_lean_forms(model().double()) == []


def test_outside_of_a_paged_pass_the_model_runs_as_ever():
    made = model()
    with torch.no_grad():
        before = made(torch.tensor([IDS])).logits
        take_lean_forms(made)
        assert torch.allclose(made(torch.tensor([IDS])).logits, before, atol=1e-5)


@pytest.mark.parametrize(
    "path",
    ["input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm", "self_attn.q_proj",
     "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
)  # fmt: skip
def test_an_adapter_of_any_part_is_applied(path):
    plain = model("Qwen3", head_dim=8)
    lean = copy.deepcopy(plain)
    make_lean(lean, is_packed=True)
    logits = []
    for made in (plain, lean):
        adapters = AdapterBatch(made)
        adapters.add("more", {f"model.layers.1.{path}": lambda x, y: y.mul_(1.5).add_(0.1)})
        logits.append(paged_logits(made, adapters, "more"))
        assert not torch.allclose(logits[-1], paged_logits(made), atol=1e-3)
    assert torch.allclose(*logits, atol=1e-5)


def test_put_back_gives_the_model_back():
    made = model()
    before = paged_logits(made)
    put_back(take_lean_forms(made))
    assert torch.equal(paged_logits(made), before)
    assert not any("forward" in vars(module) for module in made.modules())


def test_a_copy_computes_what_the_model_computes():
    made = model()
    take_lean_forms(made)
    assert torch.allclose(paged_logits(copy.deepcopy(made)), paged_logits(made), atol=1e-6)
