"""A peer: the same student, trained on labels alone, whose answers are averaged with the teacher's.

Probes of frozen features and a net that is fine-tuned to the labels err on different images; and where the features of
the sources tell the target's classes poorly, it is the fine-tuned net that knows them (co-training, Blum and Mitchell,
COLT 1998; averaged pseudo-labels of several fine-tuned nets, Zhang, Mai, Nguyen and Chao, NeurIPS 2025, arXiv
2503.09707).

What the peer knows cannot be told on the labels that it was trained on. So it is trained twice more, without one half
of the labels each time, and so is the teacher. What both say of the labels that they have not seen gives the share: the
peer has as much as is shown.

N images, H of them with a label that was held out, C target classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edgedistill.distill.probes import Floats, Labels, Rows, softmax
from edgedistill.distill.teachers import Features, Teacher
from edgedistill.labels.calibration import fit_temperature
from edgedistill.recipe.schema import Distill
from edgedistill.recipe.section import Choice

PEER = "the peer"  # the name under which a teacher knows the peer's logits, beside the features of sources
VERSION = 2  # of its share; 2: by halves of the labels; 1 asked a probe of the student's initial features
BELOW_BEST = 1.645**2 / 2  # log-likelihood: a share this far below the best one is refused at a level of 5 %, one-sided
SMALLEST = 1e-6  # probability: a wrong answer that is quite sure does not decide alone
WEIGHTS = np.linspace(0.0, 1.0, 1001)  # that are compared


@dataclass(frozen=True, kw_only=True)
class Share:
    """A peer's share.

    Attributes:
        weight: of its probabilities beside the teacher's, from 0 to 1.
        temperature: what its logits are divided by.
        judged: number of held-out labels that it was judged by.
    """

    weight: float
    temperature: float
    judged: int


UNJUDGED = Share(weight=0.0, temperature=1.0, judged=0)  # where no label can be held out, nothing is shown


def judge(teacher_HC: Floats, logits_HC: Floats, labels_H: Rows, units_H: Rows) -> Share:
    """The least share that held-out labels do not refuse, after the answers of both are calibrated on them.

    The mixture of the two is that of stacking (Wolpert 1992); its likelihood is concave in the share, so that the
    shares that are not refused by a likelihood ratio (Wilks 1938) are an interval. Its lower end is taken: few labels
    tell little, and the teacher is not given up for what may be chance. The temperature is that of Guo et al. (ICML
    2017).

    Args:
        teacher_HC: the teacher's probabilities of the images, fitted without their labels.
        logits_HC: the peer's logits, trained without them.
        labels_H: the labels.
        units_H: the unit of each image: those of one are right or wrong together, and count as one.
    """
    labels_of_each, temperature = (np.arange(len(labels_H)), labels_H), fit_temperature(logits_HC, labels_H)
    teacher_logits_HC = np.log(np.maximum(teacher_HC, SMALLEST))
    # calibrated for the comparison alone: a teacher that is too sure would seem to know less than a calibrated peer
    teacher_H = softmax(teacher_logits_HC / fit_temperature(teacher_logits_HC, labels_H))[labels_of_each]
    peer_H = softmax(logits_HC / temperature)[labels_of_each]
    mixed_HG = np.outer(teacher_H, 1.0 - WEIGHTS) + np.outer(peer_H, WEIGHTS)
    _, unit_H, size_U = np.unique(units_H, return_inverse=True, return_counts=True)
    likelihood_G = np.log(np.maximum(mixed_HG, SMALLEST)).T @ (1.0 / size_U[unit_H])
    least = np.flatnonzero(likelihood_G >= likelihood_G.max() - BELOW_BEST)[0]
    return Share(weight=float(WEIGHTS[least]), temperature=temperature, judged=len(labels_H))


def judge_by_halves(half_L: Rows, labels: Labels, answers: Callable[[int], tuple[Floats, Floats]]) -> Share:
    """`judge`, by the labels of both halves.

    Args:
        half_L: the half, 0 or 1, of each labeled image; -1 for an image in neither.
        labels: the labeled images, with their units.
        answers: returns, for a half, the teacher's probabilities and the peer's logits of its images, in their order,
            when both are trained without it; [H, C].
    """
    assert labels.units_L is not None, "they are counted"
    teacher_LC, logits_LC = (np.zeros((len(half_L), labels.classes), dtype=np.float32) for _ in range(2))
    for half in range(2):
        teacher_LC[half_L == half], logits_LC[half_L == half] = answers(half)
    scored = np.flatnonzero(half_L >= 0)
    return judge(teacher_LC[scored], logits_LC[scored], labels.labels_L[scored], labels.units_L[scored])


def averaged(probs_NC: Floats, logits_NC: Floats, share: Share) -> Floats:
    """The mean of a teacher's probabilities and a peer's, by the peer's share."""
    return np.asarray((1.0 - share.weight) * probs_NC + share.weight * softmax(logits_NC / share.temperature))


def joined(teacher: Teacher, logits_NC: Floats, share: Share) -> Teacher:
    """The teacher with a peer; for other images it takes the peer's logits as the features of PEER.

    Args:
        teacher: shares and accuracy are those of its sources.
        logits_NC: the peer's logits of the images that the teacher answers.
        share: the peer's.
    """

    def predict(features: Features) -> Floats:
        return averaged(teacher.predict(features), features[PEER], share)

    return replace(teacher, probs_NC=averaged(teacher.probs_NC, logits_NC, share), predict=predict)


def on_labels_alone(settings: Distill, batch_unlabeled: int) -> Distill:
    """The settings of the peer: as many steps, and as many images a step, all of them labeled.

    Args:
        settings: the recipe's.
        batch_unlabeled: unlabeled images that a step has by them.
    """
    update = {
        "method": Choice(name="transfer"),
        "peer": False,
        "batch_labeled": settings.batch_labeled + batch_unlabeled,
    }
    return settings.model_copy(update=update)


def on_half_the_labels(alone: Distill) -> Distill:
    """The settings of the peer without one half of the labels: half as many steps, as many passes over the others."""
    assert alone.steps != "auto", "the peer has as many as the student"
    return alone.model_copy(update={"steps": max(1, alone.steps // 2)})
