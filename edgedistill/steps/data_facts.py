"""The facts about a run's data, for its report and its model card."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgedistill.errors import InputError
from edgedistill.run import artifacts
from edgedistill.run.files import digest

if TYPE_CHECKING:
    from edgedistill.data.splits import Splits
    from edgedistill.run.directory import Run
    from edgedistill.steps.context import Context


def data_facts(context: Context) -> dict[str, Any]:
    """The facts about the data for the report, and the hashes of the images used."""
    splits, section = context.splits, context.recipe.data
    counts = {"labeled": splits.labeled_rows, "val": splits.val_rows, "unlabeled": splits.unlabeled_rows}
    return {
        "kind": section.kind,
        "classes": list(splits.classes),
        "licence": splits.licence,
        "score": section.score,
        **{name: len(rows) for name, rows in counts.items()},
        "test": splits.n_test,
        "corrupt": list(splits.corrupt),
        "contradicted": list(splits.contradicted),
        "duplicates": splits.duplicates,
        "copies": splits.copies,
        **({"near_copies": asdict(splits.near_copies)} if splits.near_copies else {}),
        "protocol": splits.protocol,
        "reserve": len(splits.reserve_rows),
        "folds": splits.folds.count if splits.folds else None,
        "unscored": [splits.classes[label] for label in splits.folds.unscored] if splits.folds else [],
        **_identity(splits),
        "store_px": splits.train.px,
        "range": splits.limits,
        **_unit_facts(splits),
        **odd_facts(splits, section.val_fraction),
        **_prior_facts(context),
        **_how_facts(context),
        **_shard_facts(context),
    }


def require_recorded(run: Run, splits: Splits) -> None:
    """Refuse images and labels that are not those that a run was trained on.

    A graph would be calibrated, guarded and scored on images that the student was trained on.

    Raises:
        InputError: images, labels or classes have changed since.
    """
    recorded = artifacts.DATA.find(run)
    now = {"classes": list(splits.classes), **_identity(splits)}
    if recorded and any(recorded.get(name, value) != value for name, value in now.items()):
        raise InputError(
            f"data: images or labels have changed since {run.path} was trained", "train again: `edgedistill train`"
        )


def _identity(splits: Splits) -> dict[str, str]:
    """Hashes of the images and labels that train and choose, and of those that test."""
    test = splits.test_set
    return {
        "data_hash": splits.data_hash,
        "test_hash": digest([test.store.hashes.tolist(), test.labels_N.tolist()]),
    }


def _unit_facts(splits: Splits) -> dict[str, int]:
    """The number of groups and sets of copies that the labels are from, where some have several labels; else empty."""
    import numpy as np

    units_L = splits.units_N[np.concatenate([splits.labeled_rows, splits.val_rows])]
    count = len(np.unique(units_L))
    return {"labeled_units": count} if count < len(units_L) else {}


def odd_facts(splits: Splits, val_fraction: float) -> dict[str, int]:
    """The version of the rules of division, where folds are divided by rules that most data sets do not need.

    The other facts do not tell what these rules do to the folds; where the version changes, they are trained anew.
    They are for labels of several classes in one unit, for images beside val, and for a val of more than half.
    """
    import numpy as np

    from edgedistill.labels import divide

    if splits.folds is None:
        return {}
    units_L = splits.units_N[np.concatenate([splits.labeled_rows, splits.val_rows])]
    pairs = np.stack([np.concatenate([splits.labeled_labels, splits.val_labels]), units_L], axis=1)
    is_mixed = len(np.unique(pairs, axis=0)) > len(np.unique(units_L))
    is_odd = is_mixed or len(splits.beside_val_rows) > 0 or val_fraction > 0.5 or splits.folds.redrawn > 0
    return {"division": divide.VERSION} if is_odd else {}


def _prior_facts(context: Context) -> dict[str, Any]:
    """The prior's shares by class and whether they are the recipe's or estimated; empty without a prior."""
    prior = context.prior
    if prior is None:
        return {}
    shares = [round(float(share), 6) for share in prior.shares_C]
    named = dict(zip(context.splits.classes, shares, strict=True))
    return {"prior": {"from": "recipe" if prior.stated else "labels", "shares": named}}


def _how_facts(context: Context) -> dict[str, Any]:
    """How the labels of a table came, where it says so."""
    from edgedistill.data import label_file

    counts = label_file.counts(context.recipe.data, context.base)
    return {"how": counts} if counts else {}


def _shard_facts(context: Context) -> dict[str, Any]:
    """Numbers of images in shards, used and excluded, and the hash of all of them."""
    if context.recipe.unlabeled is None:
        return {}
    return {
        "shards": len(context.shards),
        "streamed": sum(len(labeled.rows) for labeled in context.shards),
        "streamed_corrupt": sum(len(labeled.shard.corrupt) for labeled in context.shards),
        "streamed_duplicates": sum(len(labeled.shard.sample_numbers) - len(labeled.rows) for labeled in context.shards),
        "shards_hash": digest([labeled.shard.data_hash for labeled in context.shards]),
    }
