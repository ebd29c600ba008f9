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
# # 03 Render by hand: exercises
#
# Seven exercises, independent of each other, about 70 minutes, CPU, nothing to download.
# Lecture: [../notebooks/03_render_by_hand.ipynb](../notebooks/03_render_by_hand.ipynb)
#
# Replace `raise NotImplementedError` and run the cell below it. To check all of them at once:
#
#     pytest --nbval exercises/03_render_by_hand.ipynb
#
# In all of them **a word is a token**, a special token is a token, and a line break (or two in a
# row) is a token.

# %%
from course_utils.check import e03

# %% [markdown]
# ## 3.1 With the pencil
#
# Difficulty 1 of 5 · importance 4 of 5 · 5 minutes
#
# Write the tokens of this chat in the Llama-3 format, in order, as a list of texts:
#
# - user: "Name a colour."
# - assistant: "Blue."
#
# The chat is complete: the assistant has answered.
#
# <details><summary>Hint 1</summary>
#
# One token for the whole sequence first. Then for each turn: opener, role name, closer, double line
# break, the words, end of turn.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# There are five tokens per turn besides its words. Count: 1 + (5 + 3) + (5 + 1) = 15.
#
# </details>


# %%
def tokens_by_hand() -> list[str]:
    """The 15 tokens of the chat above in the Llama-3 format.

    Each entry is the text of one token; the double line break is written "\\n\\n".

    Example of the form (not of the answer): ["<|begin_of_text|>", "<|start_header_id|>", ...]
    """
    # BEGIN SOLUTION
    header = ["<|start_header_id|>", "user", "<|end_header_id|>", "\n\n"]
    user = [*header, "Name", "a", "colour.", "<|eot_id|>"]
    header = ["<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"]
    return ["<|begin_of_text|>", *user, *header, "Blue.", "<|eot_id|>"]
    # END SOLUTION


# %% tags=["exercise-3.1"]
e03.tokens_by_hand(tokens_by_hand)

# %% [markdown]
# ## 3.2 The books of ChatML
#
# Difficulty 2 of 5 · importance 3 of 5 · 8 minutes
#
# ChatML writes a turn as `<|im_start|>`, role, line break, content, `<|im_end|>`, line break, and has
# no sequence start. Count its tokens from the spans that the renderer gives. A content counts as
# many tokens as it has words, every other span counts as one. Graded is what the model itself
# writes, that is, what has `span.generated`.
#
# <details><summary>Hint 1</summary>
#
# `render(conversation, "chatml").spans` is a tuple of spans. Look at `text`, `kind`, `special` and
# `generated` of each.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Write a small helper that gives the number of tokens of one span, and use it in two sums. Special
# tokens are one token each, so there you can count spans.
#
# </details>


# %%
from course_utils.conversation import Conversation


def chatml_counts(conversation: Conversation) -> dict[str, int]:
    """How many tokens the conversation has in ChatML, and how many are special and graded.

    conversation: any conversation without white space around its contents

    Example, for (user "Name a colour.", assistant "Blue."):

        {"tokens": 14, "special": 4, "graded": 2}
    """
    # BEGIN SOLUTION
    from course_utils import render

    def size(span):
        return len(span.text.split()) if span.kind == "content" else 1

    spans = render(conversation, "chatml").spans
    return {
        "tokens": sum(size(span) for span in spans),
        "special": sum(span.special for span in spans),
        "graded": sum(size(span) for span in spans if span.generated),
    }
    # END SOLUTION


# %% tags=["exercise-3.2"]
e03.chatml_counts(chatml_counts)

# %% [markdown]
# ## 3.3 Graded positions of a longer chat
#
# Difficulty 2 of 5 · importance 5 of 5 · 10 minutes
#
# You get the tokens of a chat in the Llama-3 format, as texts, with one or more assistant turns.
# Return the positions of all graded tokens.
#
# <details><summary>Hint 1</summary>
#
# Walk through the list once and keep two things: whose turn it is, and whether you are inside its
# header. The role is the token right after `<|start_header_id|>`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A header takes four tokens. The content starts four positions after the opener, and the turn ends
# at the next `<|eot_id|>`, which is graded if the turn is the assistant's. The word "assistant" in a
# question is not a header.
#
# </details>


# %%
def graded_positions(tokens: list[str]) -> list[int]:
    """Positions of the graded tokens, counted from 0, in order.

    tokens: a chat in the Llama-3 format, one text per token; nobody has typed a special token

    Example: a chat (user "Hi", assistant "Hello there") has its two words and its end of turn at

        [11, 12, 13]
    """
    # BEGIN SOLUTION
    positions, role, content = [], None, 0
    for position, token in enumerate(tokens):
        if token == "<|start_header_id|>":
            role, content = tokens[position + 1], position + 4
        elif role == "assistant" and position >= content:
            positions.append(position)
    return positions
    # END SOLUTION


# %% tags=["exercise-3.3"]
e03.graded_positions(graded_positions)

# %% [markdown]
# ## 3.4 Which logits are trained?
#
# Difficulty 3 of 5 · importance 5 of 5 · 8 minutes
#
# From the labels of a sample (not shifted, -100 where nothing is graded), return the positions whose
# logits are compared with a target. The loss shifts by one, as in the lecture.
#
# <details><summary>Hint 1</summary>
#
# The logits at position i predict the token at i + 1.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Go over i and look at `labels[i + 1]`. Which i has no `labels[i + 1]`? And can a label at position 0
# train anything?
#
# </details>


