"""The check of all links before the first one runs; results that are not there yet are stood in for by their base."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from llmforge.chain.link import Link, resolve
from llmforge.check import check_recipe
from llmforge.config.checked import Checked
from llmforge.config.given import Problem
from llmforge.config.schema import Origin, Recipe


@dataclass
class CheckedLinks(Checked):
    """The check of a chain, each line with its link; `recipes` are those of the links that can be resolved."""

    recipes: dict[str, Recipe] = field(default_factory=dict)


def check_links(links: list[Link], files: list[str], problems: Iterable[Problem] = ()) -> CheckedLinks:
    """Check every link; `files` are the recipe files they were read from, `problems` those known already."""
    result = CheckedLinks(files=files, problems=list(problems))
    folders = {link.name: link.folder for link in links}
    shared = _shared(links)
    for link in links:
        if link.command == "gate":
            result.fine.append(f"link {link.name}: {link.of} must reach {', '.join(map(str, link.bars))}")
            continue
        if link.parent is not None and link.parent not in result.recipes:
            continue  # its parent's problem is named; without it nothing can be said
        recipe, problems = resolve(link, result.recipes, folders)
        result.problems += [_named(link, problem, shared) for problem in problems]
        if recipe is None:
            continue
        result.recipes[link.name] = recipe
        result.notes += [f"link {link.name}: {note}" for note in recipe.notes]
        if link.command in ("train", "predict"):
            found = check_recipe(recipe)
            for kind in ("fine", "remarks", "not_checked"):
                getattr(result, kind).extend(f"link {link.name}: {line}" for line in getattr(found, kind))
            result.problems += [_named(link, problem, shared) for problem in found.problems]
    for kind in ("remarks", "not_checked"):
        setattr(result, kind, list(dict.fromkeys(getattr(result, kind))))
    result.problems = list(dict.fromkeys(result.problems))
    return result


def _named(link: Link, problem: Problem, shared: set[Origin]) -> Problem:
    """The problem with its link's name, unless it lies in a key of all links."""
    if problem.origin in shared:
        return problem
    origin = problem.origin if problem.origin and problem.origin.file else link.origin
    return Problem(origin, f"link {link.name}: {problem.message}")


def _shared(links: list[Link]) -> set[Origin]:
    """Places of keys that several links have."""
    seen: set[Origin] = set()
    shared: set[Origin] = set()
    for link in links:
        mine = {item.origin for layer in link.layers for item in layer.given if item.origin.file}
        shared |= mine & seen
        seen |= mine
    return shared
