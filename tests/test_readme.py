"""Every command of the README and of the pages in docs/ is run, on a two-layer model instead of the one it names."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from llmforge import cli

REPO = Path(__file__).parents[1]
DOCS = ("train", "data", "export", "serve", "recipes", "data_check", "data_build", "rm", "dpo")
PAGES = ("README.md", "README_zh.md", *(f"docs/{name}.md" for name in DOCS))
QUICKSTART = "train recipes/classify_lora.yaml"
TINY_RUN = "device=cpu plot_loss=false max_samples=4 max_steps=1 per_device_train_batch_size=2 max_new_tokens=2"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (REPO / page).read_text(encoding="utf-8"), re.DOTALL)


def lines(page: str) -> list[str]:
    """The lines of a page's bash blocks without their comments."""
    found = [re.sub(r"\s+#.*", "", line).strip() for block in blocks(page, "bash") for line in block.splitlines()]
    return [line for line in found if line]


COMMANDS = {line: page for page in reversed(PAGES) for line in lines(page)}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model_dir):
    """A working directory as after a clone, in which the quickstart has been run on the tiny model."""
    place = tmp_path_factory.mktemp("clone")
    for name in ("recipes", "data", "configs"):
        shutil.copytree(REPO / name, place / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run(QUICKSTART, tiny_model_dir) == 0
    return place


def run(words: str, tiny_model_dir: Path) -> int:
    """Run what stands behind `forge-cli`, in this process; a training gets the tiny model and one step."""
    given = [word.replace("=MODEL", f"={tiny_model_dir}") for word in shlex.split(words)]
    if given[0] in ("train", "predict", "chat", "export", "api"):
        if any(word.startswith("recipes/") for word in given):
            given += [f"model_name_or_path={tiny_model_dir}", "template=chatml", f"cache_dir={tiny_model_dir}/cache"]
        given += TINY_RUN.split() if given[0] == "train" else ["device=cpu", "max_new_tokens=2"]
        given += ["max_samples=2"] if given[0] == "predict" else []
        given += ["eval_steps=1", "save_steps=1"] if "multiturn" in words else []
        given += ["overwrite_output_dir=true"] if given[0] == "train" else []
        given += ["export_device=cpu"] if given[0] == "export" else []
    return cli.main(given)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("forge-cli") and " api " not in line])
def test_every_forge_command_runs(line, place, tiny_model_dir, monkeypatch):
    monkeypatch.chdir(place)
    if "runs/classify/export" in line and not (place / "runs/classify/export").exists():
        assert run("export runs/classify", tiny_model_dir) == 0
    assert run(line.removeprefix("forge-cli "), tiny_model_dir) == 0


@pytest.mark.parametrize("line", [line for line in COMMANDS if not line.startswith("forge-cli")])
def test_every_other_line_is_a_make_target_or_part_of_a_clone(line):
    targets = set(re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    word, *rest = line.split()
    assert (word == "make" and rest[0] in targets) or word in ("git", "source")


def test_inline_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        name for page in PAGES for name in re.findall(r"`make ([\w-]+)", (REPO / page).read_text(encoding="utf-8"))
    }
    assert named
    assert named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\((?!http)([^)#]+)", (REPO / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (REPO / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_exists(page):
    text = (REPO / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:recipes|configs|data)/[\w./-]+\.(?:yaml|jsonl|json|py)", text))
    assert [name for name in named if not (REPO / name).exists()] == []


def test_the_readmes_show_the_quickstart_as_it_is():
    recipe = (REPO / "recipes/classify_lora.yaml").read_text(encoding="utf-8")
    for page in ("README.md", "README_zh.md"):
        shown = [line.split("#")[0].strip() for line in blocks(page, "yaml")[0].splitlines()]
        assert [line for line in shown if line and line not in recipe] == []


def test_the_rows_of_the_data_page_are_read(tmp_path):
    from llmforge.data.read import read_examples
    from llmforge.data.registry import resolve_dataset

    shown = blocks("docs/data.md", "json")[0].replace('"tools": "[...]"', '"tools": "[]"').splitlines()
    for number, row in enumerate(shown):
        path = tmp_path / f"rows{number}.jsonl"
        path.write_text(row, encoding="utf-8")
        stage = "dpo" if "chosen" in row else "pt" if "text" in row else "sft"
        examples, report = read_examples(resolve_dataset(str(path), "data"), stage=stage)
        assert (len(examples), report.rejected) == (1, [])


def test_the_api_answers_the_client_of_the_docs(place, tiny_model_dir):
    """`forge-cli api` of the page in a process of its own, and the page's Python against it."""
    pytest.importorskip("openai")
    command = next(line for line in COMMANDS if " api " in line)
    words = [word for word in shlex.split(command)[1:] if not word.startswith("port=")]
    server = subprocess.Popen(
        [sys.executable, "-m", "llmforge.cli", *words, "port=0", "device=cpu"],
        cwd=place, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address = wait_for_address(server)
        code = blocks("docs/serve.md", "python")[0].replace("http://127.0.0.1:8000", address)
        said = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
        ).stdout
        assert "classify" in said.splitlines()[0]
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


def wait_for_address(server: subprocess.Popen) -> str:
    """The address the server prints, once it answers."""
    text, until = "", time.monotonic() + 120
    while not (found := re.search(r"http://127\.0\.0\.1:\d+", text)):
        line = server.stdout.readline()
        assert line, "the server ended before it said its address"
        text += line
    while True:
        try:
            urllib.request.urlopen(f"{found[0]}/v1/models", timeout=5)
            return found[0]
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.2)
