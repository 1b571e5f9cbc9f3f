"""A chain before it runs: which link takes whose model, and every wrong word with its file, line and link."""

import json
from pathlib import Path

import pytest

from llmforge.chain.command import check
from llmforge.chain.link import taken_from
from llmforge.chain.plan import read_chain
from llmforge.chain.sweep import read_sweep
from llmforge.cli import main
from llmforge.config.load import load_recipe
from llmforge.errors import RecipeError

WHOLE = """\
chain:
  pt: {stage: pt, dataset: corpus.txt}
  sft: {stage: sft, dataset: rows.json}
  rm: {stage: rm, dataset: pairs}
  ppo: {stage: ppo, dataset: rows.json, max_new_tokens: 4}
  eval: {eval_dataset: rows.json}
  gate: {bars: {exact_match: 0.5}}
  export:
"""


def test_each_link_goes_on_from_the_policy_before_it_and_ppo_finds_its_reward_model(write):
    chain = read_chain(write(WHOLE))
    assert [(link.name, link.command, link.parent) for link in chain.links] == [
        ("pt", "train", None),
        ("sft", "train", "pt"),
        ("rm", "train", "sft"),
        ("ppo", "train", "sft"),
        ("eval", "predict", "ppo"),
        ("gate", "gate", None),
        ("export", "export", "ppo"),
    ]
    assert [link.reward for link in chain.links] == [None, None, None, "rm", None, None, None]
    assert chain.links[5].of == "eval"
    assert {link.folder for link in chain.links} == {Path("out", link.name) for link in chain.links}


def test_a_link_that_names_its_reward_model_or_none_keeps_it(write):
    links = "chain:\n  rm: {stage: rm, dataset: pairs}\n  a: {stage: grpo, dataset: rows.json, reward_model: null}\n"
    links += "  b: {stage: grpo, dataset: rows.json, reward_funcs: json_valid}\n"
    assert [link.reward for link in read_chain(write(links)).links] == [None, None, "rm"]


def test_from_names_another_link_and_null_none(write):
    links = "chain:\n  a: {dataset: rows.json}\n  b: {dataset: rows.json, from: null}\n"
    chain = read_chain(write(links + "  c: {dataset: rows.json, from: a}\n"))
    assert [link.parent for link in chain.links] == [None, None, "a"]


def test_a_whole_chain_is_checked_before_anything_is_there(write):
    result = check(write(WHOLE))
    assert result.problems == []
    assert result.recipes["sft"].train.output_dir == str(Path("out/sft"))
    assert any(line.startswith("link ppo: dataset: rows") for line in result.fine)
    assert "link gate: eval must reach exact_match >= 0.5" in result.fine
    assert not Path("out").exists()


def test_what_a_link_takes_over_depends_on_what_its_parent_trained():
    words = ["model_name_or_path=hub/base", "template=chatml"]
    lora, full = (load_recipe([*words, f"finetuning_type={kind}"], "show") for kind in ("lora", "full"))
    new = load_recipe([*words, "adapter_name_or_path=hub/a,hub/b", "create_new_adapter=true"], "show")
    on = load_recipe([*words, "adapter_name_or_path=hub/a,hub/b"], "show")
    taken = [taken_from(parent, Path("run")) for parent in (lora, full, new, on)]
    assert [t["adapter_name_or_path"] for t in taken] == [["run"], [], ["hub/a", "hub/b", "run"], ["hub/a", "run"]]
    assert [t["model_name_or_path"] for t in taken] == ["hub/base", "run", "hub/base", "hub/base"]
    assert taken_from(lora, None) == {"model_name_or_path": "hub/base", "adapter_name_or_path": []}


def test_keys_win_in_the_order_extended_shared_link_command_line(write):
    Path("base.yaml").write_text("learning_rate: 1e-3\nlora_rank: 4\nlora_alpha: 3\nseed: 1\noutput_dir: elsewhere\n")
    links = "lora_rank: 5\nchain:\n  a: {extends: base.yaml, dataset: rows.json, lora_alpha: 6}\n"
    recipe = check([*write(links), "seed=7", "chain.a.weight_decay=0.5"]).recipes["a"]
    assert (recipe.train.learning_rate, recipe.finetune.lora_rank, recipe.finetune.lora_alpha) == (1e-3, 5, 6)
    assert (recipe.train.seed, recipe.train.weight_decay, recipe.train.output_dir) == (7, 0.5, "out/a")


