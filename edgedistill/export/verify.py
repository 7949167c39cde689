"""The ladder: torch and every artifact on the same test images; agreement, accuracy with interval, gates.

N images, H x W pixels, C target classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgedistill.agent import metrics
from edgedistill.export.infer import artifact_name, check_images, predict_onnx, relative_error
from edgedistill.labels.calibration import expected_loss
from edgedistill.recipe.schema import Export
from edgedistill.records import Accuracy, Gate, Ladder, OnnxModel, OutOfFold, Rung

__all__ = ["artifact_name", "ladder", "predict_onnx"]

MAX_WORST = 12
MAX_MISTAKES = 24


def ladder(
    torch_logits_NC: np.ndarray,
    models: Sequence[OnnxModel],
    run: Path,
    images_NHWC: np.ndarray,
    score: Callable[[np.ndarray], Accuracy],
    settings: Export,
) -> tuple[Ladder, dict[str, np.ndarray]]:
    """Run every artifact on the test images and compare it with torch.

    The graph for TensorRT is simulated: its Q/DQ pairs are computed literally, in float, on the CPU.

    Args:
        torch_logits_NC: the student's own logits on `images_NHWC`, float [N, C].
        models: the artifacts, `path` relative to `run`.
        run: the run directory.
        images_NHWC: uint8 [N, px, px, 3].
        score: accuracy of logits on `images_NHWC`, float [N, C].
        settings: the bounds of the gates on the fp32 graph. A gate that fails is recorded, not raised.

    Returns:
        The ladder, torch first, with the indices of the images on which an int8 graph is furthest from torch (at most
        12, furthest first); and the logits [N, C] by artifact name, including torch's.

    Raises:
        InputError: `images_NHWC` is not uint8 [N, px, px, 3] with N >= 1.
        EdgeDistillError: ONNX Runtime cannot load a graph.
    """
    check_images(images_NHWC)
    logits = {"torch": torch_logits_NC}
    for model in models:
        logits[artifact_name(model)] = predict_onnx(run / model.path, images_NHWC, simulate=_simulated(model))
    parent = next((model.parent_sha256 for model in models if model.precision == "fp32"), "")
    torch_rung = Rung(
        artefact="torch",
        sha256=parent,
        precision="fp32",
        target="any",
        backend="torch",
        accuracy=score(torch_logits_NC),
        agreement_with_torch=1.0,
    )
    rungs = [_rung(model, logits[artifact_name(model)], torch_logits_NC, score) for model in models]
    int8 = [logits[artifact_name(model)] for model in models if model.precision == "int8"]
    return Ladder(
        rungs=(torch_rung, *rungs), gates=_gates(logits, settings), worst=_worst(torch_logits_NC, int8)
    ), logits


def _simulated(model: OnnxModel) -> bool:
    return model.target == "tensorrt"


def _rung(
    model: OnnxModel, logits_NC: np.ndarray, torch_logits_NC: np.ndarray, score: Callable[[np.ndarray], Accuracy]
) -> Rung:
    return Rung(
        artefact=artifact_name(model),
        sha256=model.sha256,
        precision=model.precision,
        target=model.target,
        backend="onnxruntime-cpu",
        accuracy=score(logits_NC),
        agreement_with_torch=metrics.agreement(torch_logits_NC.argmax(1), logits_NC.argmax(1)),
        simulated=_simulated(model),
    )


def accuracy(logits_NC: np.ndarray, labels_N: np.ndarray) -> Accuracy:
    """The accuracy of logits, float [N, C], against labels [N]."""
    return Accuracy(**metrics.accuracy(labels_N, logits_NC.argmax(1)))


def estimated(logits_NC: np.ndarray, student_NC: np.ndarray, out_of_fold: OutOfFold) -> Accuracy:
    """The accuracy of an artifact of the student that ships with folds, whose images have no labels.

    That of the folds' students, less what is expected to be lost where the artifact answers otherwise than the
    student; the folds' own int8 graphs stand beside it in the record.
    """
    reference = out_of_fold.fp32
    loss = float(expected_loss(student_NC, logits_NC, out_of_fold.temperature).mean())
    (low, high), (low_balanced, high_balanced) = reference.top1_ci95, reference.balanced_ci95
    return Accuracy(
        n=reference.n,
        top1=max(0.0, reference.top1 - loss),
        top1_ci95=(max(0.0, low - loss), max(0.0, high - loss)),
        balanced=max(0.0, reference.balanced - loss),
        balanced_ci95=(max(0.0, low_balanced - loss), max(0.0, high_balanced - loss)),
    )


def _gates(logits: Mapping[str, np.ndarray], settings: Export) -> tuple[Gate, ...]:
    if "fp32" not in logits:
        return ()
    agreement = metrics.agreement(logits["torch"].argmax(1), logits["fp32"].argmax(1))
    error = relative_error(logits["torch"], logits["fp32"])
    return (
        Gate(
            name="fp32 agreement",
            value=agreement,
            bound=f">= {settings.min_agreement:g}",
            passed=agreement >= settings.min_agreement,
        ),
        Gate(
            name="fp32 relative error",
            value=error,
            bound=f"<= {settings.max_relative_error:g}",
            passed=error <= settings.max_relative_error,
        ),
    )


def furthest(torch_logits_NC: np.ndarray, int8: Mapping[str, np.ndarray]) -> list[str]:
    """The int8 artifact that is furthest from torch, for each image."""
    if not int8:
        return []
    return [list(int8)[index] for index in _distances(torch_logits_NC, list(int8.values())).argmax(axis=0)]


def _distances(torch_logits_NC: np.ndarray, int8: Sequence[np.ndarray]) -> np.ndarray:
    """Total variation distance between torch's class probabilities and each int8 graph's, [graphs, N]."""
    torch_probs_NC = _softmax(torch_logits_NC)
    return np.stack([np.abs(torch_probs_NC - _softmax(logits_NC)).sum(1) / 2 for logits_NC in int8])


def _worst(torch_logits_NC: np.ndarray, int8: Sequence[np.ndarray]) -> tuple[int, ...]:
    """The images on which the class probabilities of an int8 graph are furthest from torch's, furthest first."""
    if not int8:
        return ()
    distance_N = _distances(torch_logits_NC, int8).max(axis=0)
    order = np.argsort(-distance_N, kind="stable")[:MAX_WORST]
    return tuple(int(image) for image in order if distance_N[image] > 0)


def _softmax(logits_NC: np.ndarray) -> np.ndarray:
    powers = np.exp(logits_NC - logits_NC.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def mistakes(images_NHWC: np.ndarray, labels_N: np.ndarray, logits_NC: np.ndarray) -> dict[str, np.ndarray]:
    """The most confident mistakes of an artifact, at most 24: images, labels, predicted, confidence."""
    probs_NC = _softmax(logits_NC)
    predicted_N, confidence_N = probs_NC.argmax(axis=1), probs_NC.max(axis=1)
    wrong = np.flatnonzero(predicted_N != labels_N)
    rows = wrong[np.argsort(-confidence_N[wrong], kind="stable")[:MAX_MISTAKES]]
    return {
        "images": images_NHWC[rows],
        "labels": labels_N[rows],
        "predicted": predicted_N[rows],
        "confidence": confidence_N[rows],
    }
