"""generate -> review -> convert -> register -> train, as one chain whose manifest leads from a slot to the adapter."""

import json
from pathlib import Path

import pytest
from scripted_teacher import Script, serving

from llmforge.cli import main
from llmforge.runs import sha256_file

pytest.importorskip("openai")

RECIPE = """\
kind: dataset
name: lines
seed: 7
slots:
  id: {uuid: 4}
  symbol: {table: symbols.csv, pick: quota, per_value: 5, columns: [name_en, code]}
  axis: {choice: [ns, ew]}
prompt: line.j2
output_schema: line.json
facts: {symbol.name_en: symbol.name_en, symbol.code: symbol.code}
checks: ["out.symbol.name_en == slots.symbol.name_en"]
row: {instruction: Name the symbol., input: "{{ out.report }}", output: out.symbol}
teacher: {base_url: URL, model: gpt-4-turbo-preview, max_tokens: 200}
calibrate: {fields: [input, output.code]}
convert: {format: alpaca, key_order: schema, split: {dev: 0.1, test: 0.1, group_by: symbol.code}}
register: data/dataset_info.json
"""
SCHEMA = {
    "type": "object",
    "properties": {
        "report": {"type": "string", "minLength": 5},
        "symbol": {
            "type": "object",
            "properties": {"name_en": {"type": "string"}, "code": {"type": "string"}},
            "required": ["name_en", "code"],
            "additionalProperties": False,
        },
    },
    "required": ["report", "symbol"],
    "additionalProperties": False,
}
SYMBOLS = ("Cordon line", "Command post", "Fire station", "Shelter", "Flood area", "Search area")


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USER", "wang")
    Path("symbols.csv").write_text("name_en,code\n" + "".join(f"{name},S{i}\n" for i, name in enumerate(SYMBOLS)))
    Path("line.j2").write_text("Row {{ index }}: a report about {{ symbol.name_en }}, {{ axis }}, as JSON.\n")
    Path("line.json").write_text(json.dumps(SCHEMA))
    with serving(Script()) as teacher:
        Path("lines.yaml").write_text(RECIPE.replace("URL", teacher.url))
        yield tmp_path


def test_one_manifest_leads_from_the_slot_to_the_adapter(job, tiny_model_dir, capsys):
    assert main(["data", "generate", "lines.yaml"]) == 0
    assert main(["data", "review", "lines.yaml", "--export", "review.jsonl"]) == 0
    rows = [json.loads(line) for line in Path("review.jsonl").read_text().splitlines()]
    assert len(rows) == 30
    for row in rows:
        row["state"] = "accepted"
    rows[0]["/input"] = "The cordon runs along the river, north to south."
    rows[1]["state"] = "rejected"
    Path("review.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "review", "lines.yaml", "--import", "review.jsonl"]) == 0
    capsys.readouterr()
    assert main(["data", "convert", "lines.yaml", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows_in"], told["rows_ok"], sum(told["rows"].values())) == (30, 29, 29)
    assert told["reasons"] == {"rejected in review": 1}
    learned = [json.loads(line) for path in told["files"].values() for line in Path(path).read_text().splitlines()]
    assert rows[0]["/input"] in [row["input"] for row in learned]
    assert rows[1]["/input"] not in [row["input"] for row in learned]
    groups = [{json.loads(json.loads(line)["output"])["code"] for line in Path(path).read_text().splitlines()}
              for path in told["files"].values()]  # fmt: skip
    assert sum(map(len, groups)) == len(set.union(*groups)) == 6
    assert all(row["output"].startswith('{"name_en": "') for row in learned)

    words = ["dataset=lines_train", "dataset_dir=data", f"model_name_or_path={tiny_model_dir}", "template=chatml"]
    words += ["device=cpu", "output_dir=run", "max_steps=2", "per_device_train_batch_size=2", "cutoff_len=128"]
    assert main(["train", *words]) == 0
    assert Path("run/adapter_model.safetensors").is_file()
    manifest = json.loads(Path("run/manifest.json").read_text())
    chain = manifest["data_made_by"]["lines"]
    assert chain.keys() >= {"generate", "review", "convert"}
    assert chain["review"]["states"] == {"pending": 0, "accepted": 28, "edited": 1, "rejected": 1, "skipped": 0}
    assert chain["review"]["patches_sha256"] == sha256_file(Path("work/lines/patches.jsonl"))
    assert chain["convert"]["recipe"] == {"lines.yaml": sha256_file(Path("lines.yaml"))}
    trained_on = manifest["data_files"]
    assert set(trained_on.values()) <= set(chain["convert"]["files"].values())
    assert "| lines_train.jsonl |" in Path("data/lines.md").read_text()


def test_the_same_rows_and_patches_give_the_same_bytes(job):
    assert main(["data", "generate", "lines.yaml"]) == 0
    assert main(["data", "convert", "lines.yaml", "--out", "a"]) == 0
    assert main(["data", "convert", "lines.yaml", "--out", "b", "register=other"]) == 0
    for name in ("lines_train.jsonl", "lines_dev.jsonl", "lines_test.jsonl"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()
