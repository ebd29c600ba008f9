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
# # 03 Render by hand
#
# After this you can **write** a chat in the Llama-3 format with a pencil, token by token,
# **count** its tokens, its special tokens and its graded positions without running anything, and
# **say** which positions' logits are trained, which is not the same list.
#
# About 35 minutes, CPU. Have paper and a pencil at hand: before each step you write down your
# answer, then you unfold ours.

# %%
import re
from collections import Counter, defaultdict
from itertools import accumulate

import matplotlib.pyplot as plt

from course_utils import FAMILIES, IGNORE_INDEX, render, show, training_samples
from course_utils.conversation import conversation
from course_utils.examples import (
    WALKTHROUGH,
    load_walkthrough_llama3,
    record_walkthrough_llama3,
)
from course_utils.tokenizers import TokenizerError, WordTokenizer

# %%
show.table([{"turn": n, "role": m.role, "content": m.content} for n, m in enumerate(WALKTHROUGH)])

# %% [markdown]
# This is the whole chat: three turns. By the end of the lecture you know each of its positions.

# %% [markdown]
# ## Numbers before tokens
#
# A model reads integers. A tokenizer is the dictionary that hands them out. To keep the counting
# honest you begin with a very small one: **a word is a token**, a line break (or two) is a token, and
# a new token gets the next free number.
#
# **Predict first.** "to be or not to be" has six words. What is the list of ids?

# %%
toy = WordTokenizer()
ids = toy.encode("to be or not to be").ids
print(ids)
print([toy.token(number) for number in ids])

# %% [markdown]
# The second "to" gets the number of the first: an id names a kind of token, a position names the
# place where it stands. Keep the two apart; this lecture is about positions.
#
# You know special tokens from lecture 02. Here is what one is to a tokenizer: a text that it keeps in
# one piece because it was told to.
#
# **Predict first.** How many tokens is `sea level.<|eot_id|>` for the word tokenizer, before and
# after it is told that `<|eot_id|>` is special?

# %%
text = "sea level.<|eot_id|>"
for specials in [(), ("<|eot_id|>",)]:
    pieces = [text[start:end] for start, end in toy.encode(text, specials).offsets]
    print(f"{len(pieces)} tokens: {pieces}")

# %% [markdown]
# Untold, the tokenizer sticks the marker to the word before it, and nothing in the sequence says
# "the turn is over". Told, the marker is a token of its own.

# %% [markdown]
# ## The recipe
#
# The Llama-3 format is short enough to hold in your head
# ([Llama 3 model card](https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/)):
#
# 1. once, at the very start: `<|begin_of_text|>`;
# 2. for each turn: `<|start_header_id|>`, the role's name, `<|end_header_id|>`, a double line
#    break, the content, `<|eot_id|>`.
#
# The grading rule is one sentence. **A token is graded if the model itself has to write it when
# it is served**: the content of an assistant turn and the end of turn (EOT) behind it. Everything
# else is written by somebody else and only read by the model. Lecture 05 takes other rules and
# measures what they do.

# %%
rendered = render(WALKTHROUGH, "llama3")
words = WordTokenizer()
encoded = words.encode(rendered.text, FAMILIES["llama3"].special_tokens)

owner_of = [span for span in rendered.spans for _ in span.text]
spans = [owner_of[start] for start, _ in encoded.offsets]
tokens = [rendered.text[start:end] for start, end in encoded.offsets]
kinds = [span.kind for span in spans]
graded = [span.generated for span in spans]


def first(count):
    title = "step by step: position 0" + (f" to {count - 1}" if count > 1 else "")
    return show.strip(tokens[:count], graded[:count], kinds[:count], title=title)


# %% [markdown]
# The cell renders the chat, splits it into word tokens, and looks up for each token which span of
# the template it came from. The strips below show it piece by piece.

# %% [markdown]
# ## Step 1: the sequence start
#
# **Pencil.** No turn is written yet. Which tokens stand there, and which of them are graded?
#
# <details><summary>Answer</summary>
#
# One token, position 0: `<|begin_of_text|>`. It is not graded. Nothing stands to the left of it, so
# no position's logits could be compared with it.
#
# </details>

# %%
first(1)

# %% [markdown]
# One box, pale, with a dot: it is read and not graded.

# %% [markdown]
# ## Step 2: the system turn
#
# **Pencil.** Write out every token of the turn (system, "Answer in one sentence.") with its
# position. Words stay whole and keep their punctuation. Then mark what is graded.
#
# <details><summary>Answer</summary>
#
# ```text
# 1 <|start_header_id|>   2 system   3 <|end_header_id|>   4 \n\n
# 5 Answer   6 in   7 one   8 sentence.
# 9 <|eot_id|>
# ```
#
# None is graded. The end of this turn is not graded either: the model never has to end a system
# turn.
#
# </details>

