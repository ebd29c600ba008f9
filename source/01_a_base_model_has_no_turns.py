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
# # 01 A base model has no turns
#
# A base model continues text. You will put questions to a real one, read what it writes, count it, and
# measure three things that it does not have: turns, roles, and an end.
#
# After this you can **sort** what a base model does with a question and count it with an interval,
# **read off** its probabilities who it expects to speak next and whether it expects to stop, and
# **tell** from three lines of output that somebody loaded a base checkpoint by mistake.
#
# About 35 minutes, CPU (a GPU is used if there is one). All cells together take one to two minutes on two
# cores.

# %%
import math
import re
from statistics import mean, median

import matplotlib.pyplot as plt
import torch

from course_utils import FAMILIES, load_conversations, render, show
from course_utils.checkpoints import BASES, family_for, load_base, pick_base
from course_utils.comparison import mentions, sentences, wilson, words
from course_utils.conversation import conversation
from course_utils.replies import generate, prompt_ids
from course_utils.tokenizers import encode

# %% [markdown]
# ## A script for two voices
#
# Two people stand on a train. Here is all that they say.

# %%
SPEAKERS = "NTTNTNNTTNNT"
LINES = """Is this the train to Bergen?
I hope so.
It has the right number.
Then why are we going south?
Are we?
The sea is on the left.
It should be on the right.
Perhaps it turns round later.
Trains do that.
They do not.
Where are our bags?
On the other train.""".splitlines()
print("\n".join(LINES))

# %% [markdown]
# **Predict first.** Nora speaks the first line. Who speaks the others? Write one letter per line below,
# `N` for Nora and `T` for Theo. The guess that stands there lets them take turns, line by line.

# %%
your_guess = "NTNTNTNTNTNT"


def hits(guess):
    return sum(a == b for a, b in zip(guess, SPEAKERS, strict=True))


print(f"{hits(your_guess)} of {len(LINES)} lines right; a coin gets {len(LINES) // 2} on average")
assert hits("NTNTNTNTNTNT") == len(LINES) // 2

# %%
fig, ax = show.figure(7, 1.6, alt="Who speaks each of the twelve lines, and who was guessed to.")
colours = {"N": show.PALETTE["special"], "T": show.PALETTE["tuned"]}
for row, letters in enumerate((SPEAKERS, your_guess)):
    for line, letter in enumerate(letters, start=1):
        box = {"facecolor": colours[letter], "edgecolor": "none", "boxstyle": "round"}
        ax.text(line, -row, letter, ha="center", va="center", color="white", bbox=box)
        if letter != SPEAKERS[line - 1]:
            ax.text(line, -1.75, "✗", ha="center", va="center")
ax.set(xlim=(0.4, 12.6), ylim=(-2.1, 0.5), xlabel="line", xticks=range(1, 13))
ax.set_yticks([0, -1], ["the author", "the guess"])
plt.show()

# %% [markdown]
# A cross marks each miss. Taking turns, the obvious guess, is right exactly as often as a coin. If yours was
# better, it was because you know what people say on a wrong train. Now the same lines as a playwright
# prints them.

# %%
NAMES = {"N": "Nora", "T": "Theo"}
for speaker, line in zip(SPEAKERS, LINES, strict=True):
    print(f"{NAMES[speaker]}: {line}")

# %% [markdown]
# Not one word of the dialogue has changed, and nobody has to guess any more. A chat template adds to a
# conversation what those names add to the play, and one thing that even the playwright leaves out: a mark
# where a speech is over. This lecture is about a model that has seen a great many texts and was never
# *required* to use such marks.

# %% [markdown]
# ## Ask a base model
#
# Your machine's base model (lecture 00 shows how it is chosen):

# %% tags=["measured"]
BASE, why = pick_base()
print(why)
model, tokenizer = load_base(BASE)
parameters = sum(p.numel() for p in model.parameters())
print(f"{parameters / 1e6:.0f} million parameters, {model.dtype}, on {model.device}")
print("licence:", BASES[BASE].licence if BASE in BASES else "its own")

# %% [markdown]
# (The packaged weights of `gemma-3-270m` were rounded to 4 bits and are unpacked here. Every number below is
# one about this checkpoint, and not about the original or about larger models.)
#
# Twelve questions have an answer that a string can check. Fifteen have not.

# %%
FACTS = {
    "What is the boiling point of water?": ["100", "212"],
    "What is the capital of France?": ["Paris"],
    "Who wrote Romeo and Juliet?": ["Shakespeare"],
    "How many days are there in a leap year?": ["366"],
    "What is 12 times 12?": ["144"],
    "How many legs does a spider have?": ["8", "eight"],
    "What does a thermometer measure?": ["temperature"],
    "In which year did the Second World War end?": ["1945"],
    "Which planet is the largest?": ["Jupiter"],
    "What colour do blue and yellow make?": ["green"],
    "Where do penguins live?": ["Antarctica", "Antarctic", "southern"],
    "What is the opposite of hot?": ["cold"],
}

