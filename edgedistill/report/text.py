"""The report as blocks of text: the lines and tables shared by the terminal and the HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgedistill.distill.headless import method_note
from edgedistill.measurements import BenchReport
from edgedistill.records import Commercial
from edgedistill.report import bought, classes, devices, engines, priors, unknown, weights
from edgedistill.report.blocks import (
    METRICS,
    Block,
    Row,
    clean,
    format_block,
    format_table,
    interval,
    not_run,
    number,
    one_line,
    share,
    wrap,
)
from edgedistill.report.facts import Facts, headline, p50, trained_on, warnings
from edgedistill.sources import terms


def page(facts: Facts) -> str:
    """The report for a terminal: plain text, at most 100 columns except for paths, one final newline."""
    parts = [
        f"{facts.title}  {facts.run.path}",
        wrap(summary(facts)),
        *(format_block(block) for block in blocks(facts)),
    ]
    html_path = facts.run / "report.html"
    parts.append(f"Report: {html_path}" if html_path.is_file() else "Report: not written yet: edgedistill report")
    return clean("\n\n".join(parts)) + "\n"


def summary(facts: Facts) -> str:
    """The result in one sentence, as far as the run has come."""
    spec = facts.spec
    if spec is None:
        return "No student yet: the search has not finished."
    sentence = f"The student is {spec.family} at {spec.input_px} px"
    head, metric = headline(facts), METRICS[facts.score]
    if head.int8 and head.fp32:
        fp32 = interval(head.fp32.accuracy, facts.score)
        sentence += f": {interval(head.int8.accuracy, facts.score)} {metric} in int8 against {fp32} in fp32"
    elif head.fp32:
        sentence += f": {interval(head.fp32.accuracy, facts.score)} {metric} in fp32"
    elif facts.checkpoint:
        sentence += f": {interval(facts.checkpoint.test, facts.score)} {metric} in torch"
    bench = head.bench
    if bench is None:
        return f"{sentence}; no latency measured yet."
    sentence += f"; p50 {number(p50(bench))} ms in {bench.precision} on {bench.device} ({bench.backend})"
    speed = _speed(bench)
    return f"{sentence}, {speed}." if speed else f"{sentence}."


def _speed(bench: BenchReport) -> str:
    """The speed relative to fp32 in words; empty for fp32 itself. `ratio_to_fp32` is fp32's time over this graph's."""
    if bench.ratio_to_fp32 is None or bench.precision == "fp32":
        return ""
    ratio, low, high = bench.ratio_to_fp32
    if low > 1:
        return f"{ratio:.2f} [{low:.2f}, {high:.2f}] times as fast as fp32"
    if high < 1:
        return f"{1 / ratio:.2f} [{1 / high:.2f}, {1 / low:.2f}] times as slow as fp32: fp32 is the one to ship here"
    return f"no measurable difference from fp32 (ratio {ratio:.2f} [{low:.2f}, {high:.2f}])"


def blocks(facts: Facts) -> list[Block]:
    """The blocks of the report in reading order; a part that has not run yet names the command that runs it."""
    return [
        _data(facts),
        *_sources(facts),
        _student(facts),
        _accuracy(facts),
        *bought.blocks(facts),
        *classes.blocks(facts),
        *unknown.blocks(facts),
        _precision(facts),
        *engines.blocks(facts),
        *devices.blocks(facts),
        _gates(facts),
        _licenses(facts),
        _warnings(facts),
    ]


def _data(facts: Facts) -> Block:
    if not facts.data:
        return Block(key="data", title="Data", lines=("not read yet: edgedistill train",))
    data = facts.data
    names = [facts.class_name(index) for index in range(len(facts.classes))]
    class_list = f"{len(names)} classes" + (f" ({', '.join(names)})" if len(names) <= 12 else "")
    counts = ", ".join(f"{data[name]} {name}" for name in ("labeled", "val", "unlabeled", "test") if name in data)
    if "shards" in data:
        counts += f"; {data['streamed']} more without a label in {data['shards']} shards"
        if data["streamed_duplicates"]:
            counts += f", {data['streamed_duplicates']} left out: seen before, or in data"
    license_line = f"license of the data: {facts.data_licence or 'not stated'}"
    how = ", ".join(f"{number} {name}" for name, number in (data.get("how") or {}).items())
    came = (f"labels by how they came: {how}",) if how else ()
    units = data.get("labeled_units")
    shared = (f"labels of one group or of near-copies count as one: {units} in all",) if units else ()
    more = (facts.more_labels.text,) if facts.more_labels else ()
    limits = data.get("range")
    scaled = (f"more than 8 bits: {limits[0]:g} is black, {limits[1]:g} is white",) if limits else ()
    return Block(
        key="data",
        title="Data",
        lines=(
            f"{data.get('kind', '')}, {class_list}",
            f"images: {counts}",
            *came,
            *shared,
            *more,
            *_near_copies(data.get("near_copies") or {}),
            *scaled,
            *priors.lines(facts),
            license_line,
        ),
    )


def _near_copies(near: Mapping[str, Any]) -> tuple[str, ...]:
    """Near-copies in one line; none if there are no such images."""
    lines = []
    if near.get("images"):
        text = "images, each set of them on one side of every split"
        lines.append(f"near-copies: {near['images']} {text} (sets: {near['sets']})")
    if near.get("inseparable"):
        names = ", ".join(map(one_line, near["inseparable"]))
        lines.append(f"near-copies: not kept together in classes that they leave one picture: {names}")
    return tuple(lines)


def _sources(facts: Facts) -> list[Block]:
    if facts.sources is None or not facts.sources.sources:
        names_none = "sources" in facts.recipe and not facts.recipe["sources"]
        line = "the recipe names none" if names_none else not_run("train")
        return [Block(key="sources", title="Sources", lines=(line,))]
    first, *others = weights.blocks(facts.sources)
    method = facts.recipe.get("distill", {}).get("method", {}).get("name", "")
    note = method_note(method, facts.sources.features_only)
    catalog = [weights.catalog_block(facts.catalog)] if facts.catalog else []
    return [replace(first, lines=(*first.lines, note)) if note else first, *others, *catalog]


def _student(facts: Facts) -> Block:
    spec = facts.spec
    if spec is None:
        return Block(key="student", title="Student", lines=(not_run("train"),))
    options = ", ".join(f"{name} {setting}" for name, setting in spec.options.items())
    cost = spec.cost
    size = f"{number(cost.macs_m)} M MACs, {number(cost.params_m)} M params, {number(cost.weights_mb)} MB of weights"
    lines = [
        f"{spec.family} at {spec.input_px} px" + (f" ({options})" if options else ""),
        f"{size}, {number(cost.activation_mb)} MB of activations at their peak (fp32)",
        f"initial weights: {spec.initial_weights}",
    ]
    if cost.int8_risks:
        lines.append(f"int8 accuracy risks: {', '.join(cost.int8_risks)}")
    if facts.trials:
        trained = sum(1 for trial in facts.trials if trial.get("value"))
        lines.append(f"found among {len(facts.trials)} candidates, {trained} of them trained")
    lines += _training_lines(facts)
    return Block(key="student", title="Student", lines=tuple(lines))


def _training_lines(facts: Facts) -> list[str]:
    checkpoint = facts.checkpoint
    if checkpoint is None:
        return [f"training: {not_run('train')}"]
    line = f"{checkpoint.method}, {checkpoint.steps} steps in {checkpoint.train_seconds:.0f} s"
    if checkpoint.val:
        line += f"; val {interval(checkpoint.val, facts.score)} on {checkpoint.val.n} images"
    lines = [line]
    if checkpoint.falling:
        lines.append(f"the loss was still falling ({checkpoint.falling:.0%} in the last fifth): try more distill.steps")
    teacher = checkpoint.teacher
    if teacher:
        shares = sorted(teacher.weights.items(), key=lambda pair: -pair[1])
        # a share that would print as 0.00 is left out
        mixed = ", ".join(f"{name} {weight:.2f}" for name, weight in shares if weight >= 0.005)
        val = f"val {interval(teacher.val, facts.score)}; " if teacher.val else ""
        lines.append(f"teacher {teacher.kind}: {val}it mixes {mixed}")
    return lines


def _accuracy(facts: Facts) -> Block:
    header = ("artifact", METRICS[facts.score], "agrees with torch", "size MB", "run by")
    ladder, checkpoint = facts.ladder, facts.checkpoint
    if ladder is None or not ladder.rungs:
        if checkpoint is None:
            return Block(key="accuracy", title="Accuracy", lines=(not_run("export"),))
        return Block(
            key="accuracy",
            title="Accuracy",
            note=_measured(facts, checkpoint.test.n),
            header=header,
            rows=(("torch", interval(checkpoint.test, facts.score), "-", "-", "torch"),),
            lines=(f"ONNX: {not_run('export')}",),
        )
    rows = tuple(
        (
            rung.artefact,
            interval(rung.accuracy, facts.score),
            share(rung.agreement_with_torch),
            number(facts.sizes_mb[rung.sha256]) if rung.sha256 in facts.sizes_mb else "-",
            rung.backend + (" (simulated)" if rung.simulated else ""),
        )
        for rung in ladder.rungs
    )
    lines = () if any(rung.precision == "int8" for rung in ladder.rungs) else (_why_no_int8(facts),)
    note = _measured(facts, ladder.rungs[0].accuracy.n)
    return Block(key="accuracy", title="Accuracy", note=note, header=header, rows=rows, lines=(*_folds(facts), *lines))


def _measured(facts: Facts, n: int) -> str:
    """How accuracy was measured, for the block's note."""
    if facts.out_of_fold is None:
        return f"{n} test images, 95 % intervals"
    return f"{n} labeled images, each scored by a student that was trained without it; 95 % intervals"


