"""Tokens a recipe adds: the tokenizer that knows them (no torch), and embeddings with room for them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmforge.config.schema import ModelConfig
from llmforge.data.tokenizer import load_tokenizer
from llmforge.model.cache import conversion_dir, convert_once, file_identity

# Everything a tokenizer folder may hold; weights stay where they are.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def tokenizer_folder(config: ModelConfig, folder: Path) -> Path:
    """The folder of the tokenizer to use with the model in `folder`: its own, or a copy that knows the added tokens.

    The copy depends on the recipe alone, so data checks, training and serving find the same ids.
    """
    if not (config.add_tokens or config.add_special_tokens):
        return folder
    stamp = [file_identity(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()]
    added = [config.add_tokens, config.add_special_tokens]
    digest = hashlib.sha256(json.dumps([stamp, added]).encode()).hexdigest()
    target = conversion_dir(config, f"{folder.name}-tokenizer", digest)

    def build(copy: Path) -> None:
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, copy / name)
        load_tokenizer(folder)  # converts a sentencepiece model where that is all there is
        _add_tokens(folder, copy, config)

    return convert_once(target, {"name": str(folder), "added": added}, build, lambda line: None)


def _add_tokens(folder: Path, copy: Path, config: ModelConfig) -> None:
    from tokenizers import AddedToken, Tokenizer

    if not (copy / "tokenizer.json").is_file():
        from llmforge.data.tokenizer_conversion import convert

        shutil.copyfile(convert(folder), copy / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.add_tokens(config.add_tokens)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in config.add_special_tokens]
    )
    tokenizer.save(str(copy / "tokenizer.json"))


def grow_embeddings(model: Any, num_tokens: int) -> int:
    """Give input and output embeddings rows for `num_tokens` tokens; new rows are the mean of the old ones.

    Returns:
        The number of new rows; 0 when the matrix has room already (many are padded to a multiple).
    """
    old = model.get_input_embeddings().weight.shape[0] or model.config.get_text_config().vocab_size
    if num_tokens <= old:
        return 0
    model.resize_token_embeddings(num_tokens, mean_resizing=False)
    matrices = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not matrices[0]:
        matrices.append(head.weight)
    for matrix in matrices:
        with _gathered(matrix):
            matrix.data[old:] = matrix.data[:old].float().mean(dim=0).to(matrix.dtype)
    return num_tokens - old


@contextlib.contextmanager
def _gathered(parameter: Any) -> Iterator[None]:
    """The whole parameter on every rank, also under ZeRO-3, which keeps only a part on each."""
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        yield
