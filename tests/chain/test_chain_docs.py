"""docs/chains.md: its recipes read, its commands find what they name, and the chain it leads with runs."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from llmforge.chain.command import check
from llmforge.chain.plan import read_chain
from llmforge.cli import main

REPO = Path(__file__).parents[2]
PAGE = (REPO / "docs/chains.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


COMMANDS = [re.sub(r"\s+#.*", "", line) for block in blocks("bash") for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("forge-cli train")])
def test_a_command_of_the_page_has_nothing_wrong(line, monkeypatch):
    monkeypatch.chdir(REPO)
    words = [word for word in shlex.split(line)[2:] if word != "--json"]
    result = check(words)
    assert result.problems == []
    assert result.notes == []
    assert len(result.recipes) >= 3


def test_the_chain_of_the_page_is_one(monkeypatch, tmp_path):
    monkeypatch.chdir(REPO)
    path = tmp_path / "page.yaml"
    path.write_text(blocks("yaml")[0])
    links = {link.name: link for link in read_chain([str(path)]).links}
    assert (links["ppo"].parent, links["ppo"].reward) == ("sft", "rm")
    assert (links["good"].command, links["good"].of) == ("gate", "rm")
    assert (links["eval"].parent, links["export"].parent) == ("ppo", "ppo")
    assert check([str(path)]).problems == []


@pytest.mark.slow
def test_the_demo_chain_runs_on_the_tiny_model(monkeypatch, tmp_path, tiny_model_dir, capfd):
    for name in ("recipes", "data"):
        shutil.copytree(REPO / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    words = [f"model_name_or_path={tiny_model_dir}", "template=chatml", "device=cpu", f"cache_dir={tmp_path}/cache"]
    words += ["max_steps=1", "max_samples=8", "chain.rm.val_size=2", "max_new_tokens=4"]
    words += ["per_device_train_batch_size=2", "chain.gate.bars={eval_accuracy: 0}", "plot_loss=false"]
    assert main(["train", "recipes/rlhf/chain.yaml", *words]) == 0
    table = capfd.readouterr().out
    assert [line.split()[0] for line in table.splitlines()[-6:]] == ["pt", "sft", "rm", "gate", "ppo", "export"]
    assert Path("runs/rlhf/export/model.safetensors").is_file()
