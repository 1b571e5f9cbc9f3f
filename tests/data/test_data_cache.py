import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from llmforge.data import cache
from llmforge.data.encode import encode_examples
from llmforge.data.example import Example, Message, RowRef
from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer

OPTIONS = {"cutoff_len": 24}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def template(tokenizer):
    return get_template("chatml", tokenizer, default_system="")


def rows(count=cache.MIN_EXAMPLES, file="a"):
    def example(i):
        reply = "b" * 40 if i == 5 else "b"
        prompt = "q" * 60 if i == 7 else f"q{i}"
        return Example((Message("user", prompt), Message("assistant", reply)), RowRef(file, i + 1))

    return [example(i) for i in range(count)]


class Counted:
    """Encodes and counts how often."""

    def __init__(self, examples, template, tokenizer, slow=0.0):
        self.times, self.slow, self.arguments = 0, slow, (examples, template, tokenizer)

    def __call__(self):
        self.times += 1
        time.sleep(self.slow)
        return encode_examples(*self.arguments, stage="sft", **OPTIONS)


def test_the_second_call_maps_the_first_ones_copy(tmp_path, template, tokenizer):
    build = Counted(rows(), template, tokenizer)
    first, report = cache.encoded_once(tmp_path, rows(), template, tokenizer, OPTIONS, build)
    again, told = cache.encoded_once(tmp_path, rows(file="b"), template, tokenizer, OPTIONS, build)
    assert build.times == 1
    assert isinstance(again.input_ids, np.memmap)
    for name in cache.ARRAYS:
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert [(s.row, why) for s, why in told.rejected] == [(s.row, why) for s, why in report.rejected]
    assert [s.row for s, _ in told.rejected] == [8]
    assert [(s.file, s.row) for s, _ in told.fixed] == [("b", 6)]
    assert (told.rows_in, told.rows_out) == (report.rows_in, report.rows_out)


def test_the_key_covers_all_that_decides_the_ids(template, tokenizer, tmp_path):
    examples = rows(3)
    changed = replace(examples[0], messages=(*examples[0].messages[:1], Message("assistant", "c")))
    masked = replace(examples[0], messages=(*examples[0].messages[:1], Message("assistant", "b", train=False)))
    keys = [
        cache.cache_key(examples, template, tokenizer, OPTIONS),
        cache.cache_key([changed, *examples[1:]], template, tokenizer, OPTIONS),
        cache.cache_key([masked, *examples[1:]], template, tokenizer, OPTIONS),
        cache.cache_key(examples[::-1], template, tokenizer, OPTIONS),
        cache.cache_key(examples, replace(template, default_system="s"), tokenizer, OPTIONS),
        cache.cache_key(examples, template, tokenizer, {"cutoff_len": 25}),
    ]
    assert len(set(keys)) == len(keys)
    assert cache.cache_key(rows(3, file="b"), template, tokenizer, OPTIONS) == keys[0]


def test_few_rows_leave_no_copy(tmp_path, template, tokenizer):
    build = Counted(rows(5), template, tokenizer)
    cache.encoded_once(tmp_path / "c", rows(5), template, tokenizer, OPTIONS, build)
    assert not (tmp_path / "c").exists()


def test_overwrite_and_a_damaged_copy_build_anew(tmp_path, template, tokenizer):
    build = Counted(rows(), template, tokenizer)

    def get(**options):
        return cache.encoded_once(tmp_path, rows(), template, tokenizer, OPTIONS, build, **options)

    get()
    get(overwrite=True)
    assert build.times == 2
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (folder / "labels.npy").write_bytes((folder / "labels.npy").read_bytes()[:500])
    encoded, _ = get()
    assert build.times == 3
    assert len(encoded) == cache.MIN_EXAMPLES - 1
    (folder / "report.json").write_text("{")
    get()
    assert build.times == 4


def test_two_at_once_build_once(tmp_path, template, tokenizer):
    build = Counted(rows(), template, tokenizer, slow=0.3)
    for overwrite in (False, True):
        build.times, results = 0, []

        def get(overwrite=overwrite, results=results):
            results.append(
                cache.encoded_once(tmp_path, rows(), template, tokenizer, OPTIONS, build, overwrite=overwrite)
            )

        threads = [threading.Thread(target=get) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert build.times == 1
        assert len(results) == 2


def test_a_cache_that_cannot_be_written_is_told_and_does_without(tmp_path, template, tokenizer):
    (tmp_path / "file").write_text("")
    build = Counted(rows(), template, tokenizer)
    encoded, report = cache.encoded_once(tmp_path / "file", rows(), template, tokenizer, OPTIONS, build)
    assert len(encoded) == cache.MIN_EXAMPLES - 1
    assert "no encoded copy was kept" in report.notes[-1]


def test_copies_nobody_uses_are_removed(tmp_path, template, tokenizer):
    old, fresh = tmp_path / "old", tmp_path / "fresh"
    for folder in (old, fresh):
        folder.mkdir()
    long_ago = time.time() - (cache.KEEP_DAYS + 1) * 86400
    os.utime(old, (long_ago, long_ago))
    cache.encoded_once(tmp_path, rows(), template, tokenizer, OPTIONS, Counted(rows(), template, tokenizer))
    assert not old.exists()
    assert fresh.exists()


def test_the_folder_is_the_recipes_or_the_environments(monkeypatch, tmp_path):
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    assert cache.cache_root() == tmp_path / "encoded"
    assert cache.cache_root(str(tmp_path / "mine")) == tmp_path / "mine" / "encoded"
    monkeypatch.delenv("FORGE_HOME")
    assert cache.cache_root().parts[-3:] == (".cache", "forge", "encoded")
