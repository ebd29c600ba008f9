"""Generating replies: what is sent to the model, how it continues, and whether it stops."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from course_utils.assembly import Assembly
from course_utils.confinement import confined
from course_utils.conversation import Conversation
from course_utils.encoding import encoder_of
from course_utils.plans import Layout
from course_utils.rendering import MaskError
from course_utils.tokenizers import encode, encode_untrusted


@dataclass(frozen=True)
class Reply:
    """What a model wrote after a prompt.

    text:    the reply without the token that ended it
    ids:     its token ids, that token included
    stopped: did the model end it, rather than run into `max_new_tokens`?
    seconds: time of the batch it was generated in, divided by the batch's replies
    """

    text: str
    ids: list[int]
    stopped: bool
    seconds: float


def end_of_turn_id(tokenizer) -> int | None:
    """The id that ends an assistant turn in the tokenizer's chat template.

    Read off the template: the last special token that ends a reply, as masks have it. Where there
    is none, the line break, if that is all it writes there: such a format (`plain`) ends a reply
    with its first line. None if there is no template, or if it ends turns in yet another way.
    """
    return next(iter(_template_stops(tokenizer)), None)


def stop_ids(tokenizer) -> list[int]:
    """The ids that end a reply: those of the template, and the tokenizer's end of text.

    A template may have several: one after an answer and one after a call to a tool.
    """
    ids = [*_template_stops(tokenizer), tokenizer.eos_token_id]
    return list(dict.fromkeys(number for number in ids if number is not None))


def _template_stops(tokenizer) -> list[int]:
    """The ids with which the template ends an answer, then a call."""
    if not tokenizer.chat_template:
        return []
    template = confined(tokenizer)
    ids = []
    for stop in template.stops():
        found = encode(tokenizer, stop).ids
        if stop in template.specials or (stop == "\n" and len(found) == 1):
            ids.append(found[0])
    return ids


def prompt_ids(conversation: Conversation, tokenizer, *, template: bool = True) -> list[int]:
    """The ids that are sent so that the assistant's reply comes next.

    With `template` the tokenizer's chat template and its generation prompt, encoded as in
    training: nothing that somebody typed becomes a special token. Without it, the contents alone,
    one per line: what a base model would be given by somebody who knows of no template.
    """
    if conversation.roles[-1] == "assistant":
        raise MaskError(
            f"conversation {conversation.id!r} ends with an assistant turn: there is nothing to "
            "reply to. Drop its last turn."
        )
    if not template:
        text = "\n".join(message.content for message in conversation)
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return start + encode_untrusted(tokenizer, text)
    encoder = encoder_of(tokenizer, fast=False)
    found = confined(tokenizer).prompt(conversation, encoder.piecewise)
    if "guarded" in found:
        return encode(tokenizer, found["guarded"]).ids
    assembly = Assembly(Layout(found["marked"], (), len(conversation)), [], encoder)
    pieces = iter(encoder.encode_many(assembly.texts(found["values"])))
    return assembly.finish(found["values"], pieces)[0]


def generate(
    model,
    tokenizer,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int = 200,
    batch_size: int = 16,
    temperature: float = 0.0,
    seed: int = 0,
    on_reply: Callable[[Reply], None] = lambda reply: None,
) -> list[Reply]:
    """One reply per prompt (lists of token ids), in the order of the prompts.

    temperature 0 is greedy decoding; above it, sampling with that temperature from the full
    distribution, `seed` deciding. Prompts of similar length share a batch. The model's own
    generation settings (a repetition penalty, say) are left out: they would hide what it does.
    """
    import torch

    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, not {temperature}.")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {number} is empty: a model needs a token to continue from.")
    replies: list[Reply | None] = [None] * len(prompts)
    stops = stop_ids(tokenizer)
    if temperature:
        # Once, not per batch: the same prompt in two batches is to get two different replies.
        torch.manual_seed(seed)
    for indices in _by_length(prompts, batch_size):
        began = time.perf_counter()
        rows = _generate_batch(
            model, [prompts[i] for i in indices], stops, max_new_tokens, temperature
        )
        seconds = (time.perf_counter() - began) / len(indices)
        for index, row in zip(indices, rows, strict=True):
            stopped = bool(row) and row[-1] in stops
            text = tokenizer.decode(
                row[:-1] if stopped else row,
                skip_special_tokens=False,
                clean_up_tokenization_spaces=False,
            )
            replies[index] = Reply(text.strip(), row, stopped, seconds)
            on_reply(replies[index])
    return replies


def _by_length(prompts: Sequence[list[int]], batch_size: int) -> Iterator[list[int]]:
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _generate_batch(model, prompts, stops, max_new_tokens, temperature) -> list[list[int]]:
    import torch
    from transformers import GenerationConfig

    longest = max(map(len, prompts))
    # Padded on the left: every row's next token is then at the same place. What the padding holds
    # does not matter, the attention mask hides it.
    pad = stops[0] if stops else 0
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor(
        [[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device
    )
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}),
        eos_token_id=stops or None,
        pad_token_id=pad,
    )
    # What `settings` leaves open would be filled in from the model's own.
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with torch.inference_mode():
            output = model.generate(ids, attention_mask=mask, generation_config=settings)
    finally:
        model.generation_config = own
    return [_until_stop(row, stops) for row in output[:, longest:].tolist()]


def _until_stop(row: list[int], stops: list[int]) -> list[int]:
    """The row up to its first stop token, that token included."""
    ends = [position for position, number in enumerate(row) if number in stops]
    return row[: ends[0] + 1] if ends else row


def next_token_probabilities(model, ids: list[int]):
    """Probabilities of every token to come next after `ids`: a float32 tensor of shape (V,)."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids], device=model.device), logits_to_keep=1).logits
    return logits[0, -1].float().softmax(-1).cpu()
