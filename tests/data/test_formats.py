"""Rows of every format as canonical examples, and the reason of every row that is none."""

import json
from pathlib import Path

import pytest

from llmforge.config.names import FORMATS
from llmforge.data.entry import read_entry
from llmforge.data.example import Message, RowRef, ToolCall
from llmforge.data.formats.row import Rejected, RowContext

U, A, S = "user", "assistant", "system"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def convert(row, stage="sft", **entry):
    context = RowContext(read_entry("set", {"file_name": "set.json", **entry}, Path()), stage, RowRef("set.json", 1))
    example = FORMATS.get(context.entry.formatting)(row, context)
    return example, context.fixes


def reason(row, stage="sft", **entry):
    with pytest.raises(Rejected) as caught:
        convert(row, stage, **entry)
    return str(caught.value)


def turns(example):
    return [(message.role, message.content) for message in example.messages]


# ---- alpaca


def test_alpaca_joins_instruction_and_input_by_a_line_break():
    example, fixes = convert({"instruction": "分类", "input": "打印机坏了", "output": "硬件"})
    assert turns(example) == [(U, "分类\n打印机坏了"), (A, "硬件")]
    assert fixes == []
    assert turns(convert({"instruction": "a", "input": "", "output": "b"})[0]) == [(U, "a"), (A, "b")]
    assert turns(convert({"instruction": "", "input": "x", "output": "b"})[0]) == [(U, "x"), (A, "b")]


def test_alpaca_reads_system_history_and_tools():
    row = {"instruction": "q2", "output": "a2", "sys": "be brief", "old": [["q1", "a1"]], "tools": json.dumps([TOOL])}
    example, _ = convert(row, columns={"system": "sys", "history": "old", "tools": "tools"})
    assert turns(example) == [(S, "be brief"), (U, "q1"), (A, "a1"), (U, "q2"), (A, "a2")]
    assert example.tools == (TOOL,)
    assert turns(convert({"instruction": "q", "output": "a", "sys": ""}, columns={"system": "sys"})[0])[0] == (U, "q")


def test_an_object_as_output_becomes_json_text_in_its_own_order():
    example, fixes = convert({"instruction": "q", "output": {"类型": "火灾", "b": [1, None], "a": {"x": 1.5}}})
    assert turns(example)[1][1] == '{"类型": "火灾", "b": [1, null], "a": {"x": 1.5}}'
    assert fixes == ["output is an object; written as JSON text"]
    assert turns(convert({"instruction": "q", "output": ["甲"]})[0])[1][1] == '["甲"]'


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"instruction": "q", "output": None}, "the reply is empty"),
        ({"instruction": "q", "output": "  \n"}, "the reply is empty"),
        ({"instruction": "q"}, "no column 'output'"),
        ({"output": "a"}, "no column 'instruction'"),
        ({"instruction": "", "input": None, "output": "a"}, "a user turn is empty"),
        ({"instruction": "q", "output": 5}, "output is a number, not text"),
        ({"instruction": "q", "output": True}, "output is a truth value, not text"),
        ({"instruction": float("nan"), "output": "a"}, "prompt is a number, not text"),
        ({"instruction": b"q", "output": "a"}, "prompt is a bytes, not text"),
        ({"instruction": "q", "output": {"a": float("nan")}}, "output cannot be written as JSON"),
        ({"instruction": "q", "output": {"a": b"x"}}, "output cannot be written as JSON"),
        ({"instruction": "q", "output": "a\ud800"}, "output holds half of a surrogate pair"),
    ],
)
def test_an_alpaca_row_that_cannot_be_used_has_a_reason(row, why):
    assert why in reason(row)


@pytest.mark.parametrize("history", [[["q"]], "q", [None], [["", "a"]], {"q": "a"}])
def test_broken_history_has_a_reason(history):
    why = reason({"instruction": "q", "output": "a", "history": history}, columns={"history": "history"})
    assert why in ("history is not a list of [question, reply] pairs", "a user turn is empty")


def test_pairs_and_verdicts_of_alpaca():
    pair = {"instruction": "q", "chosen": "good", "rejected": "bad"}
    columns = {"chosen": "chosen", "rejected": "rejected"}
    example, _ = convert(pair, "dpo", ranking=True, columns=columns)
    assert turns(example) == [(U, "q")]
    assert (example.chosen, example.rejected) == (Message(A, "good"), Message(A, "bad"))
    assert reason({**pair, "rejected": "good"}, "dpo", columns=columns) == "chosen and rejected are the same"
    assert reason({**pair, "rejected": ""}, "rm", columns=columns) == "rejected is empty"
    verdict = {"instruction": "q", "output": "a", "ok": True}
    assert convert(verdict, "kto", columns={"kto_tag": "ok"})[0].label is True
    assert convert({**verdict, "ok": "False"}, "kto", columns={"kto_tag": "ok"})[0].label is False
    assert reason({**verdict, "ok": 2}, "kto", columns={"kto_tag": "ok"}) == "the kto label is neither true nor false"


