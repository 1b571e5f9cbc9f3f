"""A recipe that says nothing but its data."""

from __future__ import annotations

import pytest

from llmforge.config.schema import (
    DataConfig,
    EvalConfig,
    ExportConfig,
    FinetuneConfig,
    GenerateConfig,
    LaunchConfig,
    ModelConfig,
    Recipe,
    ServeConfig,
    TrainConfig,
)


@pytest.fixture
def data_recipe():
    def make(folder, stage="sft", seed=42, **data):
        groups = (GenerateConfig(), EvalConfig(), ServeConfig(), ExportConfig(), LaunchConfig())
        data = DataConfig(**{"dataset_dir": str(folder), **data})
        return Recipe(ModelConfig(), data, FinetuneConfig(stage=stage), TrainConfig(seed=seed), *groups)

    return make
