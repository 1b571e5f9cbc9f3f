"""A tokenizer folder: text stays text, control tokens have names, and a space stands where the tokenizer puts it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from chat_tokenizer import SHARED, write_tokenizer
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from llmforge.data.example import Message
from llmforge.data.templates.template import Template
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("chat"))


def words(tmp_path, pre_tokenizer=None, normalizer=None, tokens=("<s>", "</s>"), vocabulary=()):
    """A BPE of single characters and a few words."""
    pieces = [*tokens, *(chr(i) for i in range(32, 127)), "▁", "▁h", "▁hi", "hi", *vocabulary]
    merges = [("▁", "h"), ("▁h", "i"), ("h", "i")]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    return load_tokenizer(tmp_path)


def pieces(tokenizer, text, after):
    return [tokenizer.token(i) for i in tokenizer.ids(text, after)]


LLAMA2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


@pytest.mark.parametrize(
    ("kind", "nothing", "control", "text"),
    [
        ({"normalizer": LLAMA2}, "▁hi", "▁hi", "hi"),
        ({"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="always")}, "▁hi", "▁hi", "hi"),
        ({"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="first")}, "▁hi", "hi", "hi"),
        ({"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="never")}, "hi", "hi", "hi"),
    ],
)
def test_the_space_before_a_text_stands_where_transformers_puts_it(kind, nothing, control, text, tmp_path):
    tokenizer = words(tmp_path, **kind)
    assert pieces(tokenizer, "hi", "nothing") == [nothing]
    assert pieces(tokenizer, "hi", "control") == [control]
    assert pieces(tokenizer, "hi", "text") == [text]
    assert pieces(tokenizer, " hi", "text") == ["▁hi"]  # a reply after "ASSISTANT:" gets one space, not two
    from transformers import PreTrainedTokenizerFast

    whole = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))("hi<s>hi").input_ids
    ours = [*tokenizer.ids("hi"), tokenizer.bos_id, *tokenizer.ids("hi", "control")]
    assert whole == ours


def test_a_vocabulary_that_finds_control_tokens_by_itself_is_kept_from_it(tmp_path):
    """A unigram model knows "</s>" as a piece, whatever the list of added tokens says."""
    letters = [(c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz<>/|_ "]
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", -1.0), ("<s>", -1.0), *letters], unk_id=0))
    tokenizer.add_special_tokens([AddedToken("</s>", normalized=False), AddedToken("<s>", normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "unk_token": "<unk>"}')
    loaded = load_tokenizer(tmp_path)
    ids = loaded.ids("a</s>b<s></s>")
    assert {loaded.eos_id, loaded.control("<s>")}.isdisjoint(ids)
    assert loaded.decode(ids).replace(" ", "") == "a</s>b<s></s>"
    assert loaded.ids("a中") == [loaded.control("a"), 0]  # an unknown character is no control token


def test_no_bos_is_added_and_empty_text_is_nothing(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.bos_id not in tokenizer.ids("hello")
    assert tokenizer.ids("") == []


def test_control_tokens_have_names_and_the_nearest_one_is_offered(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.token(tokenizer.control("<|im_end|>")) == "<|im_end|>"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == (
        "<bos>",
        "<eos>",
        "<pad>",
        None,
    )
    assert tokenizer.decode([tokenizer.eos_id]) == "<eos>"
    with pytest.raises(RecipeError, match=r"has no token '<\|im_en\|>'. Did you mean '<\|im_end\|>'"):
        tokenizer.control("<|im_en|>")


def test_decode_skips_what_the_folder_flags_as_special_and_nothing_else():
    if not (SHARED / "qwen2_5").exists():
        pytest.skip("no real tokenizers beside the checkout")
    tokenizer = load_tokenizer(SHARED / "qwen2_5")
    call, end = tokenizer.control("<tool_call>"), tokenizer.control("<|im_end|>")
    assert tokenizer.decode([call, *tokenizer.ids("x"), end], skip_special=True) == "<tool_call>x"
    assert len(tokenizer) == 151665
    assert tokenizer.ids("<tool_call>") != [call]


def test_a_control_token_swallows_white_space_where_its_file_says_so(tmp_path):
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(["\n", *"abUA"])}, []))
    tokenizer.add_special_tokens(
        [AddedToken("<end>", rstrip=True, normalized=False), AddedToken("<pre>", lstrip=True, normalized=False)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    template = Template(name="t", source="here", prompt="{content}\n<pre>", suffix="<end>", separator="\n")
    turns = [Message("user", "U"), Message("assistant", "A"), Message("user", "U"), Message("assistant", "A")]
    pre, end = loaded.control("<pre>"), loaded.control("<end>")
    u, a = loaded.control("U"), loaded.control("A")
    assert template.encode(loaded, turns).input_ids == [u, pre, a, end, u, pre, a, end]
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs(template.text(loaded, turns)).input_ids == [u, pre, a, end, u, pre, a, end]


def test_the_vocabulary_hash_follows_the_meaning_of_ids(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    shutil.copytree(folder, tmp_path / "copy")
    again = tmp_path / "copy/tokenizer.json"
    again.write_text(json.dumps(json.loads(again.read_text(encoding="utf-8")), indent=1), encoding="utf-8")
    assert load_tokenizer(tmp_path / "copy").vocab_hash == tokenizer.vocab_hash
    changed = json.loads(again.read_text(encoding="utf-8"))
    changed["added_tokens"].append({**changed["added_tokens"][0], "id": len(tokenizer), "content": "<new>"})
    again.write_text(json.dumps(changed), encoding="utf-8")
    assert load_tokenizer(tmp_path / "copy").vocab_hash != tokenizer.vocab_hash


def test_chat_template_and_stop_ids_are_read_from_their_files(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert load_tokenizer(copy).chat_template is None
    (copy / "special_tokens_map.json").write_text('{"unk_token": "<pad>"}')
    (copy / "config.json").write_text('{"eos_token_id": 3}')
    assert load_tokenizer(copy).stop_ids == (3,)
    (copy / "generation_config.json").write_text('{"eos_token_id": [4, 5]}')
    (copy / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    loaded = load_tokenizer(copy / "tokenizer.json")
    assert loaded.stop_ids == (4, 5)
    assert loaded.chat_template == "{{ messages }}"
    assert loaded.unk_token == "<pad>"
    (copy / "chat_template.jinja").unlink()
    config = {"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(copy).chat_template == "d"
    assert load_tokenizer(copy).eos_id is None


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(RecipeError, match="nowhere' is not a folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(RecipeError, match=r"holds no tokenizer\.json, and none of tokenizer\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(RecipeError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(tmp_path)
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(RecipeError, match=r"tokenizer_config\.json is not JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(RecipeError, match="holds list, expected an object"):
        load_tokenizer(tmp_path)


def test_neither_torch_nor_transformers_is_imported():
    code = (
        "import sys, llmforge.data.tokenizer, llmforge.data.templates.find, llmforge.data.templates.compare, "
        "llmforge.data_command; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
