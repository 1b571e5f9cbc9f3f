"""`forge-cli bench serve` against a server with known answers: 10 ms for each piece of text."""

import json
import sys
from pathlib import Path

import pytest

from llmforge import cli
from llmforge.bench.serve_prompts import instruction, report

SERVER = f"{sys.executable} {Path(__file__).parent / 'known_server.py'} {{port}}"


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """Run `bench serve`; returns (exit code, stdout, stderr, ledger lines)."""
    monkeypatch.chdir(tmp_path)

    def go(*words):
        code = cli.main(["bench", "serve", "--tokens", "3", "--warmup", "0", *words])
        out, err = capsys.readouterr()
        path = tmp_path / "runs/bench_serve.jsonl"
        return code, out, err, [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return go


def test_two_servers_over_two_rounds_become_a_table_a_comparison_and_a_chart(bench, tmp_path):
    words = ["--server", f"one={SERVER}", "--server", f"two={SERVER} silent", "--concurrency", "1,4", "--requests", "6"]
    code, out, err, lines = bench(*words, "--rounds", "2", "--json", "o.json", "--chart", "c.png", "--shared", "40")
    assert code == 0, err
    assert [line["server"] for line in lines] == ["one", "one", "two", "two", "two", "two", "one", "one"]
    for line in lines:
        assert (line["num_good"], line["errors"], line["tokens_per_reply"], line["shared"]) == (6, {}, 3.0, 40)
        assert min(line["latencies_s"]) >= 0.03
        assert min(line["first_s"]) >= 0.01
        assert line["cpu_s"] >= 0  # counted in ticks of 10 ms
        assert line["memory_bytes"] > 0
    assert lines[0]["digest"] == lines[2]["digest"]
    assert "one against two, 250 characters, shared 40, c=4: requests/s x" in out
    assert "knee of one (shared 40): c=" in out
    found = json.loads((tmp_path / "o.json").read_text())
    assert [row["level"] for row in found["rows"]] == [1, 4, 1, 4]
    assert len(found["comparisons"]) == 2
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_errors_are_counted_by_kind_and_take_no_part_in_latency(bench):
    code, out, err, lines = bench("--server", f"one={SERVER} busy", "--concurrency", "2", "--requests", "9")
    assert code == 0, err
    assert lines[0]["errors"] == {"429": 3}
    assert len(lines[0]["latencies_s"]) == 6
    assert "3 x 429" in out


def test_a_server_that_answers_nothing_is_told_and_ends_with_1(bench):
    code, _, err, lines = bench("--server", f"one={SERVER} cut", "--concurrency", "2", "--requests", "3")
    assert code == 1
    assert lines == []
    assert "answers cut: the stream ended without a finish_reason" in err


def test_a_server_without_ignore_eos_is_asked_by_min_tokens(bench):
    _, _, err, _ = bench("--server", f"one={SERVER} strict", "--concurrency", "1", "--requests", "2")
    assert "; min_tokens" in err


def test_an_open_loop_names_its_rate_and_models_take_turns(bench):
    words = ["--server", f"one={SERVER}", "--rate", "50", "--requests", "10", "--model", "a,b"]
    code, out, err, lines = bench(*words)
    assert code == 0, err
    assert (lines[0]["loop"], lines[0]["level"], lines[0]["models"]) == ("open", 50, "a,b")
    assert " 50/s " in out
    assert "one [a,b]" in out


def test_whole_answers_can_be_asked_for(bench):
    words = ["--server", f"one={SERVER}", "--plain", "--natural-end", "--concurrency", "1", "--requests", "2"]
    code, _, err, lines = bench(*words)
    assert code == 0, err
    assert (lines[0]["tokens_per_reply"], lines[0]["first_s"]) == (2.0, [])


def test_a_command_that_ends_is_told_with_its_last_lines(bench):
    code, _, err, _ = bench("--server", "one=echo no model; exit 3 # {port}", "--concurrency", "1")
    assert code == 1
    assert "one ended with 3:\n\nno model" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a server"),
        (["--server", "forge-cli api"], "--server: got 'forge-cli api', expected NAME=COMMAND"),
        (["--server", "a=api port=1"], "--server: a has no {port} in its command"),
        (["--url", "localhost"], "--url: got 'localhost'"),
        (["--url", "http://127.0.0.1:1/v1", "--pid", "x"], "--pid: got 'x'"),
        (["--url", "http://127.0.0.1:1/v1", "--concurrency", "1,x"], "--concurrency: got '1,x'"),
        (["--url", "http://127.0.0.1:1/v1", "--requests", "1,2"], "--requests: 2 numbers for 4 steps"),
        (["--url", "http://127.0.0.1:1/v1", "--body", "[1]"], "--body: expected a JSON object"),
        (["--url", "http://127.0.0.1:1/v1", "--prompts", "none.txt"], "--prompts: none.txt cannot be read"),
        (["--url", "http://127.0.0.1:1/v1", "--tokens", "0"], "--tokens: got 0"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_wrong_options_end_with_2(bench, words, said):
    code, _, err, lines = bench(*words)
    assert (code, lines) == (2, [])
    assert said in err


def test_prompts_of_a_file_go_round(bench, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "one"}]}, {"prompt": "two"}, {"instruction": "a", "input": "b"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["--server", f"one={SERVER}", "--prompts", "rows.jsonl", "--concurrency", "1", "--requests", "4"]
    code, _, err, lines = bench(*words)
    assert code == 0, err
    assert lines[0]["prompts"] == "rows"


def test_made_prompts_have_their_length_and_share_no_start():
    texts = [report(number, 250) for number in range(1000, 1200)]
    assert {len(text) for text in texts} == {250}
    assert len({text[:6] for text in texts}) > 190
    assert len(instruction(1500)) == 1500
    assert instruction(3000).startswith(instruction(1500))
