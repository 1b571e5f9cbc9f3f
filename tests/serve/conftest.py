"""A run folder of a tiny model, and one server of it for all tests of a file."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from live_server import Server


@pytest.fixture(scope="session")
def run_dir(tiny_model_dir, tmp_path_factory):
    """What training leaves: an adapter, the recipe and a manifest that names base and template."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False))
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    adapted.save_pretrained(folder)
    (folder / "manifest.json").write_text(
        json.dumps({"base_model": str(tiny_model_dir), "base_folder": str(tiny_model_dir), "template": "chatml"})
    )
    (folder / "recipe.yaml").write_text(
        f"model_name_or_path: {tiny_model_dir}\ntemplate: chatml\nfinetuning_type: lora\ndataset: [none.json]\n"
    )
    return folder


@pytest.fixture(scope="module")
def server(run_dir):
    with Server.of_run(run_dir, max_body_bytes=1 << 20) as server:
        yield server
