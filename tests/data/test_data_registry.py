import json
from pathlib import Path

import pytest

from llmforge.data.entry import Columns, Tags, read_entry
from llmforge.data.registry import load_registry, resolve_dataset
from llmforge.errors import RecipeError

SHARED = Path(__file__).parents[2] / "../shared/data/llamafactory"


def write_info(folder, content):
    (folder / "dataset_info.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def test_defaults_are_llamafactorys():
    entry = load_registry({"identity": {"file_name": "identity.json"}})["identity"]
    assert entry.path == Path("identity.json")
    assert (entry.formatting, entry.ranking, entry.split, entry.num_samples) == ("alpaca", False, "train", None)
    assert entry.columns == Columns()
    assert entry.tags == Tags()


def test_a_given_part_of_columns_and_tags_keeps_the_other_defaults():
    entry = read_entry(
        "x", {"file_name": "x.json", "columns": {"response": "answer"}, "tags": {"user_tag": "me"}}, Path()
    )
    assert (entry.columns.prompt, entry.columns.query, entry.columns.response) == ("instruction", "input", "answer")
    assert (entry.tags.user_tag, entry.tags.assistant_tag) == ("me", "gpt")
    assert entry.named == {"response", "user_tag"}


def test_a_column_that_one_name_claims_is_not_read_twice():
    entry = read_entry("x", {"file_name": "x.json", "columns": {"prompt": "input"}}, Path())
    assert (entry.columns.prompt, entry.columns.query) == ("input", None)


def test_an_explicit_null_switches_a_column_off():
    assert read_entry("x", {"file_name": "x", "columns": {"query": None}}, Path()).columns.query is None


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"file_name": "x", "formating": "sharegpt"}, ["'x'", "'formating'", "Did you mean 'formatting'?"]),
        ({"file_name": "x", "formatting": "sharegtp"}, ["formatting: got 'sharegtp'", "Did you mean 'sharegpt'?"]),
        ({"file_name": "x", "columns": {"promt": "a"}}, ["columns", "'promt'", "Did you mean 'prompt'?"]),
        ({"file_name": "x", "tags": {"role": "a"}}, ["tags", "'role'", "role_tag"]),
        ({"file_name": "x", "columns": {"prompt": 3}}, ["columns.prompt: got 3"]),
        ({"file_name": "x", "columns": ["prompt"]}, ["columns: got ['prompt'], expected an object"]),
        ({"file_name": "x", "ranking": "yes"}, ["ranking: got 'yes'", "true or false"]),
        ({"file_name": "x", "num_samples": 0}, ["num_samples: got 0"]),
        ({"file_name": "x", "num_samples": True}, ["num_samples: got True"]),
        ({"file_name": "x", "document": "page"}, ["document: got 'page'"]),
        ({"file_name": "x", "split": "test"}, ["split: belongs to hub data sets"]),
        ({"file_name": ""}, ["file_name: got ''"]),
        ({"file_name": "a\0b"}, ["file_name"]),
        ({"file_name": 5}, ["file_name: got 5, expected text"]),
        ({"script_url": "x.py"}, ["script_url", "remote code"]),
        ({"script_url": "x.py", "file_name": "x.json"}, ["script_url", "remote code"]),
        ({"cloud_file_name": "s3://a/b.json"}, ["cloud_file_name", "download the file"]),
        ({"om_hub_url": "a/b"}, ["om_hub_url", "not supported"]),
        ({"columns": {}}, ["says nowhere where its rows are"]),
        ("x.json", ['expected an object, got "x.json"']),
        (None, ["expected an object, got null"]),
    ],
)
def test_a_wrong_entry_is_named(entry, words):
    with pytest.raises(RecipeError) as caught:
        load_registry({"good": {"file_name": "g.json"}, "x": entry})
    for word in words:
        assert word in str(caught.value)


def test_all_wrong_entries_are_told_at_once():
    with pytest.raises(RecipeError, match=r"(?s)'a'.*'b'"):
        load_registry({"a": {"fil_name": "x"}, "b": {}})


def test_comments_in_the_wild_are_tolerated():
    entries = load_registry(
        {"_comment": "mine", "a": {"file_name": "a.json", "_comment": "?", "description": "?", "file_sha1": "00"}}
    )
    assert list(entries) == ["a"]


