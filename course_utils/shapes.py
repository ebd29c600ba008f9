"""The shape of a conversation: all that a template can see of it besides its texts."""

import re

from course_utils.conversation import Conversation


def shape(conversation: Conversation) -> tuple[tuple, list[str], list[int]]:
    """What a template can see of a conversation besides its texts; the texts; whose they are."""
    key, texts, owners = [], [], []

    def taken(text: str):
        texts.append(text)
        return ...  # nothing that JSON holds, so that a text is never taken for null

    for place, message in enumerate(conversation.messages):
        structure = message.role
        if message.is_plain:
            texts.append(message.content)
        else:
            structure = repr(map_texts(message.as_message(), taken)), message.train
        owners += [place] * (len(texts) - len(owners))
        key.append(structure)
    return tuple(key), texts, owners


def map_texts(message: dict, change) -> dict:
    """The message with `change(text)` in the place of every text that somebody wrote."""
    mapped = {"role": message["role"]}
    for name, value in message.items():
        if name == "tool_calls":
            mapped[name] = [
                {
                    key: change(inner) if key == "id" and isinstance(inner, str) else inner
                    for key, inner in call.items()
                    if key != "function"
                }
                | {"function": map_leaves(call["function"], change)}
                for call in value
            ]
        elif name != "role":
            mapped[name] = change(value)
    return mapped


def map_leaves(value, change):
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return [map_leaves(item, change) for item in value]
    if isinstance(value, dict):
        return {key: map_leaves(item, change) for key, item in value.items()}
    return value


def keys_in(value) -> list[str]:
    """The names of fields in nested objects, which a template may write, too."""
    if isinstance(value, dict):
        return [*value, *(key for item in value.values() for key in keys_in(item))]
    return [key for item in value for key in keys_in(item)] if isinstance(value, list) else []


# What in a tool's description belongs to JSON Schema and the calling convention; all else is
# somebody's own words. https://json-schema.org/draft/2020-12/schema
KEYWORDS = {
    "type",
    "function",
    "name",
    "description",
    "parameters",
    "strict",
    "return",
    "properties",
}
KEYWORDS |= {
    "required",
    "items",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "$ref",
    "$defs",
}
KEYWORDS |= {"definitions", "additionalProperties", "patternProperties", "prefixItems", "format"}
KEYWORDS |= {"title", "default", "examples", "minimum", "maximum", "exclusiveMinimum", "nullable"}
KEYWORDS |= {"exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern", "minItems"}
KEYWORDS |= {"maxItems", "uniqueItems", "minProperties", "maxProperties", "deprecated"}
KINDS = {"object", "array", "string", "integer", "number", "boolean", "null", "function"}


def neutral_tools(value, names: bool = False, required: bool = False):
    """Descriptions of tools with x for all that somebody chose; JSON Schema's own words stay."""
    if isinstance(value, dict):
        return {
            (name if name in KEYWORDS and not names else neutral_name(name)): neutral_tools(
                item, not names and name == "properties", not names and name == "required"
            )
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [neutral_tools(item, required=required) for item in value]
    if isinstance(value, str) and value not in KINDS:
        return neutral_name(value) if required else neutral_text(value)
    return value


def neutral_options(value, specials: tuple[str, ...]):
    """Options of a template with x for every text that could be part of a special token."""
    if isinstance(value, dict):
        return {neutral_name(name): neutral_options(item, specials) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [neutral_options(item, specials) for item in value]
    if isinstance(value, str):
        part = any(value.lower() in special.lower() for special in specials)
        return neutral_text(value) if part or not re.fullmatch(r"[A-Za-z0-9 ]*", value) else value
    return value


def neutral_text(text: str) -> str:
    return re.sub(r"\S", "x", text)


def neutral_keys(value):
    """The arguments of a call with neutral names; texts stay as they are."""
    if isinstance(value, dict):
        return {neutral_name(name): neutral_keys(item) for name, item in value.items()}
    return [neutral_keys(item) for item in value] if isinstance(value, list | tuple) else value


def neutral_name(name: str) -> str:
    """A name of letters alone, a different one for each name."""
    return "x" + "".join(chr(ord("a") + int(digit, 16)) for digit in name.encode().hex())
