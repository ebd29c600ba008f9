# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 02 Conversation to tokens: exercises
#
# Six exercises, independent of each other, about 70 minutes, CPU, nothing to download.
# Lecture: [../notebooks/02_conversation_to_tokens.ipynb](../notebooks/02_conversation_to_tokens.ipynb)
#
# Replace `raise NotImplementedError` and run the cell below it. To check all of them at once:
#
#     pytest --nbval exercises/02_conversation_to_tokens.ipynb
#
# In these exercises a conversation is a plain list of `(role, content)` pairs.

# %%
from course_utils.check import e02

# %% [markdown]
# ## 2.1 Write ChatML
#
# Difficulty 1 of 5 · importance 4 of 5 · 5 minutes
#
# Write a renderer for ChatML. A turn is `<|im_start|>`, the role, a line break, the content as it is,
# `<|im_end|>`, a line break. There is no sequence start. With `add_generation_prompt` the text ends with
# what a server sends so that the assistant's reply comes next.
#
# <details><summary>Hint 1</summary>
#
# Build one string per turn and join them with nothing between them.
#
# </details>
# <details><summary>Hint 2</summary>
#
# A generation prompt is an assistant header, its line break included, and no content.
#
# </details>


# %%
def render_chatml(turns: list[tuple[str, str]], add_generation_prompt: bool = False) -> str:
    """The ChatML text of a conversation.

    turns: (role, content) pairs, at least one.
    add_generation_prompt: open an assistant turn at the end.

    >>> render_chatml([("user", "Hi")])
    '<|im_start|>user\\nHi<|im_end|>\\n'
    """
    # BEGIN SOLUTION
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return text + "<|im_start|>assistant\n" * add_generation_prompt
    # END SOLUTION


# %% tags=["exercise-2.1"]
e02.render_chatml(render_chatml)

# %% [markdown]
# ## 2.2 The twin
#
# Difficulty 2 of 5 · importance 4 of 5 · 8 minutes
#
# Gemma's template has no system role, so it is not injective. Prove it for *every* conversation that begins
# with a system turn: return another conversation, one without a system turn, that Gemma's template writes
# as exactly the same text.
#
# <details><summary>Hint 1</summary>
#
# Look at what `render(..., "gemma", lossy=True)` does with the system text: where it goes, and what stands
# between it and the user's words.
#
# </details>
# <details><summary>Hint 2</summary>
#
# All turns after the first user turn stay as they are. The template drops white space around the user's
# text, but writes the system text as it is.
#
# </details>


