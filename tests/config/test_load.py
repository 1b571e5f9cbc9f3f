"""Reading recipes: values, files, overrides, references, paths, where a value came from."""

import io
import json
import sys
from pathlib import Path

import pytest

from llmforge.config.dump import spoken
from llmforge.config.load import dump_recipe, load_recipe
from llmforge.config.names import METRICS
from llmforge.config.schema import Recipe
from llmforge.errors import RecipeError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "FORGE_API_KEY", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def load(text: str = "", *words: str, command: str = "show") -> Recipe:
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    return load_recipe(["recipe.yaml", *words] if text else list(words), command)


@pytest.mark.parametrize("spelling", ["1e-4", "1.0e-4", "0.0001", "1E-4", '"1e-4"', "+1.e-4"])
def test_every_spelling_of_a_number_is_one(spelling):
    assert load(f"learning_rate: {spelling}\n").train.learning_rate == 1e-4


@pytest.mark.parametrize("spelling", ["a,b", "a, b", "' a , b '", "[a, b]", "\n- a\n- b", "[a, b,]"])
def test_a_list_may_be_written_with_commas_or_as_yaml(spelling):
    assert load(f"dataset: {spelling}\n").data.dataset == ["a", "b"]


def test_a_dataset_may_be_described_in_place():
    recipe = load("dataset:\n- {file_name: a.json, formatting: sharegpt}\n- demo\n")
    assert recipe.data.dataset == [{"file_name": "a.json", "formatting": "sharegpt"}, "demo"]


@pytest.mark.parametrize(
    ("line", "value"),
    [("run_name: 007", "007"), ("run_name: 2024-01-01", "2024-01-01"), ("run_name: 1:30", "1:30"),
     ("run_name: no", "no"),
     ("run_name: 1.10", "1.10"), ("model_revision: 0x1f", "0x1f"), ("default_system: ''", "")],
)  # fmt: skip
def test_text_keeps_its_spelling(line, value):
    recipe = load(line + "\n")
    assert value in (recipe.train.run_name, recipe.model.model_revision, recipe.data.default_system)


def test_no_is_a_strategy_and_not_false():
    recipe = load("eval_strategy: no\nsave_strategy: 'no'\n")
    assert (recipe.train.eval_strategy, recipe.train.save_strategy) == ("no", "no")
    assert load("", "eval_strategy=false").train.eval_strategy == "no"


def test_null_sets_a_key_back_to_its_default():
    recipe = load("resume_from_checkpoint: null\nlora_rank: null\ndataset: null\nreport_to: none\n")
    assert recipe.train.resume_from_checkpoint is None
    assert recipe.finetune.lora_rank == 8
    assert recipe.data.dataset == []
    assert recipe.train.report_to == ["none"]


def test_null_is_a_value_where_the_key_allows_it():
    assert load("enable_thinking: null\n").data.enable_thinking is None


def test_unions_take_the_type_that_says_most():
    recipe = load("launch: {nproc: 2}\nlora_init: pissa_niter_16\nrope_scaling: {rope_type: yarn, factor: 4.0}\n")
    assert recipe.launch.nproc == 2
    assert recipe.finetune.lora_init == "pissa_niter_16"
    assert recipe.model.rope_scaling == {"rope_type": "yarn", "factor": 4.0}
    assert load("", "launch.nproc=auto", "lora_init=false", "rope_scaling=linear").finetune.lora_init is False


def test_a_byte_order_mark_and_windows_line_ends_are_no_problem():
    Path("recipe.yaml").write_bytes(b"\xef\xbb\xbfstage: sft\r\nlora_rank: 4\r\n")
    assert load_recipe(["recipe.yaml"], "show").finetune.lora_rank == 4


def test_a_recipe_may_be_json():
    Path("recipe.json").write_text(json.dumps({"lora_rank": 4, "dataset": ["a"], "learning_rate": 3e-6}, indent="\t"))
    recipe = load_recipe(["recipe.json"], "show")
    assert (recipe.finetune.lora_rank, recipe.data.dataset, recipe.train.learning_rate) == (4, ["a"], 3e-6)


