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
# # 06 Masking in production
#
# You rendered and masked by hand. In production the template is a Jinja text inside somebody else's
# tokenizer, and you have to find the assistant's tokens in what it writes.
#
# After this you can
#
# - **read** a chat template, and **choose** the flags of `apply_chat_template` so that the prompt ends
#   where the reply begins;
# - **find** the graded positions in three ways, and **say** for a given template which of them is
#   right, which refuses and which is silently wrong;
# - **build** batches and cut long conversations without damaging the mask.
#
# About 60 minutes. CPU. The first run fetches four real tokenizers; later runs work offline.

# %% [markdown]
# Four tokenizers with the templates that were published with them. Where one cannot be fetched, the
# cell says so and goes on with a toy tokenizer; what the text says about that template will then not
# show.

# %%
from course_utils.templates import chat_template
from course_utils.tokenizers import TokenizerError, load_tokenizer, toy_tokenizer

FAMILY = {"llama3": "llama3", "llama3_1": "llama3", "qwen3": "chatml", "gemma3": "gemma"}


def load(name):
    try:
        return load_tokenizer(name)
    except TokenizerError as error:
        print(f"{name} stands in as a toy: {error}")
        toy = toy_tokenizer(["Answer in one sentence. What is the boiling point of water?"])
        toy.chat_template = chat_template(FAMILY[name])
        return toy


# %%
tokenizers = {name: load(name) for name in FAMILY}
old_llama, llama, qwen, gemma = tokenizers.values()
print("loaded:", ", ".join(tokenizers))

# %% [markdown]
# The rest of the lecture uses the running example and a few small helpers: the ids of a rendered
# conversation, the same as text, and strips of ids, whole or only their end.

# %%
from IPython.display import display

from course_utils import IGNORE_INDEX, MaskError, show, training_samples
from course_utils.examples import TINY_CHATS, WALKTHROUGH
from course_utils.masking import Sample
from course_utils.tokenizers import special_tokens

chat = WALKTHROUGH.as_messages()
question = chat[:2]


# %%
def ids(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, return_dict=False, **options)


