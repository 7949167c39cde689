"""`edgedistill quantize` and `bench` of a classifier of somebody else, from the command line and in Python."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner

import edgedistill as ed
from benchmarks.own_models import CLASSES, Net, scripted, textures
from edgedistill.cli import app
from edgedistill.errors import InputError
from edgedistill.export.infer import predict_onnx
from edgedistill.imported import bench, images, settings
from edgedistill.imported.quantize import folder_of
from edgedistill.steps import timing
from tests.helpers.paths import ROOT

NAMES = ("flat", "rising", "upright", "falling")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx, photos/, labels.csv and classes.txt; the odd pictures have a label."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "photos").mkdir()
    images_NHWC, labels_N = textures(96, seed=3)
    rows = ["path,label"]
    for index, (image, label) in enumerate(zip(images_NHWC, labels_N, strict=True)):
        Image.fromarray(image).save(folder / f"photos/{index:03}.png")
        rows.append(f"photos/{index:03}.png,{NAMES[label] if index // CLASSES % 2 else ''}")
    (folder / "photos/broken.png").write_bytes(b"no picture")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "classes.txt").write_text("\n".join(NAMES), encoding="utf-8")
    scripted(Net(), folder / "model.onnx")
    return folder


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No runtime on this machine, so that nothing is timed."""
    monkeypatch.setattr(timing, "runtimes", dict)
    yield


def command(*words: str | Path) -> tuple[int, str, str]:
    """The exit code, stdout, and the error of a command."""
    outcome = CliRunner().invoke(app, [str(word) for word in words])
    return outcome.exit_code, outcome.stdout, str(outcome.exception or "")


def test_model_gets_graphs_guards_bundle_and_record(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untimed: None
) -> None:
    monkeypatch.chdir(tmp_path)
    model, photos = place / "model.onnx", place / "photos"
    labels = ["--labels", place / "labels.csv", "--classes", place / "classes.txt"]
    code, printed, error = command("quantize", model, "--images", photos, *labels)
    assert code == 0, error
    out = tmp_path / "runs/quantize-model"
    record = json.loads((out / "quantized.json").read_text(encoding="utf-8"))
    assert record["classes"] == list(NAMES) and record["compared_by"] == "labels"
    assert record["images"] == {"calibration": 48, "compared": 48, "labeled": 48}
    accuracy = {rung["artefact"]: rung["accuracy"]["top1"] for rung in record["ladder"]}
    assert set(accuracy) == {"fp32", "fp16", "int8-cpu", "int8-tensorrt"}
    assert min(accuracy.values()) > 0.9 and "accuracy" in printed and "bundle: runs/quantize-model/bundle" in printed
    for name in accuracy:
        file = f"student.{name}.onnx"
        assert (out / file).read_bytes() == (out / "bundle" / file).read_bytes()
    assert {(out / name).is_file() for name in ("calibration.json", "guard.json")} == {True}
    quantized = ed.Quantized("runs/quantize-model")
    assert quantized.report == record and str(quantized) == printed.strip()
    answers = quantized.student.predict(sorted(photos.glob("0*.png"))[:40])
    right = [answer.label == NAMES[index % CLASSES] for index, answer in enumerate(answers)]
    assert np.mean(right) > 0.9
    code, printed, error = command(
        *("bench", model, "--device", "local", "--set", "bench.seconds=0.05", "--set", "bench.samples=20"),
        *("--set", "bench.processes=1", "--set", "bench.rounds=1", "--backend", "onnxruntime-cpu"),
    )
    assert code == 0, error
    assert [name in printed for name in ("fp32", "int8-cpu", "int8-tensorrt")] == [True, True, False]
    assert (out / "bench/local/onnxruntime-cpu-int8-cpu.json").is_file()


def test_without_labels_agreement_is_compared_and_the_page_of_python_runs(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untimed: None
) -> None:
    """The example of docs/python.md."""
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    program = page.partition("```python own-model\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").symlink_to(place / "model.onnx")
    (tmp_path / "more").symlink_to(place / "photos")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/lying").symlink_to(place / "photos/000.png")
    scope: dict[str, object] = {"ed": ed}
    exec(program, scope)
    report = ed.Quantized("runs/quantize-model").report
    assert report["compared_by"] == "agreement" and report["images"]["labeled"] == 0
    assert report["classes"] == ["0", "1", "2", "3"] and report["preprocessing"]["mean"] == [0.5] * 3
    ladder = {rung["artefact"]: rung for rung in report["ladder"]}
    assert ladder["int8-cpu"]["accuracy"]["top1"] == ladder["int8-cpu"]["agreement_with_torch"]
    assert all("by fp32's own labels" in choice["why"] for choice in report["kept"])


