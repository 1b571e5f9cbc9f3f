"""transformers without the packages that it imports for what Forge leaves aside."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_unused() -> Iterator[None]:
    """While transformers' trainer and models are first imported, hide datasets (with pandas) and scipy from them.

    Its trainer would cut `datasets` to a model's columns and its object detection would match boxes by scipy: neither
    happens here, and both together take a tenth of the time until a run is ready.
    """
    checks: Any = importlib.import_module("transformers.utils.import_utils")
    seen = checks._is_package_available

    def unseen(name: str, *args: Any, **options: Any) -> tuple[bool, str | None]:
        return (False, "N/A") if name in ("datasets", "scipy") else seen(name, *args, **options)

    checks.is_scipy_available.cache_clear()
    checks.is_datasets_available.cache_clear()
    checks._is_package_available = unseen
    try:
        yield
        checks.is_datasets_available()  # the trainer asks again when it runs, and must hear the same
    finally:
        checks._is_package_available = seen
        checks.is_scipy_available.cache_clear()
