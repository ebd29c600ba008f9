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
# # 04 Mask in plain Python
#
# After this you can **write** a loss mask with nothing but Python's standard library, **name** the
# chat that breaks a mask made by counting words or by searching for the reply, and **decide** what
# happens to a token that lies half inside a graded run.
#
# About 45 minutes, CPU. Three drafts follow. Two of them fail, each on chats small enough to see
# why.

# %%
import re

from IPython.display import display

from course_utils import IGNORE_INDEX, load_conversations, render, show, training_samples
from course_utils.conversation import conversation
from course_utils.examples import TINY_CHATS, WALKTHROUGH
from course_utils.masking import character_mask
from course_utils.tokenizers import WordTokenizer

# %%
show.table(
    [
        {"chat": chat.id, "turn": n, "role": message.role, "content": message.content}
        for chat in TINY_CHATS
        for n, message in enumerate(chat)
    ]
)

# %% [markdown]
# Three tiny chats, and each is a trap. Look at them for a moment: what could go wrong in each when
# somebody looks for the assistant's text?
#
# First the text, in the Llama-3 format of lecture 03. No mask yet.

# %%
BOS, EOT = "<|begin_of_text|>", "<|eot_id|>"
OPEN, CLOSE = "<|start_header_id|>", "<|end_header_id|>"


def write_text(chat):
    text = BOS
    for turn in chat:
        text += OPEN + turn.role + CLOSE + "\n\n" + turn.content + EOT
    return text


print(write_text(TINY_CHATS[0]))

# %% [markdown]
# Then a stand-in for a real tokenizer. It cuts as Llama 3's does before merging (lecture 03): a word
# takes the space in front of it along, punctuation is a piece of its own (with a line break behind
# it, if there is one), numbers come in pieces of up to three digits.

# %%
SPECIAL = "|".join(re.escape(token) for token in (BOS, OPEN, CLOSE, EOT))
WORD = r"[^\r\n0-9A-Za-z]?[A-Za-z]+|[0-9]{1,3}"
REST = rf" ?(?:(?!{SPECIAL})[^\s0-9A-Za-z])+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def cut(text):
    return [match.span() for match in re.finditer(f"{SPECIAL}|{WORD}|{REST}", text)]


print(len(cut(write_text(WALKTHROUGH))), "pieces in the walkthrough")
for start, end in cut(write_text(TINY_CHATS[0])):
    print(repr(write_text(TINY_CHATS[0])[start:end]), end=" ")

# %% [markdown]
# Forty pieces for the walkthrough, as many as real Llama-3 tokens.

# %% [markdown]
# ## Draft 1: count the words
#
# In lecture 03 you counted: one for the sequence start, four for a header, the words, one for the
# end of turn (EOT). So count, and write the mask down without looking at the text at all.
#
# **Predict first.** For which of the three chats is the mask as long as the text has pieces?


# %%
def draft_1(chat):
    mask = [False]
    for turn in chat:
        words = len(turn.content.split())
        mask += [False] * 4 + [turn.role == "assistant"] * (words + 1)
    return mask


for chat in TINY_CHATS:
    text, mask = write_text(chat), draft_1(chat)
    words = WordTokenizer().pieces(text, (BOS, OPEN, CLOSE, EOT))
    print(f"{chat.id:<12} mask {len(mask)}, word tokens {len(words)}, pieces {len(cut(text))}")

# %% [markdown]
# It fits the word tokens and none of the pieces. Here is what gets graded. The row below each draft
# is the answer key, the mask that a finished renderer gives.


# %%
def key(chat):
    return character_mask(render(chat, "llama3", lossy=True))


def inherit(mask, ranges):
    return [all(mask[start:end]) for start, end in ranges]


def against_key(chat, name, mask):
    text = write_text(chat)
    pieces = [text[start:end] for start, end in cut(text)]
    mask = (mask + [False] * len(pieces))[: len(pieces)]
    rows = {name: mask, "key": inherit(key(chat), cut(text))}
    special = [piece in (BOS, OPEN, CLOSE, EOT) for piece in pieces]
    return show.masks(pieces, rows, title=chat.id, special=special)


