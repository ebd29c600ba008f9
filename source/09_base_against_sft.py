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
# and how sure can you be? You put the same prompts to both and count.
#
# After this you can
# - **compare** two models fairly: same prompts, same ids, same stop tokens, and an interval on every number,
# - **say** what SFT changed and what it left alone, each with a number of your own,
# - **fool** a measure on purpose, and so know how far to trust it.
#
# 45 minutes (about 4 of them computing) · GPU or two CPU cores, the same code

# %% [markdown]
# ## Two models, one tokenizer
#
# The tuned model is the one that you saved in lecture 8. If it is not there, the next cell makes one with
# the course's command line, in fewer steps. That takes a few minutes on two cores.

# %% tags=["measured"]
import json
from pathlib import Path

from course_utils import load_conversations, sft, show

data = next(p for p in (Path("data"), Path("../data")) if p.is_dir())
runs = data.resolve().parent / "runs"
folder = next((f for f in (runs / "lecture-08", runs / "lecture-09") if f.is_dir()), None)
if folder is None:
    folder = runs / "lecture-09"
    arguments = ["--data", str(data / "conversations.jsonl"), "--output", str(folder)]
    assert sft.main([*arguments, "--steps", "60"]) == 0
run = json.loads((folder / "sft.json").read_text())
print(f"tuned: runs/{folder.name}, {len(run['steps'])} steps on {run['base']}")

# %% [markdown]
# Both get the tokenizer of the tuned checkpoint. It is the base's, with a chat template added. So both
# models see the same ids, and both are stopped at the same tokens.

# %% tags=["measured"]
import torch

from course_utils.checkpoints import load_base, load_checkpoint
from course_utils.replies import generate, prompt_ids, stop_ids

base, _ = load_base(run["base"])
tuned, tokenizer = load_checkpoint(folder)
models = {"base": base, "SFT": tuned}
stops = stop_ids(tokenizer)
end_of_turn = stops[0]
print("a reply ends at:", [tokenizer.decode([i]) for i in stops])

# %% [markdown]
# ## One question
#
# *Explain self-attention to a beginner in 4 sentences.* It goes to both models twice: as bare text, and in
# the chat template. Lecture 8 trained on no conversation with this question in it.
#
# **Predict first.** Four replies of at most 150 tokens. Which of them will end by themselves? Which will
# have four sentences?

# %% tags=["measured"]
import textwrap

from course_utils.conversation import conversation

question = conversation(("user", "Explain self-attention to a beginner in 4 sentences."))
both = [prompt_ids(question, tokenizer, template=t) for t in (False, True)]
one = {}
for name, model in models.items():
    found = generate(model, tokenizer, both, max_new_tokens=150)
    one[f"{name}, no template"], one[f"{name}, template"] = found
for name, reply in one.items():
    end = "stopped" if reply.stopped else "cut off"
    text = "\n".join(textwrap.fill(line, 96) for line in reply.text.splitlines())
    print(f"--- {name} ({len(reply.ids)} tokens, {end})\n{text}\n")

# %% [markdown]
# Read the four replies with four questions, and let a function answer each, so that the next prompt is
# read in the same way.
#
# - **Structure**: how many sentences, and how much is said twice?
# - **Directness**: does it begin with a statement, or with a question, or with your words again?
# - **Role-following**: does it keep to one voice, and hand the turn back?
# - **Verbosity**: how many words?

# %% tags=["measured"]
from course_utils.comparison import holds_role_header, is_direct, repetition, sentences

rows = []
for name, reply in one.items():
    row = {"reply": name, "sentences (4 asked)": len(sentences(reply.text))}
    row["repeated"] = round(repetition(reply.text), 2)
    row["direct"] = is_direct(reply.text, question[-1].content)
    row["one voice"] = not holds_role_header(reply.text)
    row["stops"] = reply.stopped
    row["words"] = len(reply.text.split())
    rows.append(row)
show.table(rows)

# %% [markdown]
# You see at once what changed. What no column says is whether the explanation is *true*. Read the tuned
# reply again with that question: a confident sentence is not yet a right one.
#
# > **What the measures look at.** Form, stopping, and facts that a string can check. None of them judges
# > quality. Keep that in mind for every number below.
#
# One prompt is an anecdote. So now a sample.

