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
# # 07 Data is the curriculum
#
# After this you can **convert** records of any source into one schema without losing a word, **find**
# a converter that poisons its rows although nothing complains, and **read** a mixture: which part is
# there for what, what it costs, and what is missing without it.
#
# 45 minutes, CPU. Nothing is trained here; the runs that the lecture shows were recorded.

# %%
import json
import shutil
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt

from course_utils import load_conversations, render, show
from course_utils.batching import collate, prepare
from course_utils.checkpoints import local_folder, use_family
from course_utils.conversation import Conversation, ConversationError, conversation
from course_utils.sources import Report, convert, problems, stream
from course_utils.templates import chat_template
from course_utils.tokenizers import load_tokenizer

# %%
data = next(p for p in (Path("data"), Path("../data")) if p.is_dir())
runs = data.parent / "runs" / "lecture-07"
runs.mkdir(parents=True, exist_ok=True)
tokenizer = use_family(load_tokenizer(str(local_folder("course-base"))), "chatml")

# %% [markdown]
# ## One schema, many sources
#
# Lectures 02 to 06 began with a `Conversation`. Nobody's data is one. Here is the same kind of thing,
# somebody asks and somebody replies, as three sources write it down.

# %%
CALL = {"name": "weather", "arguments": '{"city": "Oslo"}'}
OPENAI = [
    {"role": "user", "content": "Weather in Oslo?"},
    {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
    {"role": "tool", "tool_call_id": "1", "content": "4 degrees"},
    {"role": "assistant", "content": "It is 4 degrees in Oslo."},
]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello! What is it?"}]
WORKED = {"question": "5 pens, 3 each. How much?", "answer": "5*3 = <<5*3=15>>15.\n#### 15"}
records = {
    "openai": {"messages": OPENAI},
    "sharegpt": {"conversations": SHAREGPT},
    "worked-math": WORKED,
}

# %% [markdown]
# **Predict first.** What has to change in each, apart from the names of the fields? Two of the
# records hold something that is neither a role nor a text: what becomes of it?

# %%
converted = {source: convert(record, source)[0] for source, record in records.items()}
rows = []
for source, chat in converted.items():
    for message in chat:
        calls = [call["function"] for call in message.tool_calls]
        row = {"source": source, "role": message.role, "content": message.content}
        rows.append(row | {"tool_calls": calls or ""})
show.table(rows)

# %%
for source, chat in converted.items():
    print(f"{source:<12} meta: {chat.meta}")

# %% [markdown]
# The call stays a call. Its arguments, JSON in a string, became an object; its id is kept, and the result
# that names it got the tool's name as well. How a call is *written* is left to the template: a converter
# that wrote it into the text would teach a grammar that no server reads. The calculator mark `<<5*3=15>>`
# is no prose; it left the text, and the meta says where it was, so it can be put back. Nothing is dropped
# without a word.
#
# From here on all three take the same road. The strip shows the first one, rendered and masked, with the
# call in ChatML's grammar:

# %%
show.rendered(render(converted["openai"], "chatml"), title="openai, converted: two graded turns")

# %% [markdown]
# The call and the last reply are graded, the tool's result is not: the model will not write it.
#
# ### Roles are mapped, not only keys
#
# The shortest converter for ShareGPT renames two keys. A template is text with holes, so it takes
# whatever stands in `role`.
#
# **Predict first.** The record below is renamed and rendered by ChatML's template. How many of its
# tokens are graded?

# %%
renamed = [{"role": turn["from"], "content": turn["value"]} for turn in SHAREGPT]
tagged = chat_template("chatml", generation_tag=True)
encoded = tokenizer.apply_chat_template(
    renamed, chat_template=tagged, return_dict=True, return_assistant_tokens_mask=True
)
mask = [bool(graded) for graded in encoded["assistant_masks"]]
print(f"{sum(mask)} of {len(mask)} tokens graded")
pieces = [tokenizer.decode([token]) for token in encoded["input_ids"]]
show.strip(pieces, mask, title="keys renamed, roles not")

# %% [markdown]
# None, without a warning: no turn is an `assistant`'s. And the headers say `human` and `gpt`, which no
# server will ever send. The schema refuses such a record at the door:

# %%
try:
    Conversation(tuple(renamed))
except ConversationError as error:
    print(error)

# %% [markdown]
# ### Converted or rejected, and counted
#
# Real files hold records that fit no schema. There are two honest things to do with one: convert it, or
# reject it with a reason. Here is an export of ten records, some of them broken as such files are.

# %%
good = {"conversations": SHAREGPT}
export = [good] * 5 + [
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "bing", "value": "Hello"}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": " "}]},
    {"conversations": [{"from": "gpt", "value": "Welcome!"}, *SHAREGPT]},
    {"conversations": SHAREGPT[:1]},
]
lines = [json.dumps(record) for record in export] + ['{"conversations": [']
with (runs / "export.jsonl").open("w", encoding="utf-8") as file:
    file.writelines(line + "\n" for line in lines)

