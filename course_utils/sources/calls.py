"""Tool calls, results and definitions, in whatever shape a source has them.

A call becomes {"id": ..., "name": ..., "arguments": {...}}, the id only if the source gives one; a
definition becomes {"type": "function", "function": {"name": ..., "parameters": JSON schema}}.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping

from course_utils.faults import Faults
from course_utils.sources.fields import (
    Rejected,
    check_plain,
    decode,
    decode_at,
    is_empty,
    optional,
    shown,
)
from course_utils.tool_schema import tool_definitions, without_nulls

# --- calls ---------------------------------------------------------------------------------------


def calls_in(value: object, place: str) -> list[dict]:
    """The calls of a list, of a single call, or of a string that holds one of these."""
    if isinstance(value, str):
        value = decode_at(value, place, "broken tool call")
    if isinstance(value, list):
        return [one_call(call, f"{place}[{n}]") for n, call in enumerate(value)]
    return [one_call(value, place)]


def one_call(call: object, place: str) -> dict:
    """A call, bare or under "function"; arguments are an object or a string that holds one."""
    if isinstance(call, str):
        call = decode_at(call, place, "broken tool call")
    if not isinstance(call, Mapping):
        raise Rejected("broken tool call", place, f"{type(call).__name__} instead of an object")
    if call.get("type") not in (None, "function"):
        raise Rejected("broken tool call", f"{place}.type", f"type {shown(call['type'])}")
    inner, here, wrapper = call, place, {"id", "type", "index"}
    if call.get("function") is not None:
        inner, here = call["function"], f"{place}.function"
        _nothing_else(call, wrapper | {"function"}, place)
        if not isinstance(inner, Mapping):
            raise Rejected("broken tool call", here, f"{type(inner).__name__}, no object")
    _nothing_else(inner, {"name", "arguments", "function"} | wrapper, here)
    for key in ("name", "arguments"):
        if key not in inner:
            raise Rejected("broken tool call", here, f"no {key!r}")
    name, arguments = inner["name"], inner["arguments"]
    if not isinstance(name, str) or not name:
        raise Rejected("broken tool call", f"{here}.name", f"{shown(name)} is no name")
    here = f"{here}.arguments"
    if isinstance(arguments, str):
        arguments = decode_at(arguments, here, "broken tool call")
    if not isinstance(arguments, Mapping):
        raise Rejected("broken tool call", here, f"{type(arguments).__name__} instead of an object")
    check_plain(arguments, here)
    ids = [found for part in (call, inner) if (found := optional(part, "id", str, place))]
    if len(set(ids)) > 1:
        raise Rejected("broken tool call", place, f"two ids, {shown(ids[0])} and {shown(ids[1])}")
    return ({"id": ids[0]} if ids else {}) | {"name": name, "arguments": dict(arguments)}


def _nothing_else(call: Mapping, known: set[str], place: str) -> None:
    if rest := sorted(key for key in call if key not in known and call[key] is not None):
        raise Rejected("unknown field", place, f"{shown(rest)} in a call")


# --- definitions ---------------------------------------------------------------------------------


def definitions_in(value: object, place: str) -> list[dict]:
    """The tools of a list, of a single definition, or of a string that holds one of these."""
    if isinstance(value, str) and value:
        value = decode_at(value, place, "broken tool definitions")
    if is_empty(value):
        return []
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise Rejected("broken tool definitions", place, f"{type(value).__name__} is no list")
    return [one_definition(tool, f"{place}[{n}]") for n, tool in enumerate(value)]


def one_definition(tool: object, place: str) -> dict:
    """A definition as the schema has it, from the other shapes that are in use.

    Beside OpenAI's three are read: content blocks with `input_schema`, parameters as JSON in a
    string, and xLAM's parameters (`_schema_of`).
    """
    if isinstance(tool, str):
        tool = decode_at(tool, place, "broken tool definitions")
    if not isinstance(tool, Mapping):
        detail = f"{type(tool).__name__} instead of an object"
        raise Rejected("broken tool definitions", place, detail)
    check_plain(tool, place)
    is_bare = not isinstance(tool.get("function"), Mapping)
    function = without_nulls(dict(tool if is_bare else tool["function"]))
    if "input_schema" in function and "parameters" not in function:
        names = {"input_schema": "parameters"}
        function = {names.get(key, key): value for key, value in function.items()}
        if function.get("type") == "custom":
            del function["type"]
    if isinstance(text := function.get("parameters"), str):
        found = decode_at(text, f"{place}.parameters", "broken tool definitions")
        function["parameters"] = without_nulls(found)
    if _is_xlam(function.get("parameters")):
        function["parameters"] = _schema_of(function["parameters"])
    faults = Faults()
    found = tool_definitions([function if is_bare else {**tool, "function": function}], faults)
    if error := faults.first():
        raise Rejected("broken tool definitions", place, error.detail)
    return found[0]


XLAM_TYPES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
}


def _is_xlam(parameters: object) -> bool:
    """Are these parameters by name, each with a type, and no JSON schema?"""
    if not isinstance(parameters, Mapping) or not parameters:
        return False
    values = parameters.values()
    return all(isinstance(v, Mapping) and isinstance(v.get("type"), str) for v in values)


def _schema_of(parameters: Mapping) -> dict:
    """xLAM's {"city": {"type": "str, optional", "description": ...}} as a JSON schema.

    The six plain types of Python get JSON schema's names, "optional" leaves the parameter out of
    `required`, and everything else, a type such as "List[int]" included, stays as it is.
    """
    properties, needed = {}, []
    for name, about in parameters.items():
        kind = re.sub(r",\s*optional$", "", about["type"])
        properties[name] = {**about, "type": XLAM_TYPES.get(kind, kind)}
        if kind == about["type"]:
            needed.append(name)
    return {"type": "object", "properties": properties, "required": needed}


def same_tools(one: list[dict], other: list[dict]) -> bool:
    """Do two lists hold the same definitions, in any order?"""

    def lines(tools):
        return sorted(json.dumps(tool, sort_keys=True) for tool in tools)

    return lines(one) == lines(other)


# --- tags in a text ------------------------------------------------------------------------------
# Hermes and its heirs write <tools>, <tool_call> and <tool_response> into the texts. A template
# that writes calls in its own grammar would write them a second time.

TAGS = ("tools", "tool_call", "tool_response")
TAG = re.compile(r"</?(?:tools|tool_call|tool_response)>")
# How others begin a call, which is not read here.
OTHER = re.compile(
    r"<[/|｜]?(?:tool|function)[_▁]?calls?(?:[_▁]begin)?[|｜]?>"
    r"|<function=|<\|python_tag\|>|\[TOOL_CALLS\]"
)
# A Python literal of at most this many characters is read, if it has the usual escapes only.
LITERAL = re.compile(r"(?:[^\\\0]|\\[\\'\"nrtxuU]){1,100000}")


def tagged_calls(text: str, place: str) -> tuple[str, list[dict]]:
    """(the text before the calls, the calls) of what an assistant wrote."""
    blocks, calls = [], []
    if TAG.search(text):
        blocks, (said, *rest) = _blocks(text, "tool_call", place)
        _nothing_beside(rest, place, "text after a tool call")
    else:
        said = text
    if other := TAG.search(said) or OTHER.search(said):
        raise Rejected("tool tags in the text", place, f"{other[0]} is left in the text")
    for inside in blocks:
        calls += calls_in(_decoded(inside, place, "broken tool call"), place)
    return (said.rstrip("\n") if said.strip() else "") if blocks else text, calls


def tagged_results(text: str, place: str) -> list[tuple[str | None, str | None, str]] | None:
    """[(id, name, content)] of the results in a text, None if it is a result itself.

    {"name": ..., "content": ...} is taken apart; content that is no text is written as JSON.
    Anything else is the content.
    """
    if not TAG.search(text):
        return None
    blocks, rest = _blocks(text, "tool_response", place)
    _nothing_beside(rest, place, "tool tags in the text")
    return [_result(inside, place) for inside in blocks]


def _result(inside: str, place: str) -> tuple[str | None, str | None, str]:
    try:
        about = _decoded(inside, place, "broken tool call")
    except Rejected:
        about = None
    known = {"content", "name", "tool_call_id"}
    if not isinstance(about, Mapping) or not {"content"} < set(about) <= known:
        return None, None, inside.strip()
    content = about["content"]
    if not isinstance(content, str):
        content = json.dumps(content, ensure_ascii=False)
    return *(optional(about, key, str, place) for key in ("tool_call_id", "name")), content


def tagged_tools(text: str, place: str) -> tuple[str, list[dict]]:
    """(the text without the lists, the definitions)"""
    if "<tools>" not in text:
        return text, []
    blocks, rest = _blocks(text, "tools", place)
    kept, found = [rest[0]], []
    for inside, after in zip(blocks, rest[1:], strict=True):
        if inside.strip():
            found += _listed(inside, place)
        else:
            kept.append(f"<tools>{inside}</tools>")
        kept.append(after)
    return "".join(kept), found


def holds_tools(text: str) -> bool:
    """Does a user's text list definitions, as it does where there is no system text?"""
    try:
        return bool(tagged_tools(text, "")[1])
    except Rejected:
        return False


