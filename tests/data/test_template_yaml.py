"""A template in a YAML file named by a recipe."""

from __future__ import annotations

import pytest
from chat_tokenizer import write_tokenizer

from llmforge.data.example import Message
from llmforge.data.templates.find import get_template
from llmforge.data.templates.sandbox import render
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError

SIX_FIELDS = r"""
prefix: "{bos}"
prompt: "<user>{content}"
separator: "\n"
suffix: "{eos}"
default_system: Be brief.
system_prefix: "<system>{content}\n"
roles: {assistant: "<model>", tool: "<result>{content}"}
stop_words: ["<user>"]
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("chat")))


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_six_fields_roles_and_stop_words_make_a_template(tmp_path, tokenizer):
    template = get_template(write(tmp_path, SIX_FIELDS), tokenizer)
    messages = [Message("user", "U"), Message("assistant", "A"), Message("user", "V"), Message("assistant", "B")]
    want = "<bos><system>Be brief.\n<user>U<model>A<eos>\n<user>V<model>B<eos>"
    assert template.text(tokenizer, messages) == want
    assert template.name == "mine"
    assert template.stop_strings(tokenizer) == ["<user>"]
    shown = [{"role": m.role, "content": m.content} for m in messages]
    assert render(template.jinja(tokenizer), messages=shown) == want


def test_a_prompt_may_hold_the_opening_of_the_reply(tmp_path, tokenizer):
    template = get_template(write(tmp_path, 'prompt: "Q: {content}\\nA: "'), tokenizer)
    assert template.text(tokenizer, [Message("user", "U"), Message("assistant", "A")]) == "Q: U\nA: A<eos>"
    assert template.text(tokenizer, [Message("user", "U")], (), True) == "Q: U\nA: "


def test_other_fields_may_be_set(tmp_path, tokenizer):
    text = (
        SIX_FIELDS + "thinking: {asks: true}\neos_follows: true\nsystem_in: last\ntool_syntax: null\nmarks: [<think>]\n"
    )
    template = get_template(write(tmp_path, text), tokenizer)
    assert template.thinking.asks
    assert template.eos_follows
    assert (
        template.text(tokenizer, [Message("user", "U")], (), True) == "<bos><user><system>Be brief.\nU<model><think>\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("promt: x", r"promt: no such field. Did you mean 'prompt'"),
        ("prompt: x", r"prompt: is missing, or has no \{content\}"),
        ("prompt: '{content}'\nsuffix: 3", "suffix: got 3, expected text"),
        ("prompt: '{content}'\nstop_words: x", "stop_words: got 'x', expected a list of texts"),
        ("prompt: '{content}'\ntrim: maybe", "trim: got 'maybe', expected true or false"),
        ("prompt: '{content}'\nsystem_in: frist", "expected one of turn, first, last. Did you mean 'first'"),
        ("prompt: '{content}'\nroles: {asistant: x}", "'asistant' is not known. Did you mean 'assistant'"),
        ("prompt: '{content}'\nroles: [x]", "expected a mapping"),
        ("prompt: '{content}'\nthinking: {asks: 'yes'}", "asks: got 'yes', expected bool"),
        ("prompt: '{content}'\ntool_syntax: qwem", "Did you mean 'qwen'"),
        ("prompt: '{content}'\nmarks: ['<|nothing|>']", "does not fit this model"),
        ("- x", "holds list, expected a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(text, message, tmp_path, tokenizer):
    with pytest.raises(RecipeError, match=message):
        get_template(write(tmp_path, text), tokenizer)


def test_a_missing_file_is_named(tokenizer):
    with pytest.raises(RecipeError, match=r"no file 'nowhere\.yaml'"):
        get_template("nowhere.yaml", tokenizer)
