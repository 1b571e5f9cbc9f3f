"""SentencePiece files become tokenizer.json with the same ids, checked against the sentencepiece package."""

from __future__ import annotations

import pytest

from llmforge.data import tokenizer_conversion
from llmforge.data.templates.find import get_template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.data.tokenizer_conversion import from_sentencepiece
from llmforge.errors import RecipeError

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "你好，世界。今天天气怎么样？",
    "hello how are you today",
    "打印机卡纸了，请派人来修。",
    "I am fine, thank you very much  indeed",
]
TEXTS = (
    "hello",
    "the quick  fox",
    "你好 hello世界",
    "  lead trail  ",
    "ＡＢＣ x",
    "emoji 😀!",
    "x\ny",
    "thank you",
    "",
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def train(folder, kind="bpe", rule="identity", prefix=True, squeeze=False):
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type=kind,
        byte_fallback=True,
        normalization_rule_name=rule,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=squeeze,
        user_defined_symbols=["<reserved_106>", "<reserved_107>"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize(("prefix", "squeeze"), [(True, False), (False, False), (True, True), (False, True)])
def test_ids_and_text_are_sentencepieces_own(kind, rule, prefix, squeeze, tmp_path):
    theirs = train(tmp_path, kind, rule, prefix, squeeze)
    ours = from_sentencepiece(tmp_path / "tokenizer.model")
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == theirs.decode(ids), text


def test_baichuan2s_own_layout_is_read_without_remote_code(tmp_path, cache):
    """tokenizer.model and a config that asks for remote code; the ids are those of Baichuan2's build_chat_input."""
    from llmforge.data.example import Message

    theirs = train(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", null]}, "eos_token": "</s>"}'
    )
    tokenizer = load_tokenizer(tmp_path)
    user, assistant = (theirs.piece_to_id(f"<reserved_{n}>") for n in (106, 107))
    messages = [Message("user", "你好"), Message("assistant", "hello"), Message("user", "how are <reserved_107> you")]
    ids = get_template("baichuan2", tokenizer).encode(tokenizer, messages, add_generation_prompt=True).input_ids
    first = [user, *theirs.encode("你好"), assistant, *theirs.encode("hello"), user]
    assert ids[: len(first)] == first
    assert ids[-1] == assistant
    assert ids.count(assistant) == 2  # the typed one stayed text


def test_the_conversion_is_cached_and_follows_the_file(tmp_path, cache):
    train(tmp_path)
    first = tokenizer_conversion.convert(tmp_path)
    written = first.stat().st_mtime_ns
    assert tokenizer_conversion.convert(tmp_path) == first
    assert first.stat().st_mtime_ns == written
    train(tmp_path, kind="unigram")
    assert tokenizer_conversion.convert(tmp_path) != first


def test_files_of_other_kinds_go_through_transformers(tmp_path, cache):
    import json

    alphabet = "abcdehlmo Ġ"
    (tmp_path / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate([*alphabet, "he", "<|endoftext|>"])}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\n")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}'
    )
    tokenizer = load_tokenizer(tmp_path)
    assert [tokenizer.token(i) for i in tokenizer.ids("hello")] == ["he", "l", "l", "o"]


def test_what_cannot_be_converted_is_named(tmp_path, cache):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x05\n\x03abc\x15")
    with pytest.raises(RecipeError, match="SentencePiece model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(RecipeError, match="tiktoken file says neither"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(RecipeError, match="converting its files fails"):
        load_tokenizer(tmp_path)