# %%
first(10)

# %% [markdown]
# Nine boxes more: four of header, four words, one EOT. The strip uses a symbol as well as a colour
# for each kind, so you can read it in print.

# %% [markdown]
# ## Step 3: the user turn
#
# **Pencil.** This time do not write the tokens out. Say at which position the turn (user, "What is
# the boiling point of water?") starts, at which it ends, and how many of its tokens are graded.
#
# <details><summary>Answer</summary>
#
# It starts where the last one ended, at 10. A turn costs five tokens plus its words: four of
# header, seven words, one EOT make twelve. So it ends at 21. None is graded.
#
# </details>

# %%
first(22)

# %% [markdown]
# 22 boxes and still none of them graded. If the chat stopped here, there would be nothing to train
# on.

# %% [markdown]
# ## Step 4: the assistant turn
#
# **Pencil.** The last turn is (assistant, "Water boils at 100 degrees Celsius at sea level.").
# Give its first and last position, and then the positions that are graded. Two questions decide
# it: is `assistant` graded? Is the last `<|eot_id|>`?
#
# <details><summary>Answer</summary>
#
# Five tokens plus nine words: positions 22 to 35. The header (22 to 25) is not graded, because the
# server writes it to give the model the floor. The words (26 to 34) are. So is the EOT at 35: the
# model has to write it, or its reply never ends.
#
# </details>

# %%
first(36)

# %% [markdown]
# The graded boxes are one run at the end, and it includes an `<|eot_id|>` while the two earlier
# ones are pale. Same token, same id, different treatment: **grading belongs to a position, not to
# a token**.

# %% [markdown]
# ## All 36 positions
#
# The same as a table, computed from the renderer, and now with the ids.
#
# **Predict first.** Some tokens occur more than once and so share an id. Which, besides the special
# ones?

# %%
show.table(
    [
        {
            "position": position,
            "token": token.replace("\n", "\\n"),
            "id": number,
            "kind": kind,
            "turn": "-" if span.role is None else span.role,
            "graded": "yes" if is_graded else "no",
        }
        for position, (token, number, kind, span, is_graded) in enumerate(
            zip(tokens, encoded.ids, kinds, spans, graded, strict=True)
        )
    ]
)

# %% [markdown]
# The double line break (4, 13, 25) and the word `at` (28, 32). Equal tokens have equal ids, wherever
# they stand. But `water?` (20) and `Water` (26) are two different tokens to a tokenizer that knows
# only whole words.

# %% [markdown]
# ## The bookkeeping
#
# The last strip has counted: 36 tokens, 10 special, 10 graded.
#
# **Predict first.** Which kinds of token are the special ones, and how many are there of each? And
# which tokens of the template are *not* special?

# %%
by_kind = Counter(kinds)
special = Counter(span.kind for span in spans if span.special)
for kind, count in by_kind.items():
    print(f"{kind:<8} {count:>2} in all, {special[kind]} special")
assert (len(tokens), special.total(), sum(graded)) == (36, 10, 10)

# %% [markdown]
# One sequence start and three times opener, closer and EOT make the special tokens. Role names and
# the double line break are part of the template too, but they are ordinary text. That the number of
# graded tokens equals the number of special ones is an accident of this chat.

# %% [markdown]
# ## The shift: which logits are trained?
#
# A label is the token's own id where it is graded and -100 where it is not. -100 is what PyTorch's
# [cross_entropy](https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html)
# skips unless told otherwise.
#
# A label stands **at its own token**. But a model predicts the *next* token: the logits at position
# i are compared with the label at position i + 1.
#
# **Predict first.** The labels of positions 26 to 35 are real. Which positions' logits are compared
# with something? Is 25 among them? Is 35?

# %%
labels = [
    number if is_graded else IGNORE_INDEX
    for number, is_graded in zip(encoded.ids, graded, strict=True)
]
pairs = [(i, i + 1) for i in range(len(labels) - 1) if labels[i + 1] != IGNORE_INDEX]
trained = [i for i, _ in pairs]
print("labels that count:   ", [i for i, label in enumerate(labels) if label != IGNORE_INDEX])
print("logits that count:   ", trained)


# %%
def shown(position):
    return tokens[position].replace("\n", "\\n") if position < len(tokens) else "(nothing)"


# %%
show.table(
    [
        {
            "position i": i,
            "input": shown(i),
            "its own label": labels[i],
            "target at i + 1": shown(i + 1),
            "compared": "yes" if i in trained else "no",
        }
        for i in (0, 23, 24, 25, 26, 33, 34, 35)
    ],
    caption="(input, target) pairs at the edges of the graded run",
)

