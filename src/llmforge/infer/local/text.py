"""From token ids to text while they come: never half a character, never a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmforge.data.tokenizer import Tokenizer

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that do not (yet) make a character
MAX_UNFINISHED = 3  # bytes of a character that still lacks one; some decoders write UNFINISHED once for each of them


class TextStream:
    """Decodes one reply token by token.

    The text of a token depends on its neighbours (bytes of one character, leading spaces), so each token is decoded
    together with the ones before it and the difference is given out.

    Args:
        context: ids of a text that the reply continues (an assistant prefix); a reply of its own has none.
        skip_special: leave control tokens out of the text.
    """

    def __init__(self, tokenizer: Tokenizer, *, context: Sequence[int] = (), skip_special: bool = True):
        self.tokenizer, self.skip_special = tokenizer, skip_special
        self.ids: list[int] = [id for id in context if not self._is_skipped(id)]
        self.start = 0  # where the decoded window begins
        self.given = len(self.ids)  # ids before this are out already

    def _is_skipped(self, id: int) -> bool:
        if not self.skip_special:
            return False
        return not self.tokenizer.decode([id], skip_special=True) and bool(self.tokenizer.decode([id]))

    def push(self, id: int) -> str:
        """Add a token; return the text that is complete now, which may be empty."""
        if self._is_skipped(id):
            return ""
        self.ids.append(id)
        before, whole = self._window()
        if 1 <= len(whole) - len(whole.rstrip(UNFINISHED)) <= MAX_UNFINISHED:
            return ""
        self.start, self.given = self.given, len(self.ids)
        return whole[len(before) :]

    def flush(self) -> str:
        """The rest of the text; a character whose bytes did not all come is left out."""
        before, whole = self._window()
        self.start = self.given = len(self.ids)
        return whole[len(before) :].rstrip(UNFINISHED)

    def _window(self) -> tuple[str, str]:
        decode = self.tokenizer.decode
        return decode(self.ids[self.start : self.given]), decode(self.ids[self.start :])


class StopStrings:
    """Holds text back while a stop string may still begin in it; cuts the text where one is complete."""

    def __init__(self, stops: Sequence[str]):
        self.stops = tuple(stops)
        self.held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Add text; return what can be given out. Once `found`, nothing more comes."""
        if self.found:
            return ""
        self.held += text
        places = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if places:
            self.found = True
            return self._take(min(places))
        return self._take(len(self.held) - self._possible_start())

    def flush(self) -> str:
        """The held text, when no more comes."""
        return "" if self.found else self._take(len(self.held))

    def _possible_start(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self.stops), default=0)
        for length in range(min(longest - 1, len(self.held)), 0, -1):
            if any(stop.startswith(self.held[-length:]) for stop in self.stops):
                return length
        return 0

    def _take(self, length: int) -> str:
        text, self.held = self.held[:length], self.held[length:]
        return text


class ReplyText:
    """The text of one reply: decoded, without the space that opens it in some templates, cut at stop strings.

    Args:
        lead: what the template puts before every reply ("ASSISTANT: Yes" has a space there); left out once.
    """

    def __init__(self, stream: TextStream, stops: StopStrings, lead: str = ""):
        self.stream, self.stops = stream, stops
        self.lead = lead if lead.isspace() else ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.stops.found

    def push(self, id: int) -> str:
        """Add a token; return the text that can be given out."""
        return self.stops.push(self._without_lead(self.stream.push(id)))

    def flush(self) -> str:
        """The rest."""
        return self.stops.push(self._without_lead(self.stream.flush())) + self.stops.flush()

    def _without_lead(self, text: str) -> str:
        if text and self.lead:
            text, self.lead = text.removeprefix(self.lead), ""
        return text
