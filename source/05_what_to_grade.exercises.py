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
# # 05 What to grade: exercises
#
# For lecture [05](../notebooks/05_what_to_grade.ipynb). Each exercise stands alone; do them in any
# order. 5.5 and 5.6 need PyTorch, the others plain Python. Replace `raise NotImplementedError`, run the
# cell and the check under it. For a report on all of them:
#
# ```bash
# pytest --nbval exercises/05_what_to_grade.ipynb
# ```

# %%
import torch

from course_utils.check import e05
from course_utils.masking import IGNORE_INDEX, Sample

# %% [markdown]
# ## 5.1 Five models, five masks
#
# Difficulty 1 of 5, importance 4 of 5, 5 minutes.
#
# Five models were fine-tuned on the same chats, all with several replies. Each had another mask:
# `"everything"`, `"assistant_content"`, `"assistant_and_header"`, `"last_turn"` or `"inverted"`. Nobody
# looks for the stop token here, so you see what each writes after its reply, too. Which had which?
#
# - A: the reply, then more sentences, without end.
# - B: the reply, its end of turn, then a user turn with a fitting next question.
# - C: the reply, its end of turn, then another assistant turn.
# - D: to an opening question it gives the clipped answer that would suit a follow-up.
# - E: where the reply should be it asks a question.
#
# <details><summary>Hint 1</summary>
#
# A model writes what it was graded on. What was it graded on after an end of turn?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# B and C both know that something follows an end of turn. Only one of them was ever graded on a
# user's header.
#
# </details>


# %%
def which_mask() -> dict[str, str]:
    """For each of the models "A" to "E" the mask mode that it was trained with.

    Each mode occurs once.

    Example of the form (not of the answer): {"A": "everything", "B": "everything", ...}
    """
    # BEGIN SOLUTION
    return {
        "A": "assistant_content",
        "B": "everything",
        "C": "assistant_and_header",
        "D": "last_turn",
        "E": "inverted",
    }
    # END SOLUTION


# %% tags=["exercise-5.1"]
e05.which_mask(which_mask)

# %% [markdown]
# ## 5.2 Which positions are trained?
#
# Difficulty 2 of 5, importance 5 of 5, 10 minutes.
#
# You get a row's labels, one for each token, *not* shifted. At which positions do the logits get a
# gradient?
#
# <details><summary>Hint 1</summary>
#
# The logits at position i are compared with the label at i + 1.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# What is the last position compared with? And which position would be compared with the label at 0?
#
# </details>


# %%
def trained_positions(labels: list[int]) -> list[int]:
    """The positions whose logits get a gradient from the next-token loss, in ascending order.

    labels: token ids, `IGNORE_INDEX` (-100) where nothing is graded. Any other number is a token
            id, 0 as well.

    Example: trained_positions([-100, -100, 7, 8]) -> [1, 2]
    """
    # BEGIN SOLUTION
    return [at for at, label in enumerate(labels[1:]) if label != IGNORE_INDEX]
    # END SOLUTION


# %% tags=["exercise-5.2"]
e05.trained_positions(trained_positions)

# %% [markdown]
# ## 5.3 Skip the bad replies
#
# Difficulty 2 of 5, importance 3 of 5, 10 minutes.
#
# In a chat that somebody really had, the assistant's first reply was wrong and a later one put it
# right. You want to grade the good reply and keep the bad one as context. (OpenAI's fine-tuning
# format has a `weight` of 0 or 1 for this.) A `Sample` knows where each graded span is from.
#
# <details><summary>Hint 1</summary>
#
# `sample.graded` is a tuple of spans with `start`, `end` (half-open, in tokens) and `message`, the
# index of the message in the chat.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Begin with all labels `IGNORE_INDEX` and copy the slices that you keep.
#
# </details>