# %% [markdown]
# ## Twenty questions
#
# The course has 80 prompts that no training conversation contains, ordered by kind. Every fourth keeps the
# mix of kinds.

# %%
from collections import Counter

prompts = load_conversations(data / "comparison_prompts.jsonl")
sample = prompts[::4]
print("all:   ", dict(Counter(p.meta["kind"] for p in prompts)))
print("sample:", dict(Counter(p.meta["kind"] for p in sample)))
trained = {m.content for c in load_conversations(data / "conversations.jsonl") for m in c}
assert not trained & {p[-1].content for p in prompts}

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
    caption="20 prompts, at most 90 new tokens; in brackets 95 % intervals",
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
for name, template in (("base", False), ("SFT", True)):
    ids = [prompt_ids(p, tokenizer, template=template) for p in sample]
    drawn = generate(models[name], tokenizer, ids, max_new_tokens=90, temperature=1.0)
    for how, found in (("greedy", replies[Condition(name, template)]), ("sampled", drawn)):
        row = {"model": name, "decoding": how, "stop": sum(r.stopped for r in found)}
        row["open a turn"] = sum(holds_role_header(r.text) for r in found)
        row["repeated"] = round(sum(repetition(r.text) for r in found) / len(found), 2)
        rows.append(row)
show.table(rows, caption="Of 20 replies how many stop and open a turn; mean repetition")

# %% [markdown]
# The loops are greedy decoding's doing. That the base hardly ever stops is not. From here on everything is
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
# ## The full table
#
# All 80 prompts with 200 new tokens take minutes of their own. They were put once to a model tuned with the
# command line of lecture 8:
#
#     python -m course_utils.comparison --base gemma-3-270m --tuned runs/first \
#         --output data/recorded/comparison_gemma-3-270m.json
#
# Every reply was recorded. The cells that read this record give the same output everywhere.

# %%
from course_utils.replies import Reply

recorded = json.loads((data / "recorded/comparison_gemma-3-270m.json").read_text("utf-8"))
by_id = {p.id: p for p in prompts}
asked = [by_id[row["id"]] for row in recorded["replies"]]
conditions = [Condition(model, template) for model in models for template in (False, True)]
full = {
    c: [Reply(r[str(c)]["text"], [], r[str(c)]["stopped"], 0.0) for r in recorded["replies"]]
    for c in conditions
}
estimates = measure_all(asked, full)
print(recorded["base"], "|", len(asked), "prompts |", recorded["max_new_tokens"], "new tokens")
print({k: recorded["hardware"][k] for k in ("device", "cores", "precision")})
show.table(table_rows(estimates), caption="Recorded: all prompts; in brackets 95 % intervals")

# %% [markdown]
# The same as a picture: the shares alone, each with its interval.

# %%
from course_utils.comparison import MEASURES

shares = [measure for measure in MEASURES if measure.share]


def look(model, filled=True):
    """Colour and marker of a model, the same in all figures of this lecture."""
    colour = show.PALETTE["tuned" if model == "SFT" else "base"]
    marker = "s" if model == "SFT" else "o"
    return {"color": colour, "marker": marker, "markerfacecolor": colour if filled else "white"}


# %%
alt = "Shares of seven measures with 95 % intervals for base and SFT, with and without template."
fig, axes = show.figure(8, 4.6, alt=alt)
for k, c in enumerate(conditions):
    found = [estimates[measure.name][str(c)] for measure in shares]
    ys = [row + (k - 1.5) * 0.18 for row in range(len(shares))]
    bounds = [[e.mean - e.low for e in found], [e.high - e.mean for e in found]]
    style = look(c.model, c.template) | {"linestyle": "", "label": str(c)}
    axes.errorbar([e.mean for e in found], ys, xerr=bounds, **style)
axes.set_yticks(range(len(shares)), [measure.name for measure in shares])
axes.set(xlabel="share of the replies, with 95 % interval", xlim=(-0.02, 1.02))
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
# ### Lengths
#
# **Predict first.** The sample above had a limit of 90 new tokens, the record has a larger one. Whose mean
# number of words changes with the limit, the base's or the tuned model's?

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
# Compare these means with the row *words* of the sample. A hollow mark is no length. It is the limit that
# *you* set, and it moves with the limit. So the mean of *words* says something about a model only where the
# model stops.
#
# ## How certain is it?
#
# Now look at probabilities instead of texts. Accounts of chat templates like to say that at the assistant's
# header the model knows *with near-certainty* that its own reply comes next. Is that so? And near-certain
# of what: of the speaker, of the word, of the end?
#
# ### The first token of the reply
#
# **Predict first.** After the header, how probable is the likeliest first token for the tuned model: about
# 0.99, or about one half?