# %%
OPEN = """How do I boil an egg?
How can I fall asleep faster?
What should I cook tonight?
Can you recommend a book for a long flight?
How do I reverse a list in Python?
My printer does not work. What can I do?
Should I learn to play the piano or the guitar?
Explain photosynthesis in two sentences.
Write a haiku about rain.
Translate "good morning" into Spanish.
Give me three names for a cat.
List the planets of the solar system.
Summarise the story of Cinderella.
Tell me a joke.
Who are you?""".splitlines()

# %%
QUESTIONS = [*FACTS, *OPEN]
print(len(QUESTIONS), "questions")

# %% [markdown]
# The model gets the question and nothing else: no role, no instruction, no template. It continues
# **greedily**, always with its most probable token, for 64 tokens at most.
#
# **Predict first.** How many of the 27 will it answer? What will it do with the others? And how many
# replies will it end by itself?


# %% tags=["measured"]
def ask(prompts, **how):
    """What the model writes after each prompt."""
    chats = [conversation(("user", prompt)) for prompt in prompts]
    ids = [prompt_ids(chat, tokenizer, template=False) for chat in chats]
    return generate(model, tokenizer, ids, batch_size=27, **how)


# %% tags=["measured"]
def read(replies, numbers):
    """Print some replies in full, without empty lines."""
    for number in numbers:
        text = re.sub(r"\n\s*", "\n", replies[number].text)
        print(f"{number}  {QUESTIONS[number]}\n{'-' * 60}\n{text}\n")


greedy = ask(QUESTIONS, max_new_tokens=64)
read(greedy, (0, 1, 2, 9, 12, 16, 26))

# %% [markdown]
# Read them as pages that begin with your question. Some are a quiz, some a list of exercises, some a forum
# thread with several members, some somebody's profile. That they repeat themselves without end is partly the
# fault of greedy decoding ([Holtzman et al. 2019](https://arxiv.org/abs/1904.09751)), so further down you
# sample as well.

# %% [markdown]
# ## Count it by kind
#
# Reading is not counting. Here are five kinds and the rules that sort a continuation into one of them. A
# rule looks at the first sentence only, and the first rule that fits wins. They are crude on purpose: you
# can read them in half a minute and see where they go wrong.

# %%
KINDS = ["answers", "repeats the question", "asks another question", "changes voice", "other"]
LABEL = re.compile(r"\[?(user|question|answer|q|a)\b[^\n]{0,12}[]:]|[-*•]|[A-D1-9][.)]", re.I)
EMPTY = re.compile("what|when|where|which|does|should|there|have|give|tell|many")


# %%
def kind(question, text):
    """One of `KINDS`, told from the first sentence of a continuation."""
    first = next(iter(sentences(text)), "")
    own, asked = set(words(first)), set(words(question))
    if own and own <= asked:  # no word that the question did not have
        return "repeats the question"
    if first.rstrip().endswith("?"):
        return "asks another question"
    if LABEL.match(first):  # such as [User 0001], or the first item of a list
        return "changes voice"
    if re.match(r"(I|My|We)\b", first) and not re.search(r"\b(are you|your)\b", question):
        return "changes voice"  # somebody talks about themselves, unasked
    content = {w for w in asked if len(w) > 3 and not EMPTY.fullmatch(w)} | {"answer", "i"}
    return "answers" if content & own else "other"


# %% [markdown]
# "Answers" is generous: a statement that shares a word with the question, right or wrong, whatever comes
# after it. Here is the beginning of every continuation (↵ is a line break) beside its verdict.

# %% tags=["measured"]
verdicts = [kind(q, reply.text) for q, reply in zip(QUESTIONS, greedy, strict=True)]
show.table(
    [
        {"": n, "question": q, "kind": verdict, "the model goes on": r.text[:80].replace("\n", "↵")}
        for n, (q, verdict, r) in enumerate(zip(QUESTIONS, verdicts, greedy, strict=True))
    ]
)

# %% [markdown]
# Do you disagree? `print(greedy[16].text)` shows a continuation in full. Write your verdict below, run the
# cell, and all that follows counts with it.

# %%
disagree = {}  # for instance {15: "other", 26: "changes voice"}

# %% [markdown]
# The same questions once more, now **sampled**: each token is drawn from the model's probabilities (at
# temperature 0.7, a common setting; 48 tokens).

# %% tags=["measured"]
sampled = ask(QUESTIONS, max_new_tokens=48, temperature=0.7, seed=1)
read(sampled, (0, 1, 4, 16, 18, 23))

# %% tags=["measured"]
runs = {
    "greedy": [disagree.get(n, verdict) for n, verdict in enumerate(verdicts)],
    "sampled": [kind(q, reply.text) for q, reply in zip(QUESTIONS, sampled, strict=True)],
}
counts = {name: [kinds.count(k) for k in KINDS] for name, kinds in runs.items()}
for name, found in counts.items():
    print(f"{name:<8}", ", ".join(f"{k}: {c}" for k, c in zip(KINDS, found, strict=True)))