def _listed(inside: str, place: str) -> list[dict]:
    """Definitions as one JSON value, or as one a line."""
    lines = [line for line in inside.split("\n") if line.strip()]
    try:
        found = _decoded(inside, place, "broken tool definitions")
    except Rejected:
        if len(lines) < 2:
            raise
        found = [_decoded(line, place, "broken tool definitions") for line in lines]
    return definitions_in(found, place)


def without_grammar(text: str, place: str) -> tuple[str, list[str]]:
    """(the text without the sentences that hold tags, these sentences).

    Such a sentence tells how to write a call, and the template has a grammar of its own.
    """
    kept, cut, start = [], [], 0
    for first, last in _sentences(text, place):
        kept.append(text[start:first])
        cut.append(text[first:last].strip())
        start = last
    return "".join([*kept, text[start:]]), cut


def _sentences(text: str, place: str) -> Iterator[tuple[int, int]]:
    """Where the sentences that hold a pair of tags begin and end; those that overlap are one."""
    first, last = 0, 0
    for begin, end in sorted(span for tag in TAGS for span in _spans(text, tag, place)):
        if begin >= last:
            if last:
                yield first, last
            first = max(text.rfind(mark, last, begin) for mark in ".!?\n") + 1 or last
        if end > last:
            stop = re.compile(r"[.!?\n]").search(text, end)
            last = stop.end() if stop else len(text)
    if last:
        yield first, last


