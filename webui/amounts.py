"""Times, sizes and numbers in the reader's language."""

from __future__ import annotations

import time

from llmforge.webui.words import Words

# Chinese counts in ten thousands.
LARGE = {
    "en": ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")),
    "zh": ((1e8, " 亿"), (1e4, " 万")),
}


def duration(words: Words, seconds: float) -> str:
    """ "42 s", "7 min", "2 h 5 min"."""
    if seconds < 100:
        return words("common.seconds", n=round(seconds))
    if seconds < 6000:
        return words("common.minutes", n=round(seconds / 60))
    return words("common.hours", h=int(seconds // 3600), m=int(seconds % 3600 // 60))


def ago(words: Words, when: float) -> str:
    """How long ago a moment was, in words; a date when it was long ago."""
    if not when:
        return words("common.never")
    gone = time.time() - when
    if gone < 60:
        return words("common.ago_now")
    if gone < 3600:
        return words("common.ago_minutes", n=int(gone // 60))
    if gone < 86400:
        return words("common.ago_hours", n=int(gone // 3600))
    if gone < 7 * 86400:
        return words("common.days", n=int(gone // 86400))
    return time.strftime("%Y-%m-%d", time.localtime(when))


def size(num_bytes: float) -> str:
    """ "1.3 GB"; powers of 1000, as disks and downloads are told."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 100 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def number(value: float | None) -> str:
    """Four digits; "-" where there is none."""
    return "-" if value is None else f"{value:.4g}"


def many(words: Words, count: int) -> str:
    """ "135 million", "1.35 亿": three digits."""
    unit, name = next((each for each in LARGE[words.language] if count >= each[0]), (1, ""))
    return f"{float(f'{count / unit:.3g}'):g}{name}"
