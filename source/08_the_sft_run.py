# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 08 The SFT run
#
# Now a real base model becomes one that answers and stops. The loop is the one that pretrained it.
# Only the batches are new, and you have built those yourself in lectures 2 to 6.
#
# After this you can
# - **check** a run before it starts: sample, graded share, loss by kind of token,
# - **run** the five steps of supervised fine-tuning and give a reason for every hyperparameter,
# - **save** a checkpoint that stops wherever it is loaded, and prove it.
#
# 40 minutes (about 6 of them training) · GPU or two CPU cores, the same code

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

from course_utils import load_conversations, show
from course_utils.checkpoints import family_for, hardware, load_base, pick_base, use_family

name, why = pick_base()
print("Base:", why)
model, tokenizer = load_base(name, dtype=torch.float32)
for what, value in hardware().items():
    print(f"{what:<13}{value}")

# %% [markdown]
# A base model's tokenizer usually brings no chat template. We give it the one whose special tokens
# it has.

# %% tags=["measured"]
print("template before:", tokenizer.chat_template)
family = family_for(name, tokenizer)
use_family(tokenizer, family)
print("family:", family)

# %% [markdown]
# **Predict first.** We will leave the embedding matrix (and the output layer that shares its numbers)
# as it is. What share of the parameters is then trained: a tenth, a third, or nine tenths?

# %% tags=["measured"]
from course_utils.sft import SFTConfig, trainable_parameters

config = SFTConfig(steps=90)
total = sum(p.numel() for p in model.parameters())
trained = sum(p.numel() for p in trainable_parameters(model, config))
show.bars(
    ["trained", "frozen"],
    [trained / 1e6, (total - trained) / 1e6],
    xlabel="million parameters",
    alt="Bar chart: parameters that are trained and parameters that are frozen.",
)
print(f"{trained / 1e6:.0f} of {total / 1e6:.0f} million are trained ({trained / total:.0%})")

# %% [markdown]
# A small model with a large vocabulary is mostly embedding. Freezing it saves memory for gradients
# and optimizer states, and a few hundred conversations could move only a few of its rows anyway.
#
# ## Step 2: conversations
#
# They were written for this course and are checked as they are read: a broken line or an unknown role
# would stop you here, with its line number.

# %%
from collections import Counter

conversations = load_conversations("../data/conversations.jsonl")
turns = Counter(sum(m.role == "assistant" for m in c) for c in conversations)
print(f"{len(conversations)} conversations")
print("assistant turns:", dict(sorted(turns.items())))
print("with a system text:", sum(c.roles[0] == "system" for c in conversations))

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
import matplotlib.pyplot as plt

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
# **Predict first.** The base has read a lot of text but no conversation in this template. Where is its
# loss highest: on the words of the replies, or on the end of turn?

# %%
from course_utils.batching import collate
from course_utils.masking import IGNORE_INDEX


@torch.inference_mode()
def token_losses(sample):
    """(label, loss in nats) of every graded token of a sample."""
    batch = {k: v.to(model.device) for k, v in collate([sample], 0).items()}
    logits = model(input_ids=batch["input_ids"]).logits[0, :-1]
    labels = batch["labels"][0, 1:]
    kept = labels != IGNORE_INDEX
    losses = torch.nn.functional.cross_entropy(logits[kept], labels[kept], reduction="none")
    return zip(labels[kept].tolist(), losses.tolist(), strict=True)


# %% tags=["measured"]
import math


def loss_by_kind(samples):
    pairs = [pair for sample in samples for pair in token_losses(sample)]
    words = [loss for label, loss in pairs if label != end_of_turn]
    ends = [loss for label, loss in pairs if label == end_of_turn]
    return {"words": sum(words) / len(words), "end of turn": sum(ends) / len(ends)}


probe = prepared.samples[::25]
before = loss_by_kind(probe)
print(f"uniform guessing: {math.log(model.config.vocab_size):.2f} nats")
print({kind: round(value, 2) for kind, value in before.items()})

# %% [markdown]
# The words are half known: the base can write. The end of turn is not: it costs more than a uniform
# guess, because in all of pretraining this token never came. **Stopping is what there is to learn.**
#
# ### Only where it is graded
#
# Turning a hidden state into logits takes one number per word of the vocabulary. For a batch that is
# the largest tensor of all, and most of it would be thrown away by the mask.

# %% tags=["measured"]
from itertools import islice

from course_utils.batching import length_batches

batch = next(islice(length_batches(prepared.samples, config.batch_size), 1))
padded = collate(batch, tokenizer.pad_token_id)
graded = int((padded["labels"][:, 1:] != IGNORE_INDEX).sum())
positions = padded["labels"].numel()
gib = model.config.vocab_size * 4 / 2**30
print(f"batch {tuple(padded['labels'].shape)}: {positions} positions, {graded} graded")
print(f"float32 logits everywhere {positions * gib:.2f} GiB, where graded {graded * gib:.2f} GiB")

# %% [markdown]
# So the loss asks for logits only there. This is the function that the course trains with:

