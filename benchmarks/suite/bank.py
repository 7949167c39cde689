"""The bank: ImageNet nets, one net with random weights, and nets fine-tuned on packs; and what each says of a pack.

A pack is a directory with train.parquet and test.parquet, columns image and label. A target is never taught by a net
that was trained on its own pack. Weights and outputs are kept in the runs directory, outside git.

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

from benchmarks.suite.protocol import RECIPES, Profile
from edgedistill import check
from edgedistill import session as edgedistill_session
from edgedistill.data.splits import Splits, load_splits
from edgedistill.distributed.device import default_device
from edgedistill.errors import InputError
from edgedistill.recipe.file import read_recipe
from edgedistill.recipe.schema import Data, Source
from edgedistill.run.files import digest, read_json, sha256_file, write_json
from edgedistill.sources import registry
from edgedistill.sources.outputs import Network, SourceOutputs, compute_outputs


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Where the packs are, where weights and outputs are kept, and which sources there are."""

    packs: Path
    runs: Path
    profile: Profile

    def names_for(self, target: str) -> list[str]:
        """The sources that may teach a target: all but the one trained on its own pack."""
        return [*self.profile.ready, *(name for name in self.profile.finetuned if name != target)]

    def section(self, name: str) -> Source:
        """A source as a recipe would name it; one that is fine-tuned is trained first, once."""
        given = self.profile.ready.get(name)
        if given is None:
            steps = self.profile.finetuned[name]
            trained = self.train("pack", f"source-{name}", name, {"distill.steps": steps})
            given = {"kind": "run", "path": str(trained.resolve())}
        return Source.model_validate({"name": name, **given})

    def train(self, kind: str, name: str, pack: str, settings: dict[str, Any]) -> Path:
        """Train recipes/sources/<kind>.yaml on a pack, once; returns the run directory.

        It is found again by what the recipe file says and by the pack's files, so that a later edgedistill, whose
        recipes have other defaults, takes the same weights.
        """
        changed = {"name": name, "data.path": str((self.packs / pack).resolve()), **settings}
        document = read_recipe(RECIPES / f"{kind}.yaml", [f"{key}={value}" for key, value in changed.items()])
        said = {**document.raw, "data": {**document.raw["data"], "path": self.pictures(pack)}}
        link = self.runs / "trained" / f"{name}-{digest(said)[:12]}"
        link.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{link}.lock"):  # two processes that want the same net: one trains it, the other waits
            if not link.exists():
                with contextlib.redirect_stderr(io.StringIO()):
                    trained = edgedistill_session.train(document, check.load(document), self.runs).run.path
                link.symlink_to(trained.resolve())
        return link.resolve()

    def initial(self) -> Path | None:
        """The run of the student's initial weights; None where the family brings its own."""
        pack = self.profile.initial
        return self.train("micro", f"initial-{pack}", pack, self.profile.initial_settings) if pack else None

    def pictures(self, pack: str) -> list[str]:
        """sha256 of a pack's two files.

        Raises:
            InputError: the pack is not there.
        """
        files = [self.packs / pack / f"{part}.parquet" for part in ("train", "test")]
        for one in files:
            if not one.is_file():
                raise InputError(f"{one}: no such file", f"--packs takes a directory that holds {pack}/{one.name}")
        return [_hash_of(one) for one in files]

    def complete(self, targets: Sequence[str]) -> None:
        """Raise InputError where a pack is missing, of a target or of a source, before hours of work."""
        for pack in dict.fromkeys((*targets, *self.profile.finetuned, *filter(None, [self.profile.initial]))):
            self.pictures(pack)

    def splits(self, target: str, seed: int, labels: int | None = None) -> Splits:
        """A pack divided for one seed, with so many labels a class; all of them where `labels` is None."""
        return _splits(
            self.packs / target, self.runs / "cache/images", seed=seed, labels=labels, px=self.profile.store_px
        )

    def truth(self, target: str) -> np.ndarray:
        """The class of every train image, -1 for those that test holds too: to report by, never to train on."""
        whole = self.splits(target, 0)
        classes_N = np.full(whole.train.n, -1)
        for rows, labels in ((whole.labeled_rows, whole.labeled_labels), (whole.val_rows, whole.val_labels)):
            classes_N[rows] = labels
        return classes_N

    def outputs(self, source: str, target: str) -> SourceOutputs:
        """What a source says of every train image of a pack, from the cache or computed once."""
        store = self.splits(target, 0).train
        return compute_outputs(self.network(source), store.at, store.pixels_hash, self.runs / "cache/sources")

    def network(self, source: str) -> Network:
        """A source that is loaded when it is first asked; what names its outputs in the cache is kept on disk."""
        section = self.section(source)
        known = self.runs / "facts" / f"{digest(section.model_dump(mode='json'))[:16]}.json"
        load = functools.cache(lambda: registry.load(section, Path()))
        if not known.exists():
            write_json(known, load().facts())
        facts = read_json(known)
        ready = functools.cache(lambda: faster(load()))
        return Network(
            forward=lambda images: ready().forward(images),
            input_px=facts["input_px"],
            mean=tuple(facts["mean"]),
            std=tuple(facts["std"]),
            sha256=facts["sha256"],
        )


_hash_of = functools.cache(sha256_file)  # every cell of a target names its pack


@functools.lru_cache(maxsize=4)  # a draw asks for the listing of its pack once a source
def _splits(pack: Path, cache: Path, seed: int, labels: int | None, px: int) -> Splits:
    section = Data.model_validate(
        {"kind": "hf", "path": str(pack.resolve()), "val_fraction": 0.1, "labels_per_class": labels}
    )
    return load_splits(section, Path(), cache=cache, seed=seed, px=px)


def faster(net: Network) -> Network:
    """The same source through ONNX Runtime, in fp32, which on a CPU is faster than torch.

    Its identity stays that of the weights; a GPU keeps the source as it is.
    """
    import onnxruntime
    import torch

    if default_device().type == "cuda":
        return net

    class Wrapped(torch.nn.Module):
        """torch.onnx takes modules alone."""

        def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return net.forward(images_BCHW)

    written = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter says that it is the old one; a closure needs it
        torch.onnx.export(
            Wrapped(),
            (torch.zeros(2, 3, net.input_px, net.input_px),),
            written,
            dynamo=False,
            input_names=["images"],
            dynamic_axes={"images": {0: "batch"}},
            opset_version=17,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(written.getvalue(), options, providers=["CPUExecutionProvider"])

    def forward(images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, probs = session.run(None, {"images": images_BCHW.contiguous().numpy()})
        return torch.from_numpy(features), torch.from_numpy(probs)

    return replace(net, forward=forward)
