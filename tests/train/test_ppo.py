"""PPO on the tiny model: a rising reward, steps that do not depend on how they are cut, resuming, refused input."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from llmforge.config.load import load_recipe
from llmforge.errors import RecipeError, RunError
from llmforge.model.value_head import FILE as HEAD

PROMPTS = [{"instruction": f"Say something about {thing}."} for thing in ("rain", "a cat", "the printer", "sleep") * 4]
PLUGIN = """
from llmforge.config.names import REWARDS

def low_ids(samples, options):
    return [sum(id < 192 for id in sample.reply_ids) / sample.num_tokens for sample in samples]

def broken(samples, options):
    return [float("nan") if i == 2 else 1.0 for i in range(len(samples))]

def alike(samples, options):
    return [1.0] * len(samples)

def too_few(samples, options):
    return [1.0]

for function in (low_ids, broken, alike, too_few):
    REWARDS.add(function.__name__, function)
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return path


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(PROMPTS), encoding="utf-8")
    return path


@pytest.fixture
def ppo(train, prompts, plugin):
    def go(out="run", **changes):
        keys = {
            "stage": "ppo", "dataset": prompts, "plugins": plugin, "reward_funcs": "low_ids", "max_new_tokens": 6,
            "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 2, "lora_rank": 4,
        }  # fmt: skip
        return train(out, **keys | changes)

    return go


def weights_of(run):
    files = ("adapter_model.safetensors", "critic/adapter_model.safetensors", f"critic/{HEAD}")
    files += ("actor_ema/adapter_model.safetensors",)
    return {f"{name} {key}": value for name in files for key, value in load_file(run / name).items()}


def assert_close(one, two, atol):
    mine, other = weights_of(one), weights_of(two)
    assert mine.keys() == other.keys()
    for name in mine:
        torch.testing.assert_close(other[name], mine[name], atol=atol, rtol=0)


