# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 06 Masking in production: exercises
#
# Six exercises, independent of each other, about 80 minutes, CPU, nothing to download.
# Lecture: [../notebooks/06_masking_in_production.ipynb](../notebooks/06_masking_in_production.ipynb)
#
# Replace `raise NotImplementedError` and run the cell below it. To check all of them at once:
#
#     pytest --nbval exercises/06_masking_in_production.ipynb

# %%
from collections.abc import Callable

from course_utils import IGNORE_INDEX, MaskError
from course_utils.check import e06

# %% [markdown]
# ## 6.1 Find the double BOS
#
# Difficulty 1 of 5 · importance 5 of 5 · 5 minutes
#
# Write the detector that every pipeline should run on its first sample: does the sequence begin with two
# sequence starts? A second sequence start *later* in the row is no bug (several conversations may share a
# row), and a tokenizer without a sequence start has `bos_id` None.
#
# <details><summary>Hint 1</summary>
#
# Slices never fail: `input_ids[:2]` of a shorter list is just shorter.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Compare that slice with `[bos_id, bos_id]`.
#
# </details>


# %%
def double_bos(input_ids: list[int], bos_id: int | None) -> bool:
    """Whether `input_ids` begins with two sequence starts.

    >>> double_bos([1, 1, 5], bos_id=1)
    True
    >>> double_bos([1, 5, 1], bos_id=1)
    False
    """
    # BEGIN SOLUTION
    return bos_id is not None and input_ids[:2] == [bos_id, bos_id]
    # END SOLUTION


# %% tags=["exercise-6.1"]
e06.double_bos(double_bos)

# %% [markdown]
# ## 6.2 What to send
#
# Difficulty 2 of 5 · importance 4 of 5 · 10 minutes
#
# Write the function that a server calls: it gets messages and returns the *text* after which the model
# writes. If the last message is the assistant's, it is a begun reply that the model is to continue. If not,
# the model is to begin a reply.
#
# <details><summary>Hint 1</summary>
#
# `apply_chat_template` has one flag for each of the two cases, and refuses both together. `tokenize=False`
# gives the text.
#
# </details>
# <details><summary>Hint 2</summary>
#
# The flags are `add_generation_prompt` and `continue_final_message`; which one is true depends on
# `messages[-1]["role"]`.
#
# </details>


# %%
def prompt_text(tokenizer, messages: list[dict]) -> str:
    """The text to send, so that the next token belongs to the assistant's reply.

    tokenizer: a transformers tokenizer with a chat template
    messages:  dicts with role and content; the last is a question or a begun reply

    With ChatML:

    >>> prompt_text(tokenizer, [{"role": "user", "content": "Hi"}])
    '<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n'
    """
    # BEGIN SOLUTION
    begun = messages[-1]["role"] == "assistant"
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
    )
    # END SOLUTION


# %% tags=["exercise-6.2"]
e06.prompt_text(prompt_text)

# %% [markdown]
# ## 6.3 Pad a batch
#
# Difficulty 2 of 5 · importance 5 of 5 · 10 minutes
#
# Write the collator for plain lists. Fill up on the right to the longest row. The check also tries a
# padding id that equals the end of turn: the real end of turn must stay graded and attended to.
#
# <details><summary>Hint 1</summary>
#
# Three things are padded with three different values: the ids, the attention mask, the labels.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Take the attention mask from the *lengths*. A comparison with `pad_id` goes wrong in the second case.
#
# </details>


# %%
def pad_batch(rows: list[dict], pad_id: int) -> dict[str, list[list[int]]]:
    """A rectangle from rows of different length.

    rows: dicts with `input_ids` and `labels`, two lists of the same length
    returns `input_ids`, `attention_mask` and `labels`, each a list of rows of one length

    >>> rows = [{"input_ids": [5], "labels": [5]}, {"input_ids": [6, 7], "labels": [-100, 7]}]
    >>> pad_batch(rows, pad_id=0)["labels"]
    [[5, -100], [-100, 7]]
    """
    # BEGIN SOLUTION
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in rows:
        length = len(row["input_ids"])
        missing = longest - length
        batch["input_ids"].append(row["input_ids"] + [pad_id] * missing)
        batch["attention_mask"].append([1] * length + [0] * missing)
        batch["labels"].append(row["labels"] + [IGNORE_INDEX] * missing)
    return batch
    # END SOLUTION


# %% tags=["exercise-6.3"]
e06.pad_batch(pad_batch)

# %% [markdown]
# ## 6.4 Place the generation tag
#
# Difficulty 3 of 5 · importance 4 of 5 · 15 minutes
#
# This ChatML template has no generation tag:
#
# ```
# {%- for message in messages -%}
# {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' -}}
# {%- endfor -%}
# {{- '<|im_start|>assistant\n' if add_generation_prompt -}}
# ```
#
# Write it again so that it renders the same text and `return_assistant_tokens_mask=True` grades every reply
# with its end of turn, and nothing else.
#
# <details><summary>Hint 1</summary>
#
# One `{{- ... -}}` writes header, content, end of turn and line break at once. The tags can only stand
# between two of them, so split it.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Tags belong around the assistant's turns only: `{%- if message.role == 'assistant' -%} ... {%- else -%} ...
# {%- endif -%}`.
#
# </details>
# <details><summary>Hint 3</summary>
#
# Inside: `{%- generation -%}{{- message.content + '<|im_end|>' -}}{%- endgeneration -%}`. Keep `r` before the
# opening quotes, so that Jinja sees `\n` as two characters.
#
# </details>


