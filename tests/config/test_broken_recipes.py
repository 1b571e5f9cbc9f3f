"""What a user reads about a broken recipe: the cases and their texts stand in broken_recipes.txt."""

import os
import re
from itertools import pairwise
from pathlib import Path

import pytest

from llmforge import cli
from llmforge.config.load import load_recipe
from llmforge.errors import RecipeError

CASES = {
    name: (recipe.replace("<TAB>", "\t"), message)
    for name, recipe, message in re.findall(
        r"^=== (.+?)\n(.*?)>>>\n(.*?)(?=^=== |\Z)",
        (Path(__file__).parent / "broken_recipes.txt").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
}
NEEDED = {"model_name_or_path": "a/b", "output_dir": "runs/x", "dataset": "demo"}


def words_for(recipe: str) -> list[str]:
    """The recipe, and on the command line what it needs besides, so that only its own fault is reported."""
    return ["recipe.yaml", *(f"{k}={v}" for k, v in NEEDED.items() if not re.search(rf"^{k}:", recipe, re.MULTILINE))]


@pytest.mark.parametrize("name", CASES)
def test_a_broken_recipe_is_refused_in_these_words(name, tmp_path, monkeypatch, capsys):
    recipe, message = CASES[name]
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recipe", "check", *words_for(recipe)]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"forge-cli: {message}"
    assert printed.out == ""
    assert len(message.splitlines()) <= 8
    assert os.listdir(tmp_path) == ["recipe.yaml"]


def test_there_are_enough_cases():
    assert len(CASES) >= 60


def refused(tmp_path, data: bytes) -> str:
    (tmp_path / "recipe.yaml").write_bytes(data)
    with pytest.raises(RecipeError) as error:
        load_recipe([str(tmp_path / "recipe.yaml")], "show")
    return str(error.value).splitlines()[-1].strip()


def test_a_chinese_recipe_in_gb18030_names_the_line(tmp_path):
    data = "stage: sft\nrun_name: 分类\n".encode("gb18030")
    assert refused(tmp_path, data) == "line 2: byte 0xb7 is not UTF-8; save the file as UTF-8"


def test_utf_16_is_named(tmp_path):
    assert refused(tmp_path, "stage: sft\n".encode("utf-16")) == "line 1: the file is UTF-16; save it as UTF-8"


def test_a_control_character_is_named(tmp_path):
    assert refused(tmp_path, b"stage: sft\nrun_name: a\x07b\n") == "line 2: the character U+0007 may not stand in YAML"


def test_a_huge_file_is_no_recipe(tmp_path):
    assert "are no recipe" in refused(tmp_path, b"#" * (5 << 20))


def test_anchors_cannot_blow_a_recipe_up(tmp_path):
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "anchors repeat more than 100,000 values" in refused(tmp_path, bomb.encode())


def test_references_cannot_blow_a_recipe_up(tmp_path):
    names = ["run_name", "default_system", "template", "optim", "metric_for_best_model", "val_group_by", "tool_format"]
    lines = [f"{names[0]}: {'x' * 1000}"] + [f"{new}: {('${' + old + '}') * 20}" for old, new in pairwise(names)]
    assert "references grow beyond" in refused(tmp_path, "\n".join(lines).encode())


def test_deep_nesting_is_no_crash(tmp_path):
    assert "nested too deeply" in refused(tmp_path, b"peft_kwargs: " + b"[" * 3000 + b"]" * 3000)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nowhere.yaml", "nowhere.yaml: this recipe does not exist"),
        ("clasify.yaml", "clasify.yaml: this recipe does not exist. Did you mean 'classify.yaml'?"),
        (
            "empty_folder",
            "empty_folder is a folder without recipe.yaml, adapter_config.json or config.json: no run, no model",
        ),
        ("--=x", "'--=x' is not an option; write key=value or --key value"),
        ("--seed", "--seed needs a value: --seed VALUE"),
    ],
)
def test_a_wrong_word_is_refused(word, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("classify.yaml").write_text("stage: sft\n")
    Path("empty_folder").mkdir()
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe([word], "show")


def test_problems_of_several_files_come_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("seed: x\nlora_rnak: 8\n")
    Path("recipe.yaml").write_text("extends: base.yaml\nstage: stf\n")
    with pytest.raises(RecipeError) as error:
        load_recipe(["recipe.yaml", "cutoff_len=none", "--bf17"], "show")
    assert str(error.value).splitlines() == [
        "recipe.yaml cannot run:",
        "  base.yaml line 1: seed: got 'x', expected a whole number",
        "  base.yaml line 2: lora_rnak: no such key. Did you mean 'lora_rank'?",
        "  line 2: stage: got 'stf', expected one of dpo, grpo, kto, ppo, pt, rm, sft. Did you mean 'sft'?",
        "  command line: bf17: no such key. Did you mean 'bf16'?",
        "  command line: cutoff_len: got 'none', expected a whole number",
    ]


def test_a_secret_is_not_repeated_in_an_error(tmp_path):
    assert "hush" not in refused(tmp_path, b"hub_token: [hush]\n")
    assert "hush" not in refused(tmp_path, b"hub_token: hush\npush_to_hub_token: hush2\n")
