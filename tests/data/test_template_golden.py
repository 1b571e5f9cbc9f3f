"""What each template writes, by hand: text, ids and labels."""

from __future__ import annotations

import pytest
from chat_tokenizer import SHARED, write_tokenizer

from llmforge.data.example import IGNORE, Message
from llmforge.data.templates.find import TEMPLATES, get_template
from llmforge.data.templates.template import LabelPolicy
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError

SYSTEM = Message("system", "S")
TURNS = [Message("user", "U"), Message("assistant", "A"), Message("user", "V"), Message("assistant", "B")]
X = IGNORE

# system "S", then U -> A, V -> B; ⟦ ⟧ stand around what is learned.
GOLDEN = {
    "default": "System: S<eos>\nHuman: U<eos>\nAssistant:⟦A<eos>⟧\nHuman: V<eos>\nAssistant:⟦B<eos>⟧",
    "empty": "SU⟦A⟧V⟦B<eos>⟧",
    "default_generation": "SU⟦A<eos>⟧V⟦B<eos>⟧",
    "default_generation_bos": "<bos>SU⟦A<eos>⟧V⟦B<eos>⟧",
    "fewshot": "SU⟦A⟧\n\nV⟦B<eos>⟧",
    "alpaca": "S\n\n### Instruction:\nU\n\n### Response:\n⟦A<eos>⟧\n\n### Instruction:\nV\n\n### Response:\n⟦B<eos>⟧",
    "vicuna": "<bos>S USER: U ASSISTANT:⟦ A<eos>⟧USER: V ASSISTANT:⟦ B<eos>⟧",
    "bloom": "S\nUser: U\nBot:⟦ A<eos>⟧\nUser: V\nBot:⟦ B<eos>⟧",
    "baichuan": "S<reserved_102>U<reserved_103>⟦A⟧<reserved_102>V<reserved_103>⟦B<eos>⟧",
    "baichuan2": "S<reserved_106>U<reserved_107>⟦A⟧<reserved_106>V<reserved_107>⟦B<eos>⟧",
    "baichuan2_eos": "S<reserved_106>U<reserved_107>⟦A<eos>⟧<reserved_106>V<reserved_107>⟦B<eos>⟧",
    "chatglm2": "[gMASK]sopS[Round 1]\n\n问：U\n\n答：⟦A⟧\n\n[Round 2]\n\n问：V\n\n答：⟦B<eos>⟧",
    "chatglm3": "[gMASK]sop<|system|>\nS<|user|>\nU<|assistant|>⟦\nA⟧<|user|>\nV<|assistant|>⟦\nB<eos>⟧",
    "glm4": "[gMASK]<sop><|system|>\nS<|user|>\nU<|assistant|>⟦\nA⟧<|user|>\nV<|assistant|>⟦\nB<eos>⟧",
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n⟦A<|im_end|>⟧\n"
        "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n⟦B<|im_end|>⟧"
    ),
    "qwen3_nothink": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n⟦A<|im_end|>⟧\n"
        "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n⟦B<|im_end|>⟧"
    ),
    "qwen3": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n⟦A<|im_end|>⟧\n"
        "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nB<|im_end|>⟧"
    ),
    "llama2": "<bos>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST]⟦ A <eos>⟧<bos>[INST] V [/INST]⟦ B <eos>⟧",
    "llama2_zh": "<bos>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST]⟦ A <eos>⟧<bos>[INST] V [/INST]⟦ B <eos>⟧",
    "llama3": (
        "<bos><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦A<|eot_id|>⟧"
        "<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦B<|eot_id|>⟧"
    ),
    "mistral": "<bos>[INST] U[/INST]⟦ A<eos>⟧[INST] S\n\nV[/INST]⟦ B<eos>⟧",
    "gemma": (
        "<bos><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\n⟦A<end_of_turn>⟧\n"
        "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n⟦B<end_of_turn>⟧"
    ),
    "gemma3": (
        "<bos><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\n⟦A<end_of_turn>⟧\n"
        "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n⟦B<end_of_turn>⟧"
    ),
    "deepseek": "<bos>S\n\nUser: U\n\nAssistant:⟦ A<eos>⟧User: V\n\nAssistant:⟦ B<eos>⟧",
    "deepseek3": "<bos>S<｜User｜>U<｜Assistant｜>⟦A<eos>⟧<｜User｜>V<｜Assistant｜>⟦B<eos>⟧",
    "deepseekr1": "<bos>S<｜User｜>U<｜Assistant｜>⟦A<eos>⟧<｜User｜>V<｜Assistant｜><think>\n⟦\n</think>\n\nB<eos>⟧",
    "intern": "<bos><|System|>:S\n<|User|>:U\n<|Bot|>:⟦A<eoa>⟧\n<|User|>:V\n<|Bot|>:⟦B<eoa>⟧",
    "phi": (
        "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\n⟦A<|end|>⟧\n"
        "<|user|>\nV<|end|>\n<|assistant|>\n⟦B<|end|>⟧"
    ),
    "phi4": (
        "<|im_start|>system<|im_sep|>S<|im_end|>"
        "<|im_start|>user<|im_sep|>U<|im_end|><|im_start|>assistant<|im_sep|>⟦A<|im_end|>⟧"
        "<|im_start|>user<|im_sep|>V<|im_end|><|im_start|>assistant<|im_sep|>⟦B<|im_end|>⟧"
    ),
    "zephyr": (
        "<|system|>\nS<eos>\n<|user|>\nU<eos>\n<|assistant|>\n⟦A<eos>⟧\n<|user|>\nV<eos>\n<|assistant|>\n⟦B<eos>⟧"
    ),
    "openchat": (
        "<bos>GPT4 Correct System: S<|end_of_turn|>"
        "GPT4 Correct User: U<|end_of_turn|>GPT4 Correct Assistant:⟦ A<|end_of_turn|>⟧"
        "GPT4 Correct User: V<|end_of_turn|>GPT4 Correct Assistant:⟦ B<|end_of_turn|>⟧"
    ),
    "cpm": "<bos>S<用户>U<AI>⟦A<eos>⟧<用户>V<AI>⟦B<eos>⟧",
    "ziya": "S<human>:U\n<bot>:⟦A<eos>⟧\n<human>:V\n<bot>:⟦B<eos>⟧",
    "xverse": "SHuman: U\n\nAssistant: ⟦A<eos>⟧Human: V\n\nAssistant: ⟦B<eos>⟧",
    "aquila": "System: S###Human: U###Assistant:⟦A###⟧Human: V###Assistant:⟦B###⟧",
    "atom": "S<bos>Human: U\n<eos><bos>Assistant:⟦A\n<eos>⟧<bos>Human: V\n<eos><bos>Assistant:⟦B\n<eos>⟧",
}
for twin, name in {
    "qwen": "chatml", "smollm": "chatml", "smollm2": "chatml", "yi": "chatml", "marco": "chatml", "gemma2": "gemma",
    "skywork_o1": "llama3", "internlm": "intern",
}.items():  # fmt: skip
    GOLDEN[twin] = GOLDEN[name]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("chat")))