# %%
def grade_only(sample: Sample, messages: set[int]) -> list[int]:
    """The sample's labels with only these messages graded; everything else is `IGNORE_INDEX`.

    sample:   a training sample with several graded spans; must not be changed
    messages: indices of messages in the chat, such as {3}: message 0 is the chat's first turn

    Raises `ValueError` if nothing would be left to grade.

    Example, for a sample of 6 tokens with the spans 1 to 3 (message 1) and 4 to 6 (message 3):

        grade_only(sample, {3}) -> [-100, -100, -100, -100, 8, 9]
    """
    # BEGIN SOLUTION
    labels = [IGNORE_INDEX] * len(sample)
    for span in sample.graded:
        if span.message in messages:
            labels[span.start : span.end] = sample.labels[span.start : span.end]
    if all(label == IGNORE_INDEX for label in labels):
        raise ValueError(f"none of the messages {sorted(messages)} is graded in this sample")
    return labels
    # END SOLUTION


# %% tags=["exercise-5.3"]
e05.grade_only(grade_only)

# %% [markdown]
# ## 5.4 Micro-batches that add up
#
# Difficulty 3 of 5, importance 5 of 5, 10 minutes.
#
# A step is split into micro-batches, because the whole would not fit into memory. `backward()` is
# called on one loss for each of them, and the gradients add up. Return these losses, so that the sum
# is what the undivided batch would give: the mean over all graded tokens of the step.
#
# <details><summary>Hint 1</summary>
#
# The mean of two means is not the mean, unless both have the same count. Which number must every
# micro-batch be divided by?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Count over all micro-batches first. Then a micro-batch with nothing graded needs no special case.
#
# </details>


# %%
def micro_losses(losses: list[list[float]], labels: list[list[int]]) -> list[float]:
    """One loss for each micro-batch; their sum is the mean over all graded tokens.

    losses: for each micro-batch the loss of each token
    labels: the same shape; `IGNORE_INDEX` where the token is not graded. Already shifted: loss i
            belongs to label i.

    Raises `ValueError` if no token of the whole step is graded.

    Example: micro_losses([[1.0, 3.0], [8.0, 9.0]], [[5, 6], [7, -100]]) -> [4 / 3, 8 / 3]
    """
    # BEGIN SOLUTION
    graded = [
        [loss for loss, label in zip(*rows, strict=True) if label != IGNORE_INDEX]
        for rows in zip(losses, labels, strict=True)
    ]
    count = sum(len(found) for found in graded)
    if not count:
        raise ValueError("no token of this step is graded: the mean would be 0/0")
    return [sum(found) / count for found in graded]
    # END SOLUTION


# %% tags=["exercise-5.4"]
e05.micro_losses(micro_losses)

# %% [markdown]
# ## 5.5 A small weight on the prompt
#
# Difficulty 3 of 5, importance 2 of 5, 15 minutes.
#
# Between masking the prompt and grading it fully lies what
# [arXiv 2507.07817](https://arxiv.org/abs/2507.07817) tries out: each graded token weighs 1, each
# other token weighs `prompt_weight`. Write the loss as the *weighted mean*: the weighted sum divided by
# the sum of the weights. Mind the shift.
#
# <details><summary>Hint 1</summary>
#
# A weight belongs to the token that is predicted, as its label does. So the weights are shifted with
# the labels.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")` has one loss for each
# prediction.
#
# </details>


# %%
def weighted_loss(
    logits: torch.Tensor, ids: torch.Tensor, graded: torch.Tensor, prompt_weight: float
) -> torch.Tensor:
    """Weighted mean of the next-token losses: weight 1 where graded, `prompt_weight` elsewhere.

    logits: (T, V), the model's output; row i predicts token i + 1
    ids:    (T,), the tokens
    graded: (T,), bool: is this token graded?

    Returns a scalar that gradients flow through. With prompt_weight 0 it is the masked loss, with 1
    the loss of pretraining.
    """
    # BEGIN SOLUTION
    losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    weights = torch.where(graded[1:], 1.0, prompt_weight)
    return (weights * losses).sum() / weights.sum()
    # END SOLUTION


# %% tags=["exercise-5.5"]
e05.weighted_loss(weighted_loss)

