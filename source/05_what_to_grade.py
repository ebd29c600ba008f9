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
# # 05 What to grade
#
# After this you can **choose** a loss mask and give a measured reason for each part of it, **prove**
# with autograd where gradient flows and where it does not, and **name** what a wrong mask does to a
# model that its loss curve hides.
#
# About 50 minutes, CPU. Some thirty tiny models are trained on the way, about three
# seconds each.

# %%
import matplotlib.pyplot as plt
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils import IGNORE_INDEX, MASK_MODES, render, show, training_samples
from course_utils.examples import TINY_CHATS, WALKTHROUGH
from course_utils.tokenizers import WordTokenizer

torch.set_num_threads(1)  # so small that more threads would mostly wait for each other

# %% [markdown]
# ## One chat, six masks
#
# In lecture 04 you wrote a mask that grades the assistant's text and its end of turn (EOT). That is
# one choice among several that have been trained with. `MASK_MODES` has six of them.
#
# **Predict first.** The walkthrough's chat has 36 word tokens, 4 of them in each header and 9 in the
# reply. How many does each mode grade?

# %%
MEANING = {
    "everything": "all tokens, as in pretraining",
    "assistant_content": "the assistant's text, without its EOT",
    "assistant": "the assistant's text and its EOT",
    "assistant_and_header": "the same and the assistant's header",
    "last_turn": "the last assistant turn only",
    "inverted": "all that the assistant does not write",
}
rows = []
for mode in MASK_MODES:
    (sample,) = training_samples(WALKTHROUGH, WordTokenizer(), mode=mode)
    share = f"{sample.graded_tokens / len(sample):.0%}"
    row = {"mode": mode, "grades": MEANING[mode], "tokens": sample.graded_tokens, "share": share}
    rows.append(row)
show.table(rows)

# %%
show.all_modes(WALKTHROUGH, title="Six masks over the same 36 tokens")

# %% [markdown]
# One row per mode; ✓ is graded and · is masked. The course's default is `assistant`: 10 of 36.
#
# In this chat `last_turn` equals `assistant`, because there is only one reply. Below is a chat with
# two. In JupyterLab or Colab you get buttons and can edit the turns; on a web page you see all six
# modes at once.
#
# **Try.** Which two modes differ in exactly two tokens here? Which ones grade the *first* "2"?

# %%
show.mask_explorer(TINY_CHATS[1])

# %% [markdown]
# `assistant` and `assistant_content` differ in the two EOT tokens. Every mode but `last_turn` and
# `inverted` grades the first "2".
#
# Behind the default stands one question, which `render` answers for every span (`generated`): **does
# the model write this token itself when the template is served?** The rest of the lecture tests
# whether that is the right question. First, what "graded" means for the gradient.

# %% [markdown]
# ## The shift: which positions are trained?
#
# A label stands *at* its token. But the model reads tokens 0 to i and predicts token i + 1. So the
# loss compares the logits at position i with the label at position i + 1, and the last logits are
# compared with nothing.
#
# **Predict first.** In the walkthrough the labels at positions 26 ("Water") to 35 (EOT) are kept, all
# others are -100. At which positions do the *logits* get a gradient: 26 to 35?


# %%
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512}


def tiny_model(vocabulary, seed=0):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, use_cache=False, **SIZES, **HEADS))


words = WordTokenizer()
(sample,) = training_samples(WALKTHROUGH, words)
ids, labels = torch.tensor([sample.input_ids]), torch.tensor([sample.labels])

# %% [markdown]
# That is a Llama with random weights, two layers and 64 wide. For gradients, untrained is enough.

# %%
model = tiny_model(len(words.vocabulary))
logits = model(input_ids=ids).logits
logits.retain_grad()
loss = cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=IGNORE_INDEX)
loss.backward()

at_logits = logits.grad[0].norm(dim=-1)
trained = at_logits.nonzero().flatten().tolist()
print("labels kept at positions  ", [p for p, label in enumerate(sample.labels) if label >= 0])
print("gradient at the logits of ", trained)
assert trained == list(range(25, 35))

# %% [markdown]
# One to the left: 25 to 34. (The shift in the slices is no choice of ours. The loss that transformers
# computes inside the model does the same:)

# %%
inside = model(input_ids=ids, labels=labels).loss
print("the same loss:", torch.isclose(loss, inside).item())

# %%
tokens = [words.token(number).replace("\n", "↵") for number in sample.input_ids]
names = [f"{'✓' if y >= 0 else '·'} {tokens[at]} {at}" for at, y in enumerate(sample.labels)]


def position_bars(strength, title, alt):
    fig, ax = show.figure(9, 3.2, alt=alt)
    colours = [show.PALETTE["graded" if label >= 0 else "masked"] for label in sample.labels]
    ax.bar(range(len(tokens)), strength / strength.max(), color=colours, edgecolor="black", lw=0.6)
    for position, value in enumerate(strength):
        if value == 0:
            ax.text(position, 0.02, "0", ha="center", fontsize=8)
    ax.set_xticks(range(len(tokens)), names, rotation=90, fontsize=7)
    ax.set(ylabel="gradient norm / largest", title=title)
    plt.show()


# %%
position_bars(
    at_logits,
    "Gradient of the loss at the logits (✓: the label at this position is kept)",
    "Bars for 36 positions: the gradient at the logits is zero except at positions 25 to 34.",
)

# %% [markdown]
# Green bars and ✓ are positions whose *label* is kept. Position 25, the white space after the
# header, has a masked label and is trained all the same: its logits predict "Water". Position 35,
# the EOT, has a kept label, yet its own logits are compared with nothing. The label at 35 trains
# position 34, "level.", to predict the EOT.

# %% [markdown]
# ## Is the gradient zero outside the mask?
#
# You will often read that a masked token gets no gradient, and one of the notes that this course grew
# out of says it too. The logits just confirmed it, up to the shift. So one level further down:
#
# **Predict first.** "Answer" (position 5) is in the masked system text. Does the gradient reach its
# embedding?

