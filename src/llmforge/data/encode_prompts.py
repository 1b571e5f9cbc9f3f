"""Rows whose reply is still to be drawn (stages ppo and grpo): the prompt alone, up to where the model goes on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmforge.data.encode import Gathered, Outcome, RowEncoder, Sink
from llmforge.data.encode_block import Block, FlatRows
from llmforge.data.example import IGNORE, Example
from llmforge.data.tokenizer import Tokenizer
from llmforge.errors import RecipeError


class PromptBlock(Block):
    """Prompts that are encoded already."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[list[int]] = []

    def encode(self, tokenizer: Tokenizer) -> FlatRows:
        flat = np.array([id for prompt in self.prompts for id in prompt], np.int32)
        lengths = np.array([len(prompt) for prompt in self.prompts], np.int64)
        return FlatRows(flat, np.full(len(flat), IGNORE, np.int32), lengths)


class PromptEncoder(RowEncoder):
    """Turns blocks of examples into prompts. A prompt is never cut, since it would then ask for something else."""

    def gather(self, examples: Sequence[Example], first: int) -> Gathered:
        block = PromptBlock()
        gathered = Gathered(block, [], [], [])
        limit = self.options.cutoff_len
        for number, example in enumerate(examples, first):
            messages = example.messages
            if messages[-1].role == "assistant":
                messages = messages[:-1]
            try:
                encoded = self.cutter.template.encode(
                    self.tokenizer, messages, example.tools, add_generation_prompt=True
                )
            except RecipeError as error:
                gathered.refused.append((number, str(error)))
                continue
            if len(encoded.input_ids) > limit:
                if self.options.truncation == "raise":
                    raise RecipeError(
                        f"{example.source}: {_too_long(len(encoded.input_ids), limit)} (truncation: raise)"
                    )
                gathered.refused.append((number, _too_long(len(encoded.input_ids), limit)))
                continue
            block.prompts.append(encoded.input_ids)
            gathered.numbers.append(number)
        return gathered

    def finish(self, gathered: Gathered, rows: FlatRows, outcome: Outcome, sink: Sink) -> None:
        outcome.rejected += gathered.refused
        if len(rows.lengths):
            sink.add(rows, np.array(gathered.numbers, np.int64))


def _too_long(length: int, limit: int) -> str:
    return f"the prompt has {length} tokens, cutoff_len is {limit}"