# %% [markdown]
# Position 25, the double line break at the end of the assistant's header, **is trained**: its logits
# are compared with "Water", though its own label is -100. Position 35, the EOT, has a label, but its
# logits are compared with nothing in this sample, because nothing follows. Both lists have ten
# entries, one place apart. When somebody says "position 25 is not trained", ask: its label or its
# logits?
#
# That is our bookkeeping. Does the loss that `transformers` uses agree? Give it made-up logits and
# ask which rows of them receive a gradient.

# %%
import torch
from transformers.loss.loss_utils import ForCausalLMLoss

vocabulary_size = len(words.vocabulary)
logits = torch.zeros(1, len(labels), vocabulary_size, requires_grad=True)
ForCausalLMLoss(logits, torch.tensor([labels]), vocabulary_size).backward()
moved = logits.grad[0].abs().sum(dim=1).nonzero().flatten().tolist()
print(moved)
assert moved == trained

# %% [markdown]
# The rows with a gradient are exactly the list above. (Masked positions still matter: gradient
# flows *through* them to the parameters by way of attention. Lecture 05 shows that.)

# %% [markdown]
# ## Common bug: shifting twice
#
# "Position 25 is trained, so it needs the label." It sounds right, and it is the bug. Labels are
# moved one place to the left by hand, then the loss moves them once more. It catches people often
# enough that [a pull request](https://github.com/huggingface/transformers/pull/44642) asks the
# documentation of transformers to say that its models shift by themselves.
#
# **Predict first.** With labels shifted by hand, how many tokens are graded? What does position 25
# learn to write?

# %%
shifted_by_hand = labels[1:] + [IGNORE_INDEX]
wrong = [
    (i, shifted_by_hand[i + 1])
    for i in range(len(labels) - 1)
    if shifted_by_hand[i + 1] != IGNORE_INDEX
]
print("graded before and after:", len(trained), len(wrong))
for i, target in wrong[:3] + wrong[-1:]:
    print(f"position {i}: reads {shown(i):<19} learns to write {words.token(target)}")

# %%
show.masks(
    tokens,
    {
        "label at its token": graded,
        "shifted by hand": [label != IGNORE_INDEX for label in shifted_by_hand],
    },
    kinds=kinds,
)

# %% [markdown]
# The count is the same, so the graded share looks healthy. Yet every position now learns the token
# after the next one: after the header's closer comes "Water", and after the double line break,
# which is where a server hands over, comes "boils". A count cannot find this bug; a printed
# (input, target) pair finds it at once.

# %% [markdown]
# ## The same chat in real Llama-3 tokens
#
# So far 36 counted **words**. A real tokenizer uses byte-pair encoding (BPE): pieces of words,
# learned from text, with the space kept in front of the word.
#
# **Predict first.** Which of the twenty words will not stay whole? How many tokens will the chat then
# have?
#
# The next cell takes the real tokenizer if it can be had, and otherwise the ids recorded from it.

# %% tags=["measured"]
try:
    record = record_walkthrough_llama3()
    print("tokenized just now with Llama 3's own vocabulary")
except TokenizerError as error:
    record = load_walkthrough_llama3()
    print("recorded ids, because:", error)
for what, value in record["provenance"].items():
    print(f"{what}: {value}")

# %%
assert record == load_walkthrough_llama3()
bpe_tokens = record["tokens"]
bpe_graded = [label != IGNORE_INDEX for label in record["labels"]]
print(len(bpe_tokens), "tokens,", sum(bpe_graded), "of them graded")
assert (len(bpe_tokens), sum(bpe_graded)) == (40, 12)

ends = list(accumulate(len(token) for token in bpe_tokens))
bpe_kinds = [owner_of[end - 1].kind for end in ends]
show.strip(bpe_tokens, bpe_graded, bpe_kinds)

# %% [markdown]
# The shape is the same, and so are the special tokens. There are more tokens of content, and the
# space before a word now belongs to that word's token.

# %%
word_at = {p: (start, end) for start, end in encoded.offsets for p in range(start, end)}
parts = defaultdict(list)
for piece, end in zip(bpe_tokens, ends, strict=True):
    parts[word_at[end if piece == " " else end - 1]].append(piece)
split = {rendered.text[a:b]: pieces for (a, b), pieces in parts.items() if len(pieces) > 1}
for word, pieces in split.items():
    print(f"{word:<10} becomes {pieces}")
print(f"{len(tokens)} words and markers + {sum(len(p) - 1 for p in split.values())} more pieces")
assert len(tokens) + sum(len(p) - 1 for p in split.values()) == len(bpe_tokens)

# %% [markdown]
# Three of the four are a word that lets go of its full stop or question mark. The fourth, "100",
# is the surprise: it is one token, but it will not take the space in front of it along, so that
# space is left over as a token of its own. And it is a graded one.
#
# Why? Before any merging, Llama 3 cuts the text with a regular expression
# ([its tokenizer](https://github.com/meta-llama/llama-models/blob/main/models/llama3/tokenizer.py)):
# letters may take one character in front of them along, digits may not. Here is that expression,
# reduced to English letters and without its rule for endings such as "'s".

