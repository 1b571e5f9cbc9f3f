"""`python -m llmforge.webui.unloading FOLDER MINUTES PORT WORD...`: run `forge-cli api`, end it when nobody asks it.

A model that the board loaded is a child of this process, so that its memory is given back also when no page and no
board is open any more. What counts as asked are the server's own numbers: requests under way, and requests answered.
"""

from __future__ import annotations

import http.client
import sys
import time
import urllib.request
from pathlib import Path

from llmforge.webui.noted import run

LOOKED_AT = ('path="/metrics"', 'path="/healthz"', 'path="/readyz"')  # whoever looks after a server asks it nothing
EVERY_S = 10.0


class Idleness:
    """How long a server on this machine has had nothing to do; one that does not say so yet is loading."""

    def __init__(self, port: int, minutes: float):
        self.url, self.most_s = f"http://127.0.0.1:{port}/metrics", minutes * 60
        self.seen: tuple[float, float] | None = None
        self.since = time.monotonic()

    def is_over(self) -> bool:
        """Whether it has been idle for as long as it may."""
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(self.url, timeout=5) as answer:
                now = work_of(answer.read().decode())
        except (OSError, http.client.HTTPException):
            now = None
        if now is None or now != self.seen or now[0] > 0:
            self.seen, self.since = now, time.monotonic()
        return time.monotonic() - self.since >= self.most_s


def work_of(text: str) -> tuple[float, float]:
    """(requests under way, requests answered so far) out of a server's /metrics."""
    under_way = answered = 0.0
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name in ("forge_running", "forge_waiting"):
            under_way += float(value)
        elif name.startswith("forge_requests_total{") and not any(path in name for path in LOOKED_AT):
            answered += float(value)
    return under_way, answered


def main(words: list[str]) -> int:
    """Returns the exit code of `forge-cli api`."""
    folder, minutes, port = Path(words[0]), float(words[1]), int(words[2])
    if minutes <= 0:
        return run(folder, words[3:])
    return run(folder, words[3:], Idleness(port, minutes).is_over, min(EVERY_S, minutes * 15))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
