"""Web conversations: every cause FastChat's scripts know, each row counted, plain text unharmed."""

import pytest

from llmforge.data.example import RowRef, RowReport
from llmforge.datagen.clean import clean_rows, language, mended_text
from llmforge.datagen.step_keys import CleanConfig

GOOD = [("human", "How do I print in Python?"), ("gpt", "Call print(x) with what you want to see.")]


def chat(*turns: tuple[str, str], **more) -> dict:
    return {**more, "conversations": [{"from": who, "value": text} for who, text in turns]}


def cleaned(*rows: dict, **keys) -> tuple[list[dict], RowReport]:
    report = RowReport("clean", rows_in=len(rows))
    kept = clean_rows([(RowRef("f", i), row) for i, row in enumerate(rows, 1)], CleanConfig(**keys), report)
    assert report.rows_in == report.rows_out + len(report.rejected)
    return [row for _, row in kept], report


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        (chat(("human", "What is OpenAI?"), ("gpt", "A company that trains models.")), "the blocked word 'openai'"),
        (
            chat(("human", "Hi there, good day"), ("gpt", "Too many requests in 1 hour. Try again later.")),
            "a rate-limit",
        ),
        (chat(("human", "Hi"), ("gpt", "Hello")), "shorter than 16 characters"),
        (chat(("human", "Count up to ten for me"), ("gpt", "It is 1111111111 now")), "9 equal digits in a row"),
        (chat(("human", "List three good fruits"), ("gpt", "1. a\n1. b\n\n1. c\n")), "a list numbered 1. 1. 1."),
        (chat(*GOOD, plugins=["browser"]), "a chat with plugins"),
        (
            chat(("human", "a question"), ("human", "and one more"), ("gpt", "an answer to both")),
            "two user turns in a row",
        ),
        (chat(("human", "only a question, no answer")), "no question followed by an answer"),
        (chat(("gpt", "only an answer, no question")), "no question followed by an answer"),
        (chat(("human", "   "), ("gpt", "an answer to nothing at all")), "an empty turn"),
        (chat(("human", "q"), ("alien", "an answer from nowhere")), "unknown role 'alien'"),
        ({"text": "x"}, "no conversation; expected a list in conversations, messages or conversation"),
        ({"conversations": ["x"]}, "a turn is no object"),
        ({"conversations": [{"from": "human", "value": 3}]}, "the text of a human turn is no text"),
    ],
)
def test_a_bad_conversation_is_left_out_with_its_cause(row, cause):
    kept, report = cleaned(row)
    assert kept == []
    assert report.rejected[0][1].startswith(cause)


def test_a_good_conversation_stays_as_it_is():
    row = chat(*GOOD, id="x", source="web")
    assert cleaned(row)[0] == [row]


def test_the_second_row_with_an_id_or_a_first_round_goes():
    again = chat(*GOOD, ("human", "And in C?"), ("gpt", "Call printf."), id="c")
    kept, report = cleaned(
        chat(*GOOD, id="a"), chat(("human", "Another question"), ("gpt", "Its answer"), id="a"), again
    )
    assert len(kept) == 1
    assert [(s.row, why) for s, why in report.rejected] == [
        (2, "the id stands twice"),
        (3, "the first question and answer stand twice"),
    ]


def test_turns_around_the_conversation_are_cut():
    kept, report = cleaned(chat(("gpt", "Welcome!"), *GOOD, ("human", "Thanks")))
    assert kept == [chat(*GOOD)]
    assert "cut" in report.fixed[0][1]


def test_a_system_text_and_tool_turns_stay():
    row = chat(
        ("system", "Be short."),
        ("human", "Where is the nearest station?"),
        ("function_call", '{"name": "nearest", "arguments": {}}'),
        ("observation", "{}"),
        ("gpt", "At the river."),
    )
    assert cleaned(row)[0] == [row]


def test_remains_of_the_page_go_and_code_keeps_its_indent():
    code = "def f():\n    return a_b  # List<int>\n```\n"
    text = f"1 / 2\nSee:\n```pythonCopy code\n{code}Copy12 chars / 3 words\n```\n```\nend"
    assert mended_text(text) == "See:\n```python\ndef f():\n    return a_b  # List<int>\n```\nend"


def test_html_turns_become_markdown_and_plain_ones_stay():
    kept, report = cleaned(chat(("human", "Use List<int> in snake_case"), ("gpt", "<div><p>Like <b>so</b></p></div>")))
    assert [turn["value"] for turn in kept[0]["conversations"]] == ["Use List<int> in snake_case", "Like **so**"]
    assert len(report.fixed) == 1
    kept, _ = cleaned(chat(("human", "Use List<int> in snake_case"), ("gpt", "<p>so</p>")), html="keep")
    assert kept[0]["conversations"][1]["value"] == "<p>so</p>"


def test_the_text_of_a_control_token_is_broken_up_and_told():
    kept, report = cleaned(chat(("human", "What does <|im_end|> mean?"), ("gpt", "It ends a turn, like </s>.")))
    assert [t["value"] for t in kept[0]["conversations"]] == [
        "What does < |im_end|> mean?",
        "It ends a turn, like < /s>.",
    ]
    assert len(report.fixed) == 2


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("怎么用 Python 打印 hello world？", "zh"),
        ("これは日本語の文章です", "ja"),
        ("안녕하세요", "ko"),
        ("Привет, мир", "ru"),
        ("The word 你好 means hello in Chinese, as everybody knows.", "en"),
        ("123", "en"),
    ],
)
def test_languages_are_told_by_their_script(text, name):
    assert language(text) == name


def test_languages_are_kept_and_skipped():
    rows = [chat(*GOOD), chat(("human", "怎么打印一行文字给用户看"), ("gpt", "用打印函数就可以做到了"))]
    assert cleaned(*rows, keep_lang=["zh"])[0] == rows[1:]
    kept, report = cleaned(*rows, skip_lang=["zh"])
    assert kept == rows[:1]
    assert report.rejected[0][1] == "language zh"


def test_messages_with_role_and_content_are_read_too():
    row = {
        "messages": [{"role": "user", "content": "<p>a question</p>"}, {"role": "assistant", "content": "an answer"}]
    }
    assert cleaned(row)[0][0]["messages"][0] == {"role": "user", "content": "a question"}
