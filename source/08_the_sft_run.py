# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 08 The SFT run
#
# Now a base model becomes one that answers and stops. The loop is the one that pretrained it.
# Only the batches are new, and you have built those yourself in lectures 2 to 6. What goes into them was
# [lecture 7](07_data_is_the_curriculum.ipynb).
#
# You train **course-base**, the small model that comes with the course. Beside it stands the same run on a
# real base, **gemma-3-270m**, recorded on two cores. Cells that show the recorded run say so. With
# `COURSE_BASE=gemma-3-270m` all other cells run on the real base instead.
#
# After this you can
# - **check** a run before it starts: sample, graded share, loss by kind of token,
# - **run** the five steps of supervised fine-tuning and give a reason for every hyperparameter,
# - **save** a checkpoint that stops wherever it is loaded and decoded greedily, and prove it.
#
# 40 minutes (2 to 6 of them computing) · two CPU cores or a GPU, the same code

# %% [markdown]
# ## The whole flow
#
# 1. load a base model,
# 2. load conversations under one schema,
# 3. render and mask them,
# 4. train for a controlled number of steps,
# 5. compare the result with the base (lecture 9).
#
# ## Step 1: a base model
#
# The weights are loaded in float32. You will see further down why not in bfloat16.

# %% tags=["measured"]
import torch

from course_utils import show
from course_utils.checkpoints import family_for, hardware, load_base, pick_base, use_family

name, why = pick_base()
print("Base:", why)
base, tokenizer = load_base(name, dtype=torch.float32)
template = tokenizer.chat_template
use_family(tokenizer, family_for(name, tokenizer))
for what, value in hardware().items():
    print(f"{what:<13}{value}")

# %% [markdown]
# A base model's tokenizer usually brings no chat template. The cell has given it one whose special tokens it has.
# `course-base` has those of every family, so the choice is free; ChatML is our default for it.

# %% tags=["measured"]
print("the base's own template:", template)
print("family that we gave it:", family_for(name, tokenizer))

# %% [markdown]
# ### Two bases, two shapes
#
# Both models have one embedding row per token of the vocabulary, and the output layer shares these rows.
#
# **Predict first.** `course-base` has 6 million parameters and a vocabulary of 4,096, `gemma-3-270m` has 268
# million and 262,144. What share of each is embedding rows: a tenth, a third, two thirds?

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt

recorded = Path("../data/recorded")
real = json.loads((recorded / "sft_gemma-3-270m_two-cores.json").read_text())
small = json.loads((recorded / "sft_course-base_two-cores.json").read_text())
pair = [small, real]

# %%
shares = [run["parameters"]["embedding"] / run["parameters"]["all"] for run in pair]
names = [run["base"] for run in pair]
show.bars(
    names,
    [100 * share for share in shares],
    xlabel="% of all parameters that are embedding rows (recorded)",
    alt=f"Bars: share of embedding rows, {shares[0]:.0%} and {shares[1]:.0%}.",
)
plt.show()
for run in pair:
    print(run["base"], run["parameters"])

# %% [markdown]
# This is why the two recipes differ. Training keeps three more numbers for every parameter that it
# trains: a gradient and two averages of it.

# %%
for run in pair:
    gib = run["parameters"]["embedding"] * 3 * 4 / 2**30
    print(f"{run['base']:<14} training the embeddings takes {gib:.2f} GiB more")

# %% [markdown]
# The real base was trained with its embeddings **frozen**, which saves nearly 2 GiB. For `course-base` there is nothing to save, and there is
# a reason to train some of its rows, which you will measure.
#
# ## Step 2: conversations
#
# `course-base` knows nothing but its mini-web, so its conversations are about that. They are made from the
# tables of facts, and leave some facts out on purpose:

# %%
from course_utils.miniweb import TELLINGS, facts
from course_utils.miniweb.facts import select

rows = []
for how in TELLINGS:
    row = {"the web tells it": how}
    row["asked about in SFT"] = len(select(facts(), telling=how, asked=True))
    row["never asked about"] = len(select(facts(), telling=how, asked=False))
    rows.append(row)
