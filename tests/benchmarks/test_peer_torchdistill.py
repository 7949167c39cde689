"""The comparison with torchdistill: its arithmetic by hand, and both sides on tiny nets where torchdistill is there."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.helpers.paths import ROOT

LINE: dict[str, Any] = {
    "torchdistill": "1.1.5",
    "student": "micro",
    "input_px": 32,
    "macs_m": 2.6,
    "source": "net",
    "source_px": 128,
    "sources": 8,
    "images": 192,
    "batch": 64,
    "threads": 2,
    "epochs_a_round": [8, 1],
    "cache_seconds": 20.0,
    "seconds": [[2.0, 20.0], [2.0, 24.0], [4.0, 32.0]],
    "cpu": "a",
    "cores": 2,
    "commit": "b",
}


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import peer_torchdistill

    return peer_torchdistill


@pytest.fixture
def tiny(peer: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Both sides of a comparison of eight tiny sources at twice the student's size, without augmentation."""
    if util.find_spec("torchdistill") is None:
        pytest.skip("torchdistill is not installed here")
    from edgedistill.recipe.schema import Augment

    monkeypatch.setattr(peer, "IMAGES", 16)
    monkeypatch.setattr(peer, "BATCH", 16)
    plain = Augment(min_area=1.0, hflip=False, jitter=0.0)
    setting = peer.Setting(
        family="micro",
        options={"width": 8, "input_px": 16},
        epochs=1,
        source="test_efficientnet",
        source_px=32,
        augment=plain,
    )
    return peer.prepare(setting, tmp_path)


def test_the_ratio_is_of_rounds_and_its_interval_within_them(peer: ModuleType) -> None:
    middle, low, high = peer.ratio(LINE["seconds"])
    assert middle == 10.0  # of 20 / 2, 24 / 2 and 32 / 4
    assert (low, high) == (8.0, 12.0)


@pytest.mark.parametrize(
    ("cache", "ours", "theirs", "epochs"),
    [
        (20.0, 2.0, 24.0, 1),  # 20 + 2 < 24
        (22.0, 2.0, 24.0, 1),  # 22 + 2 = 24: no longer
        (23.0, 2.0, 24.0, 2),  # 23 + 2 > 24, 23 + 4 < 48
        (100.0, 2.0, 12.0, 10),  # 100 + 20 = 120
        (0.0, 2.0, 12.0, 1),
        (20.0, 2.0, 2.0, None),
        (20.0, 3.0, 2.0, None),
    ],
)
def test_the_cache_is_paid_back(peer: ModuleType, cache: float, ours: float, theirs: float, epochs: int | None) -> None:
    assert peer.break_even(cache, ours, theirs) == epochs
    if epochs is not None:
        assert peer.whole_run(epochs, cache, ours, theirs) >= 1.0
        assert epochs == 1 or peer.whole_run(epochs - 1, cache, ours, theirs) < 1.0


def test_a_whole_run_pays_for_its_cache(peer: ModuleType) -> None:
    assert peer.whole_run(10, 20.0, 2.0, 24.0) == 6.0  # 240 / (20 + 20)


@pytest.mark.parametrize(
    ("low", "high", "said"), [(5.0, 6.0, "yes"), (4.9, 5.1, "undecided"), (4.0, 5.0, "undecided"), (3.0, 4.9, "no")]
)
def test_the_claim_is_judged_by_the_interval(peer: ModuleType, low: float, high: float, said: str) -> None:
    assert peer.verdict(low, high) == said


def test_the_table_is_worked_out_from_the_seconds(peer: ModuleType) -> None:
    _, _, row = peer.table([LINE]).splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "micro at 32 px, 3 M MACs; 8 x net at 128 px"
    assert cells[1:5] == ["24.00 s", "2.00 s", "10.0 [8.0, 12.0]", "yes"]
    # 20 s of cache are ten of our epochs; 20 + 2 < 24; 240 / (20 + 20) and 2400 / (20 + 200)
    assert cells[5:8] == ["20.0 s = 10.0 epochs", "1", "6.0 / 10.9"]
    assert cells[8:] == ["1.1.5; 192 images, batches of 64, 2 threads", "a, 2 cores", "b"]


def test_the_table_says_when_a_peer_is_never_overtaken(peer: ModuleType) -> None:
    row = peer.table([{**LINE, "seconds": [[3.0, 2.0]] * 3}]).splitlines()[2]
    assert "| 0.7 [0.7, 0.7] | no |" in row and "| never |" in row