# %%
embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
model(inputs_embeds=embedded, labels=labels).loss.backward()
at_inputs = embedded.grad[0].norm(dim=-1)
reached = at_inputs.nonzero().flatten().tolist()
print(f"gradient reaches {len(reached)} of {len(tokens)} positions, {reached[0]} to {reached[-1]}")
assert reached == list(range(35))
position_bars(
    at_inputs,
    "Gradient of the same loss at the input embeddings",
    "Bars for 36 positions: the gradient at the input embeddings is above zero at positions 0 to "
    "34 and zero at position 35.",
)

# %% [markdown]
# Every position but the last gets a gradient, masked or not. The reply's predictions look back at the
# system text and the question through attention, and what they look at is trained to be *useful for
# the reply*. Only position 35 gets none: nothing comes after it that could look at it.
#
# So the sentence needs one word more. What is zero outside the mask is the *loss term*: the model is
# not asked to predict the question. The gradient passes through the question nonetheless, or the
# model could not learn to read it. The same two counts for all modes:

# %%
rows = []
for mode in MASK_MODES:
    (graded,) = training_samples(WALKTHROUGH, words, mode=mode)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded).logits
    logits.retain_grad()
    model.zero_grad()
    cross_entropy(logits[0, :-1], torch.tensor(graded.labels[1:])).backward()
    asked, reached = (x.grad[0].norm(dim=-1).count_nonzero().item() for x in (logits, embedded))
    whole = [p for p in model.parameters() if p is not model.get_input_embeddings().weight]
    moved = sum(p.grad.count_nonzero().item() for p in whole) / sum(p.numel() for p in whole)
    row = {"mode": mode, "predictions graded": asked, "embeddings reached": reached}
    rows.append(row | {"weights with gradient": f"{moved:.0%}"})
show.table(rows)

# %% [markdown]
# A mask chooses *predictions*. It does not choose tokens to be read, nor weights to be moved: under
# each of these masks practically every weight above the embeddings gets a gradient.
# (`everything` counts 35, not 36: nothing predicts the first token.)
#
# `assistant_content` reaches one position fewer than `assistant`. It is 34, "level.". With the EOT
# masked, nothing is asked of that position, and nothing later looks back at it. Remember it for
# rule 4.

# %% [markdown]
# ## A world small enough to train in
#
# Now the five rules of the default mask. Each has a reason that sounds good; here each one is
# measured. For that we need models that learn in seconds, so the world is small: twelve animals,
# each with a colour and a home. A chat asks about one animal, then goes on to another.

# %%
import random

from course_utils.conversation import conversation

ANIMALS = ["fox", "owl", "bee", "pig", "cow", "hen", "ant", "bat", "cat", "dog", "elk", "emu"]
COLOURS = ["red", "blue", "green", "black", "white", "brown", "grey", "pink"]
HOMES = ["forest", "field", "desert", "river", "garden", "cave", "house", "swamp"]
KINDS = {  # opening question, full reply, short reply
    "colour": ("What colour is the {a}?", "The {a} is {c}.", "{C}."),
    "home": ("Where does the {a} live?", "The {a} lives in the {h}.", "In the {h}."),
    "both": ("Describe the {a}.", "The {a} is {c}. The {a} lives in the {h}.", "{C}. In the {h}."),
}
chance = random.Random(0)
FACTS = {animal: (chance.choice(COLOURS), chance.choice(HOMES)) for animal in ANIMALS}


# %%
def fill(pattern, animal):
    colour, home = FACTS[animal]
    return pattern.format(a=animal, c=colour, C=colour.capitalize(), h=home)


def animal_chat(kind, first, second):
    opening, reply, short_reply = KINDS[kind]
    return conversation(
        ("user", fill(opening, first)),
        ("assistant", fill(reply, first)),
        ("user", f"And the {second}?"),
        ("assistant", fill(short_reply, second)),
    )


# %%
chats = [animal_chat(k, a, b) for k in KINDS for a in ANIMALS for b in ANIMALS if a != b]
random.Random(0).shuffle(chats)
train_chats, held_chats = chats[:336], chats[336:]
print(*(f"{turn.role:>9}: {turn.content}" for turn in held_chats[0]), sep="\n")

# %% [markdown]
# There are 396 such chats. 336 are for training; 60 are held out: known animals, unseen pairs. To
# answer the second question, the model must remember the kind of the first.
#
# Tokens come from a small BPE tokenizer trained on the spot, samples from `prepare` (it calls
# `training_samples` for every chat), batches from `collate`.

# %%
from course_utils.batching import collate, prepare
from course_utils.templates import chat_template
from course_utils.tokenizers import encode, toy_tokenizer

texts = [turn.content for chat in chats for turn in chat]
tokenizer = toy_tokenizer(texts + ["user", "assistant"], vocab_size=512)
tokenizer.chat_template = chat_template("llama3")
held_samples = prepare(held_chats, tokenizer).samples
held = collate(held_samples, tokenizer.pad_token_id)
print(len(tokenizer), "tokens in the vocabulary;", prepare(train_chats, tokenizer))
show.sample(held_samples[0], tokenizer)

# %% [markdown]
# What will be measured, on the held-out chats: the loss of each *part* of a chat, whatever the mask
# was, and how many replies are right. A reply counts as right if greedy decoding writes it word for
# word and stops. No generation is needed for that: it holds exactly when the most probable token is
# the right one at every position of the reply, EOT included.

# %%
NAMES = {0: "user text", 1: "first reply", 2: "user text", 3: "second reply"}


def part(span):
    if span.kind == "content":
        return NAMES[span.turn]
    return f"{span.role} {'EOT' if span.kind == 'eot' else 'header'}"


def predicted_parts(chat):
    rendered = render(chat, "llama3")
    owners = [part(span) for span in rendered.spans for _ in span.text]
    return [owners[start] for start, _ in encode(tokenizer, rendered.text).offsets][1:]