# %%
for chat in TINY_CHATS:
    display(against_key(chat, "draft 1", draft_1(chat)))

# %% [markdown]
# Every split before the reply ("yes." is two pieces, "1+1?" is four) moves the graded run further to
# the left. In tiny-echo the header's line break is graded instead of the EOT, in tiny-twice half of a
# header and the end of the user's second question. For these two the *number* of graded tokens is right, so no count shows
# the bug. **Counting words is right only for a tokenizer whose tokens are words.** So do not count:
# ask the text where the reply is.

# %% [markdown]
# ## Draft 2: search for the reply
#
# A mask over *characters* does not care how the tokenizer cuts. Find the reply in the text, grade
# its characters and those of the EOT behind it.
#
# **Predict first.** Which of the three chats does this get wrong?


# %%
def draft_2(chat, resume=False):
    text, position = write_text(chat), 0
    mask = [False] * len(text)
    for turn in chat:
        if turn.role == "assistant":
            start = text.find(turn.content, position if resume else 0)
            position = start + len(turn.content) + len(EOT)
            mask[start:position] = [True] * (position - start)
    return mask[: len(text)]


# %%
def underline(text, mask):
    """Print turn by turn, with ^ under what is graded; a line break is shown as a pilcrow."""
    position = 0
    for line in re.split(f"(?={re.escape(OPEN)})", text):
        marks = mask[position : position + len(line)]
        position += len(line)
        print(line.replace("\n", "¶"))
        print("".join("^" if graded else "·" for graded in marks))


# %%
def report(name, draft, chats=TINY_CHATS):
    for chat in chats:
        wrong = sum(a != b for a, b in zip(draft(chat), key(chat), strict=True))
        print(f"--- {name}, {chat.id}: {wrong} characters wrong")
        underline(write_text(chat), draft(chat))


report("draft 2", draft_2)

# %% [markdown]
# Two of three. In **tiny-echo** the first "yes" stands in the user's question, so the user is graded
# and the assistant is not. In **tiny-twice** both replies are "2", the search finds the first one
# twice, and the second turn is never graded. Only **tiny-marker**, whose reply occurs once, is
# right.
#
# The usual repair is to go on searching where the last match ended.
#
# **Predict first.** Which of the two chats does that mend?

# %%
report("draft 2, resumed", lambda chat: draft_2(chat, resume=True), TINY_CHATS[:2])

# %% [markdown]
# Neither. The next "2" after the first reply is the one in the user's "4-2?". Now the user's turn
# is graded in both chats.
#
# You may think that nobody's data looks like this. Ask the course's own conversations.
#
# **Predict first.** For how many of them does draft 2 give a wrong mask? And if you keep only the
# first word of every reply?

# %%
chats = load_conversations("../data/conversations.jsonl")


def shortened(chat, words):
    turns = [(t.role, t.content) for t in chat]
    cut_to = [(r, " ".join(c.split()[:words]) if r == "assistant" else c) for r, c in turns]
    return conversation(*cut_to)


# %%
rows = []
for words in (1, 2, 5, 10, 1000):
    short = [shortened(chat, words) for chat in chats]
    row = {"words kept of each reply": "all" if words == 1000 else words, "chats": len(short)}
    row["draft 2 wrong"] = sum(draft_2(c) != key(c) for c in short)
    row["resumed wrong"] = sum(draft_2(c, resume=True) != key(c) for c in short)
    rows.append(row)
assert rows[-1]["draft 2 wrong"] == 0 < rows[0]["draft 2 wrong"]
show.table(rows)

# %% [markdown]
# With full replies (last row) no mask is wrong, and you would trust the code. The first row shows the
# same code on one-word replies. **The search fails where replies are
# short**, such as yes and no, a letter, a number, and it fails without a word. Text does not say
# who wrote it. So do not look for the reply afterwards: note it while you write.

# %% [markdown]
# ## Draft 3: write text and mask in lock-step
#
# One small function appends to both at once. Whoever writes a piece knows whether the model has to
# write it.
#
# **Predict first.** Where in these lines could the mask become longer or shorter than the text?


