# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # 09 Base against SFT: exercises
#
# Seven exercises, independent of each other, about 85 minutes, CPU, nothing to download.
# Lecture: [../notebooks/09_base_against_sft.ipynb](../notebooks/09_base_against_sft.ipynb)
#
# Replace `raise NotImplementedError` and run the cell below it. To check all of them at once:
#
#     pytest --nbval exercises/09_base_against_sft.ipynb
#
# In these exercises a reply is a list of token ids or a string. No model is needed.

# %%
from course_utils.check import e09

# %% [markdown]
# ## 9.1 The stop rate
#
# Difficulty 1 of 5 · importance 4 of 5 · 5 minutes
#
# A batch of replies comes back as rows of one length. A row that ended early is filled up with the pad
# token; a row that never ended has none. There can be more than one stop token. Return the share of rows
# that the model ended itself.
#
# <details><summary>Hint 1</summary>
#
# The last id of a row does not tell: it may be padding. The padding does not tell either: a row may end
# at its very last place.
#
# </details>
# <details><summary>Hint 2</summary>
#
# A row is ended if any of its ids is one of the stop tokens.
#
# </details>


# %%
def stop_rate(rows: list[list[int]], stop_ids: list[int]) -> float:
    """The share of rows, from 0 to 1, that hold a stop token.

    rows: at least one row of token ids, as generated: after its first stop token padding follows
    stop_ids: every id that ends a reply

    >>> stop_rate([[5, 6, 106, 0], [5, 6, 7, 8]], [106, 1])
    0.5
    """
    # BEGIN SOLUTION
    return sum(any(number in stop_ids for number in row) for row in rows) / len(rows)
    # END SOLUTION


# %% tags=["exercise-9.1"]
e09.stop_rate(stop_rate)

# %% [markdown]
# ## 9.2 An interval for a share
#
# Difficulty 2 of 5 · importance 5 of 5 · 10 minutes
#
# All 20 of 20 replies stopped. That is 100 %, but it does not prove that the next one will stop. Write the
# Wilson score interval. With $p$ = successes / n:
#
# $$\frac{p + \frac{z^2}{2n} \;\pm\; z\sqrt{\frac{p(1-p)}{n} + \frac{z^2}{4n^2}}}{1 + \frac{z^2}{n}}$$
#
# <details><summary>Hint 1</summary>
#
# Write centre, half width and denominator on a line each. The denominator divides both.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Rounding can put an end a hair outside 0 to 1. `max` and `min` bring it back.
#
# </details>

