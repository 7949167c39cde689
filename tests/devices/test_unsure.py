"""What a device does where it is not sure: it says "unknown", keeps its least sure frames, tells what has changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgedistill.agent import unsure
from edgedistill.agent.unsure import Answer, Drift, Keeper
from edgedistill.data import datasets
from edgedistill.recipe.data_section import Data

# a fake camera of ten frames of random squares; the blue channel, bright at first, falls to the level of the others
CAMERA = """
import numpy as np

CAP_PROP_BUFFERSIZE = 38


class VideoCapture:
    def __init__(self, source):
        self.index = -1

    def set(self, name, value):
        pass

    def read(self):
        self.index += 1
        squares = np.random.default_rng(self.index).integers(0, 40, (10, 14, 3)).astype(np.uint8)
        frame = squares.repeat(5, axis=0).repeat(5, axis=1)
        frame[:, :, 0] += np.uint8(90 - 10 * self.index)
        return self.index < 10, frame if self.index < 10 else None

    def release(self):
        pass
"""


def describe(bundle: Path, **changes: Any) -> None:
    """Change bundle.json, and each of its models by the entries of `model`."""
    path = bundle / "bundle.json"
    description = {**json.loads(path.read_text()), **changes}
    for model in description["models"]:
        model.update(description.get("model", {}))
    path.write_text(json.dumps(description))


def run_label(bundle: Path, *argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(bundle / "label.py"), *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(bundle.parent / "modules")},
    )


@pytest.fixture
def camera(tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/cv2.py").write_text(CAMERA)


def scene(seed: int) -> np.ndarray:
    """A frame that looks like that of no other seed."""
    squares = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(squares).resize((48, 48), Image.Resampling.NEAREST))


def kept(folder: Path) -> list[float]:
    """The probabilities of the listed frames; their files are all the pictures in the folder."""
    entries = [json.loads(line) for line in (folder / "kept.jsonl").read_text().splitlines()]
    assert {entry["file"] for entry in entries} == {path.name for path in folder.glob("*.png")}
    assert not list(folder.glob(".*")), "no temporary file stays"
    return [entry["probability"] for entry in entries]


def test_answer_is_the_probability_at_the_temperature() -> None:
    logits_C = np.array([2.0, 0.0, 0.0])
    best, probability, unknown = unsure.answer(logits_C, {"temperature": 2.0, "threshold": 0.6})
    # exp(1) / (exp(1) + 2)
    assert (best, unknown) == (0, True) and probability == pytest.approx(0.57612, abs=1e-5)
    assert not unsure.answer(logits_C, {"temperature": 1.0, "threshold": 0.6}).unknown
    older = unsure.answer(logits_C, {})
    assert older.probability == pytest.approx(0.78699, abs=1e-5) and not older.unknown


def test_picture_below_the_threshold_is_unknown(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 20, 3), 9, np.uint8)).save(tmp_path / "gray.png")
    assert run_label(bundle, str(tmp_path / "gray.png")).stdout.endswith(": red 33.3%\n")
    describe(bundle, model={"temperature": 1.5, "threshold": 0.4})
    assert run_label(bundle, str(tmp_path / "gray.png")).stdout.endswith(": unknown (red 33.3%)\n")


def test_least_sure_frames_are_kept(tmp_path: Path) -> None:
    keeper = Keeper(str(tmp_path / "new/kept"), 3)
    for seed, probability in enumerate((0.9, 0.5, 0.8, 0.4, 0.7, 0.95)):
        keeper.offer(scene(seed), "cat", Answer(0, probability, probability < 0.6))
    assert kept(tmp_path / "new/kept") == [0.4, 0.5, 0.7]
    first = json.loads((tmp_path / "new/kept/kept.jsonl").read_text().splitlines()[0])
    assert first["label"] == "cat" and first["unknown"] is True
    with Image.open(tmp_path / "new/kept" / first["file"]) as image:
        assert np.array_equal(np.asarray(image), scene(3))


def test_of_frames_that_look_alike_the_least_sure_is_kept(tmp_path: Path) -> None:
    keeper, frame = Keeper(str(tmp_path), 5), scene(1) // 2
    for index, probability in enumerate((0.6, 0.7, 0.5, 0.55)):
        keeper.offer(frame + np.uint8(index), "cat", Answer(0, probability, False))
    keeper.offer(scene(2), "cat", Answer(0, 0.9, False))
    assert kept(tmp_path) == [0.5, 0.9]


def test_next_session_goes_on_with_what_is_kept(tmp_path: Path) -> None:
    keeper = Keeper(str(tmp_path), 3)
    for seed, probability in enumerate((0.3, 0.5, 0.7)):
        keeper.offer(scene(seed), "cat", Answer(0, probability, False))
    Keeper(str(tmp_path), 2).offer(scene(9), "dog", Answer(1, 0.4, False))
    assert kept(tmp_path) == [0.3, 0.4]


def test_folder_of_a_killed_session_is_put_in_order(tmp_path: Path) -> None:
    Keeper(str(tmp_path), 3).offer(scene(0), "cat", Answer(0, 0.3, False))
    (tmp_path / f"kept-{'0' * 16}.png").write_bytes(b"of no line")
    (tmp_path / ".kept-abc.tmp").write_bytes(b"half a pictu")
    (tmp_path / "mine.png").write_bytes(b"not of this program")
    missing = {"file": f"kept-{'1' * 16}.png", "probability": 0.1}
    with (tmp_path / "kept.jsonl").open("a") as stream:
        stream.write(json.dumps(missing) + '\n{"file": "kept-')
    Keeper(str(tmp_path), 3)
    assert (tmp_path / "mine.png").read_bytes() == b"not of this program"
    (tmp_path / "mine.png").unlink()
    assert kept(tmp_path) == [0.3]


@pytest.mark.parametrize("name", ["../outside.png", "/etc/passwd", "mine.png", "kept-0.png", 3, None])
def test_list_leads_to_no_other_file(tmp_path: Path, name: Any) -> None:
    outside, folder = tmp_path / "outside.png", tmp_path / "kept"
    Image.fromarray(scene(0)).save(outside)
    folder.mkdir()
    Image.fromarray(scene(0)).save(folder / "mine.png")
    (folder / "kept.jsonl").write_text(json.dumps({"file": name, "probability": 0.99}) + "\n[1]\nnull\n")
    keeper = Keeper(str(folder), 1)
    keeper.offer(scene(5), "cat", Answer(0, 0.2, False))
    assert outside.is_file() and (folder / "mine.png").is_file()
    assert [entry["probability"] for entry in keeper.entries] == [0.2]


@pytest.mark.parametrize("probability", ["-1", "NaN", "Infinity", "9" * 400, '"0.1"', "null", "1.5"])
def test_line_without_a_probability_is_left_out(tmp_path: Path, probability: str) -> None:
    Keeper(str(tmp_path), 3).offer(scene(0), "cat", Answer(0, 0.3, False))
    text = (tmp_path / "kept.jsonl").read_text()
    (tmp_path / "kept.jsonl").write_text(text.replace("0.3", probability))
    assert Keeper(str(tmp_path), 3).entries == []


def test_frame_that_is_listed_twice_counts_once(tmp_path: Path) -> None:
    Keeper(str(tmp_path), 3).offer(scene(0), "cat", Answer(0, 0.6, False))
    (tmp_path / "kept.jsonl").write_text(2 * (tmp_path / "kept.jsonl").read_text())
    keeper = Keeper(str(tmp_path), 2)
    for seed, probability in ((1, 0.5), (2, 0.4)):
        keeper.offer(scene(seed), "cat", Answer(0, probability, False))
    assert kept(tmp_path) == [0.4, 0.5]


def test_fifo_in_the_folder_does_not_block(tmp_path: Path) -> None:
    name = f"kept-{'2' * 16}.png"
    os.mkfifo(tmp_path / name)
    (tmp_path / "kept.jsonl").write_text(json.dumps({"file": name, "probability": 0.1}))
    os.mkfifo(tmp_path / "drift.jsonl")
    keeper = Keeper(str(tmp_path), 3)
    keeper.add_drift({"frames": 1})
    assert keeper.entries == [] and json.loads((tmp_path / "drift.jsonl").read_text()) == {"frames": 1}


def test_drift_compares_answers_with_the_report() -> None:
    bundle = {"classes": ["cat", "dog"], "unknown": {"answered": 0.9, "shares": [0.5, 0.5]}}
    counts = Drift(bundle)
    for best, unknown in ((0, False), (0, False), (0, False), (1, False), (1, True)):
        counts.add(Answer(best, 0.5, unknown))
    line = counts.line()
    assert (line["frames"], line["answered"], line["shares"]) == (5, 0.8, {"cat": 0.75, "dog": 0.25})
    assert unsure.sentence(line) == (
        "drift: 80% of 5 frames answered, 90% expected; of the answers (expected): cat 75% (50%), dog 25% (50%)"
    )
    counts.add(Answer(1, 0.1, True))
    assert counts.line()["answered"] == 0, "a new line starts anew"


def test_drift_lines_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsure, "WINDOWS", 3)
    keeper = Keeper(str(tmp_path), 1)
    for frames in range(6):
        keeper.add_drift({"frames": frames})
    assert [json.loads(line)["frames"] for line in (tmp_path / "drift.jsonl").read_text().splitlines()] == [3, 4, 5]


@pytest.mark.usefixtures("camera")
def test_kept_frames_come_back_as_unlabeled_pictures(bundle: Path, tmp_path: Path) -> None:
    describe(bundle, model={"threshold": 0.5}, unknown={"answered": 0.9, "shares": [0.2, 0.3, 0.5]})
    process = run_label(bundle, "--camera", "0", "--frames", "10", "--keep", "3", str(tmp_path / "kept"))
    assert process.returncode == 0, process.stderr
    # logits 0.1 * mean: frame i has blue 9 - i above the others, exp(9 - i) / (exp(9 - i) + 2) of the softmax
    answers = [line.split()[2] for line in process.stdout.splitlines()]
    assert answers == ["blue"] * 9 + ["unknown"]
    assert "drift: 90% of 10 frames answered, 90% expected" in process.stderr
    assert kept(tmp_path / "kept") == sorted(kept(tmp_path / "kept")) and len(kept(tmp_path / "kept")) == 3
    drift = json.loads((tmp_path / "kept/drift.jsonl").read_text())
    assert (drift["frames"], drift["answered"], drift["shares"]["blue"]) == (10, 0.9, 1.0)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.fromarray(scene(ord(name))).save(tmp_path / "photos" / name / "1.png")
    section = Data.model_validate({"kind": "folder", "root": "photos", "unlabeled": "kept"})
    train = datasets.listing(section, tmp_path).train
    unlabeled = [row for row in range(len(train)) if train.labels_N[row] == -1]
    assert len(unlabeled) == 3
    for row in unlabeled:
        with train.load(row) as image:
            assert image.size == (70, 50)


@pytest.mark.usefixtures("camera")
def test_wrong_keep_is_one_line(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = str(tmp_path / "kept")
    for arguments, message in (
        (["--camera", "0", "--keep", "0", folder], "--keep 0: the number of frames is from 1 to 10000"),
        (["--camera", "0", "--keep", folder, "3"], "the number of frames is from 1 to 10000, and the folder stands"),
        (["--camera", "0", "--keep", "3", str(tmp_path / "file")], "--keep: [Errno 17] File exists"),
        ([str(tmp_path / "x.png"), "--keep", "3", folder], "--keep goes with --camera"),
    ):
        process = run_label(bundle, *arguments)
        assert process.returncode == 2 and message in process.stderr, process.stderr
        assert "Traceback" not in process.stderr and not Path(folder).exists()


def test_kept_frame_that_was_taken_away_is_no_error(tmp_path: Path) -> None:
    keeper = Keeper(str(tmp_path), 1)
    keeper.offer(scene(0), "cat", Answer(0, 0.9, False))
    for path in tmp_path.glob("*.png"):
        path.unlink()
    keeper.offer(scene(1), "cat", Answer(0, 0.5, False))
    assert kept(tmp_path) == [0.5]


def test_fewer_frames_are_kept_of_those_that_are_there(tmp_path: Path) -> None:
    keeper = Keeper(str(tmp_path), 6)
    for seed in range(6):
        keeper.offer(scene(seed), "cat", Answer(0, 0.1 + 0.1 * seed, False))
    for entry in keeper.entries[:3]:
        (tmp_path / entry["file"]).unlink()  # taken away to be labeled
    Keeper(str(tmp_path), 3)
    assert len(kept(tmp_path)) == 3


def test_numbers_that_are_none_are_no_answer() -> None:
    assert unsure.answer(np.array([np.nan, 1.0, 2.0]), {"threshold": 0.9}).unknown
