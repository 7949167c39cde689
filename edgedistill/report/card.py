"""MODEL_CARD.md of the bundle: what a student is, how it was measured, what it is made from, in Markdown.

The sections follow Mitchell et al., "Model Cards for Model Reporting" (FAT* 2019). The figures are those of the report.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from edgedistill.distill.methods import METHODS
from edgedistill.measurements import HOST_TO_HOST, BenchReport
from edgedistill.report import classes, priors, unknown
from edgedistill.report.blocks import METRICS, Block, Row, interval, number, one_line, share
from edgedistill.report.facts import Facts, p50, ranked, trained_on
from edgedistill.report.text import why_commercial

MAX_NAMES = 50  # classes by name; bundle.json has all
# an underscore inside a word, a bracket without a link behind it and an ampersand without an entity mean nothing
SIGNS = re.compile(
    r"[\\`*<|~$]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|(?<=\w):(?=//)|(?<=www)\.", re.IGNORECASE
)
# of a numbered list, or of a list, a heading, a rule, a quotation, a task
LINE_START = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[-+=:#>\[]))")


def markdown(facts: Facts) -> str:
    """The card of a run with verified graphs; `facts.bench` is what was measured before.

    Every name and text of a recipe, a data set or a publisher is escaped.
    """
    sections = (_head, _accuracy, _classes, _speed, _origin, _licenses, _limits)
    return "\n\n".join(paragraph for section in sections for paragraph in section(facts) if paragraph) + "\n"


def escape(text: object) -> str:
    """A text as plain words of one Markdown line: no markup, no HTML, no link, no list and no table cell begins in it.

    Implements CommonMark 0.31, section 2.4, backslash escapes, only where a sign would mean something, so that the card
    can be read as it is. GitHub's tables, task lists, formulas and addresses without brackets are covered.
    """
    return LINE_START.sub(r"\1\\", _inline(text))


def _inline(text: object) -> str:
    """As `escape`, for a text behind another on its line."""
    return SIGNS.sub(r"\\\g<0>", one_line(str(text)))


def table(header: Row, rows: Sequence[Row], numbers: bool = True) -> str:
    """A table of escaped cells; the first column is left-aligned, the others right, if they hold `numbers`."""
    lines = [[_inline(cell) for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---", *["---:" if numbers else "---"] * (len(header) - 1)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def bullets(lines: Sequence[str]) -> str:
    """A list; the lines are Markdown already."""
    return "\n".join(f"- {line}" for line in lines)


def _head(facts: Facts) -> Iterator[str]:
    spec, names = facts.spec, [escape(facts.class_name(index)) for index in range(len(facts.classes))]
    assert spec is not None, "a bundle has a student"
    version = facts.environment.get("packages", {}).get("edgedistill", "")
    trained = str(facts.steps.get("distill", {}).get("finished", ""))[:10]
    yield f"# Model card: {_inline(facts.title)}"
    yield escape(facts.recipe.get("about", ""))
    maker = f"edgedistill {_inline(version)}".rstrip() + (f" on {_inline(trained)}" if trained else "")
    yield (
        f"A student network that sorts pictures into {len(names)} classes, trained by {maker}. `bundle.json` beside "
        "this file says how to run it, `SHA256SUMS` has the checksum of every file."
    )
    more = len(names) - MAX_NAMES
    yield "Classes:"
    yield bullets([*names[:MAX_NAMES], *([f"and {more} more, all in `bundle.json`"] if more > 0 else [])])


def _accuracy(facts: Facts) -> Iterator[str]:
    rungs = facts.ladder.rungs if facts.ladder else ()
    yield "## Accuracy"
    if rungs:
        meaning = (
            "the mean of the recalls of the classes" if facts.score == "balanced" else "the share of right answers"
        )
        yield (
            f"{_measured(facts, rungs[0].accuracy.n)} {METRICS[facts.score].capitalize()} is {meaning}. An interval "
            f"covers, at 95 %, the chance of which {facts.scored_images} were drawn; it does not cover another camera, "
            "place or time."
        )
        rows = [
            (
                rung.artefact + (" (default)" if rung.artefact == facts.default_graph else ""),
                interval(rung.accuracy, facts.score),
                share(rung.agreement_with_torch),
            )
            for rung in rungs
        ]
        yield table(("graph", METRICS[facts.score], "same answer as torch"), rows)
    yield bullets(
        [f"{_inline(kept.artefact)} for {_inline(kept.target)}: {_inline(kept.why)}" for kept in facts.kept or ()]
    )


def _classes(facts: Facts) -> Iterator[str]:
    for block in classes.blocks(facts):
        yield f"## {block.title}"
        yield from _block(block)


def _block(block: Block) -> Iterator[str]:
    yield escape(block.note)
    if block.header:
        yield table(block.header, block.rows)
    yield "\n\n".join(map(escape, block.lines))


def _speed(facts: Facts) -> Iterator[str]:
    spec = facts.spec
    assert spec is not None, "a bundle has a student"
    cost = spec.cost
    yield "## Size and speed"
    sizes = ", ".join(f"{_inline(model.name)} {number(model.size_mb)} MB" for model in facts.models)
    yield f"{number(cost.macs_m)} M multiply-accumulates a picture, {number(cost.params_m)} M parameters; {sizes}."
    budget = _budget(facts)
    if budget:
        yield f"The budget was: {_inline(budget)}."
    current = {model.sha256 for model in facts.models}
    reports = [report for report in facts.bench if report.mode == HOST_TO_HOST and report.sha256 in current]
    measured = [report for report in reports if report.latency.samples_ms and report.latency.batch == 1]
    if measured:
        yield "Milliseconds from picture to answer, without decoding and resizing, one picture at a time:"
        yield table(("device, runtime, graph", "p50 ms", "fp32 / this"), [_speed_row(report) for report in measured])
    else:
        yield "The latency had not been measured when this file was written; `edgedistill bench` measures it."


def _speed_row(report: BenchReport) -> Row:
    ratio = report.ratio_to_fp32
    speed = f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]" if ratio else "-"
    return (f"{report.device}, {report.backend}, {report.artefact}", number(p50(report)), speed)


def _budget(facts: Facts) -> str:
    """The bounds that the recipe sets, in words; "" for none."""
    budget = {name: bound for name, bound in (facts.recipe.get("student", {}).get("budget") or {}).items() if bound}
    latency = budget.pop("latency_ms", None)
    units = {
        "macs_m": "M MACs",
        "params_m": "M parameters",
        "weights_mb": "MB of weights",
        "activation_mb": "MB at work",
    }
    bounds = [f"at most {bound:g} {units.get(name, name)}" for name, bound in budget.items()]
    if isinstance(latency, dict):
        bounds.append(
            f"p{latency['percentile']:g} at most {latency['at_most']:g} ms in {latency['precision']} on "
            f"{latency['device']} ({latency['backend']})"
        )
    return "; ".join(bounds)


def _measured(facts: Facts, n: int) -> str:
    record = facts.out_of_fold
    if record is None:
        return f"Measured on {n} test images that were not used for training, choosing or calibrating."
    return (
        f"Measured on {n} labeled images, each by one of {len(record.folds)} students that was trained without it; the "
        f"student in this bundle is trained on all {record.labels} labels, each of those on {trained_on(record)}."
    )


def _origin(facts: Facts) -> Iterator[str]:
    spec, checkpoint, recorded = facts.spec, facts.checkpoint, facts.data
    assert spec is not None and checkpoint is not None, "a bundle has a student"
    yield "## What it was made from"
    labeled = {"labeled": "with a label to train on", "val": "with a label to choose by"}
    if facts.out_of_fold:  # those that chose train, too, once the folds have measured
        chose = f" ({recorded['val']} of them to choose by before)" if recorded.get("val") else ""
        recorded = {**recorded, "labeled": facts.out_of_fold.labels}
        labeled = {"labeled": f"with a label to train on{chose}"}
    uses = {
        **labeled,
        "unlabeled": "without a label",
        "streamed": "without a label in shards",
        "test": "to test",
    }
    method = METHODS.get(checkpoint.method)
    if method and not method.uses_more_than_labels:
        del uses["unlabeled"], uses["streamed"]
    counts = ", ".join(f"{recorded[name]} {use}" for name, use in uses.items() if recorded.get(name))
    options = ", ".join(f"{name} {setting}" for name, setting in spec.options.items())
    val = checkpoint.val
    validated = f"; {interval(val, facts.score)} on {val.n} validation images" if val else ""
    yield bullets(
        [
            f"Data: {_inline(recorded.get('kind', ''))}; images: {_inline(counts)}.",
            f"Student: {_inline(spec.family)} at {spec.input_px} px ({_inline(options or 'no options')}), "
            f"initial weights: {_inline(spec.initial_weights)}.",
            f"Method: {_inline(checkpoint.method)}, {checkpoint.steps} steps{validated}.",
            *(f"{escape(line[0].upper() + line[1:])}." for line in priors.lines(facts)),
        ]
    )
    yield from _taught_by(facts)


def _taught_by(facts: Facts) -> Iterator[str]:
    """The sources of the student that ships: their shares of its teacher, or their weights in the loss."""
    checkpoint = facts.checkpoint
    assert checkpoint is not None, "a bundle has a student"
    if facts.baseline and facts.baseline.ships == "labels alone":
        why = facts.baseline.why
        yield f"{escape(why[:1].upper() + why[1:])}. It learned from no source, and from no image without a label."
    method = METHODS.get(checkpoint.method)
    if checkpoint.teacher:
        title, column = "Source models, by their share of the teacher:", "share"
        shares = sorted(checkpoint.teacher.weights.items(), key=lambda pair: -pair[1])
    elif facts.sources and (method is None or method.uses_sources):
        title, column = "Source models, by their similarity weight:", "weight"
        shares = [(source.name, source.weight) for source in ranked(facts.sources)]
    else:
        return
    origins = {str(source.get("name")): _source_origin(source) for source in facts.recipe.get("sources", ())}
    if shares:
        yield title
        rows = [(name, origins.get(name, ""), f"{weight:.2f}") for name, weight in shares]
        yield table(("source", "from", column), rows, numbers=False)


def _source_origin(source: dict[str, object]) -> str:
    """Kind, package and model of a source; its paths are left out, they mean nothing elsewhere."""
    return " ".join(str(source[key]) for key in ("kind", "package", "model") if source.get(key))


def _licenses(facts: Facts) -> Iterator[str]:
    yield "## Licenses"
    yield f"**{_inline(why_commercial(facts))}**"
    yield (
        "The table repeats what publishers and the recipe state, and what that wording says about commercial use. It "
        "is no legal advice. The license of weights need not be that of the pictures that they were trained on."
    )
    rows = [(entry.what, entry.name, entry.licence, entry.commercial) for entry in facts.licences]
    yield table(("input", "name", "license", "commercial use"), rows, numbers=False)


def _limits(facts: Facts) -> Iterator[str]:
    n_test = facts.ladder.rungs[0].accuracy.n if facts.ladder and facts.ladder.rungs else 0
    smallest = [min(score.recall.n for score in confusion.classes) for confusion in classes.confusions(facts)[:1]]
    yield "## Limits"
    yield bullets(
        [
            f"Measured on {n_test} images of the same origin as the training images. Pictures of another camera, light "
            "or place may be recognized worse; measure on your own before you rely on it.",
            *(
                f"The class with the fewest {facts.scored_images} has {n}; small classes have wide intervals."
                for n in smallest
            ),
            _unsure(facts),
        ]
    )


def _unsure(facts: Facts) -> str:
    """What it answers to a picture that it does not know."""
    lines = unknown.promises(facts)
    if not lines:
        return (
            "It answers with one of its classes, whatever the picture shows. The probability beside an answer is not "
            "calibrated."
        )
    return " ".join(f"{line[0].upper()}{line[1:]}." for line in lines)
