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


# In a tool's description: under these names is text of somebody's, under "properties" are names.
WORDS = {"description", "name", "title", "enum", "default", "const", "examples", "required"}


def neutral_tools(value, key: str = "", names: bool = False):
    """Descriptions of tools with x for all letters that somebody chose; the structure stays."""
    if isinstance(value, dict):
        return {
            (neutral_name(name) if names else name): neutral_tools(
                item, key if key in WORDS else name, not names and name == "properties"
            )
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [neutral_tools(item, key) for item in value]
    if isinstance(value, str) and key in WORDS:
        return neutral_name(value) if key == "required" else re.sub(r"\S", "x", value)
    return value


def neutral_keys(value):
    """The arguments of a call with neutral names; texts stay as they are."""
    if isinstance(value, dict):
        return {neutral_name(name): neutral_keys(item) for name, item in value.items()}
    return [neutral_keys(item) for item in value] if isinstance(value, list | tuple) else value


def neutral_name(name: str) -> str:
    """A name of letters alone, a different one for each name."""
    return "x" + "".join(chr(ord("a") + int(digit, 16)) for digit in name.encode().hex())