# %%
def draft_3(chat):
    text, mask = "", []

    def write(piece, graded):
        nonlocal text
        text += piece
        mask.extend([graded] * len(piece))

    write(BOS, False)
    for turn in chat:
        write(OPEN + turn.role + CLOSE + "\n\n", False)
        write(turn.content + EOT, turn.role == "assistant")
    return text, mask


# %%
report("draft 3", lambda chat: draft_3(chat)[1])

# %%
wrong = sum(draft_3(chat)[1] != key(chat) for chat in [WALKTHROUGH, *TINY_CHATS, *chats])
print(f"{wrong} wrong masks in {1 + len(TINY_CHATS) + len(chats)} chats")
assert wrong == 0

# %% [markdown]
# Nowhere: one call writes both. And the mask is right on the traps, the walkthrough and all
# conversations, not because draft 3 searches better but because it does not search.

# %% [markdown]
# ## From characters to tokens
#
# The model does not read characters. Tokenize the finished text and let each token **inherit** the
# mask of the characters that it covers. Then give each token a number, and replace the number by
# -100 wherever the token is not graded: these are the **labels**.

# %%
text, mask = draft_3(TINY_CHATS[0])
ranges = cut(text)
vocabulary, ids = {}, []
for start, end in ranges:
    ids.append(vocabulary.setdefault(text[start:end], len(vocabulary)))
graded = inherit(mask, ranges)
labels = [number if keep else IGNORE_INDEX for number, keep in zip(ids, graded, strict=True)]
print("ids   ", ids)
print("labels", labels)
show.strip([text[start:end] for start, end in ranges], graded, title="tiny-echo")

# %% [markdown]
# The two graded tokens are the reply and its EOT. Note the ids: " yes" in the question and "yes" in
# the reply are different tokens, because one of them has a space in front. And the labels stand at
# their own tokens: the loss shifts them, you do not (lecture 03).

# %% [markdown]
# ## The token that straddles the edge
#
# In the Llama-3 format a double line break stands in front of every reply and a special token behind
# it. The content is stripped, so it does not begin with a line break of its own, and no token can reach
# across. Take a format made of ordinary text:
#
# ```text
# User: Say yes.
# Assistant: yes
# ```
#
# Write `Assistant:` and a space as the header, and grade what follows.
#
# **Predict first.** The graded characters are `yes` and the line break. Which tokens are graded?

# %%
header, reply = "User: Say yes.\nAssistant: ", "yes\n"
plain = header + reply
mask = [False] * len(header) + [True] * len(reply)
pieces = [plain[start:end] for start, end in cut(plain)]
rules = {
    "any character": [any(mask[start:end]) for start, end in cut(plain)],
    "every character": [all(mask[start:end]) for start, end in cut(plain)],
}
show.masks(pieces, rules, title="the same character mask, two rules")

# %% [markdown]
# The token " yes" has a masked space and three graded letters: it **straddles**. If every character
# must be graded, the reply loses its only word, and all that is left to learn is to stop. If any
# character will do, the word is graded. Is "any" right, then? Look at what a server sends.

# %%
prompt = [header[start:end] for start, end in cut(header)]
print("trained on:", pieces)
print("served:    ", prompt)
print("the prompt's tokens begin the sample:", pieces[: len(prompt)] == prompt)

# %% [markdown]
# The served prompt ends with a token for the lone space, which the sample does not have there. The
# model was trained to write " yes" after ":" and is asked to continue after " ". **Neither rule
# mends that. The template is at fault**: its edge lies inside a token. So a straddling token is
# refused, and the edge is moved: the space goes to the reply.

# %%
header, reply = "User: Say yes.\nAssistant:", " yes\n"
prompt = [header[start:end] for start, end in cut(header)]
print("the prompt's tokens begin the sample:", pieces[: len(prompt)] == prompt)
mask = [False] * len(header) + [True] * len(reply)
show.strip(pieces, inherit(mask, cut(header + reply)), title="the space belongs to the reply")

# %% [markdown]
# Same text, same tokens, and now no token straddles and the prompt is what a server sends. (That is
# how `course_utils.templates` writes its plain format.)