# %%
width = held["input_ids"].shape[1] - 1
in_parts = [(p := predicted_parts(chat)) + [None] * (width - len(p)) for chat in held_chats]
PARTS = {
    name: torch.tensor([[p == name for p in row] for row in in_parts])
    for name in sorted({p for row in in_parts for p in row if p})
}
TOGETHER = {
    "replies": ("first reply", "second reply"),
    "replies and EOT": ("first reply", "second reply", "assistant EOT"),
    "with header": ("first reply", "second reply", "assistant EOT", "assistant header"),
}
MASKS = PARTS | {name: sum(PARTS[p] for p in parts) > 0 for name, parts in TOGETHER.items()}
print({name: mask.sum().item() for name, mask in MASKS.items()})


# %%
@torch.no_grad()
def measure(model):
    """Mean loss of each part in nats per token, and the share of right replies."""
    logits, targets = model(input_ids=held["input_ids"]).logits[:, :-1], held["input_ids"][:, 1:]
    losses = cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    result = {name: losses[mask].mean().item() for name, mask in MASKS.items()}
    hit = logits.argmax(-1) == targets
    right = [
        hit[row, span.start - 1 : span.end - 1].all().item()
        for row, sample in enumerate(held_samples)
        for span in sample.graded
    ]
    return result | {"right": sum(right) / len(right)}


# %% tags=["long"] reason="the whole training loop in one piece"
from types import SimpleNamespace


def train(samples, seed, rate=3e-3, steps=200, grade_padding=False):
    model, order = tiny_model(len(tokenizer), seed), random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0)
    run = SimpleNamespace(model=model, loss=[], parts={0: measure(model)})
    for step in range(1, steps + 1):
        batch = collate(order.sample(samples, 16), tokenizer.pad_token_id)
        if grade_padding:
            batch["labels"][batch["attention_mask"] == 0] = tokenizer.pad_token_id
        loss = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.loss.append(loss.item())
        if step % 20 == 0:
            run.parts[step] = measure(model)
    return run


SEEDS = (0, 1, 2)


def train_seeds(chats, mode, **options):
    samples = prepare(chats, tokenizer, mode=mode).samples
    return [train(samples, seed, **options) for seed in SEEDS]


# %% [markdown]
# Two hundred steps, sixteen chats each, three seeds (other initial weights and another order). Two
# helpers for showing what came out: the spread over the seeds is always shown.


# %%
def spread(runs, name, step=200):
    values = [run.parts[step][name] for run in runs]
    return f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def draw(ax, runs, name, label, colour, style="-"):
    steps = list(runs[0].parts)
    lines = [[run.parts[step][name] for step in steps] for run in runs]
    for line in lines:
        ax.plot(steps, line, color=show.PALETTE[colour], lw=0.7, ls=style)
    mean = torch.tensor(lines).mean(0)
    ax.plot(steps, mean, color=show.PALETTE[colour], lw=2.2, ls=style, label=label)
    ax.set(xlabel="step", ylabel="nats per token")


# %% [markdown]
# ## Rule 1: mask what user and system say
#
# The reason given: the model is not the user. In serving it never writes the question, so why grade
# it on questions? (A system text is the same case: it is given, too.)
#
# **Predict first.** One model is trained with `everything`, one with `assistant`. (a) Which of them
# writes a new user turn after its own reply? (b) Which has learnt the replies sooner? (c) How low can
# the loss on the user's text go?

# %% tags=["measured"]
runs = {mode: train_seeds(train_chats, mode) for mode in ("assistant", "everything")}

# %% tags=["measured"]
import math

user_tokens = MASKS["user text"].sum().item() / len(held_chats)
floor = (math.log(3 * 12) + math.log(11)) / user_tokens

alt = "Loss on user text: flat at its floor under everything, above 9 nats under assistant."
fig, ax = show.figure(7, 3, alt=alt)
draw(ax, runs["assistant"], "user text", "assistant", "graded")
draw(ax, runs["everything"], "user text", "everything", "tuned", "--")
ax.axhline(floor, color="black", lw=0.8, ls=":", label=f"what chance leaves: {floor:.2f}")
ax.set_title(f"loss on the user's text (blind guessing: {math.log(len(tokenizer)):.1f})")
ax.legend(loc="center right")
plt.show()

# %% tags=["measured"]
alt = "Loss on the replies falls under both masks, under assistant many steps sooner."
fig, ax = show.figure(7, 3, alt=alt)
draw(ax, runs["assistant"], "replies", "assistant", "graded")
draw(ax, runs["everything"], "replies", "everything", "tuned", "--")
ax.set(title="loss on the replies", ylim=(0, 2.5))
ax.legend()
plt.show()

# %% tags=["measured"]
show.table(
    [
        {
            "graded": mode,
            "loss on user text": spread(runs[mode], "user text"),
            "on replies, step 100": spread(runs[mode], "replies", 100),
            "on replies, step 200": spread(runs[mode], "replies"),
            "right replies": spread(runs[mode], "right"),
        }
        for mode in runs
    ],
    caption="mean over 3 seeds (lowest to highest)",
)

# %% tags=["measured"]
for seed in SEEDS:
    masked, unmasked = runs["assistant"][seed].parts, runs["everything"][seed].parts
    assert unmasked[100]["replies"] > 1.5 * masked[100]["replies"]
    assert abs(unmasked[200]["user text"] - floor) < 0.1 < 4 < masked[200]["user text"]
print("(b) and (c) hold for every seed")


# %% tags=["measured"]
@torch.no_grad()
def write_on(model, chat, tokens=18):
    prompt = encode(tokenizer, render(chat, "llama3", add_generation_prompt=True).text).ids
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
    return tokenizer.decode(ids[len(prompt) :])


for mode in ("assistant", "everything"):
    print(f"{mode:>10}: {write_on(runs[mode][0].model, held_chats[0].prefix(1))!r}")

# %% [markdown]
# (a) The model that was graded on everything ends its turn, opens a user turn and asks *itself* the
# next question: it has learnt to play both voices of the play. The other one was never told what
# follows its EOT, so what it writes there means nothing. A server that stops at the EOT sees neither.
#
# (b) At step 100 the replies' loss is higher under `everything`, for every seed. (c) On the user's text
# the loss stops at the dotted line, which needs no model to compute: the user picks one of 3 kinds
# and 12 animals, then one of 11, and nobody can know which. From there on, most of what the mask
# `everything` grades is a guessing game (the next cell). Under `assistant` the same loss *rises*, above
# that of blind guessing: a model that is never asked for questions ends up expecting replies
# everywhere. That, too, is a consequence of the mask.

