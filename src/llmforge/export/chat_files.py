"""Tokenizer, chat template and stop tokens beside exported weights, so that other servers read and stop as ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from llmforge.data.templates.template import Template
from llmforge.data.tokenizer import Tokenizer
from llmforge.model.vocabulary import TOKENIZER_FILES

GENERATION_CONFIG = "generation_config.json"


def write_chat_files(target: Path, base: Path, tokenizer: Tokenizer, template: Template) -> None:
    """Write tokenizer files, chat_template.jinja, and generation_config.json with all stop ids into `target`."""
    for name in TOKENIZER_FILES:
        if (tokenizer.folder / name).is_file() and name != GENERATION_CONFIG:
            shutil.copyfile(tokenizer.folder / name, target / name)
    if not (target / "tokenizer.json").is_file():
        from llmforge.data.tokenizer_conversion import convert

        shutil.copyfile(convert(tokenizer.folder), target / "tokenizer.json")
    chat_template = template.jinja(tokenizer)
    (target / "chat_template.jinja").write_text(chat_template, encoding="utf-8")

    settings = _read(target / "tokenizer_config.json")
    settings.pop("auto_map", None)  # points at remote code, which the export does without
    # Servers older than chat_template.jinja read the template here.
    settings["chat_template"] = chat_template
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write(target / "tokenizer_config.json", settings)

    generation = _read(base / GENERATION_CONFIG)
    generation["eos_token_id"] = template.stop_ids(tokenizer)
    if tokenizer.bos_id is not None:
        generation["bos_token_id"] = tokenizer.bos_id
    if tokenizer.pad_id is not None:
        generation["pad_token_id"] = tokenizer.pad_id
    _write(target / GENERATION_CONFIG, generation)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