# %% [markdown]
# ## The typed marker
#
# The third tiny chat has a trap that drafts 2 and 3 did not notice: their masks are right. A user asks
# what `<|eot_id|>` does.
#
# **Predict first.** The chat has three turns. How many EOT tokens does the tokenized text have?

# %%
text, mask = draft_3(TINY_CHATS[2])
pieces = [text[start:end] for start, end in cut(text)]
print("turns:", len(TINY_CHATS[2]), " EOT tokens:", pieces.count(EOT))
special = [piece in (BOS, OPEN, CLOSE, EOT) for piece in pieces]
show.strip(pieces, inherit(mask, cut(text)), special=special, title="tiny-marker, carelessly cut")

# %% [markdown]
# One too many. The model reads that the user's turn ends after "What does", and that " do?" comes
# from nobody. A user who can type one special token can type all of them: end the turn and open one
# in another role (lecture 02 does it).
#
# Once more the finished text does not say who wrote what, and once more the remedy is to note it
# while writing. The final script keeps a **third list in lock-step**: did the template write this
# character? A token is special only where it did.

# %% [markdown]
# ## The whole script
#
# [`mask_from_scratch.py`](mask_from_scratch.py) lies next to this notebook. It renders, masks,
# tokenizes (by words, as in lecture 03), inherits and labels. This is all of it.

# %%
from pathlib import Path

script_file = Path("mask_from_scratch.py")
source = script_file.read_text("utf-8")
display({"text/markdown": f"```python\n{source}```", "text/plain": source}, raw=True)

# %%
import ast
import subprocess
import sys

imports = [
    node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)
]
names = [alias.name for node in imports for alias in node.names]
print(f"{len(source.splitlines())} lines, imports: {', '.join(names)}")
assert len(source.splitlines()) < 150 and set(names) <= sys.stdlib_module_names
command = [sys.executable, "-I", "-S", str(script_file)]
print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

# %% [markdown]
# `python -I -S` starts without any installed package. The script prints the table that you made
# with a pencil in lecture 03.
#
# Does it agree with `course_utils.training_samples`, which the rest of the course uses? Compare
# ids and labels, number by number.

# %%
import mask_from_scratch as script


def by_script(chat):
    sample = script.make_sample([(turn.role, turn.content) for turn in chat], {})
    return sample["ids"], sample["labels"]


def by_course(chat):
    tokenizer = WordTokenizer()
    (sample,) = training_samples(chat, tokenizer)
    return sample.input_ids, sample.labels


# %%
everything = [WALKTHROUGH, *TINY_CHATS, *chats]
same = sum(by_script(chat) == by_course(chat) for chat in everything)
print(f"the same ids and labels in {same} of {len(everything)} chats")
assert same == len(everything)

# %% [markdown]
# And the pictures: the walkthrough and the three traps, as the script masks them. Special tokens
# have a strong edge; the marker that the user typed in tiny-marker has none.

# %%
for chat in (WALKTHROUGH, *TINY_CHATS):
    sample = script.make_sample([(turn.role, turn.content) for turn in chat], {})
    display(show.strip(sample["tokens"], sample["mask"], title=chat.id, special=sample["special"]))

# %%
vocabulary = {}
sample = script.make_sample([(turn.role, turn.content) for turn in TINY_CHATS[2]], vocabulary)
print("ids of the text <|eot_id|>:", [n for (t, _), n in vocabulary.items() if t == EOT])
real = vocabulary[EOT, True]
print("turns:", len(TINY_CHATS[2]), " EOT tokens:", sample["ids"].count(real))

# %% [markdown]
# The typed marker has the same text as the real ones but an id of its own, so there are as many EOT
# tokens as turns.
#
# A real tokenizer changes two functions, `tokenize` and `number`; rendering, mask, inheritance and
# labels stay as they are. Swap in the Llama-like cut:

# %%
text, graded, by_template = script.render([(turn.role, turn.content) for turn in WALKTHROUGH])
mask = script.inherit(graded, cut(text))
print(f"{len(mask)} tokens, {sum(mask)} graded")
assert (len(mask), sum(mask)) == (40, 12)

# %% [markdown]
# The numbers of the real tokenizer in lecture 03.

