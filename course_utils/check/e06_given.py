"""What the exercises of lecture 06 are tried on: templates, plans, a server and a tokenizer."""

import re
from dataclasses import dataclass
from functools import lru_cache

from course_utils.templates import chat_template

QUESTION = [{"role": "user", "content": "1+1?"}]
TWO_REPLIES = [
    *QUESTION,
    {"role": "assistant", "content": "It is 2."},
    {"role": "user", "content": "And 4-2?"},
    {"role": "assistant", "content": "It is 2."},
]


# --- a template of models that always think -------------------------------------------------------

ALWAYS_THINKING = r"""{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' -}}
{%- if message.role == 'assistant' -%}
{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' -}}
{%- endif -%}
{{- message.content + '<|im_end|>' + '\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\n<think>\n' if add_generation_prompt -}}"""

THOUGHTS = {1: "One and one.", 3: "Four less two."}
REASONED = [
    message | ({"reasoning_content": THOUGHTS[k]} if k in THOUGHTS else {})
    for k, message in enumerate(TWO_REPLIES)
]


# --- small templates that give words instead of ids -----------------------------------------------


def steady(messages, add_generation_prompt=False):
    """Every message is written in the same way, whatever comes after it."""
    words = ["<s>"]
    for message in messages:
        words += [f"<{message['role']}>", *message["content"].split(), "<end>"]
    return words + ["<assistant>"] * add_generation_prompt


def gapped(messages, add_generation_prompt=False):
    """As `steady`, with a line break behind every end of turn."""
    words = []
    for word in steady(messages, add_generation_prompt):
        words += [word, "\\n"] if word == "<end>" else [word]
    return words


def eager(messages, add_generation_prompt=False):
    """Opens a reply behind whatever was said, asked for or not."""
    return steady(messages, add_generation_prompt=True)


def sealed(messages, add_generation_prompt=False):
    """Ends every turn twice."""
    words = []
    for word in steady(messages, add_generation_prompt):
        words += [word, word] if word == "<end>" else [word]
    return words


def forgetful(messages, add_generation_prompt=False):
    """Writes <think> into the last reply and leaves it out once another message follows."""
    words = steady(messages, add_generation_prompt)
    if messages and messages[-1]["role"] == "assistant":
        start = len(steady(messages[:-1])) + 1
        words = [*words[:start], "<think>", *words[start:]]
    return words


def thinking(messages, add_generation_prompt=False):
    """Opens every reply with <think> in the generation prompt, but not in a finished reply."""
    return steady(messages, add_generation_prompt) + ["<think>"] * add_generation_prompt


# --- templates that give text ---------------------------------------------------------------------


def messages_of(*lines):
    """Messages from lines of the form "role: content"."""
    pairs = (line.split(": ", 1) for line in lines)
    return [{"role": role, "content": content} for role, content in pairs]


def _write(messages):
    return "".join(f"<{message['role']}>{message['content']}<end>" for message in messages)


def plain_text(messages):
    """Writes every text as it is."""
    return _write(messages)


def trimming(messages):
    """Takes the white space off both ends of every text."""
    return _write([{**message, "content": message["content"].strip()} for message in messages])


def dropping(messages):
    """Leaves out the texts of the system."""
    return _write([m if m["role"] != "system" else {**m, "content": ""} for m in messages])


def curious(messages):
    """Writes another header before a text that begins with '!'."""
    return _write([{**m, "role": "tool"} if m["content"][:1] == "!" else m for m in messages])


def doubling(messages):
    """Writes what the system said again at the end."""
    return _write(messages + [m for m in messages if m["role"] == "system"])


def moving(messages):
    """Writes what the system said at the end, and only there."""
    return _write(sorted(messages, key=lambda message: message["role"] == "system"))


# --- plans ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What was noted while a template ran once on watched texts.

    questions: (k, question, answer): it asked question(texts[k]) and got the answer
    pieces:    in the order of the text: a str that it wrote itself, or a hole (k, step), where it
               wrote step(texts[k])
    """

    questions: list
    pieces: list

    def __repr__(self):
        return f"Plan({_shown(self.questions)}, {_shown(self.pieces)})"


def _shown(value):
    """The `repr`, with functions by their names."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return value.__qualname__ if callable(value) else repr(value)


