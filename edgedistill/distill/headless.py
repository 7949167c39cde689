"""Headless sources: models that end with features and have no classes of their own.

They take part where features are enough: in the teachers, and in the metrics that need no classes. Methods that distill
from the sources' own classes leave them out, and divide their shares among the others.
"""

from __future__ import annotations

from collections.abc import Collection

from edgedistill.distill.methods import METHODS
from edgedistill.errors import InputError
from edgedistill.recipe.schema import Recipe
from edgedistill.recipe.section import Choice
from edgedistill.similarity.metrics import METRICS
from edgedistill.similarity.weigh import require_scores


def require_usable(recipe: Recipe, headless: Collection[str]) -> None:
    """Raise InputError if the recipe's metric or method needs classes that none of its sources have.

    Args:
        recipe: the recipe.
        headless: names of its sources without classes.
    """
    names = [section.name for section in recipe.sources]
    if not names:
        return
    with_classes = [name for name in names if name not in headless]
    metric = recipe.weigh.metric.name
    require_scores(metric, scored=with_classes if "classes" in METRICS[metric].needs else names)
    _require_classes(recipe.distill.method, names, with_classes)


def _require_classes(choice: Choice, names: list[str], with_classes: list[str]) -> None:
    method, fix = METHODS[choice.name], "use method auto or adapted, which learn from features"
    if "sources" not in method.needs:
        return
    if not with_classes:
        raise InputError(f"distill.method: {choice.name} needs the sources' classes, and no source has any", fix)
    # an option that is right for all sources, and not for those with classes, names one without classes
    if method.problem(choice.options, with_classes) and not method.problem(choice.options, names):
        headless = ", ".join(name for name in names if name not in with_classes)
        raise InputError(
            f"distill.method: {choice.name} needs a source's classes, and there are none in {headless}",
            f"name a source with classes ({', '.join(with_classes)}), or {fix}",
        )


def notes(recipe: Recipe, headless: Collection[str]) -> list[str]:
    """Sentences about the headless sources of a recipe, before anything is computed; none if there are none."""
    metric, method = recipe.weigh.metric.name, recipe.distill.method.name
    scored = "classes" not in METRICS[metric].needs
    return [*filter(None, (weight_note(metric, headless, scored), method_note(method, headless)))]


def weight_note(metric: str, headless: Collection[str], scored: bool) -> str:
    """A sentence about the headless sources, and whether the deciding metric scores them; "" if there are none."""
    if not headless:
        return ""
    note = f"{', '.join(headless)}: features only, no classes"
    return note if scored else f"{note}; {metric} needs classes, so the weight is 0"


def method_note(method: str, headless: Collection[str]) -> str:
    """A sentence about the headless sources that the method leaves out; "" if there are none."""
    needs = METHODS[method].needs if method in METHODS else frozenset()
    if not headless or "sources" not in needs:
        return ""
    note = f"{method} learns from the sources' classes and leaves out {', '.join(headless)}"
    return f"{note}, but not in its teacher" if "teacher" in needs else note
