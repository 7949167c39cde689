"""The suite on miniature packs: the same cell gives the same number, what stands is not run again, nothing leaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import lines
from benchmarks.suite import bank as banks
from benchmarks.suite import cells, protocol, runner
from benchmarks.suite.__main__ import arguments, main
from edgedistill.errors import InputError

METHODS = ("transfer", "fixmatch", "random", "weighted", "stacked", "consistent")


def pack(folder: Path, seed: int) -> None:
    """Two classes, reddish and bluish squares, in the packs' layout."""
    random = np.random.default_rng(seed)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["red", "blue"])})
    for part, count in (("train", 40), ("test", 12)):
        labels = [at % 2 for at in range(count)]
        pictures = []
        for label in labels:
            pixels = random.integers(0, 120, (32, 32, 3))
            pixels[..., 2 * label] += 60
            pictures.append(Image.fromarray(pixels.astype(np.uint8)))
        folder.mkdir(parents=True, exist_ok=True)
        made = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
        made.to_parquet(str(folder / f"{part}.parquet"))


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs")
    for seed, name in enumerate(("squares", "others")):
        pack(folder / name, seed)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def bank(packs: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> banks.Bank:
    monkeypatch.setattr(lines, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = protocol.load("cpu").model_dump()
    said |= {
        "store_px": 32,
        "initial": "",
        "finetuned": {},
        "labels_per_class": {"default": 4},
        "targets": ("squares", "others"),
        "student": {"family": "micro", "width": 8, "input_px": 16},
        "ready": {
            f"net{at}": {"kind": "timm", "model": "resnet10t", "pretrained": False, "input_px": 32, "seed": at}
            for at in range(2)
        },
        "weigh": {"metric": "probe", "also": ["parc"], "bootstrap": 2},
        "distill": said["distill"] | {"steps": 3, "batch_labeled": 4, "batch_unlabeled": 4},
    }
    return banks.Bank(packs=packs, runs=runs, profile=protocol.Profile.model_validate(said))


def standing() -> list[dict[str, Any]]:
    return list(lines.read("suite"))


def without_clock(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    left_out = {"train_seconds", "measured", "commit"}
    return [{name: value for name, value in line.items() if name not in left_out} for line in found]


def test_a_stopped_suite_goes_on_and_a_cell_is_the_same_again(bank: banks.Bank) -> None:
    wanted = runner.Wanted(targets=("squares",), methods=METHODS, seeds=(0,))
    runner.run(bank, wanted, processes=1)
    whole = standing()
    assert [line["kind"] for line in whole] == ["draw"] + ["run"] * len(METHODS)
    assert [line["method"] for line in whole[1:]] == list(METHODS)
    assert all(0.0 <= line["top1"] <= 1.0 and line["n_test"] == 12 for line in whole[1:])
    runner.run(bank, wanted, processes=1)
    assert standing() == whole
    (path,) = lines.RESULTS.glob("suite_*.jsonl")
    texts = path.read_text().splitlines()
    path.write_text("\n".join(texts[:2] + texts[4:]) + "\n")  # as if it had been killed: two cells are missing
    runner.run(bank, wanted, processes=1)
    again = standing()
    assert without_clock(again[-2:]) == without_clock(whole[2:4]) and len(again) == len(whole)
    assert runner.repeat(bank, "squares", "weighted", 0) == 0


def test_a_cell_that_differs_from_its_line_is_said(bank: banks.Bank) -> None:
    runner.run(bank, runner.Wanted(targets=("others",), methods=("transfer",), seeds=(1,)), processes=1)
    (path,) = lines.RESULTS.glob("suite_*.jsonl")
    changed = [json.loads(text) for text in path.read_text().splitlines()]
    changed[-1]["top1"] = 2.0
    path.write_text("".join(json.dumps(line) + "\n" for line in changed))
    assert runner.repeat(bank, "others", "transfer", 1) == 1


def test_the_draw_line(bank: banks.Bank) -> None:
    line = cells.draw_line(cells.Draw(bank=bank, target="squares", seed=0))
    assert line["n_labeled"] == 8 and set(line["scores"]) == {"probe", "parc"}
    assert set(line["alphas"]) == set(line["source_probes"]) == {"net0", "net1"}
    assert sum(line["alphas"].values()) == pytest.approx(1.0, abs=1e-5)
    assert set(line["teachers"]) == {
        one["teacher"]["name"] for one in bank.profile.methods.values() if "teacher" in one
    }


def test_methods_of_a_draw_share_labels_weights_and_order(bank: banks.Bank) -> None:
    first, second = cells.Draw(bank=bank, target="squares", seed=0), cells.Draw(bank=bank, target="squares", seed=1)
    assert set(first.labeled[0].tolist()) != set(second.labeled[0].tolist())
    one, two = (
        cells.initial(first).state_dict(),
        cells.initial(cells.Draw(bank=bank, target="squares", seed=0)).state_dict(),
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    rows = [
        first.material(bank.profile.settings(method, "squares", 0)) for method in ("transfer", "weighted", "consistent")
    ]
    assert all(np.array_equal(one.labeled, rows[0].labeled) for one in rows)
    assert not set(rows[0].labeled.tolist()) & set(rows[0].unlabeled.tolist())


def test_a_target_is_never_taught_by_its_own_pack() -> None:
    profile = protocol.load("cpu")
    bank = banks.Bank(packs=Path(), runs=Path(), profile=profile)
    for target in profile.targets:
        names = bank.names_for(target)
        assert target not in names and len(names) >= 12 and set(profile.ready) < set(names)
    assert not set(profile.targets) & set(profile.tuning)


def test_a_config_depends_on_what_a_cell_depends_on() -> None:
    profile = protocol.load("cpu")
    weighted = profile.config("weighted")
    other = profile.model_copy(update={"methods": {**profile.methods, "transfer": {"method": "transfer", "lr": 1.0}}})
    assert other.config("weighted") == weighted and other.config("transfer") != profile.config("transfer")
    by_hand = {**profile.methods, "transfer": {**profile.methods["transfer"], "warmup_fraction": 0.1}}
    assert profile.model_copy(update={"methods": by_hand}).config("transfer") == profile.config("transfer")
    longer = profile.model_copy(update={"distill": {**profile.distill, "steps": 1}})
    assert longer.config("weighted") != weighted and longer.config("draw") == profile.config("draw")
    opinions = profile.model_copy(update={"weigh": profile.weigh.model_copy(update={"also": ()})})
    assert opinions.config("weighted") == weighted and opinions.config("draw") != profile.config("draw")


@pytest.mark.parametrize("name", sorted(path.stem for path in protocol.HERE.glob("*.yaml")))
def test_every_setting_of_a_profile_is_one(name: str) -> None:
    profile = protocol.load(name)
    for method in profile.methods:
        asked = f"{method}:imagenet-lite0" if method == "single" else method
        settings = profile.settings(asked, "cifar10", 3)
        assert settings.method.name in cells.methods.METHODS, method
        problems = cells.settings_problems(settings)
        assert not problems, (method, problems)


def test_random_follows_the_seed_and_single_its_name() -> None:
    profile = protocol.load("cpu")
    drawn = {profile.settings("random", target, seed).method.options["seed"] for target in "ab" for seed in (0, 1)}
    assert len(drawn) == 4
    assert profile.settings("random", "a", 0) == profile.settings("random", "a", 0)
    assert profile.settings("single:gtsrb", "elpv", 0).method.options["source"] == "gtsrb"


def test_faster_says_what_the_net_says(bank: banks.Bank) -> None:
    from edgedistill.sources import registry

    net = registry.load(bank.section("net0"), Path())
    images = torch.rand(5, 3, 32, 32)
    for plain, quick in zip(net.forward(images), banks.faster(net).forward(images), strict=True):
        np.testing.assert_allclose(plain.numpy(), quick.numpy(), atol=1e-4)


def test_a_missing_pack_is_an_error_of_one_line(bank: banks.Bank) -> None:
    with pytest.raises(InputError, match="nowhere"):
        bank.splits("nowhere", 0)


def test_the_command_line() -> None:
    asked = arguments(["run", "--packs", "p", "--targets", "a", "b", "--seeds", "3", "4", "--minutes", "9"])
    assert (asked.targets, asked.seeds, asked.minutes) == (["a", "b"], [3, 4], 9.0)


def test_a_line_cut_short_is_passed_over_and_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lines, "RESULTS", tmp_path)
    path = lines.append("suite", {"kind": "run", "at": 1})
    path.write_text(path.read_text() + '{"kind": "ru')
    lines.append("suite", {"kind": "run", "at": 2})
    assert [line["at"] for line in standing()] == [1, 2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--profile", "nosuch"], "no profile is called nosuch"),
        (["--methods", "wieghted"], "did you mean weighted"),
        (["--seeds", "-1"], "must be 0 or more"),
        (["--processes", "0"], "1 or more"),
        (["--targets", "nowhere"], r"nowhere.*train\.parquet: no such file"),
    ],
)
def test_mistakes_are_said_before_any_work(packs: Path, tmp_path: Path, given: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        main(["run", "--packs", str(packs), "--runs", str(tmp_path), *given])
    assert not list(tmp_path.iterdir())
