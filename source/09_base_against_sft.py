# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 09 Base against SFT
#
# Lecture 8 left you with a folder. Is the model in it another model than the base? In what, by how much,
# and how sure can you be? You put the same prompts to both and count. At the end you test whether SFT taught
# the model anything about the world, or only let out what it knew.
#
# After this you can
# - **compare** two models fairly: same prompts, same ids, same stop tokens, and an interval on every number,
# - **test** with facts that were held out whether SFT adds knowledge,
# - **fool** a measure on purpose, and so know how far to trust it.
#
# 45 minutes (about 2 of them computing) · GPU or two CPU cores, the same code

# %% [markdown]
# ## Two models, one tokenizer
#
# The tuned model is the one that you saved in lecture 8. If it is not there, the next cell makes one with
# the course's command line, in under a minute on two cores.

# %% tags=["measured"]
import json
from pathlib import Path

from course_utils import load_conversations, sft, show

data = next(p for p in (Path("data"), Path("../data")) if p.is_dir())
runs = data.resolve().parent / "runs"
folder = next((f for f in (runs / "lecture-08", runs / "lecture-09") if f.is_dir()), None)
if folder is None:
    folder = runs / "lecture-09"
    assert sft.main(["--output", str(folder)]) == 0
run = json.loads((folder / "sft.json").read_text())
name = run["base"]
print(f"tuned: runs/{folder.name}, {len(run['steps'])} steps on {name}")

# %% [markdown]
# Both get the tokenizer of the tuned checkpoint. It is the base's, with a chat template added. So both
# models see the same ids, and both are stopped at the same tokens.

# %% tags=["measured"]
import torch

from course_utils.checkpoints import load_base, load_checkpoint
from course_utils.replies import generate, prompt_ids, stop_ids

base, _ = load_base(name)
tuned, tokenizer = load_checkpoint(folder)
models = {"base": base, "SFT": tuned}
stops = stop_ids(tokenizer)
end_of_turn = stops[0]
print("a reply ends at:", [tokenizer.decode([i]) for i in stops])

# %% [markdown]
# Unless your machine has a GPU or you chose otherwise, these are `course-base` and its tuned version: small
# enough to be measured in front of you, on facts that the course knows. Whether a larger model from the real
# web does the same is another question. So the same comparison was made once with `gemma-3-270m` (268 million
# parameters), and every reply was recorded:

# %%
recorded = json.loads((data / "recorded/comparison_gemma-3-270m.json").read_text("utf-8"))
print(recorded["base"], {k: recorded["hardware"][k] for k in ("device", "cores", "precision")})
print(len(recorded["replies"]), "prompts,", recorded["max_new_tokens"], "new tokens at most")

# %% [markdown]
# From here on every table and figure says whose it is: **live** is your pair of models, **recorded** is
# `gemma-3-270m` and its tuned version.
#
# ## One question
#
# *Explain self-attention to a beginner in 4 sentences.* It went to the recorded pair twice: as bare text, and
# in the chat template. No training conversation holds this question.
#
# **Predict first.** Four replies. Which of them will end by themselves? Which will have four sentences?

# %%
import textwrap

from course_utils.replies import Reply


def from_record(row, condition):
    """A recorded reply (without its token ids)."""
    return Reply(row[condition]["text"], [], row[condition]["stopped"], 0.0)


# %%
def read(replies, limit=300):
    """Print replies, each up to `limit` characters, and how they ended."""
    for who, reply in replies.items():
        text = reply.text if len(reply.text) <= limit else reply.text[:limit] + " ..."
        text = "\n".join(textwrap.fill(line, 96) for line in text.splitlines())
        print(f"--- {who} ({'stopped' if reply.stopped else 'cut off'})\n{text}\n")


# %%
row = next(r for r in recorded["replies"] if r["id"] == "explain-self-attention")
attention = {c: from_record(row, c) for c in list(row)[2:]}
read(attention)

# %% [markdown]
# Read the four replies with four questions, and let a function answer each, so that the next prompt is
# read in the same way.
#
# - **Structure**: how many sentences, and how much is said twice?
# - **Directness**: does it begin with a statement, or with a question, or with your words again?
# - **Role-following**: does it keep to one voice, and hand the turn back?
# - **Verbosity**: how many words?

# %%
from course_utils.comparison import holds_role_header, is_direct, repetition, sentences


def judge(replies, question):
    """A row per reply: what the four questions find in it."""
    for who, reply in replies.items():
        row = {"reply": who, "sentences": len(sentences(reply.text))}
        row["repeated"] = round(repetition(reply.text), 2)
        row["direct"] = is_direct(reply.text, question)
        row["one voice"] = not holds_role_header(reply.text)
        yield row | {"stops": reply.stopped, "words": len(reply.text.split())}


show.table(judge(attention, row["messages"][-1]["content"]), caption="Recorded: self-attention")

# %% [markdown]
# You see at once what changed. What no column says is whether the explanation is *true*. Read the last reply
# again with that question: a confident sentence is not yet a right one.
#
# Now one prompt live, to your own pair. `course-base` knows nothing but its mini-web, so it gets a question
# about a fact on those pages, one that SFT never asked about.

# %% tags=["measured"]
from course_utils.comparison import default_prompts

prompts = default_prompts(name)
question = prompts[0]
both = [prompt_ids(question, tokenizer, template=t) for t in (False, True)]
one = {}
for who, model in models.items():
    found = generate(model, tokenizer, both, max_new_tokens=90)
    one[f"{who}, no template"], one[f"{who}, template"] = found
print("Asked:", question[-1].content, "| expected:", *question.meta.get("expect", []), "\n")
read(one)

# %% tags=["measured"]
show.table(judge(one, question[-1].content), caption=f"Live: {name}")

# %% [markdown]
# > **What the measures look at.** Form, stopping, and facts that a string can check. None of them judges
# > quality. Keep that in mind for every number below.
#
# Form changed here as it did in the recorded pair. Now compare the last reply with what was expected: a reply
# that ends well can still be wrong. And one prompt is an anecdote. So now a sample.

# %% [markdown]
# ## Twenty questions
#
# `default_prompts` gives the held-out prompts for a base: 200 for `course-base`, in three kinds. Every tenth
# keeps the mix. What *held out* means here can be checked: no training conversation holds such a question.

# %% tags=["measured"]
from collections import Counter