def test_stage_pt_takes_the_prompt_column_as_text():
    example, _ = convert({"text": "雨 rain"}, "pt", columns={"prompt": "text"})
    assert (example.messages, example.text) == ((), "雨 rain")
    assert reason({"text": " "}, "pt", columns={"prompt": "text"}) == "the text is empty"


def test_a_prompt_may_lack_its_reply():
    assert turns(convert({"instruction": "q"}, "prompt")[0]) == [(U, "q")]
    assert turns(convert({"instruction": "q", "output": ""}, "prompt")[0]) == [(U, "q")]
    assert turns(convert({"instruction": "q", "output": "a"}, "prompt")[0]) == [(U, "q"), (A, "a")]


def test_rows_with_media_are_refused_and_rows_without_are_read():
    columns = {"images": "images"}
    row = {"instruction": "q", "output": "a", "images": ["a.png"]}
    assert reason(row, columns=columns) == "images are not supported"
    assert turns(convert({**row, "images": []}, columns=columns)[0]) == [(U, "q"), (A, "a")]


# ---- sharegpt


def talk(*pairs):
    return {"conversations": [{"from": role, "value": value} for role, value in pairs]}


def test_sharegpt_reads_all_roles():
    row = talk(
        ("system", "s"),
        ("human", "1+1?"),
        ("function_call", '{"name": "add", "arguments": {"a": 1}}'),
        ("observation", '{"sum": 2}'),
        ("gpt", "2"),
    )
    example, fixes = convert({**row, "tools": '[{"name": "add"}]'}, formatting="sharegpt", columns={"tools": "tools"})
    assert example.messages == (
        Message(S, "s"),
        Message(U, "1+1?"),
        Message(A, "", (ToolCall("add", {"a": 1}),)),
        Message("tool", '{"sum": 2}'),
        Message(A, "2"),
    )
    assert example.tools == ({"type": "function", "function": {"name": "add"}},)
    assert fixes == []


def test_tags_rename_keys_and_roles():
    row = {"dialog": [{"who": "me", "says": "q"}, {"who": "bot", "says": "a"}]}
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "me", "assistant_tag": "bot"}
    example, _ = convert(row, formatting="sharegpt", columns={"messages": "dialog"}, tags=tags)
    assert turns(example) == [(U, "q"), (A, "a")]


def test_a_system_column_opens_the_conversation_unless_it_has_its_own():
    columns = {"system": "system"}
    row = {**talk(("human", "q"), ("gpt", "a")), "system": "s"}
    assert turns(convert(row, formatting="sharegpt", columns=columns)[0])[0] == (S, "s")
    row = {**talk(("system", "mine"), ("human", "q"), ("gpt", "a")), "system": "s"}
    assert turns(convert(row, formatting="sharegpt", columns=columns)[0])[0] == (S, "mine")


def test_turns_of_one_role_are_joined_and_told():
    example, fixes = convert(talk(("human", "a"), ("human", "b"), ("gpt", "c"), ("gpt", "d")), formatting="sharegpt")
    assert turns(example) == [(U, "a\nb"), (A, "c\nd")]
    assert fixes == [
        "two user turns in a row joined by a line break",
        "two assistant turns in a row joined by a line break",
    ]
    call = '{"name": "f", "arguments": {}}'
    row = talk(("human", "q"), ("gpt", "let me see"), ("function_call", call), ("observation", "1"), ("gpt", "ok"))
    example, _ = convert(row, formatting="sharegpt")
    assert example.messages[1] == Message(A, "let me see", (ToolCall("f", {}),))


def test_several_calls_and_results_stay_apart():
    calls = '[{"name": "f", "arguments": "{\\"x\\": 1}"}, {"name": "g"}]'
    row = talk(("human", "q"), ("function_call", calls), ("observation", "1"), ("observation", "2"), ("gpt", "ok"))
    example, fixes = convert(row, formatting="sharegpt")
    assert example.messages[1].tool_calls == (ToolCall("f", {"x": 1}), ToolCall("g", {}))
    assert [m.content for m in example.messages if m.role == "tool"] == ["1", "2"]
    assert fixes == []