# %%
import math


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson interval (low, high) of a share, both from 0 to 1.

    successes: how many of the `n` trials came out well; n is at least 1
    z: 1.96 for a 95 % interval

    >>> low, high = wilson_interval(13, 20)
    >>> round(low, 3), round(high, 3)
    (0.433, 0.819)
    """
    # BEGIN SOLUTION
    p = successes / n
    denominator = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / denominator
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / denominator
    return max(0.0, centre - half), min(1.0, centre + half)
    # END SOLUTION


# %% tags=["exercise-9.2"]
e09.wilson_interval(wilson_interval)

# %% [markdown]
# ## 9.3 How certain is the model?
#
# Difficulty 2 of 5 · importance 3 of 5 · 8 minutes
#
# Return two numbers for a distribution over the next token: its entropy in nats, $-\sum_i p_i \ln p_i$, and
# the probability of the likeliest token. A token of probability 0 adds nothing to the entropy.
#
# <details><summary>Hint 1</summary>
#
# `math.log(0)` raises an error. Leave those tokens out of the sum.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Check yourself with two ends: a sure model has entropy 0, a uniform one `math.log(V)`.
#
# </details>


# %%
def certainty(probabilities: list[float]) -> tuple[float, float]:
    """(entropy in nats, probability of the likeliest token) of one distribution.

    probabilities: one number per token of the vocabulary, 0 or more, summing to 1

    >>> entropy, top = certainty([0.5, 0.5, 0.0])
    >>> round(entropy, 3), top
    (0.693, 0.5)
    """
    # BEGIN SOLUTION
    entropy = sum(-p * math.log(p) for p in probabilities if p > 0)
    return entropy, max(probabilities)
    # END SOLUTION


# %% tags=["exercise-9.3"]
e09.certainty(certainty)

# %% [markdown]
# ## 9.4 Does the reply open a turn of its own?
#
# Difficulty 2 of 5 · importance 4 of 5 · 12 minutes
#
# A model that has not learned to stop plays both voices. Detect it. A reply opens a turn if
#
# - it holds one of the markers `<start_of_turn>`, `<|im_start|>`, `<|start_header_id|>`, `[INST]`, or
# - one of its lines *begins* (spaces aside) with one of the words system, user, assistant, human, model, in
#   upper or lower case, and right after the word (spaces aside) a colon.
#
# A word in the middle of a line does not count, and neither does a longer word such as `Users:`.
#
# <details><summary>Hint 1</summary>
#
# One regular expression for the lines: `^` with `re.M` stands for the start of every line.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `\s` takes line breaks, too. Use `[ \t]*` where only spaces and tabs are meant.
#
# </details>


# %%
def opens_a_turn(reply: str) -> bool:
    """Does the reply hold a template's marker, or a line that begins like `User:`?

    >>> opens_a_turn("It is 4.\\nUser: And 3+3?"), opens_a_turn("Ask your user: is it on?")
    (True, False)
    """
    # BEGIN SOLUTION
    import re

    if any(
        m in reply for m in ("<start_of_turn>", "<|im_start|>", "<|start_header_id|>", "[INST]")
    ):
        return True
    header = r"^[ \t]*(system|user|assistant|human|model)[ \t]*:"
    return bool(re.search(header, reply, re.I | re.M))
    # END SOLUTION


# %% tags=["exercise-9.4"]
e09.opens_a_turn(opens_a_turn)

# %% [markdown]
# ## 9.5 An interval for a difference
#
# Difficulty 3 of 5 · importance 5 of 5 · 15 minutes
#
# Both models answered the same prompts. Some prompts are hard for both, so compare prompt by prompt: draw n
# prompts with replacement, take the mean of (after - before) over them, repeat `draws` times. The 95 %
# interval reaches from the 2.5 % to the 97.5 % quantile of these means.
#
# Use `random.Random(seed)`, so that the same call always gives the same interval.
#
# <details><summary>Hint 1</summary>
#
# Make the list of differences first. Drawing a difference draws the prompt for both models at once.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `generator.choices(values, k=n)` draws with replacement. Sort the means; the ends stand at
# `int(0.025 * draws)` and `int(0.975 * draws) - 1`.
#
# </details>

# %%
import random


def paired_bootstrap(
    before: list[float], after: list[float], draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % bootstrap interval (low, high) of the mean of after - before.

    before, after: one number per prompt, in the same order
    draws: how often the prompts are drawn anew

    >>> paired_bootstrap([0.0, 1.0, 5.0], [2.0, 3.0, 7.0])
    (2.0, 2.0)
    """
    # BEGIN SOLUTION
    generator = random.Random(seed)
    differences = [b - a for a, b in zip(before, after, strict=True)]
    n = len(differences)
    means = sorted(sum(generator.choices(differences, k=n)) / n for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws) - 1]
    # END SOLUTION


# %% tags=["exercise-9.5"]
e09.paired_bootstrap(paired_bootstrap)

# %% [markdown]
# ## 9.6 How far did each layer move?
#
# Difficulty 3 of 5 · importance 3 of 5 · 15 minutes
#
# Compare two state dicts, layer by layer. The relative change of a layer is the norm of the difference of
# all its numbers over the norm of all its numbers before:
#
# $$\sqrt{\textstyle\sum (w' - w)^2} \;\Big/\; \sqrt{\textstyle\sum w^2}$$
#
# The sums run over *all* tensors of the layer together. Tensors of layer 3 have names that begin with
# `model.layers.3.`; tensors with other names (the embedding) are left out. If names or shapes differ the
# two are not one architecture: raise `ValueError`. The tensors may be bfloat16, the sums must not be.
#
# <details><summary>Hint 1</summary>
#
# `name.split(".")[2]` is the layer's number, as text.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Keep two sums per layer in dictionaries, and take the roots at the very end. The mean of the tensors'
# own ratios is another number.
#
# </details>
# <details><summary>Hint 3</summary>
#
# Check names and shapes of *all* tensors first, those outside the layers as well.
#
# </details>

# %%
from torch import Tensor