# %% tags=["measured"]
for run in runs["everything"]:
    left = {name: run.parts[200][name] * mask.sum().item() for name, mask in PARTS.items()}
    print(f"user text is {left['user text'] / sum(left.values()):.0%} of the loss that is left")

# %% [markdown]
# Is (b) a law, then? Change one thing that should not matter: the learning rate.

# %% tags=["measured"]
both = ("assistant", "everything")
other_rate = {mode: train_seeds(train_chats, mode, rate=6e-3) for mode in both}
show.table(
    [
        {
            "learning rate": rate,
            "graded": mode,
            "replies, step 100": spread(found[mode], "replies", 100),
            "replies, step 200": spread(found[mode], "replies"),
            "right replies": spread(found[mode], "right"),
        }
        for rate, found in ((3e-3, runs), (6e-3, other_rate))
        for mode in both
    ]
)

# %% [markdown]
# At twice the rate both learn worse, the gap at step 100 is smaller, and at the end the spreads
# overlap. So this experiment shows that the user's text *takes part of every step*, and that it goes
# on doing so when there is nothing left to learn from it. It does not show that a model trained on
# everything must end up worse.
#
# > **The evidence elsewhere is mixed, too.**
# > For masking: nanochat lost its mask in a refactoring
# > ([#570](https://github.com/karpathy/nanochat/issues/570)); putting it back
# > ([#582](https://github.com/karpathy/nanochat/pull/582)) raised ChatCORE from 0.315 to 0.355, one
# > run each from the same base, with the *same* training loss of about 0.78.
# > Against: [arXiv 2405.14394](https://arxiv.org/abs/2405.14394) grades the instructions too and gains
# > on many of 21 benchmarks, above all with long instructions, short replies and few examples; the
# > authors trace it to less overfitting. [arXiv 2507.07817](https://arxiv.org/abs/2507.07817) weights
# > the two parts and finds a low to moderate weight on the prompt best.
# >
# > So: mask the prompt by default. If your data set is small and its replies are short, a small
# > weight on the prompt is an experiment worth its price. Not deciding is the only mistake.

# %% [markdown]
# ## Rule 2: mask the role headers
#
# The reason given: in serving the header is written by the server, so nobody ever asks the model for
# it. What happens if it is graded all the same?
#
# **Predict first.** With `assistant_and_header`: (a) what is the loss at the header's tokens after
# 100 steps? (b) Does the logged loss look better or worse for it? (c) What does the model write after
# its own EOT?

# %% tags=["measured"]
runs["assistant_and_header"] = headed = train_seeds(train_chats, "assistant_and_header")
alt = "The header's loss is near zero from step 60; it pulls the logged mean below the reply's."
fig, ax = show.figure(7, 3, alt=alt)
draw(ax, headed, "replies and EOT", "reply and EOT", "graded")
draw(ax, headed, "with header", "header, reply and EOT: what is logged", "tuned", "--")
draw(ax, headed, "assistant header", "header", "special", ":")
ax.set_ylim(0, 2.5)
ax.legend()
plt.show()

# %% tags=["measured"]
columns = {
    "header": "assistant header",
    "reply and EOT": "replies and EOT",
    "logged": "with header",
}
by_step = [
    {"step": step} | {column: spread(headed, name, step) for column, name in columns.items()}
    for step in (40, 100, 200)
]
tokens_in = {column: MASKS[name].sum().item() for column, name in columns.items()}
for run in headed:
    assert run.parts[100]["assistant header"] < 0.05
    assert run.parts[100]["with header"] < 0.75 * run.parts[100]["replies and EOT"]
print(f"after its EOT: {write_on(headed[0].model, held_chats[0].prefix(1))!r}")
show.table([*by_step, {"step": "tokens"} | tokens_in])

# %% [markdown]
# (a) About zero, soon: a header is the same five tokens every time. (b) Better, and that is the harm.
# Tokens that cost nothing pull the mean down: what is logged is the replies' loss *diluted* by the
# share of header tokens (the last row has the counts). Two runs whose masks differ here cannot be
# compared by their loss. (c) It opens another assistant turn and answers again. All that it was ever
# graded on after an EOT, the user's, is the assistant's header.
#
# Did the replies suffer? Compare the last two columns with rule 1:

# %% tags=["measured"]
show.table(
    [
        {"graded": mode, "replies, step 100": spread(found, "replies", 100)}
        | {"step 200": spread(found, "replies"), "right replies": spread(found, "right")}
        for mode, found in runs.items()
    ]
)

# %% [markdown]
# The replies are learnt somewhat later than under `assistant`, for a dull reason: only part of each
# step is about them. What grading the header *adds* is nothing that a server asks for.
#
# The rule is really about who writes the token. There are formats in which the model writes part of
# its header itself: in OpenAI's [harmony](https://github.com/openai/harmony) format it picks the
# channel (`analysis` or `final`) of each message. There that part is graded.

# %% [markdown]
# ## Rule 3: keep the assistant's text
#
# The entire point, so what is there to test? Leave it out, and grade the EOT alone.
#
# **Predict first.** How low does the loss go? What does the model answer?

# %% tags=["measured"]
from dataclasses import replace

END = tokenizer.convert_tokens_to_ids("<|eot_id|>")


def only_the_end(sample):
    return replace(sample, labels=[y if y == END else IGNORE_INDEX for y in sample.labels])


ends = [only_the_end(sample) for sample in prepare(train_chats, tokenizer).samples]
runs["EOT only"] = [train(ends, seed) for seed in SEEDS]

# %% tags=["measured"]
for mode in ("assistant", "EOT only"):
    logged = [sum(run.loss[-20:]) / 20 for run in runs[mode]]
    answer = write_on(runs[mode][0].model, held_chats[0].prefix(1), tokens=6)
    print(f"{mode:>9}: logged loss {', '.join(f'{loss:.3f}' for loss in logged)}")
    print(f"{'':>9}  right replies {spread(runs[mode], 'right')}, such as {answer!r}")
