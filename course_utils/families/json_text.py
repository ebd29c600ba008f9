"""JSON as chat templates write it: transformers' `tojson`, and back."""

import json

from course_utils import strict_json


def to_json(value, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def from_json(text: str) -> dict | None:
    """The object that `text` describes, or None if it describes none."""
    try:
        value = strict_json.decode(text, exact=True)
    except strict_json.JSONError:
        return None
    return value if isinstance(value, dict) else None


def a_call(text: str, arguments: str) -> dict | None:
    """The call in `text`, whose arguments are under the name given; None if it is none."""
    value = from_json(text)
    if value is None or set(value) != {"name", arguments}:
        return None
    if not isinstance(value["name"], str) or not isinstance(value[arguments], dict):
        return None
    return {"name": value["name"], "arguments": value[arguments]}
