"""What a workspace knows of its users besides names: JSON of bounded size, merged by RFC 7396."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tidings.errors import FieldError, ValidationFailed

ATTRIBUTES_MAX = 50
"""Attributes of one user, counted at the top level."""
ATTRIBUTES_BYTES_MAX = 16 * 1024
"""Size of one user's attributes as JSON."""
ATTRIBUTES_DEPTH_MAX = 5
"""Objects and lists within each other, the attributes themselves counted."""


def merge_attributes(stored: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes after a JSON Merge Patch (RFC 7396); neither argument is changed.

    Raises ValidationFailed where the patch or its outcome is beyond the limits above.
    """
    if not _is_shallow(patch, ATTRIBUTES_DEPTH_MAX):
        raise _refused(f"Attributes may be nested {ATTRIBUTES_DEPTH_MAX} deep, with named fields.")
    merged = _merge(stored, patch)
    if len(merged) > ATTRIBUTES_MAX:
        raise _refused(f"A user may have {ATTRIBUTES_MAX} attributes.")
    if len(msgspec.json.encode(merged)) > ATTRIBUTES_BYTES_MAX:
        raise _refused(f"Attributes may take {ATTRIBUTES_BYTES_MAX} bytes of JSON.")
    return merged


def _is_shallow(value: Any, depth: int) -> bool:
    if isinstance(value, Mapping):
        return depth > 0 and all(
            name != "" and _is_shallow(inner, depth - 1) for name, inner in value.items()
        )
    if isinstance(value, list):
        return depth > 0 and all(_is_shallow(inner, depth - 1) for inner in value)
    return True


def _merge(stored: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(stored)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping):
            inner = merged.get(name)
            merged[name] = _merge(inner if isinstance(inner, Mapping) else {}, value)
        else:
            merged[name] = value
    return merged


def _refused(detail: str) -> ValidationFailed:
    return ValidationFailed(detail, errors=(FieldError("attributes", detail),))
