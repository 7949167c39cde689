"""The student space: which candidates a recipe's families make, and which of them fit the budget.

In a recipe each option of a family (families.py) takes one value or a list of choices.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from edgedistill.errors import InputError
from edgedistill.recipe.options import Key, Problem, bound_options, did_you_mean, option_problems
from edgedistill.recipe.schema import Budget
from edgedistill.recipe.schema import Student as StudentSection
from edgedistill.records import Cost, StudentSpec
from edgedistill.students import cost
from edgedistill.students.families import FAMILIES

DEFAULT_INPUT_PX = (64, 96, 128)


def problems(section: Mapping[str, Any], key: Key) -> list[Problem]:
    """What is wrong with the recipe's `student.families`: unknown families, unknown options, wrong choices."""
    found: list[Problem] = []
    for family, options in section.items():
        place = (*key, family)
        if family not in FAMILIES:
            found.append(
                Problem(key=place, message=f"no student family is called {family}{did_you_mean(family, FAMILIES)}")
            )
            continue
        given = dict(options) if isinstance(options, Mapping) else {}  # the schema says so where it is not
        for px in _choices(given.pop("input_px", DEFAULT_INPUT_PX)):
            if not isinstance(px, int) or isinstance(px, bool) or px < 8:
                found.append(
                    Problem(
                        key=(*place, "input_px"), message=f"must be whole numbers of pixels, 8 at least (got {px!r})"
                    )
                )
        empty = [name for name, value in given.items() if _choices(value) == ()]
        found += [Problem(key=(*place, name), message="must hold one choice at least") for name in empty]
        for one in _combinations({name: value for name, value in given.items() if name not in empty}):
            found += option_problems(FAMILIES[family], one, place)
    return list(dict.fromkeys(found))


def _choices(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _combinations(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    names = list(options)
    for values in itertools.product(*(_choices(options[name]) for name in names)):
        yield dict(zip(names, values, strict=True))


def candidates(section: StudentSection, num_classes: int) -> list[StudentSpec]:
    """Every student of the space with its cost, counted on the meta device: no weights are allocated.

    Raises:
        InputError: a family's options do not fit, or a candidate cannot take its input size.
    """
    found = []
    for family, given in section.families.items():
        options = dict(given or {})
        sizes = _choices(options.pop("input_px", DEFAULT_INPUT_PX))
        for one, px in itertools.product(_combinations(options), sizes):
            blueprint = FAMILIES[family](**bound_options(FAMILIES[family], one))
            counted = cost.measure(blueprint.build, px, num_classes)
            found.append(
                StudentSpec(
                    family=family,
                    options=one,
                    input_px=px,
                    num_classes=num_classes,
                    cost=counted,
                    mean=blueprint.mean,
                    std=blueprint.std,
                    initial_weights=blueprint.initial_weights,
                )
            )
    return found


def over_budget(counted: Cost, budget: Budget) -> dict[str, float]:
    """By what factor each bound that is counted is missed; empty for a feasible student. Latency is not counted."""
    bounds = budget.model_dump(exclude_none=True, exclude={"latency_ms"})
    return {name: getattr(counted, name) / bound for name, bound in bounds.items() if getattr(counted, name) > bound}


def feasible(found: list[StudentSpec], budget: Budget) -> list[StudentSpec]:
    """The candidates within the budget.

    Raises:
        InputError: none is; the message names the candidate that misses by least, and its cost.
    """
    kept = [spec for spec in found if not over_budget(spec.cost, budget)]
    if kept:
        return kept
    nearest = min(found, key=lambda spec: max(over_budget(spec.cost, budget).values()))
    missed = ", ".join(
        f"{name} {getattr(nearest.cost, name):.3g} (budget {getattr(budget, name):g})"
        for name in over_budget(nearest.cost, budget)
    )
    raise InputError(
        f"student.budget: no candidate meets it; the nearest is {describe(nearest)} with {missed}",
        "raise the budget, or offer a smaller family or input_px",
    )


def describe(spec: StudentSpec) -> str:
    """`efficientnet_lite variant=0 at 96 px`."""
    options = " ".join(f"{name}={value}" for name, value in spec.options.items() if name != "weights")
    return f"{spec.family} {options} at {spec.input_px} px".replace("  ", " ")