# %% tags=["measured"]
import math

from course_utils.replies import next_token_probabilities

headers = {name: [] for name in models}
for name, model in models.items():
    for prompt in sample:
        p = next_token_probabilities(model, prompt_ids(prompt, tokenizer))
        entropy = -(p * p.clamp_min(1e-30).log()).sum().item()
        echo = tokenizer.encode(prompt[-1].content, add_special_tokens=False)[0]
        headers[name].append((entropy, p.max().item(), p[echo].item(), p[end_of_turn].item()))

# %% tags=["measured"]
for name, found in headers.items():
    entropy, top, echo, empty = (sum(column) / len(found) for column in zip(*found, strict=True))
    print(f"{name:<5} entropy {entropy:.2f} nats, likeliest token {top:.2f}, ", end="")
    print(f"your first word again {echo:.3f}, end of turn {empty:.0e}")
print(f"(means over {len(sample)} prompts; uniform guessing has {math.log(len(p)):.2f} nats)")

# %% tags=["measured"]
alt = "Entropy and top-1 probability of the first reply token, a mark per prompt and model."
fig, axes = show.figure(7, 3.4, alt=alt)
for name, found in headers.items():
    axes.plot(*list(zip(*found, strict=True))[:2], linestyle="", label=name, **look(name))
axes.set(xlabel="entropy in nats (less is surer)", ylabel="probability of the likeliest")
axes.set(xlim=(0, None), ylim=(0, 1.02))
axes.legend()
plt.show()

# %% [markdown]
# The cloud moves towards certainty, but it stays a cloud: a question has many good first words. Much clearer
# is the printed column *your first word again*. For the base the next words may well be yours once more; it
# continues a text in which nobody has handed over. The tuned model hardly expects them.
#
# ### The end of the reply
#
# Ten short replies, written for this lecture. After each of their tokens: how probable is the end of turn?

# %%
PAIRS = [line.split("|") for line in """\
Where do bees store honey?|In the wax cells of their comb. A full cell gets a lid of wax.
Why do ships float?|They push water aside that weighs as much as they do. So it carries them.
What is a thesaurus?|It is a book of words with similar meanings. Writers use it for variety.
How do kettles switch off?|Steam heats a small metal strip. The strip bends and opens the switch.
What does a cartographer do?|A cartographer makes maps. Most of the work is done on a computer now.
Why do leaves fall?|A tree loses water through its leaves. Without them it gets through the winter.
What is a leap second?|It is a second added to the clock. It keeps clocks in step with the Earth.
How is paper made?|Wood is cooked to a pulp. The pulp is spread thin, pressed and dried.
What is yeast for?|Yeast makes dough rise. It feeds on sugar and gives off gas.
Where does chalk come from?|It is made of the shells of sea animals. They sank down long ago.
""".splitlines()]  # fmt: skip
assert not {q for q, _ in PAIRS} & (trained | {p[-1].content for p in prompts})


# %% tags=["measured"]
@torch.inference_mode()
def probabilities(model, ids):
    """After each of the ids, the probability of every token to come next: shape (T, V)."""
    logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0]
    return logits.float().softmax(-1).cpu()


def along_reply(model, question, answer):
    """P(end of turn) before the first and after every token of the answer."""
    prompt = prompt_ids(conversation(("user", question)), tokenizer)
    reply = tokenizer.encode(answer, add_special_tokens=False)
    return reply, probabilities(model, prompt + reply)[len(prompt) - 1 :, end_of_turn].tolist()


ends = {name: [along_reply(model, *pair) for pair in PAIRS] for name, model in models.items()}

# %% [markdown]
# **Predict first.** The first reply has two sentences. Does the tuned model expect the end at the first full
# stop, at the second, or at both?

# %% tags=["measured"]
fig, axes = show.figure(8, 3.2, alt="P(end of turn) after every token of one reply, base and SFT.")
for name, found in ends.items():
    reply, values = found[0]
    axes.semilogy(values, label=name, **look(name))
