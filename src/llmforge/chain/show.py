"""`forge-cli recipe show R` of a chain or a sweep: every link's recipe, with the results that are there already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmforge.chain.link import Link, resolve
from llmforge.chain.plan import read_chain
from llmforge.chain.sweep import read_sweep
from llmforge.config.dump import nested, recipe_values, show_recipe
from llmforge.config.given import Problem, refuse
from llmforge.config.kind import recipe_kind
from llmforge.config.schema import Recipe


def show_links(words: Sequence[str]) -> tuple[str, list[str]]:
    """YAML documents, one for each link under a comment that names it, and the notes of all.

    Raises:
        RecipeError: what is wrong, all of it, with file and line.
    """
    found = resolved(words)
    texts = [f"# {_told(link)}\n{show_recipe(recipe) if recipe else ''}" for link, recipe in found]
    return "---\n".join(texts), _notes(found)


def show_links_as_json(words: Sequence[str]) -> tuple[str, list[str]]:
    """The same as one JSON object, by the links' names."""
    found = resolved(words)
    links: dict[str, dict[str, Any]] = {}
    for link, recipe in found:
        links[link.name] = {"command": link.command, "from": link.parent, "folder": str(link.folder)}
        if recipe is None:
            links[link.name] |= {"of": link.of, "bars": [str(bar) for bar in link.bars]}
        else:
            origins = {key: origin.text for key, origin in recipe.origins.items()}
            links[link.name] |= {"recipe": nested(recipe_values(recipe)), "origins": origins}
    return json.dumps({"links": links}, ensure_ascii=False, indent=2), _notes(found)


def resolved(words: Sequence[str]) -> list[tuple[Link, Recipe | None]]:
    """The links in their order, each with its recipe; a gate has none."""
    problems: list[Problem] = []
    if recipe_kind(words) == "chain":
        chain = read_chain(words)
        links, files = chain.links, chain.files
        problems += chain.problems
    else:
        sweep = read_sweep(words)
        links, files = sweep.links, sweep.files
    folders: dict[str, Path] = {link.name: link.folder for link in links}
    recipes: dict[str, Recipe] = {}
    for link in links:
        if link.command == "gate" or (link.parent is not None and link.parent not in recipes):
            continue  # behind a parent that cannot be read nothing can be said
        recipe, wrong = resolve(link, recipes, folders)
        problems += [Problem(problem.origin, f"link {link.name}: {problem.message}") for problem in wrong]
        if recipe is not None:
            recipes[link.name] = recipe
    if problems:
        raise refuse(files, list(dict.fromkeys(problems)))
    return [(link, recipes.get(link.name)) for link in links]


def _told(link: Link) -> str:
    if link.command == "gate":
        return f"link {link.name}: gate; {link.of} must reach {', '.join(map(str, link.bars))}"
    after = f", goes on from {link.parent}" if link.parent else ""
    return f"link {link.name}: {link.command}{after}"


def _notes(found: Sequence[tuple[Link, Recipe | None]]) -> list[str]:
    return list(dict.fromkeys(f"link {link.name}: {note}" for link, recipe in found if recipe for note in recipe.notes))