def test_standard_input_is_a_recipe(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("lora_rank: 4\n"))
    recipe = load_recipe(["-"], "show")
    assert recipe.finetune.lora_rank == 4
    assert recipe.origins["lora_rank"].text == "standard input line 1"


def test_later_files_and_the_command_line_win():
    Path("base.yaml").write_text("lora_rank: 1\nseed: 1\ncutoff_len: 1\nmax_steps: 1\n")
    Path("child.yaml").write_text("extends: base.yaml\nseed: 2\ncutoff_len: 2\nmax_steps: 2\n")
    Path("more.yaml").write_text("cutoff_len: 3\nmax_steps: 3\n")
    recipe = load_recipe(["child.yaml", "more.yaml", "max_steps=4"], "show")
    assert (recipe.finetune.lora_rank, recipe.train.seed, recipe.data.cutoff_len, recipe.train.max_steps) == (
        1,
        2,
        3,
        4,
    )
    assert recipe.origins["lora_rank"].text == "base.yaml line 1"
    assert recipe.origins["max_steps"].text == "command line"
    assert "learning_rate" not in recipe.origins


def test_extends_is_relative_to_its_file():
    Path("deep/er").mkdir(parents=True)
    Path("deep/base.yaml").write_text("lora_rank: 4\n")
    Path("deep/er/recipe.yaml").write_text("extends: [../base.yaml]\nseed: 3\n")
    assert load_recipe(["deep/er/recipe.yaml"], "show").finetune.lora_rank == 4


def test_mappings_merge():
    recipe = load("finetuning_type: peft\npeft_type: LOHA\npeft_kwargs: {r: 4, alpha: 8}\n", "peft_kwargs.r=2")
    assert recipe.finetune.peft_kwargs == {"r": 2, "alpha": 8}


@pytest.mark.parametrize(
    "words",
    [["lora_rank=4", "do_eval=true", "run_name=a=b"], ["--lora_rank", "4", "--do_eval", "--run_name", "a=b"],
     ["--lora-rank=4", "--do-eval", "true", "--run-name=a=b"]],
)  # fmt: skip
def test_overrides_have_three_spellings(words):
    recipe = load("", *words)
    assert (recipe.finetune.lora_rank, recipe.train.do_eval, recipe.train.run_name) == (4, True, "a=b")


def test_negative_numbers_may_follow_an_option():
    assert load("", "--freeze_trainable_layers", "-2").finetune.freeze_trainable_layers == -2


def test_text_that_is_no_yaml_is_text_on_the_command_line():
    assert load("", "default_system=You are: [kind").data.default_system == "You are: [kind"


def test_references_name_other_keys_given_or_not():
    recipe = load("output_dir: runs/${run_name}-${lora_rank}\nrun_name: quick\ndata_seed: ${seed}\nseed: 3\n")
    assert recipe.train.output_dir == "runs/quick-8"
    assert recipe.train.data_seed == 3


def test_a_reference_inside_a_mapping():
    recipe = load("finetuning_type: peft\npeft_type: LOHA\npeft_kwargs: {r: '${lora_rank}'}\nlora_rank: 2\n")
    assert recipe.finetune.peft_kwargs == {"r": 2}


def test_merge_keys_give_way_to_own_ones():
    recipe = load(
        "launch: &one {nproc: 1, master_port: 5}\npeft_kwargs:\n  <<: *one\n  nproc: 2\n"
        "finetuning_type: peft\npeft_type: LOHA\n"
    )
    assert recipe.finetune.peft_kwargs == {"nproc": 2, "master_port": 5}


def test_keys_of_training_arguments_are_handed_on_only_when_given():
    recipe = load("dataloader_num_workers: 4\ntf32: true\nhub_token: hush\neval_delay: null\n")
    assert recipe.hf == {"dataloader_num_workers": 4, "tf32": True, "hub_token": "hush"}


