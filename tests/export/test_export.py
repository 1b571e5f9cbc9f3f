import json
import os
import subprocess
import sys
from dataclasses import replace

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmforge.config.load import load_recipe
from llmforge.errors import RecipeError, RunError
from llmforge.export.command import main
from llmforge.export.merge import export, export_dir
from llmforge.runs import read_manifest


@pytest.fixture
def adapter(tiny_model_dir, tmp_path):
    """Make an adapter folder with random weights large enough to change every logit."""

    def make(name="adapter", seed=1, **settings):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        config = peft.LoraConfig(
            task_type="CAUSAL_LM", **{"r": 4, "target_modules": ["q_proj", "down_proj"], **settings}
        )
        model = peft.get_peft_model(model, config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def recipe_of(model, adapters=(), *more):
    words = [f"model_name_or_path={model}", "template=chatml", *more]
    if adapters:
        words.append(f"adapter_name_or_path=[{','.join(map(str, adapters))}]")
    return load_recipe(words, "export")


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


IDS = [1, 20, 30, 40, 50, 2, 60]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "lora_alpha": 7},
        {"use_dora": True},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"init_lora_weights": "olora"},
    ],
    ids=["lora", "rslora", "dora", "modules_to_save", "embedding", "olora"],
)
def test_merged_logits_equal_those_of_base_and_adapter(tiny_model_dir, adapter, settings, capsys):
    path = adapter(**settings)
    folder = export(recipe_of(tiny_model_dir, [path]))
    merged = AutoModelForCausalLM.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    plain = logits(base, IDS)
    wanted = logits(peft.PeftModel.from_pretrained(base, path), IDS)
    assert (logits(merged, IDS) - wanted).abs().max() < 1e-5
    assert (plain - wanted).abs().max() > 1e-3  # the adapter does something
    assert "max difference" in capsys.readouterr().out


def test_two_adapters_are_added_one_after_the_other(tiny_model_dir, adapter, tmp_path):
    first, second = adapter("one", 1), adapter("two", 2)
    folder = export(recipe_of(tiny_model_dir, [first, second], f"export_dir={tmp_path / 'out'}"))
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model = peft.PeftModel.from_pretrained(model, first).merge_and_unload()
    model = peft.PeftModel.from_pretrained(model, second)
    assert (logits(AutoModelForCausalLM.from_pretrained(folder), IDS) - logits(model, IDS)).abs().max() < 1e-5


def test_a_tied_model_stays_tied_when_its_embedding_learned(tiny_model_dir, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, tie_word_embeddings=True)
    base.tie_weights()
    base.save_pretrained(tmp_path / "tied")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "tied" / name).write_bytes((tiny_model_dir / name).read_bytes())
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens"],
        ensure_weight_tying=True,
    )
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    wanted = logits(model, IDS)
    model.save_pretrained(tmp_path / "adapter")
    folder = export(recipe_of(tmp_path / "tied", [tmp_path / "adapter"]))
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert (logits(merged, IDS) - wanted).abs().max() < 1e-5
    assert merged.config.tie_word_embeddings


def test_the_folder_holds_what_a_server_needs(tiny_model_dir, adapter):
    folder = export(recipe_of(tiny_model_dir, [adapter()], "export_dtype=bfloat16"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "你好"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2]
    manifest = read_manifest(folder)
    assert manifest["kind"] == "export"
    assert manifest["template"] == "chatml"
    assert manifest["dtype"] == "bfloat16"
    assert manifest["verification"]["prompt_ids_equal"]
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def test_export_writes_shards_with_an_index(tiny_model_dir, adapter, monkeypatch):
    recipe = recipe_of(tiny_model_dir, [adapter()])
    folder = export(replace(recipe, export=replace(recipe.export, export_size=5e-5)))  # 50 kB
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(shards) > 2
    assert set(index["weight_map"].values()) == set(shards)


def test_a_model_without_adapters_is_written_as_it_is(tiny_model_dir, tmp_path):
    folder = export(recipe_of(tiny_model_dir, [], f"export_dir={tmp_path / 'out'}"))
    assert (folder / "model.safetensors").read_bytes() == (tiny_model_dir / "model.safetensors").read_bytes()


def test_an_earlier_export_is_replaced_and_anything_else_refused(tiny_model_dir, adapter, tmp_path):
    recipe = recipe_of(tiny_model_dir, [adapter()])
    assert export(recipe) == export(recipe)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="holds files that are no export"):
        export(recipe_of(tiny_model_dir, [adapter()], f"export_dir={tmp_path / 'mine'}"))