show.table(rows, caption="The facts of the mini-web")

# %% [markdown]
# *paraphrased*: told in many wordings; *fixed*: always in one and the same sentence; *absent*: on no page. Half
# of the first kind is never asked about in fine-tuning. If the tuned model answers questions about *those*, it
# has not learned the answers here.
#
# The next cell loads the conversations for your base. (For the real base they are the 250 of
# `data/conversations.jsonl`, written by hand.) Every 25th is set aside, to measure on, and with it what says the
# same word for word.

# %% tags=["measured"]
from collections import Counter

from course_utils.sft import default_conversations

every = default_conversations(name)
set_aside = every[::25]
unseen = {chat.messages for chat in set_aside}
conversations = [chat for chat in every if chat.messages not in unseen]
turns = Counter(sum(m.role == "assistant" for m in c) for c in conversations)
print(f"{len(conversations)} conversations to train on, {len(set_aside)} set aside")
print("assistant turns:", dict(sorted(turns.items())))
print("with a system text:", sum(c.roles[0] == "system" for c in conversations))

# %% tags=["measured"]
for number in (1, 2):
    print("for example:")
    for message in conversations[number]:
        print(f"  {message.role:<10}{message.content}")

# %% [markdown]
# ## Step 3: render and mask
#
# `prepare` makes training samples of all of them, and lists what it refuses with the reason. It never
# drops a row silently.

# %% tags=["measured"]
from course_utils.batching import prepare

prepared = prepare(conversations, tokenizer, max_length=512)
print(prepared)

# %% [markdown]
# ### Three checks before any training
#
# A wrong mask trains without an error, and its loss curve looks healthy. So look first.
#
# **Check 1: print one sample.** Read it. The filled boxes are what the model will be graded on.

# %% tags=["measured"]
shortest = min(prepared.samples, key=len)
show.sample(shortest, tokenizer)

# %% [markdown]
# **Check 2: the graded share.** Not against a rule of thumb (lecture 5 showed why there is none), but
# against what you expect of this data: long replies, high share.

# %% tags=["measured"]
shares = [s.graded_tokens / len(s) for s in prepared.samples]
fig, ax = show.figure(alt="Histogram of the graded share of each training sample.")
ax.hist(shares, bins=20, range=(0, 1), color=show.PALETTE["graded"])
ax.set_xlabel("graded share of a sample's tokens")
ax.set_ylabel("samples")
plt.show()
print(f"lowest {min(shares):.0%}, mean {sum(shares) / len(shares):.0%}, highest {max(shares):.0%}")

# %% [markdown]
# **Check 3: every graded span ends with the end of turn.** A span without it teaches a reply that
# never ends.

# %% tags=["measured"]
from course_utils.replies import stop_ids

end_of_turn = stop_ids(tokenizer)[0]
spans = [(s, g) for s in prepared.samples for g in s.graded]
ended = sum(s.labels[g.end - 1] == end_of_turn for s, g in spans)
print(f"{ended} of {len(spans)} graded spans end with {tokenizer.decode([end_of_turn])!r}")
assert ended == len(spans)

# %% [markdown]
# ## What the loss is
#
# The loss is the mean of −log p over the graded tokens. If the model knew nothing at all, every word
# of the vocabulary would be equally likely.
#
# You will measure it on three sets: conversations that the run trains on, the ones set aside, and questions
# about facts that no conversation asks about. The last two are never trained on.
#
# **Predict first.** The base has read a lot of text but no conversation in this template. Where is its
# loss highest: on the words of the replies, or on the end of turn?

# %%
from course_utils.batching import collate
from course_utils.masking import IGNORE_INDEX


@torch.inference_mode()
def token_losses(model, sample):
    """(label, loss in nats) of every graded token of a sample."""
    batch = {k: v.to(model.device) for k, v in collate([sample], 0).items()}
    logits = model(input_ids=batch["input_ids"]).logits[0, :-1]
    labels = batch["labels"][0, 1:]
    kept = labels != IGNORE_INDEX
    losses = torch.nn.functional.cross_entropy(logits[kept], labels[kept], reduction="none")
    return zip(labels[kept].tolist(), losses.tolist(), strict=True)