def test_inputs_lie_beside_the_recipe_and_then_in_the_working_directory():
    Path("recipes").mkdir()
    for name in ("recipes/rows.jsonl", "rows.jsonl", "other.jsonl", "recipes/own.yaml"):
        Path(name).write_text("{}")
    Path("recipes/model/x/y").mkdir(parents=True)
    Path("recipes/r.yaml").write_text(
        "dataset: rows.jsonl, other.jsonl, named\ntemplate: own.yaml\n"
        "model_name_or_path: model/x/y\noutput_dir: runs/x\n"
    )
    recipe = load_recipe(["recipes/r.yaml"], "show")
    assert recipe.data.dataset == ["recipes/rows.jsonl", "other.jsonl", "named"]
    assert recipe.data.template == "recipes/own.yaml"
    assert recipe.model.model_name_or_path == "recipes/model/x/y"
    assert recipe.train.output_dir == "runs/x"


def test_paths_of_the_command_line_belong_to_the_working_directory():
    Path("recipes").mkdir()
    for name in ("recipes/rows.jsonl", "rows.jsonl"):
        Path(name).write_text("{}")
    Path("recipes/r.yaml").write_text("stage: sft\n")
    assert load_recipe(["recipes/r.yaml", "dataset=rows.jsonl"], "show").data.dataset == ["rows.jsonl"]


@pytest.mark.parametrize("name", ["z0", "z2", "z2_offload", "z3", "z3_offload"])
def test_bundled_deepspeed_files_are_found_from_anywhere_under_both_names(name):
    own = load("", f"deepspeed=configs/deepspeed/{name}.json")
    kind, _, offload = name.partition("_")
    theirs = load("", f"deepspeed=examples/deepspeed/ds_{kind}{'_' + offload if offload else ''}_config.json")
    assert own.train.deepspeed == theirs.train.deepspeed
    settings = json.loads(Path(own.train.deepspeed).read_text())
    assert settings["zero_optimization"]["stage"] == int(name[1])
    assert settings["train_batch_size"] == "auto"
    assert not own.notes
    assert "Forge's configs/deepspeed" in theirs.notes[0]


def test_a_deepspeed_file_beside_the_recipe_wins():
    Path("ds_z3_config.json").write_text("{}")
    assert load("deepspeed: ds_z3_config.json\n").train.deepspeed == "ds_z3_config.json"


def test_secrets_come_from_the_environment_and_are_never_written(monkeypatch):
    monkeypatch.setenv("FORGE_API_KEY", "hush1")
    recipe = load("hf_hub_token: hush2\nhub_token: hush3\n")
    assert (recipe.serve.api_key, recipe.model.hf_hub_token) == ("hush1", "hush2")
    assert recipe.origins["api_key"].text == "environment FORGE_API_KEY"
    assert "hush" not in dump_recipe(recipe)
    assert "hush" not in repr(recipe.model) + repr(recipe.serve)


def test_a_dumped_recipe_loads_to_the_same_recipe():
    Path("rows.jsonl").write_text("{}")
    text = (
        "model_name_or_path: a/b\noutput_dir: runs/x\ndataset: rows.jsonl\ndefault_system: 'yes: 1e5, # no'\n"
        "learning_rate: 1e-5\nlaunch: {nproc: 2}\nenable_thinking: null\nrun_name: '007'\ntf32: true\n"
        "rope_scaling: {rope_type: yarn, factor: '4'}\neval_strategy: no\n"
    )
    first = load(text, command="train")
    Path("again").mkdir()
    Path("again/r.yaml").write_text(dump_recipe(first))
    second = load_recipe(["again/r.yaml"], "train")
    assert second.data.dataset == [str(Path("rows.jsonl").absolute())]
    for group in ("model", "finetune", "train", "generate", "eval", "serve", "export", "launch", "hf"):
        assert getattr(second, group) == getattr(first, group), group
    assert second.data.default_system == first.data.default_system
    assert second.data.enable_thinking is None


