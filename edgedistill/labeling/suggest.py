"""Which pictures of a data set to label next, with the reason for each."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgedistill import check
from edgedistill.collection.subject import NO_CLASSES, Subject, of_folder, of_recipe, of_run
from edgedistill.console import say
from edgedistill.data import label_file
from edgedistill.data.image_store import ImageStore
from edgedistill.data.label_file import Label
from edgedistill.data.tables import UNUSABLE
from edgedistill.distill.more_labels import worth
from edgedistill.errors import InputError
from edgedistill.labeling import label_studio
from edgedistill.labeling.pool import (
    Candidates,
    Task,
    candidates,
    given_labels,
    labels_file,
    labels_target,
    task,
)
from edgedistill.labels.draws import UNLABELED
from edgedistill.labels.suggestions import DEFAULT, LEAST_MEMBERS, STRATEGIES, Pick, clustered, suggested
from edgedistill.labels.to_label import Suggestion, Suggestions
from edgedistill.recipe.file import read_recipe
from edgedistill.recipe.options import did_you_mean
from edgedistill.records import MoreLabels
from edgedistill.report.suggest import RECORD, TABLE
from edgedistill.run import artifacts
from edgedistill.run.directory import CACHE
from edgedistill.run.files import read_json

CLUSTERS = (8, 64)  # fewest and most clusters of a data set


@dataclass(frozen=True, eq=False, kw_only=True)
class Suggested:
    """The suggestions, and what shows them and takes their answers.

    Attributes:
        record: plain data: the pictures, the reasons, whether more labels pay.
        store: the decoded squares that `Suggestion.row` indexes, for thumbnails.
        job: the task: `job.collection.listed.items` opens the pictures themselves.
    """

    record: Suggestions
    store: ImageStore
    job: Task


def subject_of(path: Path, runs: Path = Path("runs")) -> Subject:
    """The data set of a folder of pictures, a recipe or a run directory.

    Raises:
        InputError: the path is none of them, or the recipe is wrong.
    """
    if (path / artifacts.LOCK.path).is_file():
        return of_run(path)
    if path.is_dir():
        return of_folder(path)
    document = read_recipe(path)
    return of_recipe(path, check.load(document), document.base, runs)


def suggest(path: Path, n: int = 50, *, runs: Path = Path("runs"), strategy: str = DEFAULT, seed: int = 0) -> Suggested:
    """The next `n` pictures to label: typical ones that differ, then also those that the teacher is unsure of.

    It works without a label, with some, and after a run. Copies and pictures of one group count once; those that cannot
    be read, blank ones, and those of a test split are never suggested. One picture in five is drawn at random. The same
    files give the same suggestions whatever their order, and a larger n contains the smaller one.

    Args:
        path: a folder of pictures, a recipe or a run directory. In a folder labels.csv holds the labels; without it
            class folders do, and without these no picture has one.
        n: number of pictures; fewer where fewer are left.
        runs: the folder of the run directories, whose cache is used.
        strategy: a key of labels.suggestions.STRATEGIES.
        seed: of the random draws.

    Raises:
        InputError: the data set cannot be listed, none of its pictures can be read, every one has a label, a source
            cannot be loaded, or there is no such strategy.
        EdgeDistillError: the disk is full.
    """
    return of_subject(subject_of(path, runs), n, runs=runs, strategy=strategy, seed=seed)


def of_subject(subject: Subject, n: int, *, runs: Path, strategy: str = DEFAULT, seed: int = 0) -> Suggested:
    """`suggest` of a data set; the same errors."""
    started = time.perf_counter()
    if strategy not in STRATEGIES:
        raise InputError(f"--strategy {strategy}: is unknown{did_you_mean(strategy, STRATEGIES)}")
    cache = subject.run.cache if subject.run is not None else runs / CACHE
    job = task(subject, cache)
    if not job.open_N.any():
        raise InputError(f"{subject.path}: {_why_none(job)}", _fix(job))
    choice = candidates(job, seed)
    say(f"pictures   {int((choice.pool.labels_M == UNLABELED).sum())} to choose from")
    picks = suggested(choice.pool, n, strategy)
    clusters_M = _clusters(choice, len(job.classes), seed)
    labels = Counter(job.classes[label] for label in job.labels_N if label != UNLABELED)
    notes = [*job.notes, *choice.notes]
    if not job.features.arrays:
        notes.append('no source is installed: small pixels tell little; pip install "edgedistill[demo]"')
    record = Suggestions(
        name=subject.name,
        source=str(subject.path),
        pictures=len(job.collection.listed.items),
        labels={name: labels[name] for name in job.classes},
        strategy=strategy,
        sources=tuple(job.features.arrays),
        suggestions=tuple(_suggestion(job, choice, pick, clusters_M=clusters_M) for pick in picks),
        clusters=_by_path(job, choice, clusters_M),
        more=more_labels(job, choice),
        notes=tuple(notes),
        seconds=round(time.perf_counter() - started, 1),
    )
    return Suggested(record=record, store=job.collection.store, job=job)


def answer(subject: Subject, answers: Path) -> int:
    """Take the labels that were filled in into the labels.csv of a data set; returns how many.

    Args:
        subject: a folder, or a recipe or run that reads a labels.csv.
        answers: a suggestions.csv whose column `label` is filled in, in part at least, or the JSON export of a Label
            Studio project.

    Raises:
        InputError: no label is filled in, a picture is unknown, or the data set has no labels.csv.
        OSError: the file cannot be written; it is unchanged.
    """
    if source := _other_source(subject, answers):
        raise InputError(f"{answers}: suggests pictures of {source}, not of {subject.path}", "name that folder")
    file = labels_target(subject)
    labels = label_studio.read_export(answers) if answers.suffix == ".json" else label_file.read_answers(answers)
    is_folder = subject.run is None
    names = list(label_file.pictures_listing(file.parent).train.names if is_folder else label_file.read_labels(file))
    labels = label_file.spelled(labels, names)
    if lost := sorted(labels.keys() - set(names)):
        raise InputError(f"{answers}: {lost[0]} is no picture of {subject.path}", "take its row out")
    first = given_labels(subject, file, names) if is_folder and not file.exists() else {}
    label_file.updated(file, first | labels, names)
    return len(labels)


def refuse_loss(subject: Subject, table: Path) -> None:
    """Refuse to write over a list whose labels were filled in and not taken.

    Raises:
        InputError: it holds such labels, or can no longer be read.
    """
    if not table.is_file():
        return
    source = _other_source(subject, table)
    taking = f"`edgedistill suggest {source} --answers {table}`" if source else f"`--answers {table}`"
    fix = f"{taking} takes them; or write elsewhere by --out"
    filled = label_file.filled_in(table)
    try:
        file = labels_target(subject)
        taken = label_file.spelled(label_file.read_labels(file), filled) if file.exists() else {}
    except InputError:  # its data set takes no answers
        taken = {}
    lost = [path for path, label in filled.items() if _is_lost(label, taken.get(path, Label()))]
    if lost:
        raise InputError(f"{table}: {len(lost)} labels were filled in, and would be lost", fix)


def _other_source(subject: Subject, table: Path) -> str:
    """What the pictures of a list were suggested from, if that has its labels in another table; else ""."""
    record = table.parent / RECORD
    source = str(read_json(record).get("source", "")) if table.name == TABLE and record.is_file() else ""
    if not source or not Path(source).exists():
        return ""
    try:
        places = {labels_target(other).resolve() for other in (subject, subject_of(Path(source)))}
    except InputError:  # one of them takes no answers
        return ""
    return source if len(places) > 1 else ""


def _is_lost(answer: Label, taken: Label) -> bool:
    if answer.name:
        return answer.name != taken.name
    return answer.how == UNUSABLE and taken.how != UNUSABLE


def more_labels(job: Task, choice: Candidates) -> MoreLabels | None:
    """Whether more labels pay; None without sources or labels."""
    is_labeled_M = choice.pool.labels_M != UNLABELED
    rows = choice.rows_M[is_labeled_M]
    if not len(rows) or not job.features.arrays:
        return None
    names = job.names
    return worth(
        {name: read(rows) for name, read in job.features.readers().items()},
        job.labels_N[rows],
        np.unique(choice.units_L, return_inverse=True)[1],
        is_random_L=np.array([job.how.get(names[row], "given") not in label_file.CHOSEN for row in rows]),
    )


def _suggestion(job: Task, choice: Candidates, pick: Pick, *, clusters_M: np.ndarray) -> Suggestion:
    row, probs_MC = int(choice.rows_M[pick.row]), choice.pool.probs_MC
    guess, sure = "", None
    if probs_MC is not None:
        label = int(probs_MC[pick.row].argmax())
        guess, sure = job.classes[label], round(float(probs_MC[pick.row, label]), 4)
    return Suggestion(
        path=job.collection.listed.items.names[int(job.collection.store.kept_rows[row])],
        how=pick.how,
        why=pick.why,
        cluster=int(clusters_M[pick.row]),
        guess=guess,
        sure=sure,
        row=row,
    )


def _clusters(choice: Candidates, classes: int, seed: int) -> np.ndarray:
    """The cluster of each picture of the pool, 0 for the largest, int64 [M]; it does not depend on the suggestions."""
    fewest, most = CLUSTERS
    n = len(choice.rows_M)
    count = max(1, min(max(fewest, 2 * classes), most, n // LEAST_MEMBERS))
    clusters_M = clustered(choice.pool.features_MD, count, seed)
    rank_K = np.empty(count, dtype=np.int64)
    rank_K[np.argsort(-np.bincount(clusters_M, minlength=count), kind="stable")] = np.arange(count)
    return np.asarray(rank_K[clusters_M])


def _by_path(job: Task, choice: Candidates, clusters_M: np.ndarray) -> dict[str, int]:
    """The cluster of every picture without a label by its path, nearest to the middle of its cluster first."""
    features_MD, names = choice.pool.features_MD, job.names
    middles_KD = np.stack([features_MD[clusters_M == cluster].mean(axis=0) for cluster in range(clusters_M.max() + 1)])
    distance_M = np.linalg.norm(features_MD - middles_KD[clusters_M], axis=1)
    return {
        names[choice.rows_M[position]]: int(clusters_M[position])
        for position in np.argsort(distance_M, kind="stable")
        if choice.pool.labels_M[position] == UNLABELED
    }


def _why_none(job: Task) -> str:
    if (job.labels_N != UNLABELED).any():
        return "every picture that can be labeled has a label"
    return "no picture can be labeled"


def _fix(job: Task) -> str:
    if labels_file(job.subject) is None and job.subject.run is None and (job.labels_N != UNLABELED).any():
        return NO_CLASSES
    return "add pictures"