assert max(logged) < 0.02 and all(run.parts[200]["right"] == 0 for run in runs["EOT only"])

# %% [markdown]
# The lowest loss in this lecture, and no answer at all: the model ends its turn at once. It was asked
# one question only, and the answer to it was always the same. **A low loss says that the graded
# question is easy.** It does not say that it was the right one.

# %% [markdown]
# ## Rule 4: keep the end of turn
#
# Now the opposite: grade the text and leave out one token per reply. Lecture 04 showed that this
# moves the graded share of the walkthrough by less than three points.
#
# **Predict first.** Will you see it in the training loss? How probable will the EOT be where the reply
# is over?

# %% tags=["measured"]
runs["assistant_content"] = train_seeds(train_chats, "assistant_content")
for mode in ("assistant", "assistant_content"):
    logged = [f"{sum(run.loss[-20:]) / 20:.2f}" for run in runs[mode]]
    print(f"{mode:>17}: logged loss {', '.join(logged)}")
    print(f"{'':>17}  loss on the replies' text {spread(runs[mode], 'replies')}")


# %% tags=["measured"]
def chances_of_end(run, sample):
    reply = sample.graded[0]
    with torch.no_grad():
        logits = run.model(input_ids=torch.tensor([sample.input_ids])).logits[0]
    return logits.softmax(-1)[reply.start - 1 : reply.end - 1, END].tolist()


where = next(n for n, chat in enumerate(held_chats) if chat[0].content.startswith("What"))
example = held_samples[where]
start, end = example.graded[0].start, example.graded[0].end
after = ["(header)", *(tokenizer.decode([number]) for number in example.input_ids[start : end - 1])]
end_chances = {
    mode: [chances_of_end(run, example) for run in runs[mode]]
    for mode in ("assistant", "assistant_content")
}

# %% tags=["measured"]
alt = "P(EOT) along one reply: one after the full stop if the EOT was graded, else near zero."
fig, ax = show.figure(7, 3, alt=alt)
for shift, (mode, colour) in enumerate((("assistant", "graded"), ("assistant_content", "tuned"))):
    at = [position + 0.4 * shift for position in range(len(after))]
    mean, hatch = torch.tensor(end_chances[mode]).mean(0), "//" if shift else None
    ax.bar(at, mean, 0.38, color=show.PALETTE[colour], edgecolor="black", label=mode, hatch=hatch)
    for chances in end_chances[mode]:
        ax.plot(at, chances, "k.", ms=3)
ax.set_xticks([n + 0.2 for n in range(len(after))], after)
ax.set(ylabel="P(EOT) after it", ylim=(0, 1.05))
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# Bars are means over three seeds, dots the seeds. After the full stop the model that was graded on
# the EOT is certain. The other one has never been told that replies end. It was told, though, what can
# follow a full stop: in the chats of kind "both", another sentence. So that is what it writes.
#
# Does it ever stop? Ask each model for the colour of all twelve animals, with room for 60 tokens.


# %% tags=["measured"]
@torch.no_grad()
def reply_lengths(model, limit=60):
    """Tokens up to and with the EOT, `limit` where it does not come."""
    openings = [animal_chat("colour", animal, "fox").prefix(1) for animal in ANIMALS]
    prompts = [render(chat, "llama3", add_generation_prompt=True).text for chat in openings]
    ids = torch.tensor([encode(tokenizer, prompt).ids for prompt in prompts])
    prompt_length = ids.shape[1]
    for _ in range(limit):
        best = model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, best], dim=1)
    rows = ids[:, prompt_length:].tolist()
    return [row.index(END) + 1 if END in row else limit + 1 for row in rows]


# %% tags=["measured"]
alt = "Graded with the EOT all replies end at token 6; graded without, none within 60."
fig, ax = show.figure(7, 2.6, alt=alt)
for mode, colour, style in (("assistant", "graded", "-"), ("assistant_content", "tuned", "--")):
    lengths = [length for run in runs[mode] for length in reply_lengths(run.model)]
    going = [sum(length > n for length in lengths) / len(lengths) for n in range(61)]
    ax.plot(going, color=show.PALETTE[colour], ls=style, label=mode)
    stopped = sum(length <= 60 for length in lengths)
    print(f"{mode:>17}: {stopped} of {len(lengths)} replies stop within 60 tokens")
    assert stopped == (len(lengths) if mode == "assistant" else 0)
ax.set(xlabel="tokens written", ylabel="share still going", ylim=(0, 1.05))
ax.legend(loc="center right")
plt.show()
print("such as:", write_on(runs["assistant_content"][0].model, held_chats[0].prefix(1), 30))

# %% [markdown]
# All or nothing. The text of the replies was learnt as well as before, and the logged loss gave no
# sign. One masked token per reply is the whole difference between an answer and a ramble.

# %% [markdown]
# ## Rule 5: keep every assistant turn
#
# A chat with three replies holds three answers that somebody wrote with care. `last_turn` grades one
# of them. How much is lost on the course's own 250 conversations?
#
# **Predict first.** What share of the graded tokens of the multi-turn conversations does it drop?

# %%
from course_utils import load_conversations

shipped = load_conversations("../data/conversations.jsonl")
roles = ["system", "user", "assistant"]
shipped_tokenizer = toy_tokenizer([m.content for c in shipped for m in c] + roles, vocab_size=4096)
shipped_tokenizer.chat_template = chat_template("llama3")
all_turns = prepare(shipped, shipped_tokenizer).samples
last_only = prepare(shipped, shipped_tokenizer, mode="last_turn").samples

# %%
kept, whole = {}, {}
for sample, cut in zip(all_turns, last_only, strict=True):
    replies = len(sample.graded)
    kept[replies] = kept.get(replies, 0) + cut.graded_tokens
    whole[replies] = whole.get(replies, 0) + sample.graded_tokens
several = [n for n in whole if n > 1]
lost = 1 - sum(kept[n] for n in several) / sum(whole[n] for n in several)
print(f"of the graded tokens in chats with several replies, last_turn drops {lost:.0%}")
assert lost > 0.4

