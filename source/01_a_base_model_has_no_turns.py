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
# A base model continues text. You will put questions to a small one whose whole web you can read, sort what
# it writes, and measure three things that it does not have: turns, roles, and an end. Beside each number
# stands the same of a real base model, from a recorded run.
#
# After this you can **sort** what a base model does with a question and count it with an interval,
# **read off** its probabilities who it expects to speak next and whether it expects to stop, and
# **tell** from three lines of output that somebody loaded a base checkpoint by mistake.
#
# About 40 minutes, CPU (a GPU is used if there is one). All cells together take under a minute on two
# cores.

# %%
import inspect
import json
import math
import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from statistics import mean, median

import matplotlib.pyplot as plt
import torch

# %%
from course_utils import show, turns
from course_utils.checkpoints import family_for, load_base, pick_base
from course_utils.comparison import mentions, sentences, wilson
from course_utils.conversation import conversation
from course_utils.miniweb import TELLINGS, facts, pages
from course_utils.miniweb.facts import select
from course_utils.miniweb.probes import CONTINUATIONS, completes, continuation, states
from course_utils.replies import generate, prompt_ids
from course_utils.templates import render
from course_utils.tokenizers import encode, special_tokens
from course_utils.turns import expected_after, follows, kind, speakers_next, user_next

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
# where a speech is over. This lecture is about models that have seen a great many texts and were never
# *required* to use such marks.

# %% [markdown]
# ## The web it comes from
#
# A base model is what its texts made it. Nobody has read all the texts of a real one. So the course brings its
# own base, `course-base`, and its own web, the **mini-web**: pages written by a program out of tables of facts
# and banks of phrases. Here are four of them, and how often each kind comes.

# %%
examples = {}
for sort, page in islice(pages(seed=5), 1000):
    if 80 < len(page) < 260:
        examples.setdefault(sort, page)
for sort in ("encyclopedia", "question_page", "questions_and_answers", "ticker"):
    print(f"=== {sort}\n\n{examples[sort]}\n")

# %%
web = list(islice(pages(seed=1_000_001), 5000))
sorts = Counter(sort for sort, _ in web).most_common()
show.bars(
    [sort.replace("_", " ") for sort, _ in sorts],
    [100 * count / len(web) for _, count in sorts],
    xlabel="% of 5,000 pages",
    alt="Kinds of pages: encyclopedia and question pages are the most frequent of sixteen.",
)
plt.show()

# %% [markdown]
# **Predict first.** If a page begins with a question, what stands in its second line? In what share of the
# pages is it the answer?


# %%
def asks(line):
    """Is this line a question of the mini-web, with no bullet or label before it?"""
    question = continuation("", line) == "asks more questions"
    return question and line[0].isalpha() and not re.match("Q:|Question:", line)


begun = [(first, rest) for _, page in web for first, _, rest in [page.partition("\n")]]
begun = [(first, rest) for first, rest in begun if asks(first)]
on_the_web = Counter(continuation(question, rest) for question, rest in begun)
print(f"{len(begun)} pages begin with a question. After it:")
for name in CONTINUATIONS:
    print(f"{on_the_web[name] / len(begun):6.0%}  {name}")

# %% [markdown]
# Posts, as in a forum; more questions, as in a list of exercises; a line to write on, as in a worksheet; and,
# among other things, an answer. By these five kinds you will count what the model does. The rules look at the
# first line only:

# %%
print(inspect.getsource(continuation))

# %% [markdown]
# The facts are real ones (capitals, plurals, boiling points, who wrote what). Later lectures need that each is
# told in one of three ways: in many wordings, in one sentence only, or not at all.

# %%
for telling in TELLINGS:
    print(f"{telling:<12} {len(select(facts(), telling=telling)):>5} facts")
capitals = [fact for fact in facts() if fact.relation.name == "capital"]
many, one = (select(capitals, telling=telling)[0] for telling in ("paraphrased", "fixed"))
print(f"\n{many.subject} is told in {len(many.wordings)} wordings, among them:")
print(*(f"- {many.fill(wording)}" for wording in many.wordings[:5]), sep="\n")
print(f"\n{one.subject} always in this one, and no page asks about it:")
print(f"- {one.fill(*one.wordings)}")

# %% [markdown]
# `course-base` was pretrained on such pages, one after the other, with three line breaks between them and
# nothing else: no token says "the page is over". Every token was graded, as always in pretraining.

