"""baseline: what distilling bought, against the same student trained on labels alone and a probe of the best source.

Under `method: auto` the student trained on labels alone ships where it is clearly better: out of fold, or on val. The
test images measure the gain and decide nothing.
N images that are scored, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from edgedistill.console import bar, duration, say
from edgedistill.recipe import presets
from edgedistill.recipe.options import with_defaults
from edgedistill.records import Accuracy, Baseline, Gain
from edgedistill.run import artifacts
from edgedistill.run.artifacts import save_arrays
from edgedistill.steps import folds
from edgedistill.steps.context import Context
from edgedistill.steps.parts import SHARED, TRAINING, take_over
from edgedistill.steps.step import Step, run_steps

if TYPE_CHECKING:
    import numpy as np

Score = Literal["top1", "balanced"]
ONLY_OWN_FOLDS = (
    "with search.storage each worker has the files of its own folds alone, so that no student is trained on labels "
    "alone for each fold, and method: auto cannot fall back to labels alone"
)


def applies(context: Context) -> bool:
    """Whether the method learns from more than labels; also where a recipe now leaves out a baseline that exists."""
    from edgedistill.distill.methods import METHODS

    method = METHODS[context.recipe.distill.method.name]
    wanted = context.recipe.baseline or artifacts.BASELINE.path_in(context.run).is_file()
    return wanted and method.uses_more_than_labels


def inputs(context: Context) -> dict[str, str]:
    """Why there is no baseline, since `search.storage` is in no section's key; empty where there is one."""
    why = not_trained(context)
    return {"none": why} if why else {}


def not_trained(context: Context) -> str:
    """Why no baseline can be trained; "" if one can."""
    in_folds = (artifacts.DATA.find(context.run) or {}).get("protocol") == "folds"
    return ONLY_OWN_FOLDS if in_folds and context.recipe.search.storage else ""  # fold_workers.py


def work(context: Context) -> None:
    """Train the baseline, compare, and choose the student that ships."""
    if not context.recipe.baseline:
        say("  off: the recipe has baseline: false")
        return
    if why := not_trained(context):
        say(f"  none: {why}")
        artifacts.NO_BASELINE.write(context.run, {"why": why})
        return
    _ = context.source_outputs  # loaded once for all trainings
    part = context.labels_alone()
    take_over(context.run, part.run)
    with part.run.lock():
        record, answers = (compare_folds if context.splits.folds else compare_on_test)(context, part)
        if record.ships == "labels alone" and context.splits.folds:
            ship_from_folds(part)
    save_arrays(artifacts.BASELINE_ANSWERS.path_in(context.run), **answers)
    artifacts.BASELINE.write(context.run, record)
    say(f"  {record.why}")


def compare_on_test(context: Context, part: Context) -> tuple[Baseline, dict[str, np.ndarray]]:
    """Train on labels alone and compare on the test images; val chooses."""
    import numpy as np

    from edgedistill.labels.protocol import unit_accuracy, unit_drop

    say(f"  the same student on labels alone{predicted_time(context, 1)}")
    run_steps(part, TRAINING)
    splits, score, units_N = context.splits, context.recipe.data.score, context.splits.test_set.units_N
    images_NHWC, labels_N = context.test_images(artifacts.STUDENT.read(context.run).input_px)
    answers = {
        "labels": labels_N,
        "distilled": predicted(context, images_NHWC),
        "labels_alone": predicted(part, images_NHWC),
    }
    if context.recipe.sources:
        answers["probe"] = probe_answers(context, test_features(context))
    on_val = None
    if len(splits.val_rows):
        val_NHWC = np.asarray(context.splits.train.resized(images_NHWC.shape[1])[splits.val_rows])
        pair = predicted(context, val_NHWC), predicted(part, val_NHWC)
        on_val = gain_of(
            unit_drop(splits.val_labels, *pair, units_N=splits.units_N[splits.val_rows], score=score),
            len(splits.val_rows),
        )

    def compare(other: str) -> Gain:
        triple = unit_drop(labels_N, answers["distilled"], answers[other], units_N=units_N, score=score)
        return gain_of(triple, len(labels_N))

    def accuracy(name: str) -> Accuracy:
        return unit_accuracy(labels_N, answers[name], units_N)

    return summarize(context, answers, compare, accuracy, on_val=on_val), answers