# %%
alt = "Graded tokens by number of replies: last_turn keeps all of one, half of two, less of more."
fig, ax = show.figure(7, 2.4, alt=alt)
numbers = sorted(whole)
labels = [f"{sum(len(s.graded) == n for s in all_turns)} with {n}" for n in numbers]
ax.barh(labels, [whole[n] for n in numbers], color="white", edgecolor="black", hatch="//")
ax.barh(labels, [kept[n] for n in numbers], color=show.PALETTE["graded"], edgecolor="black")
for row, n in enumerate(numbers):
    text = f"{1 - kept[n] / whole[n]:.0%} dropped"
    ax.annotate(text, (whole[n], row), (4, -3), textcoords="offset points")
ax.set(xlabel="graded tokens (filled: kept by last_turn)", ylabel="conversations, replies")
ax.set_xlim(right=max(whole.values()) * 1.2)
ax.invert_yaxis()
plt.show()

# %% [markdown]
# About half with two replies, two thirds with three, and so on: with n replies of similar length,
# last-turn-only throws away (n - 1)/n of what was written.
#
# What does it do to a model? Train on the animal chats, graded on the second reply only. The
# held-out loss is measured on both replies.

# %% tags=["measured"]
runs["last_turn"] = train_seeds(train_chats, "last_turn")
half_cut = [chat.prefix(2) for chat in train_chats[::2]] + train_chats[1::2]
runs["last_turn, half the chats cut to one reply"] = train_seeds(half_cut, "last_turn")

# %% tags=["measured"]
for run in runs["last_turn"]:
    assert run.parts[200]["first reply"] > 2 and run.parts[200]["second reply"] < 1.5
answer = write_on(runs["last_turn"][0].model, held_chats[0].prefix(1), tokens=8)
print(f"asked first {held_chats[0][0].content!r}, it answers {answer!r}")
show.table(
    [
        {"graded": mode, "loss on first reply": spread(runs[mode], "first reply")}
        | {"on second": spread(runs[mode], "second reply"), "right": spread(runs[mode], "right")}
        for mode in ("assistant", "last_turn", "last_turn, half the chats cut to one reply")
    ]
)

# %% [markdown]
# Graded on second replies only, the model cannot give first ones: to an opening question it gives the
# clipped answer that belongs to a follow-up. In this world first and later replies look different
# and every chat has two, so the damage is as large as it gets. The last row is the fair addition:
# where other conversations in the data are short, *their* only reply is graded, and first replies
# are learnt from them. Most of the course's own conversations have one reply (the first bar above).
# There the cost of `last_turn` is the share that you counted: answers written and not used.

# %% [markdown]
# ### Where last-turn-only came from
#
# Not from a default of Hugging Face, as is often told. What TRL's trainer grades by default depends on
# [how the data are laid out](https://huggingface.co/docs/trl/sft_trainer). In rows of a `prompt` and a
# `completion` it grades the completion, the whole of it. In rows of `messages` or of plain `text` it grades
# *everything*, unless you set `assistant_only_loss=True` for the former. (So a chat whose earlier turns
# were put into the `prompt` is graded on its last reply only, but then it is the data that say so.)
#
# Last-turn-only came from a collator, `DataCollatorForCompletionOnlyLM`, since removed
# ([#3704](https://github.com/huggingface/trl/pull/3704)). Given only a response template, it looked
# for that template in the ids, and its loop kept the *last* place that it found. In essence:

# %%
header = encode(tokenizer, "<|start_header_id|>assistant<|end_header_id|>\n\n").ids


def last_match_wins(ids):
    for start in range(len(ids) - len(header) + 1):
        if ids[start : start + len(header)] == header:
            found = start + len(header)
    return [IGNORE_INDEX] * found + ids[found:]


last_turn_samples = prepare(train_chats, tokenizer, mode="last_turn").samples
same = sum(last_match_wins(sample.input_ids) == sample.labels for sample in last_turn_samples)
print(f"the same labels as last_turn in {same} of {len(last_turn_samples)} chats")

# %% [markdown]
# On chats with one reply, for which it was written, that is right. On longer ones it dropped replies
# without a word, unless you also gave it an instruction template.

# %% [markdown]
# ## What share is graded?
#
# A graded share is the cheapest check there is, and you find rules of thumb for it, such as "30 to
# 80 %, never under 10 %". Take the conversations that this course ships, all of them masked right.
#
# **Predict first.** How many of the 250 are outside 30 to 80 %? Is any below 10 %?

# %%
shares = [sample.graded_tokens / len(sample) for sample in all_turns]
outside = sum(not 0.3 <= share <= 0.8 for share in shares)
print(f"lowest {min(shares):.0%}, highest {max(shares):.0%}")
print(f"outside 30 to 80 %: {outside} of {len(shares)}; under 10 %: {sum(x < 0.1 for x in shares)}")
alike = [share for share, s in zip(shares, all_turns, strict=True) if 40 <= len(s) <= 60]
print(f"of 40 to 60 tokens there are {len(alike)}: from {min(alike):.0%} to {max(alike):.0%}")
assert outside >= 10 and min(shares) < 0.1

# %%
alt = "Conversations by tokens and graded share, from under 10 to over 80 %; a band at 30 to 80."
fig, ax = show.figure(7, 3.2, alt=alt)
for replies, marker, colour in ((1, "o", "special"), (2, "^", "tuned"), (3, "s", "graded")):
    some = [k for k, s in enumerate(all_turns) if min(len(s.graded), 3) == replies]
    x, y = [len(all_turns[k]) for k in some], [shares[k] for k in some]
    name = ("1 reply", "2 replies", "3 or 4 replies")[replies - 1]
    ax.scatter(x, y, s=16, marker=marker, color=show.PALETTE[colour], label=name)
ax.axhspan(0.3, 0.8, color=show.PALETTE["masked"], alpha=0.15)
ax.set(xlabel="tokens in the conversation", ylabel="graded share", ylim=(0, 1))
ax.legend(loc="lower right")
plt.show()

# %% [markdown]
# The band is 30 to 80 %. Correct samples lie on both sides of it. Longer conversations tend to have a
# higher share, but at one length the range is wide. What decides is the *task*:

