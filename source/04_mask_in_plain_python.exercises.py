# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 Mask in plain Python: exercises
#
# Seven exercises, independent of each other, about 70 minutes, CPU, nothing to download and nothing but
# plain Python to write.
# Lecture: [../notebooks/04_mask_in_plain_python.ipynb](../notebooks/04_mask_in_plain_python.ipynb)
#
# Replace `raise NotImplementedError` and run the cell below it. To check all of them at once:
#
#     pytest --nbval exercises/04_mask_in_plain_python.ipynb

# %%
from course_utils.check import e04

# %% [markdown]
# ## 4.1 Whose bug is this?
#
# Difficulty 1 of 5 · importance 3 of 5 · 5 minutes
#
# Three drafts were run on three chats, in a format with a short header. `^` stands under what is
# graded. Each made its mask in a different one of these three ways: `"words"` (count the words of each turn, and
# a fixed number of tokens for header and end), `"search"` (find the reply in the text), `"lock-step"`
# (write text and mask together).
#
# ```text
# A   [user]Is it A or B?[end][assistant]B[end]
#                      ^^^^^^
# B   [user]Is it A or B?[end][assistant]B[end]
#                                        ^^^^^^
# C   [user]1+1?[end][assistant]It is 2.[end]
#                    ^^^^^^^^^^^^^^^^
# ```
#
# <details><summary>Hint 1</summary>
#
# One of the three is right. Which way of making masks is always right?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A search can only put the mask where the reply's text stands. Does the mask of C start at such a
# place?
#
# </details>


# %%
def whose_bug() -> dict[str, str]:
    """For each of "A", "B" and "C" the way in which its mask was made.

    Each value is "words", "search" or "lock-step", and each occurs once.

    Example of the form (not of the answer): {"A": "words", "B": "words", "C": "words"}
    """
    # BEGIN SOLUTION
    return {"A": "search", "B": "lock-step", "C": "words"}
    # END SOLUTION


# %% tags=["exercise-4.1"]
e04.whose_bug(whose_bug)

# %% [markdown]
# ## 4.2 Is it graded?
#
# Difficulty 1 of 5 · importance 5 of 5 · 5 minutes
#
# A renderer asks you for each piece that it writes whether it is graded. It tells you the piece's
# kind and the role of the turn.
#
# <details><summary>Hint 1</summary>
#
# Graded is what the model itself has to write when it is served. Who writes the header? Who writes
# the end of turn of a user's turn?
#
# </details>


# %%
def is_graded(kind: str, role: str | None) -> bool:
    """Is a piece of this kind in a turn of this role graded?

    kind: "bos" (sequence start), "open", "role", "close" and "space" (the header), "content", "eot"
          (end of turn), or "gap" (a line break that the server writes after the end of turn)
    role: "system", "user" or "assistant"; None for the sequence start

    Example: is_graded("content", "user") -> False
    """
    # BEGIN SOLUTION
    return role == "assistant" and kind in ("content", "eot")
    # END SOLUTION


# %% tags=["exercise-4.2"]
e04.is_graded(is_graded)

# %% [markdown]
# ## 4.3 A mask for every character
#
# Difficulty 2 of 5 · importance 4 of 5 · 5 minutes
#
# Join the texts of the spans and give each character the mask of its span.
#
# <details><summary>Hint 1</summary>
#
# The mask must be as long as the text, so that `mask[i]` belongs to `text[i]`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `len(text)` counts characters. `len(text.encode())` counts bytes, and "é" has two of those.
#
# </details>


# %%
def character_mask(spans: list[tuple[str, bool]]) -> tuple[str, list[bool]]:
    """The text of all spans, and for each of its characters: is it graded?

    spans: (text, graded) pairs; a text may be empty or hold any character

    Example:

        character_mask([("a:", False), ("hi", True)]) -> ("a:hi", [False, False, True, True])
    """
    # BEGIN SOLUTION
    text, mask = "", []
    for piece, graded in spans:
        text += piece
        mask += [graded] * len(piece)
    return text, mask
    # END SOLUTION


# %% tags=["exercise-4.3"]
e04.character_mask(character_mask)