# %%
def trained_positions(labels: list[int]) -> list[int]:
    """Positions whose logits the loss compares with a label, in order.

    labels: one per token, -100 where the token is not graded; any length, also 0

    Example:

        trained_positions([-100, -100, 7, 9]) -> [1, 2]
    """
    # BEGIN SOLUTION
    return [i for i in range(len(labels) - 1) if labels[i + 1] != -100]
    # END SOLUTION


# %% tags=["exercise-3.4"]
e03.trained_positions(trained_positions)

# %% [markdown]
# ## 3.5 Find the planted fault
#
# Difficulty 3 of 5 · importance 4 of 5 · 15 minutes
#
# Somebody hands you tokens in the Llama-3 format and a mask. One fault was planted, or none. Name it:
#
# | answer | what happened |
# |---|---|
# | `"right"` | nothing |
# | `"early"` | the whole mask was moved one place to the left |
# | `"late"` | the whole mask was moved one place to the right |
# | `"no end"` | every assistant's end of turn is masked |
# | `"header"` | every assistant header is graded as well |
#
# Note that "early" and "late" can leave the number of graded tokens as it is.
#
# <details><summary>Hint 1</summary>
#
# Make the right mask yourself, then make each faulty one from it and see which equals what you got.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Moved to the left: `right[1:] + [False]`. Moved to the right: `[False] + right[:-1]`.
#
# </details>


# %%
def diagnose(tokens: list[str], mask: list[bool]) -> str:
    """The planted fault: "right", "early", "late", "no end" or "header".

    tokens: a chat in the Llama-3 format with at least one assistant turn, one text per token
    mask:   as long as `tokens`

    Example: if a mask grades the double line break before the reply and not the reply's end of
    turn, and is otherwise right, it was moved to the left: "early".
    """
    # BEGIN SOLUTION
    right, no_end, header = [], [], []
    role, content = None, 0
    for position, token in enumerate(tokens):
        if token == "<|start_header_id|>":
            role, content = tokens[position + 1], position + 4
        reply = role == "assistant"
        right.append(reply and position >= content)
        no_end.append(right[-1] and token != "<|eot_id|>")
        header.append(reply)
    faults = {
        "right": right,
        "early": right[1:] + [False],
        "late": [False] + right[:-1],
        "no end": no_end,
        "header": header,
    }
    return next(name for name, wrong in faults.items() if wrong == mask)
    # END SOLUTION


# %% tags=["exercise-3.5"]
e03.diagnose(diagnose)

# %% [markdown]
# ## 3.6 Count without rendering
#
# Difficulty 3 of 5 · importance 3 of 5 · 8 minutes
#
# You know only the role and the number of words of each turn. How many tokens does the chat have in
# the Llama-3 format, how many of them are special, how many graded?
#
# <details><summary>Hint 1</summary>
#
# What does a turn without any word cost? What does the sequence cost before the first turn?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Five tokens per turn, three of them special. Only an assistant turn has graded tokens: its words
# and one more.
#
# </details>


# %%
def predict_counts(turns: list[tuple[str, int]]) -> tuple[int, int, int]:
    """(tokens, special tokens, graded tokens) of a chat in the Llama-3 format.

    turns: (role, number of words) of each turn

    Example, the walkthrough:

        predict_counts([("system", 4), ("user", 7), ("assistant", 9)]) -> (36, 10, 10)
    """
    # BEGIN SOLUTION
    tokens = 1 + sum(5 + words for _, words in turns)
    special = 1 + 3 * len(turns)
    graded = sum(words + 1 for role, words in turns if role == "assistant")
    return tokens, special, graded
    # END SOLUTION


# %% tags=["exercise-3.6"]
e03.predict_counts(predict_counts)

# %% [markdown]
# ## 3.7 How long must the reply be?
#
# Difficulty 4 of 5 · importance 2 of 5 · 15 minutes
#
# A chat is missing its last assistant turn. How many words must that reply have at least, so that at
# least `percent` of all tokens are graded? Stay with integers: 0.3 is not exactly three tenths.
#
# <details><summary>Hint 1</summary>
#
# Write down tokens and graded tokens of the finished chat as a function of the reply's words n.
# Earlier assistant turns count too.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# With T tokens and G graded ones before the reply, you look for the smallest n that fulfils
# 100 · (G + n + 1) ≥ percent · (T + 5 + n). The left side grows by 100 for each word and the right
# side by percent.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Solved for n, and rounded up with integers: `-(-a // b)`. No reply has fewer than 0 words.
#
# </details>


# %%
def shortest_reply(turns: list[tuple[str, int]], percent: int) -> int:
    """The fewest words of the reply for which at least `percent` of the tokens are graded.

    turns:   (role, number of words) of each turn before the reply, in the Llama-3 format
    percent: 0 to 99

    Raises ValueError if `percent` is 100 or more: the prompt is never graded.

    Example, the walkthrough's prompt:

        shortest_reply([("system", 4), ("user", 7)], 50) -> 25
    """
    # BEGIN SOLUTION
    if percent >= 100:
        raise ValueError("the prompt is never graded, so 100 % cannot be reached")
    tokens = 1 + sum(5 + words for _, words in turns)
    graded = sum(words + 1 for role, words in turns if role == "assistant")
    missing = percent * (tokens + 5) - 100 * (graded + 1)
    return max(0, -(-missing // (100 - percent)))
    # END SOLUTION


# %% tags=["exercise-3.7"]
e03.shortest_reply(shortest_reply)
