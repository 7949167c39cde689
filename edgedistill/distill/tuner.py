"""Tuning of sources for a teacher: what is trained, and what the tuned nets answer, is kept in the cache.

N images that the teacher answers, L of them labeled, D features, C target classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from edgedistill.console import bar, say
from edgedistill.distill.probes import Floats, Labels, Rows, softmax
from edgedistill.distill.teachers import Column, Tuned
from edgedistill.distill.tuning import VERSION, TunedSource, head_scores, tune, tuned_network
from edgedistill.errors import InputError
from edgedistill.labels.divide import TEST_SEED
from edgedistill.labels.protocol import assign_folds
from edgedistill.labels.units import several
from edgedistill.recipe.schema import Augment
from edgedistill.run.files import atomic, digest, sha256_file
from edgedistill.sources.outputs import Network, compute_outputs

if TYPE_CHECKING:
    from edgedistill.data.splits import Store

LEAST_FOLDS = 3  # with two, a class of two labels leaves its probes one, and they have no penalty of their own
HELD_OUT = "held_out"


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """Tunes sources to one set of labels; `tune` is what a teacher's `fit` takes.

    Attributes:
        network: the network of a source.
        store: all images.
        rows: rows of the labeled images in it, [L].
        labels_L: their classes.
        units_L: number of each one's set of copies or group, which is never divided.
        classes: C.
        answered: rows of the images that the teacher answers, in its order, [N].
        settings: how training images are augmented.
        seed: of the training.
        cache: folder of all caches.
        networks: filled by `tune`: the tuned networks, by the names of their columns.
    """

    network: Callable[[str], Network]
    store: Store
    rows: Rows
    labels_L: Rows
    units_L: Rows
    classes: int
    answered: Rows
    settings: Augment
    seed: int
    cache: Path
    networks: dict[str, Network] = field(default_factory=dict)

    def tune(self, ranked: Sequence[str], most: int) -> Tuned | None:
        """Tune the first of some sources that can be tuned; None if none can, or if the labels make too few folds.

        Args:
            ranked: the sources, best first.
            most: how many to tune.
        """
        try:
            folds = assign_folds(self.labels_L, self.units_L, TEST_SEED)
        except InputError:
            return None
        if folds.count < LEAST_FOLDS:
            return None
        columns, features = {}, {}
        tunable = (name for name in ranked if self.network(name).tunable is not None)
        for source in islice(tunable, most):
            name = f"{source} (tuned)"
            try:
                self.networks[name], features[name], columns[name] = self._tuned(source, folds.folds_N)
            except InputError as error:
                say(f"  {source} is not tuned: {error.message}")
        return Tuned(folds_L=folds.folds_N, features=features, columns=columns) if columns else None

    def _tuned(self, name: str, folds_L: Rows) -> tuple[Network, Floats, Column]:
        """The tuned network of a source; its features of the images that are answered, and its column."""
        source = self.network(name)
        file = self.cache / "tuned" / f"{self._identity(source, folds_L)}.safetensors"
        tuned = self._trained(name, folds_L, file)
        network = tuned_network(source, tuned.state, sha256_file(file))
        with bar(f"{name}, tuned, on {self.store.n} images at {network.input_px} px", self.store.n) as progress:
            outputs = compute_outputs(
                network, self.store.resized, self.store.pixels_hash, self.cache / "sources", progress=progress
            )
        features_ND = outputs.features_ND[self.answered]
        predict = partial(_predict, {part: tuned.state[f"head.{part}"] for part in ("weight", "bias")})
        column = Column(probs_NC=predict(features_ND), held_out_LC=tuned.held_out_LC, predict=predict)
        return network, features_ND, column

    def _identity(self, source: Network, folds_L: Rows) -> str:
        """Hash of all that a tuned source depends on."""
        facts = [source.sha256, source.input_px, source.mean, source.std, self.store.pixels_hash]
        labels = [self.rows.tolist(), self.labels_L.tolist(), folds_L.tolist(), self.classes]
        if several(self.units_L):  # without groups and copies, what is in the cache stays good
            labels.append(self.units_L.tolist())
        return digest([VERSION, *facts, *labels, self.settings.model_dump(mode="json"), self.seed])[:32]

    def _trained(self, name: str, folds_L: Rows, file: Path) -> TunedSource:
        """A source after tuning, from the cache if it is there; of concurrent runs one tunes and the others wait."""
        import torch
        from safetensors.torch import save

        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if (tuned := _read(file)) is None:
                tuned = self._train(name, folds_L)
                with atomic(file) as temporary:
                    temporary.write_bytes(save({**tuned.state, HELD_OUT: torch.from_numpy(tuned.held_out_LC)}))
        return tuned

    def _train(self, name: str, folds_L: Rows) -> TunedSource:
        source, n_labels, started = self.network(name), len(self.rows), time.monotonic()
        trainings = len(np.unique(folds_L[folds_L >= 0])) + 1
        labels = Labels(rows=np.arange(n_labels), labels_L=self.labels_L, units_L=self.units_L, classes=self.classes)
        with bar(f"tune {name} to {n_labels} labels", trainings) as progress:
            tuned = tune(
                source,
                self.store.resized(source.input_px)[self.rows],
                labels,
                folds_L=folds_L,
                settings=self.settings,
                seed=self.seed,
                progress=progress,
            )
        is_right_L = (tuned.held_out_LC.argmax(axis=1) == self.labels_L)[folds_L >= 0]
        say(
            f"  tuned {name} to {n_labels} labels in {time.monotonic() - started:.0f} s: {is_right_L.mean():.1%} of "
            f"{len(is_right_L)} held-out ones right"
        )
        return tuned


def _read(file: Path) -> TunedSource | None:
    """An entry of the cache; None if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state = load(file.read_bytes())
        held_out_LC = state.pop(HELD_OUT).numpy()
    except (FileNotFoundError, SafetensorError, KeyError):
        return None
    return TunedSource(state=state, held_out_LC=held_out_LC)


def _predict(head: dict[str, Any], features_MD: Floats) -> Floats:
    return softmax(head_scores(head, features_MD))
