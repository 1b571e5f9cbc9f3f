"""`forge-cli bench train` from its words to its table, on the two-layer model."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from llmforge import cli
from llmforge.bench.cells import check_placeholders, side_name
from llmforge.bench.command import train_parser
from llmforge.data.example import Message
from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer

REPO = Path(__file__).parents[2]

PEER = """
import json, pathlib, sys
settings = json.loads(pathlib.Path(sys.argv[1]).read_text())
rows = json.loads(pathlib.Path(settings["data_dir"], settings["dataset"] + ".json").read_text())
assert len(rows) == settings["rows"] * settings["steps"]
out = pathlib.Path(settings["output_dir"]); out.mkdir()
for step in range(settings["steps"]):
    with open(out / "trainer_log.jsonl", "a") as file:
        file.write(json.dumps({"loss": 1.5}) + "\\n")
    __import__("time").sleep(0.1)
"""


@pytest.fixture
def bench(tiny_model_dir, tmp_path, monkeypatch, capsys):
    """Run `bench train` on the tiny model; returns (exit code, stdout, stderr, ledger lines)."""
    monkeypatch.chdir(tmp_path)

    def go(*words):
        model = [f"model_name_or_path={tiny_model_dir}", "template=chatml", "device=cpu"]
        code = cli.main(["bench", "train", *model, "--rows", "2", "--batch", "1", "--steps", "1", *words])
        out, err = capsys.readouterr()
        path = tmp_path / "runs/bench.jsonl"
        return code, out, err, [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return go


def test_a_real_training_and_another_trainer_on_the_same_rows(bench, tmp_path):
    (tmp_path / "peer.py").write_text(PEER)
    (tmp_path / "settings.json").write_text(
        '{"data_dir": "{data_dir}", "dataset": "{dataset}", "output_dir": "{output_dir}", "rows": {rows}, '
        '"steps": {steps}}'
    )
    vs = f"PEER=${{HOME}} {sys.executable} peer.py {{config}}"
    code, out, err, lines = bench(
        "--batching", "tree", "--lengths", "2048", "--vs", vs, "--vs-config", "settings.json", "--json", "o.json"
    )
    assert code == 0, err
    ours, theirs = lines
    assert (ours["side"], ours["batching"], ours["outcome"]) == ("forge", "tree", "ok")
    assert ours["computed_per_row"] < ours["tokens_per_row"]
    assert ours["supervised_per_row"] > 10
    assert len(ours["losses"]) == 2
    assert 0 < ours["ready_wall_s"] < ours["first_step_wall_s"] < ours["wall_s"]
    assert theirs["side"] == Path(sys.executable).name
    assert theirs["losses"] == [1.5, 1.5]
    assert ours["data"] == theirs["data"]
    assert re.search(r"tree against \S+: samples/s x \d", out)
    assert len(json.loads((tmp_path / "o.json").read_text())["comparisons"]) == 1
    assert not list(tmp_path.glob("forge-bench-*"))


def test_a_cell_out_of_memory_is_shown_as_such_and_the_next_one_runs(bench):
    code, out, err, lines = bench("--batching", "padded", "--lengths", "64,128", "--limit-gb", "0.02")
    assert code == 0, err
    assert [(line["length"], line["outcome"]) for line in lines] == [(64, "oom"), (128, "oom")]
    assert out.count(" OOM ") == 2


def test_rounds_go_back_and_forth_and_zero_rounds_only_show_the_ledger(bench):
    *_, lines = bench("--batching", "padded,tree", "--rounds", "2", "--limit-gb", "0.02")
    assert [line["batching"] for line in lines] == ["padded", "tree", "tree", "padded"]
    code, out, _, again = bench("--rounds", "0")
    assert code == 0
    assert again == lines
    assert out.count(" OOM ") == 2


def test_a_command_that_fails_is_told_and_ends_with_1(bench):
    code, out, err, lines = bench("--batching", "padded", "--limit-gb", "0.02", "--vs", "echo broken >&2; exit 3")
    assert code == 1
    assert lines[1]["outcome"] == "failed"
    assert "ended with 3:\nbroken" in err
    assert " failed " in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "lroa"], "--methods: got 'lroa', expected some of lora, full, freeze. Did you mean 'lora'?"),
        (["--batching", "padded,tre"], "--batching: got 'tre'"),
        (["--lengths", "512,x"], "--lengths: got '512,x', expected numbers of tokens"),
        (["--rows", "6", "--batch", "4"], "--rows: 6 is no multiple of --batch 4"),
        (["--rounds", "-1"], "--rounds: got -1, expected at least 0"),
        (["--workload", "clasify"], "--workload: 'clasify' is not made here. Did you mean 'classify'?"),
        (["--vs", "x {modle}"], "--vs: {modle} is no placeholder. Did you mean 'model'?"),
        (["--vs", "x {config}"], "--vs: {config} needs --vs-config FILE"),
        (["--vs-config", "none.yaml", "--vs", "x"], "--vs-config: none.yaml cannot be read"),
        (["--data", "none.json"], "--data: none.json cannot be read"),
        (["lora_rnak=4"], "lora_rnak: no such key. Did you mean 'lora_rank'?"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_options_end_with_2_before_anything_runs(bench, words, said):
    code, _, err, lines = bench(*words)
    assert (code, lines) == (2, [])
    assert said in err


def test_the_settings_for_another_trainer_hold_known_placeholders_only():
    for path in sorted((REPO / "benchmarks").glob("*.yaml")):
        if path.name.startswith("llamafactory"):
            check_placeholders(path.name, path.read_text(encoding="utf-8"))


def test_the_template_for_comparisons_learns_the_line_break_behind_a_reply(tiny_tokenizer_dir):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    template = get_template(str(REPO / "benchmarks/smollm2_newline.yaml"), tokenizer)
    row = template.encode(tokenizer, [Message("user", "a"), Message("assistant", "b")])
    learned = [int(label) for label in row.labels if label >= 0]
    assert tokenizer.decode(learned) == "b<|im_end|>\n"


def test_an_unknown_kind_is_named(capsys):
    assert cli.main(["bench", "trian"]) == 2
    assert "bench: 'trian' is nothing to measure. Did you mean 'train'?" in capsys.readouterr().err


def test_another_trainer_is_called_after_its_program():
    assert side_name("A=1 B=x /opt/v/bin/llamafactory-cli train {config}") == "llamafactory-cli"


def test_the_commands_of_the_page_are_understood():
    text = (REPO / "docs/performance.md").read_text(encoding="utf-8").replace("\\\n", " ")
    shown = re.findall(r"^forge-cli bench train (.*)$", text, re.MULTILINE)
    assert shown
    for line in shown:
        given = train_parser().parse_intermixed_args(shlex.split(line, comments=True))
        for path in (given.vs_config, *[word for word in given.words if "=" not in word]):
            assert path is None or (REPO / path).exists()
