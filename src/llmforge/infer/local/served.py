"""The names a local engine serves: one base, adapters on it that come and go, and models that are only read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmforge.config.schema import ModelConfig, Recipe
from llmforge.errors import RecipeError
from llmforge.infer.local.adapter_updates import NotShareable, read_updates
from llmforge.infer.local.core import LocalCore
from llmforge.infer.local.embed import Embedder, Reader, load_encoder, score, usual_pooling
from llmforge.infer.local.encoder_files import is_encoder, own_pooling
from llmforge.infer.local.lean_layers import put_back, take_lean_forms
from llmforge.infer.local.live import PeftAdapters
from llmforge.infer.local.lora_batch import AdapterBatch
from llmforge.infer.local.packed import Packing, pack
from llmforge.infer.local.raw import longest_token, streamable_tools
from llmforge.infer.local.reading_core import ReadingCore
from llmforge.infer.local.readings import Reading
from llmforge.infer.protocol import Capabilities, ModelCard, TokenIds, UnknownModel

if TYPE_CHECKING:
    from torch import nn

    from llmforge.model.value_head import ValueHead

WRITES = frozenset({"generate", "embed"})
SCORES = frozenset({"score"})
EMBEDS = frozenset({"embed"})


class ServedModels:
    """Served names over one core; changes belong between two steps.

    Args:
        core: its `served` table is kept in step with the cards of models that write.
        cards: names the core has already, the one that chat takes first.
        config: where adapters of a hub are looked up; with `folder`, the base's own, adapters are checked against it.
        pooling: how the base's states become a vector; None is what its files say.
    """

    def __init__(
        self,
        core: LocalCore | ReadingCore,
        cards: Sequence[ModelCard] = (),
        config: ModelConfig | None = None,
        folder: Path | None = None,
        pooling: str | None = None,
    ):
        self.core, self.config, self.folder = core, config or ModelConfig(), folder
        self.table: dict[str, str] = core.served if core.served is not None else {}
        core.served = self.table
        self._cards = {card.id: card for card in cards}
        self._inner = dict(self.table)  # every name on the base, also of reward models
        self._heads: dict[str, ValueHead] = {}
        self._embedders: dict[str, Embedder] = {}
        self._pooling = pooling
        self._own: Embedder | None = None
        self._packing: Packing | None = None
        self._lean: list[nn.Module] = []
        self._inner_names = (f"served_{number}" for number in itertools.count())

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> ServedModels:
        """Load the recipe's model, with its own adapter and those of `adapters`, and its `embedders`.

        Requests for base and adapters run in the same passes. An adapter that no other one can stand beside is served
        alone, without the base.

        Raises:
            RecipeError: what cannot be loaded; two models of one name; adapters that do not fit beside each other.
        """
        from llmforge.model.adapter_files import check_adapter
        from llmforge.model.adapters import ADAPTER, attach_adapters, merge_adapters
        from llmforge.model.hub import adapter_folder
        from llmforge.model.loading import load_model
        from llmforge.model.sources import resolve_model, say

        given = [adapter_folder(recipe.model, path, say) for path in recipe.model.adapter_name_or_path]
        for name, path in recipe.serve.adapters.items():  # before the base is loaded, which takes a while
            with _told_of(f"adapters.{name}"):
                adapter_folder(recipe.model, str(path), say)
        if is_encoder(folder := resolve_model(recipe.model)):
            return cls._of_encoders(recipe, folder)
        loaded = load_model(replace(recipe, model=replace(recipe.model, adapter_name_or_path=[])), for_training=False)
        for path in given:
            check_adapter(path, loaded.folder)
        model = merge_adapters(loaded.model, [str(path) for path in given[:-1]]).eval()
        text = (loaded.tokenizer, loaded.template)
        skip_special, rows = recipe.generate.skip_special_tokens, recipe.serve.worker_rows
        core = LocalCore(
            model, *text, served={}, max_rows=rows, skip_special=skip_special, adapters=AdapterBatch(model)
        )
        served = cls(core, (), recipe.model, loaded.folder, recipe.serve.embed_pooling)
        served.pack()  # before adapters change the layers' forwards
        wanted = recipe.serve.served_model_name
        base = short_name(recipe.model.model_name_or_path or str(loaded.folder))
        own = recipe.model.adapter_name_or_path[-1] if given else None
        try:
            if own is not None:
                served.attach(wanted or short_name(own), own, base)
            served._add(base if given else wanted or base, base, "", None, loaded.folder)
        except NotShareable as error:
            if recipe.serve.adapters or own is None:
                raise RecipeError(f"{error}; no other adapter fits beside it") from None
            served.unpack()
            peft = attach_adapters(model, given[-1:]).eval()
            core = LocalCore(peft, *text, served={}, max_rows=rows, skip_special=skip_special)
            served = cls(core, (), recipe.model, loaded.folder, recipe.serve.embed_pooling)
            served._add(wanted or short_name(own), base, ADAPTER, own, given[-1])
        for name, path in recipe.serve.adapters.items():
            with _told_of(f"adapters.{name}"):
                served.attach(name, str(path))
        for name, entry in recipe.serve.embedders.items():
            served.attach_embedder(name, entry)
        return served

    @classmethod
    def _of_encoders(cls, recipe: Recipe, folder: Path) -> ServedModels:
        """The recipe's model is one that only reads."""
        from llmforge.model.device import base_dtype, pick_device

        if given := recipe.model.adapter_name_or_path or list(recipe.serve.adapters):
            raise RecipeError(f"adapters: {folder.name} gives embeddings only; {given[0]} does not fit it")
        device = pick_device(recipe.model)
        core = ReadingCore(folder, device, base_dtype(recipe, device, for_training=False))
        served = cls(core, (), recipe.model, folder)
        path = str(recipe.model.model_name_or_path)
        name = recipe.serve.served_model_name or short_name(path)
        served.attach_embedder(name, {"path": path, "pooling": recipe.serve.embed_pooling})
        for name, entry in recipe.serve.embedders.items():
            served.attach_embedder(name, entry)
        return served

    @property
    def cards(self) -> list[ModelCard]:
        return list(self._cards.values())

    def capabilities(self) -> Capabilities:
        """What the core can, and what else is done with its models."""
        mixes = isinstance(self.core.adapters, AdapterBatch)
        return replace(self.core.capabilities(), embed=True, score=True, adapters_at_run_time=mixes)

    def attach(self, name: str, path: str, base: str | None = None) -> tuple[str, ModelCard]:
        """Serve one more adapter; its name inside the core, and its card.

        Raises:
            RecipeError: the name is taken, or the adapter does not fit the base.
        """
        from llmforge.model.adapter_files import check_adapter
        from llmforge.model.hub import adapter_folder
        from llmforge.model.sources import say

        self._check_free(name)
        folder = adapter_folder(self.config, path, say)
        if self.folder is not None:
            check_adapter(folder, self.folder)
        if isinstance(self.core, LocalCore) and self.core.adapters is None and not _is_wrapped(self.core.model):
            self.core.adapters = AdapterBatch(self.core.model)
            self.core.replace_model(self.core.model)
        if not isinstance(self.core.adapters, AdapterBatch):
            raise RecipeError(f"adapters: {self.cards[0].id} is served alone, so no other adapter fits beside it")
        updates = read_updates(self.core.model, folder, self._packing)
        inner = next(self._inner_names)  # only now: workers that were told the same things count alike
        self.core.adapters.add(inner, updates)
        self._add(name, base or next((card.base for card in self.cards), name), inner, path, folder)
        return inner, self._cards[name]

    def pack(self) -> None:
        """Compute with packed weights and lean layers from now on, where they fit; adapters come after it."""
        self._lean = take_lean_forms(self.core.model)
        self._packing = pack(self.core.model)

    def unpack(self) -> None:
        """The model as it was loaded."""
        if self._packing is not None:
            self._packing.undo()
            self._packing = None
        put_back(self._lean)
        self._lean = []

    def detach(self, name: str) -> str:
        """Serve an adapter no longer; returns its name inside the core.

        Raises:
            UnknownModel: no adapter of that name.
        """
        card = self._cards.get(name)
        if card is None or card.adapter is None or not isinstance(self.core.adapters, AdapterBatch):
            raise UnknownModel(name, [card.id for card in self.cards if card.adapter])
        del self._cards[name]
        self.table.pop(name, None)
        self._heads.pop(name, None)
        inner = self._inner.pop(name)
        self.core.adapters.remove(inner)
        return inner

    def attach_embedder(self, name: str, entry: Any) -> ModelCard:
        """Serve a model of its own for embeddings; `entry` is its path or hub id, or {path, pooling}.

        Raises:
            RecipeError: the name is taken, the entry has another form, or the model cannot be loaded.
        """
        from llmforge.model.remote_code import allow_remote_code
        from llmforge.model.sources import resolve_model, say

        self._check_free(name)
        settings = dict(entry) if isinstance(entry, Mapping) else {"path": entry}
        if strange := sorted(settings.keys() - {"path", "pooling"}) or not isinstance(settings.get("path"), str):
            what = f"no such key {strange[0]!r}" if isinstance(strange, list) else f"got {entry!r}"
            raise RecipeError(f"embedders: {name}: {what}, expected a path or {{path: ..., pooling: mean|last|cls}}")
        config = replace(self.config, model_name_or_path=settings["path"], adapter_name_or_path=[])
        folder = resolve_model(config)
        trust = allow_remote_code(folder, config, say)
        embedder = load_encoder(name, folder, self.core.device, self.core.dtype, settings.get("pooling"), trust)
        self._embedders[name] = embedder
        self._cards[name] = ModelCard(name, short_name(settings["path"]), None, embedder.limit or 0, tasks=EMBEDS)
        return self._cards[name]

    def embed(
        self, name: str, texts: Sequence[str | TokenIds], pooling: str = "", max_tokens: int | None = None
    ) -> list[Reading]:
        """A vector for each text; see Engine.embed.

        Raises:
            UnknownModel: no such name, or it gives no embeddings.
        """
        if (embedder := self._embedders.get(name)) is not None:
            return embedder.embed(texts, pooling, max_tokens)
        if name not in self.table:
            raise UnknownModel(name, [card.id for card in self.cards if "embed" in card.tasks])
        if self._own is None:
            reader = self._reader()
            said = self._pooling or (self.folder and own_pooling(self.folder)) or usual_pooling(reader)
            self._own = Embedder("the model", reader, self.core.tokenizer, said, self.core.context_length)
        return self._own.embed(texts, pooling, max_tokens, self._inner[name])

    def score(self, name: str, rows: Sequence[TokenIds]) -> list[Reading]:
        """The value at each token of each conversation; see Engine.score.

        Raises:
            UnknownModel: no such name, or it is no reward model.
        """
        if name not in self._heads:
            raise UnknownModel(name, list(self._heads))
        ids = [row.ids for row in rows]
        return score(self._reader(), self._heads[name], ids, self.core.context_length, self._inner[name])

    def _reader(self) -> Reader:
        """The core's model, with its adapters."""
        model = self.core.model
        adapters = self.core.adapters or PeftAdapters(model)
        return Reader(model, lambda adapter: adapters.using([(adapter, 1)]))

    def _add(self, name: str, base: str, inner: str, path: str | None, folder: Path | None = None) -> None:
        """A name on the base; a folder with a value head beside it is a reward model, which does not write."""
        from llmforge.model.value_head import has_value_head, load_value_head

        self._check_free(name)
        if folder is not None and has_value_head(folder):
            self._heads[name] = load_value_head(self.core.model, folder)
        else:
            self.table[name] = inner
        self._inner[name] = inner
        context = self.core.context_length or 0
        self._cards[name] = ModelCard(
            name,
            base,
            path,
            context,
            tasks=SCORES if name in self._heads else WRITES,
            tool_format=streamable_tools(self.core.template),
            max_prompt_bytes=context * longest_token(self.core.tokenizer),
        )

    def _check_free(self, name: str) -> None:
        if name in self._cards:
            raise RecipeError(f"a model called {name!r} is served already; set served_model_name or rename one of them")


@contextmanager
def _told_of(key: str) -> Iterator[None]:
    """Inside, an error about an adapter names the key that it stands under."""
    try:
        yield
    except RecipeError as error:
        text = str(error).removeprefix("adapter_name_or_path: ")
        raise RecipeError(f"{key}: {text.removeprefix('adapters: ')}") from None


def _is_wrapped(model: Any) -> bool:
    return hasattr(model, "peft_config")


def short_name(path: str) -> str:
    """What a model or adapter is called unless the recipe says: the last part of its path or id, without .gguf."""
    return Path(path.rstrip("/")).name.removesuffix(".gguf") or path
