"""What the steps of one run share, loaded on first access: images, sources, their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.console import bar
from edgedistill.errors import InputError
from edgedistill.recipe.schema import Recipe
from edgedistill.records import Checkpoint, Guarded, OnnxModel, SourceWeights, StudentSpec
from edgedistill.run import artifacts, environment
from edgedistill.run.directory import Run
from edgedistill.steps.data_facts import require_recorded

if TYPE_CHECKING:
    from edgedistill.data.images import View
    from edgedistill.data.shards import Shard
    from edgedistill.data.splits import Splits
    from edgedistill.distill.batches import Material
    from edgedistill.distill.methods import Method
    from edgedistill.distill.stream import LabeledShard, Stream
    from edgedistill.distill.teachers import Teacher
    from edgedistill.labels.prior import Prior
    from edgedistill.sources.outputs import Network, SourceOutputs
    from edgedistill.steps.teacher import FittedTeacher

SMALLEST_PX = 32


@dataclass(frozen=True, kw_only=True)
class Context:
    """A recipe and its run directory. The recipe's paths are relative to `base`.

    Attributes:
        recipe: the recipe; a source given as a recipe is replaced by the run that trained it.
        base: the folder that its paths are relative to.
        run: the run directory.
        fold: with folds, the fold that is the test set of this context; None for the student that ships.
        ships: whether val trains, too: with folds, in the last training of each student.
        peer_teaches: whether the peer teaches, too: in the last training of each student.
        reopened: whether the run has been trained, and is not now: its images and labels have to be those of then.
        half: the half of the labeled images that is the test set of this context, to judge the peer by; None for all.
    """

    recipe: Recipe
    base: Path
    run: Run
    fold: int | None = None
    ships: bool = False
    peer_teaches: bool = False
    reopened: bool = False
    half: int | None = None

    def of_fold(self, fold: int) -> Context:
        """The context in which a fold of the labels is the test set; its run is a part of this one.

        Its search is not shared: workers share entire folds (fold_workers.py).
        """
        run = Run(path=self.run / artifacts.fold_folder(fold), shared=self.run.shared or self.run.path)
        recipe = self.recipe.model_copy(update={"search": self.recipe.search.model_copy(update={"storage": None})})
        return self.with_shared_inputs(replace(self, recipe=recipe, run=run, fold=fold))

    def shipping(self) -> Context:
        """The context of the last training: with folds all labels train."""
        if self.ships or self.splits.protocol != "folds":
            return self
        context = self.with_shared_inputs(replace(self, ships=True))
        vars(context)["splits"] = self.splits.shipping()  # divided once: what the division warns of is said once
        return context

    def labels_alone(self) -> Context:
        """The context of the baseline: the same student and settings on labels alone; its run is a part of this one."""
        from edgedistill.steps.lengths import on_labels_alone

        recipe = self.recipe.model_copy(update={"distill": on_labels_alone(self)})
        run = artifacts.labels_alone(self.run)
        return self.with_shared_inputs(replace(self, recipe=recipe, run=run), "splits", "shards")

    def taught_by_peer(self) -> Context:
        """The context whose teacher the peer joins, if there is one; other processes label its shards by an order."""
        if not self.has_peer:
            return self
        return self.with_shared_inputs(replace(self, peer_teaches=True), "splits", "fitted_on_sources")

    @property
    def shipped(self) -> Context:
        """The context of the student that is exported: this one, or that of the baseline."""
        return self if artifacts.shipped(self.run) == self.run else self.labels_alone()

    def with_shared_inputs(self, context: Context, *more: str) -> Context:
        """Another context of the same images, with the sources that this one has loaded, and `more` of it."""
        shared = ("candidates", "networks", "source_outputs", *more)
        vars(context).update({name: vars(self)[name] for name in shared if name in vars(self)})
        return context

    @property
    def has_peer(self) -> bool:
        """Whether a peer teaches: the recipe wants one, and its method has a teacher."""
        return self.recipe.distill.peer and "teacher" in self.method.needs

    def order(self, work: str, **arguments: Any) -> None:
        """Order the other processes, if there are any, to take part in `work`, a key of workers.WORK."""
        from edgedistill.distributed import processes
        from edgedistill.steps.orders import Order

        processes.send_order(Order(context=replace(self), work=work, arguments=arguments))  # a copy: the fields alone

    @cached_property
    def candidates(self) -> list[StudentSpec]:
        """The candidates of the student space with their costs; the number of classes is that of the data."""
        from edgedistill.data import datasets
        from edgedistill.students import space

        return space.candidates(self.recipe.student, len(datasets.listing(self.recipe.data, self.base).classes))

    @cached_property
    def networks(self) -> dict[str, Network]:
        """The loaded, frozen sources, in the recipe's order."""
        from edgedistill.sources import registry

        return {section.name: registry.load(section, self.base) for section in self.recipe.sources}

    @property
    def headless(self) -> list[str]:
        """Names of the sources without classes."""
        return [name for name, network in self.networks.items() if not network.has_classes]

    @cached_property
    def splits(self) -> Splits:
        """The target's images, decoded once at the largest input size of the sources and students."""
        from edgedistill.data.load import load_splits

        sizes = [*(spec.input_px for spec in self.candidates), *(net.input_px for net in self.networks.values())]
        px = max([SMALLEST_PX, *sizes])
        cache = self.run.cache / "images"
        splits = load_splits(self.recipe.data, self.base, cache, self.recipe.seed, px=px, fold=self.fold)
        if self.reopened:
            require_recorded(self.run, splits)
        splits = splits.shipping() if self.ships else splits
        return splits if self.half is None else splits.without_half(self.half)

    @cached_property
    def source_outputs(self) -> dict[str, SourceOutputs]:
        """Features and pseudo-labels of every source on all images of the train store, cached."""
        from edgedistill.distributed import processes
        from edgedistill.sources.outputs import compute_outputs

        store, is_leader = self.splits.train, processes.team().is_leader
        outputs_by_source = {}
        for name, network in self.networks.items():
            with bar(f"{name} on {store.n} images at {network.input_px} px", store.n) as progress:
                try:
                    outputs_by_source[name] = compute_outputs(
                        network,
                        store.resized,
                        data_hash=store.pixels_hash,
                        cache=self.run.cache / "sources",
                        progress=progress,
                        order_others=partial(self.order, "infer", name=name) if is_leader else None,
                    )
                except InputError as error:
                    raise InputError(f"sources.{name}: {error.message}", error.fix) from None
        return outputs_by_source

    @property
    def view(self) -> View:
        """How a picture is converted to a square: those of shards and those that are predicted as those of `data`."""
        from edgedistill.data.images import View

        return View(px=self.splits.train.px, fit=self.recipe.data.fit, limits=self.splits.limits)

    @cached_property
    def shards(self) -> tuple[LabeledShard, ...]:
        """The recipe's shards with every source's outputs, cached.

        Images with the pixels of an image of `data` are excluded.
        """
        import numpy as np

        from edgedistill.data.shards import fresh_rows
        from edgedistill.distill.stream import LabeledShard

        if self.recipe.unlabeled is None:
            return ()
        shards, outputs = zip(*self._label(self.networks, "label"), strict=True)
        data_hashes = np.concatenate([self.splits.train.hashes, self.splits.test_set.store.hashes])
        rows = fresh_rows(shards, data_hashes)
        return tuple(
            LabeledShard(shard=shard, rows=shard_rows, outputs=shard_outputs)
            for shard, shard_rows, shard_outputs in zip(shards, rows, outputs, strict=True)
        )

    @cached_property
    def streamed_shards(self) -> tuple[LabeledShard, ...]:
        """The shards with all that the method learns from: also with the outputs of the teacher's tuned sources."""
        if "teacher" not in self.method.needs or not self.fitted.networks:
            return self.shards
        shards = self.shards  # first: the other processes would wait within one order for the next
        tuned = self._label(self.fitted.networks, "label_tuned")
        return tuple(
            replace(labeled, outputs={**labeled.outputs, **outputs})
            for labeled, (_, outputs) in zip(shards, tuned, strict=True)
        )

    def _label(self, networks: Mapping[str, Network], work: str) -> list[tuple[Shard, dict[str, SourceOutputs]]]:
        """Every shard with the outputs of some networks, one shard at a time; several processes divide them."""
        from edgedistill.data.shards import addresses
        from edgedistill.distributed import processes
        from edgedistill.sources.shard_outputs import label_shard

        assert self.recipe.unlabeled is not None, "there are shards"
        urls, team = addresses(self.recipe.unlabeled, self.base), processes.team()
        label = partial(label_shard, view=self.view, networks=networks, cache=self.run.cache)
        if team.is_leader:
            self.order(work)
        with bar(f"label {len(urls)} shards", len(urls)) as progress:
            for url in urls[team.rank :: team.size]:
                label(url, progress=progress)
        processes.all_gather(None)  # the other processes have labeled their shards
        return [label(url) for url in urls]

    @property
    def method(self) -> Method:
        """The recipe's distillation method."""
        from edgedistill.distill.methods import METHODS

        return METHODS[self.recipe.distill.method.name]

    @property
    def weights(self) -> SourceWeights:
        """The source weights that the step weigh wrote."""
        return artifacts.WEIGHTS.read(self.run)

    @cached_property
    def prior(self) -> Prior | None:
        """The recipe's prior, `labels` from the labels of this training; None where it states none."""
        from edgedistill.labels import prior

        data, splits = self.recipe.data, self.splits
        return prior.from_recipe(data.prior, splits.classes, splits.label_counts, data.score)

    @property
    def class_alphas(self) -> dict[str, float]:
        """The weights of the sources with classes, for the methods that distill from these."""
        # from the networks, not from the file: before sources could be headless, CLIP's projection passed for classes
        return replace(self.weights, features_only=tuple(self.headless)).class_alphas

    @cached_property
    def fitted_on_sources(self) -> FittedTeacher:
        """The teacher without a peer, fitted on the labeled images, and its tuned sources."""
        from edgedistill.steps.teacher import fit_teacher

        return fit_teacher(self)

    @cached_property
    def fitted(self) -> FittedTeacher:
        """The teacher of this training, joined by the peer where it teaches."""
        from edgedistill.steps.teacher import with_peer

        return with_peer(self, self.fitted_on_sources) if self.peer_teaches else self.fitted_on_sources

    @property
    def teacher(self) -> Teacher:
        """The mixture of the sources' probes: class probabilities of every train image."""
        return self.fitted.teacher

    def stream(self, px: int) -> Stream | None:
        """The shards' images at a student's input size; None if the recipe names no shards."""
        if px not in self._stream_by_px:  # a stream holds images in memory: one size at a time
            self._stream_by_px.clear()
            self._stream_by_px[px] = self._new_stream(px)
        return self._stream_by_px[px]

    @cached_property
    def _stream_by_px(self) -> dict[int, Stream | None]:
        return {}

    def _new_stream(self, px: int) -> Stream | None:
        from edgedistill.distill.stream import Stream

        if self.recipe.unlabeled is None:
            return None
        return Stream(
            shards=self.streamed_shards,
            view=self.view,
            px=px,
            seed=self.recipe.seed,
            mixed=self.recipe.unlabeled.mixed,
            sources=tuple(self.method.shares(self.class_alphas, self.recipe.distill.method.options)),
            teacher=self.teacher.predict if "teacher" in self.method.needs else None,
        )

    def material(self, px: int, held_out: int = 0) -> Material:
        """The training material at input size `px`; `held_out` unlabeled images, at most a quarter, are held out."""
        import numpy as np

        from edgedistill.data.splits import evenly_spaced
        from edgedistill.distill.batches import Material
        from edgedistill.labels.prior import label_terms

        splits, n_unlabeled = self.splits, len(self.splits.unlabeled_rows)
        counts_C = np.bincount(splits.labeled_labels, minlength=len(splits.classes))
        weights_C, shift_C = label_terms(
            self.recipe.distill.class_weights, counts_C, self.prior, self.recipe.data.score
        )
        held_out_positions = evenly_spaced(n_unlabeled, min(held_out, n_unlabeled // 4))
        probs = {name: outputs.probs_NK for name, outputs in self.source_outputs.items()}
        return Material(
            images_NHWC=splits.train.resized(px),
            labeled=splits.labeled_rows,
            labels=splits.labeled_labels,
            unlabeled=np.delete(splits.unlabeled_rows, held_out_positions),
            val=splits.val_rows,
            val_labels=splits.val_labels,
            source_probs={name: probs_NK for name, probs_NK in probs.items() if probs_NK is not None},
            alphas=self.class_alphas,
            held_out=splits.unlabeled_rows[held_out_positions],
            teacher_NC=self.teacher.probs_NC if "teacher" in self.method.needs else None,
            stream=self.stream(px) if self.method.uses_more_than_labels else None,
            class_weights_C=weights_C,
            label_shift_C=shift_C,
            units_L=splits.units_N[splits.labeled_rows],
        )

    def test_images(self, px: int) -> tuple[Any, Any]:
        """The test images at `px`, uint8 [N, px, px, 3], and their labels [N]."""
        test = self.splits.open_test()
        return test.store.resized(px), test.labels_N

    def compared_images(self, px: int) -> tuple[Any, Any]:
        """The images on which graphs and devices are compared, uint8 [N, px, px, 3], and their labels [N].

        The test images; with folds, where the student that ships has none, the reserve, with the label -1.
        """
        import numpy as np

        if self.splits.n_test or self.splits.protocol != "folds":
            return self.test_images(px)
        rows = self.splits.witness_rows
        return self.splits.train.resized(px)[rows], np.full(len(rows), -1, dtype=np.int64)

    def calibration_images(self, px: int) -> Any:
        """Calibration images of train, with other pixels than those of val and test, uint8 [N, px, px, 3]."""
        rows = self.splits.calibration_rows(self.recipe.quantize.calibration_images, self.recipe.seed)
        return self.splits.train.resized(px)[rows]

    @property
    def checkpoint(self) -> Checkpoint:
        """The trained student of this run; its path is relative to `shipped.run`."""
        return artifacts.RESULT.read(artifacts.shipped(self.run))

    @property
    def exported(self) -> list[OnnxModel]:
        """The fp32 graph, and the fp16 graph if the recipe enables it."""
        return list(artifacts.EXPORTED.read(self.run))

    @property
    def models(self) -> list[OnnxModel]:
        """All graphs, fp32 first."""
        return [*self.exported, *artifacts.QUANTIZED.read(self.run)]

    @property
    def shipped_models(self) -> list[OnnxModel]:
        """All graphs of the bundle: those of ONNX, and the one for ncnn if the recipe enables it."""
        return [*self.models, *((artifacts.NCNN.find(self.run) or ()) if self.recipe.export.ncnn else ())]

    @property
    def guarded(self) -> tuple[Guarded, ...]:
        """The accuracy guard's outcome for each target; empty if nothing was quantized."""
        return artifacts.GUARD.find(self.run) or ()

    @property
    def default_graph(self) -> str:
        """Name of the graph for CPUs: the graph chosen by the step keep, else fp32."""
        kept = artifacts.KEPT.read(self.run)
        return next((entry.artefact for entry in kept if entry.target == "cpu"), self.models[0].name)

    def fold_graph(self, answers: Mapping[str, Any]) -> str:
        """The graph of the folds' students, "int8" or "fp32", that answers as the default graph does."""
        is_int8 = next(model.precision == "int8" for model in self.models if model.name == self.default_graph)
        return "int8" if is_int8 and "int8" in answers else "fp32"

    @property
    def inventory(self) -> Path | None:
        """The recipe's device inventory, else deploy/devices.yaml in the current folder, if it exists."""
        from edgedistill.devices.inventory import path_for

        return path_for(self.recipe.bench.inventory, self.base)

    def device_facts(self, name: str) -> list[Any]:
        """What a latency on a device depends on besides the graph: one name may refer to another machine later."""
        from edgedistill.devices import inventory as devices

        device = devices.find(devices.load(self.inventory), name)
        settings = {key: setting for key, setting in asdict(device).items() if key != "backends"}
        return [settings, environment.machine() if device.transport == "local" else []]
