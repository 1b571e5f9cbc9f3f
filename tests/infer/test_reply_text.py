"""Text that comes token by token: whole characters, right spaces, no stop strings."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from llmforge.data.tokenizer import Tokenizer, load_tokenizer
from llmforge.infer.local.text import StopStrings, TextStream

SHARED = Path(__file__).parents[2] / "../shared/tokenizers"
TEXTS = [
    "Hello world, 你好，世界！",
    "燕尾箭头 🏹🏹 means → flow\n\n  indented\ttext",
    "杭州是个好地方。",
    " leading and trailing ",
    "é̂ combining, emoji family 👨‍👩‍👧‍👦!",
]


@pytest.fixture(scope="module")
def byte_level(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture
def sentencepiece():
    """The decoder of Llama 2: "▁" is a space, the first of a text is dropped, <0xE4> is a byte."""
    words = ["<s>", "</s>", "▁", "▁Hello", "▁world", "ly", "你", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {word: id for id, word in enumerate(words)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<s>"))
    backend.add_special_tokens(["<s>", "</s>"])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(backend, {"eos_token": "</s>", "bos_token": "<s>"}, Path("."))


def streamed(tokenizer, ids, **settings):
    stream = TextStream(tokenizer, **settings)
    return [*(stream.push(id) for id in ids), stream.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_byte_tokens_come_out_as_whole_characters(byte_level, text):
    parts = streamed(byte_level, byte_level.ids(text))
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("name", ["baichuan2", "qwen2_5"])
@pytest.mark.parametrize("text", TEXTS)
def test_real_tokenizers_stream_what_they_decode(name, text):
    if not (SHARED / name).exists():
        pytest.skip("real tokenizers are not beside the checkout")
    tokenizer = load_tokenizer(SHARED / name)
    ids = tokenizer.ids(text)
    parts = streamed(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(ids, skip_special=True)
    assert not any("\ufffd" in part for part in parts)


def test_spaces_of_sentencepiece_are_those_of_the_whole_text(sentencepiece):
    ids = [3, 4, 5, 4, 2, 3]  # ▁Hello ▁world ly ▁world ▁ ▁Hello
    assert streamed(sentencepiece, ids) == ["Hello", " world", "ly", " world", " ", " Hello", ""]
    assert sentencepiece.decode(ids) == "Hello worldly world  Hello"


def test_a_continued_text_keeps_its_first_space(sentencepiece):
    assert streamed(sentencepiece, [4], context=[3]) == [" world", ""]
    assert streamed(sentencepiece, [4]) == ["world", ""]


def test_bytes_wait_for_their_character(sentencepiece):
    ids = [3, *(7 + byte for byte in "好".encode()), 4]
    assert streamed(sentencepiece, ids) == ["Hello", "", "", "好", " world", ""]


def test_a_character_cut_by_the_end_is_left_out(sentencepiece):
    assert streamed(sentencepiece, [3, 7 + 0xE4, 7 + 0xBD]) == ["Hello", "", "", ""]


def test_bytes_that_never_make_a_character_do_not_hold_the_text_forever(sentencepiece):
    parts = streamed(sentencepiece, [3] + [7 + 0xFF] * 6 + [4])
    assert parts[-2].endswith(" world")
    assert "".join(parts).startswith("Hello\ufffd")


def test_control_tokens_are_left_out_unless_wanted(sentencepiece):
    assert "".join(streamed(sentencepiece, [3, 1, 4])) == "Hello world"
    assert "".join(streamed(sentencepiece, [3, 1, 4], skip_special=False)) == "Hello</s> world"


def stopped(stops, *texts):
    finder = StopStrings(stops)
    out = [finder.push(text) for text in texts]
    return out, finder.found, finder.flush()


def test_text_is_held_back_while_a_stop_string_may_begin():
    assert stopped(["User:"], "Hi\nUs", "er", ": more") == (["Hi\n", "", ""], True, "")
    assert stopped(["User:"], "Hi\nUs", "eful") == (["Hi\n", "Useful"], False, "")


def test_held_text_comes_out_at_the_end():
    assert stopped(["###"], "a##") == (["a"], False, "##")


def test_the_earliest_stop_string_cuts():
    assert stopped(["dd", "b"], "abcdd") == (["a"], True, "")


def test_without_stop_strings_nothing_waits():
    assert stopped([], "a", "b") == (["a", "b"], False, "")
