"""The comparison with torchdistill: its arithmetic by hand, and both sides on tiny nets if it is installed."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peer_torchdistill import __main__ as command
from benchmarks.peer_torchdistill import peer, settings, table, timing

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
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Both sides of a comparison of eight tiny sources at twice the student's size, without augmentation."""
    if util.find_spec("torchdistill") is None:
        pytest.skip("torchdistill is not installed here")
    from edgedistill.recipe.schema import Augment

    monkeypatch.setattr(timing, "IMAGES", 16)
    monkeypatch.setattr(timing, "BATCH", 16)
    plain = Augment(min_area=1.0, hflip=False, jitter=0.0)
    setting = settings.Setting(
        family="micro",
        options={"width": 8, "input_px": 16},
        epochs=1,
        source="test_efficientnet",
        source_px=32,
        augment=plain,
    )
    return timing.prepare(setting, tmp_path)


def test_ratio_is_median_of_rounds_with_interval() -> None:
    middle, low, high = table.ratio(LINE["seconds"])
    assert middle == 10.0  # of 20 / 2, 24 / 2 and 32 / 4
    assert (low, high) == (8.0, 12.0)


@pytest.mark.parametrize(
    ("cache", "ours", "theirs", "epochs"),
    [
        (20.0, 2.0, 24.0, 1),  # 20 + 2 < 24
        (22.0, 2.0, 24.0, 1),  # 22 + 2 = 24: no slower
        (23.0, 2.0, 24.0, 2),  # 23 + 2 > 24, 23 + 4 < 48
        (100.0, 2.0, 12.0, 10),  # 100 + 20 = 120
        (0.0, 2.0, 12.0, 1),
        (20.0, 2.0, 2.0, None),
        (20.0, 3.0, 2.0, None),
    ],
)
def test_break_even_is_first_epoch_that_repays_cache(
    cache: float, ours: float, theirs: float, epochs: int | None
) -> None:
    assert table.break_even(cache, ours, theirs) == epochs
    if epochs is not None:
        assert table.training_ratio(epochs, cache, ours, theirs) >= 1.0
        assert epochs == 1 or table.training_ratio(epochs - 1, cache, ours, theirs) < 1.0


def test_ratio_of_whole_run_includes_cache() -> None:
    assert table.training_ratio(10, 20.0, 2.0, 24.0) == 6.0  # 240 / (20 + 20)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(5.0, 6.0, "yes"), (4.9, 5.1, "undecided"), (4.0, 5.0, "undecided"), (3.0, 4.9, "no")]
)
def test_verdict_is_by_interval(low: float, high: float, verdict: str) -> None:
    assert table.verdict(low, high) == verdict


def test_table_is_computed_from_seconds() -> None:
    _, _, row = table.markdown([LINE]).splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "micro at 32 px, 3 M MACs; 8 x net at 128 px"
    assert cells[1:5] == ["24.00 s", "2.00 s", "10.0 [8.0, 12.0]", "yes"]
    # 20 s of cache are ten epochs of ours; 20 + 2 < 24; 240 / (20 + 20) and 2400 / (20 + 200)
    assert cells[5:8] == ["20.0 s = 10.0 epochs", "1", "6.0 / 10.9"]
    assert cells[8:] == ["1.1.5; 192 images, batches of 64, 2 threads", "a, 2 cores", "b"]


def test_table_shows_peer_that_is_never_overtaken() -> None:
    row = table.markdown([{**LINE, "seconds": [[3.0, 2.0]] * 3}]).splitlines()[2]
    assert "| 0.7 [0.7, 0.7] | no |" in row and "| never |" in row


def test_missing_torchdistill_names_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install torchdistill"):
        command.main()