# %% [markdown]
# ## 4.4 Labels from mask and offsets
#
# Difficulty 2 of 5 · importance 5 of 5 · 8 minutes
#
# A tokenizer gives you ids and, for each, the half-open range of characters that it covers. Make the
# labels. Here no token straddles, but some tokenizers add a token of their own that covers nothing,
# range (0, 0); such a token is never graded.
#
# <details><summary>Hint 1</summary>
#
# Look at `mask[start:end]`. The label is the token's own id or -100, at the token's own place: the
# loss shifts, not you.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# What is `all([])` in Python?
#
# </details>


# %%
def labels_of(ids: list[int], offsets: list[tuple[int, int]], mask: list[bool]) -> list[int]:
    """Labels of the tokens: the id where every character is graded, -100 elsewhere.

    ids:     one per token
    offsets: (start, end) of each token's characters, end excluded
    mask:    one per character

    Example, for the text "a: hi" of which "hi" is graded:

        labels_of([7, 8, 9], [(0, 1), (1, 3), (3, 5)], [False] * 3 + [True] * 2)
        -> [-100, -100, 9]
    """
    # BEGIN SOLUTION
    labels = []
    for number, (start, end) in zip(ids, offsets, strict=True):
        graded = start < end and all(mask[start:end])
        labels.append(number if graded else -100)
    return labels
    # END SOLUTION


# %% tags=["exercise-4.4"]
e04.labels_of(labels_of)

# %% [markdown]
# ## 4.5 Move the edge, or refuse
#
# Difficulty 3 of 5 · importance 4 of 5 · 12 minutes
#
# A template writes a prompt, and the reply follows. The sample is cut into tokens as a whole; a server
# cuts the prompt alone. The model is trained on what it will be served only if **the tokens of the
# prompt alone are the first tokens of the sample**. A token that straddles the edge breaks that.
#
# Where it is broken, white space at the end of the prompt may go to the reply, as little of it as will
# do (the lecture moved the space of " yes"). If that does not help, refuse.
#
# `e04.cut` is the lecture's stand-in for a tokenizer. The check cuts in other ways, too.
#
# <details><summary>Hint 1</summary>
#
# `cut(prompt)` is what a server sends, `cut(prompt + reply)` is what is trained on. Compare the first
# with the beginning of the second.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Try one edge after the other: the prompt as it is, then without its last character, and so on, as
# long as you leave out nothing but white space. The first edge that fits is the answer.
#
# </details>


# %%
from collections.abc import Callable


def move_edge(
    prompt: str, reply: str, cut: Callable[[str], list[tuple[int, int]]]
) -> tuple[str, list[bool]]:
    """The prompt that a server must send, and for each token of `prompt + reply`: is it graded?

    prompt: what stands before the reply; it does not consist of white space alone
    cut:    gives (start, end) for each token of a text, end excluded, without gaps

    The returned prompt is `prompt`, or `prompt` with as little white space as possible left out at
    its end, such that its tokens are the first ones of the sample. What comes after it is graded.

    Raises ValueError if there is no such prompt.

    Examples:

        e04.cut("a: hi") -> [(0, 1), (1, 2), (2, 5)]
        move_edge("a: ", "hi", e04.cut) -> ("a:", [False, False, True])
        move_edge("a:", " hi", e04.cut) -> ("a:", [False, False, True])
        move_edge("1", "0", e04.cut) raises ValueError: "10" is one token
    """
    # BEGIN SOLUTION
    sample = cut(prompt + reply)
    for edge in range(len(prompt), len(prompt.rstrip()) - 1, -1):
        served = cut(prompt[:edge])
        if served == sample[: len(served)]:
            return prompt[:edge], [start >= edge for start, _ in sample]
    raise ValueError(f"no edge fits: the tokens of {prompt!r} do not begin the sample")
    # END SOLUTION


# %% tags=["exercise-4.5"]
e04.move_edge(move_edge)

# %% [markdown]
# ## 4.6 Several assistant turns
#
# Difficulty 3 of 5 · importance 5 of 5 · 12 minutes
#
# Render a chat in ChatML together with its character mask. ChatML has no sequence start. A turn is
#
# ```text
# <|im_start|>ROLE⏎CONTENT<|im_end|>⏎
# ```
#
# where ⏎ is one line break. Every assistant turn is graded, up to and with its `<|im_end|>`.
#
# <details><summary>Hint 1</summary>
#
# Write in lock-step, as draft 3 does. What you must not do is look for anything in the finished
# text: replies repeat, and users quote them.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Who writes the line break after `<|im_end|>`? The server, when it goes on with the next turn: by
# then the model has stopped.
#
# </details>


