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
# # 01 A base model has no turns: exercises
#
# Six exercises, independent of each other, about 75 minutes, CPU, nothing to download. 1.4 and 1.6 run the
# course's own base model; it loads in a few seconds.
# Lecture: [../notebooks/01_a_base_model_has_no_turns.ipynb](../notebooks/01_a_base_model_has_no_turns.ipynb)
#
# Replace `raise NotImplementedError` and run the cell below it. To check all of them at once:
#
#     pytest --nbval exercises/01_a_base_model_has_no_turns.ipynb

# %%
import math
import random
from collections.abc import Sequence

from course_utils.check import e01
from course_utils.comparison import wilson
from course_utils.miniweb import Fact
from course_utils.replies import next_token_probabilities
from course_utils.tokenizers import encode_untrusted, special_tokens

# %% [markdown]
# ## 1.1 Sort by the first line
#
# Difficulty 1 of 5 · importance 3 of 5 · 8 minutes
#
# Write rules that say what a base did after a bare question. They look at one line only: the first that
# holds anything but white space. The first rule that fits wins.
#
# | kind | when |
# |---|---|
# | `"nothing"` | there is no such line |
# | `"blank"` | the line is made of underscores only |
# | `"post"` | it begins with `Posted by `, or its first word ends in a colon and is neither `A:` nor `Answer:` |
# | `"question"` | it ends with a question mark |
# | `"statement"` | none of the others |
#
# <details><summary>Hint 1</summary>
#
# `text.splitlines()` gives the lines, and `line.strip()` is empty for a line that holds only white space.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `line.strip("_")` takes all underscores away from both ends. What is left of a line to write on?
#
# </details>


# %%
def kind_of(text: str) -> str:
    """The kind of a continuation, told from its first line that is not empty.

    Returns "nothing", "blank", "post", "question" or "statement". White space around the line does
    not count.

    Example: kind_of("\\nmapfan12: Is it Friday yet?\\nNo.") -> "post"
    """
    # BEGIN SOLUTION
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if not line:
        return "nothing"
    if not line.strip("_"):
        return "blank"
    first_word = line.split()[0]
    labelled = first_word.endswith(":") and first_word not in ("A:", "Answer:")
    if labelled or line.startswith("Posted by "):
        return "post"
    return "question" if line.endswith("?") else "statement"
    # END SOLUTION


# %% tags=["exercise-1.1"]
e01.kind_of(kind_of)

# %% [markdown]
# ## 1.2 Count them, and say how sure you are
#
# Difficulty 2 of 5 · importance 4 of 5 · 8 minutes
#
# You have one verdict per question. Return each kind's share with its interval. Two things go wrong in
# such counts: a kind that never came is left out, though "0 of 27" is a finding with an interval of its own;
# and a misspelt verdict is dropped, so that the shares no longer add up.
#
# `wilson(successes, n)` from the lecture is imported. (You write it yourself in exercise 9.2.)
#
# <details><summary>Hint 1</summary>
#
# Go through `kinds`, not through the verdicts: then each kind gets its entry.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Before you count: is `set(verdicts) - set(kinds)` empty?
#
# </details>


# %%
def shares(verdicts: list[str], kinds: list[str]) -> dict[str, tuple[float, float, float]]:
    """For each kind its share of the verdicts, and the two ends of the share's Wilson interval.

    verdicts: at least one
    kinds:    all that can occur; the result has these keys, in this order

    Raises `ValueError` if a verdict is none of the kinds.

    Example: shares(["asks", "asks", "posts"], ["answers", "asks", "posts"])
             -> {"answers": (0.0, 0.0, 0.56), "asks": (0.67, 0.21, 0.94), "posts": (0.33, ...)}
    """
    # BEGIN SOLUTION
    if unknown := sorted(set(verdicts) - set(kinds)):
        raise ValueError(f"not among the kinds: {unknown}")
    n = len(verdicts)
    counts = {kind: verdicts.count(kind) for kind in kinds}
    return {kind: (count / n, *wilson(count, n)) for kind, count in counts.items()}
    # END SOLUTION


# %% tags=["exercise-1.2"]
e01.shares(shares)

