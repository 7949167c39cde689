"""The benchmark of unknown answers: its figures by hand, its parts apart from each other, and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.suite import bank as banks
from benchmarks.suite.draws import Draw
from benchmarks.unknown import figures, students, table
from edgedistill.export.infer import predict_onnx
from tests.helpers.packs import pack


@pytest.fixture
def bank(tmp_path: Path) -> banks.Bank:
    for seed, name in enumerate(("squares", "others")):
        pack(tmp_path / "packs" / name, seed)
    profile = students.profile().model_copy(
        update={
            "store_px": 32,
            "initial": "",
            "ready": {"net": {"kind": "timm", "model": "resnet10t", "pretrained": False, "input_px": 32}},
            "labels_per_class": {"default": 5},
            "targets": ("squares", "others"),
        }
    )
    return banks.Bank(packs=tmp_path / "packs", runs=tmp_path / "runs", profile=profile)


def test_no_image_of_a_fold_or_the_reserve_trains(bank: banks.Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[students.Part] = []

    def graph(self: students.Part) -> bytes:
        assert self.labeled[0] is self.rows and self.teacher(TEACHER).shape[1] == 2
        parts.append(self)
        return b""

    sizes: list[int] = []

    def predict_onnx(graph: bytes, images_NHWC: np.ndarray, threads: int) -> np.ndarray:
        sizes.append(len(images_NHWC))
        return np.zeros((len(images_NHWC), 2))

    settings = bank.profile.settings(students.METHOD, "squares", 0)
    TEACHER = settings.teacher
    monkeypatch.setattr(students.Part, "graph", graph)
    monkeypatch.setattr(students, "predict_onnx", predict_onnx)
    draw = Draw(bank=bank, target="squares", seed=0)
    arrays = students.answers(draw)
    *folds, ships = parts
    labeled = set(draw.labeled[0].tolist())
    assert len(folds) == 5 and set(ships.rows.tolist()) == labeled
    left_out = [labeled - set(part.rows.tolist()) for part in folds]
    assert all(len(rows) == 2 for rows in left_out) and set().union(*left_out) == labeled
    n_reserve = arrays["reserve"].shape[0]
    for part, rows in zip(parts, [*left_out, set()], strict=True):
        assert not set(part.unlabeled.tolist()) & (labeled | rows)
        assert len(part.unlabeled) + n_reserve == len(draw.splits.unlabeled_rows)
    assert arrays["folds_on_reserve"].shape == (5, n_reserve, 2) and len(arrays["folds"]) == len(labeled)
    assert not [name for name in arrays if name.startswith("unknown/")], "both packs have the same classes"


def test_graph_of_a_part_answers_for_every_class(bank: banks.Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = bank.profile.settings(students.METHOD, "squares", 0).model_copy(update={"steps": 2})
    monkeypatch.setattr(type(bank.profile), "settings", lambda *_: settings)
    draw = Draw(bank=bank, target="squares", seed=0)
    (rows, labels), unlabeled = draw.labeled, draw.splits.unlabeled_rows
    model = students.part(draw, rows, labels, unlabeled).graph()
    images_NHWC = np.asarray(draw.splits.train.resized(draw.spec.input_px)[:3])
    assert predict_onnx(model, images_NHWC, threads=1).shape == (3, 2)


def test_auroc_is_that_of_sklearn() -> None:
    generator = np.random.default_rng(0)
    known_N, unknown_N = generator.integers(0, 9, 50), generator.integers(0, 7, 70)
    expected = roc_auc_score([1] * 50 + [0] * 70, np.concatenate([known_N, unknown_N]))
    assert figures.auroc(known_N, unknown_N) == pytest.approx(expected)


def test_scores_are_higher_where_the_net_is_surer() -> None:
    logits_NC = np.array([[9.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.5, 0.4, 0.3]])
    for name, score in figures.SCORES.items():
        first, second, third = score(logits_NC, 1.0)
        assert first > second > third, name
    # by the definition, of exp(2), 1 and 1 over their sum
    probs = np.array([np.exp(2), 1, 1]) / (np.exp(2) + 2)
    expected = -((probs * (1 - probs)) ** 0.1).sum()
    assert figures.SCORES["generalized entropy"](logits_NC[1:2], 1.0)[0] == pytest.approx(expected)


def test_figures_of_a_perfect_separation() -> None:
    generator = np.random.default_rng(0)

    def answers(n: int, sure: float) -> tuple[np.ndarray, np.ndarray]:
        labels_N = generator.integers(0, 3, n)
        return sure * np.eye(3)[labels_N] + 0.1 * generator.normal(size=(n, 3)), labels_N

    folds, fold_labels = answers(60, 6.0)
    test, test_labels = answers(200, 6.0)
    line = figures.figures(
        {
            "folds": folds,
            "fold_labels": fold_labels,
            "folds_on_reserve": np.stack([answers(100, 6.0)[0]] * 5),
            "reserve": answers(100, 6.0)[0],
            "test": test,
            "test_labels": test_labels,
            "unknown/other": answers(50, 0.0)[0],
        }
    )
    assert line["scores"]["probability"] == {"auroc": {"other": 1.0}, "accuracy": 1.0}
    assert line["rules"]["matched"]["coverage"] == pytest.approx(0.9, abs=0.07)
    assert line["rules"]["matched"]["refused"] == 1.0 and line["top1"] == 1.0


def line(target: str, seed: int, **changes: Any) -> dict[str, Any]:
    scores = {name: {"auroc": {"a": 0.8, "b": 0.6}, "accuracy": 0.75} for name in figures.SCORES}
    rule = {"coverage": 0.91, "accuracy": 0.75, "refused": 0.3}
    return {
        "target": target,
        "seed": seed,
        "top1": 0.7,
        "scores": scores,
        "rules": {
            "matched": rule,
            "as fitted": {**rule, "coverage": 0.85},
            "quantile of the reserve": {**rule, "coverage": 0.88},
        },
        "calibration_error": {"none": 0.2, "matched": 0.05},
        **changes,
    }


def test_table_has_targets_scores_and_verdicts() -> None:
    assert table.markdown([line("pacs_art", 0)]) == "No line yet."
    targets = ("cifar10", "elpv", "gtsrb", "trash", "neu_steel", "chestxray")
    text = table.markdown([*(line(target, seed) for target in targets for seed in (0, 1)), line("pacs_art", 0)])
    missing = "seed 0 of ham10000, pacs_sketch; seed 1 of ham10000, pacs_sketch; seed 2 of all targets"
    assert text.startswith(f"6 of 8 targets so far; missing: {missing}. ")
    assert "| **mean** | 2 | 70.0 | 75.0 | 75.0 | 70.0 | 70.0 | 91.0 | 85.0 | 88.0 | 30.0 | 5.0 | 20.0 |" in text
    assert "Its distance minus that of the plain quantile: -1.0 [-1.0, -1.0]." in text
    assert "| score, the tuning packs |" in text and "| energy | 70.0 | +0.0 [+0.0, +0.0] |" in text
    assert "1. Coverage holds: 91.0 %" in text and "4.0 points nearer to 90 % than the folds'" in text
    assert "2. Probabilities hold: the calibration error is smaller on 6 of 6 targets (in the mean -15.0" in text
    assert "3. Accuracy on the surest 90 % holds: +5.0" in text and "4. Unknowns hold" in text


def test_nothing_is_missing_once_every_seed_is_there() -> None:
    targets = table.load("cpu").targets
    text = table.markdown([line(target, seed) for target in targets for seed in table.SEEDS])
    assert text.startswith("| target |")


def covered(matched: float, fitted: float) -> dict[str, Any]:
    coverages = {"matched": matched, "as fitted": fitted, table.QUANTILE: 0.9}
    return {name: {"coverage": coverage, "accuracy": 0.7, "refused": 0.3} for name, coverage in coverages.items()}


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        ([(0.89, 0.85), (0.91, 0.85)], "holds"),
        ([(0.89, 0.85), (0.91, 0.90)], "not shown"),  # nearer in the mean alone
        ([(0.87, 0.90), (0.88, 0.90)], "fails"),
        ([(0.80, 0.70), (0.82, 0.70)], "fails"),  # nearer, and not within 87 to 93 %
    ],
)
def test_coverage_is_not_shown_where_its_interval_includes_zero(pairs: list[tuple[float, float]], verdict: str) -> None:
    lines = [
        line(target, 0, rules=covered(*pair)) for target, pair in zip(table.load("cpu").targets, pairs, strict=False)
    ]
    assert table.claims(lines)[0].startswith(f"Coverage {verdict}:")


def test_mean_that_includes_zero_is_named_beside_the_count_of_targets() -> None:
    errors = [{"none": 0.2, "matched": 0.05}, {"none": 0.1, "matched": 0.3}]
    targets = table.load("cpu").targets
    lines = [line(target, 0, calibration_error=error) for target, error in zip(targets, errors, strict=False)]
    assert "points, which is not shown)" in table.claims(lines)[1]
    assert "not shown" not in table.claims(lines[:1])[1]


def test_claim_that_fails_is_said_to_fail() -> None:
    worse = {"none": 0.05, "matched": 0.2}
    text = table.markdown([line("elpv", 0, top1=0.74, calibration_error=worse)])
    assert "2. Probabilities fail" in text and "3. Accuracy on the surest 90 % fails: +1.0" in text