def test_both_sides_have_same_weights_and_gradients(tiny: Any) -> None:
    """On one batch of all images, torchdistill's loss has the same gradient as ours, so both do the same work."""
    import torch

    from edgedistill.distill import loop

    job, live, box = tiny.job, tiny.live, tiny.box
    ours = dict(live.model.named_parameters())
    theirs = dict(box.student_model.named_parameters())
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name])
    box.pre_epoch_process(epoch=0)
    # the data loader's batch, so that the collate function is tested too
    ((images_BCHW, labels_B, extra),) = box.train_data_loader
    box.forward_process(images_BCHW, labels_B, extra).backward()
    loop.train_step(live, job.loss(), job, 0)
    gradients = [(weight.grad, theirs[name].grad) for name, weight in ours.items()]
    heads = torch.cat([theirs[f"heads.{name}.weight"].grad for name in settings.NAMES])
    gradients.append((live.heads.weight.grad, heads))
    for own_grad, peer_grad in gradients:
        # the cache is in float16, and Pillow rounds the enlarged images
        assert torch.linalg.vector_norm(own_grad - peer_grad) <= 0.002 * torch.linalg.vector_norm(own_grad)
    assert sum(bool(own_grad.any()) for own_grad, _ in gradients) > len(gradients) / 2, (
        "only residual branches start at 0"
    )


def test_cache_holds_outputs_of_peer_teacher(tiny: Any) -> None:
    import torch

    from edgedistill.data.pixels import normalize

    job = tiny.job
    images_BHWC = torch.from_numpy(job.material.images_NHWC)
    with torch.no_grad():
        logits_by_name = tiny.box.teacher_model(normalize(images_BHWC, job.spec.mean, job.spec.std))
    cached = {name: torch.from_numpy(probs.astype("float32")) for name, probs in job.material.source_probs.items()}
    assert list(logits_by_name) == list(cached) == list(settings.NAMES)

    def distance(source: str, other: str) -> float:
        """The largest difference between the logits' softmax and the cached probabilities, in units of 1 / K."""
        return float((logits_by_name[source].softmax(1) - cached[other]).abs().max() * cached[other].shape[1])

    # untrained nets have similar outputs: float16 differs by at most 0.0005, another source by four times that
    assert max(distance(name, name) for name in settings.NAMES) < 0.0006
    assert min(distance(name, other) for name in settings.NAMES for other in settings.NAMES if name != other) > 0.0024


def test_both_sides_learn_from_all_eight_sources(tiny: Any) -> None:
    from edgedistill.distill import loop

    box, live = tiny.box, tiny.live
    assert set(box.criterion.term_dict) == {"labels", *settings.NAMES} and len(settings.NAMES) == 8
    before = {name: head.weight.clone() for name, head in box.student_model.heads.items()}
    stacked = live.heads.weight.detach().clone()
    scalars = loop.train_step(live, tiny.job.loss(), tiny.job, 0).read()
    assert peer.epoch_seconds(box) > 0.0
    assert all(scalars[f"terms/source/{name}"] > 0.0 for name in settings.NAMES)
    parts = zip(live.heads.weight.chunk(8), stacked.chunk(8), strict=True)
    assert all(not after.equal(initial) for after, initial in parts)
    assert all(not box.student_model.heads[name].weight.equal(initial) for name, initial in before.items())


def test_sources_of_peer_are_not_trained(tiny: Any) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.box.teacher_model.state_dict().items()}
    peer.epoch_seconds(tiny.box)
    assert all(tensor.equal(before[name]) for name, tensor in tiny.box.teacher_model.state_dict().items())


def test_line_of_real_comparison_fits_table(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", 2)
    setting = settings.Setting(
        family="micro", options={"width": 8, "input_px": 16}, epochs=2, source="test_efficientnet", source_px=32
    )
    line = timing.measure(setting)
    assert len(line["seconds"]) == 2 and all(len(pair) == 2 and min(pair) > 0.0 for pair in line["seconds"])
    assert line["torchdistill"] and line["cache_seconds"] > 0.0
    assert "micro at 16 px" in table.markdown([{**line, "cpu": "a", "cores": 2, "commit": "b"}])
