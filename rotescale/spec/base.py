"""What all parts of a spec share: how they are checked, and which fields change results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
)

from rotescale.credentials import found_in, found_inside

Name = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$", max_length=80)
]
"""Lower-case letters, digits, dots, dashes and underscores: safe as a folder and a job name."""

BASE_LANGUAGE = "en"
"""The language of the prompts that every relation has."""

LANGUAGE_PATTERN = r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*"
"""What a language code looks like (BCP 47): ``de`` or ``pt-BR``."""

Language = Annotated[str, StringConstraints(pattern=f"^{LANGUAGE_PATTERN}$")]

Share = Annotated[float, Field(gt=0, lt=1)]
"""A part of something, strictly between 0 and 1."""

OPERATIONAL: Any = Field(json_schema_extra={"changes_results": False})
"""Marks a field that changes speed or storage, not results: the spec's digest leaves it out."""

CONFIDENTIAL: Any = Field(json_schema_extra={"confidential": True})
"""Marks a field in whose place a secret may be put by mistake: errors do not repeat its value."""


MAX_INTEGER = 2**53
"""The largest integer of a spec: beyond it a float, as JSON readers make of it, is no longer it."""
MAX_NUMBER = 1e100
"""The largest number of a spec: plans multiply a few, and a float ends at 1.8e308."""


class Part(BaseModel):
    """Base of every part of a spec: frozen, with no unknown keys, described by its docstrings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _of_this_world(cls, value: Any) -> Any:
        """What no field takes: numbers that arithmetic overflows on, a NUL, a credential."""
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, int) and abs(one) > MAX_INTEGER:
                raise ValueError(f"larger than 2**53 ({MAX_INTEGER:,}), the most of any count here")
            if isinstance(one, float) and abs(one) > MAX_NUMBER:
                raise ValueError(f"larger than {MAX_NUMBER:g}, the most of any number here")
            if isinstance(one, str) and "\0" in one:
                raise ValueError("holds a NUL, which ends a text for the system; leave it out")
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        for key, one in inner:
            kind = found_in(str(key)) or found_inside(one)
            if kind is not None:
                name = f"{key} " if key and not found_in(str(key)) else ""
                raise ValueError(
                    f"{name}looks like {kind}, and specs are copied and printed; put it into a "
                    "secret of the namespace, a variable or a file, and name that"
                )
        return value


def results_fields(part: BaseModel) -> dict[str, Any]:
    """The fields of ``part``, nested, without those that change no result."""
    fields: dict[str, Any] = {}
    for name, field in type(part).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("changes_results") is False:
            continue
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            value = results_fields(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            value = [results_fields(item) for item in value]
        fields[name] = value
    return fields
