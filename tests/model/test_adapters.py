import json
import shutil

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from llmforge.config.schema import FinetuneConfig
from llmforge.data.example import Encoded
from llmforge.errors import RecipeError
from llmforge.model.adapter_files import check_adapter
from llmforge.model.adapters import (
    add_lora,
    add_peft,
    attach_adapter,
    attach_adapters,
    count_parameters,
    loraplus_groups,
    train_all,
    train_some_layers,
)
from llmforge.model.eva import init_eva
from llmforge.model.pissa import save_adapter
from llmforge.model.weights import fingerprint

IDS = torch.tensor([[1, 20, 30, 40, 50, 2, 60]])


@pytest.fixture
def base(tiny_model_dir):
    return lambda **settings: AutoModelForCausalLM.from_pretrained(tiny_model_dir, **settings)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def shaken(model, seed=1):
    """The model after its trainable weights moved."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_the_count_of_a_6b_model_with_fused_projections_is_exact():
    # Seed 4: r x (in + out) per fused projection of ChatGLM3-6B is 8 x (4096 + 4608), in 28 layers.
    with torch.device("meta"):
        layer = torch.nn.Module()
        layer.query_key_value = torch.nn.Linear(4096, 4608, bias=True)
        model = torch.nn.Module()
        model.layers = torch.nn.ModuleList([layer])
        model.get_output_embeddings = lambda: None
        adapted = peft.inject_adapter_in_model(peft.LoraConfig(r=8, target_modules=["query_key_value"]), model)
    assert count_parameters(adapted)[0] * 28 == 1_949_696


def test_all_weights_learn_and_tied_ones_count_once(base):
    model = base(tie_word_embeddings=True)
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    trainable, total = count_parameters(train_all(model, FinetuneConfig(finetuning_type="full"), []))
    assert trainable == total == sum(p.numel() for p in base().parameters()) - 384 * 32


def test_freezing_counts_from_the_end_or_the_start_and_takes_modules(base):
    def learning(**keys):
        model = train_some_layers(base(), FinetuneConfig(finetuning_type="freeze", **keys), [])
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    assert all(name.startswith("model.layers.1.") for name in learning(freeze_trainable_layers=1))
    assert all(name.startswith("model.layers.0.") for name in learning(freeze_trainable_layers=-1))
    assert learning(freeze_trainable_layers=2, freeze_trainable_modules=["mlp"]) == {
        f"model.layers.{i}.mlp.{part}_proj.weight" for i in (0, 1) for part in ("gate", "up", "down")
    }
    assert "model.norm.weight" in learning(freeze_trainable_layers=1, freeze_extra_modules=["norm"])
    with pytest.raises(RecipeError, match=r"freeze_trainable_modules: 'mpl' is no module.*Did you mean 'mlp'"):
        learning(freeze_trainable_modules=["mpl"])
    with pytest.raises(RecipeError, match=r"freeze_extra_modules: 'embed_token'.*'embed_tokens'"):
        learning(freeze_extra_modules=["embed_token"])


def test_lora_settings_become_those_of_peft(base):
    keys = {"lora_rank": 4, "lora_dropout": 0.1, "use_rslora": True, "lora_target": ["q_proj", "mlp.up_proj"]}
    model = add_lora(base(), FinetuneConfig(**keys, additional_target=["norm"]), [])
    config = model.active_peft_config
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (4, 8, 0.1, True)
    assert config.target_modules == ["mlp.up_proj", "q_proj"]  # sorted, so that the file is the same every time
    assert config.modules_to_save == ["norm"]
    assert count_parameters(model)[0] == 2 * 4 * ((32 + 32) + (32 + 64)) + 5 * 32  # and all five norms


def test_w_pack_stands_for_the_split_projections(base):
    model = add_lora(base(), FinetuneConfig(lora_target=["W_pack"]), [])
    assert model.active_peft_config.target_modules == ["k_proj", "q_proj", "v_proj"]


def test_a_wrong_target_is_answered_with_the_nearest(base):
    with pytest.raises(RecipeError, match=r"lora_target: 'q_prj'.*Did you mean 'q_proj'"):
        add_lora(base(), FinetuneConfig(lora_target=["q_prj"]), [])
    with pytest.raises(RecipeError, match=r"additional_target: 'embed'"):
        add_lora(base(), FinetuneConfig(additional_target=["embed"]), [])
    with pytest.raises(RecipeError, match="say it once"):
        add_lora(base(), FinetuneConfig(lora_target=["q_proj"], additional_target=["q_proj"]), [])


def test_lora_weights_are_fp32_over_a_16_bit_base(base):
    model = add_lora(base(dtype=torch.bfloat16), FinetuneConfig(additional_target=["norm"]), [])
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("init", [True, "gaussian", "pissa", "pissa_niter_4", "olora", "orthogonal"])
def test_a_fresh_adapter_leaves_the_logits_as_they_are(base, init):
    model = add_lora(base(), FinetuneConfig(lora_init=init, lora_rank=4), [])
    torch.testing.assert_close(logits(model), logits(base()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("init", ["pissa_niter_4", "olora"])
@pytest.mark.parametrize("convert", [True, False])
def test_a_pissa_adapter_read_back_gives_the_trained_logits(base, tmp_path, init, convert):
    finetune = FinetuneConfig(lora_init=init, lora_rank=4, pissa_convert=convert)
    model = shaken(add_lora(base(), finetune, []))
    save_adapter(model, tmp_path / "adapter", finetune)
    torch.manual_seed(99)  # reading must not depend on where the random numbers stand
    torch.testing.assert_close(
        logits(attach_adapters(base(), [tmp_path / "adapter"])), logits(model), atol=1e-5, rtol=0
    )
    if convert:  # any other tool reads it as plain LoRA
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 16, True)


def test_eva_spans_what_the_layers_see_and_leaves_the_logits_as_they_are(base):
    model = add_lora(base(), FinetuneConfig(lora_init="eva", lora_rank=4), [])
    rows = [Encoded([1, 20 + i, 30, 40 + i, 2], [-100] * 5) for i in range(20)]
    init_eva(model, rows)
    weight = model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(4), atol=1e-4, rtol=0)  # principal directions
    torch.testing.assert_close(logits(model), logits(base()), atol=1e-5, rtol=0)
    assert (
        sum(p.numel() for p in model.parameters() if p.requires_grad)
        == count_parameters(add_lora(base(), FinetuneConfig(lora_rank=4), []))[0]
    )
    with pytest.raises(RecipeError, match="at least lora_rank = 4 tokens"):
        init_eva(model, rows[:0])


def test_a_tied_embedding_that_learns_stays_the_output_head(base):
    model = base(tie_word_embeddings=True)
    model.tie_weights()
    model = shaken(add_lora(model, FinetuneConfig(lora_target=["q_proj"], additional_target=["embed_tokens"]), []))
    assert torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    assert model.get_input_embeddings().weight.requires_grad


def saved(model, path):
    model.save_pretrained(path)
    return path


def test_the_last_adapter_learns_on_and_the_ones_before_it_are_merged(base, tmp_path):
    one = saved(shaken(add_lora(base(), FinetuneConfig(lora_rank=4), []), 1), tmp_path / "one")
    two = saved(shaken(add_lora(base(), FinetuneConfig(lora_rank=2), []), 2), tmp_path / "two")
    both = logits(attach_adapters(base(), [one, two]))
    model = add_lora(base(), FinetuneConfig(lora_rank=8), [str(one), str(two)])
    assert model.active_peft_config.r == 2
    assert count_parameters(model)[0] > 0
    torch.testing.assert_close(logits(model), both, atol=1e-5, rtol=0)
    fresh = add_lora(base(), FinetuneConfig(lora_rank=8, create_new_adapter=True), [str(one), str(two)])
    assert fresh.active_peft_config.r == 8
    torch.testing.assert_close(logits(fresh), both, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("LOHA", {"r": 2}), ("ia3", {}), ("VERA", {"r": 2}), ("PREFIX_TUNING", {"num_virtual_tokens": 3}), ("OFT", {})],
)
def test_other_peft_methods_go_by_name(base, name, kwargs):
    finetune = FinetuneConfig(
        finetuning_type="peft", peft_type=name, peft_kwargs=kwargs, lora_target=["q_proj", "v_proj"]
    )
    model = add_peft(base(), finetune, [])
    assert model.active_peft_config.peft_type.value == name.upper()
    assert 0 < count_parameters(model)[0] < count_parameters(base())[0]
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()


def test_a_wrong_peft_method_or_argument_is_answered_with_the_nearest(base):
    for keys, message in [
        ({"peft_type": "LOHO"}, "Did you mean 'LOHA'"),
        ({"peft_type": "LOHA", "peft_kwargs": {"alfa": 3}}, "LOHA has no argument 'alfa'.*Did you mean 'alpha'"),
        ({"peft_type": "LOHA", "peft_kwargs": {"r": -1}}, "peft refuses these settings"),
        ({}, "peft_type: None is not known"),
    ]:
        with pytest.raises(RecipeError, match=message):
            add_peft(base(), FinetuneConfig(finetuning_type="peft", **keys), [])


def test_loraplus_lets_b_learn_faster(base):
    finetune = FinetuneConfig(lora_target=["q_proj", "embed_tokens"], loraplus_lr_ratio=16, loraplus_lr_embedding=1e-6)
    model = add_lora(base(), finetune, [])
    groups = loraplus_groups(model, finetune, lr=1e-4, weight_decay=0.1)
    rates = {
        rate: sum(p.numel() for g in groups if g["lr"] == rate for p in g["params"]) for rate in (1e-4, 16e-4, 1e-6)
    }
    assert rates == {1e-4: 2 * 8 * 32, 16e-4: 2 * 8 * 32, 1e-6: 8 * (384 + 32)}


def test_several_adapters_are_served_by_name(base, tmp_path):
    one = saved(shaken(add_lora(base(), FinetuneConfig(), []), 1), tmp_path / "one")
    two = saved(shaken(add_lora(base(), FinetuneConfig(), []), 2), tmp_path / "two")
    model = attach_adapter(attach_adapter(base(), one, "first"), two, "second")
    assert model.active_adapter == "first"
    torch.testing.assert_close(logits(model), logits(attach_adapters(base(), [one])))
    model.set_adapter("second")
    torch.testing.assert_close(logits(model), logits(attach_adapters(base(), [two])))
    with pytest.raises(RecipeError, match="the name 'first' is taken"):
        attach_adapter(model, one, "first")
    with pytest.raises(RecipeError, match="leave dots out"):
        attach_adapter(model, one, "v1.2")
    pissa = saved(add_lora(base(), FinetuneConfig(lora_init="pissa"), []), tmp_path / "pissa")
    with pytest.raises(RecipeError, match="takes a part out of the base"):
        attach_adapter(model, pissa, "third")


def test_an_adapter_of_another_base_is_refused(base, tmp_path, tiny_model_dir):
    LlamaForCausalLM(
        LlamaConfig(vocab_size=384, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    ).save_pretrained(tmp_path / "wide")
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    path = saved(add_lora(wide, FinetuneConfig(), []), tmp_path / "adapter")
    with pytest.raises(RecipeError, match=r"was made for another base.*down_proj is 32 x 64 in .*, the adapter has 48"):
        check_adapter(path, tiny_model_dir)
    assert check_adapter(path, tmp_path / "wide") == path

    own = saved(add_lora(base(), FinetuneConfig(), []), tmp_path / "own")
    (own / "manifest.json").write_text(json.dumps({"base_fingerprint": fingerprint(tiny_model_dir)}))
    assert check_adapter(own, tiny_model_dir) == own
    (own / "manifest.json").write_text(json.dumps({"base_fingerprint": fingerprint(tmp_path / "wide")}))
    with pytest.raises(RecipeError, match="was trained on another base"):
        check_adapter(own, tiny_model_dir)


def test_damaged_adapters_are_named(base, tmp_path, tiny_model_dir):
    path = saved(add_lora(base(), FinetuneConfig(), []), tmp_path / "adapter")

    def broken(name, change):
        copy = shutil.copytree(path, tmp_path / name)
        change(copy)
        with pytest.raises(RecipeError) as caught:
            check_adapter(copy, tiny_model_dir)
        return str(caught.value)

    assert "has no adapter_config.json" in broken("a", lambda copy: (copy / "adapter_config.json").unlink())
    assert "adapter_config.json: damaged" in broken("b", lambda copy: (copy / "adapter_config.json").write_text("{"))
    weights = "adapter_model.safetensors"
    assert f"{weights}: weight file is missing" in broken("c", lambda copy: (copy / weights).unlink())
    cut = broken("d", lambda copy: (copy / weights).write_bytes((copy / weights).read_bytes()[:-7]))
    assert f"{weights}: damaged or cut short" in cut
