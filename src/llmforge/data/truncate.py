"""What happens to a row longer than cutoff_len. No strategy loses the end of a reply in silence."""

from __future__ import annotations

from collections.abc import Callable, Collection

from llmforge.data.example import IGNORE, Encoded

TAIL = 4  # tokens at the end of a reply among which its end token is looked for; a line break may follow it


def learned_spans(labels: list[int]) -> list[tuple[int, int]]:
    """[start, end) of every run of learned tokens."""
    spans: list[tuple[int, int]] = []
    start = None
    for i, label in enumerate(labels):
        if label == IGNORE:
            if start is not None:
                spans.append((start, i))
                start = None
        elif start is None:
            start = i
    return spans if start is None else [*spans, (start, len(labels))]


def keep_start(row: Encoded, limit: int, stop_ids: Collection[int]) -> list[Encoded]:
    """`right`: the beginning is kept. A reply that does not fit is cut before its end token, which stays.

    A cut between replies goes back to the end of the last whole one. Nothing remains of a row whose prompt alone fills
    the limit.
    """
    ids, labels = row
    end = 0  # of the last whole reply
    for start, stop in learned_spans(labels):
        if stop <= limit:
            end = stop
            continue
        tail = next((i for i in range(max(start, stop - TAIL), stop) if labels[i] in stop_ids), stop - 1)
        room = limit - (stop - tail)
        if room > start:
            return [Encoded(ids[:room] + ids[tail:stop], labels[:room] + labels[tail:stop])]
        break
    return [Encoded(ids[:end], labels[:end])] if end else []


def keep_end(row: Encoded, limit: int, bos_id: int | None) -> list[Encoded]:
    """`left`: the end is kept, and the bos token where the row opened with it.

    A bos that comes again is the mark of a turn (SmolLM2's <|im_start|>) and opens nothing.
    """
    ids, labels = row
    if ids[0] == bos_id and ids.count(bos_id) == 1 and limit > 1:
        return [Encoded(ids[:1] + ids[1 - limit :], [IGNORE, *labels[1 - limit :]])]
    return [Encoded(ids[-limit:], [IGNORE, *labels[len(labels) - limit :][1:]])]


def cut_up(row: Encoded, limit: int) -> list[Encoded]:
    """`split`: pieces of at most `limit` tokens, cut after a whole reply where there is one.

    Inside a reply the next piece begins with the last token of the one before, so that every learned token is a target
    once. Pieces that hold nothing to learn are left out.
    """
    ids, labels = row
    ends = [end for _, end in learned_spans(labels)]
    pieces = []
    start = 0
    while start < len(ids):
        stop = min(start + limit, len(ids))
        if stop < len(ids):
            stop = max((end for end in ends if start < end <= stop), default=stop)
        pieces.append(Encoded(ids[start:stop], [IGNORE, *labels[start + 1 : stop]]))
        inside = stop < len(ids) and labels[stop] != IGNORE and limit > 1
        start = stop - 1 if inside else stop
    return [piece for piece in pieces if any(label != IGNORE for label in piece.labels)]


def strategy(
    name: str, limit: int, stop_ids: Collection[int], bos_id: int | None
) -> Callable[[Encoded], list[Encoded]]:
    """The function that turns a too long row into the rows that stay of it; under drop and raise none stays."""
    return {
        "right": lambda row: keep_start(row, limit, stop_ids),
        "start": lambda row: [Encoded(row.input_ids[:limit], row.labels[:limit])],  # of a text, which has no end token
        "left": lambda row: keep_end(row, limit, bos_id),
        "split": lambda row: cut_up(row, limit),
        "drop": lambda row: [],
        "raise": lambda row: [],
    }[name]