def text(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


# %%
def strip(tokenizer, numbers, mask, title=None):
    labels = [n if graded else IGNORE_INDEX for n, graded in zip(numbers, mask, strict=True)]
    return show.sample(Sample(numbers, labels, (), ()), tokenizer, title=title)


def special_ids(tokenizer):
    return set(tokenizer.convert_tokens_to_ids(list(special_tokens(tokenizer))))


def tail(tokenizer, numbers, title, graded=None):
    words = [tokenizer.decode([number]) for number in numbers]
    special = [number in special_ids(tokenizer) for number in numbers]
    return show.strip(words, graded, special=special, numbers=False, title=title)


# %% [markdown]
# ## 1 Jinja in five minutes
#
# A chat template is a small program. `{% ... %}` is a statement, `{{ ... }}` writes a value, and
# everything else is written as it stands. A dash, as in `{%-` or `-%}`, eats the white space on its
# side. Six lines are a whole template:

# %%
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE = r"""{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' }}
{%- endif -%}"""

template = ImmutableSandboxedEnvironment().from_string(TEMPLATE)
print(template.render(messages=question, add_generation_prompt=True))

# %% [markdown]
# That is ChatML: the lines of the *program* left no trace in the text, because the dashes ate them.
#
# **Predict first.** You delete all dashes and render the same prompt as transformers does (its
# environment drops the line break after a statement, but not the one after `{{ ... }}`). How many
# tokens more does the prompt have?

# %%
careless = TEMPLATE.replace("{%-", "{%").replace("-%}", "%}")
plain_jinja = ImmutableSandboxedEnvironment().from_string(careless)
versions = {
    "with dashes": text(qwen, question, chat_template=TEMPLATE, add_generation_prompt=True),
    "no dashes, transformers": text(
        qwen, question, chat_template=careless, add_generation_prompt=True
    ),
    "no dashes, plain jinja2": plain_jinja.render(messages=question, add_generation_prompt=True),
}
rows = []
for name, written in versions.items():
    numbers = qwen(written, add_special_tokens=False).input_ids
    rows.append({"template": name, "characters": len(written), "tokens": len(numbers)})
show.table(rows)

# %%
for name, written in versions.items():
    numbers = qwen(written, add_special_tokens=False).input_ids
    display(tail(qwen, numbers[-9:], f"{name}: the end"))

# %% [markdown]
# In transformers the count does not change, and that is what makes the bug hard to see: one line break
# (`↵`) became a *different single token* for two of them (`↵↵`). A model trained with the first text
# never saw the second. The same file in plain jinja2 gives a third text, so the engine that renders is
# part of the template. Write the dashes, and compare token ids, not their number.
#
# ### What a template may do
#
# A template comes from a download and runs on your machine. transformers runs it in a sandbox.
#
# **Predict first.** Which of these seven does the sandbox stop?

# %%
attempts = {
    "loop and filter": "{% for m in messages %}{{ m.role | upper }} {% endfor %}",
    "stop with a message": "{{ raise_exception('roles must alternate') }}",
    "ask for the year": "{{ strftime_now('%Y') | length }} digits",
    "change the messages": "{{ messages.append('me too') }}",
    "reach into Python": "{{ messages.__class__.__mro__ }}",
    "open a file": "{{ open('notes.txt').read() }}",
    "count to a million": "{% for i in range(1000000) %}{% endfor %}",
}

# %%
rows = []
for wish, source in attempts.items():
    try:
        answer = repr(text(qwen, question, chat_template=source))
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    rows.append({"the template wants to": wish, "what comes back": answer})
show.table(rows)

# %% [markdown]
# The first three do what they ask for: a template can loop, can refuse a conversation, and can read the
# clock, which has consequences that section 5 comes back to. The other four are stopped: it cannot change
# the messages, reach Python's insides, open files or count for very long.

# %% [markdown]
# ## 2 Real templates
#
# `apply_chat_template` runs the tokenizer's own template. With `tokenize=False` you get the text; without
# it, in transformers 5, a dictionary of ids and attention mask (`return_dict=False` gives the bare ids).
#
# **Predict first.** The walkthrough's chat is complete: it ends with the assistant's reply. Will all
# four texts end with that reply's end of turn?

# %%
rows = []
for name, tokenizer in tokenizers.items():
    written = text(tokenizer, chat)
    rows.append(
        {
            "tokenizer": name,
            "tokens": len(ids(tokenizer, chat)),
            "begins with": repr(written[:18]),
            "ends with": repr(written[-48:]),
        }
    )
show.table(rows, "the same conversation in four published templates")

# %% [markdown]
# No. The first template of Llama 3 opens another assistant turn behind a finished conversation, although
# nobody asked for one. Section 5 shows what that does to a mask. Note also that the tokenizers differ in
# how they begin: Qwen has no sequence start at all.
#
# The course's `training_samples` works with any of them. This is the Llama 3.1 sample:

# %%
sample = training_samples(WALKTHROUGH, llama)[0]
show.sample(sample, llama, title="the walkthrough in Llama 3.1's tokenizer")

# %%
print(f"{len(sample)} tokens, {sample.graded_tokens} graded")

# %% [markdown]
# The 36 pieces that you counted by hand were words. The real tokenizer cuts some of them, so there are
# more tokens and more graded positions; the graded ones are the reply and its end of turn, as before.

# %% [markdown]
# ## 3 What a server sends
#
# A template has two jobs: render finished conversations (training) and render the beginning of one
# (serving). Two flags choose.
#
# **Predict first.** For each of the five calls below: is the next token that the model writes the first
# of a reply, a continuation of a reply, or something else?

# %%
begun = [*question, {"role": "assistant", "content": "Water boils at"}]
calls = {
    "question, no flag": (question, {}),
    "question, add_generation_prompt": (question, {"add_generation_prompt": True}),
    "begun reply, no flag": (begun, {}),
    "begun reply, add_generation_prompt": (begun, {"add_generation_prompt": True}),
    "begun reply, continue_final_message": (begun, {"continue_final_message": True}),
}
for name, (messages, flags) in calls.items():
    display(tail(llama, ids(llama, messages, **flags)[-8:], f"{name}: the end"))

# %% [markdown]
# Only the second and the fifth end where the model should write. The first ends after the user's end of
# turn, so the model has to write a header. The third has closed the reply that you wanted continued, and
# the fourth has closed it and opened a second assistant turn.
#
# Both flags together contradict each other, and transformers says so:

# %%
try:
    ids(llama, begun, add_generation_prompt=True, continue_final_message=True)
except ValueError as error:
    print(str(error).split(". ")[0] + ".")

# %% [markdown]
# > **Common bug: the generation prompt forgotten.** Nothing fails. The model is asked for the token
# > after the user's end of turn. Was it ever trained to write that one? Ask the labels:

# %%
from course_utils import load_conversations
from course_utils.batching import prepare

prepared = prepare(load_conversations("../data/conversations.jsonl"), llama)
end_of_turn = llama.convert_tokens_to_ids("<|eot_id|>")
turn_ends = taught = 0
for one in prepared.samples:
    for position, number in enumerate(one.input_ids[:-1]):
        if number == end_of_turn and one.labels[position] == IGNORE_INDEX:
            turn_ends += 1
            taught += one.labels[position + 1] != IGNORE_INDEX
print(f"{len(prepared.samples)} conversations, {turn_ends} ends of system and user turns")
print(f"in {taught} of them a label says what comes next")

# %% [markdown]
# In no case does a label teach what follows a user's end of turn. Whatever the model writes there, it does
# not have from this fine-tuning: it may open an assistant header, or a user's.
#
# ## 4 Double BOS
#
# You have the text and want ids, so you call the tokenizer on it.
#
# **Predict first.** For which of the four tokenizers does `tokenizer(text)` begin with two sequence
# starts?

# %%
rows = []
for name, tokenizer in tokenizers.items():
    written = text(tokenizer, chat)
    for call, options in (("tokenizer(text)", {}), ("..., False", {"add_special_tokens": False})):
        found = tokenizer(written, **options).input_ids
        begins = " ".join(tokenizer.decode([number]) for number in found[:3])
        rows.append({"tokenizer": name, "call": call, "tokens": len(found), "begins with": begins})
show.table(rows, '"..., False" is tokenizer(text, add_special_tokens=False)')

# %%
twice = llama(text(llama, chat)).input_ids
tail(llama, twice[:10], "Llama 3.1, tokenizer(text): the beginning")

# %% [markdown]
# Two of the four do. Their templates write the sequence start, and the tokenizer adds its own to any text.
# The other two behave only because this copy of Llama 3's tokenizer adds nothing and Qwen has nothing to
# add. A pipeline that was tested with Qwen breaks the day it meets Gemma. The fix is one rule: **rendered
# text is always tokenized with `add_special_tokens=False`**; `apply_chat_template` does that itself
# ([documentation](https://huggingface.co/docs/transformers/chat_templating)). And the detector is one line:


# %%
def double_bos(numbers, bos):
    return bos is not None and numbers[:2] == [bos, bos]


for name, tokenizer in tokenizers.items():
    by_hand = double_bos(tokenizer(text(tokenizer, chat)).input_ids, tokenizer.bos_token_id)
    applied = double_bos(ids(tokenizer, chat), tokenizer.bos_token_id)
    print(f"{name:<9} tokenizer(text): {by_hand!s:<6} apply_chat_template: {applied}")

# %% [markdown]
# ## 5 Way one: render prefixes again
#
# You want to know where turn k begins and ends. The recipe that is usually given: render the first k
# messages and count, render the first k + 1 and count; the turn lies between. Draft 1 does just that.


# %%
def count_mask(tokenizer, messages, generation_prompt):
    mask = [False] * len(ids(tokenizer, messages))
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            before = ids(tokenizer, messages[:turn], add_generation_prompt=generation_prompt)
            until = ids(tokenizer, messages[: turn + 1])
            graded = range(len(before), min(len(until), len(mask)))
            mask = [was or position in graded for position, was in enumerate(mask)]
    return mask


# %% [markdown]
# **Predict first.** How many tokens does draft 1 grade in Llama 3.1's walkthrough, where the right number
# is the one printed in section 2?

# %%
right = [label != IGNORE_INDEX for label in sample.labels]
draft = count_mask(llama, chat, generation_prompt=False)
words = [llama.decode([number]) for number in sample.input_ids]
print(f"draft 1 grades {sum(draft)}, right are {sum(right)}")
show.masks(words, {"draft 1": draft, "right": right})

# %% [markdown]
# It grades the assistant's header. The prefix "system, user" ends after the user's turn, so everything
# after it counts as the reply; but a server sends the header itself, in the generation prompt. The cure
# is to **put the generation prompt on the prompt side**:

# %%
rows = []
for name in ("llama3_1", "qwen3", "gemma3"):
    tokenizer = tokenizers[name]
    good = training_samples(WALKTHROUGH, tokenizer)[0]
    for draft, prompt_side in (("1: without", False), ("2: with", True)):
        mask = count_mask(tokenizer, chat, prompt_side)
        wrong = [
            tokenizer.decode([number])
            for number, graded, label in zip(good.input_ids, mask, good.labels, strict=True)
            if graded and label == IGNORE_INDEX
        ]
        row = {"tokenizer": name, "draft: generation prompt": draft, "graded": sum(mask)}
        rows.append(row | {"too many": len(wrong), "which": repr("".join(wrong))})
show.table(rows)

# %% [markdown]
# With the generation prompt the header is gone. One token is left over in Qwen and Gemma: the line break
# after the end of turn. The server stops at the end of turn, so the model never writes that line break.
# `training_samples` ends the graded span with the end-of-turn token.
#
# ### The prefix property
#
# Counting tokens of a *different* text says something about this one only if the one is a prefix of the
# other. Draft 3 does not count before it has checked. It refuses with `MaskError`, because a mask that is
# missing costs you a conversation, and a wrong one costs you a model.


# %%
def prefix_mask(tokenizer, messages, **options):
    whole = ids(tokenizer, messages, **options)
    graded = set()
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = ids(tokenizer, messages[:turn], add_generation_prompt=True, **options)
        until = ids(tokenizer, messages[: turn + 1], **options)
        for shorter, longer in ((prompt, until), (until, whole)):
            if longer[: len(shorter)] != shorter:
                raise MaskError(f"turn {turn}: what came before it has changed")
        graded.update(range(len(prompt), len(until)))
    return [position in graded for position in range(len(whole))]


# %%
print(sum(prefix_mask(llama, chat)), "graded, as before:", prefix_mask(llama, chat) == right)

# %% [markdown]
# Why compare ids, and not the text? **Predict first.** This template ends its generation prompt with
# `Assistant: `, space included. The prompt is a prefix of the whole *text*. Is it one of the *tokens*?

# %%
from copy import copy, deepcopy


def with_template(tokenizer, source):
    other = copy(tokenizer)
    other.chat_template = source
    return other


# %%
spaced = with_template(qwen, chat_template("plain").replace("'Assistant:'", "'Assistant: '"))
prompt, whole = ids(spaced, question, add_generation_prompt=True), ids(spaced, chat)
asked = text(spaced, question, add_generation_prompt=True)
print("prefix as text:  ", text(spaced, chat).startswith(asked))
print("prefix as tokens:", whole[: len(prompt)] == prompt)
for name, numbers in (("prompt", prompt), ("whole", whole[: len(prompt) + 2])):
    display(tail(spaced, numbers[-7:], f"{name} around the boundary"))

# %%
from textwrap import fill


def refusal(conversation, tokenizer):
    """The first sentence of the error, if there is one."""
    try:
        training_samples(conversation, tokenizer)
    except MaskError as error:
        return fill(str(error).split(". ")[0] + ".", 100)
    return "accepted"


print(refusal(WALKTHROUGH, spaced))

# %% [markdown]
# The tokenizer merges the prompt's last space with the reply's first word. In training the model sees
# `·Water`; at serving time it sees the space alone and has to go on from there. So check both: the text,
# to find templates that rewrite, and the ids, to find boundaries that merge.
#
# ### Where it breaks: a prompt that nobody asked for
#
# The old Llama 3 template writes the generation prompt always. **Predict first.** Does draft 3 refuse it?

# %%
whole = ids(old_llama, chat)
mask = prefix_mask(old_llama, chat)
print(f"draft 3: {len(whole)} tokens, {sum(mask)} graded")
good = training_samples(WALKTHROUGH, old_llama)[0]
print(f"course:  {len(good)} tokens, {good.graded_tokens} graded")
strip(old_llama, whole, mask, "draft 3 on the old Llama 3 template")

# %% [markdown]
# It does not: every prefix is a prefix, and the mask is wrong all the same. Draft 3 grades a header *after*
# the end of turn, which teaches the model to open another turn of its own once it has finished.
# `training_samples` notices that the template cannot leave the generation prompt out, and removes it.
#
# ### Where it breaks: history is rewritten
#
# Qwen 3 writes an empty think block into the last reply and leaves it out of earlier ones.

# %%
twice = TINY_CHATS[1]
messages = twice.as_messages()
print("the first two messages\n" + text(qwen, messages[:2]))
print("all four messages\n" + text(qwen, messages))

# %% [markdown]
# The first reply `2` has a think block while it is the last message, and none once another question
# follows. **Predict first.** Draft 2 only counts. Which tokens does it grade?

# %%
counted = count_mask(qwen, messages, generation_prompt=True)
strip(qwen, ids(qwen, messages), counted, "Qwen 3, draft 2: counted and not checked")

# %% [markdown]
# Silently wrong: it grades the user's header and the first word of the user's next question. No shape is
# off, and nothing fails. Draft 3 and the course refuse:

# %%
try:
    prefix_mask(qwen, messages)
except MaskError as error:
    print("draft 3:", error)
print("course: ", refusal(twice, qwen))

# %% [markdown]
# The same holds for other templates that treat the last turn in a special way; the think blocks of
# reasoning models are the usual case
# ([verl #6854](https://github.com/verl-project/verl/issues/6854)).
#
# A single turn passes. Look at what is graded there:

# %%
print(refusal(WALKTHROUGH, qwen))
one = training_samples(WALKTHROUGH, qwen)[0]
start = one.graded[0].start
print("graded from:", repr(qwen.decode(one.input_ids[start : start + 5])))
served = ids(qwen, question, add_generation_prompt=True, enable_thinking=False)
print("sent with enable_thinking=False:", repr(qwen.decode(served[start - 3 :])))

# %% [markdown]
# The empty think block counts as part of the reply, and that is right if you serve with thinking on: then
# the model has to write it. With `enable_thinking=False` the server sends the block, and it belongs to the
# prompt. A mask is right for *one way of serving*; write down which.
#
# ### Where it breaks: the clock
#
# The official Llama 3.1 template puts a date in front of every conversation, and Llama 3.2's takes it from
# the clock ([discussion](https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct/discussions/14)). The copy
# of Llama 3.1 used here is without that preamble, so this is a stand-in of our own:

# %%
DATED = r"""{%- set today = date_string if date_string is defined else strftime_now('%d %b %Y') -%}
{{- '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + today -}}
{%- if messages[0].role == 'system' -%}
{{- '\n\n' + messages[0].content -}}
{%- set messages = messages[1:] -%}
{%- endif -%}
{{- '<|eot_id|>' -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content -}}
{{- '<|eot_id|>' -}}
{%- endfor -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt -}}"""
dated = with_template(llama, DATED)

# %%
trained = ids(dated, chat, date_string="26 Jul 2024")
for day in ("26 Jul 2024", "27 Jul 2024"):
    prompt = ids(dated, question, add_generation_prompt=True, date_string=day)
    pairs = zip(trained, prompt, strict=False)
    differ = [place for place, (a, b) in enumerate(pairs) if a != b]
    print(f"served on {day}: {len(prompt)} tokens, differs from training at {differ}")
print("graded:", sum(prefix_mask(dated, chat, date_string="26 Jul 2024")))

# %% [markdown]
# Within one date the mask is right. The day after, the prompt has the same length and is another text:
# prefix counts from yesterday's run still fit, and every prompt in your training data carries a date that
# no server will send again. Fix the date yourself, in training and in serving: pass `date_string=...`, or
# set a template without a clock.
#
# ### Where it breaks: a template that looks for the last question
#
# Version 2 of Mistral's tokenizer puts the system text into the *last* user turn
# ([Mistral's description](https://docs.mistral.ai/cookbook/concept-deep-dive-tokenization-chat_templates)).
# Eight lines of ChatML that do the same:

# %%
LAST_QUESTION = r"""{%- set asked = messages | selectattr('role', 'equalto', 'user') | list -%}
{%- set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' -%}
{%- for message in messages if message.role != 'system' -%}
{{- '<|im_start|>' + message.role + '\n' -}}
{{- system if message.role == 'user' and message == asked[-1] -}}
{{- message.content + '<|im_end|>\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt -}}"""
moving = with_template(qwen, LAST_QUESTION)
briefed = [{"role": "system", "content": "Be brief."}, *messages]
print(text(moving, briefed))

# %%
from course_utils.conversation import Conversation

print(refusal(Conversation(tuple(briefed)), moving))

# %% [markdown]
# The system text has left the first question, so the first reply was given to a prompt that the whole text
# no longer contains.
#
# ### One sample for each reply
#
# If a template rewrites history, no single text holds every prompt that a server sends. Then make one
# sample for each reply: the prompt as it was sent, then the reply. That needs one check per sample.


# %%
def reply_sample(tokenizer, messages, turn):
    prompt = ids(tokenizer, messages[:turn], add_generation_prompt=True)
    whole = ids(tokenizer, messages[: turn + 1])
    while whole[-1] not in special_ids(tokenizer):
        whole.pop()
    if whole[: len(prompt)] != prompt:
        raise MaskError(f"turn {turn}: the reply changes its own prompt")
    return whole, [position >= len(prompt) for position in range(len(whole))]


# %%
total = 0
for turn in (1, 3):
    numbers, mask = reply_sample(qwen, messages, turn)
    total += len(numbers)
    display(strip(qwen, numbers, mask, f"Qwen 3, the reply in message {turn}"))
    theirs = training_samples(twice.prefix(turn + 1), qwen, mode="last_turn")[0]
    print("training_samples agrees:", theirs.input_ids[: len(numbers)] == numbers)
print(f"{total} tokens in two samples, {len(ids(qwen, messages))} in one text")

# %% [markdown]
# Each prompt is now token for token what a server sends. With `mode="last_turn"`, `training_samples` does
# the same for a conversation that is cut behind that reply. The last
# printed line is the price: earlier turns are read again for each reply.

# %% [markdown]
# ## 6 Way two: the generation tag
#
# transformers knows one tag that Jinja does not: `{% generation %} ... {% endgeneration %}` around what the
# model writes. It notes the character range while it renders, and `return_assistant_tokens_mask=True` turns
# the ranges into a mask. The course keeps its templates with the tag:

# %%
print("\n".join(chat_template("chatml", generation_tag=True).splitlines()[:8]))

# %%
tagged = with_template(qwen, chat_template("chatml", generation_tag=True))
found = tagged.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
strip(tagged, found["input_ids"], found["assistant_masks"], "ChatML with the generation tag")

# %% [markdown]
# The tag stands around the content *and* the end of turn, after the header and before the line break. One
# render gives the mask. No prefix is needed, and none is checked: if the template rewrites its history, this
# way does not tell you.
#
# **Predict first.** The published Qwen 3 template has no such tag. What does the same call return: an
# error, every token, or something else?

# %%
import logging

from transformers.utils import logging as transformers_logging


class Notebook(logging.Handler):
    def emit(self, record):
        print(f"{record.levelname}: {record.getMessage()}")


# %%
def caught(call):
    """Print what transformers warns of, instead of writing it to stderr."""
    logging.Logger.warning_once.cache_clear()
    transformers_logging.disable_default_handler()
    transformers_logging.add_handler(handler := Notebook())
    try:
        return call()
    finally:
        transformers_logging.remove_handler(handler)
        transformers_logging.enable_default_handler()


# %%
def mask_by_tag(tokenizer, messages):
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    return tokenizer.apply_chat_template(messages, **options)["assistant_masks"]


def three_times():
    return [sum(mask_by_tag(qwen, chat)) for _ in range(3)]


print("graded in three calls:", caught(three_times))

# %% [markdown]
# A mask of zeros, and one warning for the whole run: three calls warned once, and 500,000 would
# ([transformers #34172](https://github.com/huggingface/transformers/issues/34172)). What does a loss over
# such a batch give?

# %%
import torch
from torch.nn.functional import cross_entropy

torch.manual_seed(0)
logits = torch.randn(len(found["input_ids"]), 50)
labels = torch.full((len(found["input_ids"]),), IGNORE_INDEX)
print("mean over no position:", cross_entropy(logits, labels).item())
print("sum over no position: ", cross_entropy(logits, labels, reduction="sum").item())

# %% [markdown]
# The mean is 0/0. The sum is 0 and hides the problem: no error, no gradient, a model that stays as it is.
# So count before you train:


# %%
def graded_tokens(mask):
    if not any(mask):
        raise MaskError("nothing is graded: has the template a {% generation %} tag?")
    return sum(mask)


print("with the tag:   ", graded_tokens(mask_by_tag(tagged, chat)))
try:
    graded_tokens(mask_by_tag(qwen, chat))
except MaskError as error:
    print("without the tag:", error)

# %% [markdown]
# > **Common bug: the tag in the wrong place.** transformers believes whatever stands between the tags.
# > Move the end of turn outside and see who notices:

# %%
narrow = chat_template("chatml", generation_tag=True).replace(
    "{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}",
    "{{- message['content'] -}}{%- endgeneration -%}{{- '<|im_end|>' -}}",
)
stopless = with_template(qwen, narrow)
print("same text:", text(stopless, chat) == text(tagged, chat))
for name, tokenizer in (("end of turn inside", tagged), ("end of turn outside", stopless)):
    mask = mask_by_tag(tokenizer, chat)
    last = max(position for position, graded in enumerate(mask) if graded)
    print(f"{name:<20} graded: {sum(mask)}, the last: {qwen.decode([found['input_ids'][last]])!r}")

# %% [markdown]
# The text is the same and the loss is finite; only the end of turn is not graded any more, which is the
# reply that never stops. Look at the last graded token of one sample.
#
# Two facts for practice. Few published templates carry the tag, so trainers bring patched copies
# ([TRL #5471](https://github.com/huggingface/trl/issues/5471)). And a plain Jinja engine cannot read it:

# %%
from jinja2.exceptions import TemplateSyntaxError

try:
    ImmutableSandboxedEnvironment().from_string(tagged.chat_template)
except TemplateSyntaxError as error:
    print(str(error).split(". ")[0])

# %% [markdown]
# Train with the tag, ship the template without it: `chat_template(family)` gives the same text.
#
# ## 7 Way three: your own spans and offsets
#
# The way of lectures 03 and 04: write the conversation yourself, know every span, and let each token inherit
# from the characters that it covers. It needs your renderer and the tokenizer's template to agree on every
# character, so compare them first.

# %%
from course_utils import render
from course_utils.masking import character_mask, token_labels
from course_utils.tokenizers import encode


def mask_by_spans(tokenizer, conversation, family):
    spans = render(conversation, family, lossy=True)
    if spans.text != text(tokenizer, conversation.as_messages()):
        raise MaskError("the template writes another text than ours")
    labels = token_labels(encode(tokenizer, spans.text), character_mask(spans))
    return [label != IGNORE_INDEX for label in labels]


print(mask_by_spans(llama, WALKTHROUGH, "llama3") == right)

# %% [markdown]
# ### All ways side by side
#
# Now let every way look at every template of this lecture. The judge is a fourth, blunt one: in the rendered
# text, everything from a generation prompt to the next end of turn, found as text. That is safe here, because
# no content in these chats looks like a marker.

# %%
import re

from course_utils import FAMILIES


# %%
def judge(tokenizer, messages, family):
    """The graded positions in the template's own text."""
    asked = Conversation(({"role": "user", "content": "?"},))
    prompt = render(asked, family, add_generation_prompt=True).text
    header = re.escape(prompt.removeprefix(render(asked, family).text))
    stop = re.escape(FAMILIES[family].stop)
    written = text(tokenizer, messages)
    mask = [False] * len(written)
    for reply in re.finditer(rf"{header}(.*?{stop})", written, re.S):
        mask[slice(*reply.span(1))] = [True] * (reply.end(1) - reply.start(1))
    return [label != IGNORE_INDEX for label in token_labels(encode(tokenizer, written), mask)]


# %% tags=["long"] reason="the four ways and their verdicts belong in one place"
def verdict(way, expected):
    try:
        mask = [bool(graded) for graded in way()]
    except MaskError:
        return "refused"
    if not any(mask):
        return "all zero"
    # The course leaves an uninvited header away; what is not there is not graded.
    mask += [False] * (len(expected) - len(mask))
    extra = sum(a and not b for a, b in zip(mask, expected, strict=True))
    lacks = sum(b and not a for a, b in zip(mask, expected, strict=True))
    return f"WRONG (+{extra} -{lacks})" if extra or lacks else "right"


def ways(tokenizer, conversation, family):
    turns = conversation.as_messages()
    return {
        "prefix counts, unchecked": lambda: count_mask(tokenizer, turns, True),
        "prefixes, checked": lambda: [
            label != IGNORE_INDEX for label in training_samples(conversation, tokenizer)[0].labels
        ],
        "generation tag": lambda: mask_by_tag(tokenizer, turns),
        "own spans": lambda: mask_by_spans(tokenizer, conversation, family),
    }


# %%
own = {"llama3": llama, "chatml": qwen, "gemma": gemma}
templates = {
    f"course: {family}": (with_template(base, chat_template(family, generation_tag=True)), family)
    for family, base in own.items()
}
templates |= {
    "published: Llama 3.1": (llama, "llama3"),
    "published: Gemma 3": (gemma, "gemma"),
    "published: Llama 3": (old_llama, "llama3"),
    "published: Qwen 3": (qwen, "chatml"),
    "stand-in: date": (dated, "llama3"),
    "stand-in: last question": (moving, "chatml"),
}

# %%
two_replies = Conversation(tuple(briefed))
rows = []
for conversation, replies in ((WALKTHROUGH, 1), (two_replies, 2)):
    for name, (tokenizer, family) in templates.items():
        expected = judge(tokenizer, conversation.as_messages(), family)
        row = {"template": name, "replies": replies}
        for way, mask in ways(tokenizer, conversation, family).items():
            row[way] = verdict(mask, expected)
        rows.append(row)
show.table(rows, "+ graded but should not be, - should be graded but is not")

# %% tags=["long"] reason="one drawing: a cell of the table is a square with its sign"
import matplotlib.pyplot as plt

LOOK = {
    "right": ("graded", "✓"),
    "refused": ("masked", "refused"),
    "all zero": ("tuned", "zero"),
    "WRONG": ("tuned", "✗"),
}
names = [key for key in rows[0] if key not in ("template", "replies")]
alt = "Template by way: unchecked counts are wrong for most, checked prefixes right or refused."
fig, ax = show.figure(7.5, 5.4, alt=alt)
for y, row in enumerate(rows):
    for x, way in enumerate(names):
        colour, sign = LOOK[row[way].split(" (")[0]]
        box = plt.Rectangle(
            (x - 0.47, y - 0.44), 0.94, 0.88, color=show.PALETTE[colour], alpha=0.55
        )
        ax.add_patch(box)
        ax.text(x, y, sign, ha="center", va="center", fontsize=9)
ax.set_xlim(-0.5, 3.5)
ax.set_ylim(len(rows) - 0.5, -0.5)
ax.set_xticks(range(4), [way.replace(", ", ",\n") for way in names])
ax.xaxis.tick_top()
labels = [
    f"{row['template']}, {row['replies']} repl{'y' if row['replies'] == 1 else 'ies'}"
    for row in rows
]
ax.set_yticks(range(len(rows)), labels)
ax.tick_params(length=0)
plt.show()

# %%
checked = [row["prefixes, checked"] for row in rows]
print("checked prefixes:", {word: checked.count(word) for word in sorted(set(checked))})
assert set(checked) <= {"right", "refused"}

# %% [markdown]
# Read it by columns. Unchecked counts are wrong for most templates and never say so. Checked prefixes are
# right or refuse. The tag is right where somebody put it, and otherwise zero. Own spans are right where the
# texts agree, and refuse elsewhere. When a way refuses, change the template or make one sample for each reply;
# when none refuses and they disagree, believe none before you have looked at a strip.

# %% [markdown]
# ## 8 The collator
#
# A batch is a rectangle, and samples have different lengths. The collator fills up on the right: ids with a
# padding token, the attention mask with 0, labels with -100. By hand that is one line each:

# %%
samples = [training_samples(one, llama)[0] for one in TINY_CHATS]
longest = max(len(one) for one in samples)
pad = llama.convert_tokens_to_ids(llama.pad_token or "<|reserved_special_token_0|>")

by_hand = {
    "input_ids": [one.input_ids + [pad] * (longest - len(one)) for one in samples],
    "attention_mask": [[1] * len(one) + [0] * (longest - len(one)) for one in samples],
    "labels": [one.labels + [IGNORE_INDEX] * (longest - len(one)) for one in samples],
}
for name, values in by_hand.items():
    print(f"{name:<15} {tuple(torch.tensor(values).shape)}  row 0 ends with {values[0][-3:]}")


# %% tags=["long"] reason="one drawing: a token is a square with its sign"
def draw(input_ids, labels, attention, title):
    """✓ graded, · masked, ■ a masked end of turn, blank: padding, ✗ padding that is graded."""
    signs = {"✓": "graded", "·": "masked", "": "role", "✗": "tuned", "■": "accent"}
    fig, ax = show.figure(9, 0.5 + 0.42 * len(labels), alt=f"Batch of {len(labels)} rows: {title}.")
    for y, row in enumerate(labels):
        for x, label in enumerate(row):
            graded, padding = label != IGNORE_INDEX, not attention[y][x]
            sign = ("✗" if graded else "") if padding else ("✓" if graded else "·")
            if sign == "·" and input_ids[y][x] == end_of_turn:
                sign = "■"
            alpha = 0.15 if sign in ("·", "") else 0.7
            colour = show.PALETTE[signs[sign]]
            ax.add_patch(plt.Rectangle((x, y), 0.92, 0.88, color=colour, alpha=alpha))
            ax.text(x + 0.46, y + 0.46, sign, ha="center", va="center", fontsize=8)
    ax.set_xlim(-0.2, len(labels[0]))
    ax.set_ylim(len(labels), -0.1)
    ax.set_yticks([y + 0.45 for y in range(len(labels))], [f"row {y}" for y in range(len(labels))])
    ax.set_title(title)
    ax.set_xticks([])
    plt.show()


# %%
attention = by_hand["attention_mask"]
draw(by_hand["input_ids"], by_hand["labels"], attention, "three chats, padded right")

# %% [markdown]
# ✓ is graded, · is masked, ■ is a masked end of turn (of a user or system), and the empty squares at the
# right are padding: never graded, never attended to. `course_utils.batching.collate` does the same and
# returns tensors:

# %%
from course_utils.batching import collate

batch = collate(samples, pad)
print({name: tuple(tensor.shape) for name, tensor in batch.items()})
print("same as by hand:", all(batch[name].tolist() == by_hand[name] for name in by_hand))

# %% [markdown]
# > **Common bug: labels padded with the padding id.** It happens when labels go through the same padding
# > function as the ids. **Predict first:** what share of the graded positions is padding then?

# %%
padded = [one.labels + [pad] * (longest - len(one)) for one in samples]
graded = sum(label != IGNORE_INDEX for row in padded for label in row)
padding = sum(label == pad for row in padded for label in row)
draw(by_hand["input_ids"], padded, attention, "bug: labels padded with the padding id")
print(f"{padding} of {graded} graded positions are padding ({padding / graded:.0%})")

# %% [markdown]
# That share of this batch's mean loss is about writing padding after padding, and the replies get only the
# rest. Rows that need much padding make it worse.
#
# > **Common bug: padding and end of turn share an id.** Many recipes set `pad_token = eos_token`, since the
# > tokenizer has no padding token, and use a collator that computes labels from ids: whatever equals the
# > padding id becomes -100. **Predict first:** in Llama 3.1's tokenizer the EOS *is* `<|eot_id|>`. How many
# > ends of turn does this grade?

# %%
from transformers import DataCollatorForLanguageModeling

careless = deepcopy(llama)
careless.pad_token = careless.eos_token
collator = DataCollatorForLanguageModeling(careless, mlm=False)
theirs = collator([{"input_ids": one.input_ids} for one in samples])
ours = collate(samples, careless.pad_token_id)
for name, found in (("computed from ids", theirs), ("course collate", ours)):
    stops = (found["input_ids"] == end_of_turn) & (ours["attention_mask"] == 1)
    taught = (stops & (found["labels"] != IGNORE_INDEX)).sum().item()
    print(f"{name:<18} pad = {careless.pad_token}: {taught} of {stops.sum().item()} ends graded")

# %%
draw(theirs["input_ids"], theirs["labels"], attention, "labels computed from ids, pad = eos")

# %% [markdown]
# This collator grades the prompt, and of all tokens exactly the ends of turn are masked: the ■ stand behind
# the assistant's replies too. The model is never taught to stop
# ([transformers #23530](https://github.com/huggingface/transformers/issues/23530),
# [TRL #976](https://github.com/huggingface/trl/issues/976)). `collate`, *with the same padding id*, grades
# the ends of the assistant's turns and no others: its labels come from the mask, never from comparing ids. A
# padding token of its own is still the better choice.

# %% [markdown]
# ## 9 Truncation
#
# A conversation is longer than the context. `truncation=True` cuts at exactly `max_length` tokens.
#
# **Predict first.** For a conversation with three replies, at what share of all possible lengths does this cut
# leave a half reply without end of turn?

# %%
long_chat = next(
    one
    for one in load_conversations("../data/conversations.jsonl")
    if one.roles.count("assistant") == 3 and len(training_samples(one, llama)[0]) > 150
)
full = training_samples(long_chat, llama)[0]
half = [
    cut
    for cut in range(1, len(full))
    if full.labels[cut] != IGNORE_INDEX and full.labels[cut - 1] != IGNORE_INDEX
]
print(f"{long_chat.id}: {len(full)} tokens, three replies, turns end at {full.cuts}")
print(
    f"{len(half)} of {len(full) - 1} cuts ({len(half) / (len(full) - 1):.0%}) fall inside a reply"
)

# %%
from course_utils.masking import truncate

lengths = range(full.cuts[0], len(full) + 1)
alt = "Kept tokens by max_length: the naive cut keeps all, mostly inside a reply; truncate steps."
fig, ax = show.figure(7, 3, alt=alt)
kept = [len(truncate(full, length)) for length in lengths]
ax.step(lengths, kept, where="post", color=show.PALETTE["graded"], label="truncate: whole turns")
ax.plot(lengths, lengths, color=show.PALETTE["masked"], ls="--", label="truncation=True")
inside = [cut for cut in half if cut >= lengths[0]]
ax.scatter(inside, inside, s=14, marker="x", color=show.PALETTE["tuned"], label="inside a reply")
ax.set_xlabel("max_length (tokens)")
ax.set_ylabel("tokens kept")
ax.legend()
plt.show()

# %% [markdown]
# Each cross is a length at which the naive cut ends inside a reply. `truncate` keeps fewer tokens and ends
# every time behind an end of turn. A length in the middle of the last reply, in detail:

# %%
limit = (full.graded[-1].start + full.graded[-1].end) // 2
naive = ids(llama, long_chat.as_messages(), truncation=True, max_length=limit)
whole_turns = truncate(full, limit)
mask = [label != IGNORE_INDEX for label in full.labels]
for name, numbers in (("truncation=True", naive), ("truncate", whole_turns.input_ids)):
    last = slice(len(numbers) - 12, len(numbers))
    title = f"max_length {limit}, {name}: the last of {len(numbers)} tokens"
    display(tail(llama, numbers[last], title, mask[last]))

# %% [markdown]
# The first ends in the middle of a sentence, graded up to the cut: one more reply in the data without an end
# of turn. It gets worse when a later step appends an end of turn to every row, because then a label says
# that a reply ends there. The second drops the partial turn whole. And if not even the first reply fits:

# %%
try:
    truncate(full, full.cuts[0] - 1)
except MaskError as error:
    print(error)

# %% [markdown]
# ### Outlook: packing
#
# Padding is work without a gradient. How much of a batch is it, over the course's conversations?

# %%
from itertools import islice

from course_utils.batching import length_batches


def padding_share(batches):
    size = sum(len(batch) * max(len(one) for one in batch) for batch in batches)
    return 100 * (1 - sum(len(one) for batch in batches for one in batch) / size)


# %%
pieces = prepared.samples
in_order = [pieces[start : start + 8] for start in range(0, len(pieces), 8)]
sorted_ones = list(islice(length_batches(pieces, 8), len(in_order)))
shares = [padding_share(in_order), padding_share(sorted_ones)]
print("padding: {:.0f} % as they come, {:.0f} % with length_batches".format(*shares))
alt = "Share of padding: as they come against batches of similar length."
show.bars(["as they come", "length_batches"], shares, xlabel="padding, % of the batch", alt=alt)
plt.show()

# %% [markdown]
# Batches of similar length save much of it, and that is what this course trains with. *Packing* goes further
# and puts several conversations into one row. It needs an attention mask that keeps them apart, positions that
# start again, and labels that do not cross the seams, so it is a topic of its own.

# %% [markdown]
# ## 10 Where templates live
#
# The template is part of the model, so it is saved with the tokenizer. **Predict first.** In which file?

# %%
import json
from pathlib import Path
from tempfile import TemporaryDirectory


def files_of(**options):
    with TemporaryDirectory() as folder:
        llama.save_pretrained(folder, **options)
        config = json.loads((Path(folder) / "tokenizer_config.json").read_text())
        names = sorted(path.name for path in Path(folder).iterdir())
        return names, "chat_template" in config


# %%
for name, options in (("now", {}), ("earlier layout", {"save_jinja_files": False})):
    names, inside = files_of(**options)
    print(f"{name}: {', '.join(names)}")
    print(f"   template inside tokenizer_config.json: {inside}")

# %% [markdown]
# A file of its own now, an entry in `tokenizer_config.json` earlier; published checkpoints come in both
# layouts. That invites an accident: **predict first** what a tokenizer uses that finds both.

# %%
from transformers import AutoTokenizer

with TemporaryDirectory() as folder:
    llama.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"chat_template": "edited in tokenizer_config.json"}))
    print(
        "uses chat_template.jinja:",
        AutoTokenizer.from_pretrained(folder).chat_template == llama.chat_template,
    )

