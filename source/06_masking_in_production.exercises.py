# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 06 Masking in production: exercises
#
# Ten exercises, independent of each other, about 160 minutes, CPU, nothing to download.
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
# ## 6.1 What to send
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


# %% tags=["exercise-6.1"]
e06.prompt_text(prompt_text)

# %% [markdown]
# ## 6.2 Pad a batch
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


# %% tags=["exercise-6.2"]
e06.pad_batch(pad_batch)

# %% [markdown]
# ## 6.3 Place the generation tag
#
# Difficulty 3 of 5 · importance 4 of 5 · 15 minutes
#
# Models that always think have templates like this one. It writes the reasoning of a reply in front of its
# content, and its generation prompt ends with `<think>` and a line break:
#
# ```
# {%- for message in messages -%}
# {{- '<|im_start|>' + message.role + '\n' -}}
# {%- if message.role == 'assistant' -%}
# {{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' -}}
# {%- endif -%}
# {{- message.content + '<|im_end|>' + '\n' -}}
# {%- endfor -%}
# {{- '<|im_start|>assistant\n<think>\n' if add_generation_prompt -}}
# ```
#
# It has no generation tag. Write it again so that it renders the same text and
# `return_assistant_tokens_mask=True` grades, in every reply, all that the model writes behind what the server
# sends, and nothing else.
#
# <details><summary>Hint 1</summary>
#
# Read the last line: whatever stands in the generation prompt is sent by the server, so the model does not
# write it. It writes the rest of the reply, up to and with its end of turn.
#
# </details>
# <details><summary>Hint 2</summary>
#
# One `{{- ... -}}` writes several things at once, and the tags can only stand between two of them. So split
# what is sent from what is written, and split the line break from the end of turn. Only the assistant's turns
# have tags: `{%- if message.role == 'assistant' -%} ... {%- else -%} ... {%- endif -%}`.
#
# </details>
# <details><summary>Hint 3</summary>
#
# In an assistant's turn: `{{- '<think>\n' -}}`, then `{%- generation -%}`, then reasoning, `'\n</think>\n\n'`,
# content and `'<|im_end|>'`, then `{%- endgeneration -%}`. Keep `r` before the opening quotes, so that Jinja
# sees `\n` as two characters.
#
# </details>


# %%
def tagged_template() -> str:
    r"""The template above, with {% generation %} ... {% endgeneration %} in the right place.

    For an assistant who thinks "Easy." and says "Yes" the graded text is
    `Easy.\n</think>\n\nYes<|im_end|>`, where each `\n` is a line break.
    """
    # BEGIN SOLUTION
    return r"""{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' -}}
{%- if message.role == 'assistant' -%}
{{- '<think>\n' -}}
{%- generation -%}
{{- message.reasoning_content + '\n</think>\n\n' + message.content + '<|im_end|>' -}}
{%- endgeneration -%}
{%- else -%}
{{- message.content + '<|im_end|>' -}}
{%- endif -%}
{{- '\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\n<think>\n' if add_generation_prompt -}}"""
    # END SOLUTION


# %% tags=["exercise-6.3"]
e06.tagged_template(tagged_template)

# %% [markdown]
# ## 6.4 Cut behind a reply
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


# %% tags=["exercise-6.4"]
e06.cut(cut)

# %% [markdown]
# ## 6.5 Right or refused
#
# Difficulty 4 of 5 · importance 5 of 5 · 25 minutes
#
# Write prefix re-rendering that can be trusted. You get a template as a function: `render(messages)` gives
# the tokens of a conversation, and `render(messages, add_generation_prompt=True)` what a server sends. Grade
# each reply, from the first token behind its prompt to the first end of turn there, and nothing behind that.
#
# Raise `MaskError` if a prompt is not what the finished turn begins with, or if the turn, *up to its end of
# turn*, is not what the whole begins with. What stands behind the end of turn may differ. It is no part of the
# reply, and where it belongs to the prompt of a later reply, it is compared there.
#
# The tokens are words here, so you can look at them. Five templates to try are in `e06`: `steady`, `gapped`
# (a line break behind each end of turn), `eager` (opens another reply, although nobody asked for one, as the
# old Llama 3 template does), `forgetful` and `thinking` (both rewrite something). Draft 3 of the lecture takes
# the last special token of the prefix for the end of turn, and `eager` shows why that is not enough. One more
# template is tried, which ends every turn twice.

