"""The checks of lecture 06 accept right answers and refuse plausible wrong ones."""

import pytest

from course_utils import IGNORE_INDEX, MaskError
from course_utils.check import e06
from course_utils.check.core import CheckFailed, NotAttempted

pytest.importorskip("transformers")


# --- right ---------------------------------------------------------------------------------------


def double_bos(ids, bos):
    return bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos


def prompt_text(tokenizer, messages):
    if messages[-1]["role"] == "assistant":
        return tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def pad_batch(rows, pad, pad_label=IGNORE_INDEX, left=False, mask_by_id=False):
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in rows:
        fill = longest - len(row["input_ids"])
        pieces = {
            "input_ids": (row["input_ids"], pad),
            "attention_mask": ([1] * len(row["input_ids"]), 0),
            "labels": (row["labels"], pad_label),
        }
        for name, (values, filler) in pieces.items():
            padding = [filler] * fill
            batch[name].append(padding + values if left else values + padding)
        if mask_by_id:
            batch["attention_mask"][-1] = [int(n != pad) for n in batch["input_ids"][-1]]
    return batch


PARTS = ("{{- '<|im_start|>' + m.role + '\\n' -}}", "{{- m.content -}}", "{{- '<|im_end|>' -}}")
GAP, BEGIN, END = "{{- '\\n' -}}", "{%- generation -%}", "{%- endgeneration -%}"
HEADER, CONTENT, STOP = PARTS


def template(assistant, others=HEADER + CONTENT + STOP + GAP):
    return (
        "{%- for m in messages -%}{%- if m.role == 'assistant' -%}" + assistant + "{%- else -%}"
        "" + others + "{%- endif -%}{%- endfor -%}"
        "{{- '<|im_start|>assistant\\n' if add_generation_prompt -}}"
    )


def cut(ids, labels, length, eot):
    if len(ids) <= length:
        return ids, labels
    for end in range(length, 0, -1):
        if labels[end - 1] == eot:
            return ids[:end], labels[:end]
    raise MaskError("no reply fits")


def reply_mask(
    render, messages, eot, *, header=False, gap=False, stop=True, last=False, check=(1, 2)
):
    whole = render(messages)
    mask = [False] * len(whole)
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    for turn in turns[-1:] if last else turns:
        prompt = render(messages[:turn], add_generation_prompt=not header)
        until = render(messages[: turn + 1])
        if 1 in check and until[: len(prompt)] != prompt:
            raise MaskError("prompt")
        if 2 in check and whole[: len(until)] != until:
            raise MaskError("whole")
        end = len(until) if gap else whole.index(eot, len(prompt)) + stop
        for position in range(len(prompt), min(end, len(whole))):
            mask[position] = True
    return mask