# %% tags=["measured"]
from course_utils.conversation import conversation

never = select(facts(), telling="paraphrased", asked=False)[::20]
asking = [conversation(("user", fact.question), ("assistant", fact.answer)) for fact in never]
probes = {
    "trained on": prepared.samples[:: len(prepared.samples) // 80 + 1],
    "set aside": prepare(set_aside, tokenizer).samples,
    "facts never asked about": prepare(asking, tokenizer).samples,
}


# %%


def loss_by_kind(model, samples):
    pairs = [pair for sample in samples for pair in token_losses(model, sample)]
    words = [loss for label, loss in pairs if label != end_of_turn]
    ends = [loss for label, loss in pairs if label == end_of_turn]
    return {"words": sum(words) / len(words), "end of turn": sum(ends) / len(ends)}


# %% tags=["measured"]
import math

before = {probe: loss_by_kind(base, samples) for probe, samples in probes.items()}
print(f"uniform guessing: {math.log(base.config.vocab_size):.2f} nats")
show.table([{"probe": f"{p} ({len(probes[p])})"} | before[p] for p in probes])

# %% [markdown]
# The words are known in part: the base can write. The end of turn is not: it costs more than a uniform
# guess, because in all of pretraining this token never came. **Stopping is what there is to learn.**
#
# ### Only where it is graded
#
# Turning a hidden state into logits takes one number per word of the vocabulary. For a batch that is
# the largest tensor of all where the vocabulary is large, and most of it would be thrown away by the mask.

# %% tags=["measured"]
from itertools import islice

from course_utils.batching import length_batches
from course_utils.sft import config_for

config = config_for(name)
batch = next(islice(length_batches(prepared.samples, config.batch_size), 1))
padded = collate(batch, tokenizer.pad_token_id)
graded = int((padded["labels"][:, 1:] != IGNORE_INDEX).sum())
positions = padded["labels"].numel()
print(f"batch {tuple(padded['labels'].shape)}: {positions} positions, {graded} graded")
for vocabulary in (4096, 262_144):
    everywhere, where = (n * vocabulary * 4 / 2**30 for n in (positions, graded))
    print(f"{vocabulary:>7} words: float32 logits everywhere {everywhere:.3f} GiB,", end=" ")
    print(f"where graded {where:.3f} GiB")

# %% [markdown]
# So the loss asks for logits only there. This is the function that the course trains with:

# %%
import inspect

from course_utils.sft import graded_loss

print(inspect.getsource(graded_loss))

# %% [markdown]
# ## Every hyperparameter has a reason

# %%
from dataclasses import asdict

recipes = {run: asdict(config_for(run)) for run in ("course-base", "gemma-3-270m")}
knobs = recipes["course-base"]
show.table([{"knob": knob} | {b: str(recipes[b][knob]) for b in recipes} for knob in knobs])

# %% [markdown]
# | knob | reason |
# |---|---|
# | steps × batch | a few passes over the conversations (next cell): few rows, so more passes would mostly repeat them |
# | learning rate, AdamW | 1e-4 is a start for full fine-tuning of a small model, larger models want less, and a tiny one takes a little more. It is the knob to tune first: lecture 9 asks what a run forgets |
# | warm-up | AdamW divides by an estimate of the gradient's size, and in the first steps that estimate rests on very few gradients |
# | decay (linear to 0) | the last steps settle instead of following each batch |
# | clip | one odd batch must not undo the others |
# | weight decay | it pulls weights to zero by (learning rate × decay) per step: little in so few steps (next cell), so leave it out |
# | forward tokens | what fits into memory at a time; changes no result |
# | train embeddings | memory for the real base; for `course-base` the rows of special tokens only: see below |
# | accumulate | 1: the batch is passed in parts by `forward_tokens` already. The denominator is all graded tokens of a step; a mean per forward pass would weigh short batches more (lecture 5) |
# | weights in float32 | the cell after the next |
# | computing in bfloat16, float16 or float32 | what the device does fastest; float16 needs loss scaling |
# | max length 512 | cut at turns, never inside one (lecture 6) |

# %% tags=["measured"]
from course_utils.sft import learning_rate_at

rates = [learning_rate_at(step, config) for step in range(config.steps)]
passes = config.steps * config.batch_size / len(prepared.samples)
print(f"passes over the data: {passes:.1f}")
pull = 1 - math.prod(1 - 0.1 * rate for rate in rates)
print(f"pull of a weight decay of 0.1 over the whole run: {pull:.3%}")
fig, ax = show.figure(height=2, alt="The learning rate over the steps: up in a line, then down.")
ax.plot(rates, color=show.PALETTE["accent"])
ax.set_xlabel("step")
ax.set_ylabel("learning rate")
plt.show()

# %% [markdown]
# ### Common bug: the weights are bfloat16
#
# bfloat16 keeps about three decimal digits. Next to a weight of 1, a step of the size of the learning rate
# disappears.

# %%
weight = torch.tensor(1.0)
for update in (torch.tensor(1e-3), torch.tensor(1e-4)):
    print("float32: ", (weight + update).item())
    print("bfloat16:", (weight.bfloat16() + update.bfloat16()).item())
    assert weight.bfloat16() + update.bfloat16() == 1

# %% [markdown]
# Smaller weights have smaller gaps between them. So how many of *this* model's weights stay where they are?
#
# **Predict first.** Of the weights in one layer, how many does a step of 1e-3 leave unmoved? And a step of
# 1e-5, as near the end of the decay?

# %% tags=["measured"]
layer = next(p for n, p in base.named_parameters() if "layers.0.mlp.down" in n).detach().flatten()
half = layer.bfloat16()
for size in (1e-3, 1e-4, 1e-5):
    stuck = ((half + size) == half).float().mean()
    print(f"a step of {size:.0e} leaves {stuck:6.1%} of {len(half)} weights where they are")

# %% [markdown]
# The run would look alive (the loss is computed, gradients flow) while a good part of the steps is lost. So the
# weights stay in float32 and only the matrix products run in bfloat16.
#
# ### Common bug: the end of turn has no row of its own
#
# In lecture 1 you saw that the rows of all tokens that pretraining never met are nearly the same vector. The
# real base is no different there. These are recorded cosines of its rows: the two markers of its template, some
# special tokens, and a word.

# %%
rows_of = json.loads((recorded / "special_rows_gemma-3-270m.json").read_text())
show.heat(
    rows_of["cosines"],
    rows_of["tokens"],
    rows_of["tokens"],
    "Cosines of gemma-3-270m's rows: both turn markers are close to unused tokens, not to a word.",
)
plt.show()

# %% [markdown]
# Such rows cannot be told apart, so the model cannot well prefer one of them. Frozen, they stay as they are. Two
# runs of 60 steps: one with all embeddings frozen, one in which only the rows of special tokens move.

# %%
from course_utils.replies import generate, next_token_probabilities, prompt_ids
from course_utils.sft import fine_tune
from course_utils.tokenizers import encode, special_tokens

special_ids = tokenizer.convert_tokens_to_ids(special_tokens(tokenizer))
batches = {"pad_token_id": tokenizer.pad_token_id, "special_ids": special_ids}
questions = [prompt_ids(chat.prefix(1), tokenizer) for chat in asking]
answered = [
    q + encode(tokenizer, chat[1].content).ids for q, chat in zip(questions, asking, strict=True)
]

# %%


def sixty_steps(train_embeddings):
    short, _ = load_base(name, dtype=torch.float32)
    how = config_for(name, steps=60, train_embeddings=train_embeddings)
    fine_tune(short, prepared.samples, how, **batches)
    return short


# %% [markdown]
# **Predict first.** You show each model a finished right answer. What probability does it give to the end of
# turn, and what else does it consider?

# %% tags=["measured"]
short_runs = {"all frozen": sixty_steps(False), "special rows trained": sixty_steps("special")}
for how, short in short_runs.items():
    next_token = torch.stack([next_token_probabilities(short, ids) for ids in answered]).mean(0)
    greedy, drawn = (
        generate(short, tokenizer, questions, max_new_tokens=40, batch_size=64, temperature=t)
        for t in (0, 1)
    )
    print(
        f"embeddings {how}: stop, greedy {sum(r.stopped for r in greedy)} of {len(greedy)},", end=""
    )
    print(f" sampled {sum(r.stopped for r in drawn)}; mean P after a finished answer:")
    for p, number in zip(*(values.tolist() for values in next_token.topk(5)), strict=True):
        print(f"  {p:6.1%}  {tokenizer.decode([number])!r}")

# %% [markdown]
# Both lists show what each model considers after a finished answer. Greedily both stop already: no other token
# is more probable. But compare the probability of the end of turn in the two lists. Frozen, its row lies among those
# of all unused tokens, and the model can hardly raise it alone; with its own row trained, the same 60 steps bring it
# several times as far. Sampled replies need that, and 60 steps are not yet enough for them. Training rows that nobody
# trained before is a known need
# ([torchtune #2429](https://github.com/pytorch/torchtune/issues/2429) reports a base model's untrained
# special tokens).
#
# Why only these rows, and not those of all words? It is a choice, and a close one. In trials of the course's recipe,
# moving all rows cost one or two points on facts that no conversation asks about, about as much as chance might, and it
# makes the end of turn more probable. `python -m benchmarks.recipe train_embeddings=true,'"special"'` compares the two.
#
# ## Step 4: train
#
# **Predict first.** We ask the model two questions before the first step and after a few of them. About the first
# fact there are conversations, about the second there are none. At which step will it first stop by itself? At
# which will it be right about each?

# %%
capitals = [
    fact for fact in select(facts(), telling="paraphrased") if fact.relation.name == "capital"
]
watched = [next(f for f in capitals if f.asked == asked) for asked in (True, False)]
watching = [prompt_ids(conversation(("user", fact.question)), tokenizer) for fact in watched]


# %%
def ask(model, step):
    training = model.training
    model.eval()
    replies = generate(model, tokenizer, watching, max_new_tokens=40)
    model.train(training)
    for fact, reply in zip(watched, replies, strict=True):
        end = "[stopped]" if reply.stopped else "[cut at 40 tokens]"
        kind = "asked about" if fact.asked else "never asked"
        print(f"step {step:>3}  {kind}: {fact.question} {reply.text[:90]!r} {end}")


# %% tags=["measured"]
ask(base, 0)

# %% [markdown]
# `fine_tune` changes the model that it is given. So each run loads the base again, and the result gets its name only
# when the run is complete. Run the cell as often as you like: it never trains a trained model on. (A dashed line
# marks where an *epoch* begins: from there on the run meets conversations that it has seen before.)

# %% tags=["measured"]
from course_utils.show.training import epoch_starts

epochs = epoch_starts(len(prepared.samples), config.batch_size, config.steps)
print("steps with which a new epoch begins:", epochs)


# %% tags=["measured"]
def train():
    """The base, loaded again and fine-tuned, and what each step did."""
    model, _ = load_base(name, dtype=torch.float32)
    live = show.live_loss(config.steps, epochs=epochs)

    def on_step(step):
        live(step)
        if step.step + 1 in (5, 10, 20, 40, 80, config.steps):
            ask(model, step.step + 1)

    return model, fine_tune(model, prepared.samples, config, **batches, on_step=on_step)


tuned, steps = train()

# %% [markdown]
# ## What the curve shows, and what it hides
#
# The loss falls. One number per step mixes two things that you measured apart before. Measure them apart
# again, on the same three sets.

# %% tags=["measured"]
after = {probe: loss_by_kind(tuned, samples) for probe, samples in probes.items()}
labels = [f"{kind}: {probe}" for kind in ("words", "end of turn") for probe in probes]
both = {
    model_name: [found[probe][kind] for kind in ("words", "end of turn") for probe in probes]
    for model_name, found in (("base", before), ("SFT", after))
}
show.bars(
    labels,
    both,
    xlabel="loss in nats per graded token",
    alt="Bars: loss on words and on the end of turn on three sets, base and after fine-tuning.",
)
plt.show()
for label, old, new in zip(labels, both["base"], both["SFT"], strict=True):
    print(f"{label:<38}{old:6.2f} -> {new:5.2f}")

# %% [markdown]
# The end of turn fell on all three sets alike: it is one habit, learned once for every conversation. The words
# need a closer look. On what the run trained on, the model may know them by heart. On the facts that no
# conversation asks about it cannot, so what it gains *there* is the form of an answer, filled with what
# pretraining put in. None of this can be read off the curve, which mixes all of it and is measured on the data
# that it trains on.
#
# Read the replies in the log above once more in that light. They stop. Are they right?
#
# One number more: a loss of 1.4 nats on the end of turn is a probability of about a quarter. That is far above
# every other token, so greedy decoding stops. A *sampled* reply often runs on: the rest of the probability lies on
# tokens that pretraining never met, special or not, whose rows are nearly the same vector. This recipe is made for
# greedy decoding; to sample from it you would train those rows as well, or longer.
#
# Speed and memory of the run:

# %% tags=["measured"]
from course_utils.sft import run_record

record = run_record(config, steps, base=name, data={"samples": len(prepared.samples)})
for key in ("seconds", "tokens_per_second", "peak_memory_gib"):
    print(f"{key:<18}{record[key]}")
print(
    f"loss, first and last ten steps: {sum(s.loss for s in steps[:10]) / 10:.2f} -> "
    f"{sum(s.loss for s in steps[-10:]) / 10:.2f}"
)

# %% [markdown]
# ## The real base beside it
#
# Both runs as they were recorded with the command line on two cores, each with its own recipe and
# conversations.
#
# **Predict first.** `course-base` had 2,000 conversations in batches of 32, `gemma-3-270m` had 250 in batches of 8. In
# which step does each meet the first conversation for the second time? What do you expect of the curves there?

# %%
from course_utils.sft import Step

curves = {run["base"]: [Step(**one) for one in run["steps"]] for run in pair}
sizes = {run["base"]: (run["data"]["samples"], run["config"]["batch_size"]) for run in pair}
begins = {who: epoch_starts(*sizes[who], len(done)) for who, done in curves.items()}
for who, done in curves.items():
    alt = f"Recorded loss of {who} at each step, with dashed lines where an epoch begins."
    fig, ax = show.loss_curve(done, window=8, epochs=begins[who], alt=alt)
    ax.set_title(f"{who}, recorded: epochs begin at steps {', '.join(map(str, begins[who]))}")
    plt.show()

# %%
from itertools import pairwise


def mean_loss(some):
    """Of some steps; every graded token counts the same."""
    return sum(s.loss * s.graded_tokens for s in some) / sum(s.graded_tokens for s in some)


# %%
by_epoch = []
for who, done in curves.items():
    for epoch, (start, end) in enumerate(pairwise([0, *begins[who], len(done)]), 1):
        row = {"base": who, "epoch": epoch, "steps": f"{start} to {end - 1}"}
        row["loss, first 8 steps"] = mean_loss(done[start : start + 8])
        by_epoch.append(row | {"last 8 steps": mean_loss(done[end - 8 : end])})
what = "Recorded: the loss at both ends of each epoch (nats per graded token)"
show.table(by_epoch, caption=what)

# %%
falls = {}
for old, new in pairwise(by_epoch):
    if old["base"] == new["base"]:
        fall = 1 - new["loss, first 8 steps"] / old["last 8 steps"]
        falls.setdefault(new["base"], []).append(fall)
        print(f"{new['base']}: loss where epoch {new['epoch']} begins {-fall:+.0%}")
row = next(row for row in by_epoch if row["base"] == real["base"])
kept = row["last 8 steps"] / row["loss, first 8 steps"]
print(f"{real['base']}: loss over the whole of epoch 1 {kept - 1:+.0%}")
assert min(falls[real["base"]]) > 0.3 and max(falls[small["base"]]) < 0.1 and kept > 0.9

# %% [markdown]
# The real base's loss falls twice, and both falls are epoch boundaries: between two neighboring steps the loss drops,
# because from there on the model meets conversations that it has met before. While it met them for the first time, its
# loss hardly moved. So what the curve shows is a model that learns 250 conversations **by heart**. Does it do any better
# on conversations that it has never seen? The curve cannot say. A loss on held-out conversations could, and none was
# recorded with this run. (Lecture 9 puts held-out prompts to a model that was tuned by the same recipe.)
#
# `course-base` is different. It has eight times as many conversations, many of them alike, and nearly all of its fall
# comes within the first epoch, on conversations that were new to it. Its second epoch begins without a step.
#
# Two habits follow. Mark the epochs on every loss curve before you read anything into its shape; a running mean that
# goes across them turns a step into a slope. And measure the loss on conversations that you set aside, as you did above.

# %%
rows = []
for run in pair:
    row = {"base": run["base"], "million parameters": round(run["parameters"]["all"] / 1e6)}
    row["embedding rows"] = f"{run['parameters']['embedding'] / run['parameters']['all']:.0%}"
    row["embeddings"] = {False: "frozen", "special": "special rows"}[
        run["config"]["train_embeddings"]
    ]
    row["learning rate"] = f"{run['config']['learning_rate']:.0e}"
    row["steps × batch"] = f"{len(run['steps'])} × {run['config']['batch_size']}"
    row |= {key: run[key] for key in ("seconds", "tokens_per_second", "peak_memory_gib")}
    rows.append(row)
print(f"tokens per second: {small['tokens_per_second'] / real['tokens_per_second']:.0f} to 1")
print(f"parameters:        1 to {real['parameters']['all'] / small['parameters']['all']:.0f}")
show.table(rows, caption="Recorded on two cores")

# %% [markdown]
# The two losses cannot be compared with each other: other words, other vocabularies, other conversations. The larger
# model pays for its size in time per token and in memory. (Its frozen embedding rows cost time all the same: the output
# layer shares them, and the state of every graded position is multiplied by all of them.) Everything else (the loop, the
# masks, the checks) is the same code.
#
# ## Any template, any seed
#
# Was ChatML a lucky choice? Was yours a lucky order of the data? The course's benchmark
# (`python -m benchmarks.course_base`) repeated this run with two more seeds, each with other conversations in
# another order, and with each of the other template families. It wrote down every count.
#
# **Predict first.** `plain` has no special token at all: a turn ends with its line. Mistral and Gemma have no
# system role: they fold the system text into the first user turn. Which family stops least often?

# %%
from course_utils.comparison import wilson

bench = json.loads((recorded / "course_base_sft.json").read_text())
print(bench["command"], "on", bench["hardware"]["device"])
of_family = {run["family"]: run for run in reversed(bench["runs"])}
stops = {family_: run["stops"] for family_, run in sorted(of_family.items())}
for family_, (yes, n) in stops.items():
    print(f"{family_:<8} stops at {yes} of {n}; refused: {of_family[family_]['refused']}")
    assert yes / n >= 0.95

# %%
show.bars(
    list(stops),
    [100 * yes / n for yes, n in stops.values()],
    intervals=[[100 * end for end in wilson(yes, n)] for yes, n in stops.values()],
    xlabel="% of held-out prompts at which the model stops by itself (recorded)",
    alt="Bars: how often a model trained with each template family stops by itself.",
)
plt.show()

# %% [markdown]
# Stopping, decoded greedily, does not depend on the family: the model learns whatever end of turn the template
# grades.
#
# **Predict first.** And the rest: how many points lie between the three seeds? Is any family better than ChatML by
# more than that?

# %%
measures = ("knowledge right", "follow-up right", "unseen constraints obeyed")
rows = []
for run in bench["runs"]:
    row = {"family": run["family"], "seed": run["seed"], "seconds": run["seconds"]}
    rows.append(row | {what: f"{run[what][0] / run[what][1]:.0%}" for what in measures})
show.table(rows, caption="Recorded: facts never asked about, and combinations of rules never seen")

# %% [markdown]
# The rows of one family differ although only the seed does. A difference between two families that is no larger
# than that says nothing about the families, and one that is a point or two larger, from one run each, settles little. This is why the course names a result with its spread over seeds.
#
# ## Save what serving needs
#
# Weights alone are not a chat model. (They are saved in bfloat16: precise enough to be used, not to be updated.) The
# template must travel with them, and the end of turn must be among the ids that end generation, or the server runs
# past it. `save_checkpoint` sees to both, and sets generation to greedy, which is what this recipe is made for. Last it
# writes `manifest.json`, the SHA-256 of every file, which `load_checkpoint` verifies. A folder that is already there is
# replaced only with `overwrite=True`, and only if the course wrote every file in it.

# %% tags=["measured"]
from course_utils.sft import save_checkpoint

folder = save_checkpoint(tuned, tokenizer, "../runs/lecture-08", record, overwrite=True)
for path in sorted(folder.iterdir()):
    print(f"{path.name:<24}{path.stat().st_size / 2**20:8.2f} MiB")
ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
print("generation ends at:", [tokenizer.decode([i]) for i in ends])

# %% [markdown]
# **The proof.** Forget everything in memory, load the folder with plain transformers, and ask.

# %% tags=["measured"]
from transformers import AutoModelForCausalLM, AutoTokenizer

fresh_tokenizer = AutoTokenizer.from_pretrained(folder)
fresh = AutoModelForCausalLM.from_pretrained(folder)
prompt = fresh_tokenizer.apply_chat_template(
    [{"role": "user", "content": watched[1].question}],
    add_generation_prompt=True,
    return_tensors="pt",
    return_dict=True,
)
output = fresh.generate(**prompt, max_new_tokens=80, do_sample=False)[0]
reply = output[prompt["input_ids"].shape[1] :]
print(fresh_tokenizer.decode(reply))
print("stopped by itself:", reply[-1].item() in ends)

# %% [markdown]
# ## The same run elsewhere
#
# The command line does all of this lecture in one go (and trains on all conversations, since nothing has to be
# set aside for you to measure on):
#
#     python -m course_utils.sft --output runs/first
#     python -m course_utils.sft --output runs/real --base gemma-3-270m
#
# On a GPU the code is the same; `autocast_dtype` picks bfloat16, or float16 with loss scaling on cards
# such as the T4. Runs recorded with the course, each with its hardware and command:

# %%
files = sorted(recorded.glob("sft_*.json"))
rows = []
for run in map(json.loads, (path.read_text() for path in files)):
    row = {
        "base": run["base"],
        "on": f"{run['hardware']['device']}, {run['hardware']['cores']} cores",
    }
    row |= {"in": run["hardware"]["precision"], "steps": len(run["steps"])}
    row |= {key: run[key] for key in ("seconds", "tokens_per_second", "peak_memory_gib")}
    rows.append(row | {"torch": run["hardware"]["torch"]})
    print(run["command"])
show.table(rows)

# %% [markdown]
# ## Take-aways
#
# - SFT is pretraining's loop with other batches: a template around the text and −100 where somebody
#   else speaks.
# - Check before you train: print a sample, know the graded share, see that every reply ends with its
#   end of turn, and that the end of turn has a row of its own or may get one.
# - The training loss mixes words learnt by heart with the habit of stopping. Measure the two apart, on
#   conversations that the run never saw.
#
# This lecture has no exercises of its own. On to [lecture 9](09_base_against_sft.ipynb), which puts the
# same prompts to both models.
#
# ## Quiz
#
# <details><summary>1. The base's loss on the end of turn is higher than uniform guessing. How can that be?</summary>
#
# A uniform guess gives every token the same probability. The base has learned to give this token less
# than that, because it has never been right to write it.
#
# </details>
#
# <details><summary>2. You freeze the embeddings, and the output layer shares its weights with them. How can the
# model learn to write the end-of-turn token at all?</summary>
#
# Through the hidden state. The layers below can learn to write a state that points at the frozen row. But rows
# that pretraining never met lie close together, so a state that points at one of them points at its neighbours as
# well.
#
# </details>