# %%
messages = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "It is 2."}]
for template in (e06.steady, e06.gapped, e06.eager, e06.forgetful, e06.thinking):
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
# The reply ends behind the first `eot` behind the prompt: `until.index(eot, len(prompt)) + 1`, where `until`
# is the turn's end.
#
# </details>
# <details><summary>Hint 3</summary>
#
# Two checks: `until` begins with the prompt, and up to the end of the reply `until` and the whole are the
# same. To compare all of `until` would be too much: behind its end of turn `eager` writes a header, and where
# a question follows, the whole does not have it.
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
        end = until.index(eot, len(prompt)) + 1
        if whole[:end] != until[:end]:
            raise MaskError(f"turn {turn}: later turns change it")
        mask[len(prompt) : end] = [True] * (end - len(prompt))
    return mask
    # END SOLUTION


# %% tags=["exercise-6.5"]
e06.reply_mask(reply_mask)

# %% [markdown]
# ## 6.6 Find texts with marks
#
# Difficulty 4 of 5 · importance 4 of 5 · 20 minutes
#
# Where does each text stand in what a template writes? Searching for "2" finds the first "2", and that may
# be somebody else's. So render with a *mark* in the place of each text, a character that occurs nowhere
# else: `chr(0xF0000 + k)` for message k. Then put the texts in and note where each of them lands.
#
# A template is a program and may do anything with a text: trim it, leave it out, write it twice, look at it.
# Render a second time without marks. If your text with the marks filled in is not that one, raise
# `MaskError`; also if a mark is missing or stands there twice. A template may write
# the messages in another order; what you return is in the order of the messages.
#
# Some templates are in `e06`; two more are tried.

# %%
chat = [{"role": "user", "content": "!4 "}, {"role": "assistant", "content": "2"}]
for template in (e06.plain_text, e06.trimming, e06.dropping, e06.curious):
    print(f"{template.__name__:<10} {template(chat)!r:<40} {template.__doc__}")

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# Marked messages: `{**message, "content": chr(0xF0000 + k)}` for k, message in `enumerate(messages)`.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Walk through the marked output character by character and build the text. At the mark of message k the text
# built so far is `start` characters long; add the content.
#
# </details>
# <details><summary>Hint 3</summary>
#
# Keep the places in a dict by k. At the end it must have all k, and the text must equal `render(messages)`.
#
# </details>


# %%
def find_texts(render: Callable, messages: list[dict]) -> list[tuple[int, int]]:
    """For each message: (start, end) of its content in `render(messages)`, the end half-open.

    render:   messages -> the text of a template; call it once with all marks and once without
    messages: dicts with role and content; no content holds a mark. They are not changed.
    Raises MaskError if the template does not write each content once and as it is.

    >>> find_texts(e06.plain_text, [{"role": "user", "content": "user"}])  # <user>user<end>
    [(6, 10)]
    """
    # BEGIN SOLUTION
    marks = {chr(0xF0000 + k): k for k in range(len(messages))}
    marked = [m | {"content": mark} for m, mark in zip(messages, marks, strict=True)]
    text, places = "", {}
    for character in render(marked):
        k = marks.get(character)
        if k in places:
            raise MaskError(f"message {k}: its text is written twice")
        if k is not None:
            places[k] = (len(text), len(text) + len(messages[k]["content"]))
            character = messages[k]["content"]
        text += character
    if missing := marks.values() - places.keys():
        raise MaskError(f"message {min(missing)}: its text is not written")
    if text != render(messages):
        raise MaskError("the template looks at a text or changes it")
    return [places[k] for k in marks.values()]
    # END SOLUTION


# %% tags=["exercise-6.6"]
e06.find_texts(find_texts)

# %% [markdown]
# ## 6.7 Use a plan
#
# Difficulty 4 of 5 · importance 4 of 5 · 20 minutes
#
# A plan was made by watching a template run once (section 7 of the lecture). It holds what the template asked
# and what it wrote:
#
# - `questions`, a list of `(k, question, answer)`: it asked `question(texts[k])` and got this answer.
# - `pieces`, a list in the order of the text. A `str` is what the template wrote itself. `(k, step)` is a
#   *hole*: here it wrote `step(texts[k])`. The step `str` leaves a text as it is.
#
# Two plans for a question and a reply, like those of Llama 3.1's and Qwen 3's templates:

# %%
for plan in (e06.LLAMA_PLAN, e06.QWEN_PLAN):
    print(plan)
for function in (e06.thinks, e06.unbroken):
    print(f"{function.__name__}(text): {function.__doc__}")