# %%
def gemma_twin(turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A conversation without a system turn that has the same Gemma text.

    turns: (role, content) pairs; the first is a system turn whose text does not begin with white
        space, the second a user turn.

    >>> len(gemma_twin([("system", "Be brief."), ("user", "Hi")]))
    1
    """
    # BEGIN SOLUTION
    (_, system), (_, question), *rest = turns
    return [("user", system + "\n\n" + question.strip()), *rest]
    # END SOLUTION


# %% tags=["exercise-2.2"]
e02.gemma_twin(gemma_twin)

# %% [markdown]
# ## 2.3 What does each turn cost?
#
# Difficulty 2 of 5 · importance 3 of 5 · 12 minutes
#
# Count the template tokens of each turn. A token is a template token if *none* of its characters belongs to
# a content; it belongs to the turn of its first character. The sequence start (`turn` is None) belongs to
# no turn.
#
# `rendered.spans` are the pieces of the text in order; each has `text`, `kind` (such as `"content"`) and
# `turn`. `encoded.offsets` has for each token the half-open range of characters that it covers.
#
# <details><summary>Hint 1</summary>
#
# First make a list with one entry per *character*: the span that it belongs to.
#
# </details>
# <details><summary>Hint 2</summary>
#
# A token that covers the space before a word and the word is no template token. So look at all characters
# from `start` to `end`, not at the first alone.
#
# </details>

# %%
from course_utils.templates import Rendered
from course_utils.tokenizers import Encoded


def template_tokens_per_turn(rendered: Rendered, encoded: Encoded) -> list[int]:
    """The number of template tokens of each turn, in order.

    rendered: a rendered conversation
    encoded:  its tokens; `encoded.offsets` are (start, end) ranges in `rendered.text`

    >>> from course_utils import render
    >>> from course_utils.conversation import conversation
    >>> rendered = render(conversation(("user", "Hi")), "chatml")
    >>> offsets = [(0, 12), (12, 16), (16, 17), (17, 19), (19, 29), (29, 30)]
    >>> template_tokens_per_turn(rendered, Encoded([0, 1, 2, 3, 4, 5], offsets))
    [5]
    """
    # BEGIN SOLUTION
    owners = [span for span in rendered.spans for _ in span.text]
    turns = max(span.turn for span in rendered.spans if span.turn is not None) + 1
    counts = [0] * turns
    for start, end in encoded.offsets:
        covered = owners[start:end]
        if covered[0].turn is not None and all(span.kind != "content" for span in covered):
            counts[covered[0].turn] += 1
    return counts
    # END SOLUTION


# %% tags=["exercise-2.3"]
e02.template_tokens_per_turn(template_tokens_per_turn)

# %% [markdown]
# ## 2.4 A parser that refuses
#
# Difficulty 3 of 5 · importance 4 of 5 · 15 minutes
#
# Write the inverse of 2.1. The text must be ChatML from its first character to its last; anything else
# raises `ValueError`: no turn at all, text before, between or after the turns, a role that is not system,
# user, assistant or tool, a turn that is not closed, and a content that holds `<|im_start|>` or
# `<|im_end|>`. A parser that skips what it does not understand would train a model on the rest in silence.
#
# <details><summary>Hint 1</summary>
#
# Keep a position. At each position exactly one thing may stand: a whole turn. If none stands there, refuse.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `re.compile(...).match(text, position)` matches at this position only. With `re.S` a dot takes line breaks
# as well, and `.*?` takes as little as possible.
#
# </details>
# <details><summary>Hint 3</summary>
#
# The shortest content up to `<|im_end|>` *and a line break* can still hold `<|im_start|>`, and also an
# `<|im_end|>` without a line break behind it.
#
# </details>


# %%
def parse_chatml(text: str) -> list[tuple[str, str]]:
    """The (role, content) pairs of a ChatML text; raises ValueError if it is no ChatML text.

    >>> parse_chatml("<|im_start|>user\\nHi<|im_end|>\\n")
    [('user', 'Hi')]
    """
    # BEGIN SOLUTION
    import re

    turn = re.compile(
        r"<\|im_start\|>(system|user|assistant|tool)\n(.*?)<\|im_end\|>\n", flags=re.S
    )
    turns, position = [], 0
    while position < len(text):
        match = turn.match(text, position)
        if not match or "<|im_start|>" in match[2] or "<|im_end|>" in match[2]:
            raise ValueError(f"no ChatML turn at character {position}: {text[position:][:40]!r}")
        turns.append((match[1], match[2]))
        position = match.end()
    if not turns:
        raise ValueError("no turn in the text")
    return turns
    # END SOLUTION


# %% tags=["exercise-2.4"]
e02.parse_chatml(parse_chatml)

# %% [markdown]
# ## 2.5 Is it in the canonical class?
#
# Difficulty 3 of 5 · importance 3 of 5 · 12 minutes
#
# Say whether a conversation is in the canonical class of the Llama-3 template: whether it can be rendered and
# parsed back with nothing lost. The template trims every content, and its markers are the four in
# `FAMILIES["llama3"].special_tokens`. It takes roles in any order. You may not call `render`.
#
# <details><summary>Hint 1</summary>
#
# Two things lose information: white space at either end of a content, and a content that holds a whole marker.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Markers of *other* families are ordinary text to this one, and so is half a marker.
#
# </details>


# %%
def is_canonical_llama3(turns: list[tuple[str, str]]) -> bool:
    """Can this conversation be rendered as Llama-3 text and parsed back unchanged?

    turns: (role, content) pairs; the roles are valid.

    >>> is_canonical_llama3([("user", "Hi")]), is_canonical_llama3([("user", "Hi ")])
    (True, False)
    """
    # BEGIN SOLUTION
    from course_utils import FAMILIES

    return all(
        content == content.strip()
        and not any(marker in content for marker in FAMILIES["llama3"].special_tokens)
        for _, content in turns
    )
    # END SOLUTION


# %% tags=["exercise-2.5"]
e02.is_canonical_llama3(is_canonical_llama3)

# %% [markdown]
# ## 2.6 Neutralise typed markers
#
# Difficulty 4 of 5 · importance 5 of 5 · 20 minutes
#
# Text from outside may spell special tokens. Put the private character `GUARD` *inside* each of them, one
# per marker, so that none is left whole. Keep everything else, since the model must still read what was
# typed, and keep track of where each character came from, since a loss mask counts in characters.
#
# Think of the obvious shortcut, deleting the markers, and of what it makes of
# `"<|eot<|eot_id|>_id|>"`.
#
# <details><summary>Hint 1</summary>
#
# One regular expression finds all special tokens: their `re.escape`d texts joined with `|`.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Collect the positions right behind the first character of each match. Then walk once through the text and
# build both results together.
#
# </details>

# %%
from course_utils.tokenizers import GUARD


def neutralise(text: str, special_tokens: tuple[str, ...]) -> tuple[str, list[int | None]]:
    """The text with a GUARD inside each special token, and where its characters come from.

    text: what somebody typed; holds no GUARD.
    special_tokens: texts of the special tokens, each of two characters or more.
    Returns (safe, origin): `origin[i]` is the position in `text` of the character `safe[i]`, and
    None for an inserted GUARD.

    >>> neutralise("a</s>", ("</s>",))
    ('a<\\ue000/s>', [0, 1, None, 2, 3, 4])
    """
    # BEGIN SOLUTION
    import re

    pattern = "|".join(re.escape(token) for token in special_tokens) or r"(?!)"
    behind = {match.start() + 1 for match in re.finditer(pattern, text)}
    safe, origin = [], []
    for position, character in enumerate(text):
        if position in behind:
            safe.append(GUARD)
            origin.append(None)
        safe.append(character)
        origin.append(position)
    return "".join(safe), origin
    # END SOLUTION


# %% tags=["exercise-2.6"]
e02.neutralise(neutralise)
