"""Reading texts without writing any: vectors of texts, and values of conversations, many texts in a padded batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmforge.errors import RecipeError, nearest
from llmforge.infer.local.encoder_files import own_limit, own_pooling
from llmforge.infer.local.live import base_of
from llmforge.infer.local.readings import Reading
from llmforge.infer.protocol import POOLINGS, TokenIds

if TYPE_CHECKING:
    from llmforge.data.tokenizer import Tokenizer
    from llmforge.model.value_head import ValueHead

PASS_TOKENS = 8192  # of a batch, padding included
# Positions that these count from behind the padding's id.
SHIFTED = ("camembert", "roberta", "xlm-roberta", "xlm-roberta-xl", "data2vec-text")


class Reader:
    """The last hidden states of texts, after the model's last norm.

    Args:
        model: a transformers model, with or without an output head.
        using: a context in which the rows of a pass run with one adapter.
    """

    def __init__(self, model: Any, using: Callable[[str], AbstractContextManager[None]] | None = None):
        base = base_of(model)
        self.transformer = base.base_model
        self.using = using or (lambda adapter: nullcontext())
        embedding = base.get_input_embeddings().weight
        self.device, self.vocab_size = embedding.device, embedding.shape[0]

    @torch.no_grad()
    def states(self, rows: Sequence[Sequence[int]], adapter: str = "") -> list[Tensor]:
        """(tokens, H) of each row of ids."""
        found: dict[int, Tensor] = {}
        for batch in batches([len(row) for row in rows], PASS_TOKENS):
            width = len(rows[batch[0]])
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, number in enumerate(batch):
                ids[place, : len(rows[number])] = torch.tensor(rows[number])
                mask[place, : len(rows[number])] = 1
            with self.using(adapter):
                output = self.transformer(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
            for place, number in enumerate(batch):
                found[number] = output[0][place, : len(rows[number])]
        return [found[number] for number in range(len(rows))]


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions of rows that share a padded pass, longest first; a row longer than the budget has its own."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def pool(states: Tensor, pooling: str) -> Tensor:
    """A unit vector (H,) in fp32 out of hidden states (tokens, H)."""
    ways = {"mean": lambda: states.float().mean(dim=0), "cls": lambda: states[0].float(), "last": lambda: states[-1]}
    return F.normalize(ways[pooling]().float(), dim=0)


@dataclass
class Embedder:
    """A model that turns texts into vectors; `limit` is how many tokens it reads, None for no end."""

    name: str
    reader: Reader
    tokenizer: Tokenizer
    pooling: str
    limit: int | None

    def embed(
        self, texts: Sequence[str | TokenIds], pooling: str = "", max_tokens: int | None = None, adapter: str = ""
    ) -> list[Reading]:
        """A vector for each text; see Engine.embed."""
        rows = [self._ids(text, max_tokens) for text in texts]
        problems = [self._problem(row) for row in rows]
        fine = [row for row, problem in zip(rows, problems, strict=True) if problem is None]
        vectors = iter([pool(states, pooling or self.pooling).tolist() for states in self.reader.states(fine, adapter)])
        return [
            Reading(next(vectors), len(row)) if problem is None else Reading((), len(row), problem)
            for row, problem in zip(rows, problems, strict=True)
        ]

    def _ids(self, text: str | TokenIds, max_tokens: int | None) -> list[int]:
        limit = None if max_tokens is None else min(max_tokens, self.limit or max_tokens)
        if isinstance(text, TokenIds):
            return list(text.ids[:limit])
        return self.tokenizer.whole_ids(text, limit)

    def _problem(self, ids: Sequence[int]) -> str | None:
        if not ids:
            return "the text is empty"
        if strange := [id for id in ids if not 0 <= id < self.reader.vocab_size]:
            return f"ids {strange[:5]} are outside the vocabulary of {self.reader.vocab_size}"
        if self.limit is not None and len(ids) > self.limit:
            return f"the text has {len(ids)} tokens; {self.name} reads {self.limit}; max_length cuts longer ones"
        return None


@torch.no_grad()
def score(
    reader: Reader, head: ValueHead, rows: Sequence[Sequence[int]], limit: int | None, adapter: str = ""
) -> list[Reading]:
    """The head's value at each token of each row; the last one is the row's score."""
    problems = [
        f"the conversation has {len(row)} tokens; the model reads {limit}"
        if limit is not None and len(row) > limit
        else None
        for row in rows
    ]
    fine = [row for row, problem in zip(rows, problems, strict=True) if problem is None]
    values = iter([head(states).float().tolist() for states in reader.states(fine, adapter)])
    return [
        Reading(next(values), len(row)) if problem is None else Reading((), len(row), problem)
        for row, problem in zip(rows, problems, strict=True)
    ]


# Models made for embeddings


def load_encoder(
    name: str, folder: Path, device: torch.device, dtype: torch.dtype, pooling: str | None, trust: bool = False
) -> Embedder:
    """The model in `folder` for reading.

    Raises:
        RecipeError: files missing or damaged, weights missing, a pooling that is not known.
    """
    import transformers

    from llmforge.data.tokenizer import load_tokenizer

    if pooling is not None and pooling not in POOLINGS:
        raise RecipeError(
            f"embedders: {name}: pooling: got {pooling!r}, expected one of {', '.join(POOLINGS)}."
            f"{nearest(pooling, POOLINGS)}"
        )
    tokenizer = load_tokenizer(folder)
    pooling = pooling or own_pooling(folder)
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # its table of a head's unused weights
    try:
        loaded: Any = transformers.AutoModel.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, trust_remote_code=trust
        )
    except (OSError, ValueError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"embedders: {name}: {folder} cannot be loaded: {first}") from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    model, info = loaded
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith("pooler.")):
        count, example = len(missing), missing[0]
        raise RecipeError(f"embedders: {name}: {count} weights are missing in {folder}, for example {example}")
    model = model.to(device).eval().requires_grad_(False)
    reader = Reader(model)
    return Embedder(name, reader, tokenizer, pooling or usual_pooling(reader), _limit(model, folder))


def usual_pooling(reader: Reader) -> str:
    """The last token's state where only that has seen the whole text, else the mean."""
    first, other = reader.states([[1, 2, 3], [1, 2, 4]])
    return "last" if torch.equal(first[0], other[0]) else "mean"


def _limit(model: Any, folder: Path) -> int | None:
    """Tokens the model reads: its positions, or less where sentence-transformers' files say so."""
    config = model.config
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in SHIFTED:
        positions -= (config.pad_token_id or 0) + 1
    said = own_limit(folder)
    return min((limit for limit in (positions, said) if limit), default=None)
