"""unknown: for each graph the temperature of its probabilities and the threshold below which it says "unknown".

They are fitted on labels that the answers were not trained on: with folds on the int8 answers of the folds' students,
from which they are carried over to the graphs that ship on images without a label; otherwise on val. Test images are
only scored. N and M images, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgedistill.console import say
from edgedistill.records import OnnxModel, Rule, Unknown
from edgedistill.run import artifacts
from edgedistill.run.artifacts import save_arrays
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step

if TYPE_CHECKING:
    import numpy as np

    from edgedistill.labels.unknown import Aim

SIMULATED = 200  # images for a graph that can only be simulated, which takes 20 times as long


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """The rules of the graphs, and answers that show what they do.

    Attributes:
        rules: the rule of each graph by name.
        labels: number of labeled images that they are fitted on.
        matched: number of images without a label on which they were carried over.
        scored: the rule of the answers with labels.
        logits_NC: these answers.
        labels_N: their labels.
        units_N: the units of their images.
        expected_MC: the default graph's answers to images as it will get them.
    """

    rules: dict[str, Rule]
    labels: int
    matched: int
    scored: Rule
    logits_NC: np.ndarray
    labels_N: np.ndarray
    units_N: np.ndarray
    expected_MC: np.ndarray


def work(context: Context) -> None:
    """Write the rule of every graph, what is expected of the default graph, and the answers that the report shows."""
    import numpy as np

    from edgedistill.labels.unknown import Aim, answered, confidence

    wish = context.recipe.bundle.unknown
    aim = Aim(coverage=wish.coverage, accuracy=wish.accuracy) if wish else Aim()
    fit = (from_folds if context.splits.protocol == "folds" else _from_val)(context, aim)
    default = fit.rules[context.default_graph]
    is_answered_M = confidence(fit.expected_MC, default.temperature) >= default.threshold
    labels, classes = fit.expected_MC.argmax(axis=1)[is_answered_M], fit.expected_MC.shape[1]
    shares_C = np.bincount(labels, minlength=classes) / max(1, len(labels))
    record = Unknown(
        coverage=aim.coverage,
        accuracy=aim.accuracy,
        labels=fit.labels,
        matched=fit.matched,
        rules=fit.rules,
        scored=fit.scored,
        answered=float(is_answered_M.mean()),
        expected_on=len(is_answered_M),
        shares=tuple(shares_C.tolist()),
    )
    confidence_N = confidence(fit.logits_NC, fit.scored.temperature)
    predicted_N = fit.logits_NC.argmax(axis=1)
    several = len(np.unique(fit.units_N)) < len(fit.units_N)
    save_arrays(
        artifacts.UNKNOWN_ANSWERS.path_in(context.run),
        labels=fit.labels_N,
        predicted=predicted_N,
        confidence=confidence_N,
        softmax=confidence(fit.logits_NC, 1.0),
        **({"units": fit.units_N} if several else {}),
    )
    artifacts.UNKNOWN.write(context.run, record)
    scored = answered(confidence_N, predicted_N == fit.labels_N, fit.scored.threshold)
    right = "" if scored.accuracy is None else f", {scored.accuracy:.1%} of them rightly"
    say(f"  temperature {default.temperature:.2f}; {scored.n} of {len(confidence_N)} images are answered{right}")


def from_folds(context: Context, aim: Aim) -> Fit:
    """The rule of the folds' students, of the graph that answers by default, carried over to every graph that ships."""
    import numpy as np

    from edgedistill.labels.unknown import LEAST_MATCHED, fitted, matched

    answers = artifacts.FOLD_ANSWERS.read(context.shipped.run)
    graph = context.fold_graph(answers)
    unlabeled = artifacts.FOLD_UNLABELED.find(context.shipped.run) or {}
    if graph not in unlabeled:  # a run of an older version has none
        unlabeled = {"rows": np.empty(0, dtype=np.int64)}
    logits_NC, labels_N = answers[graph], answers["labels"]
    rule = fitted(logits_NC, labels_N, aim)
    rules = dict.fromkeys((model.name for model in context.models), rule)
    expected_MC, n = logits_NC, len(unlabeled["rows"])
    if n >= LEAST_MATCHED:
        store, px = context.splits.train, context.checkpoint.spec.input_px
        images_NHWC = np.asarray(store.resized(px)[unlabeled["rows"]])
        for model in _run_models(context):
            rows, graph_MC = _logits(context, model, images_NHWC)
            rules[model.name] = matched(rule, unlabeled[graph][:, rows], graph_MC)
            expected_MC = graph_MC if model.name == context.default_graph else expected_MC
    return Fit(
        rules=_with_fp16(context, rules),
        labels=len(labels_N),
        matched=n if n >= LEAST_MATCHED else 0,
        scored=rule,
        logits_NC=logits_NC,
        labels_N=labels_N,
        units_N=context.splits.units_N[answers["rows"]],
        expected_MC=expected_MC,
    )


def _from_val(context: Context, aim: Aim) -> Fit:
    import numpy as np

    from edgedistill.labels.unknown import fitted

    splits, px = context.splits, context.checkpoint.spec.input_px
    rules = {model.name: Rule(temperature=1.0, threshold=0.0) for model in context.models}
    val_NHWC = np.asarray(splits.train.resized(px)[splits.val_rows])
    for model in _run_models(context) if len(val_NHWC) else ():
        rows, val_NC = _logits(context, model, val_NHWC)
        rules[model.name] = fitted(val_NC, splits.val_labels[rows], aim)
    rules = _with_fp16(context, rules)
    test_NHWC, labels_N = context.test_images(px)
    default = next(model for model in context.models if model.name == context.default_graph)
    _, test_NC = _logits(context, default, np.asarray(test_NHWC))
    return Fit(
        rules=rules,
        labels=len(splits.val_rows),
        matched=0,
        scored=rules[default.name],
        logits_NC=test_NC,
        labels_N=np.asarray(labels_N),
        units_N=splits.test_set.units_N,
        expected_MC=test_NC,
    )


def _run_models(context: Context) -> list[OnnxModel]:
    """The graphs that are run: float16, which a CPU computes slowly, answers as fp32."""
    return [model for model in context.models if model.precision != "fp16"]


def _with_fp16(context: Context, rules: dict[str, Rule]) -> dict[str, Rule]:
    return rules | {model.name: rules["fp32"] for model in context.models if model.precision == "fp16"}


def _logits(context: Context, model: OnnxModel, images_NHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the images that a graph is run on, and its logits there; a simulated graph is run on few."""
    import numpy as np

    from edgedistill.data.splits import evenly_spaced
    from edgedistill.export.infer import predict_onnx

    simulate = model.target == "tensorrt"
    rows = evenly_spaced(len(images_NHWC), SIMULATED) if simulate else np.arange(len(images_NHWC))
    return rows, predict_onnx(context.run / model.path, images_NHWC[rows], simulate=simulate)


STEP = Step(
    name="unknown",
    version=2,
    sections=("bundle",),
    after=("folds", "distill", "baseline", "export", "quantize", "keep"),
    outputs=("unknown/*",),
    work=work,
)