@pytest.mark.parametrize(
    ("links", "messages"),
    [
        (
            "chain:\n  a: {dataset: rows.json, learnin_rate: 1}\n",
            ["line 13: link a: learnin_rate: no such key. Did you"],
        ),
        ("chain:\n  a:\n    dataset: rows.json\n    lora_rank: x\n", ["line 15: link a: lora_rank: got 'x', expected"]),
        ("chain:\n  a: {dataset: rws.json}\n", ["line 13: link a: dataset: no data file 'rws.json'", "'rows.json'"]),
        ("learning_rate: fast\nchain:\n  a: {dataset: rows.json}\n  b: {}\n", ["line 12: learning_rate: got 'fast'"]),
        (
            "chain:\n  a: {dataset: rows.json}\n  b: {dataset: rows.json, from: c}\n",
            ["line 14: link b: from: 'c' is no such link. Known: a"],
        ),
        ("chain:\n  a: {dataset: rows.json, command: trian}\n", ["command: got 'trian'", "Did you mean 'train'?"]),
        ("chain:\n  a: {dataset: rows.json, output_dir: x}\n", ["line 13: link a: output_dir: a link's folder is"]),
        ("chain:\n  export: {}\n", ["line 13: link export: export needs a link that trained before it"]),
        ("chain:\n  gate: {bars: {x: 1}}\n", ["link gate: there is nothing before it to measure"]),
        ("chain:\n  a: {dataset: rows.json}\n  gate: {of: a}\n", ["line 14: link gate: bars: expected metrics"]),
        (
            "chain:\n  a: {dataset: rows.json}\n  gate: {bars: {eval_loss: 2}}\n",
            ["line 14: link gate: bars: eval_loss: 2 alone means at least", "write '<= 2'"],
        ),
        ("chain:\n  a: {dataset: rows.json}\n  gate: {bars: {x: high}}\n", ["x: got 'high', expected a number"]),
        ("chain: [a, b]\n", ["line 12: chain: got ['a', 'b'], expected links"]),
        ("chain: {}\n", ["chain: has no links"]),
        ("chain:\n  a: 3\n", ["line 13: link a: got 3, expected a mapping"]),
        ("chain:\n  a/b: {dataset: rows.json}\n", ["'a/b' is no name of a link"]),
        ("sweep: {lora_rank: [1]}\nchain:\n  a: {dataset: rows.json}\n", ["line 12: sweep: a chain is not swept"]),
        (
            "chain:\n  a: {dataset: rows.json}\n  b: {dataset: rows.json, from: a, adapter_name_or_path: x/y}\n",
            ["line 14: link b: adapter_name_or_path: `from: a` says it; keep one of them"],
        ),
        ("sweep: {lora_rank: 3}\n", ["line 12: sweep.lora_rank: got 3, expected a list"]),
        ("dataset: rows.json\nsweep: {lora_rnk: [3]}\n", ["line 13: link lora_rnk-3: lora_rnk: no such key. Did you"]),
    ],
)
def test_a_wrong_word_is_named_with_its_line_and_link(write, links, messages, capsys):
    words = write(links)
    for command in (["train"], ["recipe", "check"]):
        assert main([*command, *words]) == 2
        said = capsys.readouterr().err
        assert "chain.yaml cannot run:" in said
        assert all(message in said for message in messages), said
    assert not Path("out").exists()


def test_a_chain_without_a_folder_is_refused(write):
    path = Path(write("chain:\n  a: {dataset: rows.json}\n")[0])
    path.write_text(path.read_text().replace("output_dir: out\n", ""))
    with pytest.raises(RecipeError, match="output_dir: missing; each link gets a folder in it"):
        read_chain([str(path)])


def test_recipe_check_prints_every_link_as_json(write, capsys):
    assert main(["recipe", "check", *write(WHOLE), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == []
    assert sum(line.startswith("link sft: ") for line in told["fine"]) == 4


def test_recipe_show_prints_every_link_with_the_origin_of_its_values(write, capsys):
    words = write(WHOLE)
    assert main(["recipe", "show", *words]) == 0
    documents = capsys.readouterr().out.split("---\n")
    assert [document.split("\n")[0] for document in documents] == [
        "# link pt: train",
        "# link sft: train, goes on from pt",
        "# link rm: train, goes on from sft",
        "# link ppo: train, goes on from sft",
        "# link eval: predict, goes on from ppo",
        "# link gate: gate; eval must reach exact_match >= 0.5",
        "# link export: export, goes on from ppo",
    ]
    of_ppo = [line.split("#")[0].strip() for line in documents[3].splitlines()]
    assert {"stage: ppo", "reward_model: out/rm", "output_dir: out/ppo"} <= set(of_ppo)
    assert main(["recipe", "show", *words, "--json"]) == 0
    links = json.loads(capsys.readouterr().out)["links"]
    assert (links["rm"]["from"], links["rm"]["recipe"]["stage"]) == ("sft", "rm")
    assert links["gate"]["bars"] == ["exact_match >= 0.5"]


def test_recipe_show_prints_every_run_of_a_sweep_and_names_what_is_wrong(write, capsys):
    assert main(["recipe", "show", *write("dataset: rows.json\nsweep: {learning_rate: [0.1, 0.2]}\n")]) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line.startswith("# link")] == [
        "# link learning_rate-0.1: train",
        "# link learning_rate-0.2: train",
    ]
    assert main(["recipe", "show", *write("chain:\n  a: {dataset: rows.json, lora_rnk: 4}\n")]) == 2
    assert "link a: lora_rnk" in capsys.readouterr().err


def test_a_sweep_is_the_product_of_its_values_with_a_folder_for_each(write):
    sweep = read_sweep(
        write("dataset: rows.json\nsweep: {learning_rate: [1e-4, 5e-4], lora_target: [all, [q_proj]]}\n")
    )
    assert [link.name for link in sweep.links] == [
        "learning_rate-0.0001_lora_target-all",
        "learning_rate-0.0001_lora_target-q_proj",
        "learning_rate-0.0005_lora_target-all",
        "learning_rate-0.0005_lora_target-q_proj",
    ]
    assert (sweep.metric, sweep.greater_is_better) == ("eval_loss", False)


def test_problems_of_links_and_of_their_recipes_come_together(write, capsys):
    links = "chain:\n  a: {dataset: rows.json, learnin_rate: 1}\n  b: {dataset: rows.json, from: c}\n  gate: {}\n"
    assert main(["train", *write(links)]) == 2
    said = capsys.readouterr().err
    assert [line.partition(":")[0].strip() for line in said.splitlines()[1:]] == ["line 13", "line 14", "line 15"]
