"""What a method, a teacher and a metric compute under their version: another result asks for another version.

The numbers are not worked out by hand; they say that nothing has changed. A change on purpose raises the version of the
entry and writes the file anew: `python -m tests.distill.test_versions`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgedistill.distill.methods import METHODS, Batch
from edgedistill.distill.teachers import TEACHERS
from edgedistill.similarity.metrics import METRICS

FILE = Path(__file__).with_name("versions.json")
ALPHAS = {"a": 0.7, "b": 0.3}
OPTIONS: dict[str, dict[str, Any]] = {"single": {"source": "b"}, "static": {"prior": {"": 0.5}}}
HELP = (
    "computes something else than its version did: raise `version` in its registry entry, then write the file with "
    "`python -m tests.distill.test_versions` (CONTRIBUTING.md, Recipe keys and versions)"
)


def batch() -> Batch:
    """Eight images, four of them labeled, three classes, sources of four and five classes."""
    generator = np.random.default_rng(7)

    def logits(classes: int) -> torch.Tensor:
        return torch.from_numpy(generator.normal(0, 2, (8, classes)))

    return Batch(
        target_logits_BC=logits(3),
        labels_B=torch.tensor([0, 1, 2, 0, -1, -1, -1, -1]),
        source_logits={"a": logits(4), "b": logits(5)},
        source_probs={"a": logits(4).softmax(dim=1), "b": logits(5).softmax(dim=1)},
        teacher_probs_BC=logits(3).softmax(dim=1),
        weak_logits_UC=3 * logits(3)[4:],
    )


def images() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Features of two sources on forty images, and the labels of all."""
    generator = np.random.default_rng(11)
    labels_N = np.arange(40) % 3
    centers = {name: generator.normal(0, 1, (3, 6)) for name in ALPHAS}
    return {name: centers[name][labels_N] + generator.normal(0, 1, (40, 6)) for name in ALPHAS}, labels_N


def computed() -> dict[str, dict[str, Any]]:
    """Per registry and name the version, and what it computes, as a list of numbers."""
    features, labels_N = images()
    probs_NK = np.exp(features["a"]) / np.exp(features["a"]).sum(axis=1, keepdims=True)
    methods, teachers, metrics = {}, {}, {}
    for name, method in METHODS.items():
        terms = method.loss(batch(), ALPHAS, **OPTIONS.get(name, {}))
        methods[name] = {"version": method.version, "numbers": [float(term) for term in terms.values()]}
    for name, teacher in TEACHERS.items():
        rows = np.arange(12)
        fitted = teacher.fit(features=features, alphas=ALPHAS, rows=rows, labels_L=labels_N[rows], classes=3)
        numbers = [*fitted.weights.values(), *fitted.probs_NC[12:20].ravel().tolist()]
        teachers[name] = {"version": teacher.version, "numbers": numbers}
    for name, metric in METRICS.items():
        score = metric.score(features["a"], probs_NK, labels_N, **OPTIONS.get(name, {}))
        metrics[name] = {"version": metric.version, "numbers": [score, metric.ceiling(labels_N)]}
    return {"methods": methods, "teachers": teachers, "metrics": metrics}


@pytest.mark.parametrize("registry", ["methods", "teachers", "metrics"])
def test_entry_computes_what_its_version_did(registry: str) -> None:
    expected, actual = json.loads(FILE.read_text(encoding="utf-8"))[registry], computed()[registry]
    assert actual.keys() == expected.keys(), "write a new entry with `python -m tests.distill.test_versions`"
    for name, entry in actual.items():
        assert entry["version"] == expected[name]["version"], f"{registry}: {name}: write the file anew"
        same = np.allclose(entry["numbers"], expected[name]["numbers"], rtol=1e-4, atol=1e-5)
        assert same, f"{registry}: {name} {HELP}"


def test_another_loss_is_noticed() -> None:
    expected = json.loads(FILE.read_text(encoding="utf-8"))["methods"]["weighted"]["numbers"]
    terms = METHODS["weighted"].loss(batch(), ALPHAS, temperature=1.01)
    assert not np.allclose([float(term) for term in terms.values()], expected, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    FILE.write_text(json.dumps(computed(), indent=1) + "\n", encoding="utf-8")