# %%
SHAPES = {"single-turn", "multi-turn", "system"}
by_kind = {}
for chat, share in zip(shipped, shares, strict=True):
    for tag in set(chat.tags) - SHAPES:
        by_kind.setdefault(tag, []).append(share)
middle = {tag: sorted(found)[len(found) // 2] for tag, found in by_kind.items()}
order = sorted(middle, key=middle.get)
show.bars(
    [f"{tag} ({len(by_kind[tag])})" for tag in order],
    [middle[tag] for tag in order],
    intervals=[(min(by_kind[tag]), max(by_kind[tag])) for tag in order],
    xlabel="graded share: median, and lowest to highest",
    alt="Graded share by kind of task: lowest for summaries, highest for plans.",
)
plt.show()

# %% [markdown]
# Summaries have long questions and short replies, plans the reverse. The end of the scale is a task
# that is answered with a letter:

# %%
letter = conversation(
    ("system", "Answer with the letter of the right option and nothing else."),
    ("user", "Which gas do plants take up?\nA) oxygen\nB) carbon dioxide\nC) helium\nD) nitrogen"),
    ("assistant", "B"),
)
for name, chat in (("walkthrough", WALKTHROUGH), ("letter answer", letter)):
    (one,) = training_samples(chat, WordTokenizer())
    share = one.graded_tokens / len(one)
    print(f"{name:>13}: {one.graded_tokens} of {len(one)} word tokens, {share:.0%}")
assert share < 0.1

# %% [markdown]
# Even the walkthrough is below the band. So a share is no rule. It is a *fingerprint of a source*:
# report it by source, and look when it differs from what that source had last time. For a rule, use
# one that is exact: as many graded runs as assistant turns, each ending with the EOT.

# %%
STOP = shipped_tokenizer.convert_tokens_to_ids("<|eot_id|>")
for chat, one in zip(shipped, all_turns, strict=True):
    assert len(one.graded) == chat.roles.count("assistant")
    assert all(one.input_ids[span.end - 1] == STOP for span in one.graded)
print(f"{len(all_turns)} conversations: each assistant turn graded, each run ends with EOT")

# %% [markdown]
# ## Which mean?
#
# The loss is the mean over graded tokens. Of which tokens: of the row, of the batch, of the step?
#
# **Predict first.** A batch has two rows, the shortest and the longest single reply in the data. How
# much of the loss is the short one?

# %%
ones = sorted((s for s in all_turns if len(s.graded) == 1), key=lambda s: s.graded_tokens)
pair = {"short reply": ones[0], "long reply": ones[-1]}
total = sum(row.graded_tokens for row in pair.values())
rows = []
for name, row in pair.items():
    n = row.graded_tokens
    weights = {"mean over tokens": f"{n / total:.1%}", "mean over rows": "50.0%"}
    each = {"one token, over tokens": f"{1 / total:.2%}", "one token, over rows": f"{0.5 / n:.2%}"}
    rows.append({"row": name, "graded tokens": n} | weights | each)
show.table(rows, caption="weight in the loss of the batch")

# %%
short, long = (row.graded_tokens for row in pair.values())
show.bars(
    [f"{name}, {row.graded_tokens} tokens" for name, row in pair.items()],
    {
        "mean over tokens": [100 * short / total, 100 * long / total],
        "mean over rows": [50, 50],
    },
    xlabel="weight in the loss of the batch (%)",
    alt="Over tokens the short reply has under 2 % of the weight, over rows half of it.",
)
plt.show()

# %% [markdown]
# Over tokens, the short reply hardly counts. Over rows, each of *its* tokens counts dozens of times
# as much as one of the other's. Neither is wrong. The mean over tokens (the default of
# `cross_entropy`, and ours) treats all tokens alike and lets long replies set the tone; say which one
# you use.
#
# What *is* wrong is to mix them without knowing. When a step is split into micro-batches and each is
# averaged by itself, the result depends on how the rows fell:

# %%
model = tiny_model(len(shipped_tokenizer))


def gradient(samples, divisor):
    """Gradient of the summed loss of the samples, divided by `divisor`, as one long vector."""
    batch = collate(samples, shipped_tokenizer.pad_token_id)
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
    model.zero_grad()
    loss = cross_entropy(logits, batch["labels"][:, 1:].flatten(), reduction="sum") / divisor
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# %% tags=["measured"]
first, second = ones[:4], ones[-4:]
n_first, n_second = (sum(s.graded_tokens for s in part) for part in (first, second))
whole = gradient(first + second, n_first + n_second)
each_by_itself = (gradient(first, n_first) + gradient(second, n_second)) / 2
by_the_total = gradient(first, n_first + n_second) + gradient(second, n_first + n_second)
print(f"graded tokens: {n_first} and {n_second}")
errors = {}
for name, found in (("each mean by itself", each_by_itself), ("divided by total", by_the_total)):
    errors[name] = ((found - whole).norm() / whole.norm()).item()
    print(f"{name:>20}: differs from the gradient of the whole batch by {errors[name]:.2%}")
assert errors["each mean by itself"] > 0.2 and errors["divided by total"] < 1e-3

# %% [markdown]
# Sum first and divide once by the graded tokens of the *whole step*, and splitting changes nothing.
# transformers' Trainer averaged each micro-batch by itself until October 2024
# ([#34191](https://github.com/huggingface/transformers/pull/34191),
# [#34198](https://github.com/huggingface/transformers/pull/34198),
# [write-up](https://huggingface.co/blog/gradient_accumulation)).
#
# **Predict first.** And a micro-batch with nothing graded? What are its loss and its gradient, from
# `cross_entropy` and from a masked mean that you write yourself?

# %%
scores = torch.zeros(3, 5, requires_grad=True)
mask, targets = torch.zeros(3), torch.tensor([1, 2, 3])
by_hand = (cross_entropy(scores, targets, reduction="none") * mask).sum() / mask.sum()
by_library = cross_entropy(scores, torch.full((3,), IGNORE_INDEX))
for name, loss in (("cross_entropy", by_library), ("mask by hand", by_hand)):
    (gradient_here,) = torch.autograd.grad(loss, scores)
    print(f"{name:>13}: loss {loss.item()}, gradient {gradient_here[0].tolist()}")

# %% [markdown]
# The mean of no tokens is 0/0. The library's loss is NaN but its gradient is zero, so all that you
# lose is the curve. In the loss written by hand the gradient is NaN as well, and after one step so is
# every weight. (In nanochat such micro-batches made the loss NaN from the first step:
# [#590](https://github.com/karpathy/nanochat/issues/590).) `training_samples` refuses a row with
# nothing graded, and a step should be divided by a count that is not zero.

# %% [markdown]
# ## Common bug: the wrong tokens are graded, and the curve looks fine
#
# Two classics. *Inverted*: a mask of ones and zeros whose meaning was swapped on the way. *Padding
# graded*: labels padded with the pad token instead of -100. Both train without a complaint.
#
# **Predict first.** Three loss curves: healthy, inverted, padding graded. Which is lowest after 40
# steps? Which at the end? How many replies does each model get right?

# %% tags=["measured"]
broken = {
    "healthy": runs["assistant"],
    "inverted": train_seeds(train_chats, "inverted"),
    "padding graded": train_seeds(train_chats, "assistant", grade_padding=True),
}

# %% tags=["measured"]
alt = "Three training losses fall smoothly; at step 40 the broken ones lie below the healthy one."
fig, ax = show.figure(7, 3, alt=alt)
styles = {
    "healthy": ("graded", "-"),
    "inverted": ("tuned", "--"),
    "padding graded": ("special", ":"),
}
for name, (colour, style) in styles.items():
    mean = torch.tensor([run.loss for run in broken[name]]).mean(0)
    ax.plot(mean, color=show.PALETTE[colour], ls=style, label=name)
ax.set(xlabel="step", ylabel="training loss", ylim=(0, 3))
ax.legend()
plt.show()

# %% tags=["measured"]
early = {name: [sum(run.loss[30:50]) / 20 for run in found] for name, found in broken.items()}
late = {name: [sum(run.loss[-20:]) / 20 for run in found] for name, found in broken.items()}
for name in ("inverted", "padding graded"):
    assert max(early[name]) < min(early["healthy"])
assert all(run.parts[200]["right"] == 0 for run in broken["inverted"])
for name, found in broken.items():
    answer = write_on(found[0].model, held_chats[0].prefix(1), tokens=12)
    print(f"{name:>14}: {answer!r}")

# %% tags=["measured"]
show.table(
    [
        {
            "run": name,
            "loss around step 40": sum(early[name]) / 3,
            "at the end": sum(late[name]) / 3,
        }
        | {"right replies": spread(found, "right")}
        for name, found in broken.items()
    ]
)

# %% [markdown]
# At step 40 both broken runs look *better* than the healthy one. The inverted one levels off at what
# chance leaves, which on real text looks like any other plateau; it has not learnt one reply, and
# where it should answer it speaks as the user. With padding graded, easy tokens dilute the mean as
# the headers did in rule 2. Here the replies come out all right (and after its EOT the model writes
# padding, which nobody sees), so the only harm is a loss that cannot be compared with any other.
# It stops being harmless when the pad token *is* the EOT: lecture 06 shows that one.
#
# What finds them is no curve. Take one real batch before you train, and read **what the labels ask
# for**: it must be the replies, each with its EOT, and nothing else.


# %%
def asked_for(labels):
    return tokenizer.decode([label for label in labels.tolist() if label != IGNORE_INDEX])


def replies_of(chat):
    return "".join(turn.content + "<|eot_id|>" for turn in chat if turn.role == "assistant")


few = [next(c for c in train_chats if c[0].content.startswith(w)) for w in ("What", "Describe")]
batches = {
    name: collate(prepare(few, tokenizer, mode=mode).samples, tokenizer.pad_token_id)
    for name, mode in (("healthy", "assistant"), ("inverted", "inverted"), ("padded", "assistant"))
}
padding = batches["padded"]["attention_mask"] == 0
batches["padded"]["labels"][padding] = tokenizer.pad_token_id

# %%
rows = []
for name, batch in batches.items():
    fits = all(asked_for(batch["labels"][n]) == replies_of(chat) for n, chat in enumerate(few))
    rows.append({"batch": name, "asks for the replies": fits})
    print(f"{name:>8}, row 0 asks for: {asked_for(batch['labels'][0])!r}")
assert [row["asks for the replies"] for row in rows] == [True, False, False]
show.table(rows)

# %%
pieces = [tokenizer.decode([number]) for number in batches["padded"]["input_ids"][0].tolist()]
graded = [label != IGNORE_INDEX for label in batches["padded"]["labels"][0].tolist()]
show.strip(pieces, graded, title="A row of the last batch: padding is graded")

# %% [markdown]
# Filled boxes at the end of the row, under `<|pad|>`. One look finds them.

# %% [markdown]
# ## Take-aways
#
# 1. Grade what the model itself writes when the template is served: every assistant turn, its text
#    and its EOT. Leave out the EOT and no reply ends; leave out earlier turns and you drop half or
#    more of the answers you have; grade the prompt only as a decision that you have measured.
# 2. A mask chooses which *predictions* are compared, one position to the left of the labels. The
#    gradient passes through the masked tokens nonetheless: that is how the model learns to read them.
# 3. Losses under different masks cannot be compared, and a low one proves nothing. Look at one row,
#    count graded EOTs against assistant turns, and report the graded share by source.
#
# Now do the [exercises](../exercises/05_what_to_grade.ipynb).
#
# ## Quiz
#
# <details><summary>A chat ends with a user turn, after one complete assistant turn. Under the mask
# <code>assistant</code>, do the embeddings of that last user turn get a gradient?</summary>
#
# No. Nothing after them is predicted, and nothing before them can see them. They cost computing time
# and train nothing. This is also why truncation may drop them.
#
# </details>
#
# <details><summary>Two runs on the same data: one logs a loss of 0.9, the other 1.6. What do you ask
# before you call the first one better?</summary>
#
# What was graded in each. Headers, padding or the user's text in the mean change the number without
# changing the replies, and a mean over rows is another number than a mean over tokens. Compare both
# models on the same held-out replies with the same mask.
#
# </details>
