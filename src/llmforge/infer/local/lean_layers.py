"""Decoder layers of Llama's shape in fewer steps of Python and fewer passes over memory, in a paged pass on a CPU.

With a few rows a step is over before Python has called the library's forty functions per layer: for 8 rows of a 135M
Llama they took as long as half of the products. A layer is taken only when, in fp32, it gives what its own forward
gives, to the rounding; whoever calls it outside of a paged pass gets its own forward. Only instances are touched.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmforge.infer.local.live import base_of
from llmforge.infer.local.paged import BLOCK_SIZE, KeyValues, PagedStep, Span, current_step, paged_attention

log = logging.getLogger(__name__)
TOLERANCE = 1e-4  # of the largest number; another formula, such as another activation, is off by 1e-2 and more
DTYPES = (torch.float32, torch.bfloat16)
POSITIONS = (0, 7, 9_000, 300_000, 2_000_000)  # of the trial's tokens: some families scale what comes late
TRIAL_TOKENS = len(POSITIONS)
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
ALSO = {"q_norm", "k_norm"}  # of each head, where a family has them
GATED_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


class LeanNorm:
    """A norm's forward: x weight / sqrt(mean(x^2) + eps) over the last dimension (Zhang and Sennrich 2019, RMSNorm)."""

    def __init__(self, module: Any):
        self.weight: nn.Parameter = module.weight
        eps = getattr(module, "variance_epsilon", None)
        self.eps = torch.tensor(module.eps if eps is None else eps)
        self.share = 1 / self.weight.shape[-1]

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scaled = x * torch.addcmul(self.eps, length, length, value=self.share).rsqrt_()
        return scaled.to(x.dtype).mul_(self.weight)

    def __deepcopy__(self, memo: dict[int, Any]) -> LeanNorm:
        return self  # of a model that is copied to look at it: it computes with this one's weights


