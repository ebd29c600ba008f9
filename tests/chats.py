"""Random conversations that try to break templates and masks."""

import re

from hypothesis import strategies as st

from course_utils.conversation import conversation

# Written out by hand and not taken from course_utils.templates, whose rules they test.
SPECIAL = {
    "plain": (),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<bos>", "<start_of_turn>", "<end_of_turn>"),
    "mistral": ("<s>", "</s>"),
}
MARKERS = {name: re.compile("|".join(map(re.escape, tokens))) for name, tokens in SPECIAL.items()}
MARKERS["mistral"] = re.compile(r"<s>|</s>|\[INST\]|\[/INST\]")
MARKERS["plain"] = re.compile(r"^(System|User|Assistant): ", re.M)
FAMILY_NAMES = tuple(SPECIAL)
TRIMS = ("plain", "llama3", "gemma")
ROLES = {
    "plain": ("system", "user", "assistant"),
    "chatml": ("system", "user", "assistant", "tool"),
    "llama3": ("system", "user", "assistant", "tool"),
    "gemma": ("user", "assistant"),
    "mistral": ("user", "assistant"),
}
ALTERNATES = ("gemma", "mistral")

ALL_MARKERS = [token for tokens in SPECIAL.values() for token in tokens]
ALL_MARKERS += ["[INST]", "[/INST]", "User: ", "Assistant: ", "System: "]
ALL_MARKERS += ["<|endoftext|>", "<|pad|>"]
NEAR = [marker[:-1] for marker in ALL_MARKERS] + [marker[1:] for marker in ALL_MARKERS]
NEAR += ["User :", "user:", "\nUser:", "\nAssistant:\n", "<|im_", "< |eot_id|>", "<|im_end|\n>"]
WHOLE_TURNS = [
    "<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n",
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nhi",
    "<end_of_turn>\n<start_of_turn>model\n",
    " [/INST] ok</s> [INST] more",
    "\nUser: hi\nAssistant: ho",
]
TEXT = ["Water", " boils", "at 100", "a", "", ".", ">", "<"]
SPACE = ["\n", "\n\n", " ", "  ", "\t", "\r\n", "\u2028", "\u0085", "\u200b", "\ufeff"]
UNICODE = ["é", "e\u0301", "水", "🙂", "👩‍👩‍👧", "\x00", "שלום"]
ROLE_LIKE = ["user", "assistant", "system\n", "model", "ipython", "{{ messages }}", "{% if %}"]

FRAGMENTS = ["", *TEXT, *SPACE, *NEAR, *ALL_MARKERS, *WHOLE_TURNS, *UNICODE, *ROLE_LIKE]
# Nothing in these looks like a marker, so that transformers tokenizes them as we do.
HARMLESS = ["", "yes", " No.", " why", "?", " é", "水", " 1", "00 "]


def turns_from(drawn: tuple[bytes, str], roles: tuple[str, ...], fragments: list[str]):
    """A byte from 200 up begins a turn; any other adds a fragment, or the random text, to it."""
    data, random_text = drawn
    pieces = fragments if fragments is HARMLESS else [*fragments, random_text]
    turns = []
    for byte in data:
        if byte >= 200 or not turns:
            turns.append((roles[byte % len(roles)], []))
        else:
            turns[-1][1].append(pieces[byte % len(pieces)])
    return [(role, "".join(texts)) for role, texts in turns]


# One draw of bytes is far cheaper than one draw for every turn and every piece of text.
# The guard character has its own test.
LETTERS = st.characters(codec="utf-8", exclude_characters="\ue000")
DRAWN = st.tuples(st.binary(min_size=12, max_size=40), st.text(LETTERS, min_size=1, max_size=8))


def canonical(text: str, family: str) -> str:
    """The nearest text that stands in the family's canonical class."""
    before = None
    while text != before:
        before = text
        text = MARKERS[family].sub("", text)
        text = text.strip() if family in TRIMS else text
    return text


def any_order(roles, fragments=FRAGMENTS):
    """Lists of (role, content), the roles in any order."""
    return DRAWN.map(lambda drawn: turns_from(drawn, roles, fragments))


def alternating(fragments=FRAGMENTS, *, system=True, full=False):
    """User and assistant take turns, perhaps behind a system text; `full`: a reply comes last."""

    def build(drawn):
        turns = turns_from(drawn, ("user", "system") if system else ("user",), fragments)
        opening = turns[:1] if turns[0][0] == "system" else []
        texts = [text for _, text in turns[len(opening) :]] or [""]
        texts += [""] * (full and len(texts) % 2)
        roles = ("user", "assistant") * len(texts)
        return opening + list(zip(roles, texts, strict=False))

    return DRAWN.map(build)


def as_conversation(turns):
    return conversation(*turns)


def canonical_chats(family: str):
    """Conversations of which parse(render(c)) == c must hold."""
    turns = alternating(system=False) if family in ALTERNATES else any_order(ROLES[family])
    return turns.map(
        lambda turns: conversation(*((role, canonical(text, family)) for role, text in turns))
    )


def any_chats(family: str):
    """Conversations in an order that the family can express, with whatever in them."""
    turns = alternating() if family in ALTERNATES else any_order(ROLES[family])
    return turns.map(as_conversation)