def test_input_that_is_no_square_goes_the_whole_way(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untimed: None
) -> None:
    """48 x 64: the bundle states it, and predict, label.py and the meter bring pictures to it."""
    monkeypatch.chdir(tmp_path)
    model = scripted(Net(), tmp_path / "wide.onnx", shape=(1, 3, 48, 64))
    code, printed, error = command("quantize", model, "--images", place / "photos", "--fit", "squash")
    assert code == 0, error
    assert "4 classes at 48 x 64 px" in printed
    bundle = tmp_path / "runs/quantize-wide/bundle"
    described = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    assert described["input_px"] == described["store_px"] == [48, 64]
    assert np.load(bundle / "images.npy").shape[1:] == (48, 64, 3)
    student = ed.Quantized("runs/quantize-wide").student
    assert student.input_px == (48, 64) and "48 x 64 px" in repr(student)
    photos = sorted((place / "photos").glob("0[0-3]*.png"))
    answers = student.predict(photos)
    squashed_NHWC = np.stack([np.asarray(Image.open(photo).resize((64, 48), Image.BILINEAR)) for photo in photos])
    graph = bundle / f"student.{described['default']}.onnx"
    expected_N = predict_onnx(graph, squashed_NHWC).argmax(axis=1)
    assert [answer.label for answer in answers] == [str(label) for label in expected_N]
    labeled = subprocess.run(
        [sys.executable, bundle / "label.py", *photos[:3]], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [line.split()[1] for line in labeled] == [answer.label for answer in answers[:3]]
    quick = {"seconds": 0.05, "samples": 20, "processes": 1, "rounds": 1, "picture": (96, 72)}
    reports = bench.bench(model, bench.settings({**quick, "backends": ["onnxruntime-cpu"]}))
    assert {report.artefact: report.agreement_with_host for report in reports} == {"fp32": 1.0, "int8-cpu": 1.0}
    assert set(reports[0].to_label) == {"file", "frame"}


def test_bare_file_is_measured_on_noise(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = {"seconds": 0.05, "samples": 20, "processes": 1, "rounds": 1, "backends": ["onnxruntime-cpu"]}
    (report,) = bench.bench(place / "model.onnx", bench.settings(quick))
    assert (report.artefact, report.accuracy, report.agreement_with_host) == ("fp32", None, 1.0)
    assert "on noise" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--mean", "0.5,0.5"], "preprocessing: mean"),
        (["--std", "1,0,1"], "std: .* is not above 0"),
        (["--preprocessing", "sizes.yaml"], "sizes.yaml: .*Extra inputs"),
        (["--classes", "few.txt"], "1 names, and the model has 4 classes"),
        (["--labels", "odd.csv"], "has the label cat, which is no class of the model"),
        (["--output", "scorez"], "has no output scorez"),
        (["--images", "no/such"], "is not a folder"),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    words: list[str], problem: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sizes.yaml").write_text("size: 3\n", encoding="utf-8")
    (tmp_path / "few.txt").write_text("one\n", encoding="utf-8")
    (tmp_path / "odd.csv").write_text("path,label\na.png,cat\nb.png,0\nc.png,1\nd.png,2\n", encoding="utf-8")
    chosen = words if words[0] == "--images" else ["--images", str(place / "photos"), *words]
    if words[0] == "--labels":
        chosen += ["--classes", str(place / "classes.txt")]
    code, _, error = command("quantize", place / "model.onnx", *chosen)
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(error)
    assert code == 1 and not (tmp_path / "runs").exists()


def test_flags_come_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "preprocessing.yaml"
    file.write_text("mean: [0, 0, 0]\nrange: 255\nchannels: BGR\n", encoding="utf-8")
    merged = settings.preprocessing(file, {"mean": "1,2,3", "fit": None})
    assert (merged.mean, merged.range, merged.channels, merged.fit) == ((1.0, 2.0, 3.0), 255, "BGR", "crop")


@pytest.mark.parametrize(
    ("key", "text"),
    [("names", "{0: 'a', 1: 'b'}"), ("classes", '["a", "b"]'), ("labels", "a,b"), ("class_names", "['a', 'b']")],
)
def test_class_names_of_the_metadata(key: str, text: str) -> None:
    assert images.class_names({"other": "c,d", key: text}, 2, (), None) == ("a", "b")
    assert images.class_names({key: text}, 3, (), None) == ("0", "1", "2")


def test_compared_images_do_not_calibrate(tmp_path: Path) -> None:
    images_NHWC = textures(30, seed=1)[0]
    for index, image in enumerate([*images_NHWC, *images_NHWC]):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    pictures = images.read(tmp_path, None, ("a",) * 4, px=48, fit="crop", calibration_images=40)
    calibration = {image.tobytes() for image in pictures.calibration_NHWC}
    assert len(pictures.calibration_NHWC) == 30
    assert 0 < len(pictures.compared_NHWC) < 30
    assert not calibration & {image.tobytes() for image in pictures.compared_NHWC}


@pytest.mark.slow
def test_speed_guard_times_both_graphs(place: Path, tmp_path: Path) -> None:
    report = ed.quantize(place / "model.onnx", place / "photos", out=tmp_path / "out").report
    (cpu,) = (choice for choice in report["kept"] if choice["target"] == "cpu")
    assert len(cpu["ratio"]) == 3 and "times as fast as fp32" in cpu["why"]
    assert onnx.load(tmp_path / "out/student.int8-cpu.onnx").graph.input[0].name == "images"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({str(index): f"c{index}" for index in range(12)}),
        json.dumps({f"c{index}": index for index in range(12)}),
    ],
)
def test_class_names_of_a_mapping_are_in_the_order_of_the_indices(text: str) -> None:
    assert images.class_names({"names": text}, 12, (), None) == tuple(f"c{index}" for index in range(12))