sample = prompts[:: len(prompts) // 20]
print("all:   ", dict(Counter(p.meta["kind"] for p in prompts)))
print("sample:", dict(Counter(p.meta["kind"] for p in sample)))


def asked(chat):
    """The last two things that users say: a follow-up is a question only after another one."""
    return tuple(m.content for m in chat if m.role == "user")[-2:]


trained = {asked(c[:i]) for c in sft.default_conversations(name) for i in range(1, len(c) + 1)}
assert not trained & {asked(p) for p in prompts}

# %% [markdown]
# `compare` puts them to both models under both conditions, greedily: always the likeliest token.
#
# **Predict first.** How often will the *base* end its reply if it is given the template, whose end-of-turn
# token it could write just as well?

# %% tags=["measured"]
from course_utils.comparison import Condition, compare, measure_all, table_rows

replies = compare(base, tuned, tokenizer, sample, max_new_tokens=90)
show.table(
    table_rows(measure_all(sample, replies)),
    caption=f"Live, {name}: 20 prompts, at most 90 new tokens; in brackets 95 % intervals",
)

# %% [markdown]
# Compare the columns in pairs. The template alone does not help the base: it gets the very ids that the
# tuned model gets, and does not know what to do with them. The weights alone do something: without its
# template the tuned model is not the base any more. Both together is the chat model.
#
# ### Is it the decoding's fault?
#
# Look at *repetition*. Greedy decoding drives a small base into loops
# ([Holtzman et al. 2019](https://arxiv.org/abs/1904.09751)), so the comparison might be unfair to it. Draw
# the tokens at random instead, at temperature 1.
#
# **Predict first.** Without the loops, does the base stop?

# %% tags=["measured"]
rows = []
for who, template in (("base", False), ("SFT", True)):
    ids = [prompt_ids(p, tokenizer, template=template) for p in sample]
    drawn = generate(models[who], tokenizer, ids, max_new_tokens=90, temperature=1.0)
    for how, found in (("greedy", replies[Condition(who, template)]), ("sampled", drawn)):
        row = {"model": who, "decoding": how, "stop": sum(r.stopped for r in found)}
        row["open a turn"] = sum(holds_role_header(r.text) for r in found)
        row["repeated"] = round(sum(repetition(r.text) for r in found) / len(found), 2)
        rows.append(row)
show.table(rows, caption=f"Live, {name}: of 20 replies how many stop and open a turn")

# %% [markdown]
# The loops are greedy decoding's doing. That the base does not stop is not. From here on everything is
# greedy again, so that a second run gives the same replies.
#
# ## What the brackets say
#
# **Wilson interval**, for a share such as *stops*: all the true rates that would make a result such as this
# one not too surprising. It never has width zero, not even at 20 of 20, where the textbook's
# $p \pm 1.96\sqrt{p(1-p)/n}$ claims certainty ([Wilson 1927](https://doi.org/10.2307/2276774);
# [Brown, Cai and DasGupta 2001](https://doi.org/10.1214/ss/1009213286) compare it with others).
#
# **Bootstrap interval**, for a mean such as *words*: draw 20 prompts anew from your 20, with replacement,
# take the mean, repeat 2,000 times, and keep the middle 95 %. It shows how much the mean depends on which
# prompts happened to be in your sample ([Efron 1979](https://doi.org/10.1214/aos/1176344552)).
#
# **Predict first.** Two models are *equally* good: each gets a prompt right with probability one half. You
# test each on 20 prompts. How often do their scores differ by 15 points or more: in 1 of 100 tests, 1 of
# 10, or 4 of 10?

# %%
import random

generator = random.Random(0)


def score(n, rate=0.5):
    """The share of n prompts that a model with this true rate gets right."""
    return sum(generator.random() < rate for _ in range(n)) / n


for n in (20, 80, 320):
    apart = sum(abs(score(n) - score(n)) >= 0.15 - 1e-9 for _ in range(4000)) / 4000
    print(f"n = {n:>3}: equal models differ by 15 points or more in {apart:.0%} of tests")

# %% [markdown]
# At 20 prompts chance alone makes such a difference in about four tests of ten. That is why no number of this
# lecture stands alone. Here are forty tests of one model whose true rate is 60 %, each with its Wilson
# interval:

# %%
from course_utils.comparison import bootstrap, wilson

for n in (20, 80, 320):
    low, high = wilson(round(0.6 * n), n)
    print(f"60 % of {n:>3}: {low:.0%} to {high:.0%}, {100 * (high - low):.0f} points wide")
print(f"20 of 20: {wilson(20, 20)[0]:.0%} to {wilson(20, 20)[1]:.0%}")

generator = random.Random(1)
tests = [round(20 * score(20, 0.6)) for _ in range(40)]
intervals = [wilson(right, 20) for right in tests]
hits = [low <= 0.6 <= high for low, high in intervals]
print(f"forty tests: {40 - sum(hits)} intervals miss the true rate")

# %%
import matplotlib.pyplot as plt

alt = f"Forty Wilson intervals at n = 20, of which {sum(hits)} hold the true rate."
fig, axes = show.figure(8, 2.6, alt=alt)
for test, (right, (low, high), hit) in enumerate(zip(tests, intervals, hits, strict=True)):
    colour = show.PALETTE["graded" if hit else "tuned"]
    axes.plot([test, test], [low, high], color=colour, linewidth=3, linestyle="-" if hit else ":")
    axes.plot(test, right / 20, "o" if hit else "x", color=colour)
axes.axhline(0.6, color="black", linewidth=1)
axes.set(xlabel="test, 20 prompts each (dotted: misses)", ylabel="share right", ylim=(0, 1))
plt.show()

# %% [markdown]
# That is what 95 % promises: one interval in about twenty misses, and in a real test you cannot see which.
# Four times as many prompts make an interval half as wide
# ([Miller 2024](https://arxiv.org/abs/2411.00640) gives recipes for language models).
#
# ## All prompts
#
# So take all of them. On `course-base` that costs seconds.
#
# **Predict first.** Ten times as many prompts: how much narrower will the intervals be?

# %% tags=["measured"]
every = compare(base, tuned, tokenizer, prompts, max_new_tokens=60, batch_size=100)
measured = measure_all(prompts, every)
show.table(table_rows(measured), caption=f"Live, {name}: {len(prompts)} prompts, 60 new tokens")

# %%
from course_utils.comparison import MEASURES, show_estimate

shares = [measure for measure in MEASURES if measure.share]
conditions = [Condition(model, template) for model in models for template in (False, True)]


def look(model, filled=True):
    """Colour and marker of a model, the same in all figures of this lecture."""
    colour = show.PALETTE["tuned" if model == "SFT" else "base"]
    marker = "s" if model == "SFT" else "o"
    return {"color": colour, "marker": marker, "markerfacecolor": colour if filled else "white"}


# %%
def draw_shares(axes, estimates):
    """A row per measure of form or fact, a mark with its interval per condition."""
    for k, c in enumerate(conditions):
        found = [estimates[measure.name][str(c)] for measure in shares]
        ys = [row + (k - 1.5) * 0.18 for row in range(len(shares))]
        bounds = [[e.mean - e.low for e in found], [e.high - e.mean for e in found]]
        style = look(c.model, c.template) | {"linestyle": "", "label": str(c), "markersize": 4}
        axes.errorbar([e.mean for e in found], ys, xerr=bounds, **style)
    axes.set_yticks(range(len(shares)), [measure.name for measure in shares])
    axes.set(xlabel="share of the replies, with 95 % interval", xlim=(-0.02, 1.02))


# %% tags=["measured"]
fig, axes = show.figure(8, 4.2, alt="Shares of seven measures for base and SFT, live, 20 and all.")
draw_shares(axes, measured)
few = measure_all(sample, replies)
for k, c in enumerate(conditions):
    for y, measure in enumerate(shares):
        e = few[measure.name][str(c)]
        place = [y + (k - 1.5) * 0.18] * 2
        axes.plot([e.low, e.high], place, color=look(c.model)["color"], alpha=0.3, linewidth=5)
axes.invert_yaxis()
axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
plt.show()

# %% [markdown]
# The pale bars are the intervals of the twenty, the thin ones those of all prompts. Ten times as many prompts
# make an interval about a third as wide: the root of ten, whatever the model.
#
# Is the tuned model equally good at the three kinds of prompts? An *instruction* prompt asks for a
# combination of constraints that no training conversation holds, such as one word, in capitals, with a
# thank-you.

# %% tags=["measured"]
chat = Condition("SFT", True)
rows = []
for kind in dict.fromkeys(p.meta["kind"] for p in prompts):
    chosen = [i for i, p in enumerate(prompts) if p.meta["kind"] == kind]
    part = [prompts[i] for i in chosen]
    found = measure_all(part, {chat: [every[chat][i] for i in chosen]})
    row = {m.name: show_estimate(m, found[m.name][str(chat)]) for m in shares}
    rows.append({"kind": kind, "n": len(chosen)} | row)
wanted = ("kind", "n", "stops", "obeys", "knows at once")
show.table(
    [{k: row[k] for k in wanted} for row in rows], caption=f"Live, tuned {name}, with template"
)

# %% [markdown]
# *Knows at once* is high for questions that SFT never asked, so what it learned is no list of replies. *Obeys* is
# high for combinations that it never saw, so it learned the parts of a rule and not a list of rules. (Its web knows
# such rules from quizzes.) But under a rule it is right far less often: it keeps the form and loses the fact. Two
# things that it can do one at a time it cannot yet do at once.
#
# ## The real base, recorded
#
# Here are 80 prompts of many kinds, put to `gemma-3-270m` and to the same model tuned with the command line of
# lecture 8:
#
#     python -m course_utils.comparison --base gemma-3-270m --tuned runs/first \
#         --output data/recorded/comparison_gemma-3-270m.json
#
# (The record is of an earlier run of that command than the one whose loss lecture 8 shows. The file is already there,
# so to repeat it choose another name, or add `--overwrite`.)
#
# **Predict first.** Its pretraining documents had an end, so it *can* stop. Which rows will look like those
# of `course-base`, and which will not?

# %%
real_prompts = load_conversations(data / "comparison_prompts.jsonl")
by_id = {p.id: p for p in real_prompts}
real_asked = [by_id[row["id"]] for row in recorded["replies"]]
full = {c: [from_record(row, str(c)) for row in recorded["replies"]] for c in conditions}
estimates = measure_all(real_asked, full)
print(dict(Counter(p.meta["kind"] for p in real_asked)))
show.table(
    table_rows(estimates),
    caption=f"Recorded, {recorded['base']}: {len(real_asked)} prompts; in brackets 95 % intervals",
)

# %%
fig, axes = show.figure(8, 4.2, alt="Shares of seven measures for base and SFT, recorded.")
draw_shares(axes, estimates)
axes.invert_yaxis()
axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
plt.show()

# %% [markdown]
# Where two intervals lie far apart, the difference is there. Where they overlap, these two numbers alone do
# not tell; a comparison prompt by prompt sometimes can, as you will see below.

# %%
for measure in shares:
    a, b = (estimates[measure.name][str(Condition(model, True))] for model in models)
    apart = "apart" if a.high < b.low or b.high < a.low else "overlap"
    print(
        f"{measure.name:<15} base {a.low:4.0%} to {a.high:4.0%}   "
        f"SFT {b.low:4.0%} to {b.high:4.0%}   {apart}"
    )
a, b = (estimates["stops"][str(Condition(model, True))] for model in models)
assert a.high < b.low

# %% [markdown]
# Both pairs agree in what SFT is for: the tuned model stops and begins with an answer. They differ in *obeys*, where
# only `course-base` gains: a third of its conversations state a rule, of kinds that its web knows, while 250
# conversations about everything hold few of any one kind. And they differ in knowledge: `course-base` was tested on
# facts that stand many times in all that it has read; the real base on whatever we thought of.
#
# ### Lengths
#
# **Predict first.** The limit for these replies was 200 new tokens. Had it been 400, whose mean number of
# words would be another one, the base's or the tuned model's?

# %%
fig, axes = show.figure(8, 3, alt="Number of words of every recorded reply; cut-off ones hollow.")
for row, (c, found) in enumerate(full.items()):
    for place, reply in enumerate(sorted(found, key=lambda r: len(r.text.split()))):
        y = row + 0.6 * (place / len(found) - 0.5)
        axes.plot(len(reply.text.split()), y, markersize=4, **look(c.model, reply.stopped))
axes.set_yticks(range(len(full)), [str(c) for c in full])
axes.set(xlabel="words (filled: stopped by itself; hollow: cut off at the limit)")
axes.invert_yaxis()
plt.show()
for c, found in full.items():
    cut = sum(not reply.stopped for reply in found)
    print(f"{c!s:<20} {estimates['words'][str(c)].mean:4.0f} words, {cut} of {len(found)} cut off")

# %% [markdown]
# A hollow mark is no length. It is the limit that *somebody* set, and it moves with the limit. So the mean of
# *words* says something about a model only where the model stops.
#
# ## How certain is it?
#
# Now look at probabilities instead of texts, live again. Accounts of chat templates like to say that at the
# assistant's header the model knows *with near-certainty* that its own reply comes next. Is that so? And
# near-certain of what: of the speaker, of the word, of the end?
#
# ### The first token of the reply
#
# **Predict first.** After the header, how probable is the likeliest first token for the tuned model: about
# 0.99, or about one half?

# %% tags=["measured"]
import math

from course_utils.replies import next_token_probabilities

headers = {who: [] for who in models}
firsts = {who: Counter() for who in models}
for who, model in models.items():
    for prompt in prompts[:60]:
        p = next_token_probabilities(model, prompt_ids(prompt, tokenizer))
        entropy = -(p * p.clamp_min(1e-30).log()).sum().item()
        headers[who].append((entropy, p.max().item(), p[end_of_turn].item()))
        firsts[who][tokenizer.decode([p.argmax()])] += 1

# %% tags=["measured"]
for who, found in headers.items():
    entropy, top, empty = (sum(column) / len(found) for column in zip(*found, strict=True))
    print(f"{who:<5} entropy {entropy:.2f} nats, likeliest token {top:.2f}, ", end="")
    print(f"end of turn {empty:.0e}")
    print("      likeliest:", dict(firsts[who].most_common(5)))
print(f"(means over {len(found)} prompts; uniform guessing has {math.log(len(p)):.2f} nats)")

# %% tags=["measured"]
alt = "Entropy and top-1 probability of the first reply token, a mark per prompt and model."
fig, axes = show.figure(7, 3.4, alt=alt)
for who, found in headers.items():
    style = look(who) | {"linestyle": "", "alpha": 0.6, "label": who}
    axes.plot(*list(zip(*found, strict=True))[:2], **style)
axes.set(xlabel="entropy in nats (less is surer)", ylabel="probability of the likeliest")
axes.set(xlim=(0, None), ylim=(0, 1.02))
axes.legend()
plt.show()

# %% [markdown]
# SFT made the model surer of its first token, without making it certain. What changed most
# is *what* each expects, in the printed lines *likeliest*. The base wants a line break, and then more of a page; the
# tuned model begins a sentence that answers. Many questions allow more than one such beginning.

# %% [markdown]
# ### The end of the reply
#
# Twenty facts that SFT did not ask about, each with its right reply written behind the header. After each token:
# how probable is the end of turn? Once without a system text, and once under one that asks for *Thanks* at the
# end.
#
# **Predict first.** The reply is one full sentence. Is its full stop the end, for the tuned model, in both
# cases?

# %% tags=["measured"]
from course_utils.conversation import conversation
from course_utils.miniweb import facts
from course_utils.miniweb.facts import select

THANKS = "End with the word Thanks."
held_out = select(facts(), telling="paraphrased", asked=False)
twenty = held_out[:: len(held_out) // 20][:20]


@torch.inference_mode()
def probabilities(model, ids):
    """After each of the ids, the probability of every token to come next: shape (T, V)."""
    logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0]
    return logits.float().softmax(-1).cpu()


# %% tags=["measured"]
def along_reply(model, fact, system=""):
    """The reply's ids, and P(end of turn) before the first and after every one of them."""
    turns = [("system", system)] * bool(system) + [("user", fact.question)]
    prompt = prompt_ids(conversation(*turns), tokenizer)
    reply = tokenizer.encode(fact.answer, add_special_tokens=False)
    return reply, probabilities(model, prompt + reply)[len(prompt) - 1 :, end_of_turn].tolist()


cases = {"base": ("base", ""), "SFT": ("SFT", ""), "SFT, Thanks asked": ("SFT", THANKS)}
ends = {
    case: [along_reply(models[who], fact, system) for fact in twenty]
    for case, (who, system) in cases.items()
}

# %% tags=["measured"]
fig, axes = show.figure(8, 3.2, alt="P(end of turn) after every token of one reply, three cases.")
for case, found in ends.items():
    reply, values = found[0]
    axes.semilogy(values, label=case, **look(cases[case][0], not cases[case][1]))
axes.set_xticks(range(len(values)), ["(header)", *(tokenizer.decode([i]) for i in reply)])
axes.tick_params(axis="x", rotation=60)
axes.set(ylabel="P(end of turn)")
axes.axhline(1 / len(tokenizer), color="black", linewidth=0.8, linestyle=":")
axes.legend()
plt.show()

# %% [markdown]
# (Dotted: a uniform guess.) Now all twenty.

# %% tags=["measured"]
rows = []
for case, found in ends.items():
    places = {"inside the sentence": [], "after it": []}
    for reply, values in found:
        places["inside the sentence"].append(values[len(reply) // 2])
        places["after it"].append(values[-1])
    for place, values in places.items():
        low, median, high = (sorted(values)[i] for i in (0, len(values) // 2, -1))
        numbers = {"lowest": f"{low:.1e}", "median": f"{median:.1e}", "highest": f"{high:.1e}"}
        rows.append({"model": case, "place": place, **numbers})
show.table(rows, caption=f"Live, {name}: P(end of turn) in twenty replies")

# %% tags=["measured"]
fact = twenty[0]
ids = prompt_ids(conversation(("user", fact.question)), tokenizer)
ids += tokenizer.encode(fact.answer, add_special_tokens=False)
last = probabilities(tuned, ids)[-1]
print(f"SFT, after {fact.answer!r}:")
for i in last.argsort(descending=True)[:4].tolist():
    print(f"  {last[i]:.3f} {tokenizer.decode([i])!r}")

# %% [markdown]
# This is what the stop rate shows from outside. The base gives the end of turn next to nothing anywhere. The
# tuned model gives it next to none inside the sentence, and far more than anything else after it. Greedy decoding
# needs no more. It is not near-certainty: the rest lies on tokens that pretraining never met, and a sampled reply
# goes on past this point more often than not.
#
# The system text makes a difference: where it asks for one more word, the same full stop is no longer the end. That
# is the *obeys* row, seen from inside.
#
# ### After your end of turn
#
# A chat goes on with the model's turn after the user's. Does the model expect that? Between your end of
# turn and the reply stands the generation prompt, and each of its tokens has a probability, too.
#
# **Predict first.** The training mask graded the replies and their end of turn, never a header. Will the
# tuned model open its own turn if no program does it?

# %% tags=["measured"]
header = {who: [] for who in models}
for who, model in models.items():
    for prompt in sample:
        ids = prompt_ids(prompt, tokenizer)
        start = len(ids) - 1 - ids[::-1].index(end_of_turn)
        p = probabilities(model, ids)
        header[who].append([p[i, ids[i + 1]].item() for i in range(start, len(ids) - 1)])
rows = []
for i, token in enumerate(ids[start + 1 :]):
    row = {"next token of the template": repr(tokenizer.decode([token]))}
    for who, found in header.items():
        row[who] = f"{sorted(values[i] for values in found)[len(found) // 2]:.1e}"
    rows.append(row)
show.table(rows, caption="Live: probability of the template's own next token, median of 20 prompts")

# %% [markdown]
# It was never graded on this, and it did not learn it: where the model's turn should open, neither model
# opens one. Who speaks when is not the model's knowledge. Your program writes the header, the model fills it.
#
# So near-certainty comes apart into three. **Who speaks**, once the header is there: an answer begins. **Which
# word**: often open. **Where the end is**: near zero inside the sentence, and after it clearly the likeliest.
#
# ## What moved in the weights?
#
# **Predict first.** Does SFT change the architecture? And how far do the weights move: by a tenth of a
# percent, by a percent, or by a tenth of their size?

# %% tags=["measured"]
old, new = base.state_dict(), tuned.state_dict()
assert {n: t.shape for n, t in old.items()} == {n: t.shape for n, t in new.items()}
print(f"{len(old)} tensors with the same names and shapes in both models")
for part in (".layers.", "embed_tokens"):
    pairs = [(old[n], new[n]) for n in old if part in n]
    numbers = sum(a.numel() for a, _ in pairs)
    same = sum((a == b).sum().item() for a, b in pairs)
    print(f"{part:<13} {numbers / 1e6:.1f} million numbers, {same / numbers:.0%} as before")

# %% [markdown]
# The architecture is the same, tensor by tensor. (Weights that did not change at all moved by less than
# bfloat16, in which both checkpoints are stored, can express.)
#
# How far did each matrix go? The norm of its change over its own norm, in percent:

# %% tags=["measured"]
first = [n for n, tensor in old.items() if ".layers.0." in n and tensor.dim() == 2]
layers = range(base.config.num_hidden_layers)


def norms(tensor_name):
    """Root mean square of a matrix, and of its change."""
    before, after = old[tensor_name].float(), new[tensor_name].float()
    return before.square().mean().sqrt().item(), (after - before).square().mean().sqrt().item()


# %% tags=["measured"]
sizes = [[norms(n.replace(".layers.0.", f".layers.{layer}.")) for layer in layers] for n in first]
moved = [[100 * change / size for size, change in row] for row in sizes]
matrices = [n.split(".")[-2] for n in first]
alt = "Relative change of each matrix by layer, in percent."
fig, axes = show.heat(moved, matrices, list(map(str, layers)), alt=alt)
axes.set_xlabel("layer")
plt.show()
for matrix, row in zip(matrices, sizes, strict=True):
    size, change = (sum(column) / len(row) for column in zip(*row, strict=True))
    print(f"{matrix:<10} size {size:.4f}, change {change:.4f}: {change / size:.1%}")

# %% [markdown]
# Every matrix moved, by a few percent of its size. Is the darkest row the place where the chat model lives?
# Not so fast: look at the printed *change*, which is nearly the same everywhere. Adam moves every number by at most
# about the learning rate per step, whatever its gradient's size
# ([Kingma and Ba 2014](https://arxiv.org/abs/1412.6980)), so a matrix of small weights moves far *in relation*.
# The picture shows the optimizer at least as much as the task.
#
# ### Which rows moved?
#
# Each token has a row of its own in the embeddings, and the same row is what the output compares a hidden state with.
# Lecture 8 let the rows of `course-base`'s special tokens move, and no others. It has special tokens of every
# template family; one template uses a few of them.
#
# **Predict first.** Which special rows moved: only those that stand in the conversations, or the others, too?

# %% tags=["measured"]
from course_utils.tokenizers import special_tokens

was, now = (m.get_input_embeddings().weight.detach().float().cpu() for m in (base, tuned))
row_size, row_change = was.norm(dim=1), (now - was).norm(dim=1)
special = tokenizer.convert_tokens_to_ids(special_tokens(tokenizer))
used = [i for i in special if i in set(prompt_ids(prompts[0], tokenizer))]
unused = [i for i in special if i not in used]

# %% tags=["measured"]
alt = "Size and change of every embedding row; special tokens marked."
fig, axes = show.figure(7, 3.4, alt=alt)
axes.plot(row_size, row_change, ".", color=show.PALETTE["masked"], markersize=2, label="words")
accent = {"color": show.PALETTE["special"], "linestyle": ""}
axes.plot(row_size[unused], row_change[unused], "o", mfc="white", label="special, unused", **accent)
axes.plot(row_size[used], row_change[used], "s", label="special, in this template", **accent)
axes.set(xlabel="norm of the row before SFT", ylabel="norm of its change")
axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
plt.show()

# %% tags=["measured"]
order = row_change.argsort(descending=True).tolist()
print(f"{(row_change > 0).sum()} rows of {len(order)} moved, {len(special)} tokens are special")
for i in used:
    print(f"{tokenizer.decode([i]):<14} size {row_size[i]:.2f} -> {now[i].norm():.2f}, ", end="")
    print(f"change {row_change[i]:.2f}, place {order.index(i) + 1}")
if unused:
    print(f"unused ones    change {row_change[unused].min():.2f} to {row_change[unused].max():.2f}")

# %% [markdown]
# Special tokens that stand in no conversation moved as well. Each step pushes down all tokens that were *not* the
# right one, and Adam makes a full step of a small push. So how far a row moved does not tell you what for.
#
# ## What it forgot
#
# 120 pages of the mini-web that no model has trained on: the facts are the same, the pages are new. The loss on
# them says how well a model still does what it was pretrained for.
#
# **Predict first.** After SFT, does the loss on pages fall, stay, or rise? On which kinds of pages most?

# %% tags=["measured"]
from itertools import islice

from course_utils.miniweb import pages

unread = list(islice(pages(seed=1_000_000), 120))
start = [tokenizer.bos_token_id] * (tokenizer.bos_token_id is not None)
losses = {who: [] for who in models}
for who, model in models.items():
    for _, text in unread:
        ids = start + tokenizer.encode(text, add_special_tokens=False)[:512]
        p = probabilities(model, ids)[:-1].gather(1, torch.tensor(ids[1:])[:, None])
        losses[who].append(-p.log().mean().item())
    print(f"{who:<5} {sum(losses[who]) / len(unread):.3f} nats per token, mean of the pages")

# %% tags=["measured"]
differences = [b - a for a, b in zip(losses["base"], losses["SFT"], strict=True)]
mean, (low, high) = sum(differences) / len(differences), bootstrap(differences)
print(f"SFT - base: {mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f})")
print(f"perplexity times {math.exp(mean):.2f}")
by_kind = {}
for (kind, _), *pair in zip(unread, losses["base"], losses["SFT"], strict=True):
    by_kind.setdefault(kind.replace("_", " "), []).append(pair)
means = {k: [sum(c) / len(v) for c in zip(*v, strict=True)] for k, v in by_kind.items()}
means = dict(sorted(means.items(), key=lambda item: item[1][0] - item[1][1]))

# %% tags=["measured"]
fig, axes = show.figure(7, 3.6, alt="Loss on pages by kind, base and SFT joined by a line.")
for row, found in enumerate(means.values()):
    axes.plot(found, [row, row], color=show.PALETTE["masked"])
for place, who in enumerate(models):
    values = [found[place] for found in means.values()]
    axes.plot(values, range(len(means)), linestyle="", label=who, **look(who))
axes.set_yticks(range(len(means)), [f"{k} ({len(by_kind[k])})" for k in means])
axes.set(xlabel="nats per token")
axes.invert_yaxis()
axes.legend()
plt.show()

# %% [markdown]
# The difference is taken page by page: pages differ a lot from each other, and a paired difference is free of
# that. An interval above zero means that something was lost: two thousand short conversations, most seen more than
# once, cost the model a good part of its pages. Look where: the *how to* pages, which
# the base knew nearly by heart, lost far more than the dialogues. (Behind each kind stands its number of pages. Where it is one, do not read much into it.)
# Would a lower learning rate, fewer passes or some pages in the mixture have cost less? You now have the cell that
# tells.

# %% [markdown]
# ## Does SFT add knowledge?
#
# The recorded table has two rows on facts. *knows* looks through the whole reply, and a reply that never stops
# has more room for a lucky word; *knows at once* looks at its first sentence. Prompt by prompt, the real base
# without a template against its tuned version with it, and marked with * the facts whose words stand nowhere in
# its training conversations:

# %%
from course_utils.comparison import mentions

texts = "\n".join(m.content for c in load_conversations(data / "conversations.jsonl") for m in c)
at_once = next(m for m in MEASURES if m.name == "knows at once")
judged = []
for prompt, bare, chat_ in zip(real_asked, full[conditions[0]], full[conditions[3]], strict=True):
    if "expect" in prompt.meta:
        unseen = "" if mentions(texts, prompt.meta["expect"]) else "*"
        judged.append((prompt.id + unseen, at_once.of(prompt, bare), at_once.of(prompt, chat_)))

# %%
gained = [fact for fact, a, b in judged if b and not a]
lost = [fact for fact, a, b in judged if a and not b]
print("gained:", *textwrap.wrap(", ".join(gained), 90, break_on_hyphens=False), sep="\n  ")
print("lost:", *textwrap.wrap(", ".join(lost), 90, break_on_hyphens=False), sep="\n  ")
low, high = bootstrap([b - a for _, a, b in judged])
gain = (len(gained) - len(lost)) / len(judged)
print(f"of {len(judged)} facts; difference {gain:+.0%} ({low:+.0%} to {high:+.0%})")
assert any(fact.endswith("*") for fact in gained)

# %% [markdown]
# Is a gained fact new knowledge? SFT never showed those with a star. Either the reply was lucky, or the base had
# them all along and did not say so. With this base you cannot find out: nobody can look up what it has read.
#
# ### An experiment that can tell
#
# For `course-base` you can look it up. Its web told each fact in one of three ways, drawn by lot, and SFT asked
# about half of the first kind only:
#
# - **paraphrased**: in many wordings, in every kind of page, in questions and answers as well. *Asked about* in
#   SFT, or *held out* from it.
# - **fixed**: always in one and the same sentence, never in a question. Some of these sentences name the
#   *subject first* ("... was written by ..."), some the *value first* ("... wrote ...").
# - **absent**: nowhere. Not on a page, not in a conversation.

# %%
told = [fact for fact in facts() if fact.telling != "absent"]
fixed = select(facts(), telling="fixed")
GROUPS = {
    "asked about": select(facts(), asked=True),
    "held out": select(facts(), telling="paraphrased", asked=False),
    "fixed, subject first": [fact for fact in fixed if not fact.value_first],
    "fixed, value first": [fact for fact in fixed if fact.value_first],
    "absent": select(facts(), telling="absent"),
}
rows = []
for group, members in GROUPS.items():
    fact = members[1]
    wording = fact.fill(fact.wordings[0]) if fact.wordings else "–"
    rows.append({"group": group, "facts": len(members), "one": fact.question, "its web": wording})
show.table(rows)

# %% [markdown]
# What would a model get that knows no fact at all, but knows what people mostly say? Let it always answer with
# the value that its web tells most often in that relation: the language that most countries speak, the author
# of most books.

# %%
usual = {}
for fact in told:
    usual.setdefault(fact.relation.name, Counter())[fact.value] += 1
usual = {relation: counts.most_common(1)[0][0] for relation, counts in usual.items()}
chance = {
    group: sum(usual[fact.relation.name] == fact.value for fact in members) / len(members)
    for group, members in GROUPS.items()
}
for group, share in chance.items():
    print(f"{group:<21} {share:.1%}")
assert max(chance.values()) < 0.2

# %% [markdown]
# Three ways of looking for a fact, two at the base, one at the tuned model:
#
# - **text**: the base gets the start of a sentence, "The capital of Norway is", and must go on with the value,
# - **bare question**: the base gets the question as it stands; is the answer in the first sentence?
# - **chat question**: the tuned model gets the same question in its template.
#
# **Predict first.** Five groups. For each, write down the share that the tuned model answers. Which two
# groups will differ most between *text* and *chat question*?

# %% tags=["measured"]
import re

from course_utils.miniweb.probes import answers, completes, states
from course_utils.tokenizers import encode_untrusted

web_folder = folder if name == "course-base" else runs / "lecture-09-web"
if not web_folder.is_dir():
    assert sft.main(["--base", "course-base", "--output", str(web_folder)]) == 0
web_base, _ = load_base("course-base")
web_tuned, web_tokenizer = load_checkpoint(web_folder)


# %% tags=["measured"]
def answers_bare(model, tokenizer, asked_facts):
    """For each fact: given the bare question, does the first sentence state the value?"""
    ids = [encode_untrusted(tokenizer, fact.question) for fact in asked_facts]
    found = generate(model, tokenizer, ids, max_new_tokens=32, batch_size=100)
    return [states(reply.text, fact) for reply, fact in zip(found, asked_facts, strict=True)]


# %% tags=["measured"]
WAYS = {
    "base, text": (completes, web_base),
    "base, bare question": (answers_bare, web_base),
    "SFT, chat question": (answers, web_tuned),
}
right = {
    way: {group: probe(model, web_tokenizer, members) for group, members in GROUPS.items()}
    for way, (probe, model) in WAYS.items()
}

# %% tags=["measured"]
from course_utils.comparison import wilson


def share(hits):
    """A share with its Wilson interval, as text."""
    low, high = wilson(sum(hits), len(hits))
    return f"{sum(hits) / len(hits):.0%} ({100 * low:.0f}–{high:.0%})"


rows = []
for group, members in GROUPS.items():
    row = {"group": group, "n": len(members), "chance": f"{chance[group]:.0%}"}
    rows.append(row | {way: share(found[group]) for way, found in right.items()})
show.table(rows, caption="Live, course-base: facts that it gets right; 95 % Wilson intervals")

# %% tags=["measured"]
STYLES = {
    "base, text": look("base"),
    "base, bare question": look("base") | {"hatch": "////"},
    "SFT, chat question": look("SFT"),
}


def bar(hits):
    """Share right, and how far its interval reaches below and above it."""
    mean, (low, high) = sum(hits) / len(hits), wilson(sum(hits), len(hits))
    return mean, mean - low, high - mean


# %% tags=["measured"]
fig, axes = show.figure(7, 3.8, alt="Share of the facts right, by group and by way of asking.")
rows = range(len(GROUPS))
for k, (way, found) in enumerate(right.items()):
    means, *bounds = zip(*map(bar, found.values()), strict=True)
    style = {key: STYLES[way].get(key) for key in ("color", "hatch")} | {"edgecolor": "white"}
    axes.barh([y + 0.27 * (k - 1) for y in rows], means, 0.25, xerr=bounds, label=way, **style)
axes.vlines(list(chance.values()), [y - 0.42 for y in rows], [y + 0.42 for y in rows], "black")
axes.set_yticks(rows, list(GROUPS))
axes.set(xlabel="share right, with 95 % interval (vertical: the usual value)", xlim=(0, 1))
axes.invert_yaxis()
axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
plt.show()

# %% [markdown]
# Read it group by group.
#
# - **Held out** is answered almost as often as **asked about**: SFT did not have to show a fact to get it said.
# - **Absent** is no better than the usual value: what the base never read, the tuned model does not know either.
# - **Fixed** facts come out badly. With the subject first, the base completes about half of them as text, and the
#   tuned model answers far fewer. With the value first there is next to nothing.
# - And the **bare question** gets far fewer answers from the base than the same facts as text: it knew, and did
#   not say.
#
# ### Is it this one run?
#
# You saw one run. The course's benchmark made three, each with its own conversations in its own order, from the same
# base. Here are their shares of the same groups, as recorded.
#
# **Predict first.** How many points will lie between the seeds in *held out*?

# %%
bench = json.loads((data / "recorded/course_base_sft.json").read_text())
print(bench["command"], "on", bench["hardware"]["device"])
seeds = [run for run in bench["runs"] if "answers" in run]
rows = []
for group in seeds[0]["answers"]:
    shares_of = [run["answers"][group][0] / run["answers"][group][1] for run in seeds]
    row = {"group": group, "n": seeds[0]["answers"][group][1]}
    row |= {f"seed {run['seed']}": f"{s:.1%}" for run, s in zip(seeds, shares_of, strict=True)}
    rows.append(row | {"spread": f"{100 * (max(shares_of) - min(shares_of)):.1f} points"})
show.table(rows, caption="Recorded: facts that the tuned model answers, three runs")

# %% [markdown]
# The order of the groups is the same in all three, and the differences between the groups are far larger than the
# spread over seeds. So the experiment does not hang on one run. All three share one base, though: what another
# pretraining would change, they do not show.
#
# ### Relation by relation
#
# There are thirty relations, from capitals to past tenses. Take the held-out facts of each.
#
# **Predict first.** The base completes nearly all of them. Will the tuned model answer about equally many in all
# relations?

# %% tags=["measured"]
both = zip(right["base, text"]["held out"], right["SFT, chat question"]["held out"], strict=True)
by_relation = {}
for fact, pair in zip(GROUPS["held out"], both, strict=True):
    by_relation.setdefault(fact.relation.name.replace("_", " "), []).append(pair)
shares_ = {r: [sum(c) / len(v) for c in zip(*v, strict=True)] for r, v in by_relation.items()}
shares_ = dict(sorted(shares_.items(), key=lambda item: item[1][1]))

# %% tags=["measured"]
fig, axes = show.figure(7, 6, alt="Per relation: completed by the base, answered by the tuned one.")
for y, found in enumerate(shares_.values()):
    axes.plot(found, [y, y], color=show.PALETTE["masked"])
for place, (who, label) in enumerate({"base": "base, text", "SFT": "SFT, chat question"}.items()):
    values = [found[place] for found in shares_.values()]
    axes.plot(values, range(len(shares_)), linestyle="", label=label, **look(who))
axes.set_yticks(range(len(shares_)), [f"{r} ({len(by_relation[r])})" for r in shares_])
axes.set(xlabel="share of the held-out facts", xlim=(-0.02, 1.02))
axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
plt.show()

# %% tags=["measured"]
hits = {True: [], False: []}
for group in list(GROUPS)[1:]:
    pairs = zip(right["base, text"][group], right["SFT, chat question"][group], strict=True)
    for text, chat_ in pairs:
        hits[text].append(chat_)
for text, verb in ((True, "completes"), (False, "does not complete")):
    print(f"never asked about, and the base {verb} it as text: ", end="")
    print(f"{len(hits[text])} facts, the tuned model answers {share(hits[text])}")

# %% [markdown]
# Not equally. In most relations the tuned model answers nearly all that the base completes; in a few it answers
# fewer, although the base completes them without an error. So knowing a fact as text was not enough: SFT let out most
# of it, not everything.
#
# The other way round hardly ever happens. Of the facts in all groups that SFT never asked about, the last line
# takes those that the base does *not* complete: the tuned model answers next to none. It could not give what was
# not there.
#
# ### The sentence in its own direction
#
# Why does the tuned model not answer a fact that stands in one sentence with the value in front? Perhaps it
# never learned the sentence. So ask the base for it in its own words: its beginning, up to the second of the two
# names.
#
# **Predict first.** "Galileo Galilei discovered the ..." Will the base complete the fixed sentences whose value
# comes first?


# %% tags=["measured"]
def halves(fact):
    """A fixed fact's sentence up to the second of its two names, and that name."""
    second = "{subject}" if fact.value_first else "{value}"
    return fact.fill(fact.wordings[0].split(second)[0]).rstrip(), fact.fill(second)


def recites(model, tokenizer, fixed_facts):
    """For each fixed fact: given the first half of its sentence, does the model go on with it?"""
    starts, wanted = zip(*map(halves, fixed_facts), strict=True)
    ids = [encode_untrusted(tokenizer, text) for text in starts]
    found = generate(model, tokenizer, ids, max_new_tokens=16, batch_size=100)
    pairs = zip(wanted, found, strict=True)
    return [re.match(rf"{re.escape(w)}(?!\w)", r.text) is not None for w, r in pairs]


# %% tags=["measured"]
verdict = {
    way: {
        f: hit for g, found in right[way].items() for f, hit in zip(GROUPS[g], found, strict=True)
    }
    for way in WAYS
}

# %% tags=["measured"]
recited = dict(zip(fixed, recites(web_base, web_tokenizer, fixed), strict=True))
kinds = {
    "subject first, the sentence of *text*": [],
    "subject first, another": [],
    "value first": [],
}
same, another, value_first = kinds.values()
for fact in fixed:
    asked_with = fact.wordings[0].startswith(fact.relation.prefix + " {value}")
    (value_first if fact.value_first else same if asked_with else another).append(fact)

# %% tags=["measured"]
rows = []
for kind, members in kinds.items():
    row = {"its sentence": kind, "n": len(members)}
    row["base recites it"] = share([recited[fact] for fact in members])
    for way in ("base, text", "SFT, chat question"):
        row[way] = share([verdict[way][fact] for fact in members])
    rows.append(row)
show.table(rows, caption="Live, course-base: the fixed facts, recited and asked for")

# %% [markdown]
# Could it be the relations instead of the direction? The lot may have put hard relations among the few
# value-first facts. So compare inside each relation: a value-first fact, right or not, minus the share right of
# the other fixed facts of its relation.

# %% tags=["measured"]
for way in ("base, text", "SFT, chat question"):
    alike = {}
    for fact in another:
        alike.setdefault(fact.relation, []).append(verdict[way][fact])
    gaps = [
        verdict[way][fact] - sum(alike[fact.relation]) / len(alike[fact.relation])
        for fact in value_first
        if fact.relation in alike
    ]
    mean, (low, high) = sum(gaps) / len(gaps), bootstrap(gaps)
    print(f"{way:<19} value first - subject first, inside relations: ", end="")
    print(f"{mean:+.0%} ({low:+.0%} to {high:+.0%})")

# %% [markdown]
# The base knows nearly all the sentences by heart, in the direction in which they stand. Asked for the value of a
# value-first sentence, it hardly has the fact, neither as text nor in chat, and inside the relations the gap
# stays. This is the *reversal curse*: models that learned "A is B" do not know "B is A"
# ([Berglund et al. 2023](https://arxiv.org/abs/2309.12288)). SFT does not lift it. And the first row shows
# that direction is not all: even the very sentence of *text*, completed by the base, is often not answered in chat.
#
# ### Ask the base better
#
# If the knowledge was there, then the base must be able to show it *without any training*. Put three worked
# examples in front of the question, as a quiz page of its web would have them. The base continues the pattern.
#
# **Predict first.** With examples, does the base answer fewer, about as many, or more held-out facts than the
# tuned model? And does it stop?

# %% tags=["measured"]
EXAMPLES = GROUPS["asked about"][:: len(GROUPS["asked about"]) // 3][:3]


def quiz(fact):
    """A quiz page up to the answer that is wanted."""
    page = [f"Q: {example.question}\nA: {example.answer}" for example in EXAMPLES]
    return "\n".join([*page, f"Q: {fact.question}\nA:"])


some = GROUPS["held out"][::2]
print(quiz(some[0]))
ids = [encode_untrusted(web_tokenizer, quiz(fact)) for fact in some]
shown = generate(web_base, web_tokenizer, ids, max_new_tokens=32, batch_size=100)
print("-> " + shown[0].text)

# %% tags=["measured"]
few_shot = [states(reply.text, fact) for reply, fact in zip(shown, some, strict=True)]
bare, in_chat = ([verdict[way][fact] for fact in some] for way in list(WAYS)[1:])
print("base, bare question ", share(bare))
print("base, three examples", share(few_shot))
print("SFT, chat question  ", share(in_chat))
low, high = bootstrap([b - a for a, b in zip(few_shot, in_chat, strict=True)])
gain = (sum(in_chat) - sum(few_shot)) / len(in_chat)
print(f"SFT - base with examples: {gain:+.1%} (95 % interval {low:+.1%} to {high:+.1%})")
print(f"stops by itself: {sum(r.stopped for r in shown)} of {len(shown)}")
print(f"opens another turn: {sum(holds_role_header(r.text) for r in shown)} of {len(shown)}")

# %% [markdown]
# Three examples, no gradient step, and the base answers at least as many of them as the tuned model; where the last
# interval lies below zero, more. So for letting facts out, SFT was not even the better way. What it gave is that
# the question *alone* now gets an answer, and that the answer ends: the base never stops. It writes the next
# question itself. A program could cut there. But then the program, not the model, knows where a turn ends.

# %% [markdown]
# ### What follows, and what does not
#
# **In this model, on this web:** SFT let out what pretraining had put in, for facts that it never asked about
# almost as well as for those it did. It added no fact that was not there. How a fact stood in the pages decided
# what could be let out: many wordings, and it can mostly be asked for; one sentence, and it mostly cannot.
#
# **That is known from larger models, too.** Allen-Zhu and Li trained models on synthetic biographies: without
# paraphrases the facts were memorised, and could not be extracted by any fine-tuning
# ([2023](https://arxiv.org/abs/2309.14316)). A thousand good examples were enough to make a 65B model answer, so
# its knowledge must have come from before ([Zhou et al. 2023](https://arxiv.org/abs/2305.11206)).
#
# **What does not follow:**
#
# - *That SFT cannot add knowledge.* It can learn a fact by heart if you show it often enough: nothing here tried.
#   Larger models learn unknown facts slowly, and invent more afterwards
#   ([Gekhman et al. 2024](https://arxiv.org/abs/2405.05904)).
# - *That paraphrasing alone did it.* The paraphrased facts also stood in questions and answers on the web, and on
#   a few more pages; the fixed ones did not. Three differences at once: this web cannot take them apart.
# - *That every base gives these numbers.* All runs began at one base. The intervals are about the facts, and the
#   three seeds about fine-tuning.
# - *That it is so in a model of your size, on the real web.* Six million parameters, thirty relations, made
#   pages. The recorded gain of `gemma-3-270m` fits; it does not prove it.

# %% [markdown]
# ## Fooling a measure
#
# Two ways among many, both tried on the recorded prompts:
#
# 1. **A reply that says nothing.** Short, polite, and it ends.
# 2. **A reply that says everything.** It lists all planets, and so *knows* the largest and the red one.
#
# The first, shown: a "model" that answers every prompt with the same sentence, in the same table.
#
# **Predict first.** In how many of the rows does it do at least as well as the tuned model?

# %%
lazy = [Reply("I am happy to help with that.", [], True, 0.0)] * len(real_asked)
chat = Condition("SFT", True)
scored = measure_all(real_asked, {Condition("lazy", True): lazy, chat: full[chat]})
rows = table_rows(scored)
show.table(
    [{k: v for k, v in row.items() if k != "what it is"} for row in rows],
    caption=f"Recorded, {recorded['base']}, and a sentence that says nothing",
)

# %%
lazy_, sft_ = "lazy, template", "SFT, template"
better = [m.name for m in shares if scored[m.name][lazy_].mean >= scored[m.name][sft_].mean]
print("at least as good as the tuned model:", ", ".join(better))
planets = "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune."
known = [p.id for p in real_asked if mentions(planets, p.meta.get("expect", []))]
print("one list of planets knows:", ", ".join(known))
assert {"stops", "no role header", "direct", "ends cleanly"} <= set(better) and len(known) > 1

# %% [markdown]
# All measures of *form* are won by a sentence without content. A model trained to do well on such a table
# could learn exactly that. So read replies, always; a table only says where to look.

# %% [markdown]
# ## Common bug: the wrong template
#
# The tuned model is tested or served with another template than the one it was trained in. Nothing fails:
# every text has token ids. Here the same 20 prompts go to it in the `plain` format (`User: ...`), and in two
# families whose special tokens are other ones than its own.

# %% tags=["measured"]
from course_utils import render
from course_utils.checkpoints import family_for

own = family_for(name, tokenizer)
wrong = [f for f in ("plain", "llama3", "gemma", "chatml") if f != own][:3]


def in_family(prompt, family):
    """The ids of a prompt rendered by another family, behind this model's own sequence start."""
    text = render(prompt, family, add_generation_prompt=True, lossy=True).text
    return start + tokenizer.encode(text, add_special_tokens=False)


# %% tags=["measured"]
served = {f"{own} (its own)": replies[Condition("SFT", True)]}
served["none"] = replies[Condition("SFT", False)]
for family in wrong:
    ids = [in_family(prompt, family) for prompt in sample]
    served[family] = generate(tuned, tokenizer, ids, max_new_tokens=90)

# %% tags=["measured"]
scored = measure_all(sample, served)
rows = [
    {"measure": m.name, **{way: show_estimate(m, scored[m.name][way]) for way in served}}
    for m in MEASURES
]
show.table(rows, caption=f"Live, tuned {name}: 20 prompts, at most 90 new tokens, by template")

# %% [markdown]
# Would you have noticed? This tuned model stops in the wrong families, too, and in two of them it answers as in its
# own. Only in `plain` does it lose most of its facts (*knows*). The table cannot show a small damage at 20 prompts, so
# look closer, at the probability of the end.


# %% tags=["measured"]
def lost_at_the_end(to_ids):
    """-log P(end of turn) after the right reply to each of the twenty facts, in nats."""
    for fact in twenty:
        ids = to_ids(conversation(("user", fact.question)))
        ids += tokenizer.encode(fact.answer, add_special_tokens=False)
        yield -math.log(max(probabilities(tuned, ids)[-1, end_of_turn].item(), 1e-30))


ways = {own: lambda p: prompt_ids(p, tokenizer)}
ways |= {f: lambda p, f=f: in_family(p, f) for f in wrong}
nats = {way: list(lost_at_the_end(to_ids)) for way, to_ids in ways.items()}
for way, found in nats.items():
    low, high = bootstrap([b - a for a, b in zip(nats[own], found, strict=True)])
    print(f"{way:<8} {sum(found) / 20:5.2f} nats on the end of turn, against its own ", end="")
    print(f"{(sum(found) - sum(nats[own])) / 20:+.2f} ({low:+.2f} to {high:+.2f})")

# %% [markdown]
# `plain`, which shares no special token with its own, costs something here, too. The others cost next to nothing, and
# none of it is a breakdown. So the bug can hide: replies that look right do not prove that the template is.
#
# To find out which template a checkpoint wants, do not guess: it was saved with it.
# To catch the bug in somebody else's evaluation, ask for one prompt as ids, decoded.
#
# ## What SFT does not solve
#
# ### Truth
#
# Some questions have no answer that the model could know: the facts of the *absent* group stand nowhere in
# what it read. A truthful reply would say so.
#
# **Predict first.** Of the replies to them, how many say that they do not know? And if you look at the
# probability that the tuned model gives its own reply, can you tell the wrong ones by it?


# %% tags=["measured"]
def with_probability(model, tokenizer, asked_facts):
    """For each fact: the greedy reply to its question, and the probability of just that reply."""
    ids = [prompt_ids(conversation(("user", fact.question)), tokenizer) for fact in asked_facts]
    found = generate(model, tokenizer, ids, max_new_tokens=48, batch_size=100)
    for fact, prompt, reply in zip(asked_facts, ids, found, strict=True):
        after = probabilities(model, prompt + reply.ids)[len(prompt) - 1 : -1]
        p = after.gather(1, torch.tensor(reply.ids)[:, None]).log().sum().exp().item()
        yield fact, reply, p


chosen = {"held out": GROUPS["held out"][::3], "absent": GROUPS["absent"]}
said = {g: list(with_probability(web_tuned, web_tokenizer, some)) for g, some in chosen.items()}

# %% tags=["measured"]
DENIES = re.compile(r"\b(no|not|never|nobody|cannot|unknown|sorry)\b|n[’']t\b", re.I)
count = sum(bool(DENIES.search(reply.text)) for _, reply, _ in said["absent"])
print(f"{count} of {len(said['absent'])} replies hold a word of denial")
rows = []
for fact, reply, p in said["absent"][::44]:
    rows.append({"asked": fact.question, "reply": reply.text, "true": fact.value, "p": p})
show.table(rows, caption="Live, tuned course-base: facts that stand nowhere in its web")

# %% tags=["measured"]
kinds = {
    "held out, right": [p for f, r, p in said["held out"] if states(r.text, f)],
    "held out, wrong": [p for f, r, p in said["held out"] if not states(r.text, f)],
    "absent, wrong": [p for f, r, p in said["absent"] if not states(r.text, f)],
}
fig, axes = show.figure(7, 2.6, alt="Probability of its own reply: held out right, and wrong ones.")
for row, (kind, found) in enumerate(kinds.items()):
    heights = [row + 0.5 * (i / len(found) - 0.5) for i in range(len(found))]
    axes.plot(sorted(found), heights, markersize=3, linestyle="", **look("SFT", "right" in kind))
    middle = sorted(found)[len(found) // 2] if found else 0
    print(f"{kind:<16} n = {len(found):>3}, median probability {middle:.2f}")
axes.set_yticks(range(len(kinds)), list(kinds))
axes.set(xlabel="probability that the model gives its whole reply", xlim=(0, 1.02))
axes.invert_yaxis()
plt.show()

# %% [markdown]
# It answers all the same, in the calm voice that it learned: the table's replies read like the right ones. Often
# they are about something else that resembles what was asked. The probability tells you part: right replies are
# mostly likelier than wrong ones, but many lie where the wrong ones do, and the reader of a reply never sees it.
# (It is low even for right replies, since it counts the choice of the wording and of the end as well.) SFT taught
# the *form* of an answer, and a question without an answer has the same form. Larger models do this, too
# ([Lin et al. 2021](https://arxiv.org/abs/2109.07958)).
#
# ### And the rest
#
# - **Safety** is not measured here at all. The data holds no harmful requests and no refusals of them, so
#   you know nothing about what this model does with one. Even a model made safe can lose it to harmless
#   fine-tuning ([Qi et al. 2023](https://arxiv.org/abs/2310.03693)).
# - **Tools**: a model can learn to write a call, but something outside must run it (lecture 11).
# - **Evaluation**: the tables above are a start. They judge form and a few facts, by prompts that we wrote.
#
# ## Three confusions, three numbers

# %%
stop = {str(c): f"{estimates['stops'][str(c)].mean:.0%}" for c in conditions}
print("recorded: stops, same prompts, same ids:", stop)

# %% tags=["measured"]
stop = {str(c): f"{measured['stops'][str(c)].mean:.0%}" for c in conditions}
print("live: stops, same prompts, same ids:", stop)

# %% [markdown]
# **"Is chat formatting just prompt engineering?"** No. Base and tuned model got *the same ids* in the two
# template columns, and the stop rates above are theirs: what differs is the weights. Nor are the weights all:
# without its template the tuned model obeys fewer rules, and the tuned real base stops less often. Format and weights
# keep a contract that was made in training.
#
# **"Does SFT change the architecture?"** No. The assertion in *What moved in the weights?* compares every
# name and shape. The numbers moved, by the few percent of their size that the heat map shows.
#
# **"Why not instruct the base better?"** Often worth trying: three examples made the base answer (*Ask the base
# better*), and a careful prompt brings larger bases close to their tuned versions
# ([Lin et al. 2023](https://arxiv.org/abs/2312.01552)). It costs tokens in every request, and it does not end
# the reply: the last lines printed there say how many of the base's replies stopped.
#
# ## Take-aways
#
# - What changed is behaviour: the model stops, begins with an answer, and keeps to rules of form that it was shown in
#   parts. The facts are those of the base: most of what SFT never asked about, nothing that was absent from its web.
# - A number without an interval is a rumour. At 20 prompts, two equal models differ by 15 points or
#   more in four tests of ten.
# - The measures see form. Neither truth nor safety nor quality is in the table, and form alone can win it.
#
# Exercises: [../exercises/09_base_against_sft.ipynb](../exercises/09_base_against_sft.ipynb)
#
# ## Quiz
#
# <details><summary>1. Somebody reports that fine-tuning raised the mean reply length of the base from 60 to 150
# words, with max_new_tokens at 200. What do you ask first?</summary>
#
# How many replies were cut off. A reply that was cut has no length of its own, so the mean says more about the
# limit than about the model.
#
# </details>
#
# <details><summary>2. A tuned model stops in 20 of 20 tests. A colleague concludes that it always stops. What do
# you answer?</summary>
#
# The Wilson interval of 20 of 20 is printed above: it reaches well below 100 %. A model that stops in nine of
# ten cases would pass this test with probability 0.9 to the power of 20, about one time in eight.
#
# </details>
#
# <details><summary>3. A colleague fine-tunes on 5,000 questions with answers about your product. It now answers
# questions that were not among them. Has it learned your product?</summary>
#
# Not necessarily. Here the tuned model answered facts that SFT never asked about, too, because the base had
# read them. Hold some facts out of *both* pretraining and SFT, as the absent group is, and ask for those.
#
# </details>
