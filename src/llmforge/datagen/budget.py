"""Money and tokens: prices as data, a reservation before each request, the account after it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from llmforge.config.paths import bundled
from llmforge.errors import RecipeError, nearest

PRICES = "configs/prices.yaml"
WIDE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]")  # CJK: about a token each
CHARACTERS_PER_TOKEN = 4.0  # of other text
TOKENS_PER_MESSAGE = 4


@dataclass(frozen=True)
class Price:
    """USD per million tokens; `date` says when the table was true."""

    tokens_in: float
    tokens_out: float
    date: str = ""
    json_mode: bool = True

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """USD of so many tokens."""
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


FREE = Price(0.0, 0.0)


def price_table() -> dict[str, Price]:
    """Prices by model, out of configs/prices.yaml."""
    path = bundled(PRICES)
    assert path is not None, f"{PRICES} is shipped with Forge"
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {
        name: Price(entry["in"], entry["out"], str(table["date"]), entry["json_mode"])
        for name, entry in table["models"].items()
    }


def price_of(model: str, given: Mapping[str, Any]) -> Price | None:
    """The price in the recipe, or that of the table, or None where neither knows the model.

    Raises:
        RecipeError: a price that is no pair of numbers.
    """
    if not given:
        return price_table().get(model)
    numbers = [given.get(key) for key in ("in", "out")]
    if set(given) != {"in", "out"} or not all(isinstance(n, int | float) and n >= 0 for n in numbers):
        raise RecipeError(f"teacher.price: got {dict(given)}, expected {{in: USD, out: USD}} per million tokens")
    return Price(float(numbers[0]), float(numbers[1]), "recipe")  # type: ignore[arg-type]  # checked above


def known_price(model: str, given: Mapping[str, Any]) -> Price:
    """The price of a model whose money is counted.

    Raises:
        RecipeError: nobody knows it.
    """
    price = price_of(model, given)
    if price is None:
        known = price_table()
        raise RecipeError(
            f"teacher.budget_usd: no price of {model!r} is known.{nearest(model, known)} "
            f"Say teacher.price: {{in: USD, out: USD}} per million tokens, or limit with teacher.budget_tokens"
        )
    return price


def count_tokens(text: str) -> int:
    """About how many tokens a text has, without the server's tokenizer."""
    wide = len(WIDE.findall(text))
    return wide + round((len(text) - wide) / CHARACTERS_PER_TOKEN)


def count_prompt(messages: list[dict[str, str]]) -> int:
    """About how many tokens a conversation has."""
    return sum(count_tokens(message["content"]) + TOKENS_PER_MESSAGE for message in messages)


class BudgetReached(Exception):
    """Nothing is left for another request; the message says which limit."""


@dataclass(frozen=True)
class Spent:
    """Tokens and money of requests; `estimated` counts those whose usage the server did not say."""

    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0
    requests: int = 0
    estimated: int = 0

    def plus(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def tokens(self) -> int:
        return self.tokens_in + self.tokens_out


class Budget:
    """What is spent and promised; a request is promised its worst case before it leaves."""

    def __init__(self, usd: float | None, tokens: int | None, spent: Spent | None = None):
        self.usd, self.tokens, self.spent = usd, tokens, spent or Spent()
        self._promised: dict[int, Spent] = {}
        self._next = 0
        self._changed = asyncio.Condition()

    async def reserve(self, worst: Spent) -> int:
        """Promise a request its worst case; waits for requests under way that may turn out cheaper.

        Raises:
            BudgetReached: it would go beyond the budget although nothing is under way.
        """
        async with self._changed:
            while over := self._over(worst):
                if not self._promised:
                    raise BudgetReached(over)
                await self._changed.wait()
            self._next += 1
            self._promised[self._next] = worst
            return self._next

    async def settle(self, ticket: int, spent: Spent) -> None:
        """Replace a promise by what was spent."""
        async with self._changed:
            del self._promised[ticket]
            self.spent = self.spent.plus(spent)
            self._changed.notify_all()

    def _over(self, worst: Spent) -> str | None:
        total = self.spent.plus(worst)
        for promise in self._promised.values():
            total = total.plus(promise)
        if self.usd is not None and total.usd > self.usd + 1e-9:
            said = f"{self.spent.usd:.4f} USD are spent and the next request may cost {worst.usd:.4f}"
            return f"budget_usd {self.usd:g}: {said}"
        if self.tokens is not None and total.tokens > self.tokens:
            said = f"{self.spent.tokens} are spent and the next request may take {worst.tokens}"
            return f"budget_tokens {self.tokens}: {said}"
        return None