CALL = ("function_call", '{"name": "f"}')


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (talk(), "no user turn"),
        (talk(("gpt", "a")), "an assistant turn at the start, expected a system text or a user turn"),
        (talk(("human", "q")), "ends with a user turn, there is no reply to learn"),
        (talk(("human", "q"), CALL, ("observation", "1")), "ends with a tool result, there is no reply to learn"),
        (talk(("human", "q"), ("gpt", "a"), ("system", "s")), "a system text after an assistant turn"),
        (
            talk(("human", "q"), ("observation", "1"), ("gpt", "a")),
            "a tool result after a user turn, expected an assistant",
        ),
        (talk(("human", "q"), CALL, ("observation", "1"), ("human", "q")), "a user turn after a tool result"),
        (talk(("human", "q"), CALL, ("gpt", "a")), "an assistant turn after a tool call without its result"),
        (talk(("human", "q"), ("gpt", "")), "the reply is empty"),
        (talk(("human", "q"), ("gpt", ""), ("human", "q"), ("gpt", "a")), "an assistant turn is empty"),
        (talk(("human", " "), ("gpt", "a")), "a user turn is empty"),
        (talk(("human", None), ("gpt", "a")), "the value of a message is null"),
        (talk(("human", 3), ("gpt", "a")), "the value of a message is a number, not text"),
        (
            talk(("user", "q"), ("gpt", "a")),
            'unknown role "user"; known: human, gpt, observation, function_call, system',
        ),
        (talk((None, "q")), "unknown role null"),
        (talk((["x"], "q")), 'unknown role ["x"]'),
        (talk(("human", "q"), ("function_call", "no json")), "a function call is not valid JSON"),
        (talk(("human", "q"), ("function_call", '{"arguments": {}}')), "a tool call has no name"),
        (
            talk(("human", "q"), ("function_call", '{"name": "f", "arguments": [1]}')),
            "a tool call's arguments are a list",
        ),
        (talk(("human", "q"), ("function_call", '{"name": "f", "arguments": "{"}')), "arguments is not valid JSON"),
        ({"conversations": None}, "the conversation is null, not a list"),
        ({"conversations": "hello"}, "the conversation is not valid JSON"),
        ({"conversations": "3"}, "the conversation is a number, not a list"),
        ({"conversations": ["hello"]}, "a message is text, not an object"),
        ({"conversations": [{"from": "human"}]}, "a message has no 'value'"),
        ({"messages": []}, "no column 'conversations'"),
    ],
)
def test_a_conversation_that_cannot_be_used_has_a_reason(row, why):
    assert why in reason(row, formatting="sharegpt")


@pytest.mark.parametrize("tools", ["no json", "[1]", '[{"x": 1}]', 5, [{"function": {}}], [{"function": 3}]])
def test_broken_tools_have_a_reason(tools):
    row = {**talk(("human", "q"), ("gpt", "a")), "tools": tools}
    assert "tool" in reason(row, formatting="sharegpt", columns={"tools": "tools"})


@pytest.mark.parametrize("tools", [None, "", " ", [], "[]"])
def test_no_tools_are_no_tools(tools):
    row = {**talk(("human", "q"), ("gpt", "a")), "tools": tools}
    assert convert(row, formatting="sharegpt", columns={"tools": "tools"})[0].tools == ()


def test_pairs_of_sharegpt_are_single_messages():
    columns = {"chosen": "chosen", "rejected": "rejected"}
    good, bad = {"from": "gpt", "value": "good"}, {"from": "gpt", "value": "bad"}

    def pair(*replies, end=("human", "q")):
        return {**talk(end), "chosen": replies[0], "rejected": replies[1]}

    example, _ = convert(pair(good, [bad]), "rm", formatting="sharegpt", columns=columns)
    assert (example.chosen.content, example.rejected.content) == ("good", "bad")
    told = {
        "chosen is text, not one message": pair("good", bad),
        "rejected is a list, not one message": pair(good, [bad, bad]),
        "rejected is not an assistant turn": pair(good, {"from": "human", "value": "bad"}),
        "rejected is empty": pair(good, {"from": "gpt", "value": ""}),
        "chosen and rejected are the same": pair(good, good),
        "an assistant turn at the start, expected a system text or a user turn": pair(good, bad, end=("gpt", "a")),
    }
    for why, row in told.items():
        assert reason(row, "dpo", formatting="sharegpt", columns=columns) == why
    ended = {**talk(("human", "q"), ("gpt", "a")), "chosen": good, "rejected": bad}
    why = reason(ended, "dpo", formatting="sharegpt", columns=columns)
    assert why == "ends with an assistant turn before chosen and rejected"


# ---- openai


def openai(*messages, stage="sft", **row):
    columns = {"messages": "messages", "tools": "tools"}
    return convert({"messages": list(messages), **row}, stage, formatting="openai", columns=columns)