def _folds(facts: Facts) -> tuple[str, ...]:
    record = facts.out_of_fold
    if record is None:
        return ()
    lines = [
        f"{len(record.folds)} folds: the students scored here were trained on {trained_on(record)} labels, "
        f"the one that ships on all {record.labels}",
        "other artifacts: less what is expected to be lost where they answer otherwise than torch",
    ]
    if record.int8:
        lines.append(f"int8 graphs of the folds' students: {interval(record.int8, facts.score)}")
    if record.unscored:
        lines.append(f"never scored, since one picture or group has all labels: {', '.join(record.unscored)}")
    return tuple(lines)


def _why_no_int8(facts: Facts) -> str:
    disabled = facts.recipe.get("quantize", {}).get("enabled") is False
    return "int8: off, quantize.enabled is false" if disabled else f"int8: {not_run('export --int8')}"


def _precision(facts: Facts) -> Block:
    if facts.kept is None:
        return Block(key="kept", title="Precision", lines=(not_run("export"),))
    choices = tuple(f"{choice.target}: {choice.artefact}: {choice.why}" for choice in facts.kept) or ("fp32",)
    float_layers = tuple(
        f"{outcome.target}: in float, worst first: {', '.join(outcome.floats)}"
        for outcome in facts.guarded
        if outcome.holds and outcome.floats
    )
    engines = tuple(f"engine on {choice.device}: {choice.why}" for choice in facts.choices if choice.device == "local")
    note = "the graph for each target, and why"
    return Block(key="kept", title="Precision", note=note, lines=choices + engines + float_layers)