def _spans(text: str, tag: str, place: str) -> Iterator[tuple[int, int]]:
    """Where the blocks of a tag begin and end; `Rejected` for a tag without its other half."""
    marks = list(re.finditer(f"</?{tag}>", text))
    for position in range(0, len(marks), 2):
        pair = marks[position : position + 2]
        if [mark[0] for mark in pair] != [f"<{tag}>", f"</{tag}>"]:
            raise Rejected("tool tags in the text", place, f"{pair[0][0]} without its other half")
        yield pair[0].start(), pair[1].end()


def _blocks(text: str, tag: str, place: str) -> tuple[list[str], list[str]]:
    """(what the blocks of a tag hold, what is before, between and after them)"""
    blocks, rest, start = [], [], 0
    for first, last in _spans(text, tag, place):
        rest.append(text[start:first])
        blocks.append(text[first + len(tag) + 2 : last - len(tag) - 3])
        start = last
    return blocks, [*rest, text[start:]]


def _nothing_beside(rest: list[str], place: str, otherwise: str) -> None:
    for text in rest:
        if stray := TAG.search(text):
            raise Rejected("tool tags in the text", place, f"{stray[0]} beside the blocks")
        if text.strip():
            raise Rejected(otherwise, place, f"{shown(text.strip())} beside the blocks")


def _decoded(inside: str, place: str, otherwise: str) -> object:
    """What a tag holds: JSON, or the Python literal that some of Hermes' own rows have."""
    try:
        decode(inside)
    except Rejected as error:
        if error.reason == "broken JSON" and LITERAL.fullmatch(inside):
            try:
                return _literal(ast.parse(inside.strip(), mode="eval").body)
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                pass
    return decode_at(inside, place, otherwise)


def _literal(node: ast.expr):
    """The value of a literal that JSON could hold; ValueError for any other expression."""
    if isinstance(node, ast.Dict):
        keys = [_literal(key) if key else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
            raise ValueError("keys that JSON lacks")
        return dict(zip(keys, map(_literal, node.values), strict=True))
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _literal(node.operand)
        if type(number) in (int, float):
            return -number
    if isinstance(node, ast.Constant) and type(node.value) in (str, int, float, bool, type(None)):
        return node.value
    raise ValueError("no literal of JSON's kinds")
