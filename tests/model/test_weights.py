import json
import shutil

import pytest

from llmforge.errors import RecipeError
from llmforge.model.weights import check_weights, fingerprint, has_weights, read_header


@pytest.fixture
def copy(tiny_model_dir, tmp_path):
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


def test_a_header_names_every_tensor_with_its_shape(tiny_model_dir):
    tensors = read_header(tiny_model_dir / "model.safetensors")
    assert tensors["model.layers.0.self_attn.k_proj.weight"].shape == (16, 32)
    assert tensors["lm_head.weight"].dtype == "F32"


@pytest.mark.parametrize("keep", [0, 3, 8, 100, -1])
def test_a_file_cut_short_is_named(copy, keep):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RecipeError, match=r"model\.safetensors: (damaged|not a readable)"):
        check_weights(copy)


def test_bytes_that_are_no_header_are_named(copy):
    (copy / "model.safetensors").write_bytes((5).to_bytes(8, "little") + b"hello" + b"x" * 50)
    with pytest.raises(RecipeError, match="not a readable safetensors file"):
        check_weights(copy)


def test_a_missing_shard_is_named(copy):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert not has_weights(copy)
    with pytest.raises(RecipeError, match=r"model-1\.safetensors: weight file is missing"):
        check_weights(copy)


def test_a_damaged_index_is_named(copy):
    (copy / "model.safetensors.index.json").write_text("{")
    with pytest.raises(RecipeError, match="damaged index"):
        check_weights(copy)


def test_the_fingerprint_is_of_the_weights_not_of_the_place(tiny_model_dir, copy):
    assert fingerprint(copy) == fingerprint(tiny_model_dir)
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    where = read_header(path)["model.norm.weight"]
    data[(where.start + where.end) // 2] ^= 1
    path.write_bytes(data)
    assert fingerprint(copy) != fingerprint(tiny_model_dir)
