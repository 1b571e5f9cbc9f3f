"""A live model as a guest finds it: its limits, its ends of text, its modes and adapters, left as they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psutil
import torch


def base_of(model: Any) -> Any:
    """The transformers model under a PeftModel, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def context_length(model: Any) -> int | None:
    """Tokens that the model's position scheme reaches; None where the config names no limit (ALiBi)."""
    config = base_of(model).config.get_text_config(decoder=True)
    names = ("max_position_embeddings", "seq_length", "max_seq_len", "n_positions")
    return next((int(value) for name in names if (value := getattr(config, name, None))), None)


def model_stop_ids(model: Any) -> list[int]:
    """The ends of text that the model's generation config names."""
    ids = getattr(getattr(base_of(model), "generation_config", None), "eos_token_id", None)
    return [ids] if isinstance(ids, int) else list(ids or ())


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Dropout off inside; every module's mode as before afterwards, so that roll-outs can use a model in training."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def using_adapter(model: Any, name: str | None) -> Iterator[None]:
    """Run with one PEFT adapter, with none (""), or with the module as it stands (None)."""
    if name is None or not hasattr(model, "disable_adapter"):
        yield
    elif name == "":
        with model.disable_adapter():
            yield
    else:
        model.set_adapter(name)
        yield


class PeftAdapters:
    """The adapters of a PeftModel, one at a time."""

    can_mix = False

    def __init__(self, model: Any):
        self.model = model

    def using(
        self, rows: Sequence[tuple[str | None, int]], head_rows: Sequence[tuple[str | None, int]] | None = None
    ) -> AbstractContextManager[None]:
        """Run with the adapter that all rows name."""
        return using_adapter(self.model, rows[0][0])


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses: of a card, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