def _gates(facts: Facts) -> Block:
    if facts.ladder is None:
        return Block(key="gates", title="Gates", lines=(not_run("export"),))
    rows = tuple(
        (gate.name, f"{gate.value:g}", gate.bound, "pass" if gate.passed else "FAIL") for gate in facts.ladder.gates
    )
    if not rows:
        return Block(key="gates", title="Gates", lines=("none",))
    return Block(key="gates", title="Gates", header=("gate", "value", "bound", "result"), rows=rows)


def commercial(facts: Facts) -> Commercial | None:
    """What the licenses of all inputs together say about commercial use; None before the bundle is written."""
    return terms.overall(entry.commercial for entry in facts.licences) if facts.licences else None


def why_commercial(facts: Facts) -> str:
    """That answer in words, with the inputs that decide it: `commercial: no (data elpv)`."""
    answer = commercial(facts)
    deciding = [f"{entry.what} {entry.name}" for entry in facts.licences if entry.commercial == answer]
    return f"commercial: {answer}" + (f" ({', '.join(deciding)})" if answer != "yes" else "")


def _licenses(facts: Facts) -> Block:
    if not facts.licences:
        return Block(key="licenses", title="Licenses", lines=(not_run("export"),))
    note = f"{why_commercial(facts)}; as stated by publishers and the recipe, no legal advice"
    entries = (
        f"{entry.what} {entry.name}: {one_line(entry.licence)}; commercial: {entry.commercial}"
        for entry in facts.licences
    )
    return Block(key="licenses", title="Licenses", note=note, lines=tuple(entries))


def _warnings(facts: Facts) -> Block:
    return Block(key="warnings", title="Warnings", lines=tuple(warnings(facts)) or ("none",))


def comparison(runs: Sequence[Facts]) -> str:
    """A table of several runs, a row each, with warnings where the rows cannot be compared."""
    header = ("run", "M MACs", "fp32 or torch", "int8", "p50 ms", "vs fp32", "MB")
    notes = []
    if len({facts.score for facts in runs}) > 1:
        notes.append("the runs are scored by different metrics: do not compare their accuracies")
    if len({(facts.data.get("kind"), facts.data.get("test"), facts.classes) for facts in runs}) > 1:
        notes.append("the runs have different data: do not compare their accuracies")
    benches = [headline(facts).bench for facts in runs]
    setups = sorted({f"{bench.device}, {bench.backend}" for bench in benches if bench})
    if len(setups) > 1:
        notes.append(f"the runs were measured in different places: {'; '.join(setups)}")
    setup = f"; latency on {setups[0]}" if len(setups) == 1 else ""
    metric = " or ".join(sorted({METRICS[facts.score] for facts in runs}))
    lines = [
        wrap(f"{metric}, 95 % intervals{setup}"),
        *format_table(header, [_comparison_row(facts) for facts in runs]),
    ]
    return clean("\n".join(lines + [wrap(f"warning: {note}") for note in notes])) + "\n"


def _comparison_row(facts: Facts) -> Row:
    head, spec = headline(facts), facts.spec
    bench = head.bench
    reference = head.fp32.accuracy if head.fp32 else facts.checkpoint.test if facts.checkpoint else None
    graph = bench or head.int8
    size = facts.sizes_mb.get(graph.sha256) if graph else None
    ratio = bench.ratio_to_fp32[0] if bench and bench.ratio_to_fp32 else None
    return (
        facts.run.path.name,
        number(spec.cost.macs_m) if spec else "-",
        interval(reference, facts.score) if reference else "-",
        interval(head.int8.accuracy, facts.score) if head.int8 else "-",
        number(p50(bench)) if bench else "-",
        f"{ratio:.2f}" if ratio else "-",
        number(size) if size else "-",
    )
