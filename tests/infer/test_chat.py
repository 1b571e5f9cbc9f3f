"""The terminal chat with piped input, against an engine with known answers."""

from __future__ import annotations

import asyncio
import io
import json

import pytest

from llmforge.data.example import Message
from llmforge.errors import RecipeError
from llmforge.infer.chat import Chat, columns_of, in_columns, with_think_mark, wrapped
from llmforge.infer.command import read_words
from llmforge.infer.protocol import Piece, PromptTooLong, Sampling, Usage


class RecitingEngine:
    """Answers with its name and all it was told, two characters a piece; refuses what is too long."""

    async def generate(self, request):
        told = [f"{message.role}:{message.content}" for message in request.prompt.messages]
        text = f"{request.model}|{'|'.join(told)}|{request.sampling.seed}"
        if "too long" in text:
            raise PromptTooLong(900, 512)
        if "stop here" in text:
            yield Piece(0, (1,), "half")
            raise KeyboardInterrupt
        for i in range(0, len(text), 2):
            yield Piece(0, (1,), text[i : i + 2])
        yield Piece(0, (), "", finish_reason="stop", usage=Usage(1, len(text)))


@pytest.fixture
def chat():
    with asyncio.Runner() as runner:
        yield Chat(RecitingEngine(), runner.run, ["tuned"], Sampling(seed=1), "Be kind.", io.StringIO(), io.StringIO())


def replies(chat):
    return chat.out.getvalue().splitlines()


def notes(chat):
    return chat.notes.getvalue()


def test_a_reply_sees_the_system_prompt_and_the_whole_history(chat):
    assert chat.handle("hi\n")
    assert chat.handle("again\n")
    assert replies(chat)[0] == "tuned|system:Be kind.|user:hi|1"
    assert replies(chat)[1] == "tuned|system:Be kind.|user:hi|assistant:tuned|system:Be kind.|user:hi|1|user:again|1"


def test_clear_forgets_the_conversation_and_keeps_the_system_prompt(chat):
    for line in ("hi", "/clear", "again"):
        chat.handle(line)
    assert replies(chat)[1] == "tuned|system:Be kind.|user:again|1"
    assert "the conversation is forgotten, the system prompt is kept" in notes(chat)


def test_system_starts_anew(chat):
    for line in ("hi", "/system Be brief.", "again"):
        chat.handle(line)
    assert replies(chat)[1] == "tuned|system:Be brief.|user:again|1"


def test_regen_asks_the_same_with_another_draw(chat):
    for line in ("hi", "/regen", "/regen"):
        chat.handle(line)
    assert [reply[-1] for reply in replies(chat)] == ["1", "2", "3"]
    assert len(chat.histories["tuned"]) == 3  # system, user, one reply


def test_regen_without_a_reply_says_so(chat):
    assert chat.handle("/regen")
    assert "no reply to give again" in notes(chat)


def test_a_saved_conversation_is_one_that_training_reads_and_loads_again(chat, tmp_path):
    path = tmp_path / "chat.json"
    for line in ("你好", f"/save {path}", "/clear", f"/load {path}"):
        chat.handle(line)
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    assert "你好" in path.read_text(encoding="utf-8")
    assert [message.role for message in chat.histories["tuned"]] == ["system", "user", "assistant"]


@pytest.mark.parametrize(("line", "said"), [
    ("/savve x", "Did you mean '/save'?"),
    ("/load nowhere.json", "nowhere.json"),
    ("/save", "expected a file name"),
    ("/save /nowhere/x.json", "forge-cli: /nowhere/x.json: No such file or directory\n"),
    ("/load", "expected a file name"),
    (f"/load {__file__}", "test_chat.py: not valid JSON"),
])  # fmt: skip
def test_a_wrong_command_is_said_and_the_chat_goes_on(chat, line, said):
    assert chat.handle(line)
    assert said in notes(chat)
    assert chat.handle("hi")
    assert replies(chat)


def test_a_file_that_holds_no_conversation_changes_nothing(chat, tmp_path):
    (tmp_path / "x.json").write_text('{"messages": [{"role": "wizard", "content": 3}]}')
    chat.handle(f"/load {tmp_path / 'x.json'}")
    assert "expected" in notes(chat)
    assert chat.histories["tuned"] == [Message("system", "Be kind.")]


def test_a_refused_message_is_taken_back(chat):
    chat.handle("this is too long")
    assert "900 tokens" in notes(chat)
    chat.handle("hi")
    assert replies(chat) == ["tuned|system:Be kind.|user:hi|1"]


def test_exit_ends_the_chat(chat):
    assert not chat.handle("/exit")


def test_compare_gives_each_model_its_own_history(chat):
    chat.models = ["tuned", "base"]
    chat.set_system("")
    chat.handle("hi")
    assert replies(chat) == ["--- tuned", "tuned|user:hi|1", "--- base", "base|user:hi|1"]
    assert chat.histories["base"][-1].content == "base|user:hi|1"


def test_columns_stand_side_by_side_with_wide_characters():
    lines = in_columns(["tuned", "base"], ["你好吗你好", "one two three"], 19).splitlines()
    assert lines == [
        "tuned    | base",
        "-------- | --------",
        "你好吗你 | one two",
        "好       | three",
    ]
    assert all(columns_of(line) <= 19 for line in lines)
    assert wrapped("a\n\nb", 10) == ["a", "", "b"]


def test_a_reply_that_began_inside_the_think_block_gets_its_mark_in_the_history():
    assert with_think_mark("so</think>yes") == "<think>so</think>yes"
    assert with_think_mark("<think>so</think>yes") == "<think>so</think>yes"
    assert with_think_mark("yes") == "yes"


def test_the_words_of_chat_are_split_from_the_recipes():
    given = read_words(["runs/x", "--prompt", "hi there", "temperature=0", "--compare", "--system=Be kind."])
    assert given.recipe == ["runs/x", "temperature=0"]
    assert (given.prompt, given.system, given.compare) == ("hi there", "Be kind.", True)
    assert read_words(["--prompt", "a\udcffb"]).prompt == "a\ufffdb"
    with pytest.raises(RecipeError, match="expected a text"):
        read_words(["runs/x", "--prompt"])


def test_ctrl_c_stops_the_reply_and_keeps_what_came(chat):
    assert chat.handle("stop here")
    assert "[stopped]" in notes(chat)
    assert chat.histories["tuned"][-1] == Message("assistant", "half")
    assert chat.handle("/clear")
    assert chat.handle("hi")
    assert replies(chat) == ["half", "tuned|system:Be kind.|user:hi|1"]
