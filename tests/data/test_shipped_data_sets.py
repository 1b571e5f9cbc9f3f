"""Every entry of data/dataset_info.json reads, at the stage it is made for."""

from pathlib import Path

import pytest

from llmforge.data.inspect import natural_stage
from llmforge.data.read import read_examples
from llmforge.data.registry import load_registry

ENTRIES = load_registry(Path(__file__).parents[2] / "data")


@pytest.mark.parametrize("name", ENTRIES)
def test_every_row_is_read_without_a_remark(name):
    entry = ENTRIES[name]
    examples, report = read_examples(entry, stage=natural_stage(entry))
    assert report.rows_in == report.rows_out == len(examples) > 0
    assert (report.rejected, report.notes) == ([], [])
