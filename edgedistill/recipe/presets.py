"""Presets: settings of `weigh` and `distill` under one name, for whatever the recipe leaves open.

A preset stands behind what is written, key by key, and is gone once the recipe is read: the values are what is checked,
kept in the run directory and hashed into the steps' keys, so a preset and its values written out are the same recipe.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from edgedistill.recipe.options import Key, Problem, choose

Sections = dict[str, dict[str, Any]]

PRESETS: dict[str, Sections] = {
    # Our reading of Borup, Phoo, Hariharan, "Distilling from Similar Tasks for Transfer Learning on a Budget" (ICCV
    # 2023). No code of it was published, so none of these values could be held against the authors' own. On purpose
    # unlike the defaults: source terms are not divided by log K, and min-max gives the last source a weight of 0.
    "paper_style": {
        "weigh": {"metric": {"name": "parc", "dims": 32}, "rescale": "minmax", "power": 12},
        "distill": {"method": {"name": "weighted", "lam": 0.8, "temperature": 1, "normalise": False}},
    },
}

# What `method: auto` means where there are sources: the method and the setting of it that did best when settings were
# chosen (benchmarks/suite/cpu_tuning.yaml, on packs that the suite does not report), but for the learning rate.
AUTO: dict[str, Any] = {
    "method": {"name": "adapted", "lam": 0.2, "sharpen": 2.0},
    "teacher": {"name": "selftrained"},
}
WITHOUT_SOURCES: dict[str, Any] = {"method": {"name": "transfer"}}


def auto() -> None:
    """A name in the recipe, no method: it takes no options."""


def is_auto(method: Mapping[str, Any]) -> bool:
    """Whether a method with its options is what `auto` stands for where there are sources."""
    return bool(dict(method) == AUTO["method"])


def resolved(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe's plain data with `distill.method: auto`, or no method at all, replaced by the method it stands for.

    What is hashed into a step's key is the method itself: a later edgedistill with another `auto` trains anew.
    """
    distill = raw.get("distill", {})
    if not isinstance(distill, Mapping) or distill.get("method", "auto") not in ("auto", {"name": "auto"}):
        return raw
    chosen = AUTO if raw.get("sources") else WITHOUT_SOURCES
    return {**raw, "distill": {**chosen, **distill, "method": chosen["method"]}}


def fill(raw: Mapping[str, Any], lines: Mapping[Key, int]) -> tuple[dict[str, Any], dict[Key, int]]:
    """A recipe's plain data with its preset behind it, and the lines of its keys.

    What the preset brings is on the line of `preset:`, so that an error about it points there. A preset that is not
    known fills nothing; `problems` says so.
    """
    name = raw.get("preset")
    if not isinstance(name, str) or name not in PRESETS:
        return dict(raw), dict(lines)
    filled = _behind(raw, PRESETS[name])
    brought = set(_keys(filled, ())) - set(_keys(raw, ()))
    return filled, {**dict.fromkeys(brought, lines.get(("preset",), 1)), **lines}


def problems(raw: Mapping[str, Any]) -> list[Problem]:
    """A preset that does not exist; one that is not even a name is left to the schema."""
    name = raw.get("preset")
    return choose(name, PRESETS, "preset", ("preset",)) if isinstance(name, str) else []


def _behind(written: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """`written`, and from `preset` what it leaves out.

    What names another function than the preset's stands alone: the preset's options are not that function's. What
    names the same one, or none (`method: {lam: 0.5}`), changes single options of the preset's choice.
    """
    filled = dict(written)
    for key, value in preset.items():
        if key not in written:
            filled[key] = copy.deepcopy(value)
        elif isinstance(value, dict):
            given = {"name": written[key]} if isinstance(written[key], str) else written[key]
            if isinstance(given, dict) and given.get("name", value.get("name")) == value.get("name"):
                filled[key] = _behind(given, value)
    return filled


def _keys(value: Any, key: Key) -> Iterator[Key]:
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        yield (*key, name)
        yield from _keys(inner, (*key, name))