RIGHT = [
    (e06.double_bos, double_bos),
    (e06.prompt_text, prompt_text),
    (e06.pad_batch, pad_batch),
    (e06.tagged_template, lambda: template(HEADER + BEGIN + CONTENT + STOP + END + GAP)),
    (e06.cut, cut),
    (e06.reply_mask, reply_mask),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_right_answers_pass(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.endswith("passed\n")


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_stubs_are_not_attempted(check, answer):
    def stub(*args):
        raise NotImplementedError

    with pytest.raises(NotAttempted):
        check(stub)


# --- wrong ---------------------------------------------------------------------------------------


def text_with(**flags):
    return lambda tokenizer, messages: tokenizer.apply_chat_template(
        messages, tokenize=False, **flags
    )


def in_place(rows, pad):
    longest = max(len(row["input_ids"]) for row in rows)
    attention = []
    for row in rows:
        fill = longest - len(row["input_ids"])
        attention.append([1] * len(row["input_ids"]) + [0] * fill)
        row["input_ids"] += [pad] * fill
        row["labels"] += [IGNORE_INDEX] * fill
    return {
        "input_ids": [row["input_ids"] for row in rows],
        "attention_mask": attention,
        "labels": [row["labels"] for row in rows],
    }


def stop_masked(rows, pad):
    batch = pad_batch(rows, pad)
    ids = batch["input_ids"]
    batch["labels"] = [
        [IGNORE_INDEX if n == pad else label for n, label in zip(*pair, strict=True)]
        for pair in zip(ids, batch["labels"], strict=True)
    ]
    return batch


def any_eot(ids, labels, length, eot):
    """Cuts behind any end of turn, a user's too."""
    if len(ids) <= length:
        return ids, labels
    end = max((i + 1 for i, n in enumerate(ids[:length]) if n == eot), default=0)
    if not end:
        raise MaskError("nothing fits")
    return ids[:end], labels[:end]


def without_stop(ids, labels, length, eot):
    kept = cut(ids, labels, length, eot)
    return kept if len(kept[0]) == len(ids) else (kept[0][:-1], kept[1][:-1])


def strictly_below(ids, labels, length, eot):
    return cut(ids, labels, length - 1, eot)


def empty_instead(ids, labels, length, eot):
    try:
        return cut(ids, labels, length, eot)
    except MaskError:
        return [], []


def mask_with(**changes):
    return lambda render, messages, eot: reply_mask(render, messages, eot, **changes)


def refuse_all(render, messages, eot):
    raise MaskError("better not")


HEADER_IN = template(BEGIN + HEADER + CONTENT + STOP + END + GAP)
STOP_OUT = template(HEADER + BEGIN + CONTENT + END + STOP + GAP)
GAP_IN = template(HEADER + BEGIN + CONTENT + STOP + GAP + END)
EVERYONE = template(
    HEADER + BEGIN + CONTENT + STOP + END + GAP, HEADER + BEGIN + CONTENT + STOP + END + GAP
)
OTHER_TEXT = template(HEADER + BEGIN + CONTENT + STOP + END)
NO_TAG = template(HEADER + CONTENT + STOP + GAP)
NOT_CLOSED = template(HEADER + BEGIN + CONTENT + STOP + GAP) + "{# endgeneration #}"
LAST_ONLY = template(
    HEADER
    + "{%- if loop.last -%}"
    + BEGIN
    + CONTENT
    + STOP
    + END
    + "{%- else -%}"
    + CONTENT
    + STOP
    + "{%- endif -%}"
    + GAP
)

WRONG = {
    "bos: anywhere": (e06.double_bos, lambda i, b: i.count(b) > 1, "beginning only"),
    "bos: any two equal": (
        e06.double_bos,
        lambda i, b: len(i) > 1 and i[0] == i[1],
        "not the sequence start",
    ),
    "bos: one is enough": (e06.double_bos, lambda i, b: i[:1] == [b], "as it should be"),
    "bos: never": (e06.double_bos, lambda i, b: False, "are the bug"),
    "bos: short lists": (e06.double_bos, lambda i, b: i[0] == b and i[1] == b, "IndexError"),
    "prompt: forgotten": (e06.prompt_text, text_with(), "opens the reply"),
    "prompt: always opened": (
        e06.prompt_text,
        text_with(add_generation_prompt=True),
        "without EOT",
    ),
    "prompt: always continued": (
        e06.prompt_text,
        text_with(continue_final_message=True),
        "opens the reply",
    ),
    "prompt: ids": (
        e06.prompt_text,
        lambda t, m: t.apply_chat_template(m, return_dict=False, add_generation_prompt=True),
        "a list, not a str",
    ),
    "batch: labels padded with the id": (
        e06.pad_batch,
        lambda rows, pad: pad_batch(rows, pad, pad_label=pad),
        "key 'labels'",
    ),
    "batch: left": (
        e06.pad_batch,
        lambda rows, pad: pad_batch(rows, pad, left=True),
        "key 'input_ids'",
    ),
    "batch: attention from ids": (
        e06.pad_batch,
        lambda rows, pad: pad_batch(rows, pad, mask_by_id=True),
        "key 'attention_mask'",
    ),
    "batch: end of turn masked": (e06.pad_batch, stop_masked, "stays graded"),
    "batch: rows changed": (e06.pad_batch, in_place, "changed its rows"),
    "tag: header graded": (e06.tagged_template, lambda: HEADER_IN, "no header"),
    "tag: end of turn masked": (e06.tagged_template, lambda: STOP_OUT, "with its end of turn"),
    "tag: line break graded": (e06.tagged_template, lambda: GAP_IN, "no line break after"),
    "tag: users graded": (e06.tagged_template, lambda: EVERYONE, "graded are the replies"),
    "tag: last turn only": (e06.tagged_template, lambda: LAST_ONLY, "graded are the replies"),
    "tag: text changed": (e06.tagged_template, lambda: OTHER_TEXT, "must not change the text"),
    "tag: none": (e06.tagged_template, lambda: NO_TAG, "has no {% generation %}"),
    "tag: not closed": (e06.tagged_template, lambda: NOT_CLOSED, "is every tag closed"),
    "tag: nothing returned": (e06.tagged_template, lambda: None, "is a return missing"),
    "cut: naive": (e06.cut, lambda i, b, n, e: (i[:n], b[:n]), "dropped whole"),
    "cut: behind a user": (e06.cut, any_eot, "the question before it too"),
    "cut: end of turn lost": (e06.cut, without_stop, "dropped whole"),
    "cut: off by one": (e06.cut, strictly_below, "exactly"),
    "cut: empty": (e06.cut, empty_instead, "raise MaskError instead"),
    "mask: header graded": (e06.reply_mask, mask_with(header=True), "header is sent"),
    "mask: end of turn masked": (
        e06.reply_mask,
        mask_with(stop=False),
        "teaches the model to stop",
    ),
    "mask: gap graded": (e06.reply_mask, mask_with(gap=True), "never writes what is behind"),
    "mask: last turn only": (e06.reply_mask, mask_with(last=True), "grade every reply"),
    "mask: unchecked": (e06.reply_mask, mask_with(check=()), "rewrites its first reply"),
    "mask: prompt unchecked": (e06.reply_mask, mask_with(check=(2,)), "another prompt"),
    "mask: whole unchecked": (e06.reply_mask, mask_with(check=(1,)), "rewrites its first reply"),
    "mask: refuses all": (e06.reply_mask, refuse_all, "MaskError"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_refused_with_a_reason(name):
    check, answer, words = WRONG[name]
    with pytest.raises(CheckFailed) as caught:
        check(answer)
    message = str(caught.value)
    assert words in message, message
    assert "\n" not in message and not isinstance(caught.value, NotAttempted)