# %%
letters, digits = r"[^\r\n0-9A-Za-z]?[A-Za-z]+", r"[0-9]{1,3}"
marks, blank = r" ?[^\s0-9A-Za-z]+[\r\n]*", r"\s*[\r\n]+|\s+(?!\S)|\s+"
reply = WALKTHROUGH[2].content
cut = re.findall(f"{letters}|{digits}|{marks}|{blank}", reply)
print(cut)
in_reply = [token for token, is_graded in zip(bpe_tokens, bpe_graded, strict=True) if is_graded]
print("the same as the reply's real tokens:", cut == in_reply[:-1])

# %% [markdown]
# The cut alone gives the real tokens here: every piece of this reply is in the vocabulary, so BPE
# has nothing left to do.
#
# Two lessons. A count of words is not a count of tokens: whoever writes "36 tokens" for this chat
# has counted words and markers. And the graded run moves with the tokenizer, so its positions must
# be computed and never copied:

# %%
for name, mask in [("words", graded), ("Llama-3 BPE", bpe_graded)]:
    run = [position for position, is_graded in enumerate(mask) if is_graded]
    print(
        f"{name:<12} {len(mask)} tokens, graded {run[0]} to {run[-1]}, "
        f"logits trained {run[0] - 1} to {run[-1] - 1}, share {sum(mask) / len(mask):.0%}"
    )

# %% [markdown]
# ## What a longer reply does
#
# The share so far is this chat's share. The prompt costs 26 tokens whatever the reply is (positions
# 0 to 25), and the reply of n words adds n + 1 graded ones.
#
# **Predict first.** Keep system and user turn. How long must the reply be before half of the tokens
# are graded? And before nine tenths are?


# %%
def share_of_reply(length):
    turns = [(m.role, m.content) for m in WALKTHROUGH][:2]
    chat = conversation(*turns, ("assistant", " ".join(["word"] * length)))
    (sample,) = training_samples(chat, WordTokenizer())
    return sample.graded_tokens / len(sample)


lengths = range(1, 301)
shares = [share_of_reply(length) for length in lengths]
for wanted in (0.1, 0.5, 0.9):
    enough = next(n for n, value in zip(lengths, shares, strict=True) if value >= wanted)
    print(f"{wanted:.0%} graded from {enough} words on")
print(f"a reply of one word: {shares[0]:.0%}")

# %%
alt = "Graded share against reply length: steep at first, then levelling off towards 1."
fig, ax = show.figure(alt=alt)
ax.plot(lengths, shares, color=show.PALETTE["special"])
ax.plot(9, shares[8], "o", color=show.PALETTE["accent"])
ax.annotate(f"walkthrough, {shares[8]:.0%}", (9, shares[8]), (10, -4), textcoords="offset points")
ax.set(xlabel="words in the reply", ylabel="graded share", ylim=(0, 1), xlim=(0, 300))
plt.show()

# %% [markdown]
# The curve is (n + 1) / (n + 27). It is steep where replies are short. So a graded share says
# mostly how long the replies are. A reply of one word has the share printed last above, and nothing
# is wrong with it: a rule such as "never under ten per cent" would refuse good one-word answers to a
# question like this. Compare shares within one source of data, not against a fixed limit.

# %% [markdown]
# ## Take-aways
#
# 1. In this format a sequence costs one token and each turn five more plus its content. Graded is
#    what the model itself writes: the assistant's content and its EOT.
# 2. Labels stand at their token, logits one place earlier: the double line break at 25 is trained,
#    the EOT at 35 is not compared with anything. Shifting by hand as well is a bug that no count
#    shows.
# 3. Words are not tokens: the same chat has 36 words and markers and 40 Llama-3 tokens. The graded
#    share is a matter of reply length.
#
# Now do the [exercises](../exercises/03_render_by_hand.ipynb), then go on to
# [lecture 04, mask in plain Python](04_mask_in_plain_python.ipynb).
#
# ## Quiz
#
# **1.** A chat has two user turns and two assistant turns and no system text. How many special tokens
# does it have in the Llama-3 format, and how many of them are graded?
#
# <details><summary>Answer</summary>
#
# One sequence start and three for each of the four turns: 13. Two are graded, the EOT of each
# assistant turn.
#
# </details>
#
# **2.** Another user turn is appended to the walkthrough. Are the logits at position 35 trained now?
#
# <details><summary>Answer</summary>
#
# No. Its target would be the opener of the next user turn, and the model does not write that, so
# its label is -100. What follows an EOT is the server's business.
#
# </details>