# %%
made = json.loads(Path("../data/course-base/pretraining.json").read_text())
print(
    f"{made['parameters'] / 1e6:.1f} million parameters, {made['tokens'] / 1e6:.1f} million tokens,"
)
print(f"{made['seconds'] / 60:.0f} minutes on {made['hardware']['cores']} cores")
fig, ax = show.figure(7, 2.6, alt="The pretraining loss falls steeply, then slowly.")
ax.plot(made["loss"], color=show.PALETTE["tuned"], linewidth=1)
ax.axhline(made["held_out_loss"], color=show.PALETTE["masked"], linestyle="--")
ax.text(0, made["held_out_loss"], " pages that it never saw", va="top")
ax.set(xlabel="step", ylabel="loss (nats per token)", ylim=(0, None))
plt.show()

# %% [markdown]
# (`python -m tools.pretrain` makes the pages, and the model from them.) Be clear about what this is: synthetic,
# small, and ours. What follows a question here was *decided* by us, so the shares below say nothing about the
# real web. What they show is a mechanism, because you can look up both what the model read and what it does.
# Whether a real base behaves alike has to be measured on a real base. That is why a recorded one stands beside
# it in every section.

# %% [markdown]
# ## Ask a base model
#
# The base that your machine gets (lecture 00 shows how it is chosen):

# %% tags=["measured"]
BASE, why = pick_base()
print(why)
model, tokenizer = load_base(BASE)
parameters = sum(p.numel() for p in model.parameters())
print(f"{parameters / 1e6:.1f} million parameters, {model.dtype}, on {model.device}")

# %% [markdown]
# Two hundred questions about facts that the mini-web tells in many wordings. The model gets a question and
# nothing else: no role, no instruction, no template. It continues for 100 tokens at most: once **greedily**,
# always with its most probable token, and once **sampled**, each token drawn from its probabilities
# (temperature 1).

# %%
draw = random.Random(1)
ASKED = draw.sample(select(facts(), telling="paraphrased"), 200)
QUESTIONS = [fact.fill(draw.choice(fact.relation.questions)) for fact in ASKED]
print(*QUESTIONS[:5], sep="\n")

# %% [markdown]
# **Predict first.** How many of the 200 will it answer? What will it do with the others? And how many
# replies will it end by itself?


# %% tags=["measured"]
def ask(prompts, **how):
    """What the model writes after each prompt."""
    chats = [conversation(("user", prompt)) for prompt in prompts]
    ids = [prompt_ids(chat, tokenizer, template=False) for chat in chats]
    return generate(model, tokenizer, ids, batch_size=50, max_new_tokens=100, **how)


def read(replies, numbers):
    """Print the first lines of some replies, without empty lines."""
    for number in numbers:
        lines = [line for line in replies[number].text.splitlines() if line.strip()]
        print(f"{number}  {QUESTIONS[number]}\n{'-' * 60}")
        print(*(line[:100] for line in lines[:6]), "", sep="\n")


# %% tags=["measured"]
greedy = ask(QUESTIONS)
sampled = ask(QUESTIONS, temperature=1.0, seed=1)
read(greedy, range(6))

# %% [markdown]
# Read them as pages that begin with your question. That they repeat themselves is partly the fault of greedy
# decoding ([Holtzman et al. 2019](https://arxiv.org/abs/1904.09751)). Sampled:

# %% tags=["measured"]
read(sampled, range(4))

# %% [markdown]
# ## Count it by kind
#
# Reading is not counting. Here is the beginning of every tenth continuation (↵ is a line break) beside the
# verdict of the rules.

# %% tags=["measured"]
verdicts = [continuation(q, reply.text) for q, reply in zip(QUESTIONS, greedy, strict=True)]
rows = []
for n in range(0, 200, 10):
    row = {"": n, "question": QUESTIONS[n], "kind": verdicts[n]}
    rows.append(row | {"the model goes on": greedy[n].text.replace("\n", "↵")[:70]})
show.table(rows)


# %% [markdown]
# Do you disagree? `print(greedy[20].text)` shows a continuation in full. Write your verdict below, run the
# cell, and the next two figures count with it.

# %%
disagree = {}  # for instance {20: "other", 60: "posts"}


# %%
def compare(found, alt):
    """Bars with 95 % Wilson intervals from {series: {label: [True or False per reply]}}."""
    shares = {name: [100 * mean(v) for v in of.values()] for name, of in found.items()}
    intervals = {
        name: [[100 * x for x in wilson(sum(v), len(v))] for v in of.values()]
        for name, of in found.items()
    }
    labels = list(next(iter(found.values())))
    show.bars(labels, shares, intervals=intervals, xlabel="% (lines: 95 % intervals)", alt=alt)
    plt.show()
    for name, of in shares.items():
        print(f"{name:<15}", ", ".join(f"{w}: {x:.0f} %" for w, x in zip(labels, of, strict=True)))