def test_without_torchdistill_it_says_what_to_install(peer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install torchdistill"):
        peer.main()


def test_both_sides_start_alike_and_have_the_same_gradients(peer: ModuleType, tiny: Any) -> None:
    """One batch of all images: the loss of torchdistill has the gradient of ours, so it does the same work."""
    import torch

    from edgedistill.distill import batches, loop

    job, live, box = tiny.job, tiny.live, tiny.box
    ours = dict(live.model.named_parameters())
    theirs = dict(box.student_model.named_parameters())
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name])
    box.pre_epoch_process(epoch=0)
    # the data loader's batch, so that the collate function has its part in this
    ((images_BCHW, labels_B, extra),) = box.train_data_loader
    box.forward_process(images_BCHW, labels_B, extra).backward()
    loop.train_step(live, job.loss(), drawn=batches.draw_batch(job, 0), task=job, step=0)
    compared = [(weight.grad, theirs[name].grad) for name, weight in ours.items()]
    heads = torch.cat([theirs[f"heads.{name}.weight"].grad for name in peer.NAMES])
    compared.append((live.heads.weight.grad, heads))
    for mine, other in compared:
        # the cache keeps float16, and Pillow rounds what it enlarges
        assert torch.linalg.vector_norm(mine - other) <= 0.002 * torch.linalg.vector_norm(mine)
    assert sum(bool(mine.any()) for mine, _ in compared) > len(compared) / 2, "residual branches alone start at 0"


def test_the_cache_holds_what_the_peers_teacher_answers(peer: ModuleType, tiny: Any) -> None:
    import torch

    from edgedistill.data.pixels import normalise

    job = tiny.job
    images_BHWC = torch.from_numpy(job.material.images_NHWC)
    with torch.no_grad():
        answers = tiny.box.teacher_model(normalise(images_BHWC, job.spec.mean, job.spec.std))
    cached = {name: torch.from_numpy(probs.astype("float32")) for name, probs in job.material.probs.items()}
    assert list(answers) == list(cached) == list(peer.NAMES)

    def apart(one: str, other: str) -> float:
        """Largest difference of the logits' softmax from the cached probabilities, in units of 1 / K."""
        return float((answers[one].softmax(1) - cached[other]).abs().max() * cached[other].shape[1])

    # untrained nets answer nearly alike: float16 is off by half a thousandth at most, another source by four times that
    assert max(apart(name, name) for name in peer.NAMES) < 0.0006
    assert min(apart(one, other) for one in peer.NAMES for other in peer.NAMES if one != other) > 0.0024


def test_both_sides_learn_from_each_of_the_eight_sources(peer: ModuleType, tiny: Any) -> None:
    from edgedistill.distill import batches, loop

    box, live = tiny.box, tiny.live
    assert set(box.criterion.term_dict) == {"labels", *peer.NAMES} and len(peer.NAMES) == 8
    before = {name: head.weight.clone() for name, head in box.student_model.heads.items()}
    stacked = live.heads.weight.detach().clone()
    scalars = loop.train_step(live, tiny.job.loss(), drawn=batches.draw_batch(tiny.job, 0), task=tiny.job, step=0)
    assert peer.their_epoch(box) > 0.0
    assert all(scalars[f"terms/source/{name}"] > 0.0 for name in peer.NAMES)
    parts = zip(live.heads.weight.chunk(8), stacked.chunk(8), strict=True)
    assert all(not now.equal(then) for now, then in parts)
    assert all(not box.student_model.heads[name].weight.equal(then) for name, then in before.items())


def test_the_peers_sources_stay_as_they_are(peer: ModuleType, tiny: Any) -> None:
    before = {name: value.clone() for name, value in tiny.box.teacher_model.state_dict().items()}
    peer.their_epoch(tiny.box)
    assert all(value.equal(before[name]) for name, value in tiny.box.teacher_model.state_dict().items())


def test_the_real_comparison_gives_a_line_that_the_table_takes(
    peer: ModuleType, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "ROUNDS", 2)
    setting = peer.Setting(
        family="micro", options={"width": 8, "input_px": 16}, epochs=2, source="test_efficientnet", source_px=32
    )
    line = peer.measure(setting)
    assert len(line["seconds"]) == 2 and all(len(pair) == 2 and min(pair) > 0.0 for pair in line["seconds"])
    assert line["torchdistill"] and line["cache_seconds"] > 0.0
    assert "micro at 16 px" in peer.table([{**line, "cpu": "a", "cores": 2, "commit": "b"}])
