"""Every loss against numbers worked out by hand for a batch of two images.

Target logits (0, 0) and (ln 3, 0): probabilities (1/2, 1/2) and (3/4, 1/4). Source a has two classes and the same
logits, source b three classes and logits 0: probabilities 1/3.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from edgedistill.distill.methods import METHODS, Batch, Terms, sharpened, source_loss
from edgedistill.errors import InputError
from edgedistill.recipe.options import option_problems

LN2, LN3 = math.log(2), math.log(3)
# both images labeled 0: (ln 2 + ln 4/3) / 2 = (0.693147 + 0.287682) / 2
LABELS = 0.490415
# image 1: pseudo-label (1, 0): ln 2; image 2: (1/2, 1/2): (ln 4/3 + ln 4) / 2 = 0.836988; their mean
A = 0.765068
# 1/3 for every class, for any pseudo-label
B = LN3
ALPHAS = {"a": 0.75, "b": 0.25}


def batch(labels: tuple[int, int] = (0, 0)) -> Batch:
    logits = torch.tensor([[0.0, 0.0], [LN3, 0.0]])
    return Batch(
        target_logits_BC=logits.clone().requires_grad_(),
        labels_B=torch.tensor(labels),
        source_logits={"a": logits.clone().requires_grad_(), "b": torch.zeros(2, 3, requires_grad=True)},
        source_probs={
            "a": torch.tensor([[1.0, 0.0], [0.5, 0.5]]),
            "b": torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]),
        },
        teacher_probs_BC=torch.tensor([[1.0, 0.0], [0.5, 0.5]]),
        weak_logits_UC=torch.tensor([[math.log(9), 0.0]] * sum(label < 0 for label in labels)).reshape(-1, 2),
    )


def options_of(name: str) -> dict[str, str]:
    """Return the options that a method requires."""
    return {"source": "a"} if name == "single" else {}


def floats(terms: Terms) -> dict[str, float]:
    return {name: float(term.detach()) for name, term in terms.items()}


def test_weighted_by_hand() -> None:
    # lam 0.8: 0.8 LABELS, 0.2 * 0.75 * A / ln 2, 0.2 * 0.25 * B / ln 3
    expected = {"labels": 0.8 * LABELS, "source/a": 0.15 * A / LN2, "source/b": 0.05}
    assert floats(METHODS["weighted"].loss(batch(), ALPHAS)) == pytest.approx(expected, rel=1e-5)


def test_lam_and_normalize_by_hand() -> None:
    expected = {"labels": 0.4 * LABELS, "source/a": 0.6 * 0.75 * A, "source/b": 0.6 * 0.25 * B}
    assert floats(METHODS["weighted"].loss(batch(), ALPHAS, lam=0.4, normalise=False)) == pytest.approx(
        expected, rel=1e-5
    )


def test_share_of_the_labels_moves_over_the_run() -> None:
    def shares(progress: float, **options: float) -> list[float]:
        terms = floats(METHODS["weighted"].loss(replace(batch(), progress=progress), {"a": 1.0, "b": 0.0}, **options))
        return [terms["labels"], terms["source/a"]]

    whole = [shares(0.0, lam=1.0)[0], shares(0.0, lam=0.0)[1]]
    for progress, lam in ((0.0, 0.2), (0.5, 0.6), (1.0, 1.0)):
        expected = [lam * whole[0], (1.0 - lam) * whole[1]]
        assert shares(progress, lam=0.2, lam_last=1.0) == pytest.approx(expected)
    assert shares(0.7, lam=0.2) == shares(0.0, lam=0.2)


def test_temperature_by_hand() -> None:
    # T = 2: sqrt(0.9) : sqrt(0.1) = 3 : 1, and logits (2 ln 3, 0) / 2 give 3 : 1 as well. Cross-entropy of (3/4, 1/4)
    # with itself: 3/4 ln 4/3 + 1/4 ln 4 = 0.215762 + 0.346574 = 0.562335; times T^2: 2.249341
    probs_BK, logits_BK = torch.tensor([[0.9, 0.1]] * 2), torch.tensor([[2 * LN3, 0.0]] * 2)
    assert float(source_loss(logits_BK, probs_BK, 2.0, False)) == pytest.approx(2.249341, rel=1e-5)
    assert float(source_loss(logits_BK, probs_BK, 2.0, True)) == pytest.approx(2.249341 / LN2, rel=1e-5)


def test_temperature_softens_a_certain_source_without_a_nan() -> None:
    # (1, 0) is kept off 0 by 1e-8: sqrt gives 1 : 1e-4; logits 0 make the loss ln 2 for any shares, times T^2 = 4
    logits_BK = torch.zeros(1, 2, requires_grad=True)
    loss = source_loss(logits_BK, torch.tensor([[1.0, 0.0]]), 2.0, False)
    assert float(loss.detach()) == pytest.approx(4 * LN2, rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    # d/dz = T (softmax - softened) = 2 (1/2 - 1/1.0001) and the opposite
    assert logits_BK.grad is not None
    assert logits_BK.grad[0].tolist() == pytest.approx([2 * (0.5 - 1 / 1.0001), 2 * (1 / 1.0001 - 0.5)], rel=1e-4)


def test_source_head_that_agrees_has_no_gradient() -> None:
    probs_BK = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    logits_BK = probs_BK.log().requires_grad_()
    source_loss(logits_BK, probs_BK, 1.0, True).backward()  # type: ignore[no-untyped-call]
    assert logits_BK.grad is not None
    assert logits_BK.grad.abs().max() < 1e-7


def test_transfer_ignores_the_sources() -> None:
    training_batch = batch()
    terms = METHODS["transfer"].loss(training_batch, {})
    assert floats(terms) == pytest.approx({"labels": LABELS}, rel=1e-5)
    terms["labels"].backward()  # type: ignore[no-untyped-call]
    assert training_batch.source_logits["a"].grad is None and training_batch.target_logits_BC.grad is not None


def test_nearest_is_weighted_with_only_the_best_source() -> None:
    nearest = floats(METHODS["nearest"].loss(batch(), ALPHAS, lam=0.3, temperature=1.5))
    assert nearest == floats(METHODS["weighted"].loss(batch(), {"a": 1.0, "b": 0.0}, lam=0.3, temperature=1.5))
    assert set(nearest) == {"labels", "source/a"}


def test_equal_ignores_the_weights() -> None:
    skewed, even = (floats(METHODS["equal"].loss(batch(), alphas)) for alphas in ({"a": 1.0, "b": 0.0}, ALPHAS))
    assert skewed == even == floats(METHODS["weighted"].loss(batch(), {"a": 0.5, "b": 0.5}))


@pytest.mark.parametrize("name", METHODS)
def test_unlabeled_images_do_not_enter_the_label_term(name: str) -> None:
    # image 1 alone is labeled: ln 2, not ln 2 / 2
    scale = {"transfer": 1.0, "linear_probe": 1.0, "fixmatch": 1.0, "adapted": 0.5, "consistent": 0.5, "combined": 0.3}
    labels = floats(METHODS[name].loss(batch((0, -1)), ALPHAS, **options_of(name)))["labels"]
    assert labels == pytest.approx(scale.get(name, 0.8) * LN2, rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_batch_without_labels_is_finite(name: str) -> None:
    training_batch = batch((-1, -1))
    terms = METHODS[name].loss(training_batch, ALPHAS, **options_of(name))
    assert floats(terms)["labels"] == 0.0
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert training_batch.target_logits_BC.grad is not None and training_batch.target_logits_BC.grad.isfinite().all()
    if not METHODS[name].needs & {"teacher", "weak"}:
        assert (training_batch.target_logits_BC.grad == 0.0).all()


def test_adapted_by_hand() -> None:
    # the teacher equals source a's pseudo-labels, and the target head has source a's logits: A again. Sharpened by 2,
    # (1, 0) and (1/2, 1/2) stay what they are
    expected = {"labels": 0.3 * LABELS, "teacher": 0.7 * A}
    for power in (1.0, 2.0):
        assert floats(METHODS["adapted"].loss(batch(), {}, lam=0.3, sharpen=power)) == pytest.approx(expected, rel=1e-5)


def test_sharpened_by_hand() -> None:
    # squares 9/16 and 1/16: 9 to 1
    assert sharpened(torch.tensor([[0.75, 0.25]]), 2.0)[0].tolist() == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize(("threshold", "expected"), [(0.85, math.log(4 / 3)), (0.95, 0.0)])
def test_fixmatch_by_hand(threshold: float, expected: float) -> None:
    # image 2 is unlabeled; its weak view gives class 0 a probability of 0.9; the strong view gives class 0 3/4
    terms = floats(METHODS["fixmatch"].loss(batch((0, -1)), {}, threshold=threshold, weight=2.0))
    assert terms == pytest.approx({"labels": LN2, "consistency": 2.0 * expected}, rel=1e-5)


def test_fixmatch_averages_over_all_unlabeled_images() -> None:
    # both are unlabeled and confident of class 0: (ln 2 + ln 4/3) / 2 = LABELS
    assert floats(METHODS["fixmatch"].loss(batch((-1, -1)), {}, threshold=0.85))["consistency"] == pytest.approx(LABELS)


def test_consistent_is_adapted_plus_fixmatch() -> None:
    consistent = floats(
        METHODS["consistent"].loss(batch((0, -1)), {}, lam=0.4, sharpen=2.0, threshold=0.85, weight=0.5)
    )
    adapted = floats(METHODS["adapted"].loss(batch((0, -1)), {}, lam=0.4, sharpen=2.0))
    assert consistent == pytest.approx({**adapted, "consistency": 0.5 * math.log(4 / 3)}, rel=1e-5)


def test_combined_by_hand() -> None:
    # 0.3 labels, 0.5 teacher, 0.2 sources: 0.2 * 0.75 * A / ln 2 and 0.2 * 0.25 * B / ln 3
    terms = floats(METHODS["combined"].loss(batch(), ALPHAS, lam=0.3, sources=0.2, sharpen=1.0))
    expected = {"labels": 0.3 * LABELS, "teacher": 0.5 * A, "source/a": 0.15 * A / LN2, "source/b": 0.05}
    assert terms == pytest.approx(expected, rel=1e-5)


def test_combined_refuses_shares_over_one() -> None:
    with pytest.raises(InputError, match="over 1"):
        METHODS["combined"].loss(batch(), ALPHAS, lam=0.8, sources=0.3)


def test_random_and_single_are_nearest_to_another_source() -> None:
    for source in ALPHAS:
        only = floats(METHODS["nearest"].loss(batch(), {source: 1.0}))
        assert floats(METHODS["single"].loss(batch(), ALPHAS, source=source)) == only
    draws = [next(iter(METHODS["random"].shares(ALPHAS, {"seed": seed}))) for seed in range(40)]
    assert 8 < draws.count("a") < 32 and set(draws) == {"a", "b"}
    assert draws[:5] == [next(iter(METHODS["random"].shares(ALPHAS, {"seed": seed}))) for seed in range(5)]


def test_single_refuses_unknown_source() -> None:
    with pytest.raises(InputError, match="no source is called c"):
        METHODS["single"].loss(batch(), ALPHAS, source="c")


@pytest.mark.parametrize("name", ["equal", "nearest", "weighted"])
def test_gradients_reach_both_heads(name: str) -> None:
    training_batch = batch((0, -1))
    torch.stack(list(METHODS[name].loss(training_batch, ALPHAS).values())).sum().backward()  # type: ignore[no-untyped-call]
    target, source = training_batch.target_logits_BC.grad, training_batch.source_logits["a"].grad
    assert target is not None and source is not None
    # the label term is over image 1: 0.8 (1/2 - 1, 1/2); image 2 has no label and gives the target head nothing
    assert target.tolist() == [pytest.approx([-0.4, 0.4]), [0.0, 0.0]]
    share = {"nearest": 1.0, "equal": 0.5, "weighted": 0.75}[name]
    # (1 - lam) alpha / ln 2, mean over two images: image 1 (1/2 - 1, 1/2), image 2 (3/4 - 1/2, 1/4 - 1/2)
    factor = 0.2 * share / LN2 / 2
    assert source.tolist() == [pytest.approx([-factor / 2, factor / 2]), pytest.approx([factor / 4, -factor / 4])]


@pytest.mark.parametrize(
    ("option", "value"), [("lam", 1.5), ("lam", -0.1), ("temperature", 0.0), ("normalise", "maybe"), ("lamb", 0.5)]
)
def test_options_are_checked_against_the_signature(option: str, value: object) -> None:
    assert option_problems(METHODS["weighted"].loss, {option: value}, ())
    assert option_problems(METHODS["weighted"].loss, {"lam": 0.5, "temperature": 4.0, "normalise": False}, ()) == []


def test_weights_and_shift_of_the_label_loss_by_hand() -> None:
    # logits 0 and labels 0, 1: the shift (ln 3, 0) makes answers of 3/4 and 1/4, so losses of ln 4/3 and ln 4
    plain = batch((0, 1))
    shifted = replace(
        plain,
        target_logits_BC=torch.zeros(2, 2),
        class_weights_C=torch.tensor([0.5, 1.5]),
        label_shift_C=torch.tensor([LN3, 0.0]),
    )
    expected = (0.5 * math.log(4 / 3) + 1.5 * math.log(4)) / 2
    assert floats(METHODS["transfer"].loss(shifted, {}))["labels"] == pytest.approx(expected, rel=1e-5)