class Turning:
    """Rotary positions (Su et al. 2021, RoFormer), heads turned by halves; one for all layers of a model."""

    def __init__(self) -> None:
        self._sin: Tensor | None = None
        self._signed: Tensor | None = None

    def angles(self, embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(tokens, 1, width) cosines, and sines with the sign that the other half takes; made once a pass."""
        cos, sin = embeddings
        if self._signed is None or sin is not self._sin:
            half = sin.shape[-1] // 2
            self._sin, self._signed = sin, torch.cat((-sin[..., :half], sin[..., half:]), -1)[0, :, None]
        return cos[0, :, None], self._signed

    def __call__(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """x (tokens, heads, width), turned."""
        cos, sin = angles
        return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)


@dataclass(frozen=True)
class Scores:
    """How a layer's attention scores are made; see PagedStep.attend."""

    layer: int
    scale: float
    window: int | None
    cap: float | None


class LeanLayer:
    """The forward of a decoder layer in a paged pass; the last one computes only what is wanted (PagedStep.wanted)."""

    def __init__(self, layer: Any, scores: Scores, turning: Turning, *, is_last: bool):
        attention, mlp = layer.self_attn, layer.mlp
        self.layer, self.scores, self.turn, self.is_last = layer, scores, turning, is_last
        self.width: int = attention.head_dim
        # Kept as modules: their forwards change when adapters come and go.
        self.before, self.between = layer.input_layernorm, layer.post_attention_layernorm
        self.q_norm: Any = getattr(attention, "q_norm", None)
        self.k_norm: Any = getattr(attention, "k_norm", None)
        self.q, self.k, self.v, self.o = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        self.gate, self.up, self.down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        # In place: what the gate has just written is in the core's cache.
        self.act = functools.partial(F.silu, inplace=True) if isinstance(mlp.act_fn, nn.SiLU) else mlp.act_fn

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        step = current_step()
        if step is None or args:
            return type(self.layer).forward(self.layer, hidden_states, *args, **kwargs)
        return self.forward(hidden_states, step, kwargs["position_embeddings"])

    def forward(self, hidden: Tensor, step: PagedStep, embeddings: tuple[Tensor, Tensor]) -> Tensor:
        """hidden (1, tokens, width of the model), after this layer."""
        hidden = hidden[0]
        heads = (len(hidden), -1, self.width)
        x = self.before.forward(hidden)
        q, k, v = (layer.forward(x).view(heads) for layer in (self.q, self.k, self.v))
        if self.q_norm is not None:
            q, k = self.q_norm.forward(q), self.k_norm.forward(k)
        angles = self.turn.angles(embeddings)
        q, k = self.turn(q, angles), self.turn(k, angles)
        at = self.scores
        step.write(at.layer, k.transpose(0, 1), v.transpose(0, 1))
        if not self.is_last or step.wanted is None:
            return self._finish(hidden, step.read(at.layer, q.transpose(0, 1), at.scale, at.window, at.cap))[None]
        wanted = step.wanted.places
        q = q.index_select(0, wanted)
        out = step.of_wanted.read(at.layer, q.transpose(0, 1), at.scale, at.window, at.cap)
        return hidden.index_copy(0, wanted, self._finish(hidden.index_select(0, wanted), out))[None]

    def _finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """hidden (tokens, width of the model), attended (tokens, heads, width): what comes behind the attention."""
        hidden = self.o.forward(attended.flatten(1)).add_(hidden)
        x = self.between.forward(hidden)
        return self.down.forward(self.act(self.gate.forward(x)).mul_(self.up.forward(x))).add_(hidden)

    def __deepcopy__(self, memo: dict[int, Any]) -> LeanLayer:
        return self  # of a model that is copied to look at it: it computes with this one's weights


class _Watched(PagedStep):
    """A step that tells how each layer attends."""

    def read(self, layer: int, query: Tensor, scale: float, window: int | None, cap: float | None) -> Tensor:
        self.seen = Scores(layer, scale, window, cap)
        return super().read(layer, query, scale, window, cap)


@torch.no_grad()
def take_lean_forms(model: Any) -> list[nn.Module]:
    """Give every norm and layer that allows it its lean forward, before packing and adapters; which they are."""
    base = base_of(model)
    if base is not model or base.device.type != "cpu":
        return []
    norms = [module for module in base.modules() if _is_norm(module) and _norm_agrees(module)]
    for norm in norms:
        norm.forward = LeanNorm(norm)
    turning = Turning()
    found = [lean for layer in base.modules() if _has_the_shape(layer) and (lean := _lean(base, layer, turning))]
    for lean in found:
        lean.layer.forward = lean
    log.info("%d layers and %d norms run in their lean forms", len(found), len(norms))
    return [*norms, *(lean.layer for lean in found)]


def put_back(modules: Iterable[nn.Module]) -> None:
    """Give these their own forwards again."""
    for module in modules:
        del module.__dict__["forward"]


def _is_norm(module: Any) -> bool:
    return (
        type(module).__name__.endswith("RMSNorm")
        and "forward" not in vars(module)
        and isinstance(getattr(module, "weight", None), nn.Parameter)
        and module.weight.dtype in DTYPES
        and (hasattr(module, "variance_epsilon") or hasattr(module, "eps"))
    )


def _norm_agrees(norm: Any) -> bool:
    x = torch.randn(TRIAL_TOKENS, norm.weight.shape[0], generator=torch.Generator().manual_seed(0))
    exact = _exact(norm)
    return _alike(exact(x), LeanNorm(exact)(x))


def _exact(module: Any) -> Any:
    """The module in fp32, over the same configuration; itself when it is."""
    if all(parameter.dtype == torch.float32 for parameter in module.parameters()):
        return module
    configs = {id(part.config): part.config for part in module.modules() if hasattr(part, "config")}
    return copy.deepcopy(module, configs).float()


def _alike(own: Tensor, lean: Tensor) -> bool:
    largest = own.abs().max()
    return own.shape == lean.shape and bool(largest > 0 and (own - lean).abs().max() <= TOLERANCE * largest)


def _has_the_shape(layer: Any) -> bool:
    if _names(layer) != PARTS or "forward" in vars(layer):
        return False
    attention, mlp = layer.self_attn, layer.mlp
    linears = [(attention, name) for name in ATTENTION] + [(mlp, name) for name in GATED_MLP - {"act_fn"}]
    return (
        _names(attention) in (ATTENTION, ATTENTION | ALSO)
        and _names(mlp) == GATED_MLP
        and all(type(getattr(part, name)) is nn.Linear for part, name in linears)
        and {parameter.dtype for parameter in layer.parameters()} in ({dtype} for dtype in DTYPES)
        and isinstance(getattr(attention, "head_dim", None), int)
    )


def _names(module: Any) -> set[str]:
    return {name for name, _ in module.named_children()}


def _lean(base: Any, layer: Any, turning: Turning) -> LeanLayer | None:
    """The layer's lean form, if it gives what the layer gives on numbers no special case hides behind."""
    width = layer.self_attn.q_proj.in_features
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, TRIAL_TOKENS, width, generator=draw)
    angles = torch.rand(1, TRIAL_TOKENS, layer.self_attn.head_dim // 2, generator=draw).mul_(3).repeat(1, 1, 2)
    given = {"position_embeddings": (angles.cos(), angles.sin()), "position_ids": torch.tensor([POSITIONS])}
    try:
        exact = _exact(layer)
        own, scores = _own(base, exact, hidden, given)
        if not isinstance(own, Tensor) or scores is None:
            return None
        lean = LeanLayer(exact, scores, turning, is_last=False)
        got = lean.forward(hidden, _trial_step(), given["position_embeddings"])  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:  # other arguments, other shapes
        log.debug("%s keeps its own form: %s", type(layer).__name__, error)
        return None
    # What the layer adds is compared, which may be small beside what it is added to.
    is_last = scores.layer == base.config.get_text_config().num_hidden_layers - 1
    return LeanLayer(layer, scores, turning, is_last=is_last) if _alike(own - hidden, got - hidden) else None


def _own(base: Any, layer: Any, hidden: Tensor, given: dict[str, Any]) -> tuple[Any, Scores | None]:
    step = _trial_step()
    with paged_attention(base, step):
        out = layer(hidden, **given)
    return out, getattr(step, "seen", None)


def _trial_step() -> _Watched:
    return _Watched.of(KeyValues(2), [Span(0, 0, TRIAL_TOKENS, _blocks())], torch.device("cpu"))  # type: ignore[return-value]


def _blocks() -> Sequence[int]:
    return range(1, 1 + -(-TRIAL_TOKENS // BLOCK_SIZE))
