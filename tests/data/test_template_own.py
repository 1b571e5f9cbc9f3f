"""`template: auto`: the tokenizer's own chat template, its learned spans, and its refusals."""

from __future__ import annotations

import pytest
from chat_tokenizer import SHARED, as_dict, write_tokenizer

from llmforge.data.example import IGNORE, Message, ToolCall
from llmforge.data.templates.compare import compare_with_own
from llmforge.data.templates.find import get_template
from llmforge.data.templates.sandbox import render
from llmforge.data.templates.template import LabelPolicy
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError

TURNS = [Message("user", "U"), Message("assistant", "A"), Message("user", "V"), Message("assistant", "B")]
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen3's treatment of reasoning, in its own words but shorter: none in the history, an empty block for a last reply.
QWEN3 = """
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""


@pytest.fixture(scope="module")
def with_template(tmp_path_factory):
    def make(chat_template, **config):
        folder = tmp_path_factory.mktemp("own")
        return load_tokenizer(write_tokenizer(folder, chat_template=chat_template, **config))

    return make


def learned(tokenizer, messages, template=None, **policy):
    template = template or get_template("auto", tokenizer)
    row = template.encode(tokenizer, messages, policy=LabelPolicy(**policy))
    return tokenizer.decode([i for i in row.labels if i != IGNORE])


def test_auto_equals_the_named_template(with_template):
    for source, name in ((CHATML, "chatml"), (SMOLLM2, "smollm2"), (QWEN3, "qwen3")):
        tokenizer = with_template(source)
        own, named = get_template("auto", tokenizer), get_template(name, tokenizer)
        for messages in (TURNS, [Message("system", "S"), *TURNS], TURNS[:2]):
            assert own.encode(tokenizer, messages) == named.encode(tokenizer, messages), name
            asked = messages[:-1]
            for thinking in (True, False, None):
                pair = [get_template(n, tokenizer, enable_thinking=thinking) for n in ("auto", name)]
                prompts = [template.encode(tokenizer, asked, add_generation_prompt=True) for template in pair]
                assert prompts[0] == prompts[1]
        assert own.stop_ids(tokenizer) == named.stop_ids(tokenizer)


def test_auto_gives_the_ids_of_transformers(with_template):
    from transformers import PreTrainedTokenizerFast

    tokenizers = [with_template(SMOLLM2), with_template(QWEN3)]
    if (SHARED / "qwen2_5").exists():
        tokenizers.append(load_tokenizer(SHARED / "qwen2_5"))
    for tokenizer in tokenizers:
        theirs = PreTrainedTokenizerFast.from_pretrained(tokenizer.folder)
        for messages in (TURNS[:1], TURNS[:3], [Message("system", "你好  "), *TURNS[:3]]):
            want = theirs.apply_chat_template(
                [as_dict(m) for m in messages], add_generation_prompt=True, return_dict=False
            )
            assert (
                get_template("auto", tokenizer).encode(tokenizer, messages, add_generation_prompt=True).input_ids
                == want
            )


def test_every_reply_and_its_end_token_is_learned(with_template):
    tokenizer = with_template(CHATML)
    assert learned(tokenizer, TURNS) == "A<|im_end|>B<|im_end|>"
    assert learned(tokenizer, TURNS, mask_history=True) == "B<|im_end|>"
    assert learned(tokenizer, [TURNS[0], Message("assistant", "A", train=False), *TURNS[2:]]) == "B<|im_end|>"
    row = get_template("auto", tokenizer).encode(tokenizer, TURNS)
    assert tokenizer.decode(row.input_ids).endswith("B<|im_end|>")  # no separator behind the last turn


def test_reasoning_in_the_history_is_dropped_and_its_reply_not_learned(with_template):
    tokenizer = with_template(QWEN3)
    thinking = [
        TURNS[0],
        Message("assistant", "A", reasoning="hm"),
        TURNS[2],
        Message("assistant", "<think>\nso\n</think>\n\nB"),
    ]
    named = get_template("qwen3", tokenizer)
    assert learned(tokenizer, thinking) == "<think>\nso\n</think>\n\nB<|im_end|>" == learned(tokenizer, thinking, named)
    assert get_template("auto", tokenizer).encode(tokenizer, thinking) == named.encode(tokenizer, thinking)
    off = get_template("auto", tokenizer, enable_thinking=False)
    assert learned(tokenizer, thinking, off) == "A<|im_end|>B<|im_end|>"


def test_generation_tags_say_what_is_learned(with_template):
    tokenizer = with_template(
        "{% for m in messages %}{% if m.role == 'assistant' %}>{% generation %}{{ m.content }}!{% endgeneration %}"
        "{% else %}<{{ m.content }}{% endif %}{% endfor %}"
    )
    row = get_template("auto", tokenizer).encode(tokenizer, TURNS)
    assert tokenizer.decode(row.input_ids) == "<U>A!<V>B!"
    assert learned(tokenizer, TURNS) == "A!B!"
    assert learned(tokenizer, TURNS, mask_history=True) == "B!"


def test_a_row_that_does_not_begin_with_its_prompt_is_refused(with_template):
    r1 = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    with pytest.raises(RecipeError, match=r"the prompt for reply 2 ends in .*think.*cannot be told; name a template"):
        learned(with_template(r1), TURNS[:2])


def test_a_reply_without_an_end_token_is_refused(with_template):
    tokenizer = with_template(CHATML.replace("'<|im_end|>' + ", ""))
    with pytest.raises(RecipeError, match="holds no end token"):
        learned(tokenizer, TURNS)
    template = get_template("auto", tokenizer)  # asking with it is fine
    assert template.stop_ids(tokenizer) == [tokenizer.eos_id]


def test_a_history_that_is_rewritten_is_refused(with_template):
    tokenizer = with_template(
        CHATML.replace(
            "message['content']",
            "(message.content if loop.last or message.role == 'user' else message.content | upper)",
        )
    )
    with pytest.raises(RecipeError, match="reads differently once the conversation goes on"):
        learned(
            tokenizer,
            [Message("user", "u"), Message("assistant", "a"), Message("user", "v"), Message("assistant", "b")],
        )


def test_a_typed_token_that_the_template_does_more_with_than_print_is_refused(with_template):
    tokenizer = with_template(CHATML.replace("message['content']", "(message['content'] | upper)"))
    template = get_template("auto", tokenizer)
    template.encode(tokenizer, [Message("user", "hello")], add_generation_prompt=True)
    with pytest.raises(RecipeError, match="cannot be kept apart"):
        template.encode(tokenizer, [Message("user", "hello <|im_end|>")], add_generation_prompt=True)


def test_a_template_that_trims_still_trims_around_a_typed_token(with_template):
    tokenizer = with_template(CHATML.replace("message['content']", "(message['content'] | trim)"))
    row = get_template("auto", tokenizer).encode(
        tokenizer, [Message("user", " <|im_end|> ")], add_generation_prompt=True
    )
    assert tokenizer.decode(row.input_ids) == "<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert row.input_ids.count(tokenizer.control("<|im_end|>")) == 1


def test_the_system_text_and_thinking_of_a_recipe_go_into_the_jinja(with_template):
    tokenizer = with_template(QWEN3)
    template = get_template("auto", tokenizer, default_system="It's me", enable_thinking=False)
    values = {"messages": [{"role": "user", "content": "U"}], "add_generation_prompt": True}
    assert render(template.jinja(tokenizer), **values) == template.text(
        tokenizer, TURNS[:1], add_generation_prompt=True
    )


def test_a_tokenizer_without_chat_template_says_so(with_template):
    with pytest.raises(RecipeError, match="auto needs a chat template"):
        get_template("auto", with_template(None))


def test_a_broken_chat_template_is_found_at_once(with_template):
    with pytest.raises(RecipeError, match="cannot be read"):
        get_template("auto", with_template("{% for %}"))


def test_the_first_difference_is_shown_with_both_texts(with_template):
    tokenizer = with_template(SMOLLM2)
    assert compare_with_own(get_template("smollm2", tokenizer), tokenizer) is None
    dotted = get_template(
        "smollm2", tokenizer, default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face."
    )
    message = compare_with_own(dotted, tokenizer)
    assert "for one question" in message
    assert "'.'" in message
    assert "'<|im_end|>'" in message
    assert compare_with_own(get_template("llama3", tokenizer), tokenizer).startswith("template 'llama3' differs")
    assert compare_with_own(dotted, with_template(None)) is None


def test_calls_of_the_own_template_are_read_back():
    if not (SHARED / "qwen2_5").exists():
        pytest.skip("no real tokenizers beside the checkout")
    tokenizer = load_tokenizer(SHARED / "qwen2_5")
    message = get_template("auto", tokenizer).parse_reply(
        '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    )
    assert message.tool_calls == (ToolCall("f", {"x": 1}),)


def test_typed_tokens_in_a_history_that_lost_its_think_block(with_template):
    tokenizer = with_template(QWEN3)
    tool = {"name": "f", "description": "<|im_end|>", "parameters": {}}
    messages = [
        Message("user", "<|im_start|>"),
        Message("assistant", "A <|im_end|>"),
        Message("user", "V"),
        Message("assistant", "<think>\n<|im_end|>\n</think>\n\nB"),
    ]
    row = get_template("auto", tokenizer).encode(tokenizer, messages, [tool])
    named = get_template("qwen3", tokenizer).encode(tokenizer, messages)
    assert row == named  # this chat template does not print tools
    assert learned(tokenizer, messages) == "A <|im_end|><|im_end|><think>\n<|im_end|>\n</think>\n\nB<|im_end|>"
    assert row.input_ids.count(tokenizer.control("<|im_end|>")) == 4


def test_a_reply_can_be_continued(with_template):
    tokenizer = with_template(CHATML)
    row = get_template("auto", tokenizer).encode(tokenizer, TURNS, add_generation_prompt=True)
    assert row == get_template("chatml", tokenizer).encode(tokenizer, TURNS, add_generation_prompt=True)


def test_what_auto_cannot_learn_is_refused(with_template):
    tokenizer = with_template(CHATML)
    with pytest.raises(RecipeError, match="learns replies only"):
        learned(tokenizer, [Message("user", "U", train=True), TURNS[1]])
    with pytest.raises(RecipeError, match="without messages"):
        learned(tokenizer, [])
    once = "{% generation %}{{ messages[-1].content }}{% endgeneration %}"
    with pytest.raises(RecipeError, match="marks 1 texts, and the row has 2 replies"):
        learned(with_template(once), TURNS)


def test_a_chat_template_that_refuses_the_probe_is_named(with_template):
    picky = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    tokenizer = with_template(picky)
    message = compare_with_own(get_template("chatml", tokenizer), tokenizer)
    assert message == (
        "the tokenizer's own chat template cannot render a system text: the model's chat template stops: no system"
    )
