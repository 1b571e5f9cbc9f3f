"""`forge-cli chat` with a tiny model: piped input, one prompt, and what it refuses."""

from __future__ import annotations

import io
import sys

import pytest

from llmforge.cli import main as forge_cli
from llmforge.errors import RecipeError
from llmforge.infer.command import main
from llmforge.infer.protocol import PromptTooLong


@pytest.fixture
def words(tiny_model_dir):
    return [f"model_name_or_path={tiny_model_dir}", "template=chatml", "max_new_tokens=6", "do_sample=false"]


def test_one_prompt_prints_the_reply_alone_on_stdout(words, capsys):
    assert main([*words, "--prompt", "你好"]) == 0
    first = capsys.readouterr()
    assert first.out.endswith("\n")
    assert first.err.startswith(f"loading {words[0].partition('=')[2]}\n")
    assert "cut off" in first.err
    main([*words[:-1], "temperature=0", "--prompt=你好"])
    assert capsys.readouterr().out == first.out  # temperature 0 is greedy too


def test_piped_lines_are_answered_one_after_the_other(words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("你好\n/clear\n你好\n"))
    assert main(words) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("你好\n/regen\n/exit\nnever read\n"))
    both = capsys.readouterr().out
    assert main(words) == 0
    assert capsys.readouterr().out == both
    assert both[: len(both) // 2] * 2 == both


def test_a_seed_of_the_command_line_repeats_a_drawn_reply(words, capsys):
    drawn = [*words[:-1], "do_sample=true", "temperature=2", "seed=7", "--prompt", "hi"]
    main(drawn)
    first = capsys.readouterr().out
    main(drawn)
    assert capsys.readouterr().out == first


def test_a_prompt_that_is_too_long_ends_with_2_and_both_numbers(words, capsys):
    with pytest.raises(PromptTooLong, match=r"tokens; the model's context is 512 tokens"):
        main([*words, "--prompt", "x " * 600])
    assert forge_cli(["chat", *words, "--prompt", "x " * 600]) == 2
    assert "512 tokens" in capsys.readouterr().err


def test_compare_needs_an_adapter(words):
    with pytest.raises(RecipeError, match="no adapter to compare"):
        main([*words, "--compare", "--prompt", "hi"])
