"""Declares an option once: command lines, files, the environment, records and the docs' table are made from it."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

PROBLEMS, MODELS, STRATEGY, DRAFTS, SCORES, LENGTHS, FIDELITY, RUN = (
    "Problems",
    "Models and engines",
    "Strategy",
    "Drafting",
    "Scoring",
    "Lengths and sampling",
    "The original experiments",
    "Run",
)
"""Groups of options: panels of the help, sections of the docs."""

Effect = Literal["method", "task", "problems", "draw", "place"]
"""What an option changes. ``task``: the models and their input; runs with equal ones can be compared. ``method``: how
they solve it; runs with equal tasks and methods are the same experiment. ``problems``: which of the dataset's problems.
``draw``: which attempts at them. ``place``: when and where things are computed, not what."""


@dataclass(frozen=True, slots=True)
class Option:
    """Describes an annotated field of a pydantic model, beside its type, default and bounds.

    ``source``: where the default comes from. ``shown``: the default in words, if it is no plain value. ``name``: on the
    command line and in files, if other than the field's. ``flags``: further spellings. ``words``: allowed in place of a
    number; ``none`` means None. ``complete``: the kind of names that a shell offers.
    """

    help: str
    group: str = STRATEGY
    effect: Effect = "method"
    source: str = ""
    shown: str = ""
    name: str = ""
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    words: tuple[str, ...] = ()
    complete: Literal["", "model", "dataset", "fault"] = ""


@dataclass(frozen=True, slots=True)
class Declared:
    """An option as its field declares it. ``type``: without None. ``least``, ``most``: bounds that are part of the range."""

    field: str
    option: Option
    type: Any
    required: bool
    default: Any
    least: float | None
    most: float | None

    @property
    def name(self) -> str:
        """The name on the command line and in files, with underscores."""
        return self.option.name or self.field

    @property
    def shown(self) -> str:
        """The default as people read it."""
        if self.option.shown or self.required:
            return self.option.shown
        return _word(self.default)


def declared(*models: type[BaseModel]) -> dict[str, Declared]:
    """Returns the options of models by their fields' names, in the order of their declaration."""
    found: dict[str, Declared] = {}
    for model in models:
        for name, field in model.model_fields.items():
            option = next((item for item in field.metadata if isinstance(item, Option)), None)
            if option is not None:
                found.setdefault(name, _declared(name, field, option))
    return found


def _declared(name: str, field: FieldInfo, option: Option) -> Declared:
    bounds: dict[str, float] = {}
    for item in field.metadata:
        for kind in ("ge", "le"):
            if (value := getattr(item, kind, None)) is not None:
                bounds[kind] = value
    required = field.is_required()
    default = None if required or field.default_factory else field.default
    return Declared(
        name, option, _without_none(field.annotation), required, default, bounds.get("ge"), bounds.get("le")
    )


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = [part for part in get_args(annotation) if part is not NoneType]
    return annotation


def _word(value: Any) -> str:
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