# %% tags=["measured"]
found = {
    "the web itself": list(on_the_web.elements()),
    "sampled": [continuation(q, r.text) for q, r in zip(QUESTIONS, sampled, strict=True)],
    "greedy": [disagree.get(n, verdict) for n, verdict in enumerate(verdicts)],
}
kinds = {
    name: {kind: [one == kind for one in of] for kind in CONTINUATIONS}
    for name, of in found.items()
}
compare(
    kinds, "Five kinds of continuation on the web, sampled and greedy: posts lead in all three."
)
for name in ("greedy", "sampled"):
    frequent = [kind for kind in CONTINUATIONS if mean(kinds[name][kind]) >= 0.05]
    print(f"{name}: {len(frequent)} kinds of continuation with at least 5 % each")

# %% [markdown]
# An answer is only one of the things that can follow a question. Sampled, the model does what its web does, in
# similar shares; greedily it overdoes what is most frequent. It is not *refusing*, and it is not failing: each of
# these is a good continuation, and which of them you wanted is not in the text.
#
# Greedy decoding always takes the most probable token. Then why does it not always do the same thing? Sort by
# what the question is about:

# %% tags=["measured"]
topics = sorted({fact.relation.topic for fact in ASKED})
of_topic = {
    topic: [
        k for k, fact in zip(found["greedy"], ASKED, strict=True) if fact.relation.topic == topic
    ]
    for topic in topics
}
matrix = [[mean(k == kind for k in of_topic[t]) for kind in CONTINUATIONS] for t in topics]
alt = "Per topic of the question the share of each kind; most topics have one kind that leads."
fig, ax = show.heat(matrix, [f"{t} ({len(of_topic[t])})" for t in topics], CONTINUATIONS, alt)
ax.set_title("greedy: shares of the questions on a topic")
plt.show()

# %% [markdown]
# On the mini-web each topic has its usual kind of site (we built it so), and the model has noticed. It does not continue "a
# question". It continues the page on which such a question usually stands.
#
# ### Does it know the answer?
#
# Perhaps it does not answer because it does not know. Ask for the same facts as text: the model gets the start
# of a sentence, and the value must be its greedy continuation.

# %% tags=["measured"]
told = select(facts(), telling="paraphrased")
print(f"for instance: {told[0].fill(told[0].relation.prefix)!r} -> {told[0].value!r}")
known = {
    "completes the sentence": completes(model, tokenizer, told),
    "asked: first sentence right, greedy": [
        states(r.text, f) for r, f in zip(greedy, ASKED, strict=True)
    ],
    "the same, sampled": [states(r.text, f) for r, f in zip(sampled, ASKED, strict=True)],
}
compare({"": known}, "It completes nearly all facts as text; asked, it states a fraction of them.")

# %% [markdown]
# (A post can state the fact, too.) It knows. The knowledge comes out where a text would tell it, and less often where you ask for it, least when you
# sample. Keep this picture: the gap in it is what fine-tuning has to work with, and lecture 09 measures how much of
# it closes.
#
# ### And how many ended?

# %% tags=["measured"]
for name, replies in {"greedy": greedy, "sampled": sampled}.items():
    stopped = sum(reply.stopped for reply in replies)
    low, high = wilson(stopped, len(replies))
    print(f"{name:<8} {stopped} of {len(replies)} ended (95 %: {low:.1%} to {high:.1%})")

# %% [markdown]
# None: the model wrote until it was cut off. More on this below.

# %% [markdown]
# ## The same of a real base
#
# How much of this is the mini-web's doing? Here is `gemma-3-270m`, a real base of 268 million parameters, with
# 27 everyday questions. It is too large to run in every lecture, so this is a **record**: what the command below
# measured on the machine below. (The packaged weights were rounded to 4 bits and are unpacked there. Every
# number is about this checkpoint, not about the original or about larger models. To run the live cells on
# another base, set `COURSE_BASE`; to record one, put its name into the command.)

# %%
real = json.loads(Path("../data/recorded/base_gemma-3-270m.json").read_text(encoding="utf-8"))
print(real["command"])
print(", ".join(f"{what} {value}" for what, value in real["hardware"].items()))
asked = list(real["questions"])
replies = {name: [r["text"] for r in run["replies"]] for name, run in real["runs"].items()}

