"""What each method is given: a teacher, a weak view, a frozen backbone, the heads of the sources it asks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgedistill.distill import loop
from edgedistill.distill.batches import Material, Task, draw_batch
from edgedistill.distill.loop import Fitted
from edgedistill.distill.methods import METHODS
from edgedistill.errors import InputError
from edgedistill.students.build import build_student
from tests.helpers.tiny import material, task

pytestmark = pytest.mark.usefixtures("cpu")
TRUTH = np.arange(40) % 2


def taught(wrong: bool = False) -> Material:
    """The miniature with a teacher that is right (or wrong) about every image, and two sources."""
    teacher = 0.1 + 0.8 * np.eye(2)[1 - TRUTH if wrong else TRUTH]
    two = {"knows": material().source_probs["knows"], "also": np.full((40, 4), 0.25)}
    return replace(material(two, {"knows": 0.7, "also": 0.3}), teacher_NC=teacher.astype(np.float32))


def trained(wanted: Task, terms: dict[str, float] | None = None) -> Fitted:
    def on_step(step: int, scalars: object) -> None:
        if terms is not None and isinstance(scalars, dict):
            terms.update(scalars)

    return loop.fit(build_student(wanted.spec, seed=1), wanted, None, on_step)


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
        fitted = trained(task(2, taught(), method=choice), terms)
        found = {term.removeprefix("terms/") for term in terms if term.startswith("terms/")}
        assert np.isfinite(fitted.loss)
        if name == "random":
            assert found in ({"labels", "source/knows"}, {"labels", "source/also"})
        else:
            assert found == expected[name], name


def test_the_teacher_belongs_to_its_images() -> None:
    marked = replace(taught(), teacher_NC=np.stack([np.arange(40), -np.arange(40)], axis=1).astype(np.float32))
    pixels = np.broadcast_to(np.arange(40)[:, None, None, None], (40, 16, 16, 3)).astype(np.uint8)
    drawn = draw_batch(task(3, replace(marked, images_NHWC=pixels), method="adapted"), step=1)
    assert drawn.teacher_BC is not None and drawn.source_probs == {}
    assert torch.equal(drawn.teacher_BC[:, 0].long(), drawn.images_BHWC[:, 0, 0, 0].long())


def test_a_wrong_teacher_misleads_and_a_right_one_leads() -> None:
    # lam 0: only the teacher speaks
    method = {"name": "adapted", "lam": 0.0, "sharpen": 2.0}
    right, wrong = (trained(task(40, taught(one), method=method)).val.top1 for one in (False, True))
    assert right == 1.0 and wrong == 0.0


def test_fixmatch_learns_from_the_unlabeled_images() -> None:
    # two labeled images and an agreeing view: what it draws shows in the weights
    few = replace(material(), labeled=np.arange(2), labels=TRUTH[:2])
    with_view, without = (
        trained(task(6, few, method={"name": "fixmatch", "threshold": 0.0, "weight": weight})) for weight in (1.0, 0.0)
    )
    assert not torch.equal(with_view.model.head.weight, without.model.head.weight)  # type: ignore[union-attr,arg-type]


def test_the_strong_view_is_of_the_unlabeled_images_alone() -> None:
    for method, changed in (("fixmatch", True), ("adapted", False)):
        wanted = task(3, taught(), method=method)
        drawn = draw_batch(wanted, step=1)
        view = loop.seen(drawn, wanted)
        labeled = drawn.labels_B >= 0
        assert torch.equal(view[labeled], drawn.images_BHWC[labeled])
        assert torch.equal(view[~labeled], drawn.images_BHWC[~labeled]) is not changed


def test_the_strong_view_is_drawn_from_the_steps_seed() -> None:
    wanted = task(3, taught(), method={"name": "fixmatch", "threshold": 0.0})
    before = trained(wanted).model.state_dict()
    torch.manual_seed(99)
    assert all(torch.equal(one, before[name]) for name, one in trained(wanted).model.state_dict().items())


def test_a_linear_probe_moves_the_head_alone() -> None:
    wanted = task(6, method="linear_probe")
    before = build_student(wanted.spec, seed=1)
    after = trained(wanted).model
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert torch.equal(old, new) != name.startswith("head."), name


def test_frozen_modules_stay_and_the_others_move() -> None:
    wanted = task(4, freeze=["stem"])
    before, after = build_student(wanted.spec, seed=1), trained(wanted).model
    moved = {
        name.split(".")[1]
        for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert "stem" not in moved and "stages" in moved


def test_freezing_what_is_not_there() -> None:
    with pytest.raises(InputError, match="no module stemm; did you mean stem"):
        trained(task(1, freeze=["stemm"]))


def test_bfloat16_is_another_arithmetic_and_learns_as_well() -> None:
    full, half = (trained(task(30, precision=precision)) for precision in ("float32", "bfloat16"))
    assert not torch.equal(full.model.head.weight, half.model.head.weight)  # type: ignore[union-attr,arg-type]
    assert half.model.head.weight.dtype == torch.float32 and half.val.top1 == full.val.top1 == 1.0  # type: ignore[union-attr]


def test_only_the_sources_in_use_get_heads() -> None:
    assert task(1, taught(), method="nearest").sources == ("knows",)
    assert task(1, taught(), method="weighted").sources == ("knows", "also")
    assert task(1, taught(), method="adapted").sources == ()
    assert len(task(1, taught(), method="linear_probe").unlabeled) == 0
    assert len(task(1, taught(), method="fixmatch").unlabeled) == 16


@pytest.mark.parametrize("method", ["fixmatch", "consistent"])
def test_consistency_without_unlabeled_images(method: str) -> None:
    few = replace(taught(), unlabeled=np.arange(0))
    terms: dict[str, float] = {}
    trained(task(2, few, method=method), terms)
    assert terms["terms/consistency"] == 0.0


def test_the_held_out_loss_of_fixmatch_is_that_of_its_labels() -> None:
    # its consistency is 0 for a student that is sure of nothing, which must not make that one the best
    one = task(3, material(), method={"name": "fixmatch", "threshold": 1.0})
    assert trained(one).loss > 0.0