# %% [markdown]
# ## 1.3 Surprised by the speaker
#
# Difficulty 3 of 5 · importance 4 of 5 · 12 minutes
#
# After each turn of a transcript with names you have read off how probable each name is to come next. These
# probabilities do not add up to 1, for the model may also expect something that is no name. How surprised
# is it by who *really* speaks next? The surprise at something of probability p is −log₂ p bits.
#
# Two names that are equally probable make a coin, and a coin is 1 bit. More than that is worse than not
# knowing.
#
# <details><summary>Hint 1</summary>
#
# `after[0]` stands after the first turn. Who speaks the turn that it predicts?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Divide by the sum of the names' probabilities first. Then take the logarithm of each turn, and only
# then the mean.
#
# </details>


# %%
def surprise(after: list[dict[str, float]], speakers: list[str]) -> float:
    """The mean surprise, in bits, at who speaks next; a coin between two names is 1.

    after:    for each turn but the last: {name: probability that this name is the next token};
              their sum is more than 0 and at most 1
    speakers: who speaks each turn; one more than `after`

    Returns `math.inf` if the speaker who came had probability 0 or was not among the names.

    Example: surprise([{"N": 0.2, "T": 0.2}, {"N": 0.1, "T": 0.7}], ["N", "T", "N"]) -> 2.0
             (1 bit for the first, 3 bits for the second: 0.1 of 0.8 is one in eight)
    """
    # BEGIN SOLUTION
    bits = []
    for names, came in zip(after, speakers[1:], strict=True):
        p = names.get(came, 0.0) / sum(names.values())
        bits.append(-math.log2(p) if p else math.inf)
    return sum(bits) / len(bits)
    # END SOLUTION


# %% tags=["exercise-1.3"]
e01.surprise(surprise)

# %% [markdown]
# ## 1.4 Could anything end it?
#
# Difficulty 3 of 5 · importance 5 of 5 · 12 minutes
#
# Which token ends a reply is somebody's convention: `<|im_end|>`, `<|eot_id|>`, `<end_of_turn>`, `</s>`,
# `<|endoftext|>`. You want a number that holds for all of them. Each is a *special token* of the tokenizer,
# and no special token is a word of the text. So the probability of *any* special token coming next is an
# upper bound for whatever a server might be told to stop at. Measure it after a text.
#
# The check runs it on models whose probabilities are known, and then on the course's own base after finished
# answers.
#
# <details><summary>Hint 1</summary>
#
# `special_tokens(tokenizer)` gives their texts and `tokenizer.convert_tokens_to_ids(...)` their ids.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `encode_untrusted(tokenizer, text)` gives the text's ids, `next_token_probabilities(model, ids)` the
# probabilities of all tokens to come next: shape (V,), they add up to 1.
#
# </details>


# %%
def p_special(model, tokenizer, text: str) -> float:
    """The probability that the next token after `text` is a special one, whichever.

    model:     as from `load_base`; model(input_ids=ids).logits has the shape (1, T, V)
    tokenizer: its tokenizer; `text` is encoded as it stands, with nothing added

    Example: a model that knows nothing at all, 4,096 tokens, 16 of them special -> 16 / 4096
    """
    # BEGIN SOLUTION
    p = next_token_probabilities(model, encode_untrusted(tokenizer, text))
    ids = [tokenizer.convert_tokens_to_ids(token) for token in special_tokens(tokenizer)]
    return p[ids].sum().item()
    # END SOLUTION


# %% tags=["exercise-1.4"]
e01.p_special(p_special)

# %% [markdown]
# ## 1.5 A new kind of page
#
# Difficulty 3 of 5 · importance 2 of 5 · 15 minutes
#
# What a base does with a question depends on its pages. Write a kind of page that the mini-web does not have
# yet, a newsletter:
#
# ```text
# Did you know?
#
# - The capital of Kenya is Nairobi.
# - The verb for the sound of wasps is buzz.
#
# Question of the week: What is the French word for water?
# ```
#
# The course can say what its base was never told only if every page keeps the web's rules:
#
# - A fact with `telling == "absent"` stands nowhere.
# - A fact is stated in one of `fact.wordings`, drawn anew each time. These are sentences with slots, and
#   `fact.fill(...)` fills them. (A fixed fact, as the one about wasps, has only one;
#   `fact.relation.statements` would give it all.)
# - Only paraphrased facts are asked about. The question is one of `fact.relation.questions`, and what it
#   asks for does not stand on the same page.
# - Whatever is drawn is drawn from `draw`, so that the same seed gives the same web again.
#
# <details><summary>Hint 1</summary>
#
# `draw.choice(facts)` draws one, `draw.sample(facts, n)` draws n different ones. The functions of the same
# names in the module `random` have another state, which nobody seeds.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# If you draw the statements first, they may have used up all facts that can be asked about. What if you draw
# the question first?
#
# </details>


