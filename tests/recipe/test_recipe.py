"""Each mistake in a recipe is one line, `file:line: field: problem`, and all of them are reported at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from edgedistill import check
from edgedistill.errors import InputError
from edgedistill.recipe.file import RecipeError, read_recipe
from edgedistill.recipe.options import bound_options
from edgedistill.recipe.schema import Recipe

GOOD = """\
name: small
data:
  kind: folder
  root: pictures
sources:
  - {name: one, kind: timm, model: resnet10t}
weigh:
  metric: probe
  also: [parc]
student:
  families:
    micro: {width: [8, 16], input_px: 32}
  budget: {macs_m: 10}
distill:
  method: {name: weighted, lam: 0.8}
  steps: 20
bench:
  backends: [onnxruntime-cpu]
"""


def load(folder: Path, text: str, *sets: str) -> Recipe:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return check.load(read_recipe(path, sets))


def error_lines(folder: Path, text: str, *sets: str) -> list[str]:
    """The lines of the error that the recipe raises, without the folder's name."""
    with pytest.raises(RecipeError) as caught:
        load(folder, text, *sets)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_good_recipe_and_its_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    assert (recipe.name, recipe.distill.method.name, recipe.distill.method.options) == (
        "small",
        "weighted",
        {"lam": 0.8},
    )
    assert recipe.data.options == {"root": "pictures"}
    assert (recipe.search.trials, recipe.quantize.targets, recipe.bench.processes) == (8, ("cpu", "tensorrt"), 3)
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("steps: 20", "stpes: 20", "r.yaml:16: distill.stpes: unknown key; did you mean steps?"),
        ("data:\n", "dada:\n", "r.yaml:2: dada: unknown key; did you mean data?"),
        ("metric: probe", "metric: prob", "r.yaml:8: weigh.metric.name: no metric is called prob; did you mean probe?"),
        ("[parc]", "[parcc]", "r.yaml:9: weigh.also.0.name: no metric is called parcc; did you mean parc?"),
        (
            "weighted,",
            "wieghted,",
            "r.yaml:15: distill.method.name: no method is called wieghted; did you mean weighted?",
        ),
        ("lam: 0.8", "lamb: 0.8", "r.yaml:15: distill.method.lamb: unknown key; did you mean lam?"),
        ("lam: 0.8", "lam: 2", "r.yaml:15: distill.method.lam: input should be less than or equal to 1 (got 2)"),
        (
            "micro:",
            "mirco:",
            "r.yaml:12: student.families.mirco: no student family is called mirco; did you mean micro?",
        ),
        ("width:", "widht:", "r.yaml:12: student.families.micro.widht: unknown key; did you mean width?"),
        (
            "input_px: 32",
            "input_px: 0",
            "r.yaml:12: student.families.micro.input_px: must be whole numbers of pixels, 8 at least and 4096 at most "
            "(got 0)",
        ),
        ("kind: folder", "kind: foldr", "r.yaml:3: data.kind: no data kind is called foldr; did you mean folder?"),
        ("root: pictures", "rot: pictures", "r.yaml:4: data.rot: unknown key; did you mean root?"),
        ("kind: timm", "kind: tim", "r.yaml:6: sources.0.kind: no source kind is called tim; did you mean timm?"),
        ("model: resnet10t", "modell: resnet10t", "r.yaml:6: sources.0.modell: unknown key; did you mean model?"),
        (
            "onnxruntime-cpu",
            "onnxruntme-cpu",
            "r.yaml:18: bench.backends.0: no backend is called onnxruntme-cpu; did you mean onnxruntime-cpu?",
        ),
        (
            "steps: 20",
            "steps: many",
            "r.yaml:16: distill.steps: input should be a valid integer, "
            "unable to parse string as an integer (got 'many')",
        ),
        ("macs_m: 10", "macs_m: -10", "r.yaml:13: student.budget.macs_m: input should be greater than 0 (got -10)"),
        ("  kind: folder\n", "", "r.yaml:2: data.kind: is required"),
        ("  root: pictures\n", "", "r.yaml:2: data.root: is required"),
        (
            "micro: {width: [8, 16], input_px: 32}",
            "micro: 5",
            "r.yaml:12: student.families.micro: input should be a valid dictionary (got 5)",
        ),
        (
            "name: small",
            "name: a/b",
            "r.yaml:1: name: string should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$' (got 'a/b')",
        ),
    ],
)
def test_each_mistake_is_one_line(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert GOOD.count(old) == 1
    assert line in error_lines(tmp_path, GOOD.replace(old, new))


def test_all_mistakes_are_reported_at_once_in_file_order(tmp_path: Path) -> None:
    wrong = GOOD
    for old, new in (
        ("kind: folder", "kind: foldr"),
        ("metric: probe", "metric: prob"),
        ("micro:", "mirco:"),
        ("macs_m: 10", "macs_m: -1"),
        ("weighted,", "weigthed,"),
        ("steps: 20", "steps: x\n  lrr: 1"),
        ("cpu]", "cup]"),
    ):
        wrong = wrong.replace(old, new)
    lines = error_lines(tmp_path, wrong)
    fields = [line.split(": ")[1] for line in lines]
    assert fields == [
        "data.kind",
        "weigh.metric.name",
        "student.families.mirco",
        "student.budget.macs_m",
        "distill.method.name",
        "distill.steps",
        "distill.lrr",
        "bench.backends.0",
    ]


def test_sources_need_unique_names_and_their_options(tmp_path: Path) -> None:
    repeated = GOOD.replace("resnet10t}\n", "resnet10t}\n  - {name: one, kind: timm, model: resnet18}\n")
    assert error_lines(tmp_path, repeated) == [
        "r.yaml:7: sources.1.name: one is used twice; give every source a name of its own"
    ]
    sourceless = GOOD.replace("sources:\n  - {name: one, kind: timm, model: resnet10t}\n", "")
    assert "weighted learns from sources, and the recipe lists none" in error_lines(tmp_path, sourceless)[0]
    run = GOOD.replace("kind: timm, model: resnet10t", "kind: run")
    assert error_lines(tmp_path, run) == [
        "r.yaml:6: sources.0: kind run needs `path` (a run directory) or `recipe` (to train one)"
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: [1\ndata: 2\n", "r.yaml:2: not valid YAML: expected ',' or ']', but got ':'"),
        ("- a\n- b\n", "r.yaml:1: recipe: must be a mapping of sections, with `data:`"),
        ("", "r.yaml:1: recipe: must be a mapping of sections, with `data:`"),
        ("name: a\x00b\n", "r.yaml:1: not valid YAML: unacceptable character #x0000: special characters are not"),
        ("name: a\nabout: 2024-99-99\n", "r.yaml:2: not valid YAML: '2024-99-99': month must be in 1..12; quote"),
        ("name: a\nabout: &loop [*loop]\n", "r.yaml:2: not valid YAML: an alias stands inside what it repeats"),
        ("name: *none\n", "r.yaml:1: not valid YAML: found undefined alias 'none'"),
    ],
)
def test_file_that_is_not_a_recipe_is_one_line_error(tmp_path: Path, text: str, line: str) -> None:
    (actual,) = error_lines(tmp_path, text)
    assert actual.startswith(line)


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"none\.yaml: cannot be read \(No such file or directory\); name an existing"
    ):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match=r"cannot be read \(Is a directory\)"):
        read_recipe(tmp_path)
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(RecipeError, match="is not text in UTF-8"):
        read_recipe(tmp_path / "picture.yaml")


