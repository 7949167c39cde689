"""The student space: the candidates of a recipe's families, and which of them are within the budget.

In a recipe each option of a family (families.py) takes one value or a list of choices.
"""

from __future__ import annotations

import decimal
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from edgedistill.errors import InputError
from edgedistill.recipe.options import Key, Problem, bound_options, did_you_mean, option_problems, shortened
from edgedistill.recipe.schema import Budget
from edgedistill.recipe.schema import Student as StudentSection
from edgedistill.records import Cost, StudentSpec
from edgedistill.students import cost
from edgedistill.students.families import FAMILIES

DEFAULT_INPUT_PX = (64, 96, 128)
LEAST_PX, MAX_PX = 8, 4096
MAX_CANDIDATES = 2000  # of a family: each is built to count its cost
# an ONNX file holds less than 2 GB; more than that is no net for a device, and may not fit in memory here
MAX_WEIGHTS_MB, MAX_ACTIVATION_MB = 2000.0, 2000.0


def problems(section: Mapping[str, Any], key: Key) -> list[Problem]:
    """The problems of the recipe's `student.families`: unknown families, unknown options, wrong choices."""
    problems: list[Problem] = []
    for family, options in section.items():
        place = (*key, family)
        if family not in FAMILIES:
            problems.append(
                Problem(key=place, message=f"no student family is called {family}{did_you_mean(family, FAMILIES)}")
            )
            continue
        choices = dict(options) if isinstance(options, Mapping) else {}  # other types are the schema's problem
        for px in _choices(choices.get("input_px", DEFAULT_INPUT_PX)):
            if not isinstance(px, int) or isinstance(px, bool) or not LEAST_PX <= px <= MAX_PX:
                message = (
                    f"must be whole numbers of pixels, {LEAST_PX} at least and {MAX_PX} at most "
                    f"(got {shortened(repr(px))})"
                )
                problems.append(Problem(key=(*place, "input_px"), message=message))
        count = math.prod(len(_choices(choice)) for choice in choices.values())
        if count > MAX_CANDIDATES:
            message = f"stands for {count} candidates, and {MAX_CANDIDATES} are the most; list fewer choices"
            problems.append(Problem(key=place, message=message))
            continue
        empty = [name for name, choice in choices.items() if _choices(choice) == ()]
        choices.pop("input_px", None)
        problems += [Problem(key=(*place, name), message="must hold one choice at least") for name in empty]
        for combination in _combinations({name: choice for name, choice in choices.items() if name not in empty}):
            problems += option_problems(FAMILIES[family], combination, place)
    return list(dict.fromkeys(problems))


def _choices(choice: Any) -> tuple[Any, ...]:
    """The choices of a list, each once."""
    if not isinstance(choice, list | tuple):
        return (choice,)
    return tuple(option for place, option in enumerate(choice) if option not in choice[:place])


def _combinations(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    names = list(options)
    for values in itertools.product(*(_choices(options[name]) for name in names)):
        yield dict(zip(names, values, strict=True))


def candidates(section: StudentSection, num_classes: int) -> list[StudentSpec]:
    """All candidates of the space with their costs, counted on the meta device: no weights are allocated.

    Raises:
        InputError: a family's options do not fit, a candidate cannot take its input size, or is far too large.
    """
    specs = []
    for family, choices in section.families.items():
        options = dict(choices or {})
        sizes = _choices(options.pop("input_px", DEFAULT_INPUT_PX))
        for combination, px in itertools.product(_combinations(options), sizes):
            blueprint = FAMILIES[family](**bound_options(FAMILIES[family], combination))
            counted = cost.measure(blueprint.build, px, num_classes)
            spec = StudentSpec(
                family=family,
                options=combination,
                input_px=px,
                num_classes=num_classes,
                cost=counted,
                mean=blueprint.mean,
                std=blueprint.std,
                initial_weights=blueprint.initial_weights,
            )
            _refuse_huge(spec)
            specs.append(spec)
    return specs


def _refuse_huge(spec: StudentSpec) -> None:
    """Raise InputError for a net that no budget would allow, before it is built in memory."""
    weights_mb, activation_mb = spec.cost.weights_mb, spec.cost.activation_mb
    if weights_mb > MAX_WEIGHTS_MB or activation_mb > MAX_ACTIVATION_MB:
        raise InputError(
            f"student: {describe(spec)} needs {weights_mb:.0f} MB of weights and {activation_mb:.0f} MB of activations "
            f"for one image, and {MAX_WEIGHTS_MB:.0f} and {MAX_ACTIVATION_MB:.0f} are the most",
            "offer a smaller family or input_px",
        )


def over_budget(counted: Cost, budget: Budget) -> dict[str, float]:
    """Cost over bound for each exceeded bound of the budget, without latency; empty for a feasible student."""
    bounds = budget.model_dump(exclude_none=True, exclude={"latency_ms"})
    return {name: getattr(counted, name) / bound for name, bound in bounds.items() if getattr(counted, name) > bound}


def feasible(specs: list[StudentSpec], budget: Budget) -> list[StudentSpec]:
    """The candidates within the budget.

    Raises:
        InputError: there is none; the message names the candidate nearest to the budget and its cost.
    """
    within_budget = [spec for spec in specs if not over_budget(spec.cost, budget)]
    if within_budget:
        return within_budget
    nearest = min(specs, key=lambda spec: max(over_budget(spec.cost, budget).values()))
    missed = ", ".join(
        f"{name} {rounded_up(getattr(nearest.cost, name))} (budget {getattr(budget, name):g})"
        for name in over_budget(nearest.cost, budget)
    )
    raise InputError(
        f"student.budget: no candidate meets it; the nearest is {describe(nearest)} with {missed}",
        "raise the budget, or offer a smaller family or input_px",
    )


def rounded_up(cost: float) -> str:
    """A cost in three digits that is enough as a budget: the candidate meets it."""
    up = decimal.Context(prec=3, rounding=decimal.ROUND_CEILING)
    return f"{float(up.create_decimal(repr(cost))):g}"


def describe(spec: StudentSpec) -> str:
    """Description of a candidate, such as `efficientnet_lite variant=0 at 96 px`."""
    options = " ".join(f"{name}={choice}" for name, choice in spec.options.items() if name != "weights")
    return f"{spec.family} {options} at {spec.input_px} px".replace("  ", " ")
