import json
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from llmforge.data import cache
from llmforge.data.encode import EncodeOptions
from llmforge.data.entry import DatasetEntry, read_entry
from llmforge.data.prepare import ORIGINS, ROWS, SMALL, Reading, prepare, prepared_key
from llmforge.data.templates.find import get_template
from llmforge.data.templates.template import LabelPolicy
from llmforge.data.tokenizer import load_tokenizer

OPTIONS = EncodeOptions("sft", cutoff_len=24)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def template(tokenizer):
    return get_template("chatml", tokenizer, default_system="")


@pytest.fixture
def reading(tmp_path):
    return Reading(DatasetEntry("mine", write(tmp_path / "a.jsonl")), "sft")


def write(path, count=2000):
    """Rows that together are large enough to be kept; row 6 is cut, row 8 too long, row 10 has no reply."""
    rows = [{"instruction": f"q{i}", "output": "b"} for i in range(count)]
    rows[5]["output"], rows[7]["instruction"], rows[9]["output"] = "b" * 40, "q" * 60, ""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert path.stat().st_size > SMALL
    return path


def test_the_second_call_maps_the_first_ones_copy(tmp_path, reading, template, tokenizer):
    first = prepare(reading, template, tokenizer, OPTIONS, tmp_path / "c")
    elsewhere = (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    moved = Reading(DatasetEntry("mine", elsewhere), "sft")
    again = prepare(moved, template, tokenizer, OPTIONS, tmp_path / "c")
    assert (first.made, again.made) == (True, False)
    assert isinstance(again.encoded.input_ids, np.memmap)
    for name in ROWS:
        assert np.array_equal(getattr(first.encoded, name), getattr(again.encoded, name))
    for name in ORIGINS:
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert [(str(source), why) for source, why in again.read.rejected] == [
        (f"{elsewhere} row 10", "the reply is empty")
    ]
    assert [(str(again.source(i)), why.split(",")[0]) for i, why in again.outcome.rejected] == [
        (f"{elsewhere} row 8", "longer than cutoff_len 24")
    ]
    assert [again.source(i).row for i, _ in again.outcome.fixed] == [6]
    assert (again.read.rows_in, again.read.rows_out) == (2000, 1999)
    assert again.source(1998).row == 2000


def test_on_disk_and_in_memory_are_the_same(tmp_path, reading, template, tokenizer):
    kept = prepare(reading, template, tokenizer, OPTIONS, tmp_path / "c")
    (tmp_path / "file").write_text("")
    bare = prepare(reading, template, tokenizer, OPTIONS, tmp_path / "file")
    assert bare.folder is None
    assert "no encoded copy was kept" in bare.read.notes[-1]
    for name in ROWS:
        assert np.array_equal(getattr(kept.encoded, name), getattr(bare.encoded, name))
        assert getattr(kept.encoded, name).dtype == getattr(bare.encoded, name).dtype
    assert np.array_equal(kept.prompts, bare.prompts)
    assert list(kept.encoded) == list(bare.encoded)


def test_the_key_covers_all_that_decides_the_ids(tmp_path, reading, template, tokenizer):
    def key(one=reading, template=template, options=OPTIONS):
        return prepared_key(one, template, tokenizer, options)

    entry = reading.entry
    keys = [
        key(),
        key(template=replace(template, default_system="s")),
        key(options=replace(OPTIONS, cutoff_len=25)),
        key(options=replace(OPTIONS, policy=LabelPolicy(mask_history=True))),
        key(replace(reading, max_samples=5)),
        key(replace(reading, group_by="person")),
        key(replace(reading, entry=replace(entry, columns=replace(entry.columns, query=None)))),
        key(Reading(replace(entry, path=write(tmp_path / "b.jsonl", 2001)), "sft")),
    ]
    assert len(set(keys)) == len(keys)
    assert key(Reading(replace(entry, path=write(tmp_path / "c.jsonl")), "sft")) == keys[0]
    assert key(replace(reading, seed=7)) == keys[0]
    drawn = replace(reading, entry=replace(entry, num_samples=9))
    assert key(replace(drawn, seed=7)) != key(drawn)


def test_a_small_file_leaves_no_copy_unless_asked(tmp_path, template, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "q", "output": "a"}\n')
    reading = Reading(DatasetEntry("mine", path), "sft")
    assert prepare(reading, template, tokenizer, OPTIONS, tmp_path / "c").folder is None
    assert not (tmp_path / "c").exists()
    assert prepare(reading, template, tokenizer, OPTIONS, tmp_path / "c", keep_small=True).folder.is_dir()


def test_overwrite_and_a_damaged_copy_build_anew(tmp_path, reading, template, tokenizer):
    def get(**options):
        return prepare(reading, template, tokenizer, OPTIONS, tmp_path / "c", **options)

    assert [get().made, get().made, get(overwrite=True).made] == [True, False, True]
    folder = get().folder
    (folder / "labels.npy").write_bytes((folder / "labels.npy").read_bytes()[:500])
    again = get()
    assert again.made
    assert len(again.encoded) == 1998
    (folder / cache.ABOUT).write_text("{")
    assert get().made


def test_two_at_once_build_once(tmp_path):
    times, found = [], []

    def make(folder):
        times.append(folder)
        time.sleep(0.3)
        with cache.array_files(folder, {"x": "<i4"}) as files:
            files["x"].append(np.arange(3))
        return {}

    for overwrite in (False, True):
        times.clear()
        call = {"names": {"x": "<i4"}, "make": make, "overwrite": overwrite}
        threads = [
            threading.Thread(target=lambda call=call: found.append(cache.prepared_once(tmp_path / "k", **call)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(times) == 1
    assert [arrays["x"].tolist() for arrays, _, _ in found] == [[0, 1, 2]] * 4


def test_a_row_that_cannot_be_read_leaves_nothing_behind(tmp_path, reading, template, tokenizer):
    with open(reading.entry.path, "a", encoding="utf-8") as file:
        file.write("{broken")
    with pytest.raises(Exception, match="line 2001"):
        prepare(reading, template, tokenizer, OPTIONS, tmp_path / "c")
    assert not [path for path in (tmp_path / "c").iterdir() if path.is_dir()]


def test_files_that_grow_are_plain_npy(tmp_path):
    with cache.array_files(tmp_path, {"a": "<i8", "empty": "<u8"}) as files:
        for start in range(0, 10, 5):
            files["a"].append(np.arange(start, start + 5))
    assert np.load(tmp_path / "a.npy").tolist() == list(range(10))
    assert np.load(tmp_path / "empty.npy").tolist() == []


def test_copies_nobody_uses_are_removed(tmp_path, reading, template, tokenizer):
    old, fresh = tmp_path / "c/old", tmp_path / "c/fresh"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
    long_ago = time.time() - (cache.KEEP_DAYS + 1) * 86400
    os.utime(old, (long_ago, long_ago))
    prepare(reading, template, tokenizer, OPTIONS, tmp_path / "c")
    assert not old.exists()
    assert fresh.exists()


def test_the_folder_is_the_recipes_or_the_environments(monkeypatch, tmp_path):
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    assert cache.cache_root() == tmp_path / "encoded"
    assert cache.cache_root(str(tmp_path / "mine")) == tmp_path / "mine" / "encoded"
    monkeypatch.delenv("FORGE_HOME")
    assert cache.cache_root().parts[-3:] == (".cache", "forge", "encoded")


def test_a_hub_s_data_set_is_prepared_once_for_each_version(tmp_path, template, tokenizer, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    write(tmp_path / "set/train.jsonl")
    entry = read_entry("s", {"hf_hub_url": str(tmp_path / "set")}, tmp_path)

    def prepared():
        return prepare(Reading(entry, "sft"), template, tokenizer, OPTIONS, tmp_path / "encoded")

    first, second = prepared(), prepared()
    assert (first.made, second.made) == (True, False)
    assert second.folder == first.folder
    assert second.encoded.input_ids.tolist() == first.encoded.input_ids.tolist()
    assert str(second.source(3)) == str(first.source(3)) == f"hf:{tmp_path / 'set'} row 4"
    write(tmp_path / "set/train.jsonl", 2001)
    third = prepared()
    assert (third.made, third.read.rows_in) == (True, 2001)