# %%
def tagged_template() -> str:
    r"""The template above, with {% generation %} ... {% endgeneration %} in the right place.

    For a user who says "Hi" and an assistant who says "Yes" the graded text is `Yes<|im_end|>`.
    """
    # BEGIN SOLUTION
    return r"""{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{- message.content + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message.content + '<|im_end|>' -}}
{%- endif -%}
{{- '\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt -}}"""
    # END SOLUTION


# %% tags=["exercise-6.4"]
e06.tagged_template(tagged_template)

# %% [markdown]
# ## 6.5 Cut behind a reply
#
# Difficulty 3 of 5 · importance 4 of 5 · 15 minutes
#
# A sample is longer than `max_length`. Cut it behind the last reply that still fits, its end of turn
# included. The end of turn of a user or system is masked, the one of a reply is graded: that tells them
# apart. If no reply fits, raise `MaskError`. A sample that fits is returned as it is.
#
# <details><summary>Hint 1</summary>
#
# Collect all places at which a cut is allowed: behind position i where `labels[i] == eot`.
#
# </details>
# <details><summary>Hint 2</summary>
#
# A cut behind position i keeps `i + 1` tokens. Take the largest that is not above `max_length`.
#
# </details>


# %%
def cut(
    input_ids: list[int], labels: list[int], max_length: int, eot: int
) -> tuple[list[int], list[int]]:
    """The ids and labels that are kept, at most `max_length` of each.

    labels: -100 where nothing is graded; not shifted
    Raises MaskError if no reply ends within `max_length` tokens.

    >>> cut([1, 5, 9, 6, 9, 5, 9, 6, 9], [-100] * 3 + [6, 9] + [-100] * 2 + [6, 9], 8, eot=9)
    ([1, 5, 9, 6, 9], [-100, -100, -100, 6, 9])
    """
    # BEGIN SOLUTION
    if len(input_ids) <= max_length:
        return input_ids, labels
    ends = [position + 1 for position, label in enumerate(labels) if label == eot]
    fitting = [end for end in ends if end <= max_length]
    if not fitting:
        raise MaskError(f"no reply ends within {max_length} tokens")
    return input_ids[: fitting[-1]], labels[: fitting[-1]]
    # END SOLUTION


# %% tags=["exercise-6.5"]
e06.cut(cut)

# %% [markdown]
# ## 6.6 Right or refused
#
# Difficulty 4 of 5 · importance 5 of 5 · 25 minutes
#
# Write prefix re-rendering that can be trusted. You get a template as a function: `render(messages)` gives
# the tokens of a conversation, and `render(messages, add_generation_prompt=True)` what a server sends. Grade
# each reply, from the first token behind its prompt to its end of turn, and nothing behind that. If a prompt
# is not what the finished turn begins with, or a finished turn is not what the whole begins with, raise
# `MaskError`.
#
# The tokens are words here, so you can look at them. Four templates to try are in `e06`: `steady`, `gapped`
# (a line break behind each end of turn), `forgetful` and `thinking` (both rewrite something):

# %%
messages = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "It is 2."}]
for template in (e06.steady, e06.gapped, e06.forgetful, e06.thinking):
    print(f"{template.__name__:<10} prompt:", *template(messages[:1], add_generation_prompt=True))
    print(f"{'':<10} whole: ", *template(messages))

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# For the assistant's message k you need three lists: the prompt (messages before k, with the generation
# prompt), the turn's end (messages up to and with k), and the whole.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Both checks have the form `longer[: len(shorter)] == shorter`.
#
# </details>
# <details><summary>Hint 3</summary>
#
# The reply ends at the first `eot` behind the prompt: `whole.index(eot, len(prompt))`.
#
# </details>


# %%
def reply_mask(render: Callable, messages: list[dict], eot: str) -> list[bool]:
    """For each token of `render(messages)`: is it graded?

    render:   (messages, add_generation_prompt=False) -> list of tokens
    messages: dicts with role and content, the replies are those of the role assistant
    eot:      the token that ends a turn
    Raises MaskError if the template rewrites what came before a reply or the reply itself.

    The words are <s> <user> 1+1? <end> <assistant> It is 2. <end>:

    >>> reply_mask(e06.steady, messages, "<end>")
    [False, False, False, False, False, True, True, True, True]
    """
    # BEGIN SOLUTION
    whole = render(messages)
    mask = [False] * len(whole)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(messages[:turn], add_generation_prompt=True)
        until = render(messages[: turn + 1])
        if until[: len(prompt)] != prompt:
            raise MaskError(f"turn {turn}: the reply changes its prompt")
        if whole[: len(until)] != until:
            raise MaskError(f"turn {turn}: later turns change it")
        end = whole.index(eot, len(prompt)) + 1
        mask[len(prompt) : end] = [True] * (end - len(prompt))
    return mask
    # END SOLUTION


# %% tags=["exercise-6.6"]
e06.reply_mask(reply_mask)
