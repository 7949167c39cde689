"""The inventory: the entries it accepts, and its messages about invalid ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgedistill.devices import inventory
from edgedistill.errors import InputError
from edgedistill.measurements import Device
from tests.helpers.paths import ROOT

SHIPPED = ROOT / "deploy/devices.yaml"


def load(tmp_path: Path, text: str) -> dict[str, Device]:
    path = tmp_path / "devices.yaml"
    path.write_text(text)
    return inventory.load(path)


def test_local_device_always_exists(tmp_path: Path) -> None:
    assert inventory.load(None) == {"local": Device(name="local")}
    assert load(tmp_path, "") == {"local": Device(name="local")}
    assert inventory.load(SHIPPED) == {"local": Device(name="local")}


def uncommented(text: str) -> str:
    """Return the examples uncommented: from `# name:` to the next empty line, without the leading "# "."""
    blocks = re.findall(r"(?m)^# [a-z0-9-]+:$(?:\n#   .*)+", text)
    return "\n".join(line[2:] for block in blocks for line in block.splitlines())


def test_shipped_examples_are_valid_once_uncommented(tmp_path: Path) -> None:
    text = SHIPPED.read_text()
    devices = load(tmp_path, uncommented(text))
    expected = {"local", "orin-nano", "orin-agx", "pi5", "gpu-host", "gpu-container", "here-in-container"}
    assert set(devices) == expected
    python = "/home/edge/venv/bin/python"
    nano = Device(
        name="orin-nano",
        transport="ssh",
        host="orin-nano",
        python=python,
        workdir="",
        backends=("tensorrt", "onnxruntime-cpu"),
    )
    assert devices["orin-nano"] == nano
    assert devices["orin-agx"].workdir == "/mnt/nvme/edgedistill"
    assert devices["pi5"].host == "pi@pi5.local"
    # every example was uncommented as a whole, and none is active in the file
    assert len(re.findall(r"(?m)^#   transport: ", text)) == len(expected) - 1
    assert re.findall(r"(?m)^[a-z].*:$", text) == ["local:"]


@pytest.mark.parametrize("workdir", ["edge distill", "/mnt/nvme 2/it's $HOME", "bench/a;b", "ä/ö"])
def test_workdir_may_have_spaces_and_quotes(tmp_path: Path, workdir: str) -> None:
    text = json.dumps({"orin": {"transport": "ssh", "host": "orin", "workdir": workdir}})
    assert load(tmp_path, text)["orin"].workdir == workdir


def test_wanted_backends_follow_device_and_request() -> None:
    default_device, configured = Device(name="pi"), Device(name="orin", backends=("tensorrt", "onnxruntime-cpu"))
    assert inventory.backends_for(default_device) == ("onnxruntime-cpu",)
    assert inventory.backends_for(configured) == ("tensorrt", "onnxruntime-cpu")
    assert inventory.backends_for(configured, ["onnxruntime-cuda"]) == ("onnxruntime-cuda",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("orin: {transport: ssh}", "orin: host: is required for transport: ssh"),
        ("orin: {transport: shh, host: x}", "orin: transport: shh is unknown; did you mean ssh?"),
        ("orin: {transprot: ssh}", "orin: unknown key transprot; did you mean transport?"),
        ("orin: {transport: ssh, host: '-oProxyCommand=x'}", "orin: host: '-oProxyCommand=x' is no host"),
        ("orin: {transport: ssh, host: 7}", "orin: host: must be a string (got 7)"),
        ("orin: {transport: ssh, host: a, workdir: '~/b'}", "orin: workdir: '~/b': no ! or \\ in it, no - or ~ first"),
        ("orin: {transport: ssh, host: a, workdir: 'a!b'}", "orin: workdir: 'a!b'"),
        ('orin: {transport: ssh, host: a, workdir: "a\\nb"}', "workdir: must be a string, without tabs and line ends"),
        ('orin: {transport: ssh, host: a, python: "a\\nb"}', "python: must be a string, without tabs and line ends"),
        ('orin: {workdir: "a\\tb"}', "workdir: must be a string, without tabs and line ends (got 'a\\tb')"),
        ('orin: {workdir: "a\\0b"}', "a text with the character '\\x00'; leave it out"),
        ("orin: {transport: ssh, host: a, workdir: '-rf'}", "orin: workdir: '-rf'"),
        ("orin: {host: a}", "orin: host: belongs to transport: ssh"),
        ("orin: {backends: tensorrt}", "orin: backends: must be a list, such as [onnxruntime-cpu] (got 'tensorrt')"),
        ("orin: {backends: [tensorr]}", "orin: backends: no backend is called tensorr; did you mean tensorrt?"),
        ("orin: {backends: [[tensorrt]]}", "orin: backends: no backend is called ['tensorrt']"),
        ("orin: {backends: [tensorrt, tensorrt]}", "orin: backends: one is named twice"),
        ("orin: ssh", "orin: must be a mapping of transport"),
        ("../x: {}", "../x: a device's name is made of"),
        ("[1]", "must map device names"),
        ("a: [", "not valid YAML"),
    ],
)
def test_invalid_entry_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    assert re.match(f"{re.escape(str(tmp_path / 'devices.yaml'))}:([0-9]+:)? ", str(caught.value))
    assert message in str(caught.value)


def test_file_that_is_not_text_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "devices.yaml").write_bytes(b"\xff\xfea")
    with pytest.raises(InputError, match=r"devices\.yaml: is not text in UTF-8"):
        inventory.load(tmp_path / "devices.yaml")


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, "a: {transport: ssh}\nb: {pyhton: x}")
    assert str(caught.value).count("\n") == 1


def test_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        inventory.load(tmp_path / "none.yaml")


def test_unknown_device_gets_nearest_name() -> None:
    devices = {"local": Device(name="local"), "orin-nano": Device(name="orin-nano", transport="ssh", host="orin")}
    assert inventory.find(devices, "local").name == "local"
    with pytest.raises(InputError, match="no device is called orin-nao; did you mean orin-nano"):
        inventory.find(devices, "orin-nao")


def test_local_device_cannot_be_remote(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="local is this machine"):
        load(tmp_path, "local: {transport: ssh, host: other}\n")


@pytest.mark.parametrize("python", ["~/venv/bin/python", "venv/bin/python"])
def test_relative_python_path_is_refused(tmp_path: Path, python: str) -> None:
    with pytest.raises(InputError, match="give the full path"):
        load(tmp_path, f"nano: {{transport: ssh, host: nano, python: {python}}}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {}\nb: {}\na: {}\n", "3: a: is given twice (first on line 1)"),
        ("a:\n  workdir: x\n  workdir: y\n", "3: a.workdir: is given twice (first on line 2)"),
        ("a: {python: p, python: q}\n", "1: a.python: is given twice (first on line 1)"),
    ],
)
def test_key_given_twice_is_an_input_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    assert str(caught.value) == f"{tmp_path / 'devices.yaml'}:{message}"
    assert caught.value.exit_code == 2


def test_key_given_twice_is_reported_with_other_problems(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, "a: {transport: ssh, python: p, python: q}\nb: {pyhton: x}")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "a.python: is given twice" in lines[0] and "a: host" in lines[1] and "b: unknown key" in lines[2]


def test_merged_entries_are_no_duplicates(tmp_path: Path) -> None:
    devices = load(tmp_path, "a: &a {transport: ssh, host: a, python: p}\nb: {<<: *a, host: b}\n")
    assert (devices["b"].host, devices["b"].python) == ("b", "p")


@pytest.mark.parametrize("text", ["a: {python: 2024-99-99}", "a: " + "[" * 5000])
def test_unreadable_value_is_not_valid_yaml(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="not valid YAML"):
        load(tmp_path, text)