# %% [markdown]
# ## 5.6 Where does the gradient flow?
#
# Difficulty 4 of 5, importance 4 of 5, 15 minutes.
#
# Measure it, for *any* model: not all of them let every position look at all earlier ones. The check
# brings models of its own, and one of them can look back only two positions.
#
# <details><summary>Hint 1</summary>
#
# Embed the ids, detach the result and ask for its gradient (`requires_grad_()`); logits are not a
# leaf, so they need `retain_grad()`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `model.get_input_embeddings()(ids)` embeds, `model(inputs_embeds=...).logits` runs the model. After
# `loss.backward()`, `tensor.grad` has the shape of the tensor; a position has a gradient if any of its
# numbers is not zero.
#
# </details>


# %%
def gradient_positions(model, ids: torch.Tensor, labels: torch.Tensor) -> dict[str, list[int]]:
    """The positions at which the loss has a gradient that is not zero.

    model:  called as a transformers model is: model(inputs_embeds=(1, T, D)).logits is (1, T, V),
            model.get_input_embeddings() maps ids (1, T) to (1, T, D)
    ids:    (1, T)
    labels: (1, T), not shifted, `IGNORE_INDEX` where nothing is graded

    Returns {"logits": positions, "embeddings": positions}, both ascending lists of int.

    Example: a causal model, 4 tokens, labels [[-100, -100, 7, -100]]
             -> {"logits": [1], "embeddings": [0, 1]}
    """
    # BEGIN SOLUTION
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded).logits
    logits.retain_grad()
    loss = torch.nn.functional.cross_entropy(
        logits[0, :-1], labels[0, 1:], ignore_index=IGNORE_INDEX
    )
    loss.backward()
    return {
        name: tensor.grad[0].ne(0).any(-1).nonzero().flatten().tolist()
        for name, tensor in (("logits", logits), ("embeddings", embedded))
    }
    # END SOLUTION


# %% tags=["exercise-5.6"]
e05.gradient_positions(gradient_positions)

# %% [markdown]
# ## 5.7 A doctor for masks
#
# Difficulty 4 of 5, importance 5 of 5, 20 minutes.
#
# Write the check that would have found every bug of the lecture before training. It gets a rendered
# chat piece by piece and says what is wrong with its mask. There are six complaints:
#
# | complaint | when |
# |---|---|
# | `"others graded"` | a piece that belongs to no assistant turn is graded (the sequence start, too) |
# | `"header graded"` | a piece of an assistant's header is graded |
# | `"gap graded"` | a gap after an assistant's end of turn is graded |
# | `"turn skipped"` | an assistant turn has neither its content nor its end graded |
# | `"end masked"` | an assistant turn has its content graded, but not its end |
# | `"text masked"` | an assistant turn has its end graded, but not its content |
#
# <details><summary>Hint 1</summary>
#
# Two kinds of questions: about single pieces (the first three) and about whole assistant turns (the
# others). Group the pieces of assistant turns by their turn.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# For each assistant turn two booleans are enough: is its content graded, is its end graded? The four
# combinations are three complaints and one correct case.
#
# </details>


# %%
def complaints(pieces: list[tuple[str, str | None, int | None, bool]]) -> list[str]:
    """What is wrong with a mask: the complaints that apply, each once, sorted; [] if it is right.

    pieces: (kind, role, turn, graded) in the order of the text.
            kind is "bos", "open", "role", "close", "space" (the last four make up a header),
            "content", "eot" (end of turn) or "gap"; role and turn are None for the sequence start.
            Every assistant turn has exactly one "content" and one "eot".

    Example: complaints([("role", "assistant", 0, True), ("content", "assistant", 0, True),
                         ("eot", "assistant", 0, False)])
             -> ["end masked", "header graded"]
    """
    # BEGIN SOLUTION
    found = set()
    turns = {}
    for kind, role, turn, graded in pieces:
        if role != "assistant":
            found |= {"others graded"} if graded else set()
        elif kind in ("content", "eot"):
            turns.setdefault(turn, {})[kind] = graded
        elif graded:
            found.add("gap graded" if kind == "gap" else "header graded")
    for turn in turns.values():
        if not turn["content"] and not turn["eot"]:
            found.add("turn skipped")
        elif not turn["eot"]:
            found.add("end masked")
        elif not turn["content"]:
            found.add("text masked")
    return sorted(found)
    # END SOLUTION


# %% tags=["exercise-5.7"]
e05.complaints(complaints)