def test_the_hub_comes_before_the_file_and_modelscope_when_asked():
    value = {"hf_hub_url": "a/b", "ms_hub_url": "c/d", "file_name": "x.json", "subset": "zh", "folder": "python"}
    entry = read_entry("x", value, Path())
    assert (entry.hub, entry.where, entry.subset, entry.folder) == (("hf", "a/b"), "hf:a/b", "zh", "python")
    assert read_entry("x", value, Path(), hub="modelscope").hub == ("ms", "c/d")
    assert read_entry("x", {"ms_hub_url": "c/d"}, Path()).hub == ("ms", "c/d")


def test_a_registry_is_a_folder_a_file_or_a_mapping(tmp_path):
    info = {"a": {"file_name": "a.json"}}
    write_info(tmp_path, info)
    for where in (tmp_path, str(tmp_path), tmp_path / "dataset_info.json"):
        assert load_registry(where)["a"].path == tmp_path / "a.json"
    (tmp_path / "other.json").write_text(json.dumps(info))
    assert load_registry(tmp_path / "other.json")["a"].path == tmp_path / "a.json"
    assert load_registry(info)["a"].path == Path("a.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": {"file_name": "x"},\n "a": {}}', "'a' stands twice"),
        (b'{"a": \n {"file_name": }', "line 2, column 16"),
        (b"[1, 2]", "expected an object that maps names to entries, got list"),
        ('{"a": "中"}'.encode("gb18030"), "not UTF-8"),
        (b"[" * 100000, "cannot be read as JSON"),
    ],
)
def test_a_broken_registry_is_one_clear_message(tmp_path, content, words):
    (tmp_path / "dataset_info.json").write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_registry(tmp_path)
    assert words in str(caught.value)
    assert "dataset_info.json" in str(caught.value)


def test_a_registry_with_a_byte_order_mark_reads(tmp_path):
    (tmp_path / "dataset_info.json").write_bytes(b'\xef\xbb\xbf{"a": {"file_name": "a.json"}}')
    assert "a" in load_registry(tmp_path)


def test_a_missing_registry_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"dataset_info\.json does not exist"):
        load_registry(tmp_path)


def test_names_paths_and_inline_entries_resolve(tmp_path, monkeypatch):
    write_info(tmp_path, {"a": {"file_name": "a.json"}})
    (tmp_path / "rows.jsonl").write_text("{}\n")
    assert resolve_dataset("a", tmp_path).path == tmp_path / "a.json"
    bare = resolve_dataset(str(tmp_path / "rows.jsonl"), tmp_path)
    assert (bare.name, bare.inferred) == ("rows", True)
    assert resolve_dataset("rows.jsonl", tmp_path).path == tmp_path / "rows.jsonl"
    inline = {"file_name": "rows.jsonl", "columns": {"prompt": "q"}}
    assert resolve_dataset(inline, tmp_path).columns.prompt == "q"
    assert resolve_dataset(json.dumps(inline), tmp_path).path == tmp_path / "rows.jsonl"
    monkeypatch.chdir(tmp_path)
    assert resolve_dataset(inline, "data").path == Path("rows.jsonl")
    assert resolve_dataset("rows.jsonl", {"b": {"file_name": "b.json"}}).path == Path("rows.jsonl")


def test_an_unknown_name_comes_with_the_nearest(tmp_path):
    write_info(tmp_path, {"report_classify": {"file_name": "a.json"}, "faq": {"file_name": "b.json"}})
    with pytest.raises(
        RecipeError, match=r"'report_clasify' is neither .* Did you mean 'report_classify'\? Known: faq, "
    ):
        resolve_dataset("report_clasify", tmp_path)
    with pytest.raises(RecipeError, match="is not a file, and there is no"):
        resolve_dataset("faq", tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="neither an entry"):
        resolve_dataset("a\0b", tmp_path)
    many = {f"set{i}": {"file_name": "x.json"} for i in range(40)}
    with pytest.raises(RecipeError, match="and 10 more"):
        resolve_dataset("other", many)


def test_a_file_of_an_unknown_kind_and_broken_inline_json_are_refused(tmp_path):
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(RecipeError, match=r"files of this kind are not read. Known: json, jsonl, csv"):
        resolve_dataset(str(tmp_path / "a.pdf"), {})
    with pytest.raises(RecipeError, match="not valid JSON"):
        resolve_dataset('{"file_name": ', {})
    with pytest.raises(RecipeError, match="not a path"):
        resolve_dataset("a", "b\0c")


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_llamafactorys_own_registry_loads():
    entries = load_registry(SHARED)
    assert len(entries) == 104
    assert entries["starcoder_python"].folder == "python"
    assert sum(entry.ranking for entry in entries.values()) == 12
    assert sum(entry.hub is not None for entry in entries.values()) == 90
