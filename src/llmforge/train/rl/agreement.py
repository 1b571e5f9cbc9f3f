"""Do generator and trainer run the same model? Looked at once, before the first step learns from drawn replies."""

from __future__ import annotations

import torch

from llmforge.data.example import IGNORE, Encoded, EncodedSet
from llmforge.data.plan import Batch
from llmforge.errors import RunError
from llmforge.model.forward import causal_lm, greedy_gaps
from llmforge.train.rl.roles import ACTOR, Roles
from llmforge.train.rl.rollout import Roller

PROMPTS, TOKENS = 4, 8
# Two ways of adding up the same numbers may choose differently between tokens this close, in nats.
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-6}
CLOSE_IN_HALF = 0.1


@torch.no_grad()
def check_agreement(roles: Roles, roller: Roller, prompts: EncodedSet, lay) -> str:
    """Compare the generator's greedy tokens with those of the trainer's forward pass, layout and attention.

    Args:
        lay: rows -> the batches that the trainer computes.

    Returns:
        A line for the log.

    Raises:
        RunError: they differ by more than rounding.
    """
    asked = [tuple(prompts.ids_of(row).tolist()) for row in range(min(PROMPTS, len(prompts)))]
    replies = roller.greedy(asked, TOKENS)
    rows = [Encoded([*p, *r], [IGNORE] * len(p) + list(r)) for p, r in zip(asked, replies, strict=True)]
    batches: list[Batch] = lay(EncodedSet.of(rows))
    with roles.using(ACTOR) as actor:
        gaps = torch.cat([greedy_gaps(actor.model, batch).float().cpu() for batch in batches])
        dtype = causal_lm(actor.model).get_output_embeddings().weight.dtype
    widest = float(gaps.max())
    if not widest <= CLOSE.get(dtype, CLOSE_IN_HALF):
        raise RunError(
            f"generator and trainer disagree: a token the generator finds likeliest lies {widest:.3g} nats below the "
            "trainer's likeliest, so replies would not come from the policy that learns; try batching: padded"
        )
    return f"check: generator and trainer agree on {len(gaps)} greedy tokens of {len(asked)} prompts"
