"""The bank of sources: ImageNet nets, a net with random weights, nets fine-tuned on packs; and their outputs on packs.

A pack is a directory with train.parquet and test.parquet, columns image and label. A net that was trained on a pack is
not a source for the target of that pack. Weights and outputs are kept in the runs directory, outside git.

N images of a pack, D features, K classes of a source.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from benchmarks.suite import subsets
from benchmarks.suite.protocol import RECIPES, Profile
from edgedistill import check
from edgedistill import session as edgedistill_session
from edgedistill.data.load import load_splits
from edgedistill.data.splits import Splits
from edgedistill.distributed.device import default_device
from edgedistill.errors import InputError
from edgedistill.recipe.data_section import Data
from edgedistill.recipe.file import read_recipe
from edgedistill.recipe.schema import Source
from edgedistill.run.files import digest, read_json, sha256_file, write_json
from edgedistill.sources import registry
from edgedistill.sources.outputs import Network, SourceOutputs, compute_outputs


@dataclass(frozen=True, kw_only=True)
class Bank:
    """The directory of packs, the directory of weights and outputs, and the profile with the sources."""

    packs: Path
    runs: Path
    profile: Profile

    def sources_for(self, target: str) -> list[str]:
        """The names of the sources for a target: all but the one trained on its pack, or on that it is a part of."""
        subset = self.profile.subsets.get(target)
        own = subset.pack if subset else target
        return [*self.profile.ready, *(name for name in self.profile.finetuned if name != own)]

    def folder(self, pack: str) -> Path:
        """The directory of a pack; a subset is written at first use."""
        if subset := self.profile.subsets.get(pack):
            return subsets.write(self.folder(subset.pack), subset, self.runs / "packs")
        return self.packs / self.profile.packs.get(pack, pack)

    def source_section(self, name: str) -> Source:
        """A source as a section of a recipe; a fine-tuned source is trained by the first call."""
        options = self.profile.ready.get(name)
        if options is None:
            steps = self.profile.finetuned[name]
            trained = self.train("pack", f"source-{name}", name, {"distill.steps": steps})
            options = {"kind": "run", "path": str(trained.resolve())}
        return Source.model_validate({"name": name, **options})

    def train(self, kind: str, name: str, pack: str, settings: dict[str, Any]) -> Path:
        """Train recipes/sources/<kind>.yaml on a pack, once; returns the run directory.

        The run is identified by the text of the recipe and by the pack's files, so that a later edgedistill, whose
        recipes have other defaults, uses the same weights.
        """
        overrides = {"name": name, "data.path": str(self.folder(pack).resolve()), **settings}
        document = read_recipe(RECIPES / f"{kind}.yaml", [f"{key}={value}" for key, value in overrides.items()])
        identity = {**document.raw, "data": {**document.raw["data"], "path": self.pack_hashes(pack)}}
        link = self.runs / "trained" / f"{name}-{digest(identity)[:12]}"
        link.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{link}.lock"):  # of two processes that need the same net, one trains it and the other waits
            if not link.exists():
                with contextlib.redirect_stderr(io.StringIO()):
                    run = edgedistill_session.train(document, check.load(document), self.runs).run.path
                link.symlink_to(run.resolve())
        return link.resolve()

    def initial_run(self) -> Path | None:
        """The run of the student's initial weights; None where the family brings its own."""
        pack = self.profile.initial
        return self.train("micro", f"initial-{pack}", pack, self.profile.initial_settings) if pack else None

    def pack_hashes(self, pack: str) -> list[str]:
        """The sha256 of a pack's two files.

        Raises:
            InputError: a file of the pack is missing.
        """
        files = [self.folder(pack) / f"{part}.parquet" for part in ("train", "test")]
        for path in files:
            if not path.is_file():
                raise InputError(
                    f"{path}: no such file", f"--packs takes a directory that holds {path.parent.name}/{path.name}"
                )
        return [_hash_of(path) for path in files]

    def check_packs(self, targets: Sequence[str]) -> None:
        """Raise InputError if the pack of a target or of a source is missing, before hours of work."""
        for pack in dict.fromkeys((*targets, *self.profile.finetuned, *filter(None, [self.profile.initial]))):
            self.pack_hashes(pack)

    def splits(self, target: str, seed: int, labels: int | None = None) -> Splits:
        """The splits of a pack for one seed, with `labels` labels a class; None: all labels."""
        return _splits(
            self.folder(target), self.runs / "cache/images", seed=seed, labels=labels, px=self.profile.store_px
        )

    def truth(self, target: str) -> np.ndarray:
        """The class of every train image, -1 for those that are also in test: for reports, never for training."""
        splits = self.splits(target, 0)
        classes_N = np.full(splits.train.n, -1)
        for rows, labels in ((splits.labeled_rows, splits.labeled_labels), (splits.val_rows, splits.val_labels)):
            classes_N[rows] = labels
        return classes_N

    def has_labels(self, target: str, labels: int) -> bool:
        """Whether a pack has so many labels in every class and as many again unlabeled; natural draws: in the mean."""
        classes_N = self.truth(target)
        counts_C = np.bincount(classes_N[classes_N >= 0])
        least = counts_C.min() if self.profile.labeled == "balanced" else counts_C.mean()
        return bool(least >= 2 * labels)

    def outputs(self, source: str, target: str) -> SourceOutputs:
        """A source's outputs on every train image of a pack; the first call computes them."""
        store = self.splits(target, 0).train
        return compute_outputs(self.network(source), store.resized, store.pixels_hash, self.runs / "cache/sources")

    def network(self, source: str) -> Network:
        """A source that is loaded at first use; the facts that identify its outputs in the cache are kept on disk."""
        section = self.source_section(source)
        facts_file = self.runs / "facts" / f"{digest(section.model_dump(mode='json'))[:16]}.json"
        load = functools.cache(lambda: registry.load(section, Path()))
        if not facts_file.exists():
            write_json(facts_file, load().facts())
        facts = read_json(facts_file)
        network = functools.cache(lambda: with_onnxruntime(load()))
        return Network(
            forward=lambda images: network().forward(images),
            input_px=facts["input_px"],
            mean=tuple(facts["mean"]),
            std=tuple(facts["std"]),
            sha256=facts["sha256"],
        )