# %% tags=["measured"]
shares = {name: [100 * c / len(QUESTIONS) for c in found] for name, found in counts.items()}
intervals = {
    name: [[100 * limit for limit in wilson(c, len(QUESTIONS))] for c in found]
    for name, found in counts.items()
}
axis = "% of the questions (lines: 95 % Wilson intervals)"
alt = (
    "Bars: how often the base model answers, repeats, asks, changes voice, or does something else."
)
show.bars(KINDS, shares, intervals=intervals, xlabel=axis, alt=alt)
plt.show()


# %% tags=["measured"]
def right_at_once(question, text):
    """Does the first sentence state the expected fact?"""
    first = next(iter(sentences(text)), "")
    return not first.rstrip().endswith("?") and mentions(first, FACTS[question])


facts = [right_at_once(q, reply.text) for q, reply in zip(FACTS, greedy, strict=False)]
print(f"the first sentence states the right fact: {sum(facts)} of {len(FACTS)} (greedy)")

# %% [markdown]
# The intervals are wide, for 27 questions are few. But one thing needs no larger sample: an answer is only
# one of the things that can follow a question. The model is not *refusing*. A question may be followed by
# the next one in a list of exercises, by a post in a forum, by somebody's story, and each of these is a good
# continuation. Which of them you wanted is not in the text.

# %% [markdown]
# ## Who speaks next?
#
# It is often said that a base model has "no idea who is talking", that the speaker is a coin flip every few
# tokens. That can be measured. Here are six short transcripts of six lines each, the user first. In all of
# them the user's lines open with a question word and the other's never do.

# %% tags=["long"] reason="data"
TRANSCRIPTS = [
    "What is the capital of France? / Paris is the capital of France. "
    "/ How many people live there? / About two million people live in the city. "
    "/ Is it older than London? / Both cities were founded in Roman times.",
    "How long should I boil an egg? / Seven minutes give a soft yolk. / What if I want it hard? "
    "/ Then leave it in for ten minutes. / Do I put it in cold water afterwards? "
    "/ Yes, cold water makes the egg easier to peel.",
    "Why do cats purr? / They purr when they feel safe. / Do they also purr when they are hurt? "
    "/ Some do, perhaps to calm themselves. / Can lions purr as well? "
    "/ No, lions roar and cannot purr.",
    "Can you recommend a tree for a small garden? / An apple tree stays small and gives fruit. "
    "/ When should I plant it? / Late autumn is the best time. / How much water does it need? "
    "/ One bucket a week in the first summer.",
    "Where can I see the northern lights? / The north of Norway is a good place. "
    "/ Which month is best? / The nights are long and clear in February. / Are they ever green? "
    "/ Green is their most common colour.",
    "Who invented the telephone? / Alexander Graham Bell got the patent in 1876. "
    "/ Did anyone else try? / Elisha Gray filed his papers on the same day. "
    "/ How did the first one work? / It turned sound into a changing current.",
]
TRANSCRIPTS = [transcript.split(" / ") for transcript in TRANSCRIPTS]

# %% [markdown]
# Each is given in three forms: as one **wall** of text, as **lines** without names, and as lines with
# **names**. `script` also notes at which characters a turn is over.


# %%
def script(lines, form):
    """The transcript as one text, and the character positions after each turn but the last."""
    text, ends = "", []
    for number, line in enumerate(lines):
        name = f"{('User', 'Assistant')[number % 2]}: " if form == "names" else ""
        text += name + line + ("" if form == "wall" else "\n")
        ends.append(len(text))
        text += " " if form == "wall" else ""
    return text.rstrip(), ends[:-1]


for form in ("wall", "lines", "names"):
    print(f"--- {form}\n{script(TRANSCRIPTS[0][:3], form)[0]}\n")

# %% [markdown]
# A model that reads from left to right computes, in one forward pass, its expectation after *every* token.
# So one pass per text is enough: pick out the positions where a turn is over.


# %%
START = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def follows(text, ends=None):
    """Probabilities of the next token after character positions: a tensor (positions, vocabulary).

    Without `ends`, after every token.
    """
    found = encode(tokenizer, text)
    token_at = {end: n + len(START) for n, (_, end) in enumerate(found.offsets)}
    rows = [token_at[end] for end in (token_at if ends is None else ends)]
    with torch.inference_mode():
        ids = torch.tensor([START + found.ids], device=model.device)
        hidden = model.base_model(input_ids=ids).last_hidden_state[0, rows]
        return model.get_output_embeddings()(hidden).float().softmax(-1).cpu()


# %%
def first_ids(texts):
    """The ids of the first tokens of some texts."""
    return sorted({encode(tokenizer, text).ids[0] for text in texts})


