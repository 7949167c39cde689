"""report: report.json and report.html of the finished steps of a run."""

from __future__ import annotations

from edgedistill.report import render
from edgedistill.run import artifacts
from edgedistill.steps.context import Context
from edgedistill.steps.step import Step


def work(context: Context) -> None:
    """Write the report."""
    render.write(context.run)


def inputs(context: Context) -> dict[str, str]:
    """The license that the recipe states for the images, if it states one."""
    license_text = context.recipe.data.license
    return {"license": license_text} if license_text else {}


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
