"""Label Studio's JSON: suggestions as tasks to import, and annotated tasks as labels.

The tasks name their pictures below Label Studio's document root for local files, which is to be the data's folder; see
https://labelstud.io/guide/storage.html and https://labelstud.io/guide/task_format.html.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from pydantic import BaseModel, TypeAdapter, ValidationError

from edgedistill.data.label_file import HOW, Label
from edgedistill.errors import InputError
from edgedistill.labels.to_label import Suggestion, Suggestions
from edgedistill.run.files import atomic, write_json

TASKS, CONFIGURATION = "label-studio.json", "label-studio.xml"
LOCAL_FILES = "/data/local-files/?d="
NAME, IMAGE = "label", "image"
EXPORT = "export the project as JSON, not as JSON_MIN, and leave `path` in its data"


class Value(BaseModel):
    """The value of a control; those that are no choice among classes have none."""

    choices: list[str] = []


class Result(BaseModel):
    """A part of an annotation, by one control."""

    value: Value = Value()


class Annotation(BaseModel):
    """What one annotator answered to a task; a skipped one is canceled."""

    result: list[Result] = []
    was_cancelled: bool = False


class Picture(BaseModel):
    """A task's data, as `tasks` writes it."""

    path: str
    how: str = "given"


class AnnotatedTask(BaseModel):
    """A task of an export; fields that are not read here are allowed."""

    data: Picture
    annotations: list[Annotation]


def write(record: Suggestions, folder: Path) -> Path:
    """Write the tasks and the labeling configuration into a folder; return the path of the tasks."""
    write_json(folder / TASKS, [_task(suggestion) for suggestion in record.suggestions])
    with atomic(folder / CONFIGURATION) as temporary:
        temporary.write_text(configuration(list(record.labels)), encoding="utf-8")
    return folder / TASKS


def _task(suggestion: Suggestion) -> dict[str, Any]:
    data = {"image": f"{LOCAL_FILES}{quote(suggestion.path)}", "path": suggestion.path, "how": suggestion.how}
    task: dict[str, Any] = {"data": {**data, "why": suggestion.why, "cluster": suggestion.cluster}}
    if suggestion.sure is not None:
        choice = {"from_name": NAME, "to_name": IMAGE, "type": "choices", "value": {"choices": [suggestion.guess]}}
        task["predictions"] = [{"model_version": "teacher", "score": suggestion.sure, "result": [choice]}]
    return task


def configuration(classes: list[str]) -> str:
    """The labeling configuration: a picture and one choice among the classes."""
    choices = "".join(f"    <Choice value={quoteattr(name)}/>\n" for name in classes)
    hint = "" if classes else '    <!-- one <Choice value="..."/> for each class -->\n'
    control = f'<Choices name="{NAME}" toName="{IMAGE}" choice="single-radio" required="true">'
    return f'<View>\n  <Image name="{IMAGE}" value="$image"/>\n  {control}\n{choices}{hint}  </Choices>\n</View>\n'


def read_export(file: Path) -> dict[str, Label]:
    """The labels of an export by path; tasks without an answer and skipped ones are left out.

    Raises:
        InputError: the file cannot be read or is no such export, a picture has two classes, or no task has an answer.
    """
    try:
        exported = TypeAdapter(list[AnnotatedTask]).validate_python(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise InputError(f"{file}: is no export of Label Studio: {place}: {problem['msg']}", EXPORT) from None
    except ValueError as error:
        raise InputError(f"{file}: is no JSON: {error}", EXPORT) from None
    labels: dict[str, Label] = {}
    for task in exported:
        names = {name for annotation in task.annotations for name in _choices(annotation)}
        if task.data.path in labels:
            names.add(labels[task.data.path].name)
        if len(names) > 1:
            raise InputError(
                f"{file}: {task.data.path} has {len(names)} classes: {', '.join(sorted(names))}", "leave one of them"
            )
        if names:
            how = task.data.how if task.data.how in HOW else "given"
            labels[task.data.path] = Label(name=names.pop(), how=how)
    if not labels:
        raise InputError(f"{file}: no task has an answer", "annotate some, and export again")
    return labels


def _choices(annotation: Annotation) -> list[str]:
    if annotation.was_cancelled:
        return []
    return [name for result in annotation.result for name in result.value.choices]