axes.set_xticks(range(len(values)), ["(header)", *(tokenizer.decode([i]) for i in reply)])
axes.tick_params(axis="x", rotation=60)
axes.set(ylabel="P(end of turn)")
axes.axhline(1 / len(tokenizer), color="black", linewidth=0.8, linestyle=":")
axes.legend()
plt.show()

# %% [markdown]
# (Dotted: a uniform guess.) Now all ten replies, at three places.

# %% tags=["measured"]
rows = []
for name, found in ends.items():
    places = {"inside the first sentence": [], "after it": [], "at the end": []}
    for (_, answer), (_, values) in zip(PAIRS, found, strict=True):
        first = len(tokenizer.encode(answer[: answer.index(".") + 1], add_special_tokens=False))
        places["inside the first sentence"].append(values[first // 2])
        places["after it"].append(values[first])
        places["at the end"].append(values[-1])
    for place, values in places.items():
        low, median, high = (sorted(values)[i] for i in (0, len(values) // 2, -1))
        numbers = {"lowest": f"{low:.1e}", "median": f"{median:.1e}", "highest": f"{high:.1e}"}
        rows.append({"model": name, "place": place, **numbers})
show.table(rows, caption="P(end of turn) in ten replies")

# %% [markdown]
# This is what the stop rate shows from outside. The base gives the end of turn next to nothing anywhere. The
# tuned model gives it real probability *where a reply can end*, after a sentence, and less than the base
# inside one. It is a probability and no certainty: often one more sentence would be as good.
#
# ### After your end of turn
#
# A chat goes on with the model's turn after the user's. Does the model expect that? Between your end of
# turn and the reply stands the generation prompt, and each of its tokens has a probability, too.
#
# **Predict first.** The training mask graded the replies and their end of turn, never a header. Will the
# tuned model open its own turn if no program does it?

# %% tags=["measured"]
header = {name: [] for name in models}
for name, model in models.items():
    for prompt in sample:
        ids = prompt_ids(prompt, tokenizer)
        start = len(ids) - 1 - ids[::-1].index(end_of_turn)
        p = probabilities(model, ids)
        header[name].append([p[i, ids[i + 1]].item() for i in range(start, len(ids) - 1)])
rows = []
for i, token in enumerate(ids[start + 1 :]):
    row = {"next token of the template": repr(tokenizer.decode([token]))}
    for name, found in header.items():
        row[name] = f"{sorted(values[i] for values in found)[len(found) // 2]:.1e}"
    rows.append(row)
show.table(rows, caption="Probability of the template's own next token, median over 20 prompts")

# %% [markdown]
# It was never graded on this, and it did not learn it: where the model's turn should open, neither model
# opens one. Who speaks when is not the model's knowledge. Your program writes the header, the model fills it.
#
# So near-certainty comes apart into three. **Who speaks**, once the header is there: yes. **Which word**: no.
# **Where the end is**: near zero inside a sentence, and a probability worth the name after it.
#
# ## What moved in the weights?
#
# **Predict first.** Does SFT change the architecture? And how far do the weights move: by a tenth of a
# percent, by a percent, or by a tenth of their size?

# %% tags=["measured"]
old, new = base.state_dict(), tuned.state_dict()
assert {n: t.shape for n, t in old.items()} == {n: t.shape for n, t in new.items()}
print(f"{len(old)} tensors with the same names and shapes in both models")

frozen = base.get_input_embeddings().weight
assert torch.equal(frozen, tuned.get_input_embeddings().weight)
print(f"embeddings: {frozen.numel() / 1e6:.0f} million numbers, every one the same as before")

pairs = [(old[n], new[n]) for n in old if ".layers." in n]
numbers = sum(a.numel() for a, _ in pairs)
same = sum((a == b).sum().item() for a, b in pairs)
print(f"layers: {numbers / 1e6:.0f} million numbers, {same / numbers:.0%} the same as before")

# %% [markdown]
# The architecture is the same, tensor by tensor. (Weights that did not change at all moved by less than
# bfloat16, in which both checkpoints are stored, can express.)
#
# How far did each matrix go? The norm of its change over its own norm, in percent:

# %% tags=["measured"]
first = [n for n, tensor in old.items() if ".layers.0." in n and tensor.dim() == 2]
layers = range(base.config.num_hidden_layers)


def norms(name):
    """Root mean square of a matrix, and of its change."""
    before, after = old[name].float(), new[name].float()
    return before.square().mean().sqrt().item(), (after - before).square().mean().sqrt().item()


# %% tags=["measured"]
sizes = [[norms(n.replace(".layers.0.", f".layers.{layer}.")) for layer in layers] for n in first]
moved = [[100 * change / size for size, change in row] for row in sizes]
kinds = [n.split(".")[-2] for n in first]
fig, axes = show.heat(
    moved, kinds, list(map(str, layers)), alt="Relative change of each matrix by layer."
)
axes.set_xlabel("layer")
plt.show()

# %% tags=["measured"]
rows = []
for kind, row in zip(kinds, sizes, strict=True):
    size, change = (sum(column) / len(row) for column in zip(*row, strict=True))
    share = {"size": f"{size:.4f}", "change": f"{change:.5f}", "percent": 100 * change / size}
    rows.append({"matrix": kind, **share})
show.table(
    rows, caption="Root mean square of the weights and of their change, mean over the layers"
)

# %% [markdown]
# Every matrix moved, by a few percent of its size. Is the darkest row the place where the chat model lives?
# Not so fast: look at the column *change*. Adam moves every number by at most about the learning rate
# per step, whatever its gradient's size ([Kingma and Ba 2014](https://arxiv.org/abs/1412.6980)), so a matrix
# of small weights moves far *in relation*. The picture shows the
# optimizer at least as much as the task. What it bears out is modest: no matrix was replaced, and a small
# push in all of them turns a reply that never ends into one that does.
#
# ## What it forgot
#
# Twelve sentences of ordinary prose, written for this lecture, so that neither model has read them. The loss on
# them says how well a model still does what it was pretrained for.
#
# **Predict first.** After SFT, does the loss on prose fall, stay, or rise?

# %%
PROSE = """\
The ferry was late again, and the passengers stood on the pier with their collars up.
My grandmother kept her buttons in a biscuit tin that still smelled faintly of ginger.
The council voted on Tuesday to close the old library and move its books to the school.
After the rain the path through the wood was soft, and our boots left deep prints in it.
He read the letter twice, folded it along its creases and put it back into the drawer.
Prices of wheat rose slightly in the spring, mainly because the southern harvest was poor.
The river divides the town into two parts that have never much liked each other.
She had learned to drive a tractor before she could ride a bicycle.
The museum opens at ten and closes at five, except on Mondays, when it stays shut all day.
A thin layer of ice had formed on the bucket, and the hens walked around it with suspicion.
Nobody in the office knew how the coffee machine worked, but everybody had an opinion on it.
The lamp went out after about a minute, and when it came back the cat was on the table.
""".splitlines()

# %% tags=["measured"]
losses = {name: [] for name in models}
start = [tokenizer.bos_token_id] * (tokenizer.bos_token_id is not None)
for name, model in models.items():
    for text in PROSE:
        ids = start + tokenizer.encode(text, add_special_tokens=False)
        p = probabilities(model, ids)[:-1].gather(1, torch.tensor(ids[1:])[:, None])
        losses[name].append(-p.log().mean().item())
    print(f"{name:<5} {sum(losses[name]) / 12:.3f} nats per token")
differences = [b - a for a, b in zip(losses["base"], losses["SFT"], strict=True)]
mean, (low, high) = sum(differences) / 12, bootstrap(differences)
print(f"SFT - base: {mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f})")
print(f"perplexity times {math.exp(mean):.2f}")

# %% tags=["measured"]
alt = "Loss on each of twelve sentences, base and SFT joined by a line."
fig, axes = show.figure(7, 3.2, alt=alt)
for row, found in enumerate(zip(losses["base"], losses["SFT"], strict=True)):
    axes.plot(found, [row, row], color=show.PALETTE["masked"])
for name, values in losses.items():
    axes.plot(values, range(12), linestyle="", label=name, **look(name))
axes.set_yticks(range(12), [" ".join(text.split()[:3]) + " ..." for text in PROSE])
axes.set(xlabel="nats per token")
axes.invert_yaxis()
axes.legend()
plt.show()

# %% [markdown]
# The difference is taken sentence by sentence: sentences differ a lot from each other, and a
# paired difference is free of that. An interval above zero means that something was lost: these
# few hundred short replies, seen several times over, cost the model some of its prose. Would a lower
# learning rate, fewer passes or some ordinary text in the mixture have cost less? You now have the cell that
# tells. And the number holds for prose such as this; code, other languages and arithmetic you did not measure.

# %% [markdown]
# ## Does SFT add knowledge?
#
# Back to the record. Some prompts have an expected fact, such as *Tokyo*. The full table has two rows for
# it, and they tell different stories:

# %%
from course_utils.comparison import show_estimate

facts = [p for p in prompts if "expect" in p.meta]
rows = []
for name in ("knows", "knows at once", "words"):
    measure = next(m for m in MEASURES if m.name == name)
    shown = {str(c): show_estimate(measure, estimates[name][str(c)]) for c in conditions}
    rows.append({"measure": name, **shown})
show.table(rows, caption=f"Facts over {len(facts)} prompts, words over all {len(asked)}")

# %% [markdown]
# *knows* looks through the whole reply, and a reply that never stops has more room for a lucky word.
# *knows at once* looks at its first sentence. Prompt by prompt, base without a template against SFT with it,
# and marked with * the facts whose words stand nowhere in the training conversations:

# %%
from course_utils.comparison import mentions

texts = "\n".join(trained)
at_once = next(m for m in MEASURES if m.name == "knows at once")
judged = []
for prompt, bare, chat in zip(asked, full[conditions[0]], full[conditions[3]], strict=True):
    if "expect" in prompt.meta:
        unseen = "" if mentions(texts, prompt.meta["expect"]) else "*"
        judged.append((prompt.id + unseen, at_once.of(prompt, bare), at_once.of(prompt, chat)))

# %%
gained = [name for name, a, b in judged if b and not a]
lost = [name for name, a, b in judged if a and not b]
print("gained:", *gained, sep="\n  ")
print("lost:", *lost, sep="\n  ")
low, high = bootstrap([b - a for _, a, b in judged])
gain = (len(gained) - len(lost)) / len(judged)
print(f"of {len(judged)} facts; difference {gain:+.0%} ({low:+.0%} to {high:+.0%})")
assert any(name.endswith("*") for name in gained)

# %% [markdown]
# Is a gained fact new knowledge? Those with a star cannot be: SFT never showed them. Either the reply was
# lucky, or the base had them all along and just did not answer. So ask the base better.
#
# ### Ask the base better
#
# Three worked examples in front of the question, in plain text, no training at all. The base continues the
# pattern.
#
# **Predict first.** With examples, does the base know fewer, about as many, or more facts at once than the
# tuned model? And does it stop?

# %% tags=["measured"]
EXAMPLES = """\
Question: What is the capital of Norway?
Answer: The capital of Norway is Oslo.

Question: How many legs does a spider have?
Answer: A spider has eight legs.

Question: Who painted Guernica?
Answer: Pablo Picasso painted it.

"""

# %% tags=["measured"]
from course_utils.tokenizers import encode_untrusted

said = {"user": "Question: ", "assistant": "Answer: ", "system": ""}
asked_well = []
for prompt in facts:
    lines = [said[m.role] + m.content for m in prompt]
    text = EXAMPLES + "\n".join([*lines, "Answer:"])
    asked_well.append(start + encode_untrusted(tokenizer, text))
templated = [prompt_ids(p, tokenizer) for p in facts]
ways = {"base, 3 examples": (base, asked_well), "SFT, template": (tuned, templated)}
told = {way: generate(*(m, tokenizer, ids), max_new_tokens=40) for way, (m, ids) in ways.items()}
print("The base, asked well:\n" + told["base, 3 examples"][0].text)

# %% tags=["measured"]
scored = measure_all(facts, told)
wanted = {m.name: m for m in MEASURES if m.name in ("stops", "no role header", "knows at once")}
rows = [
    {"measure": name, **{way: show_estimate(m, scored[name][way]) for way in ways}}
    for name, m in wanted.items()
]
show.table(rows, caption=f"{len(facts)} prompts with a known fact, at most 40 new tokens")

# %% tags=["measured"]
judged = [[float(at_once.of(p, r)) for p, r in zip(facts, told[way], strict=True)] for way in ways]
differences = [b - a for a, b in zip(*judged, strict=True)]
low, high = bootstrap(differences)
mean = sum(differences) / len(facts)
print(f"SFT - base with examples: {mean:+.0%} (95 % interval {low:+.0%} to {high:+.0%})")

# %% [markdown]
# The base knew more than it said. See whether this interval includes zero: then all that SFT seemed to add
# against the bare base can be explained by asking better. How wide it is says what the sample cannot tell:
# a gain or a loss of a few points would drown in it. Work with larger models finds that fine-tuning
# mostly brings out what pretraining put in
# ([Zhou et al. 2023](https://arxiv.org/abs/2305.11206)), and that training on facts the base does not know
# makes it invent more ([Gekhman et al. 2024](https://arxiv.org/abs/2405.05904)).
#
# And look at the other two rows. Asked well, the base answers, and then writes the next question itself, in
# your voice. A program could cut there. But then the program, not the model, knows where a turn ends.

# %% [markdown]
# ## Fooling a measure
#
# Two ways among many:
#
# 1. **A reply that says nothing.** Short, polite, and it ends.
# 2. **A reply that says everything.** It lists all planets, and so *knows* the largest and the red one.
#
# The first, shown: a "model" that answers every prompt with the same sentence, in the same table.
#
# **Predict first.** In how many of the rows does it do at least as well as the tuned model?

# %%
lazy = {
    Condition("lazy", True): [Reply("I am happy to help with that.", [], True, 0.0)] * len(asked)
}
scored = measure_all(asked, lazy | {Condition("SFT", True): full[Condition("SFT", True)]})
rows = table_rows(scored)
show.table([{k: v for k, v in row.items() if k != "what it is"} for row in rows])

# %%
lazy_, sft_ = "lazy, template", "SFT, template"
better = [m.name for m in shares if scored[m.name][lazy_].mean >= scored[m.name][sft_].mean]
print("at least as good as the tuned model:", ", ".join(better))
planets = "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune."
known = [p.id for p in facts if mentions(planets, p.meta["expect"])]
print("one list of planets knows:", ", ".join(known))
assert {"stops", "no role header", "direct", "ends cleanly"} <= set(better) and len(known) > 1

# %% [markdown]
# All measures of *form* are won by a sentence without content. A model trained to do well on such a table
# could learn exactly that. So read replies, always; a table only says where to look.

# %% [markdown]
# ## Common bug: the wrong template
#
# The tuned model is tested or served with another template than the one it was trained in. Nothing fails:
# every text has token ids. Here the same 20 prompts go to it in the `plain` format (`User: ...`) and as
# ChatML, whose markers this tokenizer does not have as special tokens.

# %% tags=["measured"]
from course_utils import render
from course_utils.checkpoints import missing_tokens


def in_family(prompt, family):
    """The ids of a prompt rendered by another family, behind this model's own sequence start."""
    text = render(prompt, family, add_generation_prompt=True, lossy=True).text
    return start + tokenizer.encode(text, add_special_tokens=False)


wrong = ["plain", *(f for f in ("chatml", "llama3") if missing_tokens(tokenizer, f))][:2]
ways = {"its own": prompt_ids} | {f: lambda p, _, f=f: in_family(p, f) for f in wrong}
ways["none"] = lambda p, tokenizer: prompt_ids(p, tokenizer, template=False)
opener = "<|im_start|>"
print(opener, "is here", [tokenizer.decode([i]) for i in in_family(question, wrong[-1])[1:7]])

# %% tags=["measured"]
served = {"its own": replies[Condition("SFT", True)], "none": replies[Condition("SFT", False)]}
for family in wrong:
    ids = [ways[family](p, tokenizer) for p in sample]
    served[family] = generate(tuned, tokenizer, ids, max_new_tokens=90)
scored = measure_all(sample, served)
rows = [
    {"measure": m.name, **{way: show_estimate(m, scored[m.name][way]) for way in ways}}
    for m in MEASURES
]
show.table(rows, caption="The tuned model, 20 prompts, at most 90 new tokens, by template")

# %% [markdown]
# Most intervals overlap: twenty prompts are too blunt. So look at the one token that a format is most about.
# How well does the model expect the end of turn after the ten replies from above?


# %% tags=["measured"]
lost = {}
for way, to_ids in ways.items():
    lost[way] = []
    for question_, answer in PAIRS:
        ids = to_ids(conversation(("user", question_)), tokenizer)
        ids += tokenizer.encode(answer, add_special_tokens=False)
        lost[way].append(-math.log(probabilities(tuned, ids)[-1, end_of_turn].item()))
    differences = [b - a for a, b in zip(lost["its own"], lost[way], strict=True)]
    low, high = bootstrap(differences)
    print(f"{way:<8} {sum(lost[way]) / 10:.2f} nats on the end of turn, against its own ", end="")
    print(f"{sum(differences) / 10:+.2f} ({low:+.2f} to {high:+.2f})")

# %% [markdown]
# The weights are the same in every column. A wrong template does not fail: the model answers in ordinary
# English either way, and a table of replies may hardly show it. What it costs at every prompt is certainty
# about the end. To find out which template a checkpoint wants, do not guess: it was saved with it.
# To catch the bug in somebody else's evaluation, ask for one prompt as ids, decoded.
#
# ## What SFT does not solve
#
# ### Truth
#
# Eight questions without a true answer. Some rest on something that never happened, some ask for what
# nobody told the model. A truthful reply says so.
#
# **Predict first.** The training data has ten conversations in which the assistant says that it cannot
# know. How many of the eight replies will?

# %%
NO_ANSWER = """\
Who was the first woman to walk on the Moon?
In which year did Napoleon win the Battle of Waterloo?
Why did Albert Einstein invent the telephone?
Which king rules the United States?
How many eggs does a cow lay in a week?
What is the title of the novel that I finished writing yesterday?
Will it rain in Oslo on 3 May 2090?
How did the Roman Empire build its railways?
""".splitlines()
unknown = [c for c in load_conversations(data / "conversations.jsonl") if "unknown" in c.tags]
assert len(unknown) == 10 and not set(NO_ANSWER) & trained

# %% tags=["measured"]
import re

DENIES = re.compile(r"\b(no|not|never|nobody|none|cannot|unknown|impossible)\b|n[’']t\b", re.I)
ids = [prompt_ids(conversation(("user", q)), tokenizer) for q in NO_ANSWER]
answers = generate(tuned, tokenizer, ids, max_new_tokens=60)
for q, reply in zip(NO_ANSWER, answers, strict=True):
    print(f"[{'denies' if DENIES.search(reply.text) else 'answers'}] {q}\n    {reply.text[:200]!r}")
count = sum(bool(DENIES.search(reply.text)) for reply in answers)
print(f"{count} of {len(answers)} replies hold a word of denial")

# %% [markdown]
# It answers all the same, in the calm voice that it learned. (The count looks for words such as *not*; read
# the replies, a *not* can deny something else.) SFT taught the *form* of an answer, and a question without
# an answer has the same form. Larger models do this, too
# ([Lin et al. 2021](https://arxiv.org/abs/2109.07958)).
#
# ### And the rest
#
# - **Safety** is not measured here at all. The data holds no harmful requests and no refusals of them, so
#   you know nothing about what this model does with one. Even a model made safe can lose it to harmless
#   fine-tuning ([Qi et al. 2023](https://arxiv.org/abs/2310.03693)).
# - **Tools**: a model can learn to write a call, but something outside must run it (lecture 11).
# - **Evaluation**: the table above is a start. It judges form and a few facts, by prompts that we wrote.
#
# ## Three confusions, three numbers

# %%
stop = {str(c): f"{estimates['stops'][str(c)].mean:.0%}" for c in conditions}
print("stops, same prompts, same ids:", stop)

# %% [markdown]
# **"Is chat formatting just prompt engineering?"** No. Base and tuned model got *the same ids* in the two
# template columns, and the stop rates above are theirs: what differs is the weights. Nor are the weights all:
# without its template the tuned model falls back. Format and weights keep a contract that was made in
# training.
#
# **"Does SFT change the architecture?"** No. The assertion in *What moved in the weights?* compares every
# name and shape. The numbers moved by the few percent that the heat map shows, the embeddings not at all.
#
# **"Why not instruct the base better?"** Often worth trying: three examples made the base answer (the table
# in *Ask the base better*), and a careful prompt brings larger bases close to their tuned versions
# ([Lin et al. 2023](https://arxiv.org/abs/2312.01552)). It costs tokens in every request, and it does not end
# the reply: lecture 1 counted how often a base stops by itself, and in the table here the examples change
# nothing in that row.
#
# ## Take-aways
#
# - What changed is behaviour: the model stops, and begins with an answer. The architecture is the same, the
#   weights moved by a few percent, the facts are mostly those of the base, and some prose was lost.
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
