"""report: report.json and report.html of the finished steps of a run."""

from __future__ import annotations

from edgedistill.report import render
from edgedistill.run import artifacts
from edgedistill.run.files import digest, sha256_file
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step


def work(context: Context) -> None:
    """Write the report."""
    render.write(context.run)


def inputs(context: Context) -> dict[str, str]:
    """The license that the recipe states for the images, and the measurements that no step has made: imported ones."""
    license_text, run = context.recipe.data.license, context.run
    steps = {name for entry in run.manifest()["steps"].values() for name in entry["outputs"]}
    files = [path for path in (run / artifacts.BENCH).glob("*/*.json") if str(path.relative_to(run.path)) not in steps]
    return {
        **({"license": license_text} if license_text else {}),
        **({"imported": digest(sorted(map(sha256_file, files)))} if files else {}),
    }


def step(context: Context) -> Step:
    """The step; it reads the outputs of every finished step."""
    done = tuple(name for name in context.run.manifest()["steps"] if name != "report")
    return Step(
        name="report",
        version=1,
        sections=("name", "about", "data"),
        after=done,
        inputs=inputs,
        outputs=(artifacts.REPORT_JSON.path, artifacts.REPORT_HTML.path),
        work=work,
        commits=True,
    )