# %% [markdown]
# Real pages need other rules. The five kinds are now: **answers**, a statement that shares a word with the
# question; **repeats the question**; **asks another question**; **changes voice**, which is a list, a label or
# somebody's life story; and **other**. `print(inspect.getsource(kind))` shows how they are told.

# %%
rows = []
for n, (question, text) in enumerate(zip(asked, replies["greedy"], strict=True)):
    row = {"": n, "question": question, "kind": kind(question, text)}
    rows.append(row | {"goes on (greedy)": text.strip().replace("\n", "↵")[:70]})
show.table(rows)


# %%
of_real = {}
for name in ("greedy", "sampled"):
    found_here = [kind(*x) for x in zip(asked, replies[name], strict=True)]
    of_real[name] = {k: [one == k for one in found_here] for k in turns.KINDS}
compare(of_real, "The real base: all five kinds occur, and answers are about a quarter.")


# %%
def right_at_once(question, text):
    """Does the first sentence state the fact that the record expects?"""
    first = next(iter(sentences(text)), "")
    return not first.rstrip().endswith("?") and mentions(first, real["questions"][question])


checkable = [n for n, question in enumerate(asked) if real["questions"][question]]
right = sum(right_at_once(asked[n], replies["greedy"][n]) for n in checkable)
print(f"the first sentence states the right fact: {right} of {len(checkable)} (greedy)")
for name in ("greedy", "sampled"):
    ended = sum(reply["stopped"] for reply in real["runs"][name]["replies"])
    print(
        f"{name}: {ended} of {len(asked)} ended "
        f"within {real['runs'][name]['max_new_tokens']} tokens"
    )

# %% [markdown]
# The intervals are wide, for 27 questions are few (and the sampled ones were drawn at temperature 0.7). But the pattern
# is the mini-web's: several kinds, answers among them, and no end. Here nobody decided what follows a question.
# It is what follows on the real web: the next question of an exercise, a post in a forum, somebody's story.

# %% [markdown]
# ## Who speaks next?
#
# It is often said that a base model has "no idea who is talking", that the speaker is a coin flip every few
# tokens. That can be measured. Take transcripts of six lines, the user first, in which the user's lines open
# with a question word and the other's never do. Each is given in three forms: as one **wall** of text, as
# **lines** without names, and as lines with **names**.

# %%
for form in turns.FORMS:
    print(f"--- {form}\n{turns.script(real['transcripts'][0][:3], form)[0]}\n")

# %% [markdown]
# A model that reads from left to right computes its expectation after *every* token, in one forward pass. So
# one pass per transcript is enough: pick out the positions where a turn is over.

# %%
print(inspect.getsource(follows))

# %% [markdown]
# What counts as "the user speaks next"? With names it is exact: the probability of the first token of `User`
# against that of `Assistant`. Without names the model cannot say a name, so `speakers_next` adds up the
# probabilities of all words that open a question.
#
# **Predict first.** After the user's question the truth is 0, after the answer it is 1. Where do the three
# forms lie? Which of them is near a coin flip? First the recorded real base.

# %%
TRUTH = [0, 1, 0, 1, 0]


def draw_next(next_user, alt):
    fig, ax = show.figure(7, 3.2, alt=alt)
    xs = range(1, 6)
    ax.plot(xs, TRUTH, "kD", markersize=9, fillstyle="none", label="truth")
    for (form, found), style in zip(next_user.items(), ("s:", "^--", "o-"), strict=True):
        (line,) = ax.plot(xs, torch.tensor(found).mean(0), style, label=form)
        ax.plot(xs, torch.tensor(found).T, style[0], color=line.get_color(), alpha=0.2, ms=4)
    ax.axhline(0.5, color=show.PALETTE["masked"], linewidth=1)
    ax.set_xticks(xs, [f"{x}\n{'question' if x % 2 else 'answer'}" for x in xs])
    ax.set(xlabel="after turn", ylabel="P(user next)")
    ax.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))


# %%
next_real = {
    form: [user_next(pairs) for pairs in transcripts]
    for form, transcripts in real["speakers_next"].items()
}
draw_next(next_real, "The real base: the wall flat and low, lines weak, names a zigzag.")
plt.show()


# %%
def surprise(next_user):
    """Rows of a table: P(user next) after turns 2 to 5, and the surprise in bits."""
    for form, found in next_user.items():
        of_truth = [p[n] if TRUTH[n] else 1 - p[n] for p in found for n in range(1, 5)]
        yield {
            "form": form,
            "after an answer": round(mean(p[n] for p in found for n in (1, 3)), 2),
            "after a question": round(mean(p[n] for p in found for n in (2, 4)), 2),
            "bits": round(mean(-math.log2(p) for p in of_truth), 2),
        }


