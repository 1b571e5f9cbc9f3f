"""manifest.json: where a run's result comes from, so that serving and export find base and template again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from llmforge import __version__
from llmforge.config.dump import spoken
from llmforge.config.schema import Recipe
from llmforge.data.example import RowReport
from llmforge.data.templates.template import Template
from llmforge.data.tokenizer import Tokenizer
from llmforge.model.weights import fingerprint
from llmforge.runs import MANIFEST, read_manifest, sha256_file

SCHEMA = 1
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "datasets", "deepspeed", "numpy")
SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def manifest(recipe: Recipe, folder: Path, tokenizer: Tokenizer, template: Template) -> dict[str, Any]:
    """What is known before the data is read."""
    return {
        "schema": SCHEMA,
        "kind": "run",
        "versions": versions(),
        "seed": recipe.train.seed,
        "git": git_commit(),
        "command": spoken(sys.argv),
        "stage": recipe.finetune.stage,
        "finetuning_type": recipe.finetune.finetuning_type,
        "base_model": recipe.model.model_name_or_path,
        "base_folder": str(folder.resolve()),
        "base_files": base_files(folder),
        "base_fingerprint": fingerprint(folder),
        "tokenizer_hash": tokenizer.vocab_hash,
        "template": template.name,
        "template_hash": template.hash(),
        "default_system": recipe.data.default_system,
        "enable_thinking": recipe.data.enable_thinking,
        "tool_format": recipe.data.tool_format,
        "cutoff_len": recipe.data.cutoff_len,
        "parents": [parent(path) for path in recipe.model.adapter_name_or_path],
    }


def data_part(reports: list[RowReport], hashes: dict[str, str]) -> dict[str, Any]:
    """What the data adds: sha256 of its files, and rows in, out and rejected by reason."""
    rows = [{"name": r.name, "rows_in": r.rows_in, "rows_ok": r.rows_out, "rejected": r.reasons()} for r in reports]
    made = data_made_by(hashes)
    return {"data_files": hashes, "rows": rows} | ({"data_made_by": made} if made else {})


def data_made_by(hashes: dict[str, str]) -> dict[str, Any]:
    """The manifests of data sets that `forge-cli data` made and whose files were trained on unchanged, by name.

    They lie beside the files as _NAME.manifest.json; one that names other hashes is of an earlier version, no proof.
    """
    found = {}
    for folder in sorted({Path(path).parent for path in hashes}):
        for path in sorted(folder.glob(f"_*.{MANIFEST}")):
            try:
                made = json.loads(path.read_text(encoding="utf-8"))
                digests = set(made["convert"]["files"].values())
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
            if digests & set(hashes.values()):
                found[path.name.removeprefix("_").removesuffix(f".{MANIFEST}")] = made
    return found


def versions() -> dict[str, str]:
    """Versions of Python, Forge and the packages that decide about numbers; absent ones are left out."""
    found = {"python": platform.python_version(), "llmforge": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the working directory, with "+changes" when files differ from it; None outside of a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def base_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of the base's files; of safetensors the sha256 of the header, which reads no weights."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name in SMALL_FILES or path.name.endswith(".index.json"):
            found[path.name] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
        elif path.suffix == ".safetensors":
            found[path.name] = {"size": path.stat().st_size, "header_sha256": header_hash(path)}
    return found


def header_hash(path: Path) -> str:
    """sha256 of a safetensors file's JSON header: names, types, shapes and places of all tensors."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return hashlib.sha256(file.read(size)).hexdigest()


def parent(path: str) -> dict[str, Any]:
    """An adapter this run goes on from, with the hash of its own manifest where it has one."""
    found = read_manifest(path)
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest() if found else None
    return {"path": str(Path(path).resolve()) if Path(path).exists() else path, MANIFEST: digest}
