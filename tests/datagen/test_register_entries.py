"""dataset_info.json keeps every entry, whoever writes at the same time and whatever goes wrong."""

import json
import multiprocessing
from pathlib import Path

import pytest

from llmforge.data.registry import load_registry
from llmforge.datagen.convert_command import add_main
from llmforge.datagen.manifest import write_stage
from llmforge.datagen.register import add_entries, file_name_in
from llmforge.errors import RecipeError

REPO = Path(__file__).parents[2]


def _add(folder: str, number: int, gate) -> None:
    gate.wait()
    add_entries(folder, {f"set_{number}": {"file_name": f"{number}.jsonl"}})


def test_fifty_parallel_writers_lose_no_entry(tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"old": {"file_name": "old.jsonl", "num_samples": 3}}')
    fork = multiprocessing.get_context("fork")
    gate = fork.Barrier(50)
    writers = [fork.Process(target=_add, args=(str(tmp_path), number, gate)) for number in range(50)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 50
    entries = load_registry(tmp_path)
    assert sorted(entries) == sorted(["old", *(f"set_{number}" for number in range(50))])
    assert entries["old"].num_samples == 3
    assert {path.name for path in tmp_path.iterdir()} <= {"dataset_info.json", ".dataset_info.json.lock"}


def _write(folder: str, number: int, gate) -> None:
    gate.wait()
    write_stage(Path(folder), f"stage_{number}", {"number": number})


def test_stages_that_end_at_once_all_stand_in_the_manifest(tmp_path):
    fork = multiprocessing.get_context("fork")
    gate = fork.Barrier(20)
    writers = [fork.Process(target=_write, args=(str(tmp_path), number, gate)) for number in range(20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert {name: stage["number"] for name, stage in manifest.items()} == {f"stage_{i}": i for i in range(20)}


def test_other_entries_keep_their_keys_and_order(tmp_path):
    path = tmp_path / "dataset_info.json"
    before = {"_comment": "手写", "b": {"hf_hub_url": "x/y"}, "a": {"file_name": "a.json", "tags": {"role_tag": "r"}}}
    path.write_text(json.dumps(before))
    assert add_entries(path, {"c": {"file_name": "c.jsonl"}}) == ["c"]
    after = json.loads(path.read_text(encoding="utf-8"))
    assert list(after) == ["_comment", "b", "a", "c"]
    assert {name: after[name] for name in before} == before
    assert "手写" in path.read_text(encoding="utf-8")


def test_a_name_is_renewed_for_its_own_file_and_kept_from_another(tmp_path):
    add_entries(tmp_path, {"x": {"file_name": "x.jsonl"}})
    assert add_entries(tmp_path, {"x": {"file_name": "x.jsonl", "ranking": True}}) == []
    with pytest.raises(RecipeError, match=r"'x' already stands for x\.jsonl"):
        add_entries(tmp_path, {"y": {"file_name": "y.jsonl"}, "x": {"file_name": "other.jsonl"}})
    assert list(load_registry(tmp_path)) == ["x"]
    add_entries(tmp_path, {"x": {"file_name": "other.jsonl"}}, replace=True)
    assert load_registry(tmp_path)["x"].path == tmp_path / "other.jsonl"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"a": {"file_nam": "x"}}', "no such key 'file_nam'"),
        ('{"a": {"file_name": "x"}, "a": {"file_name": "y"}}', "'a' stands twice"),
        ("[]", "expected an object"),
    ],
)
def test_a_broken_registry_is_left_as_it_is(tmp_path, text, message):
    path = tmp_path / "dataset_info.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        add_entries(tmp_path, {"new": {"file_name": "new.jsonl"}})
    assert path.read_text() == text


def test_a_wrong_new_entry_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="Did you mean 'formatting'"):
        add_entries(tmp_path, {"new": {"file_name": "new.jsonl", "formating": "sharegpt"}})
    assert not (tmp_path / "dataset_info.json").exists()


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("report_classify_en_test.jsonl", {}),
        ("hotline_tools.jsonl", {"formatting": "sharegpt", "columns": {"tools": "tools"}}),
        ("legal_faq_chat_test.jsonl", {"formatting": "openai"}),
    ],
)
def test_add_describes_a_file_by_its_rows(tmp_path, monkeypatch, capsys, file, expected):
    monkeypatch.chdir(tmp_path)
    assert add_main(["mine", str(REPO / "data" / file), "--register", "reg", "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)["entry"]
    assert {key: value for key, value in entry.items() if key != "file_name"} == expected
    assert (tmp_path / "reg" / entry["file_name"]).resolve() == REPO / "data" / file
    from llmforge.data.read import read_examples

    examples, report = read_examples(load_registry("reg")["mine"], stage="sft")
    assert len(examples) == report.rows_in > 0


def test_add_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("odd.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RecipeError, match=r"no file 'none\.jsonl'"):
        add_main(["x", "none.jsonl"])
    with pytest.raises(RecipeError, match="cannot tell which columns"):
        add_main(["x", "odd.csv"])
    with pytest.raises(RecipeError, match="expected a name and a file"):
        add_main(["x"])


def test_file_names_are_relative_to_the_registry(tmp_path):
    assert file_name_in(tmp_path / "data", tmp_path / "out" / "x.jsonl") == "../out/x.jsonl"
    assert file_name_in(tmp_path / "data" / "dataset_info.json", tmp_path / "data" / "x.jsonl") == "x.jsonl"