def test_the_reward_of_a_toy_scorer_rises(ppo, log_of):
    run = ppo(max_steps=20, per_device_train_batch_size=16, learning_rate=2e-2, lr_scheduler_type="constant",
              additional_target="lm_head", ppo_whiten_advantages=True, ppo_kl_coef=0.001, ppo_max_kl=20)  # fmt: skip
    rewards = [line["reward"] for line in log_of(run)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15
    assert log_of(run)[-1]["kl"] > log_of(run)[0]["kl"]


def test_a_run_logs_what_ppo_is_watched_by_and_keeps_its_replies(ppo, log_of):
    run = ppo(ppo_epochs=2)
    first, second = log_of(run)
    for name in ("reward", "reward_ema", "kl", "kl_per_token", "clip_share", "reply_tokens", "value_loss"):
        assert name in first
    assert first["ratio_max"] == pytest.approx(1, abs=1e-5)  # the first step learns from its own replies
    assert second["ratio_max"] > 1.0001  # the second from those of one step ago
    assert first["reward"] == second["reward"]
    rows = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert sum(row["reward"] for row in rows) / 8 == pytest.approx(first["reward"])


CUTS = {
    "small passes": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "tokens_per_pass": 64},
    "padded": {"batching": "padded", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "recomputed": {"gradient_checkpointing": True},
}


def test_a_step_does_not_depend_on_how_it_is_cut(ppo, tmp_path):
    # Adam divides a gradient by its own size: where that is near 0, rounding alone decides a step of the full rate.
    # Plain descent without a norm moves by the gradient, wrong sizes included.
    keys = {"ppo_entropy_coef": 0.01, "ppo_whiten_advantages": True, "optim": "sgd", "max_grad_norm": 0}
    start = weights_of(ppo("start", **keys, learning_rate=1e-30))
    keys |= {"learning_rate": 0.1}
    whole = weights_of(ppo("whole", **keys))
    moves = {name: whole[name] - start[name] for name in start}
    assert sum(bool(move.any()) for move in moves.values()) > len(moves) / 2
    for name, cut in CUTS.items():
        other = weights_of(ppo(name, **keys, **cut))
        for weight, move in moves.items():
            rounding = float(start[weight].abs().max()) * torch.finfo(torch.float32).eps
            atol = 1e-5 * float(move.abs().max()) + rounding
            torch.testing.assert_close(other[weight] - start[weight], move, atol=atol, rtol=0)


def test_a_run_resumed_within_a_roll_out_equals_an_unbroken_one(ppo, log_of, tmp_path):
    changes = {"save_steps": 1, "max_steps": 6, "ppo_epochs": 2, "ppo_buffer_size": 2, "ppo_score_norm": True,
               "per_device_train_batch_size": 4, "ppo_target": 0.5, "val_size": 4, "eval_strategy": "steps",
               "eval_steps": 2}  # fmt: skip
    whole = ppo("whole", **changes)
    for step in (2, 4):
        broken = tmp_path / f"broken{step}"
        shutil.copytree(whole, broken)
        os.remove(broken / "train_results.json")
        for later in range(step + 1, 7):
            shutil.rmtree(broken / f"checkpoint-{later}")
        ppo(broken.name, **changes, resume_from_checkpoint=True)
        assert_close(whole / "checkpoint-6", broken / "checkpoint-6", 0)
        ours, theirs = ((run / "checkpoint-6" / "rollout_state.json").read_text() for run in (whole, broken))
        ours, theirs = json.loads(ours), json.loads(theirs)
        assert {**ours, "numbers": {**ours["numbers"], "rollout_ms": 0}} == {
            **theirs, "numbers": {**theirs["numbers"], "rollout_ms": 0}
        }  # fmt: skip
        logs = [[(x["current_steps"], x.get("loss"), x.get("reward"), x.get("eval_reward")) for x in log_of(run)]
                for run in (whole, broken)]  # fmt: skip
        assert logs[0] == logs[1]
        assert (whole / "rollouts.jsonl").read_bytes() == (broken / "rollouts.jsonl").read_bytes()


def test_actor_critic_and_average_can_each_be_used_by_their_folder(ppo, tiny_model_dir):
    run = ppo()
    for folder in (run, run / "actor_ema", run / "critic"):
        recipe = load_recipe([str(folder)], "chat")
        assert recipe.model.model_name_or_path == str(tiny_model_dir)
        assert recipe.data.template == "chatml"
    assert (run / "critic" / HEAD).exists()
    assert weights_of(run)


def test_the_average_follows_the_actor_from_its_start(ppo):
    run = ppo(max_steps=1, ppo_ema_decay=0.75)
    actor, average = (load_file(run / name / "adapter_model.safetensors") for name in (".", "actor_ema"))
    up = next(name for name in actor if "lora_B" in name)  # starts at 0
    assert actor[up].abs().max() > 0
    torch.testing.assert_close(average[up], 0.25 * actor[up])


def test_the_critic_learns_at_its_own_rate(ppo):
    still = ppo("still", critic_learning_rate=1e-12)
    assert load_file(still / "critic" / HEAD)["value_head.weight"].abs().max() < 1e-10
    assert load_file(ppo("moving") / "critic" / HEAD)["value_head.weight"].abs().max() > 1e-4


def test_evaluation_rewards_held_out_prompts_and_their_gain(ppo, log_of):
    run = ppo(val_size=6, eval_strategy="steps", eval_steps=1, eval_on_start=True, do_eval=True)
    evaluated = [line for line in log_of(run) if "eval_reward" in line]
    assert [line["current_steps"] for line in evaluated] == [0, 1, 2, 2]
    assert "eval_reward_gain" not in evaluated[0]
    assert evaluated[1]["eval_reward"] - evaluated[0]["eval_reward"] == pytest.approx(evaluated[1]["eval_reward_gain"])
    assert json.loads((run / "train_results.json").read_text())["eval_reward"] == evaluated[-1]["eval_reward"]


def test_a_run_that_drifts_too_far_from_its_reference_stops_and_is_saved(ppo, log_of):
    run = ppo(max_steps=10, ppo_max_kl=1e-4, learning_rate=1e-2)
    assert len(log_of(run)) < 10
    assert "above ppo_max_kl" in json.loads((run / "run.json").read_text())["alarms"][-1]
    assert (run / "adapter_model.safetensors").exists()


def test_a_reward_that_is_no_number_ends_the_run_and_names_the_row(ppo):
    with pytest.raises(RunError, match=r"reward broken is nan for the reply .* to .*prompts.json row \d+"):
        ppo(reward_funcs="broken")
    with pytest.raises(RunError, match="reward too_few gave 1 numbers for 8 replies"):
        ppo("other", reward_funcs="too_few")


def test_a_reward_that_never_differs_is_an_alarm_and_then_the_end(ppo, tmp_path):
    with pytest.raises(RunError, match=r"the reward \(alike\) is 1 for all 8 replies of 10 roll-outs from the start"):
        ppo(reward_funcs="alike", max_steps=20)
    alarms = json.loads((tmp_path / "run/run.json").read_text())["alarms"]
    assert len(alarms) == 1
    assert "step 1: the reward (alike) is 1 for all 8 replies" in alarms[0]


def test_a_prompt_longer_than_the_limit_is_left_out_by_its_row(ppo, prompts, capsys):
    rows = [*PROMPTS, {"instruction": "word " * 200}]
    prompts.write_text(json.dumps(rows), encoding="utf-8")
    run = ppo(max_steps=1, cutoff_len=64)
    report = json.loads((run / "data_report.json").read_text())["steps"]
    (rejected,) = [item for step in report for item in step["rejected"]]
    assert rejected["row"] == 17
    assert "cutoff_len is 64" in rejected["reason"]
    with pytest.raises(RecipeError, match=r"row 17: the prompt has \d+ tokens, cutoff_len is 64"):
        ppo("other", cutoff_len=64, truncation="raise")


def test_replies_of_one_token_are_named(ppo):
    run = ppo(max_new_tokens=1)
    alarms = json.loads((run / "run.json").read_text())["alarms"]
    assert "8 of 8 replies have one token, for example that to" in alarms[0]


REFUSED = {
    "finetuning_type: stage ppo": {"finetuning_type": "full"},
    "reward_model: stage ppo has nothing that rewards": {"reward_funcs": []},
    "reward_pattern: missing": {"reward_funcs": "regex"},
    "deepspeed: stage ppo": {"deepspeed": "configs/deepspeed/z3.json"},
    "neftune_noise_alpha": {"neftune_noise_alpha": 5},
}


@pytest.mark.parametrize("message", REFUSED)
def test_keys_that_ppo_cannot_honour_are_refused(message, words):
    keys = {"stage": "ppo", "reward_funcs": "json_valid", **REFUSED[message]}
    with pytest.raises(RecipeError, match=message):
        load_recipe(words(**keys), "train")


def test_a_function_that_needs_the_rows_reply_names_the_row_without_one(ppo):
    with pytest.raises(RecipeError, match=r"exact_match needs a reply to compare with; .*prompts.json row"):
        ppo(reward_funcs="exact_match")


def test_replies_that_cannot_be_shared_out_are_refused(ppo):
    with pytest.raises(
        RecipeError, match="num_generations: the 3 replies to a prompt stay together, but a rank draws 8"
    ):
        ppo(num_generations=3)


def test_a_folder_that_is_no_reward_model_is_refused(ppo, tiny_model_dir):
    with pytest.raises(RecipeError, match="is no reward model; train one with stage: rm"):
        ppo(reward_model=tiny_model_dir, reward_funcs=[])