def shared_tokenizer(name):
    if not (SHARED / name / "tokenizer.json").exists():
        pytest.skip("no real tokenizers beside the checkout")
    return load_tokenizer(SHARED / name)


def marked(template, tokenizer, messages):
    """The row's text with ⟦ ⟧ around what is learned; eos that is only a label is not shown."""
    row = template.encode(tokenizer, messages)
    text, learning = "", False
    spans: list[tuple[list[int], bool]] = []
    for token, label in zip(row.input_ids, row.labels, strict=True):
        if not spans or spans[-1][1] != (label == token):
            spans.append(([], label == token))
        spans[-1][0].append(token)
    for ids, learning in spans:
        text += f"⟦{tokenizer.decode(ids)}⟧" if learning else tokenizer.decode(ids)
    return text


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_two_turns_with_a_system_text(name, tokenizer):
    assert marked(get_template(name, tokenizer), tokenizer, [SYSTEM, *TURNS]) == GOLDEN[name]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_template_learns_the_answers_and_their_end_and_nothing_else(name, tokenizer):
    template = get_template(name, tokenizer)
    messages = [
        Message("user", "hello"),
        Message("assistant", "I am fine"),
        Message("user", "再见"),
        Message("assistant", "好"),
    ]
    row = template.encode(tokenizer, messages)
    learned = tokenizer.decode([i for i in row.labels if i != IGNORE])
    ends = "<eos>" if template.eos_follows else tokenizer.decode([template.stop_ids(tokenizer)[0]])
    if name == "aquila":
        ends = "###"
    assert "I am fine" in learned
    assert "好" in learned
    assert "hello" not in learned
    assert learned.count(ends) == 2
    assert learned.endswith(ends)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_prompt_begins_the_row_that_is_trained_on(name, tokenizer):
    template = get_template(name, tokenizer, enable_thinking=None)  # None adds no block that only one of the two has
    row = template.encode(tokenizer, [SYSTEM, *TURNS]).input_ids
    prompt = template.encode(tokenizer, [SYSTEM, *TURNS[:-1]], add_generation_prompt=True)
    assert row[: len(prompt.input_ids)] == prompt.input_ids
    assert set(prompt.labels) == {IGNORE}


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_text_for_people_is_what_the_ids_say(name, tokenizer):
    template = get_template(name, tokenizer)
    assert template.text(tokenizer, [SYSTEM, *TURNS]) == tokenizer.decode(
        template.encode(tokenizer, [SYSTEM, *TURNS]).input_ids
    )


