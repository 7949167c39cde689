"""The inputs of each method: a teacher, a weak view, a frozen backbone, and the heads of its sources."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgedistill.distill import loop
from edgedistill.distill.batches import Material, Task, draw_batch
from edgedistill.distill.loop import TrainedStudent
from edgedistill.distill.methods import METHODS
from edgedistill.errors import InputError
from edgedistill.students.build import build_student
from tests.helpers.tiny import make_material, task

pytestmark = pytest.mark.usefixtures("cpu")
TRUTH = np.arange(40) % 2


def material_with_teacher(wrong: bool = False) -> Material:
    """Return the tiny material with two sources and a teacher that is right (or wrong) about every image."""
    teacher = 0.1 + 0.8 * np.eye(2)[1 - TRUTH if wrong else TRUTH]
    two = {"knows": make_material().source_probs["knows"], "also": np.full((40, 4), 0.25)}
    return replace(make_material(two, {"knows": 0.7, "also": 0.3}), teacher_NC=teacher.astype(np.float32))


def train(training_task: Task, terms: dict[str, float] | None = None) -> TrainedStudent:
    def on_step(step: int, scalars: object) -> None:
        if terms is not None and isinstance(scalars, dict):
            terms.update(scalars)

    return loop.fit(build_student(training_task.spec, seed=1), training_task, None, on_step)


def test_every_method_trains_and_logs_its_terms() -> None:
    expected = {
        "transfer": {"labels"},
        "linear_probe": {"labels"},
        "fixmatch": {"labels", "consistency"},
        "nearest": {"labels", "source/knows"},
        "single": {"labels", "source/also"},
        "equal": {"labels", "source/knows", "source/also"},
        "weighted": {"labels", "source/knows", "source/also"},
        "adapted": {"labels", "teacher"},
        "consistent": {"labels", "teacher", "consistency"},
        "combined": {"labels", "teacher", "source/knows", "source/also"},
    }
    for name in METHODS:
        terms: dict[str, float] = {}
        choice = {"name": name, "source": "also"} if name == "single" else {"name": name}
        fitted = train(task(2, material_with_teacher(), method=choice), terms)
        actual = {term.removeprefix("terms/") for term in terms if term.startswith("terms/")}
        assert np.isfinite(fitted.loss)
        if name == "random":
            assert actual in ({"labels", "source/knows"}, {"labels", "source/also"})
        else:
            assert actual == expected[name], name


def test_teacher_rows_match_their_images() -> None:
    marked = replace(
        material_with_teacher(), teacher_NC=np.stack([np.arange(40), -np.arange(40)], axis=1).astype(np.float32)
    )
    pixels = np.broadcast_to(np.arange(40)[:, None, None, None], (40, 16, 16, 3)).astype(np.uint8)
    batch = draw_batch(task(3, replace(marked, images_NHWC=pixels), method="adapted"), step=1)
    assert batch.teacher_BC is not None and batch.source_probs == {}
    assert torch.equal(batch.teacher_BC[:, 0].long(), batch.images_BHWC[:, 0, 0, 0].long())


def test_student_follows_right_and_wrong_teacher() -> None:
    # lam 0: the loss is the teacher's alone
    method = {"name": "adapted", "lam": 0.0, "sharpen": 2.0}
    right, wrong = (
        train(task(40, material_with_teacher(is_wrong), method=method)).val.top1 for is_wrong in (False, True)
    )
    assert right == 1.0 and wrong == 0.0


def test_fixmatch_learns_from_unlabeled_images() -> None:
    # two labeled images and a threshold of 0: the effect of the unlabeled images shows in the weights
    few = replace(make_material(), labeled=np.arange(2), labels=TRUTH[:2])
    with_view, without = (
        train(task(6, few, method={"name": "fixmatch", "threshold": 0.0, "weight": weight})) for weight in (1.0, 0.0)
    )
    assert not torch.equal(with_view.model.head.weight, without.model.head.weight)  # type: ignore[union-attr,arg-type]


def test_strong_view_changes_only_unlabeled_images() -> None:
    for method, changed in (("fixmatch", True), ("adapted", False)):
        training_task = task(3, material_with_teacher(), method=method)
        batch = draw_batch(training_task, step=1)
        view = loop.strong_view(batch, training_task)
        labeled = batch.labels_B >= 0
        assert torch.equal(view[labeled], batch.images_BHWC[labeled])
        assert torch.equal(view[~labeled], batch.images_BHWC[~labeled]) is not changed


def test_strong_view_follows_the_seed_of_the_step() -> None:
    training_task = task(3, material_with_teacher(), method={"name": "fixmatch", "threshold": 0.0})
    before = train(training_task).model.state_dict()
    torch.manual_seed(99)
    assert all(torch.equal(tensor, before[name]) for name, tensor in train(training_task).model.state_dict().items())


def test_linear_probe_trains_only_the_head() -> None:
    training_task = task(6, method="linear_probe")
    before = build_student(training_task.spec, seed=1)
    after = train(training_task).model
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert torch.equal(old, new) != name.startswith("head."), name


def test_frozen_modules_stay_while_others_train() -> None:
    training_task = task(4, freeze=["stem"])
    before, after = build_student(training_task.spec, seed=1), train(training_task).model
    moved = {
        name.split(".")[1]
        for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert "stem" not in moved and "stages" in moved


def test_unknown_frozen_module_is_refused() -> None:
    with pytest.raises(InputError, match="no module stemm; did you mean stem"):
        train(task(1, freeze=["stemm"]))


def test_bfloat16_differs_from_float32_and_reaches_its_accuracy() -> None:
    full, half = (train(task(30, precision=precision)) for precision in ("float32", "bfloat16"))
    assert not torch.equal(full.model.head.weight, half.model.head.weight)  # type: ignore[union-attr,arg-type]
    assert half.model.head.weight.dtype == torch.float32 and half.val.top1 == full.val.top1 == 1.0  # type: ignore[union-attr]


def test_only_sources_in_use_get_heads() -> None:
    assert task(1, material_with_teacher(), method="nearest").sources == ("knows",)
    assert task(1, material_with_teacher(), method="weighted").sources == ("knows", "also")
    assert task(1, material_with_teacher(), method="adapted").sources == ()
    assert len(task(1, material_with_teacher(), method="linear_probe").unlabeled) == 0
    assert len(task(1, material_with_teacher(), method="fixmatch").unlabeled) == 16


@pytest.mark.parametrize("method", ["fixmatch", "consistent"])
def test_consistency_is_zero_without_unlabeled_images(method: str) -> None:
    few = replace(material_with_teacher(), unlabeled=np.arange(0))
    terms: dict[str, float] = {}
    train(task(2, few, method=method), terms)
    assert terms["terms/consistency"] == 0.0


def test_held_out_loss_of_fixmatch_is_that_of_its_labels() -> None:
    # the consistency term is 0 for an unconfident student, which must not make it the best
    training_task = task(3, make_material(), method={"name": "fixmatch", "threshold": 1.0})
    assert train(training_task).loss > 0.0
