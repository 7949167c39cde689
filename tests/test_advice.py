"""Advice helps: each case provokes an error, changes what its message says, and tries again with success."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import pytest

from tests.helpers import miniature, tars, tiny_onnx
from tests.helpers.miniature import CommandResult, Project

VIT = "sources.0={name: first, kind: timm, model: vit_tiny_patch16_224, pretrained: false, input_px: %d}"
TIMM_STUDENT = "student.families={timm: {model: %s, weights: %s, input_px: %d}}"
TIMM_SOURCE = "sources.0={name: first, kind: timm, model: %s, pretrained: false}"
GRAPH = "sources.0={name: first, kind: onnx, file: %s, logits: %s}"
STATIC = "weigh.metric={name: static, prior: {first: 1.0%s}}"
COMBINED = "distill.method={name: combined, lam: %s, sources: 0.5}"
SHARDS = "unlabeled={kind: wds, urls: %s}"
NO_INT8 = "quantize.enabled=false"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Settings that are wrong, the advice in the answer, and the settings that follow it.

    "{}" in `mended` is the first number after the advice, RUN a finished run.
    """

    wrong: tuple[str, ...]
    advice: str
    mended: tuple[str, ...]


def case(wrong: str | tuple[str, ...], advice: str, *mended: str) -> Case:
    return Case(wrong=(wrong,) if isinstance(wrong, str) else wrong, advice=advice, mended=mended)


CHECKED = {
    "run without a path": case(
        "sources.0={name: first, kind: run}", "kind run needs `path`", "sources.0={name: first, kind: run, path: RUN}"
    ),
    "method without sources": case("sources=[]", "add `sources:`"),
    "source that is not there": case(
        "distill.method={name: single, source: third}", "one of: first", "distill.method={name: single, source: first}"
    ),
    "shares over one": case(COMBINED % 0.8, "lower one", COMBINED % 0.4),
    "int8 objective, fp32": case(
        ("search.objective=int8", NO_INT8), "say `objective: fp32`", "search.objective=fp32", NO_INT8
    ),
    "int8 objective, int8": case(
        ("search.objective=int8", NO_INT8), "let `quantize` make one", "search.objective=int8", "quantize.enabled=true"
    ),
    "int8 budget": case(
        ("student.budget.latency_ms={at_most: 9}", NO_INT8),
        "say `precision: fp32`",
        "student.budget.latency_ms={at_most: 9, precision: fp32}",
        NO_INT8,
    ),
    "no data folder": case("data.root=nowhere", "name a folder that holds one folder a class", "data.root=pictures"),
    "too many labels": case("data.labels_per_class=99", "ask for", "data.labels_per_class={}"),
    "too few labels": case("data.labels_per_class=1", "ask for", "data.labels_per_class={}"),
    "misspelled key": case("distill.stepz=3", "did you mean steps?", "distill.steps=3"),
    "no assignment": case("distill.steps", "for example --set distill.steps=200", "distill.steps=200"),
    "no such place": case("sources.7.seed=3", "give an existing list index", "sources.1.seed=3"),
    "source of a fixed size": case(VIT % 32, "set input_px", VIT % 224),
    "student of a fixed size": case(
        TIMM_STUDENT % ("vit_tiny_patch16_224", "none", 64),
        "offer another input_px",
        TIMM_STUDENT % ("vit_tiny_patch16_224", "none", 224),
    ),
    "student without a network": case(
        TIMM_STUDENT % ("resnet10t", "hub", 32), "or set `weights: none`", TIMM_STUDENT % ("resnet10t", "none", 32)
    ),
    "budget": case("student.budget.macs_m=0.001", "at 32 px with macs_m", "student.budget.macs_m={}"),
    "misspelled source": case(TIMM_SOURCE % "resnet10x", "did you mean resnet10t?", TIMM_SOURCE % "resnet10t"),
    "misspelled backend": case(
        "bench.backends=[onnxruntime-cup]", "did you mean onnxruntime-cpu?", "bench.backends=[onnxruntime-cpu]"
    ),
    "open brace": case(SHARDS % "'shard-{0'", "close every brace", SHARDS % "'shard-{0,1}.tar'"),
    "shard twice": case(SHARDS % "[shard-0.tar, shard-0.tar]", "name each once", SHARDS % "[shard-0.tar]"),
    "no shard": case(SHARDS % "[]", "or leave `unlabeled` out"),
    "shard by another scheme": case(SHARDS % "'ftp://host/shard-0.tar'", "name files", SHARDS % "shard-0.tar"),
    "inventory that is no file": case(
        "bench.inventory=pictures", "name an existing inventory file", "bench.inventory=devices.yaml"
    ),
    "device": case(
        "bench.devices=[orin]",
        "or to the file that bench.inventory names",
        "bench.devices=[orin]",
        "bench.inventory=devices.yaml",
    ),
    "no graph": case(GRAPH % ("nothing.onnx", "true"), "check `file`", GRAPH % ("source.onnx", "true")),
    "logits": case(GRAPH % ("source.onnx", "false"), "set `logits: true`", GRAPH % ("source.onnx", "true")),
    "used source name": case("sources.1.name=first", "give every source a name of its own", "sources.1.name=other"),
}

TRAINED = {
    "learning rate": case("distill.lr=1.0e+30", "lower distill.lr", "distill.lr=0.01"),
    "prior": case(STATIC % "", "add it under prior:", STATIC % ", second: 0.5"),
    "prior above one": case(STATIC % ", second: 7", "write a fraction", STATIC % ", second: 0.7"),
    "module to freeze": case("distill.freeze=[stemm]", "did you mean stem?", "distill.freeze=[stem]"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The miniature's recipe and pictures, and files that the cases name."""
    project, picture = miniature.write(tmp_path_factory.mktemp("advice")), io.BytesIO()
    miniature.picture(True, 1).save(picture, "png")
    for index in range(2):
        tars.write(project.root / f"shard-{index}.tar", {"0.png": picture.getvalue()})
    tiny_onnx.write(project.root / "source.onnx")
    (project.root / "devices.yaml").write_text("orin: {transport: ssh, host: orin}\n")
    return project


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def call(verb: str, project: Project, *settings: str) -> CommandResult:
    sets = [word for setting in settings for word in ("--set", setting)]
    runs = ["--runs", project.runs] if verb in {"train", "run"} else []
    return miniature.call(verb, project.recipe, *runs, *sets)


def number_after(words: str, error: str) -> str:
    """The first number after some words of a message."""
    match = re.search(re.escape(words) + r"\D*?(\d[\d.]*(?:e[-+]\d+)?)", error)
    assert match, error
    return match[1].rstrip(".")


@pytest.mark.parametrize("name", list(CHECKED))
def test_advice_of_check(project: Project, finished_project: Project, name: str) -> None:
    row = CHECKED[name]
    refused = call("check", project, *row.wrong)
    assert refused.code == 2 and row.advice in refused.err, refused.err
    number = number_after(row.advice, refused.err) if "{}" in "".join(row.mended) else ""
    mended = [setting.replace("{}", number).replace("RUN", str(finished_project.run)) for setting in row.mended]
    accepted = call("check", project, *mended)
    assert accepted.code == 0, accepted.err


@pytest.mark.parametrize("name", list(TRAINED))
def test_advice_of_train(project: Project, name: str) -> None:
    refused = call("train", project, *TRAINED[name].wrong)
    assert refused.code in {1, 2} and TRAINED[name].advice in refused.err, refused.err
    accepted = call("train", project, *TRAINED[name].mended)
    assert accepted.code == 0, accepted.err
