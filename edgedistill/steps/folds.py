"""folds: with few labels, the accuracy of students that are trained without one part of the labels at a time.

Everything that sees a label is fitted anew for each fold: source weights, teacher, search, student. Only the sources'
outputs on the images are shared. A fold is a run of its own below folds/, so an interrupted one goes on.
N scored images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from edgedistill.console import duration, say
from edgedistill.records import FoldScore, OutOfFold
from edgedistill.run import artifacts, interrupts
from edgedistill.run.artifacts import save_arrays
from edgedistill.run.directory import Run
from edgedistill.run.files import digest
from edgedistill.steps import candidate, distill, fold_workers, lengths, parts, peer, search, weigh
from edgedistill.steps.context import Context
from edgedistill.steps.fold_workers import FoldOutcome
from edgedistill.steps.step import Step, run_steps

if TYPE_CHECKING:
    import numpy as np

STEPS = (weigh.STEP, search.STEP, peer.STEP, distill.STEP)
ANSWERS = "answers.npz"  # of one fold, in its folder
UNLABELED = "unlabeled_"  # before the graph's name: its answers to images without a label


@dataclass(frozen=True, kw_only=True, eq=False)
class Pooled:
    """What the folds' students answer.

    Attributes:
        record: their accuracies, apart and together.
        answers: `rows` and `labels` of the scored images and the logits there by graph, [N] and [N, C].
        unlabeled: `rows` [M] of images without a label, and every student's logits there by graph, [folds, M, C].
    """

    record: OutOfFold
    answers: dict[str, np.ndarray]
    unlabeled: dict[str, np.ndarray]

    def write(self, run: Run) -> None:
        """Write it into a run."""
        save_arrays(artifacts.FOLD_ANSWERS.path_in(run), **self.answers)
        save_arrays(artifacts.FOLD_UNLABELED.path_in(run), **self.unlabeled)
        artifacts.OUT_OF_FOLD.write(run, self.record)


def inputs(context: Context) -> dict[str, str]:
    """Hashes of what the folds read from outside the run, of their int8 settings, and versions of peer and sources."""
    peers = {"peer": str(peer.STEP.version)} if context.has_peer else {}
    graphs = {"int8": candidate.answered_by(context)} if candidate.ships_int8(context) else {}
    return search.inputs(context) | peers | graphs


def applies(context: Context) -> bool:
    """Whether the labels are divided into folds, by the step weigh's facts about the data."""
    return artifacts.DATA.read(context.run).get("protocol") == "folds"


def work(context: Context) -> None:
    """Train and score a student for each fold, and pool the answers."""
    folds = context.splits.folds
    assert folds is not None, "the protocol is folds"
    _ = context.source_outputs  # loaded once for all folds
    say(f"  {folds.count} folds, each a search and a training{predicted_time(context, folds.count)}")
    pooled = out_of_fold(context, STEPS)
    pooled.write(context.run)
    if context.has_peer and not context.recipe.search.storage:
        part = context.labels_alone()
        record = artifacts.BASELINE.find(context.run)  # that student may ship: then its answers in int8 are here, too
        ships = record is not None and record.ships == "labels alone"
        out_of_fold(part, parts.TRAINING, ships=ships).write(part.run)  # what the peer on all labels is judged by
    fp32, score = pooled.record.fp32, context.recipe.data.score
    low, high = fp32.interval(score)
    say(f"  out of fold: {fp32.score(score):.1%} [{low:.1%}, {high:.1%}] over {fp32.n} images")


def out_of_fold(context: Context, steps: Sequence[Step], ships: bool = True) -> Pooled:
    """Run the steps that train a student for each fold, and pool the answers.

    Args:
        context: the run that the folds are parts of.
        steps: the steps; those that are up to date are skipped.
        ships: whether what ships is judged by the answers: then they are also in int8, if the recipe makes such a
            graph, and to images without a label.
    """
    import numpy as np

    from edgedistill.labels.calibration import fit_temperature
    from edgedistill.labels.protocol import pooled_accuracy

    splits, folds = context.splits, context.splits.folds
    assert folds is not None, "the protocol is folds"
    run = partial(run_fold, context, steps=steps, ships=ships)
    outcomes = fold_workers.outcomes(context, folds.count, run, version=STEP.version)
    names = [name for name in outcomes[0].answers if not name.startswith(UNLABELED)]
    pooled = {name: np.concatenate([outcome.answers[name] for outcome in outcomes]) for name in names}
    units_N = splits.units_N[pooled["rows"]]
    accuracies = {
        name: pooled_accuracy(pooled["labels"], pooled[name].argmax(axis=1), units_N, folds.count)
        for name in ("fp32", "int8")
        if name in pooled
    }
    record = OutOfFold(
        folds=tuple(outcome.score for outcome in outcomes),
        labels=len(splits.shipping().labeled_rows),
        unscored=tuple(splits.classes[label] for label in folds.unscored),
        temperature=fit_temperature(pooled["fp32"], pooled["labels"]),
        **accuracies,
    )
    unlabeled = {"rows": witnesses(context, ships)} | {
        name.removeprefix(UNLABELED): np.stack([outcome.answers[name] for outcome in outcomes])
        for name in outcomes[0].answers
        if name.startswith(UNLABELED)
    }
    return Pooled(record=record, answers=pooled, unlabeled=unlabeled)