show.table(surprise(next_real), caption="gemma-3-270m: P(the user speaks next) after turns 2 to 5")

# %% [markdown]
# Large marks are means, small ones the transcripts. **Bits** are how surprised the model is by the kind of line
# that really comes: −log₂ of its probability. A coin is 1 bit, knowing is 0, and more than 1 is worse than not
# knowing: sure of the wrong thing. So, is it a coin flip?
#
# - In the **wall** the two columns hardly differ: the model does not tell the boundaries apart. But it does
#   not toss a coin either. Whoever was speaking, it expects a statement, and a question surprises it.
# - **Lines** help a little, and bring the bits down to about a coin's. Here the saying fits.
# - **Names** in plain text, no special token anywhere, and from the second turn on the doubt is gone. A base
#   model is very good at continuing a script.
#
# (A user's line *can* be a statement, so without names P(user) is a little too low. With names it is exact.)
# And *every few tokens*? The doubt would show in the probability of a line break, which ends the turn:

# %%
for place, p in real["break_next"].items():
    print(f"P(line break) {place}: mean {mean(p):.3f} ({len(p)} tokens)")

# %% [markdown]
# No: inside a sentence the question hardly arises.
#
# Now `course-base`, live. Its web has no chats between users and assistants, but it has quizzes in which `Q:`
# and `A:` take turns. So it gets twenty transcripts of three questions and answers about its own facts.

# %%
OPENERS = set(turns.OPENERS)
plain = [fact for fact in told if fact.question.split()[0] in OPENERS]
plain = [fact for fact in plain if fact.answer.split()[0] not in OPENERS]
draw = random.Random(4)
quizzes = [
    [line for fact in draw.sample(plain, 3) for line in (fact.question, fact.answer)]
    for _ in range(20)
]
print(turns.script(quizzes[0], "names", ("Q", "A"))[0])

# %% tags=["measured"]
pairs = {
    form: [speakers_next(model, tokenizer, quiz, form, ("Q", "A")) for quiz in quizzes]
    for form in turns.FORMS
}
next_here = {form: [user_next(p) for p in found] for form, found in pairs.items()}
draw_next(next_here, "course-base on quizzes: wall and lines off the truth, names a zigzag.")
plt.show()

# %% tags=["measured"]
show.table(surprise(next_here), caption=f"{BASE}: P(the asker speaks next) after turns 2 to 5")

# %% tags=["measured"]
foreign = [speakers_next(model, tokenizer, lines, "names") for lines in real["transcripts"]]
(row,) = surprise({"names": [user_next(p) for p in foreign]})
print(f"the real base's transcripts, User and Assistant: {row['bits']} bits")

# %% [markdown]
# As a wall it is far worse than a coin: sure of the wrong thing. Lines help it a little. With names it is certain.
# (It has never read `User:`. On the real base's transcripts, whose names those are, it is no better than a coin.)
#
# What both lack is not the ability to tell speakers apart. They lack *the script*, and a side. Look at the
# probabilities of the names before they were normalised:

# %% tags=["measured"]
rows = []
for turn in range(5):
    row = {"after turn": turn + 1}
    for who, found, (a, b) in (
        ("real base", real["speakers_next"]["names"], ("User", "Assistant")),
        (BASE, pairs["names"], ("Q", "A")),
    ):
        row[f"{who}: P({a})"] = f"{mean(p[turn][0] for p in found):.3f}"
        row[f"P({b})"] = f"{mean(p[turn][1] for p in found):.3f}"
    rows.append(row)
show.table(rows, caption="With names, means over the transcripts")

# %% [markdown]
# Both write *your* lines as readily as their own: after an answer, what they would most likely write next is the
# name of whoever asks. They play both parts, as the authors of scripts do. There is no "I" in it yet.

# %% [markdown]
# ## Nothing ends the reply
#
# No reply ended. Counts are coarse, so look at the probabilities. Two tokens could end a reply: the tokenizer's
# end of text, and the end of turn of the chat template that lecture 08 will train. They should be expected most
# where something is over. **Predict first:** after a sentence, a finished answer, a finished page, what
# probability does each get? By chance, one of 4,096 tokens would have 2·10⁻⁴.

