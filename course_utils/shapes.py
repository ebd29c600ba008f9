"""The shape of a conversation: all that a template can see of it besides its texts."""

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