def thinks(text):
    """Does `</think>` stand in it?"""
    return "</think>" in text


def parts(text):
    """How many parts are there, if it is split at `</think>`?"""
    return text.count("</think>") + 1


def from_tool(text):
    """Does it begin with `<tool_response>`?"""
    return text.startswith("<tool_response>")


def unbroken(text):
    """Without line breaks at its beginning."""
    return text.lstrip("\n")


def thought(text):
    """The part in front of `</think>`, without `<think>` and the line breaks around it."""
    return text.split("</think>")[0].replace("<think>", "").strip("\n")


def behind_thought(text):
    """The part behind `</think>`; there must be one."""
    return text.split("</think>")[1].lstrip("\n")


USER, REPLY, END = "<user>", "<end><assistant>", "<end>"
LLAMA_PLAN = Plan([], [USER, (0, str.strip), REPLY, (1, str.strip), END])
QWEN_PLAN = Plan([(1, thinks, False)], [USER, (0, str), REPLY, (1, unbroken), END])
THOUGHT_PLAN = Plan(
    [(1, thinks, True), (1, parts, 2)],
    [USER, (0, str), REPLY, "<think>", (1, thought), "</think>", (1, behind_thought), END],
)
# Two questions about two texts.
TOOL_PLAN = Plan(
    [(0, from_tool, False), (1, thinks, False)], [USER, (0, str), REPLY, (1, unbroken), END]
)
# The second text stands first, next to the first; the third is asked about, and nowhere written.
MOVING_PLAN = Plan([(2, str.isupper, False)], [(1, str), (0, str.strip), END])
BRACES_PLAN = Plan([], ["{'tools': {}}", USER, (0, str), REPLY, (1, str), END])
ECHO_PLAN = Plan([], [USER, (0, str), REPLY, (1, str), END, "<title>", (0, str.strip), END])
LONG_PLAN = Plan([(0, len, 1000)], [USER, (0, str), REPLY, (1, str), END])


# --- a server that gives ids ----------------------------------------------------------------------

WORDS = ["2", "<s>", "<user>", "<assistant>", "<end>", "<think>", "1+1?", "1+1", "?", " is it."]
WORDS += ["4-2?", "Be brief.", "<system>"]
SERVED_CHAT = messages_of("user: 1+1?", "assistant: 2", "user: 4-2?", "assistant: 2 is it.")


def text_of(ids):
    """What the ids say. Different ids may say the same: 6 is "1+1?", and so is 7, 8."""
    return "".join(WORDS[one] for one in ids)


def serve(messages, k):
    """The ids that a server sends so that the model writes message k next."""
    ids = [1]
    for message in messages[:k]:
        content = message["content"]
        words = [0, 9] if content == "2 is it." else [WORDS.index(content)]
        ids += [WORDS.index(f"<{message['role']}>"), *words, 4]
    return [*ids, 3]


def serve_thinking(messages, k):
    """As `serve`, with <think> behind the last header."""
    return [*serve(messages, k), 5]


# --- a tokenizer of characters --------------------------------------------------------------------


class Toy:
    """A tokenizer with four special tokens; every other character is a token, with its code point.

    encode("<s>Hi")                             -> [0, 72, 105]
    encode("<s>Hi", split_special_tokens=True)  -> [60, 115, 62, 72, 105]
    """

    specials = {"<s>": 0, "<user>": 1, "<assistant>": 2, "<end>": 3}

    def encode(self, text, split_special_tokens=False):
        if split_special_tokens:
            return [ord(character) for character in text]
        parts = re.split(f"({'|'.join(self.specials)})", text)
        return [
            one
            for part in parts
            for one in ([self.specials[part]] if part in self.specials else map(ord, part))
        ]

    def __repr__(self):
        return "Toy()"


# --- what counts calls, and a real tokenizer ------------------------------------------------------


class Template:
    """A template, or a server, that counts its calls. Messages show it by its name."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arguments, **options):
        self.calls += 1
        return self.function(*arguments, **options)

    def __repr__(self):
        return self.function.__name__


@lru_cache
def toy(family):
    """A tokenizer with the family's template, made on the spot."""
    from course_utils.tokenizers import toy_tokenizer

    tokenizer = toy_tokenizer([message["content"] for message in TWO_REPLIES])
    tokenizer.chat_template = chat_template(family)
    return tokenizer
