"""A peer: the same student, trained on labels alone, whose answers are averaged with the teacher's.

Probes of frozen features and a net that is fine-tuned to the labels err on different images; and where the features of
the sources tell the target's classes poorly, it is the fine-tuned net that knows them (co-training, Blum and Mitchell,
COLT 1998; averaged pseudo-labels of several fine-tuned nets, Zhang, Mai, Nguyen and Chao, NeurIPS 2025, arXiv
2503.09707).

What the peer knows cannot be told on the labels that it was trained on. It knows at least what the student's initial
features tell: its share is what a probe of these would have beside the teacher, by the likelihood of left-out labels.
So a student whose features are poor, whatever its fine-tuning makes of them, does not spoil a good teacher.

N images, L of them labeled, D features of the student, C target classes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgedistill.distill.probes import Floats, Labels, at_least_two_per_class, probe, softmax
from edgedistill.distill.teachers import Features, Teacher, mixing_weights
from edgedistill.recipe.schema import Distill
from edgedistill.recipe.section import Choice

PEER = "the peer"  # the name under which a teacher knows the peer's logits, beside the features of sources
TEMPERATURE = 2.0  # a net that was trained on few labels is too sure of what it says
EQUAL = 0.5  # the share where left-out labels tell nothing
SHRINK = 0.1  # as of the sources of a teacher


def share(teacher: Teacher, features_LD: Floats, labels: Labels) -> float:
    """The peer's share, from 0 to 1; EQUAL where no label can be left out.

    Args:
        teacher: with its held-out predictions.
        features_LD: the student's initial features of the labeled images.
        labels: theirs, the rows of `features_LD`.
    """
    if teacher.held_out_LC is None or not at_least_two_per_class(labels.labels_L, labels.units_L):
        return EQUAL
    own_LC = probe(features_LD, labels.rows, labels.labels_L, labels.classes, units_L=labels.units_L).loo_probs_LC
    each = np.arange(len(labels.labels_L)), labels.labels_L
    likelihood_LS = np.stack([teacher.held_out_LC[each], own_LC[each]], axis=1)
    return float(mixing_weights(likelihood_LS[np.isfinite(likelihood_LS).all(axis=1)], SHRINK)[1])


def averaged(probs_NC: Floats, logits_NC: Floats, share: float) -> Floats:
    """The mean of a teacher's probabilities and a peer's, which are softened and have this share."""
    return np.asarray((1.0 - share) * probs_NC + share * softmax(logits_NC / TEMPERATURE))


def joined(teacher: Teacher, logits_NC: Floats, share: float) -> Teacher:
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
