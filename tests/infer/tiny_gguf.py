"""The tiny model as a .gguf file, so that llama.cpp can be compared with transformers on the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(model_dir: Path, path: Path) -> Path:
    """Write a Llama folder as float32 GGUF with its byte-level BPE."""
    config = json.loads((model_dir / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    _add_tokenizer(writer, model_dir, config["vocab_size"])
    tensors = load_file(model_dir / "model.safetensors")
    for name, tensor in tensors.items():
        tensor = tensor.astype(np.float32)
        parts = name.removeprefix("model.").removesuffix(".weight")
        if parts.startswith("layers."):
            _, number, part = parts.split(".", 2)
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                tensor = _interleave(tensor, heads if part.endswith("q_proj") else kv_heads)
            parts = f"blk.{number}.{NAMES[part]}"
        else:
            parts = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[parts]
        writer.add_tensor(f"{parts}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs stand side by side in llama.cpp, in two halves in transformers."""
    shape = weight.shape
    return np.ascontiguousarray(
        weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    )


def _add_tokenizer(writer: gguf.GGUFWriter, model_dir: Path, vocab_size: int) -> None:
    state = json.loads((model_dir / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {**state["model"]["vocab"], **{token["content"]: token["id"] for token in state["added_tokens"]}}
    control = {token["id"] for token in state["added_tokens"]}
    names = {id: name for name, id in ids.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([names.get(id, f"[PAD{id}]") for id in range(vocab_size)])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if id in control else gguf.TokenType.NORMAL for id in range(vocab_size)]
    )
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
    )
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_bos_token_id(ids["<|im_start|>"])
