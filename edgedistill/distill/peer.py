"""A peer: the same student, trained on labels alone, whose answers are averaged with the teacher's.

Probes of frozen features and a net that is fine-tuned to the labels err on different images, so that their average is
mostly better than the better one of them; and where the features of the sources tell the target's classes poorly, it
is the fine-tuned net that knows them (co-training, Blum and Mitchell, COLT 1998; averaged pseudo-labels of several
fine-tuned nets, Zhang, Mai, Nguyen and Chao, NeurIPS 2025, arXiv 2503.09707).

N images, C target classes.
"""

from __future__ import annotations

from dataclasses import replace

from edgedistill.distill.probes import Floats, softmax
from edgedistill.distill.teachers import Features, Teacher
from edgedistill.recipe.schema import Distill
from edgedistill.recipe.section import Choice

PEER = "the peer"  # the name under which a teacher knows the peer's logits, beside the features of sources
TEMPERATURE = 2.0  # a net that was trained on few labels is too sure of what it says


def averaged(probs_NC: Floats, logits_NC: Floats) -> Floats:
    """The mean of a teacher's probabilities and a peer's, which are softened."""
    return (probs_NC + softmax(logits_NC / TEMPERATURE)) / 2


def joined(teacher: Teacher, logits_NC: Floats) -> Teacher:
    """The teacher with a peer; for other images it takes the peer's logits as the features of PEER.

    Args:
        teacher: shares, probabilities and accuracy are those of its sources.
        logits_NC: the peer's logits of the images that the teacher answers.
    """

    def predict(features: Features) -> Floats:
        return averaged(teacher.predict(features), features[PEER])

    return replace(teacher, probs_NC=averaged(teacher.probs_NC, logits_NC), predict=predict)


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