# %%
def render_chatml(turns: list[tuple[str, str]]) -> tuple[str, list[bool]]:
    """The chat in ChatML, and for each character: is it graded?

    turns: (role, content) pairs; contents are written as they are

    Example:

        text, mask = render_chatml([("user", "Hi"), ("assistant", "Ho")])
        text -> "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHo<|im_end|>\\n"
        "".join(c for c, graded in zip(text, mask) if graded) -> "Ho<|im_end|>"
    """
    # BEGIN SOLUTION
    text, mask = "", []
    for role, content in turns:
        reply = role == "assistant"
        for piece, graded in (
            (f"<|im_start|>{role}\n", False),
            (f"{content}<|im_end|>", reply),
            ("\n", False),
        ):
            text += piece
            mask += [graded] * len(piece)
    return text, mask
    # END SOLUTION


# %% tags=["exercise-4.6"]
e04.render_chatml(render_chatml)

# %% [markdown]
# ## 4.7 A family of your own, turn by turn
#
# Difficulty 4 of 5 · importance 3 of 5 · 25 minutes
#
# Write a renderer for a new family that grows a chat one turn at a time, as a server does. Its format:
#
# - once, before everything else: `[[begin]]`
# - a turn: `[[ROLE]]`, one space, the content stripped of white space around it, `[[end]]`, and a line
#   break. The assistant is called `bot`; the other roles keep their names.
#
# The space before a reply belongs to the reply (the lecture's straddling token says why), so it is
# graded in an assistant turn. The line break after `[[end]]` is not.
#
# Every character also gets a third entry: did the template write it? A user may type `[[end]]`.
# The template writes everything but the contents.
#
# `prompt()` says what a server sends so that the reply comes next. It must be exactly what stands
# before the first graded character if the assistant's turn is added next, and asking for it must
# not change the chat.
#
# <details><summary>Hint 1</summary>
#
# Keep three attributes that grow together and one method that appends to all three. `add` calls it
# for each piece.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The pieces of a turn with (graded, by template): the bracketed role (no, yes), the space (reply,
# yes), the content (reply, no), the end (reply, yes), the line break (no, yes).
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# The prompt is the text so far and the header of an assistant turn, without the space.
#
# </details>


# %%
class Renderer:
    """A chat in the bracket family that grows turn by turn.

    text:        the rendered text so far
    graded:      one bool per character: is it graded?
    by_template: one bool per character: did the template write it?

    Example:

        chat = Renderer()
        chat.add("user", "Hi")
        chat.prompt() -> "[[begin]][[user]] Hi[[end]]\\n[[bot]]"
        chat.add("assistant", "Ho")
        chat.text -> "[[begin]][[user]] Hi[[end]]\\n[[bot]] Ho[[end]]\\n"
        the graded characters -> " Ho[[end]]"
    """

    def __init__(self) -> None:
        self.text: str = "[[begin]]"
        self.graded: list[bool] = [False] * len(self.text)
        self.by_template: list[bool] = [True] * len(self.text)

    def add(self, role: str, content: str) -> None:
        """Append a turn to `text`, `graded` and `by_template`."""
        # BEGIN SOLUTION
        reply = role == "assistant"
        name = "bot" if reply else role
        for piece, graded, by_template in (
            (f"[[{name}]]", False, True),
            (" ", reply, True),
            (content.strip(), reply, False),
            ("[[end]]", reply, True),
            ("\n", False, True),
        ):
            self.text += piece
            self.graded += [graded] * len(piece)
            self.by_template += [by_template] * len(piece)
        # END SOLUTION

    def prompt(self) -> str:
        """What a server sends so that the assistant's reply comes next; changes nothing."""
        # BEGIN SOLUTION
        return self.text + "[[bot]]"
        # END SOLUTION


# %% tags=["exercise-4.7"]
e04.renderer(Renderer)