# %% [markdown]
# ## Common bug: the end of turn is masked
#
# Draft 3 again, with the text left out and the mask written a little more "cleanly": content and EOT
# on two lines, and the EOT counted as part of the frame.
#
# **Predict first.** By how much does the graded share of the walkthrough fall? How often is the
# model graded on stopping in all four chats together?


# %%
def without_end(chat):
    mask = [False] * len(BOS)
    for turn in chat:
        mask += [False] * len(OPEN + turn.role + CLOSE + "\n\n")
        mask += [turn.role == "assistant"] * len(turn.content)
        mask += [False] * len(EOT)
    return mask


def counts(chat, mask):
    ranges = cut(write_text(chat))
    graded = inherit(mask, ranges)
    ends = [write_text(chat)[start:end] == EOT for start, end in ranges]
    return sum(graded), len(graded), sum(a and b for a, b in zip(graded, ends, strict=True))


# %%
rows = []
for chat in (WALKTHROUGH, *TINY_CHATS):
    for name, mask in [("draft 3", key(chat)), ("end masked", without_end(chat))]:
        graded, total, ends = counts(chat, mask)
        row = {"chat": chat.id, "mask": name, "graded": graded, "tokens": total}
        rows.append(row | {"share": f"{graded / total:.0%}", "graded EOT": ends})
display(show.table(rows))
assert sum(row["graded EOT"] for row in rows if row["mask"] == "end masked") == 0
twice = TINY_CHATS[1]
against_key(twice, "end masked", inherit(without_end(twice), cut(write_text(twice))))

# %% [markdown]
# One token per reply is lost. In the walkthrough the share moves by less than three points, while every
# other chat lies at least ten points away from it. Nobody would notice. But the last column goes to zero: **no position in the
# whole set teaches the model to stop**. Lecture 05 measures what that does.
#
# The other classic is a mask that is one place off. NVIDIA's NeMo had it: the first token of a label
# was not in the loss until [#6409](https://github.com/NVIDIA-NeMo/Speech/pull/6409). On tokens it is
# silent.
#
# **Predict first.** Move the *character* mask of the walkthrough by one character and let the
# script inherit it. What do you get?

# %%
text, graded, by_template = script.render([(turn.role, turn.content) for turn in WALKTHROUGH])
for name, moved in [("late", [False] + graded[:-1]), ("early", graded[1:] + [False])]:
    try:
        script.inherit(moved, script.tokenize(text, by_template)[0])
        print(f"one character {name}: accepted")
    except ValueError as error:
        print(f"one character {name}: refused, {error}")

# %% [markdown]
# Both are refused, because the edge now lies inside a token. The rule for straddling tokens, which
# looked like a nuisance, is also a check on your own arithmetic.

# %% [markdown]
# ## Take-aways
#
# 1. A mask that is found afterwards, by counting or by searching, is wrong on some chat, silently.
#    Write text and mask in lock-step and there is nothing to find.
# 2. Tokens inherit the mask of their characters. A token that is graded only in part is refused:
#    it shows that the sample's tokens are not the ones that a server sends.
# 3. Who wrote a character decides whether it is graded, and also whether it may be a special token.
#    Note both while writing.
#
# Now do the [exercises](../exercises/04_mask_in_plain_python.ipynb), then go on to
# [lecture 05, what to grade](05_what_to_grade.ipynb).
#
# ## Quiz
#
# **1.** A colleague mends draft 2 by searching for the whole assistant header and the reply together.
# Which chat breaks it?
#
# <details><summary>Answer</summary>
#
# One in which a user pastes part of a chat log: the header, then the same reply. The search finds
# the pasted one first. Text alone does not say who wrote it, however long the search string is.
#
# </details>
#
# **2.** In ChatML a single line break stands between header and content, and contents are not
# stripped. A reply begins with a line break. What does the script's rule for straddling tokens say?
#
# <details><summary>Answer</summary>
#
# The stand-in above, like Llama 3's tokenizer, makes one token of two line breaks. It would cover the
# header's masked line break and the reply's graded one, so it straddles and the chat is refused.
# Strip the reply before you render it.
#
# </details>
