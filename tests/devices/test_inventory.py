"""The inventory: what it accepts, and what it says against the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.devices import inventory
from edgedistill.records import Device, InputError

SHIPPED = Path(__file__).parents[2] / "deploy" / "devices.yaml"


def load(tmp_path: Path, text: str) -> dict[str, Device]:
    path = tmp_path / "devices.yaml"
    path.write_text(text)
    return inventory.load(path)


def test_local_is_always_there(tmp_path: Path) -> None:
    assert inventory.load(None) == {"local": Device("local")}
    assert load(tmp_path, "") == {"local": Device("local")}
    assert inventory.load(SHIPPED) == {"local": Device("local")}


def test_the_shipped_examples_are_right_once_uncommented(tmp_path: Path) -> None:
    lines = SHIPPED.read_text().partition("\nlocal:")[2].splitlines()[2:]
    examples = [line[2:] for line in lines if line.startswith("# ") and not line.startswith("# A ")]
    devices = load(tmp_path, "\n".join(examples))
    assert devices["orin-nano"] == Device("orin-nano", "ssh", "orin-nano", "/home/edge/venv/bin/python", "edgedistill")
    assert devices["pi5"].host == "pi@pi5.local"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("orin: {transport: ssh}", "orin: host: is required for transport: ssh"),
        ("orin: {transport: shh, host: x}", "orin: transport: shh is unknown; did you mean ssh?"),
        ("orin: {transprot: ssh}", "orin: unknown key transprot; did you mean transport?"),
        ("orin: {transport: ssh, host: '-oProxyCommand=x'}", "orin: host: '-oProxyCommand=x' is no host"),
        ("orin: {transport: ssh, host: 7}", "orin: host: must be a string (got 7)"),
        ("orin: {transport: ssh, host: a, workdir: 'a; b'}", "orin: workdir: 'a; b'"),
        ("orin: {host: a}", "orin: host: belongs to transport: ssh"),
        ("orin: ssh", "orin: must be a mapping of transport"),
        ("../x: {}", "../x: a device's name is made of"),
        ("[1]", "must map device names"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'devices.yaml'}: ")
    assert said in str(caught.value)


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, "a: {transport: ssh}\nb: {pyhton: x}")
    assert str(caught.value).count("\n") == 1


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        inventory.load(tmp_path / "none.yaml")


def test_an_unknown_device_gets_the_nearest_name() -> None:
    devices = {"local": Device("local"), "orin-nano": Device("orin-nano", "ssh", "orin")}
    assert inventory.find(devices, "local").name == "local"
    with pytest.raises(InputError, match="no device is called orin-nao; did you mean orin-nano"):
        inventory.find(devices, "orin-nao")
