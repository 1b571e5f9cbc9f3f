"""What a check of a recipe found, in the order in which `recipe check` shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmforge.config.given import Problem
from llmforge.config.schema import Origin


@dataclass(kw_only=True)
class Checked:
    """One check; what has problems does not run. `files` are those that were read, for the problems' places."""

    files: Sequence[str]
    notes: list[str] = field(default_factory=list)
    fine: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)


def files_of(origins: Mapping[str, Origin]) -> list[str]:
    """The files that a recipe's values came from, each once."""
    return list(dict.fromkeys(origin.file for origin in origins.values() if origin.file))
