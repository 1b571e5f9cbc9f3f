"""Adapters mixed in one pass give what PEFT gives for each of them alone."""

from __future__ import annotations

import json

import peft
import pytest
import torch
import transformers

from llmforge.errors import RecipeError
from llmforge.infer.local import low_rank, packed
from llmforge.infer.local.adapter_updates import OwnLayer, read_updates
from llmforge.infer.local.lora_batch import AdapterBatch
from llmforge.infer.local.low_rank import Directed, LowRank

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROWS = [[5, 9, 30, 44], [7, 8, 101], [60, 61, 62, 63, 64], [5, 9, 30, 44]]
LORA = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ALL},
    "rslora": {"r": 8, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "patterns": {
        "r": 2,
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 5},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 7, "down_proj": 1},
    },
    "dora": {"r": 3, "target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "head": {"r": 2, "target_modules": ["lm_head", "o_proj"]},
    "embeddings": {"r": 2, "target_modules": ["embed_tokens", "v_proj"]},
    "saved": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    "b_bias": {"r": 2, "target_modules": ["up_proj"], "lora_bias": True},
    "tokens": {"r": 2, "target_modules": ["up_proj"], "trainable_token_indices": {"embed_tokens": [5, 61]}},
}
OTHER = {
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": peft.LoHaConfig(r=2, target_modules=["q_proj"]),
    "lokr": peft.LoKrConfig(r=2, target_modules=["q_proj", "up_proj"]),
    "oft": peft.OFTConfig(oft_block_size=4, target_modules=["q_proj"]),
    "vera": peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "adalora": peft.AdaLoraConfig(init_r=4, target_modules=["q_proj"], total_step=10),
    "norms": peft.LNTuningConfig(target_modules=["input_layernorm", "norm"]),
}


def config_of(name):
    return peft.LoraConfig(task_type="CAUSAL_LM", **LORA[name]) if name in LORA else OTHER[name]


def random_base(tiny_model_dir):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model


def save_random(model, config, folder):
    """An adapter whose every weight is random, so that none of its parts can be left out unnoticed."""
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(len(str(folder)))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    wrapped.save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tiny_model_dir, tmp_path_factory):
    root = tmp_path_factory.mktemp("mixed")
    for name in (*LORA, *OTHER):
        save_random(random_base(tiny_model_dir), config_of(name), root / name)
    return root


@pytest.fixture(scope="module")
def base(tiny_model_dir):
    return random_base(tiny_model_dir)