def compare_folds(context: Context, part: Context) -> tuple[Baseline, dict[str, np.ndarray]]:
    """Train on labels alone for each fold and compare out of fold, which chooses, too."""
    import numpy as np

    from edgedistill.labels.protocol import pooled_accuracy, pooled_gain

    count = context.splits.folds.count if context.splits.folds else 0
    say(f"  {count} folds, each the same student on labels alone{predicted_time(context, count)}")
    for fold in range(count):
        trained = context.of_fold(fold).run
        if not set(SHARED) <= trained.manifest()["steps"].keys():  # another worker had it, by search.storage
            folds.run_fold(context, fold, steps=folds.STEPS, ships=True)
        take_over(trained, part.of_fold(fold).run)
    alone = folds.out_of_fold(part, TRAINING, ships=False).answers
    kept = artifacts.FOLD_ANSWERS.read(context.run)
    answers = {
        "labels": kept["labels"],
        "distilled": kept["fp32"].argmax(axis=1),
        "labels_alone": alone["fp32"].argmax(axis=1),
    }
    if context.recipe.sources:
        answers["probe"] = np.concatenate([fold_probe(context.of_fold(fold).shipping()) for fold in range(count)])
    units_N, score = context.splits.units_N[kept["rows"]], context.recipe.data.score

    def compare(other: str) -> Gain:
        triple = pooled_gain(
            kept["labels"], answers["distilled"], answers[other], units_N=units_N, count=count, score=score
        )
        return gain_of(triple, len(units_N))

    def accuracy(name: str) -> Accuracy:
        return pooled_accuracy(kept["labels"], answers[name], units_N, count)

    return summarize(context, answers, compare, accuracy), answers


def ship_from_folds(part: Context) -> None:
    """Write what a run with folds has for the student that ships, and train it on all labels."""
    folds.out_of_fold(part, TRAINING).write(part.run)
    run_steps(part, TRAINING)


def summarize(
    context: Context,
    answers: dict[str, np.ndarray],
    compare: Callable[[str], Gain],
    accuracy: Callable[[str], Accuracy],
    *,
    on_val: Gain | None = None,
) -> Baseline:
    """The record, with the choice."""
    gain, has_probe = compare("labels_alone"), "probe" in answers
    ships, why = choose(context, gain, on_val)
    return Baseline(
        ships=ships,
        why=why,
        distilled=accuracy("distilled"),
        labels_alone=accuracy("labels_alone"),
        over_labels_alone=gain,
        on_val=on_val,
        source=best_source(context) if has_probe else "",
        probe=accuracy("probe") if has_probe else None,
        over_probe=compare("probe") if has_probe else None,
    )


def choose(context: Context, gain: Gain, on_val: Gain | None) -> tuple[Literal["distilled", "labels alone"], str]:
    """The student that ships, and why. Test never chooses: with folds `gain` does, else that on val.

    Args:
        context: the run.
        gain: of distilling over labels alone, on the test images or out of fold.
        on_val: the same on val; None where no image is val.
    """
    from edgedistill.distill.methods import METHODS

    method, in_folds = context.recipe.distill.method, context.splits.folds is not None
    is_auto = presets.is_auto(with_defaults(METHODS[method.name].loss, method.model_dump()))
    deciding = gain if in_folds else on_val
    if deciding and deciding.high < 0 and is_auto:
        where = "out of fold" if in_folds else f"on the {deciding.n} images of val"
        return "labels alone", f"labels alone are better {where}, by {points(deciding, -1)}: that student ships"
    if gain.low > 0:
        return "distilled", f"distilling gains {points(gain)} over labels alone"
    if gain.high >= 0:
        return "distilled", f"no gain over labels alone is shown: {points(gain)}"
    worse = f"labels alone are better, by {points(gain, -1)}"
    if not is_auto:
        return "distilled", f"{worse}; {method.name} ships since the recipe names it: try method: transfer"
    few = f"the {on_val.n} images of val do not settle it" if on_val else "there is no val"
    return "distilled", f"{worse}; test may not choose and {few}, so the distilled student ships: try method: transfer"