# %% [markdown]
# What counts as "the user speaks next"? With names it is exact: the probability of the token `User` against
# that of `Assistant`. Without names the model cannot say a name, so you look at the kind of line it expects:
# the total probability of all words that open a question.
#
# **Predict first.** After the user's question the truth is 0, after the answer it is 1. Where do the three
# forms lie? Which of them is near a coin flip?

# %%
OPENERS = ["What", "Why", "Who", "Where", "When", "Which", "How", "Is", "Are", "Was", "Were"]
OPENERS += ["Do", "Does", "Did", "Can", "Could", "Should", "Would", "Will"]
FIRST = {
    "wall": first_ids(f" {word}" for word in OPENERS),
    "lines": first_ids(OPENERS),
    "user": first_ids(["User"]),
    "assistant": first_ids(["Assistant"]),
}


# %%
def user_next(lines, form):
    """The probability that the user speaks next, after each turn but the last."""
    p = follows(*script(lines, form))
    if form != "names":
        return p[:, FIRST[form]].sum(-1).tolist()
    user, assistant = (p[:, FIRST[name]].sum(-1) for name in ("user", "assistant"))
    return (user / (user + assistant)).tolist()


# %% tags=["measured"]
next_user = {form: [user_next(t, form) for t in TRANSCRIPTS] for form in ("wall", "lines", "names")}
truth = [0, 1, 0, 1, 0]
fig, ax = show.figure(7, 3.4, alt="P(user next): wall flat and low, lines weak, names a zigzag.")
ax.plot(range(1, 6), truth, "kD", markersize=9, fillstyle="none", label="truth")
for (form, found), style in zip(next_user.items(), ("s:", "^--", "o-"), strict=True):
    (line,) = ax.plot(range(1, 6), [mean(p) for p in zip(*found, strict=True)], style, label=form)
    for p in found:
        ax.plot(range(1, 6), p, style[0], color=line.get_color(), alpha=0.25, markersize=4)
ax.axhline(0.5, color=show.PALETTE["masked"], linewidth=1)
ax.text(5.15, 0.52, "coin", va="bottom", ha="center")
ax.set_xticks(range(1, 6), ["1\nquestion", "2\nanswer", "3\nquestion", "4\nanswer", "5\nquestion"])
ax.set(xlabel="after turn", ylabel="P(user next)")
ax.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
plt.show()

# %% [markdown]
# Large marks are means, small ones the six transcripts. Only with names does the model follow the truth, and
# that from the second turn on, once it has seen both names. The same in numbers from there on. **Bits** are how surprised the model is by the kind of
# line that really comes: −log₂ of its probability. A coin is 1 bit, knowing is 0, and more than 1 is worse
# than not knowing: sure of the wrong thing.

# %% tags=["measured"]
rows = []
for form, found in next_user.items():
    of_truth = [p[n] if truth[n] else 1 - p[n] for p in found for n in range(1, 5)]
    row = {"form": form}
    row["P(user) after an answer"] = round(mean(p[n] for p in found for n in (1, 3)), 2)
    row["P(user) after a question"] = round(mean(p[n] for p in found for n in (2, 4)), 2)
    row["bits"] = round(mean(-math.log2(p) for p in of_truth), 2)
    rows.append(row)
bits = {row["form"]: row["bits"] for row in rows}
show.table(rows, caption="P(the user speaks next) after turns 2 to 5")

# %% [markdown]
# So, is it a coin flip? Not quite, and the difference is worth knowing.
#
# - In the **wall** the two columns hardly differ: the model does not tell the boundaries apart. But it does
#   not toss a coin either. Whoever was speaking, it expects a statement, and when the user's question comes
#   it is surprised: more bits than a coin.
# - **Lines** help a little: the columns part, and the bits come down to about a coin's. Here the saying fits.
# - **Names** in plain text, no special token anywhere, and the doubt is gone. A base model is very good at
#   continuing a script.
#
# (A user's line *can* be a statement, so without names this is a measure of the kind of line, and P(user) is
# a little too low. With names it is exact.)
#
# What it lacks is not the ability to tell speakers apart. It lacks *the script*, and a side. Look at the
# probabilities before they were normalised:

# %% tags=["measured"]
p = torch.stack([follows(*script(t, "names")) for t in TRANSCRIPTS]).mean(0)
rows = []
for turn in range(5):
    user, assistant = (p[turn, FIRST[name]].sum().item() for name in ("user", "assistant"))
    named = {"P(User)": user, "P(Assistant)": assistant, "P(anything else)": 1 - user - assistant}
    rows.append({"after turn": turn + 1} | {key: f"{value:.3f}" for key, value in named.items()})
writes_user = (p[1, FIRST["user"]].sum().item() + p[3, FIRST["user"]].sum().item()) / 2
show.table(rows, caption="With names, mean over six transcripts")