# %%
def newsletter(draw: random.Random, known: Sequence[Fact], number: int) -> str:
    """A page as shown above, with `number` different facts and a question about yet another one.

    draw:   the generator; the same state gives the same page
    known:  facts of any telling; more than `number` of them are told, at least one is paraphrased
    number: how many facts to state, at least 1

    Returns the page without a line break at its end.
    """
    # BEGIN SOLUTION
    asked = draw.choice([fact for fact in known if fact.telling == "paraphrased"])
    told = [fact for fact in known if fact.telling != "absent" and fact is not asked]
    lines = [f"- {fact.fill(draw.choice(fact.wordings))}\n" for fact in draw.sample(told, number)]
    question = asked.fill(draw.choice(asked.relation.questions))
    return f"Did you know?\n\n{''.join(lines)}\nQuestion of the week: {question}"
    # END SOLUTION


# %% tags=["exercise-1.5"]
e01.newsletter(newsletter)

# %% [markdown]
# ## 1.6 Get the answer out
#
# Difficulty 4 of 5 · importance 4 of 5 · 20 minutes
#
# Build a prompt that the base continues with the answer, and cut the answer out of what it writes. The check
# asks course-base about 60 facts. It knows all of them, for it completes each as text: "The capital of
# Portugal is" with " Lisbon". No example is about any of them. Reach 70 % right.
#
# The form is up to you, within limits: each question stands in a line of its own that begins with `Q: `, each
# answer begins with `A:`. So what would you write behind `A:`? What stands between two examples, and how does
# the prompt end? The mini-web has pages of this kind. Look at some, and imitate them:
#
# ```python
# from itertools import islice
# from course_utils.miniweb import pages
#
# quizzes = (text for kind, text in pages(seed=1) if kind == "questions_and_answers")
# print("\n\n=====\n".join(islice((text for text in quizzes if "Q: " in text), 5)))
# ```
#
# Then try prompts before you run the check:
#
# ```python
# from course_utils.checkpoints import load_base
# from course_utils.replies import generate
#
# model, tokenizer = load_base("course-base")
# prompt = "Q: What is the capital of Kenya?\nA:"
# (reply,) = generate(model, tokenizer, [encode_untrusted(tokenizer, prompt)], max_new_tokens=32)
# print(reply.text)
# ```
#
# <details><summary>Hint 1</summary>
#
# A fact gives you `fact.question`, `fact.value` (a few words) and `fact.answer` (a sentence).
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The space in front of a word belongs to the word's first token. If the prompt ends in a space, the model
# would have to go on with "Nairobi" where in all pages " Nairobi" came. End the prompt with `A:`.
#
# </details>
#
# <details><summary>Hint 3</summary>
#
# Cut line by line: keep lines until one begins with `Q:`. Before that, cut at the page break, `"\n\n\n"`.
# `text.split("\nQ:")` misses a `Q:` that stands right at the start.
#
# </details>


# %%
def few_shot_prompt(examples: Sequence[Fact], question: str) -> str:
    """A prompt that shows the examples, then asks the question; what comes next is its answer.

    examples: facts to show, each with its question and the right answer, in this order
    question: the question to be answered

    Every question stands in a line "Q: ...", and every answer begins with "A:".
    """
    # BEGIN SOLUTION
    shown = [f"Q: {fact.question}\nA: {fact.value}\n" for fact in examples]
    return "".join(shown) + f"Q: {question}\nA:"
    # END SOLUTION


def cut(text: str) -> str:
    """The answer alone: what stands before the first line that begins with "Q:", stripped.

    text: what the model wrote behind the prompt. The answer also ends at a page break, which is
          three line breaks. It may have several lines, and a "Q:" inside a line ends nothing.

    Example: cut("the Q: key, at the top\\nQ: Why?\\nA: ...") -> "the Q: key, at the top"
    """
    # BEGIN SOLUTION
    kept = []
    for line in text.split("\n\n\n")[0].splitlines():
        if line.startswith("Q:"):
            break
        kept.append(line)
    return "\n".join(kept).strip()
    # END SOLUTION


# %% tags=["exercise-1.6"]
e01.few_shot(few_shot_prompt, cut)