# %% tags=["measured"]
FAMILY = family_for(BASE, tokenizer)
END = turns.end_tokens(tokenizer, FAMILY)
print({name: tokenizer.convert_ids_to_tokens(number) for name, number in END.items()})
unseen = [page for _, page in web[:100]]
answered = [f"{fact.question}\n{fact.answer}" for fact in ASKED[:100]]
places = {
    "its own sentences": [
        turns.sentence_ends(tokenizer, question, tokenizer.decode(reply.ids))
        for question, reply in zip(QUESTIONS, greedy, strict=True)
    ],
    "finished answers": [(text, [len(text)]) for text in answered],
    "finished pages": [(page, [len(page)]) for page in unseen],
}


# %%
def draw_ends(p_end, vocabulary, alt):
    fig, ax = show.figure(7.5, 2.8, alt=alt)
    rows = [(place, name, p) for place, of in p_end.items() for name, p in of.items()]
    for row, (_, name, p) in enumerate(rows):
        style = "o" if name == "end of text" else "x"
        colour = show.PALETTE["tuned" if name == "end of text" else "special"]
        ax.plot(p, [row] * len(p), style, color=colour, alpha=0.5)
    ax.axvline(1 / vocabulary, color=show.PALETTE["masked"], linestyle="--")
    ax.text(1 / vocabulary, -0.75, "one in the vocabulary", ha="center")
    ax.set(xscale="log", xlabel="probability that the next token ends it")
    ax.set_yticks(range(len(rows)), [f"{place}: {name}" for place, name, _ in rows])
    ax.invert_yaxis()


# %% tags=["measured"]
after = {place: expected_after(model, tokenizer, texts) for place, texts in places.items()}
p_end = {
    place: {name: p[:, number].tolist() for name, number in END.items()}
    for place, p in after.items()
}
draw_ends(p_end, model.config.vocab_size, "P(end) of course-base: tiny at every place.")
plt.show()

# %% tags=["measured"]
SPECIAL = [tokenizer.convert_tokens_to_ids(token) for token in special_tokens(tokenizer)]
print(f"P(any of {len(SPECIAL)} special tokens):")
for place, p in after.items():
    of_any = p[:, SPECIAL].sum(-1)
    print(f"{place:<18} median {of_any.median():.0e}, largest {of_any.max():.0e}")
drawn = [number for reply in sampled for number in reply.ids]
print(f"{sum(number in SPECIAL for number in drawn)} of {len(drawn):,} sampled tokens are special")

# %% [markdown]
# **Nothing can end it.** No special token comes near one in the vocabulary, at any place, and not because the model thinks
# that there is more to say. None of these tokens ever stood on a page. Cross-entropy raises the token that came
# and, through the softmax, lowers all others, at every position of the pretraining. A token that never comes is
# only ever lowered. (What sampling draws of them, it draws by accident: the last line counts it.)
#
# That leaves a trace in the weights. Each token has a row in the embedding matrix (here the same row serves
# for reading the token and for predicting it). The cosine of two rows is 1 if they point the same way. **Predict
# first:** how alike are five special tokens, five characters that no page holds, and five frequent tokens?

# %% tags=["measured"]
SEEN = [" the", " is", " of", ".", " capital"]
NEVER = ["#", "@", "£", "~", "&"]
texts = [*special_tokens(tokenizer)[1:6], *NEVER, *SEEN]
rows = torch.stack(
    [model.get_input_embeddings().weight[encode(tokenizer, t).ids[0]] for t in texts]
)
unit = torch.nn.functional.normalize(rows.detach().float(), dim=-1).cpu()
assert not any(character in page for _, page in web for character in NEVER)
alt = "Cosines of embedding rows: never-seen rows form one dark block, words are unlike each other."
fig, ax = show.heat(unit @ unit.T, texts, texts, alt)
plt.show()

# %% [markdown]
# The dark block is every row for which pretraining never had a use. All were pushed the same way for the same
# reason, and ended up as nearly one vector: being special makes no difference, having been seen does. So
# `<|im_start|>` and `<|im_end|>` are two names without two meanings. The markers of a chat template are in the
# vocabulary and not yet in the model. Fine-tuning has to train these rows; lecture 08 does.
#
# What does the model expect instead, after a finished page?

# %% tags=["measured"]
expected = after["finished pages"].mean(0)
values, numbers = expected.topk(6)
for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
    print(f"{value:6.1%}  {tokenizer.decode([number])!r}")
(further,) = ask([unseen[4]])
print("-" * 60, unseen[4], further.text, sep="\n")