# %% [markdown]
# The model writes *your* lines as readily as its own: after an answer, the next thing it would write is
# `User`. And after the first turn, when only one name has been seen, it expects to see that one again. It
# plays both parts, as the authors of scripts do. There is no "I" in it yet.
#
# Is it alternation that the model has picked up, or sense? The play on the train does not alternate.

# %% tags=["measured"]
play, ends = "", []
for speaker, line in zip(SPEAKERS, LINES, strict=True):
    play += f"{NAMES[speaker]}: {line}\n"
    ends.append(len(play))
p = follows(play.rstrip(), ends[:-1])
nora, theo = (p[:, first_ids([name])].sum(-1) for name in NAMES.values())

# %% tags=["measured"]
guesses = "".join("N" if n > t else "T" for n, t in zip(nora, theo, strict=True))
other = "".join("T" if s == "N" else "N" for s in SPEAKERS[:-1])
truly = SPEAKERS[1:]
print(f"author            {truly}\nmodel             {guesses}\nthe other speaks  {other}\n")
pairs = {
    "the model is right": (guesses, truly),
    "'the other speaks' is right": (other, truly),
    "the model says the other": (guesses, other),
}
for name, (a, b) in pairs.items():
    print(f"{name:<30}{sum(x == y for x, y in zip(a, b, strict=True))} of {len(b)}")

# %% [markdown]
# Compare the first two counts. Names tell the model whose line it is *reading*. About the line to come,
# mostly it just names the other one (third count), which a rule without any model does as well. A chat
# template makes turns alternate, so that this is enough.

# %% [markdown]
# ### Every few tokens?
#
# The other half of the saying: does the doubt come every few tokens? At each token of a transcript in lines,
# how probable is a line break, that is, the end of the turn?

# %% tags=["measured"]
BREAKS = [ids[0] for n in range(1, 5) if len(ids := encode(tokenizer, "\n" * n).ids) == 1]
text, _ = script(TRANSCRIPTS[1][:4], "lines")
over = follows(text)[:, BREAKS].sum(-1).tolist()
tokens = [text[a:b] for a, b in encode(tokenizer, text).offsets]
kept = [n for n, token in enumerate(tokens) if token.strip()]
fig, ax = show.figure(
    9, 2.6, alt="P(line break) per token: high at sentence ends, near 0 elsewhere."
)
last = [tokens[n + 1 : n + 2] in (["\n"], []) for n in kept]
colours = [show.PALETTE["tuned" if end else "base"] for end in last]
ax.bar(range(len(kept)), [over[n] for n in kept], color=colours, edgecolor="black", linewidth=0.5)
ax.set_xticks(range(len(kept)), [tokens[n].strip() for n in kept], rotation=90)
ax.set_ylabel("P(line break next)")
plt.show()

# %% tags=["measured"]
at_end, inside = [], []
for lines in TRANSCRIPTS:
    text, _ = script(lines, "lines")
    tokens = [text[a:b] for a, b in encode(tokenizer, text).offsets]
    for n, p in enumerate(follows(text)[:, BREAKS].sum(-1).tolist()):
        if tokens[n].strip():
            (at_end if tokens[n + 1 : n + 2] in (["\n"], []) else inside).append(p)
print(f"P(line break): mean {mean(at_end):.2f} at the {len(at_end)} ends of turns,")
print(f"               mean {mean(inside):.3f} at the {len(inside)} other tokens")

# %% [markdown]
# No: inside a sentence the question hardly arises (pale bars). It arises at the end of the sentence (dark
# bars), and there it has two parts: is this turn over, and who is next? In lines of one sentence the first
# part is easy. A real reply has many sentences, which brings up the third thing.

# %% [markdown]
# ## Nothing ends the reply
#
# **Predict first.** How many of the 27 greedy replies did the model end by itself within 64 tokens? How many
# of the sampled ones?

# %% tags=["measured"]
for name, replies in {"greedy": greedy, "sampled": sampled}.items():
    stopped = sum(reply.stopped for reply in replies)
    low, high = wilson(stopped, len(replies))
    print(f"{name:<8} {stopped} of {len(replies)} stopped (95 %: {low:.0%} to {high:.0%})")

# %% [markdown]
# Counts out of 27 are coarse, so look at the probabilities. Two tokens could end a
# reply: the tokenizer's end of text, and the end of turn that this model's *instruct* siblings use. Where
# would they be expected most? After a sentence. So: after every sentence of the model's own replies, and
# after the last sentence of 24 finished answers, good ones, from this course's own conversations.

# %% tags=["measured"]
FAMILY = family_for(BASE, tokenizer)
END = {"end of text": tokenizer.eos_token, "end of turn": FAMILIES[FAMILY].stop}
END = {name: tokenizer.convert_tokens_to_ids(token) for name, token in END.items()}
print({name: tokenizer.convert_ids_to_tokens(number) for name, number in END.items()})
after = {"its own sentences": [], "finished answers": []}
for question, reply in zip(QUESTIONS, greedy, strict=True):
    text = question + tokenizer.decode(reply.ids)
    possible = {end for _, end in encode(tokenizer, text).offsets}
    found = [m.end() for m in re.finditer(r"[.!?](?=\s)", text) if m.end() > len(question)]
    if ends := [end for end in found if end in possible]:
        after["its own sentences"].append(follows(text, ends))

