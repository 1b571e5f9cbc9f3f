"""The names a local engine serves: one base, and adapters on it that come and go."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmforge.config.schema import ModelConfig, Recipe
from llmforge.errors import RecipeError
from llmforge.infer.local.core import LocalCore
from llmforge.infer.local.raw import longest_token, streamable_tools
from llmforge.infer.protocol import ModelCard, UnknownModel


class ServedModels:
    """Served names over one core; changes belong between two batches.

    Args:
        core: its `served` table is kept in step with the cards.
        cards: names the core has already, the one that chat takes first.
        config: where adapters of a hub are looked up; with `folder`, the base's own, adapters are checked against it.
    """

    def __init__(
        self,
        core: LocalCore,
        cards: Sequence[ModelCard] = (),
        config: ModelConfig | None = None,
        folder: Path | None = None,
    ):
        self.core, self.config, self.folder = core, config or ModelConfig(), folder
        self.table: dict[str, str] = core.served if core.served is not None else {}
        core.served = self.table
        self._cards = {card.id: card for card in cards}
        self._inner_names = (f"served_{number}" for number in itertools.count())  # PEFT's own names allow no dots

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> ServedModels:
        """Load the recipe's model, with its own adapter and those of `adapters`.

        Raises:
            RecipeError: what cannot be loaded; two models of one name.
        """
        from llmforge.model.loading import load_model
        from llmforge.model.pissa import changes_base

        loaded = load_model(recipe, for_training=False)
        skip_special = recipe.generate.skip_special_tokens
        core = LocalCore(loaded.model, loaded.tokenizer, loaded.template, served={}, skip_special=skip_special)
        served = cls(core, (), recipe.model, loaded.folder)
        wanted = recipe.serve.served_model_name
        base = short_name(recipe.model.model_name_or_path or str(loaded.folder))
        own = recipe.model.adapter_name_or_path[-1:]
        if own:
            inner = str(loaded.model.active_adapter)
            served._add(wanted or short_name(own[0]), base, inner, own[0])
            if changes_base(loaded.model.peft_config[inner]):
                if recipe.serve.adapters:
                    raise RecipeError(
                        f"adapters: {own[0]} changes the base's weights, so no other adapter fits beside it"
                    )
                return served  # what lies under this adapter is not the base any more
        served._add(base if own else wanted or base, base, "", None)
        for name, path in recipe.serve.adapters.items():
            served.attach(name, str(path))
        return served

    @property
    def cards(self) -> list[ModelCard]:
        return list(self._cards.values())

    def attach(self, name: str, path: str) -> tuple[str, ModelCard]:
        """Serve one more adapter; its name inside the model, and its card.

        Raises:
            RecipeError: the name is taken, or the adapter does not fit the base.
        """
        from llmforge.model.adapter_files import check_adapter
        from llmforge.model.adapters import attach_adapter
        from llmforge.model.hub import adapter_folder
        from llmforge.model.pissa import changes_base
        from llmforge.model.sources import say

        if name in self._cards:
            raise RecipeError(f"adapters: a model called {name!r} is served already")
        folder = adapter_folder(self.config, path, say)
        if self.folder is not None:
            check_adapter(folder, self.folder)
        if changes_base(_peft_config(folder)):
            raise RecipeError(
                f"adapters: {path} changes the base's weights; serve it alone, or train with pissa_convert"
            )
        inner = next(self._inner_names)
        self.core.replace_model(attach_adapter(self.core.model, folder, inner))
        self._add(name, next((card.base for card in self.cards), name), inner, path)
        return inner, self._cards[name]

    def detach(self, name: str) -> str:
        """Serve an adapter no longer; returns its name inside the model.

        Raises:
            UnknownModel: no adapter of that name.
        """
        card = self._cards.get(name)
        if card is None or card.adapter is None:
            raise UnknownModel(name, [card.id for card in self.cards if card.adapter])
        inner = self.table.pop(name)
        del self._cards[name]
        self.core.model.delete_adapter(inner)
        return inner

    def _add(self, name: str, base: str, inner: str, path: str | None) -> None:
        if name in self._cards:
            raise RecipeError(f"two served models are called {name!r}; set served_model_name or rename one of adapters")
        self.table[name] = inner
        context = self.core.context_length or 0
        self._cards[name] = ModelCard(
            name,
            base,
            path,
            context,
            tool_format=streamable_tools(self.core.template),
            max_prompt_bytes=context * longest_token(self.core.tokenizer),
        )


def _peft_config(folder: Path) -> Any:
    import peft

    return peft.PeftConfig.from_pretrained(str(folder))


def short_name(path: str) -> str:
    """What a model or adapter is called unless the recipe says: the last part of its path or id, without .gguf."""
    return Path(path.rstrip("/")).name.removesuffix(".gguf") or path
