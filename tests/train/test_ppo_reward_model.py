"""PPO with a reward model of stage rm: on the policy's base or on a copy, refused where it reads something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmforge.config.load import load_recipe
from llmforge.data.example import IGNORE, Encoded, Message
from llmforge.data.plan import lay_padded
from llmforge.errors import RecipeError
from llmforge.model.loading import load_model
from llmforge.model.value_head import load_value_head, values_at
from llmforge.train.rl.reward_model import Closing

REPO = Path(__file__).parents[2]
PROMPTS = [{"instruction": f"Say something about {thing}."} for thing in ("rain", "a cat", "the printer", "sleep")]

COLUMNS = {"prompt": "instruction", "query": None, "response": None, "chosen": "chosen", "rejected": "rejected"}


@pytest.fixture
def files(tmp_path):
    pairs = [{**row, "chosen": "Yes, surely.", "rejected": f"No {i}."} for i, row in enumerate(PROMPTS * 2)]
    for name, rows in (("pairs", pairs), ("prompts", PROMPTS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text(
        json.dumps({"pairs": {"file_name": "pairs.json", "ranking": True, "columns": COLUMNS}}), encoding="utf-8"
    )
    return tmp_path


@pytest.fixture
def reward_model(train, files):
    return train("rm", stage="rm", dataset="pairs", dataset_dir=files, lora_rank=4, max_steps=4, learning_rate=1e-2)


@pytest.fixture
def ppo(train, files):
    def go(out, **changes):
        keys = {
            "stage": "ppo", "dataset": files / "prompts.json", "max_new_tokens": 6, "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1, "max_steps": 2, "lora_rank": 4,
        }  # fmt: skip
        return train(out, **keys | changes)

    return go


SPY = """
import json
from llmforge.config.names import REWARDS

def spy(samples, options):
    with open({path!r}, "a") as file:
        file.writelines(json.dumps([s.prompt_ids, s.reply_ids, s.ended]) + "\\n" for s in samples)
    return [0.0] * len(samples)

REWARDS.add("spy", spy)
"""


def test_a_reply_is_rewarded_by_the_models_value_at_the_end_of_the_closed_conversation(ppo, reward_model, tmp_path):
    (tmp_path / "spy.py").write_text(SPY.format(path=str(tmp_path / "seen.jsonl")), encoding="utf-8")
    keys = {"reward_funcs": "spy", "plugins": tmp_path / "spy.py", "per_device_train_batch_size": 16}
    run = ppo("run", reward_model=reward_model, max_new_tokens=24, **keys)
    loaded = load_model(load_recipe([str(reward_model), "device=cpu"], "chat"), for_training=False)
    head = load_value_head(loaded.model, reward_model)
    end = loaded.tokenizer.control("<|im_end|>")
    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()][:16]
    rewards = [json.loads(line)["reward"] for line in (run / "rollouts.jsonl").read_text().splitlines()][:16]
    for (prompt, reply, ended), reward in zip(seen, rewards, strict=True):
        text = reply[:-1] if ended else reply
        ids = [*prompt, *text, end]
        batch = lay_padded([Encoded(ids, [IGNORE] * len(ids))], [0])
        with torch.no_grad():
            assert values_at(loaded.model, head, batch, [len(ids) - 1]).item() == pytest.approx(reward, abs=1e-4)
    assert not all(ended for _, _, ended in seen)
    critic, reward = (load_file(folder / "value_head.safetensors") for folder in (run / "critic", reward_model))
    assert 0 < (critic["value_head.weight"] - reward["value_head.weight"]).abs().max() < 0.01  # it started there


@pytest.mark.parametrize(
    "name", ["chatml", "vicuna", "alpaca", "empty", "smollm2", REPO / "benchmarks/smollm2_newline.yaml"]
)
def test_an_ended_reply_and_a_cut_one_are_both_closed_as_in_a_training_row(name, tiny_model_dir):
    words = [f"model_name_or_path={tiny_model_dir}", f"template={name}", "device=cpu"]
    loaded = load_model(load_recipe(words, "chat"), for_training=False)
    template, tokenizer = loaded.template, loaded.tokenizer
    asked = [Message("user", "Is it raining?")]
    start = template.encode(tokenizer, asked, add_generation_prompt=True).input_ids
    row = template.encode(tokenizer, [*asked, Message("assistant", "It is raining cats")]).input_ids
    drawn = list(row[len(start) :])
    closing = Closing.of(template, tokenizer)
    assert closing.ids
    text = drawn[: len(drawn) - len(closing.ids)]
    end = template.stop_ids(tokenizer)[0]
    assert closing.close(text) == closing.close([*text, end]) == drawn


def test_a_reward_model_on_a_copy_of_the_base_gives_the_same_run(ppo, reward_model, tiny_model_dir, tmp_path, capsys):
    shared = ppo("shared", reward_model=reward_model)
    assert "base copy 2" not in capsys.readouterr().err
    elsewhere = tmp_path / "copy"
    shutil.copytree(tiny_model_dir, elsewhere)
    moved = tmp_path / "rm_copy"
    shutil.copytree(reward_model, moved)
    recipe = (moved / "recipe.yaml").read_text().replace(str(tiny_model_dir), str(elsewhere))
    (moved / "recipe.yaml").write_text(recipe)
    apart = ppo("apart", reward_model=moved)
    assert "base copy 2" in capsys.readouterr().err
    for name in ("adapter_model.safetensors", "critic/adapter_model.safetensors"):
        mine, other = load_file(shared / name), load_file(apart / name)
        for key in mine:
            torch.testing.assert_close(other[key], mine[key], atol=2e-6, rtol=0)


def test_a_reward_model_of_another_template_or_tokenizer_is_refused(ppo, reward_model):
    path = reward_model / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"template_hash": "other", "template": "vicuna"}))
    with pytest.raises(RecipeError, match="was trained with the template vicuna, the policy uses chatml"):
        ppo("one", reward_model=reward_model)
    path.write_text(json.dumps(manifest | {"tokenizer_hash": "other", "base_model": "some/base"}))
    with pytest.raises(RecipeError, match="was trained on the base some/base, whose tokenizer is not the policy's"):
        ppo("two", reward_model=reward_model)
