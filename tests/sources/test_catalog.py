"""The catalog: every registry's id exists there, sizes are those of the architectures, and states are looked up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

from edgedistill.errors import InputError
from edgedistill.sources import catalog
from edgedistill.sources.catalog import ENTRIES, Entry, Listed
from edgedistill.students import pretrained
from edgedistill.students.cost import measure
from tests.helpers import miniature

TIMM = [entry for entry in ENTRIES if entry.kind == "timm" and entry.is_verified]
PACKAGES = [entry for entry in ENTRIES if entry.kind == "pypi"]


def listed_as(licence: str, state: catalog.State) -> Listed:
    return Listed(entry=ENTRIES[0], classes=10, input_px=32, licence=licence, state=state)


def hub_without(monkeypatch: pytest.MonkeyPatch, *, cached: set[str], answers: bool) -> list[str]:
    """A hub with some repositories in the cache; the list notes each time that it is asked."""
    hub_calls: list[str] = []

    def hub_answers() -> bool:
        hub_calls.append("hub")
        return answers

    monkeypatch.setattr(pretrained, "cached_repositories", lambda: cached)
    monkeypatch.setattr(pretrained, "hub_answers", hub_answers)
    return hub_calls


@pytest.mark.parametrize("entry", [*TIMM, *PACKAGES], ids=lambda entry: entry.name)
def test_id_is_in_the_registry_of_timm_with_this_size(entry: Entry) -> None:
    config = get_pretrained_cfg(entry.options["model"], allow_unregistered=False)
    assert config is not None and (entry.kind == "pypi" or config.hf_hub_id)
    with torch.device("meta"):
        net = timm.create_model(entry.options["model"].partition(".")[0], num_classes=config.num_classes)
    params_m = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    assert entry.params_m == pytest.approx(params_m, abs=0.006)
    if entry.name != "siglip2":  # its attention pooling cannot be counted
        architecture = entry.options["model"].partition(".")[0]
        counted = measure(lambda: timm.create_model(architecture, num_classes=0), int(config.input_size[-1]), 0)
        assert entry.gmacs == pytest.approx(counted.macs_m / 1000, abs=0.006)


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.kind == "text"], ids=lambda entry: entry.name)
def test_pair_is_in_the_registry_of_open_clip(entry: Entry) -> None:
    open_clip = pytest.importorskip("open_clip")
    assert (entry.options["model"], entry.options["pretrained"]) in open_clip.list_pretrained()
    (model,) = catalog.listed([entry])
    assert model.classes is None and model.input_px in {224, 256}


def test_names_are_unique_and_entries_are_sources() -> None:
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES) >= 20
    for entry in ENTRIES:
        section = entry.section()
        assert (section.name, section.kind) == (entry.name, entry.kind) and section.options == entry.options
        assert catalog.find(entry.name) is entry and catalog.find(entry.id) is entry
    with pytest.raises(InputError, match="did you mean dinov2"):
        catalog.find("dinov22")


def test_state_is_looked_up_and_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "package_file", Path)
    hub_calls = hub_without(monkeypatch, cached={"timm/resnet50.a1_in1k"}, answers=True)
    states = {model.entry.name: model.state for model in catalog.listed([*TIMM, *PACKAGES])}
    assert hub_calls == ["hub"]
    assert states["imagenet-resnet50"] == "cached" and states["dinov2"] == "reachable"
    assert states["imagenet-lite0"] == "installed"
    hub_calls = hub_without(monkeypatch, cached=set(), answers=False)
    assert catalog.listed([catalog.find("dinov2")])[0].state == "out of reach"
    assert catalog.listed(PACKAGES) and hub_calls == ["hub"]


def test_facts_are_those_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_without(monkeypatch, cached=set(), answers=False)
    by_name = {model.entry.name: model for model in catalog.listed(TIMM)}
    assert (by_name["imagenet21k-effnetv2"].classes, by_name["imagenet21k-effnetv2"].input_px) == (21843, 300)
    assert by_name["clip-laion"].classes == 0 and by_name["clip-laion"].licence == "apache-2.0"
    assert by_name["mae"].commercial == "no" and by_name["dinov3"].commercial == "with conditions"


@pytest.mark.parametrize(
    ("licence", "state", "is_free"),
    [
        ("apache-2.0", "cached", True),
        ("cc-by-nc-4.0", "cached", False),
        ("dinov3-license", "cached", False),
        ("", "cached", False),
        ("", "installed", True),
        ("cc-by-nc-4.0", "installed", False),
    ],
)
def test_only_commercially_usable_models_are_taken_unasked(licence: str, state: catalog.State, is_free: bool) -> None:
    assert listed_as(licence, state).is_free is is_free


def test_command_lists_the_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_without(monkeypatch, cached=set(), answers=False)
    completed = miniature.call("sources", "dinov2", "inat21", "imagenet-lite0")
    assert completed.code == 0
    head, dinov2, inat21, lite0, *notes = completed.out.splitlines()
    assert head.split()[0] == "source" and "headless" in dinov2 and "apache-2.0" in dinov2
    assert inat21.startswith("inat21 *") and "out of reach" in inat21 and "not stated" in inat21
    assert "1000" in lite0 and any("not verified here" in line for line in notes)
    rows = json.loads(miniature.call("sources", "dinov2", "--format", "json").out)
    assert rows[0]["source"] == {
        "name": "dinov2",
        "kind": "timm",
        "model": "vit_small_patch14_reg4_dinov2.lvd142m",
    }
    assert miniature.call("sources", "dinov22").code == 2