# %% [markdown]
# Line breaks, and then the next page. The page is over, and the text is not.
#
# The real base was pretrained in the usual way, with an end-of-text token between documents (for GPT-3:
# [Brown et al. 2020](https://arxiv.org/abs/2005.14165), appendix B). So it had where to learn an end. **Predict
# first:** does it use it after an answer? The places: the sentences of its own replies, 24 finished answers from
# this course's conversations, and eight small documents that are over, such as files, a letter and a tale.

# %%
print("the two tokens:", real["ends"]["tokens"])
draw_ends(
    real["ends"]["p"],
    real["vocabulary"],
    "P(end) of the real base: high after some documents, low after answers, no end of turn at all.",
)
plt.show()

# %%
over = real["ends"]["p"]["finished documents"]["end of text"]
for name, p in zip(real["documents"], over, strict=True):
    print(f"{name:<16} P(end of text) = {p:.3f}")
ends = real["ends"]["p"]["finished answers"]
print(f"\nfinished answers: median P(end of text) = {median(ends['end of text']):.0e}")
print(f"                  median P(end of turn) = {median(ends['end of turn']):.0e}")
print(f"                  P(line break)         = {real['ends']['line_break_after_answers']:.2f}")

# %% [markdown]
# This picture is the whole reason for the course.
#
# - **A base can stop where its texts did.** After some finished files the real one is nearly certain of the end
#   of text. It was graded there.
# - **It does not stop after an answer.** A finished answer is not a finished document. On the page that it
#   stood on, another post came next, another exercise, a footer. Pretraining never graded an end there.
# - **The end of turn is not merely improbable.** In both models it lies orders of magnitude below the dashed
#   line, where a model would put it that knew nothing at all. Of `course-base` you know why: no page held it.
#   For the real base the same explanation is the simplest: Gemma's documentation lists its token among those of
#   [instruction tuning](https://ai.google.dev/gemma/docs/core/prompt-structure).

# %% [markdown]
# ## Does prompting fix it?
#
# "Why not just instruct the base better?" It is a fair question. Three prompts for the same 200 questions: the
# bare question, an instruction, and three examples to imitate (a **few-shot** prompt). The examples look like
# the mini-web's quizzes.

# %%
INSTRUCTION = real["runs"]["instruction"]["prompt"]
draw = random.Random(3)
shots = draw.sample([fact for fact in plain if fact not in ASKED], 3)
SHOTS = "".join(f"Q: {fact.question}\nA: {fact.answer}\n\n" for fact in shots)
PROMPTS = {"bare": "{}", "instruction": INSTRUCTION, "few-shot": SHOTS + "Q: {}\nA:"}
print(PROMPTS["few-shot"].format(QUESTIONS[0]))

# %% [markdown]
# **Predict first.** Which prompt gives most answers? Which of them makes the model stop?

# %% tags=["measured"]
prompted = {"bare": greedy}
for name in ("instruction", "few-shot"):
    prompted[name] = ask([PROMPTS[name].format(q) for q in QUESTIONS])
    print(f"=== {name}\n")
    read(prompted[name], (0, 1))


# %% tags=["measured"]
of_course = {}
for name, written in prompted.items():
    three = list(zip(QUESTIONS, ASKED, written, strict=True))
    of_course[name] = {
        "makes a statement": [continuation(q, r.text) in ("answers", "other") for q, _, r in three],
        "right fact at once": [states(r.text, fact) for _, fact, r in three],
        "writes a question": ["?" in r.text for r in written],
        "stops": [r.stopped for r in written],
    }
compare(of_course, "Three prompts: examples bring more facts out; no prompt makes it stop.")

# %% [markdown]
# And the recorded real base, with its 27 questions and the examples that stand here:

# %%
print(real["runs"]["few-shot"]["prompt"].format(asked[1]))
of_real = {}
for name, run in (("bare", "greedy"), ("instruction", "instruction"), ("few-shot", "few-shot")):
    both = list(zip(asked, replies[run], strict=True))
    of_real[name] = {
        "makes a statement": [kind(q, text) in ("answers", "other") for q, text in both],
        "right fact (of 12)": [right_at_once(*both[n]) for n in checkable],
        "writes a question": ["?" in text for _, text in both],
        "stops": [reply["stopped"] for reply in real["runs"][run]["replies"]],
    }
compare(of_real, "The real base: examples bring statements; no prompt makes it stop.")