_hash_of = functools.cache(sha256_file)  # every cell of a target needs the hashes of its pack


@functools.lru_cache(maxsize=4)  # a draw needs the listing of its pack once for every source
def _splits(pack: Path, cache: Path, seed: int, labels: int | None, px: int) -> Splits:
    section = Data.model_validate(
        {
            "kind": "hf",
            "path": str(pack.resolve()),
            "protocol": "test",
            "val_fraction": 0.1,
            "labels_per_class": labels,
            "reserve": 0,  # the lines of a profile are of students that every unlabeled image trains
        }
    )
    return load_splits(section, Path(), cache=cache, seed=seed, px=px)


def with_onnxruntime(net: Network) -> Network:
    """Return the source with ONNX Runtime in fp32 for its forward pass, which on a CPU is faster than torch.

    Its identity remains that of the weights. On a GPU the source is returned unchanged.
    """
    import onnxruntime
    import torch

    if default_device().type == "cuda":
        return net

    class Wrapped(torch.nn.Module):
        """A module around the source: torch.onnx exports only modules."""

        def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            return net.forward(images_BCHW)

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter, which a closure needs, warns of its deprecation
        torch.onnx.export(
            Wrapped(),
            (torch.zeros(2, 3, net.input_px, net.input_px),),
            buffer,  # type: ignore[arg-type]  # it takes a buffer, too
            dynamo=False,
            input_names=["images"],
            dynamic_axes={"images": {0: "batch"}},
            opset_version=17,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])

    def forward(images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, probs = session.run(None, {"images": images_BCHW.contiguous().numpy()})
        return torch.from_numpy(features), torch.from_numpy(probs)

    return replace(net, forward=forward)