def relative_change(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[int, float]:
    """Layer number -> relative change of all its numbers together.

    before, after: name -> tensor; every layer has a number other than 0 before
    Raises ValueError if names or shapes differ.

    >>> import torch
    >>> w = {"model.layers.0.mlp.weight": torch.tensor([3.0, 4.0])}
    >>> moved = {"model.layers.0.mlp.weight": torch.tensor([3.0, 4.5])}
    >>> relative_change(w, moved)
    {0: 0.1}
    """
    # BEGIN SOLUTION
    shapes = [{name: tuple(tensor.shape) for name, tensor in d.items()} for d in (before, after)]
    if shapes[0] != shapes[1]:
        raise ValueError("names or shapes differ: these are two architectures")
    moved, size = {}, {}
    for name, tensor in before.items():
        if not name.startswith("model.layers."):
            continue
        layer = int(name.split(".")[2])
        old, new = tensor.double(), after[name].double()
        moved[layer] = moved.get(layer, 0.0) + (new - old).square().sum().item()
        size[layer] = size.get(layer, 0.0) + old.square().sum().item()
    return {layer: (moved[layer] / size[layer]) ** 0.5 for layer in moved}
    # END SOLUTION


# %% tags=["exercise-9.6"]
e09.relative_change(relative_change)

# %% [markdown]
# ## 9.7 A fair comparison
#
# Difficulty 4 of 5 · importance 5 of 5 · 20 minutes
#
# Somebody ran two models through two scripts. One script let the model write longer, and each watched for
# its own stop tokens only. Compare them all the same, by one rule for both:
#
# 1. look at the first `limit` ids of a row and no further,
# 2. the stop tokens are those of *either* script; the reply ends before the first of them, and has stopped
#    if there is one,
# 3. decode what is left and strip it,
# 4. the reply knows the fact if one of the expected strings stands in it as whole words, in any case
#    (`"Au"` does not stand in `"because"`),
# 5. its length is its number of words, split at white space.
#
# <details><summary>Hint 1</summary>
#
# Write a function that turns one row into (text, stopped). Everything else follows from its results.
#
# </details>
# <details><summary>Hint 2</summary>
#
# The order matters: cut at the limit first. A stop token behind the limit does not count.
#
# </details>
# <details><summary>Hint 3</summary>
#
# `(?<!\w)` and `(?!\w)` around `re.escape(expected)` ask that no letter or digit touches it. `\b` fails for
# expected strings that begin or end with a sign, such as `"$5"`.
#
# </details>

# %%
from collections.abc import Callable


def fair_comparison(
    rows: dict[str, list[list[int]]],
    stop_ids: dict[str, list[int]],
    expected: list[list[str]],
    decode: Callable[[list[int]], str],
    limit: int,
) -> dict[str, dict[str, float]]:
    """{model: {"stops": share, "knows": share, "words": mean}}, all by the same rule.

    rows:     model -> one row of generated ids per prompt; what follows a stop token is no reply
    stop_ids: model -> the ids that its own script watched for
    expected: for each prompt the strings of which one must stand in the reply
    decode:   ids -> text
    limit:    the number of new ids that both models get

    >>> words = ["<end>", " It", " is", " gold", "."]
    >>> found = fair_comparison(
    ...     {"base": [[1, 2, 3, 4]], "SFT": [[3, 0, 2, 1]]},
    ...     {"base": [], "SFT": [0]},
    ...     [["Gold"]],
    ...     lambda ids: "".join(words[i] for i in ids),
    ...     limit=2,
    ... )
    >>> found["base"]
    {'stops': 0.0, 'knows': 0.0, 'words': 2.0}
    >>> found["SFT"]
    {'stops': 1.0, 'knows': 1.0, 'words': 1.0}
    """
    # BEGIN SOLUTION
    import re

    stops = {number for ids in stop_ids.values() for number in ids}

    def cut(row: list[int]) -> tuple[str, bool]:
        row = row[:limit]
        ends = [position for position, number in enumerate(row) if number in stops]
        return decode(row[: ends[0]] if ends else row).strip(), bool(ends)

    def knows(text: str, facts: list[str]) -> bool:
        return any(re.search(rf"(?<!\w){re.escape(f)}(?!\w)", text, re.I) for f in facts)

    result = {}
    for model, replies in rows.items():
        cuts = [cut(row) for row in replies]
        n = len(cuts)
        result[model] = {
            "stops": sum(stopped for _, stopped in cuts) / n,
            "knows": sum(knows(text, e) for (text, _), e in zip(cuts, expected, strict=True)) / n,
            "words": sum(len(text.split()) for text, _ in cuts) / n,
        }
    return result
    # END SOLUTION


# %% tags=["exercise-9.7"]
e09.fair_comparison(fair_comparison)