def test_the_default_place_is_the_folder_export_in_the_run(tiny_model_dir, adapter):
    path = adapter()
    assert export_dir(recipe_of(tiny_model_dir, [path])) == path / "export"
    with pytest.raises(RecipeError, match="export_dir: missing"):
        export_dir(recipe_of(tiny_model_dir))


def test_prompt_tuning_cannot_be_merged_and_the_reason_is_said(tiny_model_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).save_pretrained(
        tmp_path / "prefix"
    )
    with pytest.raises(RecipeError, match=r"PREFIX_TUNING.*cannot be merged"):
        export(recipe_of(tiny_model_dir, [tmp_path / "prefix"]))


def test_a_quantised_base_is_refused(tiny_model_dir, adapter, tmp_path):
    folder = tmp_path / "gptq"
    folder.mkdir()
    for path in tiny_model_dir.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(RecipeError, match="is quantised \\(gptq\\)"):
        export(recipe_of(folder, [adapter()]))


def test_a_chat_template_that_renders_other_ids_leaves_nothing_behind(tiny_model_dir, adapter, monkeypatch, tmp_path):
    from llmforge.data.templates.template import Template

    monkeypatch.setattr(
        Template, "jinja", lambda self, tokenizer: "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(RunError, match="gives other ids than training for fixed 1, from token 0"):
        export(recipe_of(tiny_model_dir, [adapter()], f"export_dir={tmp_path / 'out'}"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_the_command_says_where_the_result_is_and_what_to_try(tiny_model_dir, adapter, capsys):
    path = adapter()
    words = [f"model_name_or_path={tiny_model_dir}", f"adapter_name_or_path={path}", "template=chatml"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"written: {path / 'export'}" in out
    assert f"forge-cli chat model_name_or_path={path / 'export'}" in out


def test_an_export_prints_its_numbers_and_nothing_from_libraries(tiny_model_dir, adapter):
    words = [f"model_name_or_path={tiny_model_dir}", "template=chatml", f"adapter_name_or_path={adapter()}"]
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    done = subprocess.run(
        [sys.executable, "-m", "llmforge.cli", "export", *words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    said = [line.split()[0] for line in done.stdout.splitlines()]
    assert said == ["prompt", "logits,", "greedy", "written:", "next:", "forge-cli", "forge-cli"]
    noted = [line.split()[0] for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert noted == ["reading", "letting", "writing"]


def test_who_may_read_the_folder_may_read_the_weights(tiny_model_dir, adapter):
    folder = export(recipe_of(tiny_model_dir, [adapter()]))
    assert {path.stat().st_mode & 0o666 for path in folder.iterdir()} == {folder.stat().st_mode & 0o666}


def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_read(tiny_model_dir, adapter, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"export_dir: .*/file/out cannot be made: (Not a directory|File exists)"):
        export(recipe_of(tiny_model_dir, [adapter()], f"export_dir={tmp_path}/file/out"))


def test_a_full_disk_ends_in_one_line_and_leaves_nothing(tiny_model_dir, adapter, tmp_path):
    path = adapter()
    script = (  # the largest file this process may write stands in for the end of the disk
        "import resource, signal, sys; from llmforge.cli import main; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); sys.exit(main(sys.argv[1:]))"
    )
    words = [f"model_name_or_path={tiny_model_dir}", "template=chatml", f"adapter_name_or_path={path}"]
    done = subprocess.run(
        [sys.executable, "-c", script, "export", *words, f"export_dir={tmp_path}/out/full"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "could not be written" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
