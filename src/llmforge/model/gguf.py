"""A .gguf file becomes a folder of safetensors and tokenizer, read by transformers and written once.

Weights are dequantised to float32. Up to 4 GiB they are stored so, exact and mapped from disk without a copy on a CPU;
larger models are stored in bfloat16, whose rounding (2^-9) is far below that of 4-bit blocks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmforge.errors import RecipeError, require
from llmforge.model.cache import Say
from llmforge.model.device import tell_deepspeed

FLOAT32_LIMIT_BYTES = 4 * 2**30
SENTINEL = "Reply-7Q"  # a reply that no chat template changes

# How text is cut before byte-level BPE, by the file's `tokenizer.ggml.pre`; transformers reads over this key. Regular
# expressions of github.com/ggml-org/llama.cpp, src/llama-vocab.cpp, equal to the models' own tokenizer.json.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {"llama-bpe": _WORDS % r"\p{N}{1,3}", "llama3": _WORDS % r"\p{N}{1,3}", "qwen2": _WORDS % r"\p{N}"}
SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r")
GPT2 = ("default", "gpt-2")


def convert(path: Path, folder: Path, say: Say) -> None:
    """Write the model and tokenizer of the .gguf file at `path` into the empty `folder`.

    Raises:
        RecipeError: no GGUF file, one that transformers cannot read, or the gguf package is absent.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise RecipeError(f"{path}: not a GGUF file (its first four bytes are not 'GGUF')")
    require("gguf", "gguf", f"reading {path.name}")
    say(f"converting {path.name} (once; the result is kept in the cache)")
    import torch
    import transformers

    options: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # newer versions would leave the weights packed where a kernel is installed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **options)
    except Exception as error:
        # The reader raises whatever it stumbles over; for the user it is one fact.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"{path}: transformers {transformers.__version__} cannot read this file: {reason}") from error

    for line in correct_special_tokens(tokenizer):
        say(f"{path.name}: {line}")
    _set_token_ids(model, tokenizer)
    # transformers refuses to save what it read from a GGUF while these are there, although the weights are plain now.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if sum(p.numel() for p in model.parameters()) * 4 > FLOAT32_LIMIT_BYTES:
        model = model.to(torch.bfloat16)
    model.config.name_or_path = path.stem
    tell_deepspeed()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for line in _set_pre_tokenizer(path, folder / "tokenizer.json"):
        say(f"{path.name}: {line}")


def correct_special_tokens(tokenizer: Any) -> list[str]:
    """Make eos the token that ends a reply in the chat template, and set pad; the lines say what was changed."""
    changes = []
    end = end_of_reply(tokenizer)
    if end and end != tokenizer.eos_token:
        changes.append(f"eos was {tokenizer.eos_token!r}, but the chat template ends replies with {end!r}; corrected")
        tokenizer.eos_token = end
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
        changes.append(f"no pad token; padding with {tokenizer.eos_token!r}")
    return changes


def end_of_reply(tokenizer: Any) -> str | None:
    """The control token that follows a reply in the tokenizer's own chat template, or None."""
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": SENTINEL}]
    after = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(SENTINEL)[2].lstrip()
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    starts = [token for token in special if after.startswith(token)]
    return max(starts, key=len) if starts else None


def _set_token_ids(model: Any, tokenizer: Any) -> None:
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id


def _set_pre_tokenizer(path: Path, tokenizer_json: Path) -> list[str]:
    """Cut words as the file says, when it is byte-level BPE; a line when its way is not known here."""
    reader = require("gguf", "gguf", "reading a .gguf file").GGUFReader(path)
    field = reader.get_field("tokenizer.ggml.pre")
    state = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    if field is None or (state.get("pre_tokenizer") or {}).get("type") != "ByteLevel":
        return []  # sentencepiece, or transformers knew the model's own way
    name = str(field.contents())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": name not in SPLITS}
    if name in SPLITS:
        first = {"type": "Split", "pattern": {"Regex": SPLITS[name]}, "behavior": "Isolated", "invert": False}
    elif name in SINGLE_DIGITS:
        first = {"type": "Digits", "individual_digits": True}
    elif name in GPT2:
        return []
    else:
        return [f"cuts words the way {name!r}, which is not known here; text may get other ids than in its training"]
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [first, byte_level]}
    tokenizer_json.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
    return []
