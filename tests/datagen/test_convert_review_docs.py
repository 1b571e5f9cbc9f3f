"""Every command of docs/data_convert.md and docs/data_review.md runs, in the order of the page."""

import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from llmforge.cli import main

REPO = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["data_convert.md", "data_review.md"])
def test_the_commands_of_the_page_run(page, tmp_path, monkeypatch, capsys):
    for name in ("data", "recipes"):
        shutil.copytree(REPO / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    text = (REPO / "docs" / page).read_text(encoding="utf-8")
    lines = [re.sub(r"\s+# .*", "", line) for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
             for line in block.splitlines()]  # fmt: skip
    for line in lines:
        monkeypatch.setattr("sys.stdin", io.StringIO("a\nr too short\nq\n"))
        words = shlex.split(line)
        assert words.pop(0) == "forge-cli"
        assert main(words) == 0, line
    assert len(lines) >= 5
    assert "Traceback" not in capsys.readouterr().err


def test_the_shipped_recipe_makes_the_shipped_conversations(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPO / "data", tmp_path / "data")
    assert main(["data", "convert", str(REPO / "recipes/data/legal_faq.yaml"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == {"legal_faq_train": 48, "legal_faq_dev": 6, "legal_faq_test": 6}
    made = [line for path in told["files"].values() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    ours = [REPO / f"data/legal_faq_chat_{part}.jsonl" for part in ("train", "test")]
    assert sorted(made) == sorted(line for path in ours for line in path.read_text(encoding="utf-8").splitlines())