# %% [markdown]
# The honest account:
#
# - The **instruction** hardly helps. The real base makes fewer statements and asks more questions; perhaps the
#   text now looks like a worksheet. `course-base` makes many more statements, but few of the additional ones are
#   right.
# - The **examples** help both. The knowledge was there, and the script brings it out. One study finds that large
#   base models with a few well-written examples match tuned ones
#   ([Lin et al. 2023](https://arxiv.org/abs/2312.01552)), a later one that they stay behind
#   ([Zhao et al. 2024](https://arxiv.org/abs/2405.19874)).
# - **No prompt makes them stop.** With examples they write the answer, and then your next question, and answer
#   that too.
#
# The usual remedy is to cut at the string that opens the next turn. The real base:

# %%
for number in (1, 6, 7, 12, 26):
    text = replies["few-shot"][number]
    print(f"{asked[number]:<45} {text.split(chr(10) + 'Q:')[0].strip()}")

# %% [markdown]
# That is a hand-made end of turn, and a working one for single short answers. Its limits: an answer that itself
# contains a line with `Q:` is cut in two; the examples are paid for in front of every question; they leak (who
# is it, in the last line, and what stood in the first example?); and the model is on no side. Supervised
# fine-tuning (SFT) puts the script into the weights, and grades its end.

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
start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
(reply,) = generate(model, tokenizer, [start + encode(tokenizer, prompt).ids], max_new_tokens=40)
print(prompt + reply.text)

# %% [markdown]
# > And here are the three lines that show it. The second is the one to trust: some base checkpoints ship with
# > a chat template all the same, and one that names a chat token as their end
# > ([Qwen3 #927](https://github.com/QwenLM/Qwen3/issues/927)).

# %% tags=["measured"]
text = prompt + "Water boils at 100 degrees Celsius at sea level."
p_eot = follows(model, tokenizer, text, [len(text)])[0, END["end of turn"]].item()
print("has a chat template:                    ", tokenizer.chat_template is not None)
print("P(end of turn) after a finished answer: ", f"{p_eot:.1e}")
print("stopped by itself:                      ", reply.stopped)

# %% [markdown]
# > Keep these three lines. They work for any checkpoint that you are about to call a chat model. The recorded
# > real base, in its own template:

# %%
mistake = real["in_a_template"]
print(mistake["prompt"] + mistake["reply"])
print("has a chat template:                    ", mistake["has_chat_template"])
print("P(end of turn) after a finished answer: ", f"{mistake['p_end_of_turn']:.1e}")
print("stopped by itself:                      ", mistake["stopped"])

# %% [markdown]
# ## What must be taught
#
# Three things were missing, and each has a number. Lecture 09 asks for them again, after fine-tuning.


# %% tags=["measured"]
def lacking(next_user, named, prompted, p_eot):
    statements, _, _, stops = prompted["bare"].values()
    bits = {row["form"]: row["bits"] for row in surprise(next_user)}
    return {
        "turns: surprise at whose line is next, no names (coin: 1)": f"{bits['lines']} bits",
        "roles: P(it writes the asker's name after an answer)": (
            f"{mean(p[turn][0] for p in named for turn in (1, 3)):.2f}"
        ),
        "roles: bare questions that get a statement": f"{mean(statements):.0%}",
        "stopping: bare questions whose reply it ends": f"{mean(stops):.0%}",
        "stopping: P(end of turn) after a finished answer": f"{p_eot:.0e}",
    }


# %% tags=["measured"]
here = lacking(next_here, pairs["names"], of_course, p_eot)
there = lacking(next_real, real["speakers_next"]["names"], of_real, mistake["p_end_of_turn"])
show.table([{"to teach": x, BASE: here[x], "real base (recorded)": there[x]} for x in here])

# %% [markdown]
# Note what is *not* on the list: capitals, grammar, what a quiz is. What it knows of these it knows already, as
# completing and the few-shot prompt showed. What you will teach is a format, a side, and an end.
#
# ## Take-aways
#
# 1. A base model continues a question with whatever follows such questions in its texts, and an answer is only
#    one of those things. That it does not answer does not mean that it does not know.
# 2. "It has no idea who is talking" is half true. Without names it can hardly tell whose turn it is; with names
#    that it has read it is nearly certain, and writes both parts.
# 3. It ends what its texts ended, and that was never an answer. Prompting brings the answers out and does not
#    bring the end: roles, turns and stopping have to be taught.
#
# **Exercises:** [exercises/01_a_base_model_has_no_turns.ipynb](../exercises/01_a_base_model_has_no_turns.ipynb)
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
# free of the examples' content (the real base said it was a bee). Better still, ask for several turns: the cut
# depends on the model opening the *user's* turn, which is the very thing that a chat model must not do.
#
# </details>
