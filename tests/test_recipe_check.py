"""`recipe check` looks at data, tokenizer and template, and says what it could not see."""

import json
from pathlib import Path

import pytest

from llmforge import cli
from llmforge.check import check_recipe
from llmforge.config.load import load_recipe


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"Which floor? {i}", "input": "", "output": f"Floor {i}."} for i in range(150)]
    Path("rows.json").write_text(json.dumps(rows))
    Path("data").mkdir()
    Path("data/dataset_info.json").write_text(json.dumps({"demo": {"file_name": "gone.json"}}))


def check(*words: str):
    return check_recipe(load_recipe(["output_dir=out", *words], "check"))


def test_a_good_recipe_is_counted(tiny_tokenizer_dir):
    result = check(f"model_name_or_path={tiny_tokenizer_dir}", "template=auto", "dataset=rows.json")
    assert (result.problems, result.not_checked) == ([], [])
    assert any("100 of the first 100 rows are usable" in line for line in result.fine)
    assert any("tokens a row" in line and "learned" in line for line in result.fine)


def test_the_named_template_is_compared_with_the_tokenizer_s_own(tiny_tokenizer_dir):
    model = f"model_name_or_path={tiny_tokenizer_dir}"
    assert not [r for r in check(model, "template=chatml", "dataset=rows.json").remarks if r.startswith("template")]
    (remark,) = [r for r in check(model, "template=vicuna", "dataset=rows.json").remarks if r.startswith("template")]
    assert "'vicuna' differs from the tokenizer's own" in remark
    assert "token 1 is" in remark


def test_rows_that_are_rejected_or_too_long_are_remarked(tiny_tokenizer_dir):
    Path("odd.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": null}\n')
    result = check(f"model_name_or_path={tiny_tokenizer_dir}", "dataset=odd.jsonl", "cutoff_len=3")
    assert result.problems == []
    assert any("1 rows are rejected; first odd.jsonl row 2" in line for line in result.remarks)
    assert any("1 of 1 rows exceed cutoff_len 3 (right)" in line for line in result.remarks)


def test_what_is_not_here_is_not_checked():
    result = check("model_name_or_path=some/model-nobody-has", "dataset=rows.json")
    assert result.problems == []
    assert result.not_checked == [
        "tokenizer: some/model-nobody-has is not fetched yet; forge-cli models get some/model-nobody-has"
    ]


def test_plain_text_is_encoded_as_it_is(tiny_tokenizer_dir):
    Path("corpus.txt").write_text("The printer is jammed again.\n" * 5)
    result = check(f"model_name_or_path={tiny_tokenizer_dir}", "stage=pt", "dataset=corpus.txt")
    assert result.problems == []
    assert any("100% of them learned" in line for line in result.fine)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dataset: dmeo", "line 3: dataset: 'dmeo' is neither an entry of data/dataset_info.json nor a file"),
        ("dataset: demo", "line 3: dataset: "),
        ("dataset: rows.json\ntemplate: vicunna", "line 4: template: 'vicunna' is not known. Did you mean 'vicuna'?"),
    ],
)
def test_problems_name_the_line_of_their_key(line, message, tiny_tokenizer_dir, capsys):
    Path("r.yaml").write_text(f"model_name_or_path: {tiny_tokenizer_dir}\noutput_dir: out\n{line}\n")
    assert cli.main(["recipe", "check", "r.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("forge-cli: r.yaml cannot run:\n")
    assert message in error


def test_an_unknown_template_is_found_without_the_model():
    result = check("model_name_or_path=some/model-nobody-has", "template=qwenn", "dataset=rows.json")
    assert "Did you mean 'qwen'?" in result.problems[0].message


def test_the_check_speaks_json(tiny_tokenizer_dir, capsys):
    words = [f"model_name_or_path={tiny_tokenizer_dir}", "dataset=rows.json", "output_dir=out", "template=chatml"]
    assert cli.main(["recipe", "check", "--json", *words]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    assert cli.main(["recipe", "check", "--json", *words[:1], "dataset=nothing", "output_dir=out"]) == 2
    assert "nothing" in json.loads(capsys.readouterr().out)["problems"][0]


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["export_dir=x"], "model_name_or_path"),
        (["eval_dataset=rows.json"], "model_name_or_path"),
        (["stage=sft"], "dataset"),
    ],
)
def test_the_check_asks_for_what_the_recipe_s_command_needs(words, missing, capsys):
    assert cli.main(["recipe", "check", *words]) == 2
    assert f"{missing}: missing" in capsys.readouterr().err


def test_training_refuses_names_that_lead_nowhere_before_it_writes(tiny_model_dir, capsys):
    words = (
        f"model_name_or_path={tiny_model_dir} template=chatmll dataset=demo,rowz eval_dataset=rows.docx output_dir=o"
    )
    Path("rows.docx").write_text("x")
    assert cli.main(["train", *words.split(), "output_dir=o"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "forge-cli: the recipe cannot run:"
    assert [line.split(": ")[1] for line in lines[1:]] == ["template", "dataset", "dataset", "dataset"]
    assert "Did you mean 'chatml'?" in lines[1]
    assert "gone.json" in lines[2]
    assert not Path("o").exists()