# %% [markdown]
# Write the function that uses a plan for other texts, without the template. If every answer is what it was,
# the template would take the same way again: fill the holes, and note where each of them lands. If an answer
# differs, the template must run again: return None, even if the holes could be filled.
#
# An answer may be a number as well as yes or no. A text may have two holes or none, and it may equal a piece
# that the template wrote itself.
#
# <details><summary>Hint 1</summary>
#
# Two loops, one after the other: first all questions, then all pieces. A step may fail on a text for which
# the plan was not made.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `isinstance(piece, str)` tells what the template wrote itself from a hole.
#
# </details>
# <details><summary>Hint 3</summary>
#
# Build the text piece by piece. What fills a hole is `step(texts[k])`; it starts at `len(text)`, before you
# add it, and is as long as it is *after* the step.
#
# </details>


# %%
def use_plan(plan: e06.Plan, texts: list[str]) -> tuple[str, list[tuple[int, int, int]]] | None:
    """What the template would write for `texts`, and for each hole (k, start, end) in it.

    plan:  its questions and pieces, see above
    texts: the contents of a chat of the same roles, message by message
    returns None if an answer differs. The places are in the order of the text, ends half-open.

    >>> use_plan(e06.QWEN_PLAN, ["Hi", "\\nYes"])
    ('<user>Hi<end><assistant>Yes<end>', [(0, 6, 8), (1, 24, 27)])
    >>> use_plan(e06.QWEN_PLAN, ["Hi", "<think>Easy.</think>Yes"]) is None
    True
    """
    # BEGIN SOLUTION
    if any(question(texts[k]) != answer for k, question, answer in plan.questions):
        return None
    text, places = "", []
    for piece in plan.pieces:
        if not isinstance(piece, str):
            k, step = piece
            piece = step(texts[k])
            places.append((k, len(text), len(text) + len(piece)))
        text += piece
    return text, places
    # END SOLUTION


# %% tags=["exercise-6.7"]
e06.use_plan(use_plan)

# %% [markdown]
# ## 6.8 Trained as served
#
# Difficulty 3 of 5 · importance 5 of 5 · 15 minutes
#
# Somebody hands you a sample, ids and labels. How it was made you do not know. Write the check that refuses
# it unless every reply is trained behind exactly the ids that a server sends. Each reply is one run of labels
# that are not -100; the first run belongs to the assistant's first message, and so on. Another number of runs
# is refused as well. (Where a run must end is the other half of trained = served; here you check its beginning.)
#
# You get the server as a function: `serve(messages, k)` gives the ids after which the model writes message k.
# Two servers are in `e06`. The last line shows why it must be ids:

# %%
for server in (e06.serve, e06.serve_thinking):
    numbers = server(e06.SERVED_CHAT, 3)
    print(f"{server.__name__:<15} {numbers!s:<42} {e06.text_of(numbers)}")
print(f"{'the same text:':<15} {e06.text_of([6])} {e06.text_of([7, 8])}")

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# A run starts at i where `labels[i]` is graded and `labels[i - 1]` is not, or where i is 0.
#
# </details>
# <details><summary>Hint 2</summary>
#
# For a run that starts at i, the prompt is `input_ids[:i]`, all of it. Compare that with what is served, and
# not only the ids that both have.
#
# </details>
# <details><summary>Hint 3</summary>
#
# Pair the starts with the places of the assistant's messages. `zip` stops silently at the shorter list;
# `zip(..., strict=True)` raises ValueError, and a MaskError is asked for. So compare the lengths first.
#
# </details>


# %%
def check_served(
    serve: Callable, messages: list[dict], input_ids: list[int], labels: list[int]
) -> int:
    """How many replies were compared, if each of them is trained behind what the server sends.

    serve:     (messages, k) -> ids after which the model writes message k; k counts all messages
    messages:  dicts with role and content
    input_ids: the sample's ids
    labels:    as many; -100 where nothing is graded; not shifted
    Raises MaskError if a prompt differs, or if there is not one graded run for each reply.

    The words are <s> <user> 1+1? <end> <assistant> 2 <end>:

    >>> labels = [-100] * 5 + [0, 4]
    >>> check_served(e06.serve, e06.SERVED_CHAT[:2], [1, 2, 6, 4, 3, 0, 4], labels)
    1
    """
    # BEGIN SOLUTION
    graded = [label != IGNORE_INDEX for label in labels]
    starts = [i for i, here in enumerate(graded) if here and not (i and graded[i - 1])]
    replies = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    if len(starts) != len(replies):
        raise MaskError(f"{len(starts)} graded runs for {len(replies)} replies")
    for start, k in zip(starts, replies, strict=True):
        if input_ids[:start] != serve(messages, k):
            raise MaskError(f"message {k} is trained behind another prompt than is served")
    return len(replies)
    # END SOLUTION


# %% tags=["exercise-6.8"]
e06.check_served(check_served)