def test_set_takes_yaml_values(tmp_path: Path) -> None:
    changed = load(
        tmp_path,
        GOOD,
        "distill.steps=7",
        "distill.lr=0.5",
        "bench.devices=[local, pi]",
        "weigh.metric=parc",
        "sources.0.input_px=64",
        "data.labels_per_class=null",
        "quantize.enabled=false",
        "student.budget={params_m: 2}",
        "about=a = b",
    )
    assert (changed.distill.steps, changed.distill.lr, changed.bench.devices) == (7, 0.5, ("local", "pi"))
    assert (changed.weigh.metric.name, changed.sources[0].input_px, changed.quantize.enabled) == ("parc", 64, False)
    assert (changed.student.budget.macs_m, changed.student.budget.params_m) == (None, 2.0)
    assert changed.about == "a = b" and changed.data.labels_per_class is None


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("distill.steps", "--set distill.steps: must be key=value, for example --set distill.steps=200"),
        ("=3", "--set =3: must be key=value, for example --set distill.steps=200"),
        *(
            (wrong, f"--set {wrong}: the recipe has no such place; give an existing list index or key")
            for wrong in ("sources.4.name=x", "sources.one.name=x", "name.first=x", "sources.².name=x")
        ),
        ("distill.steps=[1", "--set distill.steps=[1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        (
            "about=2024-99-99",
            "--set about=2024-99-99: not valid YAML: '2024-99-99': month must be in 1..12; quote what is meant as text",
        ),
        ("distill.stpes=2", "--set distill.stpes: unknown key; did you mean steps?"),
        ("weigh.metric=prob", "--set weigh.metric.name: no metric is called prob; did you mean probe?"),
        ("distill.steps=-2", "--set distill.steps: input should be greater than 0 (got -2)"),
    ],
)
def test_wrong_set_is_named(tmp_path: Path, setting: str, line: str) -> None:
    assert line in error_lines(tmp_path, GOOD, setting)


def test_set_does_not_shift_line_numbers_of_file(tmp_path: Path) -> None:
    lines = error_lines(tmp_path, GOOD.replace("steps: 20", "steps: x"), "distill.lr=-1")
    assert {line.partition(": input")[0] for line in lines} == {"r.yaml:16: distill.steps", "--set distill.lr"}


def test_options_take_types_of_signature(tmp_path: Path) -> None:
    def constructor(base: Path, *, root: Path, count: int = 3) -> None:
        """A constructor with two options."""

    assert bound_options(constructor, {"root": "x", "count": "4"}, tmp_path) == {"root": tmp_path / "x", "count": 4}
    with pytest.raises(InputError, match=r"cuont: unknown key; did you mean count\?.*root: is required"):
        bound_options(constructor, {"cuont": 1})


def test_run_name_depends_only_on_sections_up_to_distill(tmp_path: Path) -> None:
    from edgedistill.run.directory import run_directory

    def run_name(*sets: str) -> str:
        return run_directory(load(tmp_path, GOOD, *sets), tmp_path).path.name

    assert run_name() == run_name("bench.samples=3") == run_name("quantize.enabled=false") == run_name("about=x")
    assert (
        len(
            {
                run_name(),
                run_name("distill.steps=3"),
                run_name("seed=1"),
                run_name("data.root=y"),
                run_name("weigh.power=2"),
            }
        )
        == 5
    )
    assert yaml.safe_load(GOOD)["name"] == run_name().rpartition("-")[0]


def test_value_that_is_set_changes_one_of_the_places_that_an_alias_repeats(tmp_path: Path) -> None:
    text = "data: {kind: digits}\nstudent: {families: {mobilenetv3: &sizes {input_px: [96]}, micro: *sizes}}\n"
    families = load(tmp_path, text, "student.families.micro.input_px=64").student.families
    assert str(families["mobilenetv3"]) != str(families["micro"]) and "96" in str(families["mobilenetv3"])
