"""Flags of the commands that take no recipe: argparse, with mistakes in one line like all others."""

from __future__ import annotations

import argparse
from typing import NoReturn

from llmforge.errors import RecipeError


class Arguments(argparse.ArgumentParser):
    """An ArgumentParser that raises RecipeError (exit 2) instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"{self.prog.removeprefix('forge-cli ')}: {message} (see {self.prog} --help)")
