"""What a training process imports before its first step."""

from __future__ import annotations

import subprocess
import sys

import pytest

ASK = """
import sys
from llmforge.model.imports import without_unused
with without_unused():
    import llmforge.train.run
import transformers.trainer
from transformers.utils import is_scipy_available
print([name for name in ("datasets", "pandas", "scipy") if name in sys.modules], is_scipy_available())
print(transformers.trainer.is_datasets_available(), hasattr(transformers.trainer, "datasets"))
"""


def test_packages_that_no_run_uses_are_not_read_and_the_trainer_knows():
    pytest.importorskip("scipy")
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[] True", "False False"]