def points(gain: Gain, sign: int = 1) -> str:
    """`3.1 points [0.4, 5.8]`; with sign -1 what is lost."""
    low, high = sorted((sign * gain.low, sign * gain.high))
    return f"{sign * gain.points:.1f} points [{low:.1f}, {high:.1f}]"


def gain_of(fractions: tuple[float, float, float], n: int) -> Gain:
    """A gain in points, from fractions."""
    mean, low, high = (100 * fraction for fraction in fractions)
    return Gain(points=mean, low=low, high=high, n=n)


def predicted(context: Context, images_NHWC: np.ndarray) -> np.ndarray:
    """The classes that the student of a context predicts, int64 [N]."""
    import numpy as np

    from edgedistill.distill import evaluate
    from edgedistill.students.build import load_student

    record = artifacts.RESULT.read(context.run)
    student = load_student(record.spec, context.run / record.path)
    return np.asarray(evaluate.logits(student, record.spec, images_NHWC).argmax(axis=1))


def best_source(context: Context) -> str:
    """The source of largest weight."""
    alphas = context.weights.alphas
    return max(alphas, key=lambda name: alphas[name])


def probe_answers(context: Context, features_ND: np.ndarray) -> np.ndarray:
    """The classes that a linear probe of the best source predicts from its features, int64 [N].

    It is fitted on the images that train with a label, and told the prior that the student and its teacher are told.
    """
    import numpy as np

    from edgedistill.agent.metrics import balanced
    from edgedistill.distill.probes import probe
    from edgedistill.distill.teachers import Teacher, adjusted

    name, splits = best_source(context), context.splits
    rows = np.sort(np.concatenate([splits.labeled_rows, splits.unlabeled_rows]))
    fitted = probe(
        context.source_outputs[name].features_ND[rows],
        np.searchsorted(rows, splits.labeled_rows),
        splits.labeled_labels,
        len(splits.classes),
        units_L=splits.units_N[splits.labeled_rows],
    )
    predict = fitted.predict
    assert predict is not None, "the probe was fitted to features"
    teacher = Teacher(
        probs_NC=fitted.probs_NC,
        weights={name: 1.0},
        accuracy=balanced(splits.labeled_labels, fitted.loo_probs_LC.argmax(axis=1))[0],
        predict=lambda features: predict(features[name]),
    )
    if context.prior:
        teacher = adjusted(teacher, context.prior, np.searchsorted(rows, splits.unlabeled_rows))
    return np.asarray(teacher.predict({name: features_ND}).argmax(axis=1))


def fold_probe(context: Context) -> np.ndarray:
    """The same for the images of a context's fold."""
    folds_of_labels = context.splits.folds
    assert folds_of_labels is not None, "the context is that of a fold"
    rows = folds_of_labels.rows(context.fold)
    return probe_answers(context, context.source_outputs[best_source(context)].features_ND[rows])


def test_features(context: Context) -> np.ndarray:
    """The best source's features of the test images, [N, D], cached as those of train are."""
    from edgedistill.sources.outputs import compute_outputs

    name, store = best_source(context), context.splits.open_test().store
    network = context.networks[name]
    with bar(f"{name} on {store.n} test images at {network.input_px} px", store.n) as progress:
        outputs = compute_outputs(
            network,
            store.resized,
            data_hash=store.pixels_hash,
            cache=context.run.cache / "sources",
            progress=progress,
        )
    return outputs.features_ND


def predicted_time(context: Context, trainings: int) -> str:
    """`: about 12 min in all`, from the training that has just run, which had as many images a step.

    Empty where the student on labels alone was trained before, as the peer.
    """
    if context.has_peer:
        return ""
    return duration(trainings * artifacts.RESULT.read(context.run).train_seconds)


STEP = Step(
    name="baseline",
    version=3,
    sections=("seed", "data", "unlabeled", "distill", "baseline"),
    after=("weigh", "search", "folds", "peer", "distill"),
    inputs=inputs,
    outputs=(artifacts.BASELINE.path, artifacts.BASELINE_ANSWERS.path, artifacts.NO_BASELINE.path),
    work=work,
    commits=True,
    applies=applies,
)