def test_the_founding_example_has_27_ids():
    qwen = shared_tokenizer("qwen2_5")
    messages = [
        Message("system", "You are a helpful assistant."),
        Message("user", "How are you?"),
        Message("assistant", "I am fine"),
    ]
    row = get_template("qwen", qwen).encode(qwen, messages)
    assert row.input_ids == [
        151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198,
        151644, 872, 198, 4340, 525, 498, 30, 151645, 198,
        151644, 77091, 198, 40, 1079, 6915, 151645,
    ]  # fmt: skip
    assert row.labels == [X] * 23 + [40, 1079, 6915, 151645]


def test_chinese_ids_of_qwen():
    qwen = shared_tokenizer("qwen2_5")
    assert qwen.ids("杭州是个好地方") == [104130, 104104, 52801, 100371]
    row = get_template("chatml", qwen).encode(qwen, [Message("user", "杭州是个好地方"), Message("assistant", "你好")])
    start, end, newline = 151644, 151645, 198
    assert row.input_ids == [
        start, 872, newline, 104130, 104104, 52801, 100371, end, newline, start, 77091, newline, 108386, end
    ]  # fmt: skip
    assert [i for i in row.labels if i != X] == [108386, end]


def test_baichuan2_learns_eos_under_the_next_users_mark():
    """REQUIREMENTS 2.14: ids 195 U 196 A 195 U2 196 A2 E, labels E only under the second 195 and at the end."""
    baichuan = shared_tokenizer("baichuan2")
    user, assistant, eos = 195, 196, 2
    hello, fine, bye, well = (baichuan.ids(text) for text in ("How are you?", "I am fine", "再见", "好"))
    messages = [
        Message("user", "How are you?"),
        Message("assistant", "I am fine"),
        Message("user", "再见"),
        Message("assistant", "好"),
    ]
    row = get_template("baichuan2", baichuan).encode(baichuan, messages)
    assert hello == [2737, 1484, 1438, 74]
    assert fine == [1406, 1832, 7354]
    assert row.input_ids == [user, *hello, assistant, *fine, user, *bye, assistant, *well, eos]
    assert row.labels == [X] * 6 + fine + [eos] + [X] * (len(bye) + 1) + [*well, eos]
    row = get_template("baichuan2_eos", baichuan).encode(baichuan, messages)
    assert row.input_ids == [user, *hello, assistant, *fine, eos, user, *bye, assistant, *well, eos]
    assert row.labels == [X] * 6 + [*fine, eos] + [X] * (len(bye) + 2) + [*well, eos]


def test_baichuan2_has_its_system_text_before_the_first_mark():
    baichuan = shared_tokenizer("baichuan2")
    row = get_template("baichuan2", baichuan).encode(
        baichuan,
        [Message("system", "You are a helpful assistant."), Message("user", "你好")],
        add_generation_prompt=True,
    )
    assert row.input_ids == [2136, 1484, 1346, 13629, 14002, 72, 195, 100030, 92428, 196]


def test_baichuan2_on_a_tokenizer_that_holds_the_two_reserved_tokens(tokenizer):
    row = get_template("baichuan2", tokenizer).encode(tokenizer, TURNS)
    user, assistant = tokenizer.control("<reserved_106>"), tokenizer.control("<reserved_107>")
    u, a, v, b = (tokenizer.ids(text)[0] for text in "UAVB")
    assert row.input_ids == [user, u, assistant, a, user, v, assistant, b, tokenizer.eos_id]
    assert row.labels == [X, X, X, a, tokenizer.eos_id, X, X, b, tokenizer.eos_id]


def test_default_system_texts_are_the_models_own(tokenizer):
    asked = [Message("user", "U")]
    assert (
        get_template("smollm2", tokenizer)
        .text(tokenizer, asked)
        .startswith(
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        )
    )
    assert get_template("qwen3", tokenizer).text(tokenizer, asked) == "<|im_start|>user\nU<|im_end|>\n"
    assert get_template("exaone", tokenizer).text(tokenizer, asked) == "[|system|][|endofturn|]\n[|user|]U\n"


