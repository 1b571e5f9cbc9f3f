import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmforge.config.load import load_recipe
from llmforge.export.merge import export
from llmforge.train.run import run


@pytest.fixture
def trained(tiny_model_dir, tmp_path):
    """Train three steps with an init of LoRA; returns the run folder."""
    rows = [{"instruction": f"Say {word}.", "input": "", "output": word} for word in ("yes", "no", "once", "twice")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))

    def train(*words):
        recipe = load_recipe(
            [
                f"model_name_or_path={tiny_model_dir}",
                "template=chatml",
                f"dataset={tmp_path / 'rows.json'}",
                f"output_dir={tmp_path / 'run'}",
                "max_steps=3",
                "lora_rank=4",
                "learning_rate=0.01",
                "per_device_train_batch_size=4",
                "device=cpu",
                *words,
            ]
        )
        return run(recipe)

    return train


@pytest.mark.parametrize("convert", ["false", "true"])
def test_a_run_from_pissa_is_exported_with_what_it_learned(trained, tiny_model_dir, convert):
    folder = trained("lora_init=pissa", f"pissa_convert={convert}")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == ((8, True) if convert == "true" else (4, "pissa"))
    merged = AutoModelForCausalLM.from_pretrained(export(load_recipe([str(folder)], "export")))
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    change = merged.model.layers[0].self_attn.q_proj.weight - base.model.layers[0].self_attn.q_proj.weight
    assert 1e-4 < change.abs().max() < 0.5


def test_a_run_from_eva_starts_from_the_data(trained):
    folder = trained("lora_init=eva", "learning_rate=1e-8")
    a = load_file(folder / "adapter_model.safetensors")[
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    ]
    torch.testing.assert_close(a @ a.T, torch.eye(4), atol=1e-3, rtol=0)
