"""Pairs, scored replies and verdicts as groups of encoded rows (data/groups.py): one prompt, several replies.

Only the last reply of a member is learned. What is left out is said with its reason: a prompt that fills cutoff_len,
replies that are the same once they are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from llmforge.data.encode import EncodeOptions, Gathered, Outcome, RowEncoder, Sink
from llmforge.data.encode_block import Block, FlatRows
from llmforge.data.encode_prompts import PromptEncoder
from llmforge.data.example import IGNORE, Encoded, EncodedSet, Example, Message
from llmforge.data.formats.row import PROMPT_STAGES
from llmforge.data.groups import DESIRED, UNDESIRED, UNRELATED, fill_up, join_group
from llmforge.data.templates.template import LabelPolicy, Template
from llmforge.data.tokenizer import Tokenizer
from llmforge.errors import RecipeError

GROUP_STAGES = ("rm", "dpo", "kto")
LAST_REPLY = LabelPolicy(mask_history=True)


def row_encoder(template: Template, tokenizer: Tokenizer, options: EncodeOptions) -> RowEncoder:
    """The encoder of the options' stage."""
    kind = GroupEncoder if options.stage in GROUP_STAGES else RowEncoder
    return (PromptEncoder if options.stage in PROMPT_STAGES else kind)(template, tokenizer, options)


def members_of(example: Example) -> list[tuple[tuple[Message, ...], int]]:
    """The conversations of a group that an example alone gives, with their marks.

    Scores become ranks from 0, so that equal scores are equal marks.
    """
    if example.label is not None:
        return [(example.messages, DESIRED if example.label else UNDESIRED)]
    assert example.chosen is not None
    assert example.rejected is not None
    replies = example.replies or ((example.chosen, 1.0), (example.rejected, 0.0))
    ranks = {score: rank for rank, score in enumerate(sorted({score for _, score in replies}))}
    return [((*example.messages, reply), ranks[score]) for reply, score in replies]


class GroupEncoder(RowEncoder):
    """Turns blocks of examples into groups.

    At stage kto a member more is the prompt with the reply of the next example of the block, for the KL that the
    verdicts are measured against. LLaMA-Factory takes the replies of a block in reverse order.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, options: EncodeOptions):
        super().__init__(template, tokenizer, replace(options, policy=LAST_REPLY))
        pad_id = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
        self.pad_id = 0 if pad_id is None else pad_id
        self.marks: dict[int, list[int]] = {}  # example number -> marks of its members

    def gather(self, examples: Sequence[Example], first: int) -> Gathered:
        gathered = Gathered(Block(), [], [], [])
        for number, example in enumerate(examples, first):
            members = members_of(example)
            if self.options.stage == "kto":
                other = examples[(number - first + 1) % len(examples)]
                members.append(((*example.messages[:-1], other.messages[-1]), UNRELATED))
            try:
                cut = [self.cutter.cut(_unflagged(messages), example.tools) for messages, _ in members]
            except RecipeError as error:
                gathered.refused.append((number, str(error)))
                continue
            self.marks[number] = [mark for _, mark in members]
            for row in cut:
                gathered.block.add(*row)
                gathered.numbers.append(number)
                if self.options.truncation == "raise":
                    gathered.sources.append(str(example.source))
        return gathered

    def finish(self, gathered: Gathered, rows: FlatRows, outcome: Outcome, sink: Sink) -> None:
        """Cut replies that are too long, and hand whole groups on."""
        ends = np.cumsum(rows.lengths)
        kept: list[Encoded] = []
        owners: list[int] = []
        rejected = list(gathered.refused)
        for number, places in groupby(range(len(gathered.numbers)), key=gathered.numbers.__getitem__):
            whole = []
            for i in places:
                ids, labels = (flat[ends[i] - rows.lengths[i] : ends[i]].tolist() for flat in rows[:2])
                whole.append((i, Encoded(ids, [IGNORE, *labels[1:]])))
            marks = self.marks.pop(number)
            members = [self.shortened(row, gathered, i) for i, row in whole]
            if reason := self.unusable(members, marks):
                rejected.append((number, reason))
                continue
            found = [member for member in members if member is not None]
            lengths = [len(row.input_ids) for _, row in whole]
            if max(lengths) > self.options.cutoff_len:
                cut = max(len(member.input_ids) for member in found)
                outcome.fixed.append((number, f"{max(lengths)} tokens cut to {cut} ({self.options.truncation})"))
            kept.append(join_group(fill_up(found, self.pad_id) if self.options.fill else found, marks))
            owners.append(number)
        outcome.rejected += sorted(rejected)
        if kept:
            made = EncodedSet.of(kept)
            sink.add(FlatRows(made.input_ids, made.labels, made.lengths), np.array(owners, np.int64))

    def shortened(self, row: Encoded, gathered: Gathered, i: int) -> Encoded | None:
        """The row within cutoff_len; None when nothing to learn stays of it."""
        pieces = [row] if len(row.input_ids) <= self.options.cutoff_len else self.cut_long(row, gathered, i)
        return next((piece for piece in pieces if any(label != IGNORE for label in piece.labels[1:])), None)

    def unusable(self, members: Sequence[Encoded | None], marks: Sequence[int]) -> str | None:
        """Why a group teaches nothing, or None."""
        limit, how = self.options.cutoff_len, self.options.truncation
        if None in members:
            return f"longer than cutoff_len {limit} (truncation: {how}): no room for the reply after the prompt"
        if self.options.stage == "kto":
            return None
        ranks: dict[tuple[int, ...], int] = {}
        for member, mark in zip(members, marks, strict=True):
            assert member is not None
            if ranks.setdefault(tuple(member.input_ids), mark) != mark:
                return f"two replies of different rank are the same within cutoff_len {limit}"
        return None


def _unflagged(messages: Sequence[Message]) -> list[Message]:
    """Messages without flags of their own on what to learn: here it is the last reply, and nothing else."""
    return [message if message.train is None else replace(message, train=None) for message in messages]
