"""What the sections of a recipe are made of: frozen models, choices by name, and how a section enters a key."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from edgedistill.recipe.options import LATER, NOTE

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Section(BaseModel):
    """A part of the recipe: frozen, and an unknown key is an error. The text below a field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def for_key(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """The section as plain JSON, defaults filled in, as it enters a key: see `options.Later`."""
        return without_later(self, self.model_dump(mode="json", exclude=set(exclude)))


class Open(Section):
    """A part that names a function and holds that function's options beside the name."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The keys that the schema leaves to the named function."""
        return dict(self.model_extra or {})


class Choice(Open):
    """`weighted`, or `{name: weighted, lam: 0.8}`."""

    name: str
    """The entry of the registry; its options stand beside the name."""


License = Annotated[str, Field(min_length=1, max_length=500)]
NamedChoice = Annotated[Choice, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)]


def without_later(model: BaseModel, plain: dict[str, Any]) -> dict[str, Any]:
    """The plain JSON of a model without notes and without fields marked LATER at their default, at any depth."""
    kept = dict(plain)
    for name in plain.keys() & type(model).model_fields.keys():
        field, content = type(model).model_fields[name], getattr(model, name)
        at_default = content == field.get_default(call_default_factory=True)
        if NOTE in field.metadata or (LATER in field.metadata and at_default):
            del kept[name]
        elif isinstance(content, BaseModel):
            kept[name] = without_later(content, plain[name])
        elif isinstance(content, tuple) and all(isinstance(part, BaseModel) for part in content):
            kept[name] = [without_later(*pair) for pair in zip(content, plain[name], strict=True)]
    return kept