def test_default_system_can_be_replaced_and_taken_away(tokenizer):
    asked = [Message("user", "U")]
    assert "system\nX<|im_end|>" in get_template("qwen", tokenizer, default_system="X").text(tokenizer, asked)
    assert (
        get_template("qwen", tokenizer, default_system="").text(tokenizer, asked) == "<|im_start|>user\nU<|im_end|>\n"
    )


def test_two_callers_share_nothing(tokenizer):
    changed = get_template("qwen", tokenizer, default_system="X", tool_format="default", enable_thinking=False)
    fresh = get_template("qwen", tokenizer)
    assert fresh == TEMPLATES.get("qwen")
    assert changed.hash() != fresh.hash() == get_template("qwen", tokenizer).hash()


def test_label_policy_and_train_flags(tokenizer):
    template = get_template("chatml", tokenizer)
    learned = lambda messages, **policy: tokenizer.decode(  # noqa: E731
        [i for i in template.encode(tokenizer, messages, policy=LabelPolicy(**policy)).labels if i != IGNORE]
    )
    assert learned(TURNS, mask_history=True) == "B<|im_end|>"
    masked = [TURNS[0], Message("assistant", "A", train=False), *TURNS[2:]]
    assert learned(masked) == "B<|im_end|>"
    kept = [TURNS[0], Message("assistant", "A", train=True), *TURNS[2:]]
    assert learned(kept, mask_history=True) == "A<|im_end|>B<|im_end|>"
    assert learned([Message("user", "U", train=True), TURNS[1]]).startswith("<|im_start|>user\nU<|im_end|>\n")
    everything = template.encode(tokenizer, TURNS, policy=LabelPolicy(train_on_prompt=True))
    separator = len(tokenizer.ids("\n"))
    assert everything.labels.count(IGNORE) == separator  # between the turns; it is no part of either
    with pytest.raises(RecipeError, match=r"baichuan2.*train_on_prompt"):
        get_template("baichuan2", tokenizer).encode(tokenizer, TURNS, policy=LabelPolicy(train_on_prompt=True))


def test_ids_do_not_depend_on_what_is_learned(tokenizer):
    for name in ("baichuan2", "vicuna", "glm4", "llama2", "chatml"):
        template = get_template(name, tokenizer)
        rows = [template.encode(tokenizer, TURNS, policy=LabelPolicy(mask_history=mask)) for mask in (False, True)]
        rows.append(template.encode(tokenizer, [*TURNS[:-1], Message("assistant", "B", train=False)]))
        assert len({tuple(row.input_ids) for row in rows}) == 1, name


def test_a_last_assistant_message_is_a_prefix_to_continue(tokenizer):
    template = get_template("chatml", tokenizer)
    row = template.encode(tokenizer, TURNS, add_generation_prompt=True)
    assert tokenizer.decode(row.input_ids).endswith("<|im_start|>assistant\nB")


def test_stop_ids_begin_with_the_templates_own_end(tokenizer):
    names = lambda name: [tokenizer.token(i) for i in get_template(name, tokenizer).stop_ids(tokenizer)]  # noqa: E731
    assert names("chatml") == ["<|im_end|>", "<eos>"]
    assert names("llama3") == ["<|eot_id|>", "<|eom_id|>", "<eos>"]
    assert names("glm4") == ["<|user|>", "<|observation|>", "<eos>"]
    assert names("baichuan2") == ["<eos>"]
    assert get_template("aquila", tokenizer).stop_strings(tokenizer) == ["</s>", "###"]
    assert get_template("chatml", tokenizer).stop_strings(tokenizer) == []


def test_an_unknown_name_names_the_nearest(tokenizer):
    with pytest.raises(RecipeError, match=r"'qwen33' is not known. Did you mean 'qwen3'"):
        get_template("qwen33", tokenizer)


def test_a_missing_control_token_names_template_token_and_tokenizer(tiny_tokenizer_dir):
    with pytest.raises(RecipeError, match=r"'llama3' does not fit.*tokenizer.*start_header_id"):
        get_template("llama3", load_tokenizer(tiny_tokenizer_dir))


def test_conversations_without_a_place_for_the_system_text_are_refused(tokenizer):
    with pytest.raises(RecipeError, match="no place for a system message"):
        get_template("llama2", tokenizer).encode(tokenizer, [*TURNS, SYSTEM])
    with pytest.raises(RecipeError, match="without messages"):
        get_template("llama2", tokenizer).encode(tokenizer, [])


def test_every_template_says_where_its_format_is_published():
    for name in TEMPLATES:
        template = TEMPLATES.get(name)
        assert template.name == name
        assert len(template.source) > 10