# %% tags=["measured"]
single = [c for c in load_conversations("../data/conversations.jsonl") if len(c) == 2]
short = [c for c in single if len(c[0].content) + len(c[1].content) < 300][:24]
for chat in short:
    text = f"{chat[0].content}\n\n{chat[1].content}"
    after["finished answers"].append(follows(text, [len(text)]))
print(f"{len(short)} answers, for instance:\n\n{short[0][0].content}\n\n{short[0][1].content}")

# %% [markdown]
# For comparison, eight small *documents* that are over: files, a letter, a tale.

# %% tags=["long"] reason="data"
DOCUMENTS = {
    "JSON file": '{\n  "name": "course",\n  "version": "1.0"\n}\n',
    "C file": '#include <stdio.h>\n\nint main() {\n    printf("Hello\\n");\n    return 0;\n}\n',
    "JavaScript file": "function double(x) {\n  return 2 * x;\n}\n\nmodule.exports = double;\n",
    "SQL file": "CREATE TABLE cats (\n    id INTEGER PRIMARY KEY,\n    name TEXT\n);\n",
    "shell script": "#!/bin/bash\nset -e\nmake clean\nmake all\n",
    "web page": "<html>\n<body>\n<p>Water boils at 100 degrees.</p>\n</body>\n</html>\n",
    "letter": (
        "Dear Anna,\n\nThank you for your letter. I will visit you on Sunday.\n\n"
        "Yours sincerely,\nTom"
    ),
    "fairy tale": (
        "Once upon a time a little fox found a red ball. He played with it all day. "
        "In the evening he went home and fell asleep.\n\nThe End."
    ),
}

# %% [markdown]
# **Predict first.** Has this model learned to stop anywhere at all?

# %% tags=["measured"]
after["finished documents"] = [follows(text, [len(text)]) for text in DOCUMENTS.values()]
p_end = {
    (place, name): torch.cat(p)[:, number].tolist()
    for place, p in after.items()
    for name, number in END.items()
}
rows = []
for (place, name), p in p_end.items():
    row = {"after": place, "token": name, "places": len(p), "median P": f"{median(p):.1e}"}
    rows.append(row | {"largest P": f"{max(p):.1e}", "P above 1/2": sum(x > 0.5 for x in p)})
show.table(rows)

# %% tags=["measured"]
fig, ax = show.figure(7.5, 3, alt="P(end) per place on a log axis; high only after documents.")
for row, ((_, name), p) in enumerate(p_end.items()):
    colour = show.PALETTE["tuned" if name == "end of text" else "special"]
    ax.plot(p, [row] * len(p), "o" if name == "end of text" else "x", color=colour, alpha=0.6)
labels = [f"{place}: {name}" for place, name in p_end]
ax.axvline(1 / model.config.vocab_size, color=show.PALETTE["masked"], linestyle="--")
ax.text(1 / model.config.vocab_size, -0.75, "one in the vocabulary", ha="center")
ax.set(xscale="log", xlabel="probability that the next token ends it", yticks=range(len(labels)))
ax.set_yticks(range(len(labels)), labels)
ax.invert_yaxis()
plt.show()

# %% tags=["measured"]
for name, p in zip(DOCUMENTS, p_end["finished documents", "end of text"], strict=True):
    print(f"{name:<16} P(end of text) = {p:.3f}")
per_sentence = mean(p_end["its own sentences", "end of text"])
print(f"\nchance that one of ten sentences ends its own reply: {1 - (1 - per_sentence) ** 10:.1%}")

# %% [markdown]
# This picture is the whole reason for the course.
#
# - **The model can stop.** After some finished files it is nearly certain of the end of text. It was graded
#   there: pretraining separates documents by an end-of-text token (for GPT-3:
#   [Brown et al. 2020](https://arxiv.org/abs/2005.14165), appendix B), so the model learned what the end of a
#   document looks like.
# - **It does not stop after an answer.** A finished answer is not a finished document. On the page that it
#   stood on, another post came next, another exercise, a footer. Pretraining never graded an end there.
# - **The end of turn is not merely improbable.** It lies many orders of magnitude below the dashed line,
#   where a model would put it that knew nothing at all. The simplest explanation is that in pretraining this
#   token never came next, and that the model learned just that: Gemma's documentation lists it among the
#   [tokens of instruction tuning](https://ai.google.dev/gemma/docs/core/prompt-structure).
#
# What does the model expect instead, after those 24 finished answers?