def test_a_dumped_multi_line_text_and_a_dollar_survive():
    recipe = load("default_system: |\n  first\n  second: ${seed}\n  \\${literal}\n")
    Path("again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(["again.yaml"], "show").data.default_system == "first\nsecond: 42\n${literal}\n"


def test_keys_of_other_commands_are_allowed():
    recipe = load(
        "model_name_or_path: a/b\noutput_dir: x\ndataset: d\nexport_dir: y\ntemperature: 0.5\nport: 1234\n",
        command="train",
    )
    assert recipe.serve.port == 1234
    assert not recipe.notes


def test_a_key_of_another_stage_is_said_and_not_refused():
    recipe = load(
        "model_name_or_path: a/b\noutput_dir: x\ndataset: d\nstage: pt\nmask_history: true\npref_beta: 0.2\n",
        command="train",
    )
    assert recipe.notes == (
        "recipe.yaml line 5: mask_history: only for stage sft; no effect with pt",
        "recipe.yaml line 6: pref_beta: only for stage dpo or kto; no effect with pt",
    )


def test_a_key_of_another_stage_at_its_default_is_not_said():
    text = "model_name_or_path: a/b\noutput_dir: x\ndataset: d\nstage: pt\n"
    assert load(text + "mask_history: false\npref_beta: 0.1\n", command="train").notes == ()
    again = load(dump_recipe(load(text, command="train")), command="train")  # a run's own recipe holds every key
    assert not [note for note in again.notes if "only for stage" in note]


def test_predict_recipes_of_llama_factory_do_not_train():
    text = "model_name_or_path: a/b\noutput_dir: x\neval_dataset: d\ndo_predict: true\n"
    recipe = load(text, command="train")
    assert recipe.train.do_train is False
    assert "nothing is trained" in recipe.notes[0]
    assert load(text, "do_train=true", "dataset=e", command="train").train.do_train is True


@pytest.mark.parametrize(
    ("command", "missing"),
    [("train", ["model_name_or_path", "output_dir", "dataset"]),
     ("predict", ["model_name_or_path", "output_dir", "eval_dataset"]),
     ("chat", ["model_name_or_path"]), ("api", ["model_name_or_path"]),
     ("export", ["model_name_or_path"]), ("show", [])],
)  # fmt: skip
def test_each_command_says_what_it_cannot_do_without(command, missing):
    if not missing:
        load("", command=command)
        return
    with pytest.raises(RecipeError) as error:
        load("", command=command)
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == missing


def test_a_plugin_may_add_a_metric(monkeypatch):
    monkeypatch.setattr(METRICS, "_table", dict(METRICS._table))  # the name goes again after this test
    Path("mine_metric.py").write_text(
        "from llmforge.config.names import METRICS\nMETRICS.add('mine_test', lambda predictions, labels: None)\n"
    )
    for _ in range(2):  # a second recipe with the same plugin finds it loaded
        recipe = load("plugins: [mine_metric.py]\nmetrics: [mine_test]\n")
        assert recipe.plugins == ("mine_metric.py",)


def test_a_plugin_that_fails_is_named():
    Path("bad_plugin.py").write_text("1 / 0\n")
    with pytest.raises(RecipeError, match=r"line 1: plugins: bad_plugin.py failed: ZeroDivisionError"):
        load("plugins: bad_plugin.py\n")


def test_a_command_line_is_written_down_without_its_secrets():
    words = ["train", "r.yaml", "hf_hub_token=hf_x", "--api_key", "k", "--ms_hub_token=m", "lora_rank=4"]
    assert spoken(words) == [
        "train", "r.yaml", "hf_hub_token=***", "--api_key", "***", "--ms_hub_token=***", "lora_rank=4",
    ]  # fmt: skip


@pytest.mark.parametrize(("command", "word", "flag"), [("chat", "--promt", "--prompt"), ("predict", "--jsn", "--json")])
def test_a_slip_in_a_command_s_own_flag_leads_to_that_flag(command, word, flag):
    with pytest.raises(RecipeError, match=rf"command line: {word[2:]}: no such key\. Did you mean '{flag}'\?"):
        load("", "model_name_or_path=m", word, command=command)