# %% [markdown]
# The `.jinja` file wins, so an edit in the old place changes nothing. After saving a checkpoint, load it again
# and compare one rendered conversation.
#
# Serving takes the template from the same place: vLLM uses the one in the tokenizer's files, and
# `--chat-template` overrides it
# ([vLLM documentation](https://docs.vllm.ai/en/stable/serving/openai_compatible_server/)). So ship the template
# that you trained with, and do not write a second one for the server.

# %% [markdown]
# ## Take-aways
#
# - The prompt in training must be, token for token, what a server sends: generation prompt on the prompt side,
#   one sequence start, one date, one way of thinking.
# - Re-rendered prefixes, the generation tag and your own spans agree where all apply. Where they do not, the
#   right answer is a refusal. Counts without a check are wrong and say nothing.
# - Labels come from the mask. Pad them with -100, never derive them from ids, and cut only behind an end of turn.
#
# Now do the [exercises](../exercises/06_masking_in_production.ipynb). Next comes lecture
# [07](07_data_is_the_curriculum.ipynb): where the conversations come from.
#
# ## Quiz
#
# **1.** Your mask comes from token counts of re-rendered prefixes. All shapes fit, the loss falls, and one strip
# looks right. The data are two-turn chats, the template is Qwen 3's. What is wrong, and which strip did you look
# at?
#
# <details><summary>Answer</summary>
#
# You looked at a single-turn sample, where the prefix is a prefix. In two-turn chats the first reply was counted
# with its think block and stands in the whole without it, so the graded range slides into the user's next
# question. Look at a multi-turn strip, or check the prefix property and let it refuse.
#
# </details>
#
# **2.** A colleague sets `pad_token = eos_token` and pads labels with -100 from the mask, not from the ids. Is that
# the famous bug?
#
# <details><summary>Answer</summary>
#
# No. The bug is to compute labels (or the attention mask) by comparing ids with the padding id, which also hits the
# real end of turn. With labels from the mask and an attention mask from the lengths, sharing the id does no harm in
# training. A later tool that compares ids may still trip over it, so a padding token of its own is safer.
#
# </details>
