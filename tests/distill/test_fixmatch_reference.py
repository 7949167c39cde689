"""FixMatch's loss and gradient against a second implementation in numpy, from the paper's formulas (3) and (4).

Sohn et al., FixMatch, NeurIPS 2020: cross-entropy on the labeled images, plus the weight times the mean over all
unlabeled images of the cross-entropy of the strong view with the weak view's arg max, where the weak view's largest
probability reaches the threshold. B labeled images, U unlabeled ones, C classes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgedistill.data.pixels import normalize
from edgedistill.distill import loop
from edgedistill.distill.batches import draw_batch
from edgedistill.distill.methods import METHODS, Batch
from edgedistill.distill.state import initial_state
from edgedistill.students.build import build_student
from tests.helpers.tiny import task

WEIGHT = 0.7


def softmax(logits_NC: np.ndarray) -> np.ndarray:
    powers_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return np.asarray(powers_NC / powers_NC.sum(axis=1, keepdims=True))


def fixmatch_reference(
    labeled_BC: np.ndarray, labels_B: np.ndarray, strong_UC: np.ndarray, weak_UC: np.ndarray, *, threshold: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """The loss, and its gradient by the logits of the labeled images and of the strong view."""
    classes = labeled_BC.shape[1]
    truth_BC, p_BC = np.eye(classes)[labels_B], softmax(labeled_BC)
    supervised = -np.log((p_BC * truth_BC).sum(axis=1)).mean()
    q_UC, p_UC = softmax(weak_UC), softmax(strong_UC)
    pseudo_UC, mask_U = np.eye(classes)[q_UC.argmax(axis=1)], q_UC.max(axis=1) >= threshold
    unsupervised = -(mask_U * np.log((p_UC * pseudo_UC).sum(axis=1))).sum() / len(weak_UC)
    return (
        float(supervised + WEIGHT * unsupervised),
        (p_BC - truth_BC) / len(labels_B),
        WEIGHT * mask_U[:, None] * (p_UC - pseudo_UC) / len(weak_UC),
    )


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_are_those_of_the_paper(seed: int, threshold: float) -> None:
    labeled, unlabeled, classes = 5, 35, 10
    generator = np.random.default_rng(seed)
    logits_NC = generator.normal(scale=3.0, size=(labeled + unlabeled, classes))
    weak_UC = generator.normal(scale=3.0, size=(unlabeled, classes))
    labels_B = generator.integers(0, classes, labeled)
    reached = softmax(weak_UC).max(axis=1) >= threshold
    assert reached.all() if threshold == 0.0 else not reached.all()
    assert reached.any() or threshold == 1.0

    order = generator.permutation(labeled + unlabeled)  # labeled and unlabeled images may stand in any order
    is_labeled = order < labeled
    target_BC = torch.tensor(logits_NC[order], requires_grad=True)
    weak = torch.tensor(weak_UC[order[~is_labeled] - labeled], requires_grad=True)
    padded = np.where(is_labeled, np.append(labels_B, -1)[np.where(is_labeled, order, labeled)], -1)
    batch = Batch(
        target_logits_BC=target_BC,
        labels_B=torch.tensor(padded),
        source_logits={},
        source_probs={},
        weak_logits_UC=weak,
    )
    terms = METHODS["fixmatch"].loss(batch, {}, threshold=threshold, weight=WEIGHT)
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()  # type: ignore[no-untyped-call]

    expected, labeled_grad_BC, strong_grad_UC = fixmatch_reference(
        logits_NC[:labeled], labels_B, logits_NC[labeled:], weak_UC, threshold=threshold
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert target_BC.grad is not None
    np.testing.assert_allclose(
        target_BC.grad.numpy(), np.concatenate([labeled_grad_BC, strong_grad_UC])[order], atol=1e-12
    )
    assert weak.grad is None  # the pseudo-label is a constant


@pytest.mark.usefixtures("cpu")
def test_training_step_takes_pseudo_labels_from_the_weak_view_of_the_same_images() -> None:
    # without crops, flips and jitter the weak view is the image itself, and the strong view is not
    training_task = task(
        3,
        method={"name": "fixmatch", "threshold": 0.5, "weight": WEIGHT},
        augment={"min_area": 1.0, "hflip": False, "jitter": 0.0},
    )
    state = initial_state(build_student(training_task.spec, seed=1), 0, training_task.settings, 1)
    views: list[Tensor] = []
    logits: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        views.append(inputs[0].detach())

    def record_logits(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        logits.append(output.detach().double())

    state.model.backbone.register_forward_hook(record)  # type: ignore[union-attr,operator]
    state.model.head.register_forward_hook(record_logits)  # type: ignore[union-attr,operator]
    scalars = loop.train_step(state, training_task.loss(), training_task, step=0).read()

    batch, spec = draw_batch(training_task, step=0), training_task.spec
    images_BCHW = normalize(batch.images_BHWC, spec.mean, spec.std)
    labeled = int((batch.labels_B >= 0).sum())
    weak_view, both = views
    assert torch.allclose(weak_view, images_BCHW[labeled:], atol=1e-5)
    assert torch.allclose(both[:labeled], images_BCHW[:labeled], atol=1e-5)
    changed_U = (both[labeled:] - images_BCHW[labeled:]).abs().amax(dim=(1, 2, 3)) > 0.1
    assert changed_U.all()
    expected, _, _ = fixmatch_reference(
        logits[1][:labeled].numpy(),
        batch.labels_B[:labeled].numpy(),
        logits[1][labeled:].numpy(),
        logits[0].numpy(),
        threshold=0.5,  # of two classes: every image reaches it
    )
    assert scalars["loss"] == pytest.approx(expected, rel=1e-5)