def labels_of(folder: Path, *names: str) -> Path:
    lines = [f"{index}.png,{name}" for index, name in enumerate(names)]
    (folder / "labels.csv").write_text("\n".join(["path,label", *lines, ""]), encoding="utf-8")
    return folder / "labels.csv"


def test_names_whose_order_is_unclear_are_refused(tmp_path: Path) -> None:
    assert images.class_names({}, 2, (), labels_of(tmp_path, "dog", "cat")) == ("cat", "dog")
    counted = labels_of(tmp_path, *(str(number) for number in range(1, 13)))
    with pytest.raises(InputError, match=r"one order as numbers and another as text; name .* with --classes"):
        images.class_names({}, 12, (), counted)
    cranes = {"names": "['crane', 'dog', 'crane']"}
    assert images.class_names(cranes, 3, (), None) == ("crane", "dog", "crane")
    with pytest.raises(InputError, match="the model gives two of its classes one name"):
        images.class_names(cranes, 3, (), labels_of(tmp_path, "crane", "dog"))


def test_classes_may_share_a_name_unless_labels_name_them(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("crane\ndog\ncrane\n", encoding="utf-8")
    names = settings.names(tmp_path / "classes.txt")
    assert images.class_names({}, 3, names, None) == ("crane", "dog", "crane")
    with pytest.raises(InputError, match=r"--classes: crane stands twice, and .*labels.csv names classes"):
        images.class_names({}, 3, names, labels_of(tmp_path, "crane", "dog"))


def test_graphs_of_another_model_of_that_name_are_not_replaced(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record, model = tmp_path / "runs/quantize-model/quantized.json", place / "model.onnx"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"model": str(tmp_path / "other/model.onnx"), "sha256": "0" * 64}), encoding="utf-8")
    with pytest.raises(InputError, match=r"has the graphs of .*other/model.onnx, and would lose them; .*--out"):
        ed.quantize(model, place / "photos")
    assert record.is_file()
    folder = Path("runs/quantize-model")
    assert folder_of(model, None, "0" * 64) == folder, "the same content elsewhere"
    assert folder_of(tmp_path / "other/model.onnx", None, "1" * 64) == folder, "other content of the same file"
    assert folder_of(model, folder, "1" * 64) == folder, "named by --out"


def test_names_in_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes("\ufeffcat\r\ndog\r\n".encode())
    assert settings.names(tmp_path / "classes.txt") == ("cat", "dog")


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"max_drop": 150}, "max_drop: Input should be less than or equal to 100"),
        ({"max_drop": -1}, "max_drop: Input should be greater than or equal to 0"),
        ({"max_drop": float("nan")}, "max_drop: Input should be"),
        ({"calibration_images": 0}, "calibration_images: Input should be greater than 0"),
    ],
)
def test_number_that_is_no_guard_is_an_input_error(place: Path, setting: dict[str, float], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        ed.quantize(place / "model.onnx", place / "photos", **setting)  # type: ignore[arg-type]


def test_command_says_which_guard_is_too_large(place: Path) -> None:
    model, photos = place / "model.onnx", place / "photos"
    code, _, error = command("quantize", model, "--images", photos, "--max-drop", "150")
    assert code == 1 and error.startswith("max_drop: Input should be less than or equal to 100; docs/your-model.md")
