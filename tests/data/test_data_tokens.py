"""`forge-cli data tokens`, and the page that lists the templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_tokenizer import SHARED, write_tokenizer

from llmforge.cli import main
from llmforge.data.templates.page import with_table
from llmforge.data.templates.tools import SYNTAXES
from llmforge.data.tokenizer import load_tokenizer

CHAT = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "I am fine"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def ask(folder, tmp_path, capsys):
    """Run the command over rows; (exit code, stdout, stderr)."""

    def run(rows, *words, model=folder, template="chatml"):
        path = tmp_path / "chats.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
        code = main(["data", "tokens", "--model", str(model), "--template", template, str(path), *words])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_json_is_one_line_a_conversation(ask, folder):
    code, out, _ = ask([{"messages": CHAT}, {"messages": CHAT[:1]}], "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [list(line) for line in lines] == [["input_ids", "labels", "text"]] * 2
    assert lines[0]["text"] == "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\nI am fine<|im_end|>"
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(lines[0]["input_ids"]) == lines[0]["text"]
    assert tokenizer.decode([i for i in lines[0]["labels"] if i >= 0]) == "I am fine<|im_end|>"


def test_prompt_only_is_what_a_server_would_feed(ask):
    longer = [*CHAT, {"role": "user", "content": "再见"}]
    _, out, _ = ask([{"messages": [*longer, CHAT[1]]}, {"messages": longer}], "--json", "--prompt-only")
    first, second = (json.loads(line) for line in out.splitlines())
    assert first == second
    assert first["text"].endswith("<|im_start|>user\n再见<|im_end|>\n<|im_start|>assistant\n")
    assert set(first["labels"]) == {-100}


def test_tools_calls_and_recipe_settings(ask):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}
    row = {"messages": [CHAT[0], call], "tools": [tool]}
    _, out, _ = ask([row], "--json", "--default-system", "S", "--tool-format", "qwen", "--enable-thinking", "null")
    text = json.loads(out)["text"]
    assert text.startswith("<|im_start|>system\nS\n\n# Tools")
    assert '{"name": "f", "arguments": {"x": 1}}' in text


def test_people_see_id_piece_and_label(ask, monkeypatch):
    code, out, _ = ask([{"messages": CHAT}])
    assert code == 0
    assert "row 1: " in out
    assert '"<|im_end|>"' in out
    assert "\x1b[" not in out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "\x1b[32m" in ask([{"messages": CHAT}])[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in ask([{"messages": CHAT}])[1]


def test_the_founding_example(ask):
    if not (SHARED / "qwen2_5").exists():
        pytest.skip("no real tokenizers beside the checkout")
    row = {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "How are you?"},
            {"role": "assistant", "content": "I am fine"},
        ]
    }
    _, out, _ = ask([row], "--json", model=SHARED / "qwen2_5/tokenizer.json", template="qwen")
    line = json.loads(out)
    assert len(line["input_ids"]) == 27
    assert line["labels"] == [-100] * 23 + [40, 1079, 6915, 151645]


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        (['{"messages": '], (), "line 1"),
        ([""], (), "holds no conversation"),
        ([{"messages": CHAT}, {"messages": []}], (), "row 2: expected an object with a list `messages`"),
        ([{"messages": CHAT}, [1]], (), "row 2"),
        ([{"messages": [{"role": "usr", "content": "x"}]}], (), "row 1: unknown role"),
        ([{"messages": CHAT, "tools": [{}]}], (), "row 1: a tool has no name"),
        ([{"messages": CHAT}], ("--jsn",), "unrecognized arguments: --jsn"),
        ([{"messages": CHAT}], ("--enable-thinking", "maybe"), "invalid choice: 'maybe'"),
    ],
)
def test_bad_input_ends_with_2_and_nothing_on_stdout(rows, words, message, ask):
    code, out, err = ask(rows, "--json", *words)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.startswith("forge-cli: ")


def test_a_row_that_the_template_refuses_is_named(ask):
    system = {"role": "system", "content": "S"}
    code, _, err = ask([{"messages": CHAT}, {"messages": [*CHAT, system]}], template="llama2")
    assert code == 2
    assert "row 2: template 'llama2' has no place for a system message" in err


def test_missing_things_are_named(ask, folder, tmp_path, capsys):
    assert ask([{"messages": CHAT}], model=tmp_path / "nowhere")[0] == 2
    words = ["--model", str(folder), "--template", "chatml", str(tmp_path / "none.jsonl")]
    assert main(["data", "tokens", *words]) == 2
    assert "no file" in capsys.readouterr().err
    assert main(["data", "tokns"]) == 2
    assert "Did you mean 'tokens'" in capsys.readouterr().err
    assert main(["data", "--help"]) == 0
    assert "forge-cli data tokens --model" in capsys.readouterr().out


def test_the_page_of_templates_is_current():
    """`python -m llmforge.data.templates.page docs/templates.md` writes it."""
    page = (Path(__file__).parents[2] / "docs/templates.md").read_text(encoding="utf-8")
    assert with_table(page) == page
    for name in SYNTAXES:
        assert f"`{name}`" in page
