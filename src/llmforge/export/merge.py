"""Merge a run's adapters into its base and write one folder that any server can load.

The base is read in its own precision; each adapted layer is merged in fp32 and kept in the precision of the export, so
memory holds one model and one layer in fp32. The folder appears under its name only when it has been verified.
"""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError

from llmforge.config.schema import Recipe
from llmforge.errors import RecipeError, RunError
from llmforge.export import verify
from llmforge.export.chat_files import write_chat_files
from llmforge.model.adapter_files import check_adapter
from llmforge.model.adapters import attach_adapters, refuse_unmergeable
from llmforge.model.device import DTYPES, pick_device, tell_deepspeed
from llmforge.model.hub import adapter_folder
from llmforge.model.loading import load_base, load_text
from llmforge.model.pissa import changes_base
from llmforge.model.sources import resolve_model, say
from llmforge.model.value_head import FILE as HEAD_FILE
from llmforge.model.value_head import has_value_head
from llmforge.model.vocabulary import grow_embeddings
from llmforge.model.weights import check_weights, fingerprint
from llmforge.runs import MANIFEST, atomic_dir, atomic_write, read_manifest, sha256_file
from llmforge.train.manifest import versions

SAFETENSORS_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SHORT = {dtype: name for name, dtype in DTYPES.items()}


def export(recipe: Recipe) -> Path:
    """Write the recipe's model with all its adapters merged, and return the folder.

    A run that trained the whole model is written as it is, with tokenizer and chat template.

    Raises:
        RecipeError: the folder holds something else, a quantised base, or an adapter that cannot be merged.
        RunError: the written model does not do what base and adapter do; nothing is left behind.
    """
    target = export_dir(recipe)
    folder = resolve_model(recipe.model)
    adapters = [
        check_adapter(adapter_folder(recipe.model, name, say), folder) for name in recipe.model.adapter_name_or_path
    ]
    own_dtype = stored_dtype(folder)
    dtype = own_dtype if recipe.export.export_dtype == "auto" else DTYPES[recipe.export.export_dtype]
    for path in adapters:
        refuse_unmergeable(path)
    tokenizer, template = load_text(recipe, folder)
    prompts = verify.prompts(recipe, tokenizer, template)
    device = pick_device(recipe.model) if recipe.export.export_device == "auto" else torch.device("cpu")

    say(f"reading {folder}" + "".join(f" and {path}" for path in adapters))
    # What lies between two merges, or is left of a base that PiSSA takes a part from, must not be rounded.
    exact = len(adapters) > 1 or any(changes_base(peft.PeftConfig.from_pretrained(str(path))) for path in adapters)
    model = load_base(recipe, folder, torch.float32 if exact else own_dtype, device)
    if recipe.model.resize_vocab:
        grow_embeddings(model, len(tokenizer))
    model = attach_adapters(model, adapters).eval()
    say("letting base and adapter answer, to compare with")
    expected = verify.rehearse(model, prompts)
    model = merge_layers(model, dtype).to(dtype)
    untie_what_differs(model)
    with atomic_dir(target) as temporary:
        say(f"writing {target} in {SHORT[dtype]}")
        model.config.name_or_path = recipe.model.model_name_or_path
        model.generation_config = type(model.generation_config)()
        tell_deepspeed()
        try:
            model.save_pretrained(temporary, max_shard_size=f"{recipe.export.export_size}GB")
        except (OSError, SafetensorError) as error:
            raise RunError(f"export: {target} could not be written: {error}; nothing was left there") from None
        del model
        gc.collect()
        write_chat_files(temporary, folder, tokenizer, template)
        if head := next((path for path in (*adapters[-1:], folder) if has_value_head(path)), None):
            shutil.copyfile(head / HEAD_FILE, temporary / HEAD_FILE)  # a reward model stays one
        found = verify.verify(temporary, dtype, device, prompts, expected)
        manifest = {
            "schema": 1,
            "kind": "export",
            "created_at": time.time(),
            "versions": versions(),
            "base_model": recipe.model.model_name_or_path,
            "base_folder": str(folder.resolve()),
            "base_fingerprint": fingerprint(folder),
            "adapters": [{"path": str(path.resolve()), "files": _hashes(path, "adapter_*")} for path in adapters],
            "dtype": SHORT[dtype],
            "template": template.name,
            "template_hash": template.hash(),
            "default_system": recipe.data.default_system,
            "enable_thinking": recipe.data.enable_thinking,
            "tool_format": recipe.data.tool_format,
            "verification": found,
            "files": _hashes(temporary, "*"),
        }
        atomic_write(temporary / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False))
    return target


def export_dir(recipe: Recipe) -> Path:
    """Where to write: `export_dir`, else the folder `export` in the run or adapter. A former export is replaced.

    Raises:
        RecipeError: no place is named, it cannot be written, or the folder holds something that is no export.
    """
    adapters = recipe.model.adapter_name_or_path
    run = recipe.run_dir or (adapters[-1] if adapters and Path(adapters[-1]).is_dir() else None)
    if not recipe.export.export_dir and not run:
        raise RecipeError("export_dir: missing; name the folder to write")
    target = Path(recipe.export.export_dir or Path(str(run), "export")).expanduser()
    if target.is_file():
        raise RecipeError(f"export_dir: {target} is a file")
    if target.is_dir() and any(target.iterdir()):
        former = read_manifest(target) or {}
        if former.get("kind") != "export":
            raise RecipeError(f"export_dir: {target} holds files that are no export; name another folder")
        say(f"{target} is an earlier export and will be replaced")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise RecipeError(f"export_dir: {target} cannot be made: {error.strerror}") from None
    return target


def stored_dtype(folder: Path) -> torch.dtype:
    """The precision most of the base's weights are stored in.

    Raises:
        RecipeError: a quantised base.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "")
        raise RecipeError(
            f"model_name_or_path: {folder.name} is quantised ({method}); merging needs the same model in full precision"
        )
    counts: Counter[str] = Counter()
    for info in check_weights(folder).values():
        counts[info.dtype] += info.end - info.start
    if not counts:  # a pickled checkpoint
        return DTYPES.get(config.get("torch_dtype") or config.get("dtype") or "float32", torch.float32)
    return SAFETENSORS_DTYPES.get(counts.most_common(1)[0][0], torch.float32)


@torch.no_grad()
def merge_layers(model: Any, dtype: torch.dtype) -> Any:
    """The plain model with its adapter merged, layer by layer in fp32; merged layers come out in `dtype`."""
    if not isinstance(model, peft.PeftModel):
        return model
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        base: Any = layer.get_base_layer()
        for parameter in base.parameters():
            parameter.data = parameter.data.float()
        try:
            layer.merge(safe_merge=True)
        except NotImplementedError:
            raise RecipeError(
                f"adapter_name_or_path: peft cannot merge {type(layer).__name__} layers; serve the adapter unmerged"
            ) from None
        for parameter in base.parameters():
            parameter.data = parameter.data.to(dtype)
    plain: Any = model.base_model
    return plain.unload()


def untie_what_differs(model: Any) -> None:
    """See that the config says the truth about input and output embeddings sharing their weights."""
    config = model.config
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or not config.get_text_config().tie_word_embeddings or head.weight is embedding.weight:
        return
    if torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
        return
    say("the adapter changed only one of input and output embeddings; they are no longer tied")
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    model._tied_weights_keys = None


def _hashes(folder: Path, pattern: str) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.glob(pattern)) if path.is_file()}
