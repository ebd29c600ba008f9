"""Tool calls and tool definitions, each in the one form that chat templates expect."""

from collections.abc import Iterable, Mapping

from course_utils.faults import DEEP, REMEDIES, ConversationError, Faults
from course_utils.strict_json import JSONError, decode, plain, shown


def tool_calls(calls, faults: Faults) -> tuple[dict, ...]:
    """A message's calls; what is wrong with them is added to `faults`.

    Each becomes {"type": "function", "function": {"name": ..., "arguments": {...}}}, perhaps with
    an "id". The inner object alone will do, and arguments may be JSON text.
    """
    return _each(calls, "tool_calls", "tool call", _call, faults)


def tool_definitions(tools, faults: Faults) -> tuple[dict, ...]:
    """A conversation's tools; what is wrong with them is added to `faults`.

    Each becomes {"type": "function", "function": {"name": ..., "parameters": ...}}. The inner
    object alone will do, so will a single definition, and JSON text. Null is left out.
    """
    if isinstance(tools, str):
        try:
            tools = decode(tools, exact=True) if tools else ()
        except JSONError as error:
            faults.add(f"the text of 'tools' is no JSON: {error}. Mend it.", "tools")
            return ()
    if isinstance(tools, Mapping):
        tools = [tools] if tools else ()
    return _each(tools, "tools", "tool", _definition, faults)


def _each(values, field: str, name: str, read, faults: Faults) -> tuple[dict, ...]:
    if values is None:
        return ()
    if not isinstance(values, list | tuple):
        kind = type(values).__name__
        faults.add(f"{field!r} is not a list of objects but {kind}. Write a list.", field)
        return ()
    found = []
    for place, value in enumerate(values):
        if faults.full:
            break
        try:
            found.append(read(value, f"{name} {place}"))
        except ConversationError as error:
            faults.add(str(error), f"{field}[{place}]")
        except JSONError as error:
            faults.add(f"{name} {place}: {error}. {REMEDIES[error.reason]}", f"{field}[{place}]")
    return tuple(found)


def _call(call, name: str) -> dict:
    bare = isinstance(call, Mapping) and call.get("function") is None
    inner = call["function"] if isinstance(call, Mapping) and not bare else call
    if not isinstance(inner, Mapping) or not {"name", "arguments"} <= set(inner):
        raise ConversationError(
            f"{name} is no object with 'name' and 'arguments'. "
            'Write {"type": "function", "function": {"name": ..., "arguments": {...}}}.'
        )
    outer_fields = ("id", "type", *(("name", "arguments") if bare else ("function",)))
    extra = _beside(call, outer_fields)
    if extra := extra if bare else extra + _beside(inner, ("name", "arguments")):
        raise ConversationError(
            f"{name} has fields that this schema does not know: {shown(extra)}. Remove them."
        )
    if call.get("type") not in (None, "function"):
        raise ConversationError(
            f"{name} is of type {shown(call['type'])}. Only calls of a function can be written."
        )
    if not isinstance(call.get("id"), str | None):
        raise ConversationError(
            f"{name}: the id {shown(call['id'])} is not text: put it in quotes."
        )
    arguments = inner["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = decode(arguments, exact=True)
        except JSONError as error:
            raise ConversationError(
                f"{name}: the arguments are text that is no JSON: {error}. Mend them."
            ) from None
    if not isinstance(arguments, Mapping) or not isinstance(inner["name"], str):
        raise ConversationError(
            f"{name}: the name must be text and the arguments an object, such as "
            '{"city": "Bern"}.'
        )
    identity = {"id": call["id"]} if call.get("id") is not None else {}
    function = {"name": inner["name"], "arguments": arguments}
    return plain({**identity, "type": "function", "function": function}, deepest=DEEP)


def _beside(fields: Mapping, known: Iterable[str]) -> list[str]:
    """The names of fields that say something and are not known."""
    return [str(key) for key in fields if key not in known and fields[key] is not None]


def _definition(tool, name: str) -> dict:
    tool = decode(tool, exact=True) if isinstance(tool, str) else tool
    if not isinstance(tool, Mapping):
        raise ConversationError(
            f"{name} is not an object but {type(tool).__name__}. Write one JSON schema a tool."
        )
    tool = without_nulls(plain(tool, deepest=DEEP - 1))
    kind = tool.pop("type", "function")
    function = tool.get("function", tool)
    if kind != "function" or not isinstance(function, dict):
        raise ConversationError(
            f"{name} is no definition of a function. "
            'Write {"type": "function", "function": {"name": ..., "parameters": {...}}}.'
        )
    if not isinstance(function.get("name"), str) or not function["name"]:
        found = shown(function.get("name"))
        raise ConversationError(f"{name} has the name {found}. Give it one, as text.")
    if {"input_schema", "inputSchema"} & set(function):
        raise ConversationError(
            f"{name} has an input schema. Rename it: templates read 'parameters'."
        )
    if not isinstance(function.get("parameters", {}), dict):
        raise ConversationError(f"{name}: the parameters are no object. Write a JSON schema.")
    return {"type": "function", **(tool if function is not tool else {"function": function})}


def without_nulls(schema):
    """The schema without the nulls that `datasets` fills in for keys that only other rows have.

    In a schema null is a value only in a list, and as the default of what may be null.
    """
    if isinstance(schema, list):
        return [without_nulls(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    kept = ("default", "const") if None in schema.values() and _may_be_null(schema) else ()
    return {
        key: without_nulls(inner)
        for key, inner in schema.items()
        if inner is not None or key in kept
    }


def _may_be_null(schema: dict) -> bool:
    kinds = [schema.get("type"), *_list(schema.get("type"))]
    for branch in (*_list(schema.get("anyOf")), *_list(schema.get("oneOf"))):
        kinds.append(branch.get("type") if isinstance(branch, dict) else None)
    return "null" in kinds


def _list(value) -> list:
    return value if isinstance(value, list) else []