def run_fold(context: Context, fold: int, *, steps: Sequence[Step], ships: bool) -> FoldOutcome:
    """Run the steps without a fold, and score the student on it."""
    from edgedistill.distill.evaluate import score

    folds = context.splits.folds
    assert folds is not None, "the protocol is folds"
    say(f"  fold {fold + 1} of {folds.count}")
    part = context.of_fold(fold)
    with part.run.lock():
        run_steps(part, steps)
        answers = fold_answers(part, folds.rows(fold), witnesses(context, ships), int8=ships)
    by_graph = {name: score(answers[name], answers["labels"]) for name in ("fp32", "int8") if name in answers}
    trained = len(part.splits.shipping().labeled_rows)
    return FoldOutcome(score=FoldScore(student=part.checkpoint.spec, trained=trained, **by_graph), answers=answers)


def witnesses(context: Context, ships: bool) -> np.ndarray:
    """Rows of the images without a label that the folds' students answer; none where nothing ships by the answers."""
    return context.splits.unlabeled_witness_rows if ships else context.splits.unlabeled_rows[:0]


def predicted_time(context: Context, count: int) -> str:
    """`: about 12 min in all`, from the search that has just run; empty if it trained no candidate."""
    trials = artifacts.TRIALS.find(context.run) or ()
    seconds = [float(trial["seconds"]) for trial in trials if trial.get("seconds")]
    if not seconds:
        return ""
    steps = lengths.training_steps(context, artifacts.STUDENT.read(context.run))
    training = max(seconds) * steps / context.recipe.search.steps
    trainings = 3 if context.has_peer else 1  # the peer's, and its halves, which are as long together
    return duration(count * (sum(seconds) + trainings * training))


def fold_answers(
    context: Context, rows: np.ndarray, unlabeled: np.ndarray, *, int8: bool = True
) -> dict[str, np.ndarray]:
    """The logits of a fold's student on the fold, float [N, C]: in float and, if wanted and the recipe does, in int8.

    They are kept in the fold's folder, with the images' `rows` (int64 [N]) and labels, and with the logits of both
    graphs on the images at the rows `unlabeled`, float [M, C].
    """
    import numpy as np

    from edgedistill.distill import evaluate
    from edgedistill.export.infer import predict_onnx
    from edgedistill.students.build import load_student

    path, record, settings = context.run / ANSWERS, context.checkpoint, context.recipe.quantize
    int8 = int8 and candidate.ships_int8(context)
    key = np.array(answers_key(context, rows, unlabeled, int8=int8))
    if path.is_file():
        with np.load(path, allow_pickle=False) as archive:
            kept = {name: np.asarray(archive[name]) for name in archive.files}
        if kept.pop("student") == key:
            return kept
    images_NHWC, labels_N = context.test_images(record.spec.input_px)
    images_NHWC, model = np.asarray(images_NHWC), load_student(record.spec, context.run / record.path)
    unlabeled_NHWC = np.asarray(context.splits.train.resized(record.spec.input_px)[unlabeled])
    arrays = {
        "rows": rows,
        "labels": labels_N,
        "fp32": evaluate.logits(model, record.spec, images_NHWC),
    }
    if len(unlabeled):
        arrays[f"{UNLABELED}fp32"] = evaluate.logits(model, record.spec, unlabeled_NHWC)
    if int8:
        with interrupts.temporary_folder() as folder:
            graph, _ = candidate.graph(
                context,
                record.spec,
                folder=folder,
                precision="int8",
                target="cpu",
                model=model,
                images=settings.calibration_images,
            )
            arrays["int8"] = predict_onnx(graph, images_NHWC)
            if len(unlabeled):
                arrays[f"{UNLABELED}int8"] = predict_onnx(graph, unlabeled_NHWC)
    save_arrays(path, student=key, **arrays)
    return arrays


def answers_key(context: Context, rows: np.ndarray, unlabeled: np.ndarray, *, int8: bool) -> str:
    """Hash of what a fold's answers depend on: the student, the graph in int8, the images and the labels."""
    test, hashes = context.splits.open_test(), context.splits.train.hashes
    pictures = [sha256.hex() for sha256 in [*test.store.hashes.tolist(), *hashes[unlabeled].tolist()]]
    graph_key = candidate.answered_by(context) if int8 else ""
    images = [rows.tolist(), unlabeled.tolist(), pictures, test.labels_N.tolist()]
    return digest([context.checkpoint.sha256, graph_key, *images])


STEP = Step(
    name="folds",
    version=6,
    sections=("seed", "data", "unlabeled", "sources", "weigh", "student", "search", "distill", "quantize"),
    after=("weigh", "search"),
    inputs=inputs,
    outputs=(artifacts.OUT_OF_FOLD.path, artifacts.FOLD_ANSWERS.path, artifacts.FOLD_UNLABELED.path),
    work=work,
    applies=applies,
)