# %%
import inspect

from course_utils.sft import graded_loss

print(inspect.getsource(graded_loss))

# %% [markdown]
# ## Every hyperparameter has a reason
#
# | knob | value | reason |
# |---|---|---|
# | steps × batch | 90 × 8 | a little under three passes over the conversations (next cell); few rows, so more passes would mostly repeat them |
# | learning rate | 1e-4, AdamW | a start for full fine-tuning of a small model; larger models want less. Try 1e-5 and 1e-3: it is the knob to tune first |
# | warm-up | 10 % | AdamW divides by an estimate of the gradient's size, and in the first steps that estimate rests on very few gradients |
# | decay | linear to 0 | the last steps settle instead of following each batch |
# | clip | norm 1.0 | one odd batch must not undo the others |
# | weight decay | 0 | it pulls weights to zero by (learning rate × decay) per step: next to nothing in so few steps (next cell) |
# | weights | float32 | the cell after the next |
# | computing in | bfloat16, float16 or float32 | what the device does fastest; float16 needs loss scaling |
# | denominator | all graded tokens of a step | a mean per forward pass would weigh short batches more (lecture 5) |
# | max length | 512 tokens | cut at turns, never inside one (lecture 6) |

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
# bfloat16 keeps about three decimal digits. A step of the size of the learning rate disappears.

# %%
weight = torch.tensor(1.0)
update = torch.tensor(1e-4)
print("float32: ", (weight + update).item())
print("bfloat16:", (weight.bfloat16() + update.bfloat16()).item())
assert weight.bfloat16() + update.bfloat16() == 1

# %% [markdown]
# The run would look alive (the loss is computed, gradients flow) and most weights would never move.
# So the weights stay in float32 and only the matrix products run in bfloat16.
#
# ## Step 4: train
#
# **Predict first.** We ask the model two questions before the first step and after every 30. At which
# step will it first stop by itself?

# %%
from course_utils.conversation import conversation
from course_utils.replies import generate, prompt_ids

questions = ["What is the boiling point of water?", "Name three things found in a kitchen."]
asked = [prompt_ids(conversation(("user", q)), tokenizer) for q in questions]


def ask(step):
    model.eval()
    for reply in generate(model, tokenizer, asked, max_new_tokens=40):
        end = "[stopped]" if reply.stopped else "[cut at 40 tokens]"
        print(f"step {step:>2}  {reply.text[:110]!r} {end}")
    model.train()


# %% tags=["measured"]
ask(0)

# %% tags=["measured"]
from course_utils.sft import fine_tune

live = show.live_loss(config.steps)


def on_step(step):
    live(step)
    if (step.step + 1) % 30 == 0:
        ask(step.step + 1)


steps = fine_tune(
    model, prepared.samples, config, pad_token_id=tokenizer.pad_token_id, on_step=on_step
)

# %% [markdown]
# ## What the curve shows, and what it hides
#
# The loss falls. One number per step mixes two things that you measured apart before. Measure them apart
# again, on the same ten samples.

# %% tags=["measured"]
after = loss_by_kind(probe)
show.bars(
    list(before),
    {"base": list(before.values()), "SFT": list(after.values())},
    xlabel="loss in nats per graded token",
    alt="Bars: loss on words and on the end of turn, for the base and after fine-tuning.",
)
for kind in before:
    print(f"{kind:<12} {before[kind]:6.2f} -> {after[kind]:5.2f}")

# %% [markdown]
# Both fell far, and for different reasons. The end of turn went from worse than guessing to likely: that is
# the habit you wanted, and one token for all conversations. The words of *these ten* samples fell because
# the model has seen them almost three times: it has begun to know them by heart. Neither can be read off the
# curve, which mixes the two and is measured on the data that it trains on. It says that the optimizer works,
# and nothing about a conversation that the model has never seen. Lecture 9 asks that, with other prompts.
#
# Read the replies in the log above once more in that light. They stop. Are they right?
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
# ## Save what serving needs
#
# Weights alone are not a chat model. The template must travel with them, and the end of turn must be
# among the ids that end generation, or the server runs past it.

# %% tags=["measured"]
import json

from course_utils.sft import save_checkpoint

folder = save_checkpoint(model, tokenizer, "../runs/lecture-08", record)
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
    [{"role": "user", "content": "Why do we have leap years?"}],
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
# The command line does all of this lecture in one go:
#
#     python -m course_utils.sft --data data/conversations.jsonl --output runs/first
#
# On a GPU the code is the same; `autocast_dtype` picks bfloat16, or float16 with loss scaling on cards
# such as the T4. Runs recorded with the course, each with its hardware and command:

# %%
from pathlib import Path

files = sorted(Path("../data/recorded").glob("sft_*.json"))
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
#   end of turn.
# - The training loss mixes words learnt by heart with the habit of stopping. It shows that the optimizer works
#   and not what the model does with a new prompt.
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
# The logit is the product of the hidden state and the token's row. The row stays, but the layers below
# learn to turn the hidden state towards it.
#
# </details>