# %% [markdown]
# **Predict first.** How many of the ten are converted? Which reasons will the report give?

# %%
report = Report()
kept = [c for c in stream(runs / "export.jsonl", "sharegpt", report=report) if hasattr(c, "roles")]
print(report)

# %%
tally = report.sources["sharegpt"]
outcomes = {"converted": tally.converted, **tally.reasons}
alt = f"Of {tally.records} records {tally.converted} were converted, the others rejected."
show.bars(list(outcomes), list(outcomes.values()), xlabel="records", alt=alt)
plt.show()

# %% [markdown]
# Half of the file. Each rejection names its line, its place and its reason, so you can decide: map `bing`
# with `roles={"bing": "assistant"}`, or leave the record out. The bars add up to the records of the file;
# a converter whose bars do not is dropping some. For whole files there is a command:
#
#     python -m course_utils.sources sharegpt chats.jsonl out.jsonl --rejected bad.jsonl
#
# It reads record by record, so that a file larger than memory works.

# %% [markdown]
# ## A poisoned converter
#
# An app exports its chats as ShareGPT. Most come from the web version; in the phone version the assistant
# speaks first. (Here the export is made from the course's own conversations.)

# %%
shipped = load_conversations(data / "conversations.jsonl")
GREETINGS = ("Hi, what is it today?", "Good to see you. Ask away!", "Hello again. What now?")
exported = []
for number, chat in enumerate(shipped):
    names = {"user": "human", "assistant": "gpt"}
    turns = [{"from": names[m.role], "value": m.content} for m in chat if m.role != "system"]
    phone = number % 6 == 5
    if phone:
        turns.insert(0, {"from": "gpt", "value": GREETINGS[number // 6 % len(GREETINGS)]})
    system = chat[0].content if chat.roles[0] == "system" else ""
    app = "phone" if phone else "web"
    exported.append({"app": app, "system": system, "conversations": turns})
print(Counter(record["app"] for record in exported))


# %% [markdown]
# And here is a converter that somebody wrote in a hurry. It has one bug.
#
# **Predict first.** Read it. For which records is it wrong? Which step of the pipeline will complain?


# %%
def hurried(record):
    """User and assistant take turns, so the place tells the role."""
    texts = [turn["value"] for turn in record["conversations"]]
    texts = texts[: len(texts) // 2 * 2]  # a question without a reply teaches nothing
    roles = ["user", "assistant"] * (len(texts) // 2)
    system = [("system", record["system"])] if record["system"] else []
    return conversation(*system, *zip(roles, texts, strict=True))


# %%
made = [hurried(record) for record in exported]
ready = prepare(made, tokenizer)
print(f"{len(exported)} records, {len(made)} rows")
print(ready)

# %%
print("\n\n".join(render(made[place], "chatml").text for place in (0, 1)))

# %% [markdown]
# As many rows as records, none refused, and the first ones that you look at are right. Nor
# does training mind: all that it asks for is a finite loss with a gradient.

# %% tags=["measured"]
from course_utils.checkpoints import load_base

model, _ = load_base("course-base")
for app in ("web", "phone"):
    pairs = zip(ready.samples, exported, strict=True)
    four = [sample for sample, record in pairs if record["app"] == app][:4]
    loss = model(**collate(four, tokenizer.pad_token_id)).loss
    model.zero_grad()
    loss.backward()
    print(f"four rows of the {app} version: loss {loss.item():.2f}, finite, with a gradient")

# %% [markdown]
# The base has not read such text, so both are high; the loss does not tell the two apart. Nothing has
# complained. Now the strip of one of the rows of the phone version:

# %%
show.rendered(render(made[5], "chatml"), title="a row of the phone version")

# %% [markdown]
# The template is right, the mask is right, and the row is poison. What a *user* typed stands in the
# assistant's turn and is graded: the model learns to answer a greeting with a request. The real reply is
# gone; as a turn without a partner it was cut off.
#
# ### What catches it
#
# **Predict first.** Four nets. Which of them finds the bug, and which cannot?
#
# 1. the validator of the schema, over the written file,
# 2. a count by source of something that should not depend on the source,
# 3. a property: every text that goes in comes out once, in its own role,
# 4. reading the rows that one odd figure puts first.

# %%
with (runs / "hurried.jsonl").open("w", encoding="utf-8") as file:
    file.writelines(json.dumps(chat.as_record()) + "\n" for chat in made)
print("1. faults that the validator finds:", len(list(problems(runs / "hurried.jsonl"))))

asks = {app: Counter() for app in ("web", "phone")}
for record, chat in zip(exported, made, strict=True):
    asks[record["app"]][chat[-1].content.rstrip().endswith("?")] += 1
for app, count in asks.items():
    print(f"2. {app:<6} last reply ends with a question: {count[True]} of {count.total()}")

# %% [markdown]
# The first net catches nothing: each row *is* a valid conversation. The second does: replies that ask are
# rare in one source and common in the other. It does not say why, but it says where to look.
#
# The third net needs no suspicion. It only needs the source's own role names.

# %%
from course_utils.sources.formats import SHAREGPT_ROLES


def lost_and_found(record, chat):
    """Per role: texts that did not come out, and texts that came out without going in."""
    source = [(SHAREGPT_ROLES[turn["from"]], turn["value"]) for turn in record["conversations"]]
    into = Counter(source)
    out = Counter((m.role, m.content) for m in chat if m.role != "system")
    return list((into - out).elements()), list((out - into).elements())


# %%
broken = [
    i for i, pair in enumerate(zip(exported, made, strict=True)) if any(lost_and_found(*pair))
]
print("3. rows that break the property:", len(broken))
print("   their sources:", dict(Counter(exported[i]["app"] for i in broken)))
for side, texts in zip(("lost ", "found"), lost_and_found(exported[5], made[5]), strict=True):
    print(f"   {side} {[(role, text[:40]) for role, text in texts]}")

# %% [markdown]
# It finds every one of them and nothing else, and the pair *lost as user, found as assistant* names the
# bug. It costs a dozen lines, so a converter should never be without it. It sees neither the order of the
# turns nor, here, the system text; compare lists instead of counts where order is kept. The course's own
# converters are tested so, with random records.
#
# The fourth net is for the day on which you have only the rows. Sort them by a figure that is small for
# nearly every good reply, the largest first, and read the top. Here: replies that end with a question first,
# and of these the ones with most words of the user for each of their own.


# %%
def odd(chat):
    """Last question's words per word of its reply."""
    return len(chat[-2].content.split()) / len(chat[-1].content.split())


order = sorted(
    range(len(made)), key=lambda i: (made[i][-1].content.rstrip()[-1] != "?", -odd(made[i]))
)
for i in order[:6]:
    print(f"{exported[i]['app']:<5} user: {made[i][-2].content[:38]!r:<42}", end=" ")
    print(f"assistant: {made[i][-1].content[:44]!r}")

# %%
share = [sum(exported[i]["app"] == "phone" for i in order[:n]) / n for n in range(1, 101)]
rate = asks["phone"].total() / len(made)
alt = "Share of poisoned rows among the first n: nearly all at the top of the sorted list."
fig, ax = show.figure(7, 2.6, alt=alt)
ax.plot(range(1, 101), share, color=show.PALETTE["tuned"], label="questions first")
ax.axhline(rate, color=show.PALETTE["masked"], linestyle="--", label="in any order")
ax.set(xlabel="rows read", ylabel="share poisoned", ylim=(0, 1.05))
ax.legend()
plt.show()

# %% [markdown]
# Ten rows read in this order show the bug; ten at random show one or two of its rows, among good ones.
#
# > **Common bug.** *The roles alternate, so I need not read them.* FastChat's training code skips a first
# > turn that is not the user's and then
# > [asserts the role of every turn](https://github.com/lm-sys/FastChat/blob/047b6e4ba155186c7992e096fd8d26cdf014a59a/fastchat/train/train.py#L80-L91)
# > instead of assuming it.
#
# The course's converter rejects these records and says so; then it is your decision what to do:

# %%
report = Report()
for number, record in enumerate(exported):
    report.add(record["app"], convert(record, "sharegpt", id=f"record {number}"))
print(report)

# %% [markdown]
# ## The mixture
#
# A model learns what its rows show it. So list the parts with a reason for each: what would it lack
# *without* this part? These are the parts for `course-base`:

# %%
from course_utils.curriculum.mixture import PARTS, REAL_PARTS, mixture

mixed = mixture(PARTS, seed=0)
lines = mixed.table()
assert min(lines, key=lambda line: line.rows).part == "identity"
assert max(lines, key=lambda line: line.epochs).part == "identity"
show.table([line._asdict() for line in lines])

# %% [markdown]
# `rows` are what a part has, `epochs` how often each is shown, `used` how many rows of the mixture that makes,
# `share` their part of all its rows. The identity set is the smallest part and must be learned word for word, so it
# has the most epochs.
#
# **Predict first.** Rows are one way to measure a share. What the loss sees are *graded tokens*. Which part
# shrinks most when you count these instead? Which grows?

# %%
from course_utils.audit import token_budget

budget = {b.source: b for b in token_budget(mixed, tokenizer, by=lambda c: c.meta["part"])}
names = [part.name for part in PARTS]
counts = {"rows": [budget[name].conversations for name in names]}
counts["tokens"] = [budget[name].tokens for name in names]
counts["graded tokens"] = [budget[name].graded for name in names]
shares = {unit: [100 * n / sum(found) for n in found] for unit, found in counts.items()}
alt = "Share of each part in percent, by rows, by tokens and by graded tokens."
show.bars(names, shares, xlabel="share of the mixture in %", alt=alt)
plt.show()

# %%
for unit, found in shares.items():
    ends = [(names[found.index(end)], f"{end:.0f} %") for end in (max(found), min(found))]
    print(f"{unit:<14} largest: {' '.join(ends[0])}, smallest: {' '.join(ends[1])}")
place = names.index("multiple-choice")
print("multiple-choice:", ", ".join(f"{v[place]:.0f} % of {unit}" for unit, v in shares.items()))
grown = [b / a for a, b in zip(shares["rows"], shares["graded tokens"], strict=True)]
assert grown[place] == min(grown) < 0.5 and 1.8 < max(grown) == grown[names.index("follow-ups")]

# %% [markdown]
# Three pictures of one mixture. A letter is a short reply, so multiple choice has a much smaller share of the graded
# tokens than of the rows (last line). Whether that is too little is not a question of bookkeeping; the ablation
# below asks the model. The share of follow-ups, with several replies in a row, about doubles. So say which unit you
# mean when you name a share.
#
# ### From a row back to its source
#
# A strange reply in training leads to a row; the row must lead to its source.

# %%
sources = [mixed.source(row) for row in range(len(mixed))]
again = next(row for row, s in enumerate(sources) if s.part == "identity" and s.epoch > 0)
for row in (*range(0, len(mixed), len(mixed) // 5), again):
    print(sources[row], "|", mixed[row][0].content[:40].replace("\n", " "))

# %% [markdown]
# The last one is an identity row that is shown again: `epoch` counts from 0.

# %% [markdown]
# **Predict first.** You show the identity set twice as often. By how much does its share of the rows grow: to
# twice as much, or less? And what happens to the other shares if you leave out a part?

# %%
rows, share = [], []
twice = 2 * next(part.epochs for part in PARTS if part.name == "identity")
for name, how in (
    ("as it is", {}),
    (f"identity {twice:g} times", {"epochs": {"identity": twice}}),
    ("half of the facts", {"epochs": {"facts": 0.5}}),
    ("without spelling", {"without": ["spelling"]}),
):
    lines = {line.part: line for line in mixture(PARTS, **how).table()}
    row = {part: f"{lines[part].share:.1%}" for part in ("identity", "facts", "form")}
    rows.append({"mixture": name, "rows": sum(line.used for line in lines.values()), **row})
    share.append(lines["identity"].share)
assert share[0] < share[1] < 2 * share[0]
show.table(rows)

# %% [markdown]
# Less than twice as much, since the whole grows, too. Every change of one part changes the share of all others. The
# order is made so that the other rows keep theirs, so two mixtures differ in nothing but the part.

# %% [markdown]
# ## The graded share, and a rule that is none
#
# A common piece of advice: *30 to 80 % of the tokens should be graded; below 10 % something is broken.* You
# have met a counter-example: of the walkthrough's 36 tokens 10 are graded, 28 %.
#
# **Predict first.** Measure it for each part, sample by sample. How many of the eight parts lie wholly inside
# of 30 to 80 %?


# %%
def ranges(budgets, title):
    """Smallest, median and largest graded share of a sample, a line for each source."""
    alt = f"{title}: for each the smallest, median and largest graded share of a sample."
    fig, ax = show.figure(7, 0.9 + 0.26 * len(budgets), alt=alt)
    ax.axvspan(30, 80, color=show.PALETTE["masked"], alpha=0.2, label='"30 to 80 %"')
    for y, b in enumerate(budgets):
        low, middle, high = (100 * share for share in b.share)
        ax.plot(
            [low, high], [y, y], color=show.PALETTE["graded"], linewidth=4, solid_capstyle="butt"
        )
        ax.plot(middle, y, "o", color="black", markersize=5)
    ax.set_yticks(range(len(budgets)), [b.source for b in budgets])
    ax.set(xlabel="graded share of a sample in %", xlim=(0, 100), title=title)
    ax.legend(loc="lower left", bbox_to_anchor=(0.75, 1), borderaxespad=0.2)


# %%
by_share = sorted(budget.values(), key=lambda b: b.share[1])
ranges(by_share, "Parts of the mixture")
plt.show()
inside = [b.source for b in by_share if b.share[0] >= 0.3 and b.share[2] <= 0.8]
print("wholly inside:", ", ".join(inside) or "none")

# %% [markdown]
# Every one of these samples is masked as lecture 05 says. The share tells how long a reply is beside its
# prompt, no more. The same in the course's conversations for a real base, by topic:

# %%
everyday = shipped + load_conversations(data / "curriculum" / "chat.jsonl")
topics = sorted(token_budget(everyday, tokenizer), key=lambda b: b.share[1])
ranges(topics, "Shipped conversations by topic")
plt.show()

# %%
for b in (topics[0], topics[-1]):
    spread = b.row()["min, median, max"]
    print(f"{b.source}: {b.graded / b.tokens:.0%} of all tokens, samples {spread}")
low, high = min(b.share[0] for b in topics), max(b.share[2] for b in topics)
print(f"single samples: {low:.0%} to {high:.0%}")

# %% [markdown]
# So do not look for a range. Look for what no right mask gives: a share of 0 or 1, one source far from
# others of its kind, or a share that moved since yesterday. And report it by source: a mean over all would hide
# that one source has no mask at all.

# %% [markdown]
# ## The audit
#
# Three faults make a good number worthless: the same row many times, evaluation questions among the training
# rows, and rows that are all alike.
#
# ### Near-duplicates
#
# Two conversations are compared by the runs of five words in all their turns, without the system texts:
# shared runs / all runs (the Jaccard index of
# [Broder 1997](https://doi.org/10.1109/SEQUEN.1997.666900)). 1 is a copy.
#
# **Predict first.** Four copies of one chat, each with a change. Which are still found at 0.5?

# %%
from course_utils.audit import diversity, near_duplicates, overlap

long = next(c for c in shipped if len(c) == 2 and len(c[1].content.split()) > 60)
question, reply = (m.content for m in long)


def every(n, first):
    """The reply with every n-th word changed."""
    return " ".join("so" if i % n == first else w for i, w in enumerate(reply.split()))


# %%
planted = {
    "capitals, other spaces": reply.upper().replace(" ", "  "),
    "one word changed": every(1000, 30),
    "another ending": reply + " So it is.",
    "every third word changed": every(3, 0),
}

# %%
rows = []
for name, text in planted.items():
    copy = conversation(("user", question), ("assistant", text))
    pairs = near_duplicates([*shipped, copy])
    (closest,) = near_duplicates([long, copy], 0.01)
    rows.append({"planted": name, "score": closest.score, "pairs found at 0.5": len(pairs)})
show.table(rows)

# %% [markdown]
# Case and spaces do not count. One changed word costs up to five runs. Rewrite enough words and a copy is no
# copy any more to this measure: it finds pasted text, not borrowed thoughts. The 0.03 is the question, which
# was copied.
#
# ### Overlap with the evaluation
#
# Lecture 09 asks both models held-out questions. A training row that holds one would make its number a lie.
#
# **Predict first.** One evaluation prompt is hidden in a training chat. Six shared words count as overlap. Is
# it found if its last word is changed?

# %%
prompts = [
    chat
    for path in ("comparison_prompts.jsonl", "held_out_prompts.jsonl")
    for chat in load_conversations(data / path)
]
target = next(p for p in prompts if len(p) == 1 and 10 <= len(p[0].content.split()) <= 14)
cut = target[0].content.split()[:-1]
leaked = conversation(("user", "A quiz: " + " ".join(cut) + " say?"), ("assistant", "Well."))
for case in overlap([*shipped, leaked], prompts):
    where = "the planted chat" if case.conversation == len(shipped) else "a shipped one"
    print(f"{where} shares {case.passage!r}")

# %% [markdown]
# It is: the run of words that both share is named. And the shipped set? The audit looks at everything at
# once; a test runs it whenever the data change.

# %%
from course_utils.audit import audit

show.table(audit(everyday, prompts).table())

# %% [markdown]
# None of each in these conversations. *Similar first user turns* compares the first questions alone, by
# pairs of words, since most questions are too short for runs of five; such a pair is to be read, it need not
# be a fault. The parts that a program generates share questions about famous facts with some prompts; audit
# the whole mixture before you compare models trained on it. For files there is a command:
#
#     python -m course_utils.audit data/conversations.jsonl data/curriculum/chat.jsonl --against data/comparison_prompts.jsonl data/held_out_prompts.jsonl
#
# ### Are they different enough?
#
# The course's conversations were written in two rounds, the second with variety as a stated aim. Figures of
# variety depend on size: the more rows, the more openings repeat. So compare draws of the *same* number of
# rows, twenty times. An opening is a turn's first two words; *distinct-2* is different word pairs / all
# pairs, *type-token ratio* different words / all words, both in the first 2,000 words of replies.
#
# **Predict first.** Which of the two sets has more different openings of user turns? Of replies?

# %%
sample = 4 * len(shipped) // 5
sets = {"first": shipped, "newer": everyday[len(shipped) :]}
found = {name: diversity(chats, sample) for name, chats in sets.items()}
del found["first"]["replies: compression ratio"]  # depends a little on zlib's version
figures = list(found["first"])
show.table([{"figure": f, **{name: str(found[name][f]) for name in sets}} for f in figures])

# %%
alt = "Four figures of variety for the first and the newer conversations, with their spread."
fig, ax = show.figure(7, 2.6, alt=alt)
wanted = [f for f in figures if "top" not in f]
for shift, (name, colour, mark) in enumerate((("first", "base", "o"), ("newer", "tuned", "s"))):
    for y, figure in enumerate(wanted):
        value = found[name][figure]
        style = {"color": show.PALETTE[colour], "fmt": mark, "label": name if y == 0 else None}
        ax.errorbar(value.mean, y + 0.2 * shift, xerr=2 * value.spread, **style)
ax.set_yticks(range(len(wanted)), wanted)
ax.set(xlabel=f"mean of 20 draws of {sample} (bar: two standard deviations)")
ax.invert_yaxis()
ax.legend()
plt.show()

# %% [markdown]
# Users open in more ways in the newer ones, by far more than the draws differ. The replies do not: they open a
# little *less* variously, hardly more than draws differ, and word pairs and vocabulary are alike. The aim was
# met where it was worst, and nowhere else. (Draws from the smaller set overlap each other more, so its bars are
# a little short.)

# %% [markdown]
# ## Identity is a release contract
#
# What a model says about itself is a promise of its publisher. So the identity set has a *manifest*: the
# number of rows and a hash of each file. The course reads the set only through `identity()` and
# `smoke_prompts()`, and both compare first.

# %%
from course_utils.curriculum import identity

manifest = identity.verify()
print("version", manifest["version"])
show.table(
    [
        {"file": name, "rows": file["rows"], "sha256": file["sha256"][:16] + "..."}
        for name, file in manifest["files"].items()
    ]
)

# %% [markdown]
# **Predict first.** In a copy, one byte is changed: a letter of the name. Still valid JSON, still a valid
# conversation, the same number of rows. Who notices?

# %%
folder = runs / "identity"
shutil.copytree(data / "identity", folder, dirs_exist_ok=True)
path = folder / "identity_conversations.jsonl"
path.write_bytes(path.read_bytes().replace(b"Pico", b"Pica", 1))
print("as conversations:", len(load_conversations(path)), "rows, no complaint")
try:
    identity.identity(folder)
except identity.IdentityError as error:
    print(type(error).__name__, "|", error)

# %% [markdown]
# The message says which file, what is there, what should be there, and what to do if you meant it. Building a
# new manifest is one command, and it shows up in the diff: nobody changes the name by accident.
#
# The other half of the contract comes after training: *smoke prompts*, asked in words that the set does not use,
# or under a system text that gives another name, with texts that a reply must hold and must not hold.

# %%
smoke = identity.smoke_prompts()
keys = ("required", "forbidden")
show.table([{"asked": p[-1].content, **{k: ", ".join(p.meta[k]) for k in keys}} for p in smoke[:5]])

# %%
replies = ["I am Pico, a very small language model of this course."] * len(smoke)
replies[0] = "I am Pico, and I am human."
for failure in identity.smoke(replies):
    print(failure)

# %% [markdown]
# One sentence does not pass everywhere: the prompts ask for different things, and one of them catches the lie.
# The record below says how many of them a model passes that was tuned on the mixture.

# %% [markdown]
# ## The ablation: what does a part buy?
#
# Each part has a reason, and a reason is a claim: *without it the model lacks this*. So leave one part out,
# fine-tune, and measure that part's own task on held-out prompts. Do it three times with other seeds, for
# the order of the rows and for everything else that is random. Every run has the same number of steps, so
# without one part the others are seen a little more often. (They take larger steps than lecture 8 does: there are
# more things to learn in as many.)
#
# What counts as solved: for *facts* and *follow-ups* the right fact, for *form* the rule obeyed, for *identity* the
# smoke prompt passed. For the other three it is the *form* that the part teaches (a letter; steps and a result; letters
# one by one), right or wrong. Whether they are right comes after that. *Talk* is left alone, since no program here can
# judge it.
#
#     python -m benchmarks.ablation

# %%
path = data / "recorded" / "ablation_course-base.json"
ablation = json.loads(path.read_text("utf-8"))


def scores(task, without=None):
    """The share of held-out prompts solved, one number for each seed."""
    chosen = [run for run in ablation["runs"] if run["without"] == without]
    return [run["tasks"][task][0] / run["tasks"][task][1] for run in chosen]


tried = [p["name"] for p in ablation["parts"] if scores(p["name"], p["name"])]
print(f"{len(ablation['runs'])} runs recorded, without one of: {', '.join(tried)}")

# %% [markdown]
# **Predict first.** Which part can be left out without a loss on its own task? And if a part did *nothing*, how
# often would all three runs with it still beat all three without it?

# %%
from itertools import combinations

orders = list(combinations(range(6), 3))
print(f"by chance: 1 of {len(orders)} ways to choose which three of six runs come out on top")
rows = []
for name in tried:
    full, left_out = scores(name), scores(name, name)
    row = {"part and its task": name, "with": sum(full) / len(full)}
    row |= {"without": sum(left_out) / len(left_out), "lowest with": min(full)}
    rows.append(row | {"highest without": max(left_out), "apart": min(full) > max(left_out)})
show.table(rows)

# %%
alt = "For each part the share solved of its own task: three runs with and three without it."
fig, ax = show.figure(7, 0.9 + 0.4 * len(tried), alt=alt)
for y, name in enumerate(tried):
    for found, up, colour, mark in (
        (scores(name), -0.12, "tuned", "s"),
        (scores(name, name), 0.12, "base", "o"),
    ):
        ax.plot(found, [y + up] * len(found), mark, color=show.PALETTE[colour], alpha=0.8)
ax.set_yticks(range(len(tried)), tried)
ax.set(xlabel="share of held-out prompts solved (square: with the part, circle: without)")
ax.set(xlim=(-0.02, 1.02), ylim=(len(tried) - 0.5, -0.5))
ax.grid(axis="x")
plt.show()

# %% [markdown]
# Where all circles lie left of all squares, the part pays for its place on its own task, by more than the
# seeds differ. Where they mix, as for *facts*, this record shows no effect, and the part's reason is not borne out.
# (Other parts ask for facts, too, which may be why.) Three seeds and
# several parts: if no part did anything, about three in ten tables of seven parts would still hold a *yes*
# (1 − 0.95⁷).
#
# Does a part help or hurt the tasks of *other* parts? The same runs know that, too:


# %%
def change(left_out, task):
    """Mean change of a task in percentage points when a part is left out."""
    with_it, without = scores(task), scores(task, left_out)
    return 100 * (sum(without) / len(without) - sum(with_it) / len(with_it))


matrix = [[round(change(left_out, task)) for task in tried] for left_out in tried]
alt = "Change of every task, in points, for each part that is left out."
fig, ax = show.heat(matrix, [f"without {name}" for name in tried], tried, alt=alt)
ax.set_title("change in points")
plt.show()

# %% [markdown]
# The diagonal is a part's own task. What stands beside it is what the other parts gain, or lose, from its absence.
#
# ### Form is not skill
#
# **Predict first.** Trained on the whole mixture, the model writes sums with steps, letters one by one, and the letter
# of an option. How often is what it writes also *right*?

# %%
whole = [run for run in ablation["runs"] if run["without"] is None]
rows = []
for name in whole[0]["right"]:
    asked = sum(run["right"][name][1] for run in whole)
    row = {"part": name, "prompts": asked}
    row["in the part's form"] = f"{sum(run['tasks'][name][0] for run in whole) / asked:.0%}"
    rows.append(row | {"and right": f"{sum(run['right'][name][0] for run in whole) / asked:.0%}"})
show.table(rows, caption="Recorded: three runs on the whole mixture")

# %%
for run in whole:
    print(f"seed {run['seed']}: identity {run['tasks']['identity']},", *run["smoke"] or ["passed"])

# %% [markdown]
# The form is nearly always there, and the skill is not: the letter is right about as often as a guess among three or
# four options, and what stands behind the steps and between the dashes is almost never right. A few hundred rows teach a
# small model *how* an answer looks. They did not give it arithmetic. So measure both, and never take the one for the
# other: a converter, an audit and a loss curve see no difference between a right sum and a wrong one in the right form.
#
# The printed lines are the release check of the last section: which smoke prompts fail, by name, for each seed. The
# identity set got more wordings and more epochs until they passed. So a pass says that this release keeps its contract
# on these prompts, and nothing about other wordings.

# %% [markdown]
# ## From the Hub, when there is one
#
# The local parts are small. Online, a mixture for a real base adds rows of
# [SmolTalk](https://huggingface.co/datasets/HuggingFaceTB/smoltalk),
# [MMLU](https://huggingface.co/datasets/cais/mmlu) and [GSM8K](https://huggingface.co/datasets/openai/gsm8k),
# each at one fixed commit, through converters as above.
#
# **Predict first.** There is no network. Should loading raise, return nothing, or something else?

# %%
import os

from course_utils.curriculum import hub

before = os.environ.get("HF_HUB_OFFLINE")
os.environ["HF_HUB_OFFLINE"] = "1"  # as if there were no network
more, notice = hub.load(hub.SOURCES["gsm8k"], cache_dir=runs / "no-cache")
os.environ.pop("HF_HUB_OFFLINE") if before is None else os.environ.update(HF_HUB_OFFLINE=before)
print(len(more), "rows |", notice)

# %% [markdown]
# Something else: it goes on with what is here, and *says so*. A mixture that is quietly smaller than yesterday's
# is the same kind of fault as a row that is quietly dropped. Set `ONLINE` to fetch the real rows (needs
# `pip install -e ".[hub]"`).

# %% tags=["measured"]
ONLINE = False
real = mixture(REAL_PARTS, online=ONLINE)
for notice in real.notices or ["Local parts only."]:
    print(notice)
show.table([line._asdict() for line in real.table()], caption="The mixture for a real base")

# %% [markdown]
# ## Take-aways
#
# 1. A row that renders cleanly can still be wrong. Map roles, reject with a reason, and check the property:
#    every text goes in and comes out once, in its own role.
# 2. Give each part a reason, count it in rows, tokens *and* graded tokens, and test the reason: leave the part out
#    and measure its task, with several seeds. No range of graded shares tells right from wrong.
# 3. Audit before you train: copies, overlap with the evaluation, variety in draws of equal size. What the model
#    promises, such as its name, is under a manifest.
#
# Now do the [exercises](../exercises/07_data_is_the_curriculum.ipynb). Lecture
# [08](08_the_sft_run.ipynb) trains on such rows.
#
# ## Quiz
#
# <details><summary>A converter reports 100,000 records in and 100,000 rows out, none rejected. What do you think
# of it?</summary>
#
# Nothing yet. Real files of that size hold broken records, so a converter that rejects none may repair them by
# guessing, as the hurried one did. Check the property on all rows, and read some that an odd figure puts first.
#
# </details>
#
# <details><summary>Your mixture is "20 % arithmetic" and a colleague's is, too. Arithmetic has more than twice as
# large a share of the graded tokens in yours. How can that be?</summary>
#
# You count rows, the colleague counts tokens, or your replies show their steps and the others only the result.
# A share without its unit says little.
#
# </details>