# %% tags=["measured"]
expected = torch.cat(after["finished answers"]).mean(0)
values, numbers = expected.topk(8)
names = [repr(tokenizer.decode([number])) for number in numbers.tolist()]
show.bars(
    names,
    [100 * value for value in values.tolist()],
    xlabel="% (mean over 24 finished answers)",
    alt="The eight most probable tokens after a finished answer; line breaks lead.",
)
plt.show()
print(f"line break: {expected[BREAKS].sum():.0%}, end of text: {expected[END['end of text']]:.2%}")

# %% [markdown]
# A new line, or one more sentence. The answer is over for you, and the text is not over for the model.
# (`<start_of_image>`, if it is among them, is another special token. This base does expect it in running
# text: not every special token of a base is as unlikely as its end of turn.)

# %% [markdown]
# ## Does prompting fix it?
#
# "Why not just instruct the base better?" It is a fair question. Three prompts for the same 27 questions:
# the bare question, an instruction, and three examples to imitate (a **few-shot** prompt).

# %%
INSTRUCTION = "You are a helpful assistant. Answer the question in one sentence, then stop.\n\n"
SHOTS = """Q: What do bees make?
A: Bees make honey.

Q: How do I clean a window?
A: Wash it with soapy water and dry it with a soft cloth.

Q: Name a river in Egypt.
A: The Nile.

"""
PROMPTS = {"bare": "{}", "instruction": INSTRUCTION + "{}\n\n", "few-shot": SHOTS + "Q: {}\nA:"}

# %% [markdown]
# **Predict first.** Which prompt gives most answers? Which of them makes the model stop?

# %% tags=["measured"]
prompted = {"bare": greedy}
for name in ("instruction", "few-shot"):
    prompted[name] = ask([PROMPTS[name].format(q) for q in QUESTIONS], max_new_tokens=48)
for name in ("instruction", "few-shot"):
    print(f"=== {name}\n")
    read(prompted[name], (1, 8, 12, 26))

# %% tags=["measured"]
measures = {
    "makes a statement": lambda q, r: kind(q, r.text) in ("answers", "other"),
    "right fact at once (of 12)": lambda q, r: right_at_once(q, r.text) if q in FACTS else None,
    "writes a question": lambda q, r: "?" in r.text,
    "stops": lambda q, r: r.stopped,
}
found, shares, intervals = {}, {}, {}
for name, replies in prompted.items():
    pairs = list(zip(QUESTIONS, replies, strict=True))
    found[name] = [[v for q, r in pairs if (v := of(q, r)) is not None] for of in measures.values()]
    shares[name] = [100 * mean(values) for values in found[name]]
    intervals[name] = [[100 * x for x in wilson(sum(v), len(v))] for v in found[name]]

# %% tags=["measured"]
alt = "Three prompts: with examples the model makes statements; with none of them does it stop."
show.bars(list(measures), shares, intervals=intervals, xlabel="% of the replies", alt=alt)
plt.show()

# %% tags=["measured"]
for name in prompted:
    numbers = ", ".join(f"{m}: {s:.0f} %" for m, s in zip(measures, shares[name], strict=True))
    print(f"{name:<12}{numbers}")
turned = sum("\nQ:" in reply.text for reply in prompted["few-shot"])
print(f"\nfew-shot replies that open the user's next turn with 'Q:': {turned} of {len(QUESTIONS)}")
print("tokens in front of every question:", len(encode(tokenizer, SHOTS).ids))

# %% [markdown]
# The honest account, with the numbers above:
#
# - The **instruction** does not help this model: fewer statements, more questions. One reading is that the text
#   now looks like a worksheet, and worksheets go on with more questions.
# - The **examples** do help, a lot. Far more replies make a statement, and more facts are right: some of the
#   knowledge was there, and the script brings it out. One study finds that large base models with a few
#   well-written examples match tuned ones ([Lin et al. 2023](https://arxiv.org/abs/2312.01552)), a later one
#   that they stay behind ([Zhao et al. 2024](https://arxiv.org/abs/2405.19874)).
# - **No prompt makes it stop.** With examples it writes the answer, and then your next question, and answers
#   that too.
#
# The usual remedy is to cut at the string that opens the next turn:

# %% tags=["measured"]
for number in (1, 6, 7, 12, 26):
    text = prompted["few-shot"][number].text
    print(f"{QUESTIONS[number]:<38} {text.split(chr(10) + 'Q:')[0].strip()}")

# %% [markdown]
# That is a hand-made end of turn, and a working one for single short answers. Its limits are the subject of
# the lectures that follow: an answer that itself contains a line with `Q:` is cut in two; the examples are
# paid for in front of every question; they leak (who is it, in the last line, and what stood in the first
# example?); and the model is on no side. Supervised fine-tuning (SFT) puts the script into the weights, and
# grades its end.