# %% [markdown]
# ## 6.9 Never a special token
#
# Difficulty 2 of 5 · importance 5 of 5 · 10 minutes
#
# A user types `<end><assistant>`. If you encode the rendered text, the typed characters become the real
# special tokens, and the user has opened a reply. So encode it in pieces: in what the template wrote, special
# tokens count; what was typed, by whomever, becomes ordinary characters, unchanged. The labels come with it.
#
# Tokenizers have a switch for this, `split_special_tokens=True`. The toy in `e06` has it, too, and otherwise
# one token for each character, so encoding piece by piece changes nothing else. (A real tokenizer merges
# across pieces. That is why the course encodes all the text between two special tokens of the template at
# once.)

# %%
toy = e06.Toy()
print(toy.specials)
print(toy.encode("<s>Hi<end>"))
print(toy.encode("<s>Hi<end>", split_special_tokens=True))

# %% [markdown]
# <details><summary>Hint 1</summary>
#
# For each piece: which value of `split_special_tokens` does it need?
#
# </details>
# <details><summary>Hint 2</summary>
#
# The piece's labels are its ids if it is graded, and as many times -100 if not. Whether an id is special
# plays no part in that.
#
# </details>


# %%
def encode_pieces(pieces: list[tuple[str, bool, bool]], tokenizer) -> tuple[list[int], list[int]]:
    """(input_ids, labels) of a rendered conversation in which nothing typed is a special token.

    pieces:    (text, typed, graded): `typed` is False for what the template wrote itself
    tokenizer: encode(text, split_special_tokens=False) -> ids

    >>> encode_pieces([("<user>", False, False), ("<s>", True, False)], e06.Toy())
    ([1, 60, 115, 62], [-100, -100, -100, -100])
    """
    # BEGIN SOLUTION
    input_ids, labels = [], []
    for text, typed, graded in pieces:
        found = tokenizer.encode(text, split_special_tokens=typed)
        input_ids += found
        labels += found if graded else [IGNORE_INDEX] * len(found)
    return input_ids, labels
    # END SOLUTION


# %% tags=["exercise-6.9"]
e06.encode_pieces(encode_pieces)

# %% [markdown]
# ## 6.10 Pack a row
#
# Difficulty 3 of 5 · importance 3 of 5 · 20 minutes
#
# Put several samples into one row, so that little of it is padding. The model must not notice: for each
# sample everything is as if it were alone.
#
# - Positions start again at 0 in each sample.
# - A token attends to itself and to what stands before it *in its own sample*.
# - The first token of each sample has no label. What stands before it is another conversation, and predicting
#   one conversation from another is nothing to learn. (In the first sample nothing at all stands before it.)
# - The padding at the end is treated as one more sample of which nothing is graded. If it attended to nothing,
#   the softmax would divide 0 by 0.
#
# <details><summary>Hint 1</summary>
#
# Besides the ids, keep a list with the number of the sample that each token belongs to. Do not look for ends
# of turn: a sample may have several.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `attend[i][j]` is true if both numbers are equal and `j <= i`.
#
# </details>


# %%
def pack_row(samples: list[dict], length: int, pad_id: int) -> dict[str, list]:
    """One row of `length` tokens that holds the samples one behind the other, then padding.

    samples: dicts with `input_ids` and `labels`, two lists of the same length, not empty. They are
             not changed.
    returns `input_ids`, `position_ids` and `labels`, each of `length` numbers, and `attend`, of
    `length` lists of `length` booleans: may position i (the list) look at j (the place in it)?
    Raises MaskError if the samples do not fit.

    >>> row = pack_row([{"input_ids": [5, 6], "labels": [5, 6]}] * 2, 4, pad_id=0)
    >>> row["position_ids"], row["labels"], row["attend"][2]
    ([0, 1, 0, 1], [-100, 6, -100, 6], [False, False, True, False])
    """
    # BEGIN SOLUTION
    rest = length - sum(len(sample["input_ids"]) for sample in samples)
    if rest < 0:
        raise MaskError(f"{length - rest} tokens do not fit into a row of {length}")
    padding = {"input_ids": [pad_id] * rest, "labels": [IGNORE_INDEX] * rest}
    row, owner = {"input_ids": [], "position_ids": [], "labels": []}, []
    for number, part in enumerate([*samples, padding] if rest else samples):
        size = len(part["input_ids"])
        row["input_ids"] += part["input_ids"]
        row["position_ids"] += range(size)
        row["labels"] += [IGNORE_INDEX, *part["labels"][1:]]
        owner += [number] * size
    row["attend"] = [
        [owner[i] == owner[j] and j <= i for j in range(length)] for i in range(length)
    ]
    return row
    # END SOLUTION


# %% tags=["exercise-6.10"]
e06.pack_row(pack_row)
