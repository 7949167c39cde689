"""The sources whose own label spaces a method distills from, and each one's share, from weights and options."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from edgedistill.errors import InputError

Alphas = Mapping[str, float]
Options = Mapping[str, Any]


def weighted_shares(alphas: Alphas, options: Options) -> dict[str, float]:
    """Every source with a positive weight, with that weight as its share."""
    return {name: alpha for name, alpha in alphas.items() if alpha > 0.0}


def equal_shares(alphas: Alphas, options: Options) -> dict[str, float]:
    """All sources with equal shares."""
    return dict.fromkeys(alphas, 1.0 / len(alphas)) if alphas else {}


def heaviest_source(alphas: Alphas, options: Options) -> dict[str, float]:
    """Only the source with the largest weight; the first if several are equal."""
    return {max(alphas, key=lambda name: alphas[name]): 1.0} if alphas else {}


def random_source(alphas: Alphas, options: Options) -> dict[str, float]:
    """Only one source, drawn with the option `seed`."""
    return {random.Random(options.get("seed", 0)).choice(sorted(alphas)): 1.0} if alphas else {}


def named_source(alphas: Alphas, options: Options) -> dict[str, float]:
    """Only the source named by the option `source`.

    Raises:
        InputError: no source has that name.
    """
    if not alphas:
        return {}
    if options["source"] not in alphas:
        raise InputError(f"distill.method: no source is called {options['source']}", "name one of the sources")
    return {options["source"]: 1.0}


def no_shares(alphas: Alphas, options: Options) -> dict[str, float]:
    """No shares: the method uses no source's own label space."""
    return {}
