"""What the exercises of lecture 06 are tried on: templates, a server and a tokenizer, all small."""

import re
from functools import lru_cache

from course_utils.templates import chat_template

QUESTION = [{"role": "user", "content": "1+1?"}]
TWO_REPLIES = [
    *QUESTION,
    {"role": "assistant", "content": "It is 2."},
    {"role": "user", "content": "And 4-2?"},
    {"role": "assistant", "content": "It is 2."},
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
