"""The suite on miniature packs: reproducible cells, no repeated cells, and no target among its own sources."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from benchmarks import lines
from benchmarks.suite import bank as banks
from benchmarks.suite import board, cells, draws, protocol, runner
from benchmarks.suite.__main__ import arguments, main
from benchmarks.suite.subsets import Subset
from edgedistill.distill import peer
from edgedistill.errors import InputError
from edgedistill.labels import prior
from tests.helpers.packs import pack
from tests.helpers.suite_lines import without_clock

METHODS = ("transfer", "fixmatch", "random", "weighted", "stacked", "consistent")


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
    settings = protocol.load("cpu").model_dump()
    settings |= {
        "methods": settings["methods"] | protocol.load("cpu_evidence").methods,
        "store_px": 32,
        "initial": "",
        "finetuned": {},
        "labels_per_class": {"default": 4},
        "targets": ("squares", "others"),
        "student": {"family": "micro", "width": 8, "input_px": 16},
        "ready": {
            f"net{seed}": {"kind": "timm", "model": "resnet10t", "pretrained": False, "input_px": 32, "seed": seed}
            for seed in range(2)
        },
        "weigh": {"metric": "probe", "also": ["parc"], "bootstrap": 2},
        "distill": settings["distill"] | {"steps": 3, "batch_labeled": 4, "batch_unlabeled": 4},
    }
    return banks.Bank(packs=packs, runs=runs, profile=protocol.Profile.model_validate(settings))


def suite_lines() -> list[dict[str, Any]]:
    return list(lines.read("suite"))


def test_stopped_suite_resumes_and_cells_are_reproducible(bank: banks.Bank) -> None:
    selection = runner.Selection(targets=("squares",), methods=METHODS, seeds=(0,))
    runner.run(bank, selection, processes=1)
    complete = suite_lines()
    assert [line["kind"] for line in complete] == ["draw"] + ["run"] * len(METHODS)
    assert [line["method"] for line in complete[1:]] == list(METHODS)
    assert all(0.0 <= line["top1"] <= 1.0 and line["n_test"] == 12 for line in complete[1:])
    runner.run(bank, selection, processes=1)
    assert suite_lines() == complete
    (path,) = lines.RESULTS.glob("suite_*.jsonl")
    texts = path.read_text().splitlines()
    path.write_text("\n".join(texts[:2] + texts[4:]) + "\n")  # two cells are missing, as after a kill
    runner.run(bank, selection, processes=1)
    resumed = suite_lines()
    assert without_clock(resumed[-2:]) == without_clock(complete[2:4]) and len(resumed) == len(complete)
    assert runner.rerun(bank, "squares", "weighted", 0) == 0


def test_lines_of_another_processor_are_run_again(bank: banks.Bank) -> None:
    selection = runner.Selection(targets=("squares",), methods=("transfer",), seeds=(0,))
    runner.run(bank, selection, processes=1)
    (path,) = lines.RESULTS.glob("suite_*.jsonl")
    path.write_text(json.dumps(suite_lines()[0] | {"cpu": "another"}) + "\n")
    runner.run(bank, selection, processes=1)
    assert runner.rerun(bank, "squares", "transfer", 0) == 0
    assert list(board.boards(suite_lines())[0].runs) == suite_lines()[1:]


def test_pack_with_test_images_in_train_is_refused(bank: banks.Bank, packs: Path, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(packs / "squares", tmp_path / "packs/squares"))
    parts = [datasets.Dataset.from_parquet(str(packs / f"squares/{name}.parquet")) for name in ("train", "test")]
    datasets.concatenate_datasets(parts).to_parquet(str(mixed / "train.parquet"))
    with pytest.raises(InputError, match="have the pixels of test images"):
        _ = draws.Draw(bank=replace(bank, packs=mixed.parent), target="squares", seed=0).splits


def test_cell_that_differs_from_its_line_is_reported(bank: banks.Bank) -> None:
    runner.run(bank, runner.Selection(targets=("others",), methods=("transfer",), seeds=(1,)), processes=1)
    (path,) = lines.RESULTS.glob("suite_*.jsonl")
    changed = [json.loads(text) for text in path.read_text().splitlines()]
    changed[-1]["top1"] = 2.0
    path.write_text("".join(json.dumps(line) + "\n" for line in changed))
    assert runner.rerun(bank, "others", "transfer", 1) == 1


def test_row_with_a_tuned_source_learns_from_another_teacher(bank: banks.Bank) -> None:
    row = bank.profile.methods["auto-ridge"]
    tuned = row | {"teacher": {"name": "selftrained", "tuned": 1}}
    profile = bank.profile.model_copy(update={"methods": bank.profile.methods | {"auto-tuned": tuned}})
    assert profile.config("auto-tuned") != profile.config("auto-ridge") == bank.profile.config("auto-ridge")
    assert profile.config("draw") == bank.profile.config("draw")
    draw = draws.Draw(bank=replace(bank, profile=profile), target="squares", seed=0)
    line = cells.run_cell(draw, "auto-tuned")
    assert line["method"] == "auto-tuned" and 0.0 <= line["top1"] <= 1.0
    (entry,) = (bank.runs / "cache/tuned").glob("*.safetensors")
    modified_ns = entry.stat().st_mtime_ns
    assert without_clock([cells.run_cell(draw, "auto-tuned")]) == without_clock([line])
    assert entry.stat().st_mtime_ns == modified_ns


def test_baselines_need_no_source(bank: banks.Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a source was loaded")

    monkeypatch.setattr(banks.Bank, "source_section", refuse)
    monkeypatch.setattr(banks.Bank, "network", refuse)
    baselines = ("transfer", "fixmatch", "linear_probe")
    selection = runner.Selection(targets=("squares",), methods=baselines, seeds=(2,))
    runner.prepare(bank, selection, processes=1)
    runner.run(bank, selection, processes=1)
    assert [(line["kind"], line["method"]) for line in suite_lines()] == [("run", name) for name in baselines]


def test_pack_may_have_another_directory(bank: banks.Bank) -> None:
    renamed = banks.Bank(
        packs=bank.packs, runs=bank.runs, profile=bank.profile.model_copy(update={"packs": {"large": "others"}})
    )
    assert renamed.pack_hashes("large") == bank.pack_hashes("others") != bank.pack_hashes("squares")
    large, others = renamed.splits("large", seed=0, labels=4), bank.splits("others", seed=0, labels=4)
    assert large.train.pixels_hash == others.train.pixels_hash
    with pytest.raises(InputError, match=r"others/train\.parquet"):
        banks.Bank(packs=Path("nowhere"), runs=bank.runs, profile=renamed.profile).pack_hashes("large")


def test_lines_of_a_profile_are_in_a_file_of_its_own(bank: banks.Bank) -> None:
    runner.run(bank, runner.Selection(targets=("others",), methods=("transfer",), seeds=(0,)), processes=1)
    (path,) = lines.RESULTS.iterdir()
    assert path.name.startswith("suite_cpu_")


def test_draw_line_has_scores_weights_and_teachers(bank: banks.Bank) -> None:
    line = cells.draw_line(draws.Draw(bank=bank, target="squares", seed=0))
    assert line["n_labeled"] == 8 and set(line["scores"]) == {"probe", "parc"}
    assert set(line["alphas"]) == set(line["source_probes"]) == {"net0", "net1"}
    assert sum(line["alphas"].values()) == pytest.approx(1.0, abs=1e-5)
    assert set(line["teachers"]) == {
        method["teacher"]["name"] for method in bank.profile.methods.values() if "teacher" in method
    }


def test_methods_of_a_draw_share_labels_weights_and_order(bank: banks.Bank) -> None:
    first, second = draws.Draw(bank=bank, target="squares", seed=0), draws.Draw(bank=bank, target="squares", seed=1)
    assert set(first.labeled[0].tolist()) != set(second.labeled[0].tolist())
    weights, same_weights = (
        draws.initial_student(first).state_dict(),
        draws.initial_student(draws.Draw(bank=bank, target="squares", seed=0)).state_dict(),
    )
    assert all(torch.equal(weights[name], same_weights[name]) for name in weights)
    materials = [
        first.material(bank.profile.settings(method, "squares", 0)) for method in ("transfer", "weighted", "consistent")
    ]
    assert all(np.array_equal(material.labeled, materials[0].labeled) for material in materials)
    assert not set(materials[0].labeled.tolist()) & set(materials[0].unlabeled.tolist())


@pytest.fixture
def natural_bank(bank: banks.Bank) -> banks.Bank:
    natural = protocol.load("cpu_natural")
    return replace(bank, profile=bank.profile.model_copy(update={"labeled": "natural", "methods": natural.methods}))


def test_natural_draw_has_as_many_labels_and_no_image_twice(natural_bank: banks.Bank, bank: banks.Bank) -> None:
    six = [draws.Draw(bank=natural_bank, target="squares", seed=seed) for seed in range(6)]
    truth = bank.truth("squares")
    for draw in six:
        rows, labels = draw.labeled
        assert len(rows) == 8 and np.array_equal(truth[rows], labels)
        assert sorted([*rows, *draw.splits.unlabeled_rows]) == list(range(40))
    assert len({tuple(np.bincount(draw.labeled[1], minlength=2)) for draw in six}) > 1


def test_class_with_a_single_label_has_weights_and_a_teacher(natural_bank: banks.Bank) -> None:
    draw = draws.Draw(bank=natural_bank, target="squares", seed=0)
    truth = natural_bank.truth("squares")
    rows = np.concatenate([np.flatnonzero(truth == 0)[:5], np.flatnonzero(truth == 1)[:1]])
    splits = replace(draw.splits, labeled_rows=rows, labeled_labels=truth[rows])
    # the other classes need a pair of each other: with one class left no source can be told from another
    vars(draw)["splits"] = replace(splits, classes=("red", "blue", "green"))
    vars(draw)["labeled"] = (np.append(rows, [38, 36]), np.append(truth[rows], [2, 2]))
    assert sum(draw.weights.alphas.values()) == pytest.approx(1)
    choice = natural_bank.profile.settings("auto", "squares", 0).teacher
    assert np.isfinite(draw.teacher(choice, "labels")).all()


def test_every_method_of_a_draw_has_the_same_prior(natural_bank: banks.Bank) -> None:
    draw, profile = draws.Draw(bank=natural_bank, target="squares", seed=0), natural_bank.profile
    shares = draw.prior("shares")
    assert shares is not None and shares.stated and shares.shares_C == pytest.approx([0.5, 0.5])
    labels = draw.prior("labels")
    assert labels is not None and not labels.stated and draw.prior("none") is None
    every = {method: profile.knowledge(method) for method in profile.methods}
    compared = ("transfer", "fixmatch", "weighted", "auto")
    known = {f"{base}{end}": every[f"{base}{end}"] for base in compared for end in ("", "-labels", "-shares")}
    assert sorted(known.values()) == sorted(["none", "labels", "shares"] * 4)
    shifts = [
        draw.material(profile.settings(method, "squares", 0), known[method]).label_shift_C
        for method in known
        if known[method] == "shares"
    ]
    assert all(np.array_equal(shift, shifts[0]) for shift in shifts)


def test_prior_enters_the_configuration_and_the_student(
    natural_bank: banks.Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prior, "LEAST_IMAGES", 10)
    monkeypatch.setattr(draws.Draw, "prior", lambda draw, knowledge: tilted if knowledge == "shares" else None)
    tilted = prior.Prior(shares_C=np.array([0.999, 0.001]), score="top1")
    draw, profile = draws.Draw(bank=natural_bank, target="squares", seed=0), natural_bank.profile
    assert len({profile.config(method) for method in profile.methods}) == len(profile.methods)
    line = cells.run_cell(draw, "transfer-shares")
    assert line["balanced_accuracy"] == 0.5 != cells.run_cell(draw, "transfer")["balanced_accuracy"]


def test_target_is_never_among_its_own_sources() -> None:
    profile = protocol.load("cpu")
    bank = banks.Bank(packs=Path(), runs=Path(), profile=profile)
    for target in profile.targets:
        names = bank.sources_for(target)
        assert target not in names and len(names) >= 12 and set(profile.ready) < set(names)
    assert not set(profile.targets) & set(profile.tuning)


def test_config_depends_only_on_settings_of_cell() -> None:
    profile = protocol.load("cpu")
    weighted = profile.config("weighted")
    changed = profile.model_copy(update={"methods": {**profile.methods, "transfer": {"method": "transfer", "lr": 1.0}}})
    assert changed.config("weighted") == weighted and changed.config("transfer") != profile.config("transfer")
    by_hand = {**profile.methods, "transfer": {**profile.methods["transfer"], "warmup_fraction": 0.1}}
    assert profile.model_copy(update={"methods": by_hand}).config("transfer") == profile.config("transfer")
    longer = profile.model_copy(update={"distill": {**profile.distill, "steps": 1}})
    assert longer.config("weighted") != weighted and longer.config("draw") == profile.config("draw")
    fewer_metrics = profile.model_copy(update={"weigh": profile.weigh.model_copy(update={"also": ()})})
    assert fewer_metrics.config("weighted") == weighted and fewer_metrics.config("draw") != profile.config("draw")


@pytest.mark.parametrize("name", sorted(path.stem for path in protocol.HERE.glob("*.yaml")))
def test_every_method_of_profile_has_valid_settings(name: str) -> None:
    profile = protocol.load(name)
    for method in profile.methods:
        name_of_run = f"{method}:imagenet-lite0" if method == "single" else method
        settings = profile.settings(name_of_run, "cifar10", 3)
        assert settings.method.name in cells.methods.METHODS, method
        problems = cells.settings_problems(settings)
        assert not problems, (method, problems)


def test_random_depends_on_seed_and_single_on_its_name() -> None:
    profile = protocol.load("cpu")
    seeds = {profile.settings("random", target, seed).method.options["seed"] for target in "ab" for seed in (0, 1)}
    assert len(seeds) == 4
    assert profile.settings("random", "a", 0) == profile.settings("random", "a", 0)
    assert profile.settings("single:gtsrb", "elpv", 0).method.options["source"] == "gtsrb"


def test_faster_net_gives_same_outputs(bank: banks.Bank) -> None:
    from edgedistill.sources import registry

    net = registry.load(bank.source_section("net0"), Path())
    images = torch.rand(5, 3, 32, 32)
    for plain, quick in zip(net.forward(images), banks.with_onnxruntime(net).forward(images), strict=True):
        np.testing.assert_allclose(plain.numpy(), quick.numpy(), atol=1e-4)


def test_missing_pack_is_an_error(bank: banks.Bank) -> None:
    with pytest.raises(InputError, match="nowhere"):
        bank.splits("nowhere", 0)


def test_options_of_command_line() -> None:
    options = arguments(["run", "--packs", "p", "--targets", "a", "b", "--seeds", "3", "4", "--minutes", "9"])
    assert (options.targets, options.seeds, options.minutes) == (["a", "b"], [3, 4], 9.0)


def test_truncated_line_is_skipped_and_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lines, "RESULTS", tmp_path)
    path = lines.append("suite", {"kind": "run", "number": 1})
    path.write_text(path.read_text() + '{"kind": "ru')
    lines.append("suite", {"kind": "run", "number": 2})
    assert [line["number"] for line in suite_lines()] == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--profile", "nosuch"], "no profile is called nosuch"),
        (["--methods", "wieghted"], "did you mean weighted"),
        (["--seeds", "-1"], "must be 0 or more"),
        (["--processes", "0"], "1 or more"),
        (["--targets", "nowhere"], r"nowhere.*train\.parquet: no such file"),
    ],
)
def test_mistakes_are_reported_before_any_work(packs: Path, tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(["run", "--packs", str(packs), "--runs", str(tmp_path), *options])
    assert not list(tmp_path.iterdir())


def with_rows(bank: banks.Bank, rows: dict[str, dict[str, Any]]) -> banks.Bank:
    return replace(bank, profile=bank.profile.model_copy(update={"methods": rows}))


def test_rows_with_part_of_the_sources(bank: banks.Bank) -> None:
    auto = {"method": "adapted", "teacher": {"name": "selftrained"}, "head_start": "ridge", "level": 0.05}
    rows = {name: {**auto, "sources": choice} for name, choice in {"a-best": "best", "a-own": "own", "a-1": 1}.items()}
    draw = draws.Draw(bank=with_rows(bank, {"auto": auto, **rows}), target="squares", seed=0)
    assert draw.of_row("auto") is draw
    best = max(draw.weights.alphas, key=lambda name: draw.weights.alphas[name])
    assert list(draw.of_row("a-best").features) == [best]
    assert [len(draws.Draw(bank=draw.bank, target="squares", seed=seed).of_row("a-1").features) for seed in (0, 1)]
    own = draw.of_row("a-own").features[draws.OWN]
    assert own.shape == (len(draw.splits.train.hashes), draws.initial_student(draw).head.in_features)
    assert all(0.0 <= cells.run_cell(draw, name)["top1"] <= 1.0 for name in rows)


def test_row_with_a_peer_learns_from_the_student_of_transfer(bank: banks.Bank) -> None:
    distill = bank.profile.distill
    transfer = {"method": "transfer", "batch_labeled": distill["batch_labeled"] + distill["batch_unlabeled"]}
    auto = {"method": "adapted", "teacher": {"name": "selftrained"}, "level": 0.05}
    rows = {"transfer": transfer, "auto": auto, "auto-peer": {**auto, "peer": True}}
    draw = draws.Draw(bank=with_rows(bank, rows), target="squares", seed=0)
    profile, kept = draw.bank.profile, bank.runs / "cache/peers"
    assert profile.config("auto-peer") != profile.config("auto")
    cells.run_cell(draw, "transfer")
    before = list(kept.iterdir())
    apart, joined = (cells.train_student(draw, name)[1] for name in ("auto", "auto-peer"))
    assert list(kept.iterdir()) == before, "its peer is the student of transfer, which is trained once"
    pair = [task.material.teacher_NC for task in (apart, joined)]
    logits = [np.load(file) for file in before if len(np.load(file)) == len(draw.splits.train.hashes)]
    share = cells.peer_share(draw, "auto-peer")
    assert any(np.allclose(pair[1], peer.averaged(pair[0], logits_NC, share)) for logits_NC in logits)
    samples = {method: cells.run_cell(draw, method)["samples"] for method in ("auto", "auto-peer")}
    assert samples == {"auto": 3 * 8, "auto-peer": (3 + 3 + 1 + 1) * 8}, "the student, its peer, and two halves"


def test_rows_with_more_labels_run_where_the_pack_has_them(bank: banks.Bank) -> None:
    """Twenty images a class: four times four labels would leave fewer than as many without one."""
    rows = {f"transfer-{times}x": {"method": "transfer", "labels": times} for times in (2, 4)}
    more = with_rows(bank, {"transfer": {"method": "transfer"}, **rows})
    runner.run(more, runner.Selection(targets=("squares",), methods=("transfer", *rows), seeds=(0,)), processes=1)
    assert [line["method"] for line in suite_lines()] == ["transfer", "transfer-2x"]
    assert "times_the_labels" not in suite_lines()[0] and suite_lines()[1]["times_the_labels"] == 2
    draw = draws.Draw(bank=more, target="squares", seed=0)
    assert (len(draw.labeled[0]), len(draw.of_row("transfer-2x").labeled[0])) == (8, 16)


def test_subset_has_some_classes_numbered_anew(bank: banks.Bank) -> None:
    subset = Subset(pack="squares", seed=1, classes=1)
    changes = {"subsets": {"one": subset}, "finetuned": {"squares": 3, "others": 3}}
    part = replace(bank, profile=bank.profile.model_copy(update=changes))
    assert part.sources_for("one") == [*bank.profile.ready, "others"]
    folder = part.folder("one")
    assert folder == bank.runs / "packs/squares-1-1"
    drawn = int(np.random.default_rng(1).permutation(2)[0])
    for name, count in (("train", 40), ("test", 12)):
        rows = datasets.Dataset.from_parquet(str(folder / f"{name}.parquet"))
        assert rows.features["label"].names == [["red", "blue"][drawn]] and set(rows["label"]) == {0}
        whole = datasets.Dataset.from_parquet(str(bank.packs / f"squares/{name}.parquet"))
        own = [row["image"] for row in whole if row["label"] == drawn]
        assert len(own) == count // 2
        assert all(np.array_equal(*pair) for pair in zip(rows["image"], own, strict=True))
    written = (folder / "train.parquet").stat().st_mtime_ns
    assert part.folder("one") == folder and (folder / "train.parquet").stat().st_mtime_ns == written


def test_initial_weights_that_know_a_target_are_refused() -> None:
    settings = protocol.load("confirm_cifar100").model_dump()
    with pytest.raises(ValidationError, match="trained on the labels of cifar100-a, cifar100-b, cifar100-c"):
        protocol.Profile.model_validate(settings | {"initial": "cifar100"})
