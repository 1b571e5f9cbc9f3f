"""Roles that share a base compute what separate models compute, and switching between them leaves no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmforge.config.schema import FinetuneConfig
from llmforge.data.example import IGNORE, Encoded
from llmforge.data.plan import lay_padded
from llmforge.model.adapters import ADAPTER, add_lora
from llmforge.model.forward import token_logprobs
from llmforge.model.value_head import new_value_head, state_values
from llmforge.train.rl.roles import ACTOR, CRITIC, REFERENCE, REWARD, Role, Roles, copy_adapter, switch_off_dropout

ROWS = [Encoded([5, 9, 30, 41, 7, 8], [IGNORE] * 3 + [41, 7, 8]), Encoded([5, 9, 30, 11], [IGNORE] * 3 + [11])]
BATCH = lay_padded(ROWS, [0, 1])


@pytest.fixture
def base(tiny_model_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)


@pytest.fixture
def roles(base):
    torch.manual_seed(1)
    policy = add_lora(base, FinetuneConfig(lora_rank=4), [])
    for adapter in (REFERENCE, CRITIC, REWARD):
        copy_adapter(policy, ADAPTER, adapter)
    for name, weight in policy.named_parameters():  # four adapters that differ
        if ".lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    heads = new_value_head(policy), new_value_head(policy).requires_grad_(False)
    return Roles(policy, REFERENCE, Role(policy, CRITIC, heads[0]), Role(policy, REWARD, heads[1]))


def alone(roles, name):
    """A model of its own with the adapter of a role merged into its weights, as five separate models would be."""
    model = copy.deepcopy(roles.table[name].model)
    model.set_adapter(roles.table[name].adapter)
    return model.merge_and_unload()


def test_logits_on_a_shared_base_equal_those_of_separate_models(roles):
    with torch.no_grad():
        got = roles(BATCH)
        torch.testing.assert_close(got.logprobs, token_logprobs(alone(roles, ACTOR), BATCH), atol=1e-5, rtol=0)
        reference = token_logprobs(alone(roles, REFERENCE), BATCH)
        torch.testing.assert_close(roles.logprobs(REFERENCE, BATCH), reference, atol=1e-5, rtol=0)
        assert (reference - got.logprobs).abs().max() > 1e-3
        for name, values in ((CRITIC, got.values), (REWARD, roles.values(REWARD, BATCH))):
            expected = state_values(alone(roles, name), roles.table[name].head, BATCH)
            torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)


def test_a_reference_without_adapter_is_the_base(tiny_model_dir, base):
    untouched = copy.deepcopy(base)
    policy = add_lora(base, FinetuneConfig(lora_rank=4), [])
    roles = Roles(policy, "")
    for name, weight in policy.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(weight)
    with torch.no_grad():
        expected = token_logprobs(untouched, BATCH)
        torch.testing.assert_close(roles.logprobs(REFERENCE, BATCH), expected, atol=1e-6, rtol=0)


def learning(roles):
    return {name for name, weight in roles.named_parameters() if weight.requires_grad}


def test_actor_and_critic_learn_and_nothing_else(roles):
    before = learning(roles)
    assert all(".default." in name or ".critic." in name or "critic_head" in name for name in before)
    got = roles(BATCH, entropy=True)
    (got.logprobs.sum() + got.values.sum() + got.entropy.sum()).backward()
    assert learning(roles) == before
    moved = {name for name, weight in roles.named_parameters() if weight.grad is not None}
    assert moved == before
    assert set(map(id, roles.actor_parameters())).isdisjoint(map(id, roles.critic_parameters()))
    both = [*roles.actor_parameters(), *roles.critic_parameters()]
    assert {id(p) for p in both} == {id(p) for p in roles.parameters() if p.requires_grad}


def gradients(roles):
    roles.zero_grad()
    roles.train()
    got = roles(BATCH)
    (got.logprobs.sum() + 2 * got.values.sum()).backward()
    return {name: weight.grad.clone() for name, weight in roles.named_parameters() if weight.grad is not None}


def test_recomputed_activations_come_from_the_adapter_of_the_forward_pass(roles):
    switch_off_dropout(roles)
    plain = gradients(roles)
    roles.activation_checkpointing_enable()
    again = gradients(roles)
    assert plain.keys() == again.keys()
    for name in plain:
        torch.testing.assert_close(again[name], plain[name], atol=1e-6, rtol=1e-5)


def test_a_role_leaves_the_model_as_it_found_it_after_an_error(roles):
    with pytest.raises(KeyboardInterrupt), roles.using(REWARD):
        raise KeyboardInterrupt
    with torch.no_grad():
        first = token_logprobs(roles.policy, BATCH)
    torch.testing.assert_close(first, roles(BATCH).logprobs.detach())


def test_the_table_of_memory_names_each_role_and_what_sharing_saves(roles):
    lines = roles.memory(ema=1000)
    assert [line.split(":")[0] for line in lines[:6]] == [
        "base copy 1", "actor", "reference", "critic", "reward", "actor_ema"
    ]  # fmt: skip
    assert "as 5 models of their own" in lines[-1]