# %% [markdown]
# > ## Common bug: the base checkpoint, loaded by mistake
# >
# > `gemma-3-270m` instead of `gemma-3-270m-it`; `Qwen2.5-1.5B` instead of `Qwen2.5-1.5B-Instruct`. One
# > suffix is missing, nothing raises an error, and the replies never end
# > ([unsloth #3721](https://github.com/unslothai/unsloth/issues/3721) reports it of the second).
# >
# > Here is the bug: a base in a perfectly correct chat template.

# %% tags=["measured"]
chat = conversation(("user", "What is the boiling point of water?"))
prompt = render(chat, FAMILY, add_generation_prompt=True).text
prompt = prompt.removeprefix(tokenizer.bos_token or "")
(reply,) = generate(model, tokenizer, [START + encode(tokenizer, prompt).ids], max_new_tokens=40)
print(prompt + reply.text)

# %% [markdown]
# > And here are the three lines that show it. The second is the one to trust: some base checkpoints ship with
# > a chat template all the same, and one that names a chat token as their end
# > ([Qwen3 #927](https://github.com/QwenLM/Qwen3/issues/927)).

# %% tags=["measured"]
answered = prompt + "Water boils at 100 degrees Celsius at sea level."
p_eot = follows(answered, [len(answered)])[0, END["end of turn"]].item()
print("has a chat template:                    ", tokenizer.chat_template is not None)
print("P(end of turn) after a finished answer: ", f"{p_eot:.1e}")
print("stopped by itself:                      ", reply.stopped)

# %% [markdown]
# > Keep these three lines. They work for any checkpoint that you are about to call a chat model.

# %% [markdown]
# ## What must be taught
#
# Three things were missing, and each has a number. Lecture 09 asks for all three again, after fine-tuning.

# %% tags=["measured"]
missing = [
    ("turns", "surprise at whose line is next, no names (coin: 1)", f"{bits['lines']} bits"),
    ("roles", "P(it writes the user's name after an answer)", f"{writes_user:.2f}"),
    ("roles", "bare questions that get a statement", f"{shares['bare'][0]:.0f} %"),
    ("stopping", "bare questions whose reply it ends", f"{shares['bare'][3]:.0f} %"),
    ("stopping", "P(end of turn) after a finished answer", f"{p_eot:.0e}"),
]
show.table([{"to teach": a, "measured here": b, "this base": c} for a, b, c in missing])

# %% [markdown]
# Note what is *not* on the list: capitals, grammar, what a dialogue is. What it knows of these it knows
# already, as the few-shot prompt showed. What you will teach is a format, a side, and an end.

# %% [markdown]
# ## Questions to try
#
# There are no graded exercises here. Change a cell, predict, run.
#
# 1. Put your own five questions into `OPEN`. Can you write a question, without any instruction, that the
#    base nearly always answers? What does its form have in common with the texts that it learned from?
# 2. Give `ask` the questions with `"\n\n"` or `"\nA:"` appended. Which kinds in the bar chart move, and why?
# 3. Set `temperature=1.0`. Do more replies stop? Compare with the chance per sentence that you computed.
# 4. In `script`, replace `User` and `Assistant` by `A` and `B`, by `Nora` and `Theo`, by two names that you
#    made up. From which turn on is the model sure?
# 5. Add a document to `DOCUMENTS` that ends with a chat: "... Thanks, that was all! / You're welcome. Bye!"
#    Does a farewell raise the probability of the end?
# 6. How many examples does the few-shot prompt need? Delete them one by one and plot the shares.
#
# ## Take-aways
#
# 1. A base model continues a question with whatever follows questions in texts, and an answer is only one of
#    those things. Counted by kind, with intervals, that is a fact about texts and no defect.
# 2. "It has no idea who is talking" is half true. Without names it cannot tell whose turn it is; with names
#    it is nearly certain, and writes both parts.
# 3. It has learned to end documents and never an answer. Prompting brings the answers out and does not bring
#    the end: roles, turns and stopping have to be taught.
#
# **Next:** [lecture 2, conversation to tokens](02_conversation_to_tokens.ipynb)
#
# ## Quiz
#
# **1.** A base model puts a probability of 10⁻¹⁶ on its tokenizer's end-of-turn token, far less than one in the
# size of its vocabulary. Why not about one in the vocabulary, if the token never occurred in its training?
#
# <details><summary>Answer</summary>
#
# Cross-entropy does not only raise the token that came; through the softmax it lowers all others, at every
# position. A token that never comes is lowered at every position of the whole training. "Never seen" is
# itself well learned, and fine-tuning has to undo it at the ends of turns.
#
# </details>
#
# **2.** A colleague stops the few-shot prompt at `"\nQ:"`, gets clean one-line answers and concludes that
# fine-tuning is unnecessary. Name two measurements from this lecture that you would ask for.
#
# <details><summary>Answer</summary>
#
# How many tokens the examples cost in front of every question, and how often the cut-off answer is right and
# free of the examples' content (the model said it was a bee). Better still, ask for several turns: the cut
# depends on the model opening the *user's* turn, which is the very thing that a chat model must not do.
#
# </details>