def by_peft(tiny_model_dir, folder, ids):
    model = peft.PeftModel.from_pretrained(random_base(tiny_model_dir), folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def flat_logits(base, batch, names, kept=None):
    """One pass over all rows laid end to end, each seeing itself alone."""
    ids = [id for row in ROWS for id in row]
    positions = [place for row in ROWS for place in range(len(row))]
    which = torch.tensor([number for number, row in enumerate(ROWS) for _ in row])
    mask = (which[:, None] == which) & torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    spans = [(name, len(row)) for name, row in zip(names, ROWS, strict=True)]
    arguments = {} if kept is None else {"logits_to_keep": torch.tensor(kept)}
    head_rows = None if kept is None else [(name, 1) for name in names]
    with torch.no_grad(), batch.using(spans, head_rows):
        return base(
            input_ids=torch.tensor([ids]),
            position_ids=torch.tensor([positions]),
            attention_mask=mask[None, None],
            use_cache=False,
            **arguments,
        ).logits[0]


@pytest.mark.parametrize("name", [*LORA, *OTHER])
def test_an_adapter_gives_what_peft_gives_and_leaves_the_rows_of_the_base_alone(name, folders, base, tiny_model_dir):
    batch = AdapterBatch(base)
    batch.add("x", read_updates(base, folders / name))
    logits = flat_logits(base, batch, ["", "x", "x", ""])
    with torch.no_grad():
        plain = [base(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in ROWS]
    expected = [plain[0], *(by_peft(tiny_model_dir, folders / name, row) for row in ROWS[1:3]), plain[3]]
    assert (expected[1] - plain[1]).abs().max() > 0.01  # the adapter says something
    torch.testing.assert_close(logits, torch.cat(expected), atol=1e-5, rtol=1e-5)
    batch.remove("x")
    assert not any("forward" in module.__dict__ for module in base.modules())


def test_four_adapters_of_different_kinds_share_a_pass(folders, base, tiny_model_dir):
    names = ["plain", "rslora", "dora", "saved"]
    batch = AdapterBatch(base)
    for name in names:
        batch.add(name, read_updates(base, folders / name))
    kept = [3, 6, 11, 15]
    last = flat_logits(base, batch, names, kept)
    expected = [by_peft(tiny_model_dir, folders / n, row)[-1] for n, row in zip(names, ROWS, strict=True)]
    torch.testing.assert_close(last, torch.stack(expected), atol=1e-5, rtol=1e-5)
    for name in names:
        batch.remove(name)


@pytest.mark.parametrize("few_rows", [low_rank.FEW_ROWS, 3])  # 3: one text has no more, the others do
@pytest.mark.parametrize("first", ["plain", "dora"])  # of the layers that both change
def test_layers_that_are_one_product_have_adapters_too(first, few_rows, folders, tiny_model_dir, monkeypatch):
    monkeypatch.setattr(packed, "is_faster", lambda plain_s, packed_s: True)
    monkeypatch.setattr(low_rank, "FEW_ROWS", few_rows)
    base = random_base(tiny_model_dir)
    packing = packed.pack(base)
    assert packing is not None
    siblings = base.model.layers[0].self_attn.q_proj.forward.siblings
    names = ["plain", "rslora", "dora", "patterns"]  # of all of them, of two, of one with a size of its own, of all
    batch = AdapterBatch(base)
    for name in sorted(names, key=lambda name: name != first):
        batch.add(name, read_updates(base, folders / name, packing))
    logits = flat_logits(base, batch, names)
    expected = [by_peft(tiny_model_dir, folders / name, row) for name, row in zip(names, ROWS, strict=True)]
    torch.testing.assert_close(logits, torch.cat(expected), atol=1e-4, rtol=1e-4)
    for name in names:
        assert siblings.adds is not None or name != names[0]
        batch.remove(name)
    assert siblings.adds is None
    plain = random_base(tiny_model_dir)
    with torch.no_grad():
        after, before = (model(input_ids=torch.tensor([ROWS[0]]), use_cache=False).logits for model in (base, plain))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_padded_rows_have_adapters_too(folders, base, tiny_model_dir):
    batch = AdapterBatch(base)
    batch.add("head", read_updates(base, folders / "head"))
    with torch.no_grad(), batch.using([("head", 1), ("", 1)]):
        both = base(input_ids=torch.tensor([ROWS[0], ROWS[0]]), use_cache=False).logits
    with torch.no_grad():
        plain = base(input_ids=torch.tensor([ROWS[0]]), use_cache=False).logits[0]
    torch.testing.assert_close(both[0], by_peft(tiny_model_dir, folders / "head", ROWS[0]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[1], plain, atol=1e-5, rtol=1e-5)
    batch.remove("head")


def test_plain_lora_and_dora_need_no_layer_of_peft(folders, base):
    kinds = {name: {type(update) for update in read_updates(base, folders / name).values()} for name in LORA}
    assert kinds["plain"] == kinds["rslora"] == kinds["patterns"] == {LowRank}
    assert kinds["dora"] == {Directed}
    assert kinds["saved"] == kinds["embeddings"] == {OwnLayer}


def test_reading_leaves_the_base_as_it_is(folders, tiny_model_dir):
    base = random_base(tiny_model_dir)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for name in ("saved", "norms", "ia3"):
        read_updates(base, folders / name)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert base.config._attn_implementation == "sdpa"


def test_gpt2_keeps_its_matrices_the_other_way_round(tmp_path):
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 384}
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    save_random(base, config, tmp_path / "a")
    base = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base").eval()
    batch = AdapterBatch(base)
    batch.add("a", updates := read_updates(base, tmp_path / "a"))
    assert {type(update) for update in updates.values()} == {LowRank}
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad(), batch.using([("a", 1)]):
        ours = base(input_ids=ids, use_cache=False).logits
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "a").eval()(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_what_reaches_beyond_a_token_is_refused_by_name(tiny_model_dir, base, tmp_path):
    save_random(
        random_base(tiny_model_dir), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), tmp_path
    )
    with pytest.raises(RecipeError, match="PROMPT_TUNING, whose own tokens"):
        read_updates(base, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "XLORA"}, "XLORA, which cannot share"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights"),
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA, which cannot share"),
    ],
)
def test_adapters_that_others_cannot_stand_beside_are_refused(changes, message, base, tmp_path):
    settings = {"peft_type": "LORA", "r": 2, **changes}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(RecipeError, match=message):
        read_updates(base, tmp_path)


def test_rows_must_be_known(folders, base):
    batch = AdapterBatch(base)
    batch.add("a", read_updates(base, folders / "plain"))
    with pytest.raises(ValueError, match="'a' is here already"):
        batch.add("a", {})
    with pytest.raises(KeyError, match="no adapter called b"), batch.using([("b", 1)]):
        pass
    with pytest.raises(ValueError, match="got 4 rows, but the adapters of 3"), batch.using([("a", 2), ("", 1)]):
        base(input_ids=torch.tensor([ROWS[0]]))
    batch.remove("a")