def openai_reason(*messages, **row):
    with pytest.raises(Rejected) as caught:
        openai(*messages, **row)
    return str(caught.value)


QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def test_openai_reads_calls_parts_null_content_and_reasoning():
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    example, fixes = openai(
        {"role": "developer", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "I add"},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "assistant", "content": "2", "loss": False},
        tools=[TOOL],
    )
    assert example.messages == (
        Message(S, "s"),
        Message(U, "1+1?"),
        Message(A, "", (ToolCall("add", {"a": 1}, "c1"),), "I add"),
        Message("tool", "2"),
        Message(A, "2", train=False),
    )
    assert example.tools == (TOOL,)
    assert fixes == []


def test_no_converter_adds_text():
    example, _ = openai(QUESTION, ANSWER)
    assert turns(example) == [(U, "q"), (A, "a")]


def test_tags_may_rename_openais_keys_and_roles():
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "human", "assistant_tag": "bot"}
    row = {"messages": [{"who": "human", "says": "q"}, {"who": "bot", "says": "a"}]}
    example, _ = convert(row, formatting="openai", columns={"messages": "messages"}, tags=tags)
    assert turns(example) == [(U, "q"), (A, "a")]


def test_older_names_are_known():
    example, _ = openai(
        QUESTION,
        {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "1"},
        ANSWER,
    )
    assert example.messages[1].tool_calls == (ToolCall("f", {}),)
    assert example.messages[2] == Message("tool", "1")


def test_parts_with_reasoning_and_calls_of_llamafactorys_newer_files():
    call = {"type": "tool_call", "value": '{"name": "f", "arguments": {}}'}
    example, _ = openai(
        {"role": "user", "content": ["q"]},
        {"role": "assistant", "content": [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "so"}, call]},
        {"role": "tool", "content": [{"type": "text", "value": "1"}]},
        ANSWER,
    )
    assert example.messages[1] == Message(A, "so", (ToolCall("f", {}),), "hm")


@pytest.mark.parametrize(
    ("flag", "train"),
    [({"train": True}, True), ({"loss": 0}, False), ({"weight": 1}, True), ({"weight": 0.0}, False), ({}, None)],
)
def test_a_flag_says_whether_a_turn_is_learned(flag, train):
    assert openai(QUESTION, {**ANSWER, **flag})[0].messages[1].train is train


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([QUESTION, {"role": "assistant", "content": None}], "the content of a message is null"),
        ([QUESTION, {"role": "assistant"}], "the content of a message is null"),
        ([{"role": "narrator", "content": "q"}], 'unknown role "narrator"; known: system, developer, user'),
        ([{"role": {}, "content": "q"}], "unknown role {}"),
        ([{"content": "q"}], "unknown role null"),
        (["q"], "a message is text, not an object"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ANSWER], 'of type "image_url" is not'),
        ([{"role": "user", "content": [5]}, ANSWER], "of type null is not supported"),
        ([{"role": "user", "content": 5}, ANSWER], "the content of a message is a number"),
        ([QUESTION, {**ANSWER, "tool_calls": 5}], "tool_calls is a number, not a list"),
        ([QUESTION, {**ANSWER, "tool_calls": [5]}], "a tool call has no name"),
        ([{**QUESTION, "tool_calls": [{"name": "f"}]}, ANSWER], "a user message with tool calls"),
        ([QUESTION, {**ANSWER, "weight": 0.5}], "weight: expected true, false, 0 or 1"),
        ([QUESTION, {**ANSWER, "train": True}, {**ANSWER, "train": False}], "only one is to be learned"),
        ([QUESTION, ANSWER, {**ANSWER, "reasoning": "hm"}], "the second with reasoning of its own"),
        ([QUESTION, {**ANSWER, "content": "\udc00"}], "half of a surrogate pair"),
        (
            [QUESTION, {**ANSWER, "tool_calls": [{"name": "f", "arguments": {"a": "\udc00"}}]}],
            "half of a surrogate pair",
        ),
    ],
)
def test_an_openai_row_that_cannot_be_used_has_a_reason(messages, why):
    assert why in openai_reason(*messages)


# ---- text


def test_text_reads_the_text_column_or_the_named_one():
    assert convert({"text": "雨"}, "pt", formatting="text")[0].text == "雨"
    assert convert({"body": "雨"}, "pt", formatting="text", columns={"prompt": "body"})[0].text == "雨"
    assert reason({"body": "x"}, "pt", formatting="text") == "no column 'text'"
    assert reason({"text": None}, "pt", formatting="text") == "the text is empty"
    assert reason({"text": 3}, "pt", formatting="text") == "column 'text' is a number, not text"
