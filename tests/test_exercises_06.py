"""The checks of lecture 06 accept right answers and refuse plausible wrong ones."""

import doctest
import re
from itertools import groupby

import pytest
from exercise_cells import solved, stubs

from course_utils import IGNORE_INDEX, MaskError
from course_utils.check import e06
from course_utils.check.core import CheckFailed, NotAttempted
from tools.build import ROOT

pytest.importorskip("transformers")


# --- right ---------------------------------------------------------------------------------------


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


HEADER, OPEN = "{{- '<|im_start|>' + m.role + '\\n' -}}", "{{- '<think>\\n' -}}"
THOUGHT, CLOSE = "{{- m.reasoning_content -}}", "{{- '\\n</think>\\n\\n' -}}"
CONTENT, STOP, GAP = "{{- m.content -}}", "{{- '<|im_end|>' -}}", "{{- '\\n' -}}"
BEGIN, END = "{%- generation -%}", "{%- endgeneration -%}"
WRITTEN = THOUGHT + CLOSE + CONTENT


def template(assistant, others=HEADER + CONTENT + STOP + GAP):
    return (
        "{%- for m in messages -%}{%- if m.role == 'assistant' -%}" + assistant + "{%- else -%}"
        "" + others + "{%- endif -%}{%- endfor -%}"
        "{{- '<|im_start|>assistant\\n<think>\\n' if add_generation_prompt -}}"
    )


def cut(ids, labels, length, eot):
    if len(ids) <= length:
        return ids, labels
    for end in range(length, 0, -1):
        if labels[end - 1] == eot:
            return ids[:end], labels[:end]
    raise MaskError("no reply fits")


def reply_mask(
    render,
    messages,
    eot,
    *,
    header=False,
    gap=False,
    stop=True,
    last=False,
    check=(1, 2),
    all_of_it=False,
):
    whole = render(messages)
    mask = [False] * len(whole)
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    for turn in turns[-1:] if last else turns:
        prompt = render(messages[:turn], add_generation_prompt=not header)
        until = render(messages[: turn + 1])
        if 1 in check and until[: len(prompt)] != prompt:
            raise MaskError("prompt")
        end = until.index(eot, len(prompt)) + 1
        compared = len(until) if all_of_it else end
        if 2 in check and whole[:compared] != until[:compared]:
            raise MaskError("whole")
        end = len(until) if gap else end if stop else end - 1
        for position in range(len(prompt), min(end, len(whole))):
            mask[position] = True
    return mask


def draft_3(render, messages, eot, special=re.compile("<.*>").fullmatch):
    """As in the lecture: a turn ends with the last special token of its prefix."""
    whole, graded = render(messages), set()
    for turn in [turn for turn, m in enumerate(messages) if m["role"] == "assistant"]:
        prompt = render(messages[:turn], add_generation_prompt=True)
        until = render(messages[: turn + 1])
        while not special(until[-1]):
            until.pop()
        for shorter, longer in ((prompt, until), (until, whole)):
            if longer[: len(shorter)] != shorter:
                raise MaskError(f"turn {turn}: what came before it has changed")
        graded.update(range(len(prompt), len(until)))
    return [position in graded for position in range(len(whole))]


def find_texts(
    render,
    messages,
    *,
    compare="text",
    order="messages",
    twice=True,
    missing="raise",
    in_marked=False,
):
    """A right answer; every option breaks one part of it."""
    marked = render([{**m, "content": chr(0xF0000 + k)} for k, m in enumerate(messages)])
    pieces = re.split("([\U000f0000-\U000ffffd])", marked)
    places, text, found = {}, "", []
    for piece, mark in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
        text += piece
        if mark:
            k = ord(mark) - 0xF0000
            if twice and k in places:
                raise MaskError("twice")
            start = marked.index(mark) if in_marked else len(text)
            width = 1 if in_marked else len(messages[k]["content"])
            places.setdefault(k, (start, start + width))
            found.append(places[k])
            text += messages[k]["content"]
    if missing == "raise" and len(places) < len(messages):
        raise MaskError("missing")
    plain = render(messages)
    if compare == "text" and text != plain or compare == "length" and len(text) != len(plain):
        raise MaskError("looked at")
    if order == "text":
        return found
    return [places.get(k, (-1, -1)) for k in range(len(messages))]


def texts_between_marks(render, messages):
    """Two marks around each text, so that the template has the text itself in its hands."""
    marks = [(chr(0xF0000 + 2 * k), chr(0xF0001 + 2 * k)) for k in range(len(messages))]
    pairs = zip(messages, marks, strict=True)
    marked = render([m | {"content": a + m["content"] + b} for m, (a, b) in pairs])
    text = "".join(c for c in marked if ord(c) < 0xF0000)
    if text != render(messages):
        raise MaskError("looked at")
    places = []
    for message, (before, behind) in zip(messages, marks, strict=True):
        if marked.count(before) != 1 or marked.count(behind) != 1:
            raise MaskError("not once")
        start, end = (
            sum(ord(c) < 0xF0000 for c in marked[: marked.index(mark)]) for mark in (before, behind)
        )
        if text[start:end] != message["content"]:
            raise MaskError("changed")
        places.append([start, end])
    return places


def use_plan(
    plan,
    texts,
    *,
    same=lambda got, answer: got == answer,
    asked=slice(None),
    about=lambda k: k,
    holes_first=False,
    from_hole=lambda k, number: k,
    length=lambda text, filled: len(filled),
    take=True,
    once=False,
    last_edge=0,
    order="text",
    other=None,
):
    """A right answer; every option breaks one part of it."""

    def answers_agree():
        questions = plan.questions[asked]
        return all(same(question(texts[about(k)]), answer) for k, question, answer in questions)

    if not holes_first and not answers_agree():
        return other
    written, places, number = [], [], 0
    for piece in plan.pieces:
        if isinstance(piece, tuple):
            k = from_hole(piece[0], number)
            filled = piece[1](texts[k]) if take else texts[k]
            start, number = sum(map(len, written)), number + 1
            if not once or k not in [place[0] for place in places]:
                places.append((k, start, start + length(texts[k], filled) - last_edge))
            piece = filled
        written.append(piece)
    if holes_first and not answers_agree():
        return other
    return "".join(written), places if order == "text" else sorted(places)


def plan_of_lists(plan, texts):
    """The answers as one list; pieces cut at the holes; lists instead of tuples."""
    if [q(texts[k]) for k, q, _ in plan.questions] != [answer for *_, answer in plan.questions]:
        return None
    filled = [p if type(p) is str else p[1](texts[p[0]]) for p in plan.pieces]
    edges = [sum(map(len, filled[:number])) for number in range(len(filled) + 1)]
    pieces = zip(plan.pieces, edges, edges[1:], strict=False)
    return ["".join(filled), [[p[0], a, b] for p, a, b in pieces if type(p) is not str]]


def check_served(
    serve,
    messages,
    ids,
    labels,
    *,
    differ=lambda prompt, served: prompt != served,
    graded=lambda label: label != IGNORE_INDEX,
    replies=slice(None),
    counted=True,
    ordinal=False,
    count=len,
):
    """A right answer; every option breaks one part of it."""
    starts, place = [], 0
    for key, run in groupby(labels, graded):
        starts += [place] * key
        place += len(list(run))
    turns = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    if counted and len(starts) != len(turns):
        raise MaskError("count")
    for order, (start, k) in list(enumerate(zip(starts, turns, strict=False)))[replies]:
        if differ(ids[:start], serve(messages, order if ordinal else k)):
            raise MaskError(f"message {k}")
    return count(turns)


def served_backwards(serve, messages, ids, labels):
    """From the last reply to the first, by a walk over neighbours."""
    ends = zip([IGNORE_INDEX, *labels], labels, strict=False)
    starts = [i for i, (a, b) in enumerate(ends) if a == IGNORE_INDEX != b]
    count = 0
    for k in reversed(range(len(messages))):
        if messages[k]["role"] == "assistant":
            if not starts or ids[: starts.pop()] != serve(messages, k):
                raise MaskError(f"message {k}")
            count += 1
    if starts:
        raise MaskError("graded outside the replies")
    return count


def encode_pieces(pieces, tokenizer, *, split=lambda typed, graded: typed, label=None, change=None):
    """A right answer; every option breaks one part of it."""
    label = label or (lambda one, typed, graded: one if graded else IGNORE_INDEX)
    ids, labels = [], []
    for text, typed, graded in pieces:
        text = change(text) if change and typed else text
        found = tokenizer.encode(text, split_special_tokens=split(typed, graded))
        ids += found
        labels += [label(one, typed, graded) for one in found]
    return ids, labels


def pieces_by_character(pieces, tokenizer):
    """Typed text character by character: no character of it is a marker."""
    ids, graded_ones = [], []
    for text, typed, graded in pieces:
        for part in text if typed else [text]:
            found = tokenizer.encode(part)
            ids.extend(found)
            graded_ones.extend([graded] * len(found))
    return [ids, [one if g else IGNORE_INDEX for one, g in zip(ids, graded_ones, strict=True)]]


def joined_typed(pieces, tokenizer):
    """Neighbours that were typed, or not, and are graded alike, are encoded at once."""
    merged = [
        ("".join(text for text, _, _ in group), *key)
        for key, group in groupby(pieces, lambda piece: piece[1:])
    ]
    return encode_pieces(merged, tokenizer)


def pack_row(
    samples,
    length,
    pad,
    *,
    positions="restart",
    seam=0,
    pad_label=IGNORE_INDEX,
    may=lambda i, j, owner, used, ids: owner[i] == owner[j] and j <= i,
    fit="raise",
    copy=True,
):
    """A right answer; every option breaks one part of it."""
    ids, places, labels, owner = [], [], [], []
    for number, sample in enumerate(samples):
        kept = list(sample["labels"]) if copy else sample["labels"]
        if seam is not None:
            kept[seam] = IGNORE_INDEX
        places += range(len(kept))
        owner += [number] * len(kept)
        ids, labels = ids + sample["input_ids"], labels + kept
    used = len(ids)
    if used > length and fit == "raise":
        raise MaskError("too long")
    rest = length - used
    ids, labels = ids + [pad] * rest, labels + [pad_label] * rest
    places, owner = places + list(range(rest)), owner + [-1] * rest
    if fit == "cut":
        ids, labels, places, owner = (part[:length] for part in (ids, labels, places, owner))
    if positions == "run on":
        places = list(range(length))
    elif positions == "padding 0":
        places[used:] = [0] * rest
    attend = [[bool(may(i, j, owner, used, ids)) for j in range(length)] for i in range(length)]
    return {"input_ids": ids, "position_ids": places, "labels": labels, "attend": attend}


def pack_in_blocks(samples, length, pad):
    """A block of the matrix for each sample; tensors instead of lists."""
    import torch

    total = sum(len(sample["input_ids"]) for sample in samples)
    if total > length:
        raise MaskError(f"{total} tokens in {length}")
    blank = {"input_ids": [pad] * (length - total), "labels": [-100] * (length - total)}
    parts = [part for part in [*samples, blank] if part["input_ids"]]
    sizes = [len(part["input_ids"]) for part in parts]
    return {
        "input_ids": torch.tensor([one for part in parts for one in part["input_ids"]]),
        "position_ids": torch.cat([torch.arange(size) for size in sizes]),
        "labels": torch.tensor([x for part in parts for x in [-100, *part["labels"][1:]]]),
        "attend": torch.block_diag(*(torch.ones(size, size).tril() for size in sizes)).bool(),
    }


def pack_by_positions(samples, length, pad):
    """Who attends to whom from the positions: back to the last 0, as zeros and ones."""
    row = pack_row(samples, length, pad)
    starts = [i - place for i, place in enumerate(row["position_ids"])]
    row["attend"] = [[int(starts[i] <= j <= i) for j in range(length)] for i in range(length)]
    return row


PART_BY_PART = "".join(BEGIN + part + END for part in (THOUGHT, CLOSE, CONTENT, STOP))
SOLVED, STUBS = solved("06_masking_in_production"), stubs("06_masking_in_production")
# In the order of the exercises.
NAMES = [
    "prompt_text",
    "pad_batch",
    "tagged_template",
    "cut",
    "reply_mask",
    "find_texts",
    "use_plan",
    "check_served",
    "encode_pieces",
    "pack_row",
]

RIGHT = [
    (e06.prompt_text, prompt_text),
    (e06.pad_batch, pad_batch),
    (e06.pad_batch, lambda rows, pad: tensors(pad_batch(rows, pad))),
    (e06.tagged_template, lambda: template(HEADER + OPEN + BEGIN + WRITTEN + STOP + END + GAP)),
    (e06.tagged_template, lambda: template(HEADER + OPEN + PART_BY_PART + GAP)),
    (e06.cut, cut),
    (e06.cut, lambda *arguments: list(cut(*arguments))),
    (e06.reply_mask, reply_mask),
    (e06.find_texts, find_texts),
    (e06.find_texts, texts_between_marks),
    (e06.use_plan, use_plan),
    (e06.use_plan, plan_of_lists),
    (e06.check_served, check_served),
    (e06.check_served, served_backwards),
    (e06.encode_pieces, encode_pieces),
    (e06.encode_pieces, pieces_by_character),
    (e06.encode_pieces, joined_typed),
    (e06.pack_row, pack_row),
    (e06.pack_row, pack_in_blocks),
    (e06.pack_row, pack_by_positions),
]


def tensors(batch):
    import torch

    return {name: torch.tensor(rows) for name, rows in batch.items()}


def test_every_check_is_listed():
    assert sorted(NAMES) == e06.__all__


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_right_answers_pass(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.endswith("passed\n")


@pytest.mark.parametrize("name", NAMES)
def test_solution_passes_and_stub_is_not_attempted(name, capsys):
    getattr(e06, name)(SOLVED[name])
    assert capsys.readouterr().out == f"Exercise 6.{NAMES.index(name) + 1} passed\n"
    with pytest.raises(NotAttempted):
        getattr(e06, name)(STUBS[name])


@pytest.mark.parametrize("name", [name for name in NAMES if ">>>" in (SOLVED[name].__doc__ or "")])
def test_the_examples_in_the_docstrings_are_right(name):
    examples = dict(SOLVED, tokenizer=e06.toy("chatml"))
    if name == "reply_mask":
        examples["messages"] = e06.TWO_REPLIES[:2]
    found = doctest.DocTestFinder(recurse=False).find(SOLVED[name], name, globs=examples)
    results = [doctest.DocTestRunner().run(test) for test in found]
    assert sum(r.attempted for r in results) and not sum(r.failed for r in results)


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


def cut_always(ids, labels, length, eot):
    """Looks for a reply to end with even where everything fits."""
    ends = [end for end in range(1, len(ids) + 1) if labels[end - 1] == eot and end <= length]
    if not ends:
        raise MaskError("no reply fits")
    return ids[: ends[-1]], labels[: ends[-1]]


def empty_instead(ids, labels, length, eot):
    try:
        return cut(ids, labels, length, eot)
    except MaskError:
        return [], []


def mask_with(**changes):
    return lambda render, messages, eot: reply_mask(render, messages, eot, **changes)


def refuse_all(*arguments):
    raise MaskError("better not")


# --- 6.6


def first_found(render, messages):
    text = render(messages)
    starts = [text.find(message["content"]) for message in messages]
    return [(s, s + len(m["content"])) for s, m in zip(starts, messages, strict=True)]


def next_found(render, messages):
    text, places, cursor = render(messages), [], 0
    for message in messages:
        start = text.find(message["content"], cursor)
        if start < 0:
            raise MaskError("not there")
        cursor = start + len(message["content"])
        places.append((start, cursor))
    return places


def one_mark(render, messages):
    """The same mark for every text; the k-th is taken for the k-th message's."""
    pieces = render([{**m, "content": "\U000f0000"} for m in messages]).split("\U000f0000")
    if len(pieces) != len(messages) + 1:
        raise MaskError("not once")
    text, places = pieces[0], []
    for message, piece in zip(messages, pieces[1:], strict=True):
        places.append((len(text), len(text) + len(message["content"])))
        text += message["content"] + piece
    if text != render(messages):
        raise MaskError("looked at")
    return places


def marks_that_hold_others(render, messages):
    marked = render([{**m, "content": f"@{k}"} for k, m in enumerate(messages)])
    places = []
    for k, message in enumerate(messages):
        start = marked.index(f"@{k}")
        marked = marked.replace(f"@{k}", message["content"])
        places.append((start, start + len(message["content"])))
    if marked != render(messages):
        raise MaskError("looked at")
    return places


def marked_in_place(render, messages):
    contents = [message["content"] for message in messages]
    places = find_texts(render, messages)
    for message, content in zip(messages, contents, strict=True):
        message["content"] = "x" + content
    return places


def one_render_each(render, messages):
    for _ in messages:
        render(messages)
    return find_texts(render, messages)


def another_error(function):
    def raising(*arguments):
        try:
            return function(*arguments)
        except MaskError as error:
            raise ValueError(str(error)) from None

    return raising


# --- 6.7 to 6.10


def filled_by_marks(plan, texts):
    """Joins the pieces with marks and puts the texts in one after the other."""
    right = use_plan(plan, texts)
    if right is None:
        return None
    text, holes = "", []
    for piece in plan.pieces:
        if not isinstance(piece, str):
            holes.append(piece)
            piece = chr(0xF0000 + piece[0])
        text += piece
    for k, step in holes:
        text = text.replace(chr(0xF0000 + k), step(texts[k]), 1)
    return text, right[1]


def filled_by_format(plan, texts):
    right = use_plan(plan, texts)
    if right is None:
        return None
    whole = "".join(piece if isinstance(piece, str) else "{}" for piece in plan.pieces)
    return whole.format(*(step(texts[k]) for k, step in filter(holes, plan.pieces))), right[1]


def searched_places(plan, texts):
    """Looks for what fills a hole from the beginning of the text."""
    right = use_plan(plan, texts)
    if right is None:
        return None
    filled = [(k, step(texts[k])) for k, step in filter(holes, plan.pieces)]
    found = [(k, right[0].index(part), part) for k, part in filled]
    return right[0], [(k, start, start + len(part)) for k, start, part in found]


def holes(piece):
    return isinstance(piece, tuple)


def without_questions(plan, texts):
    return use_plan(plan, texts) if plan.questions else None


def steps_in_place(plan, texts):
    right = use_plan(plan, texts)
    for number, piece in enumerate(plan.pieces):
        if holes(piece):
            plan.pieces[number] = piece[1](texts[piece[0]])
    return right


def raising_instead(plan, texts):
    right = use_plan(plan, texts)
    if right is None:
        raise MaskError("an answer differs")
    return right


def plan_with(**options):
    return with_options(use_plan, **options)


def with_options(function, **options):
    return lambda *arguments: function(*arguments, **options)


def served_with(**options):
    return with_options(check_served, **options)


def pieces_with(**options):
    return with_options(encode_pieces, **options)


def row_with(**options):
    return with_options(pack_row, **options)


def ids_of_the_whole(pieces, tokenizer):
    _, labels = encode_pieces(pieces, tokenizer)
    return tokenizer.encode("".join(text for text, _, _ in pieces)), labels


def typed_together(pieces, tokenizer):
    """Markers in what was typed are cut, but the rest is joined before it is encoded."""
    text = "".join(re.sub("<(?=[a-z]+>)", "<\x7f", t) if typed else t for t, typed, _ in pieces)
    _, labels = encode_pieces(pieces, tokenizer)
    return [n for n in tokenizer.encode(text) if n != 0x7F], labels


def special(one):
    return one in e06.Toy.specials.values()


def split_at_ends(i, j, owner, used, ids):
    ends = [place for place in range(used) if ids[place] == e06.EOT]
    return j <= i and sum(e < i for e in ends) == sum(e < j for e in ends)


def first_label_kept(samples, length, pad):
    """Masks the seams between samples, but not the start of the row."""
    row = pack_row(samples, length, pad)
    row["labels"][0] = samples[0]["labels"][0]
    return row


def shifted(ids, labels):
    return ids, [*labels[1:], IGNORE_INDEX] if labels else labels


def unless_refused(function, arguments, instead):
    try:
        return function(*arguments)
    except MaskError:
        return instead


RIGHT_TURN = HEADER + OPEN + BEGIN + WRITTEN + STOP + END + GAP
HEADER_IN = template(BEGIN + HEADER + OPEN + WRITTEN + STOP + END + GAP)
OPEN_IN = template(HEADER + BEGIN + OPEN + WRITTEN + STOP + END + GAP)
BREAK_IN = template(
    HEADER + "{{- '<think>' -}}" + BEGIN + "{{- '\\n' -}}" + WRITTEN + STOP + END + GAP
)
CLOSE_OUT = template(
    HEADER + OPEN + BEGIN + THOUGHT + END + CLOSE + BEGIN + CONTENT + STOP + END + GAP
)
CONTENT_ALONE = template(HEADER + OPEN + THOUGHT + CLOSE + BEGIN + CONTENT + STOP + END + GAP)
THOUGHT_OUT = template(HEADER + OPEN + THOUGHT + BEGIN + CLOSE + CONTENT + STOP + END + GAP)
THOUGHT_ALONE = template(HEADER + OPEN + BEGIN + THOUGHT + CLOSE + END + CONTENT + STOP + GAP)
STOP_OUT = template(HEADER + OPEN + BEGIN + WRITTEN + END + STOP + GAP)
GAP_IN = template(HEADER + OPEN + BEGIN + WRITTEN + STOP + GAP + END)
EVERYONE = template(RIGHT_TURN, HEADER + BEGIN + CONTENT + STOP + END + GAP)
SYSTEM_TOO = template(
    RIGHT_TURN,
    "{%- if m.role == 'user' -%}"
    + (HEADER + CONTENT + STOP + GAP)
    + "{%- else -%}"
    + (HEADER + BEGIN + CONTENT + STOP + END + GAP)
    + "{%- endif -%}",
)
TRIMMED = template(RIGHT_TURN.replace(CONTENT, "{{- m.content | trim -}}"))
OTHER_TEXT = template(RIGHT_TURN.removesuffix(GAP))
NO_THOUGHT = template(RIGHT_TURN.replace(THOUGHT + CLOSE, "{{- '</think>\\n\\n' -}}"))
NO_TAG = template(RIGHT_TURN.replace(BEGIN, "").replace(END, ""))
NOT_CLOSED = template(RIGHT_TURN.replace(END, "")) + "{# endgeneration #}"
FOR_ALL = template(RIGHT_TURN, RIGHT_TURN)
LAST_ONLY = template(
    HEADER
    + OPEN
    + "{%- if loop.last -%}"
    + (BEGIN + WRITTEN + STOP + END)
    + "{%- else -%}"
    + (WRITTEN + STOP)
    + "{%- endif -%}"
    + GAP
)

WRONG = {
    "prompt: all but users are continued": (
        e06.prompt_text,
        lambda t, m: t.apply_chat_template(
            m,
            tokenize=False,
            add_generation_prompt=m[-1]["role"] == "user",
            continue_final_message=m[-1]["role"] != "user",
        ),
        "only the assistant's message",
    ),
    "batch: as long as the last": (
        e06.pad_batch,
        lambda rows, pad: {
            name: [row[: len(rows[-1]["labels"])] for row in values]
            for name, values in pad_batch(rows, pad).items()
        },
        "the longest row may be any",
    ),
    "tag: system graded": (e06.tagged_template, lambda: SYSTEM_TOO, "graded are the replies"),
    "tag: trimmed": (e06.tagged_template, lambda: TRIMMED, "trims no text"),
    "cut: what fits": (
        e06.cut,
        cut_always,
        "whatever it ends with",
    ),
    "mask: roles by place": (
        e06.reply_mask,
        lambda render, messages, eot: reply_mask(
            render,
            [{**m, "role": ("user", "assistant")[k % 2]} for k, m in enumerate(messages)],
            eot,
        ),
        "one boolean|not written|grade every|rewrites nothing|is part of a reply",
    ),
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
    "tag: header graded": (e06.tagged_template, lambda: HEADER_IN, "the server sends header"),
    "tag: <think> graded": (e06.tagged_template, lambda: OPEN_IN, "<think> and line break"),
    "tag: its line break graded": (e06.tagged_template, lambda: BREAK_IN, "and line break"),
    "tag: </think> masked": (e06.tagged_template, lambda: CLOSE_OUT, "ends its reasoning itself"),
    "tag: content alone": (e06.tagged_template, lambda: CONTENT_ALONE, "ends its reasoning itself"),
    "tag: reasoning masked": (e06.tagged_template, lambda: THOUGHT_OUT, "writes the reasoning"),
    "tag: reasoning alone": (e06.tagged_template, lambda: THOUGHT_ALONE, "with its end of turn"),
    "tag: reasoning left out": (e06.tagged_template, lambda: NO_THOUGHT, "not change the text"),
    "tag: reasoning of everybody": (
        e06.tagged_template,
        lambda: FOR_ALL,
        "in the assistant's turns only",
    ),
    "tag: reasoning of everybody, added": (
        e06.tagged_template,
        lambda: FOR_ALL.replace(" -}}{{- m.content -}}", " + m.content -}}").replace(
            "m.reasoning_content -}}", "'' + m.reasoning_content -}}"
        ),
        "only the assistant's messages have",
    ),
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
    "cut: end of turn lost": (e06.cut, without_stop, "the end of turn belongs"),
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
    "mask: draft 3": (e06.reply_mask, draft_3, "as in draft 3"),
    "mask: last end of turn": (
        e06.reply_mask,
        lambda *arguments: draft_3(*arguments, special="<end>".__eq__),
        "the first end of turn",
    ),
    "mask: all of the turn compared": (
        e06.reply_mask,
        mask_with(all_of_it=True),
        "compare up to the end of turn",
    ),
    "mask: refuses all": (e06.reply_mask, refuse_all, "MaskError"),
    "texts: first found": (e06.find_texts, first_found, "find marks"),
    "texts: next found": (e06.find_texts, next_found, "find marks"),
    "texts: not compared": (
        e06.find_texts,
        with_options(find_texts, compare=None),
        "trims blanks",
    ),
    "texts: lengths compared": (
        e06.find_texts,
        with_options(find_texts, compare="length"),
        "compare with the plain text",
    ),
    "texts: not counted": (e06.find_texts, with_options(find_texts, twice=False), "which of the"),
    "texts: missing one is -1": (
        e06.find_texts,
        with_options(find_texts, missing=None, compare=None),
        "raise MaskError",
    ),
    "texts: places of the marks": (
        e06.find_texts,
        with_options(find_texts, in_marked=True),
        "the places of the marks",
    ),
    "texts: in the order of the text": (
        e06.find_texts,
        with_options(find_texts, order="text"),
        "writes the system text last",
    ),
    "texts: one mark": (e06.find_texts, one_mark, "one mark for each text"),
    "texts: marks in marks": (e06.find_texts, marks_that_hold_others, "in no other"),
    "texts: messages changed": (e06.find_texts, marked_in_place, "changed the messages"),
    "texts: a render for each": (e06.find_texts, one_render_each, "is enough"),
    "texts: end included": (
        e06.find_texts,
        lambda *arguments: [(start, end - 1) for start, end in find_texts(*arguments)],
        "half-open",
    ),
    "texts: starts only": (
        e06.find_texts,
        lambda *arguments: [start for start, _ in find_texts(*arguments)],
        "one (start, end) for each",
    ),
    "texts: ValueError": (e06.find_texts, another_error(find_texts), "raised ValueError"),
    "texts: refuses all": (e06.find_texts, refuse_all, "count as you go"),
    "texts: nothing returned": (e06.find_texts, lambda *arguments: None, "is a return missing"),
    "plan: never asked": (e06.use_plan, plan_with(asked=slice(0)), "must run again"),
    "plan: first question alone": (
        e06.use_plan,
        plan_with(asked=slice(1)),
        "compare answers with ==|the second answer",
    ),
    "plan: last question alone": (
        e06.use_plan,
        plan_with(asked=slice(-1, None)),
        "the first answer differs",
    ),
    "plan: answers as truth": (
        e06.use_plan,
        plan_with(same=lambda got, answer: bool(got) == bool(answer)),
        "both true",
    ),
    "plan: an answer is a yes": (
        e06.use_plan,
        plan_with(same=lambda got, answer: got),
        "was False: the answers are the same",
    ),
    "plan: an answer is a no": (
        e06.use_plan,
        plan_with(same=lambda got, answer: not got),
        "True and 2, as in the plan",
    ),
    "plan: is": (
        e06.use_plan,
        plan_with(same=lambda got, answer: got is answer),
        "compare answers with ==",
    ),
    "plan: the first text asked": (e06.use_plan, plan_with(about=lambda k: 0), "about texts[k]"),
    "plan: all texts asked": (
        e06.use_plan,
        lambda plan, texts: (
            use_plan(plan, texts)
            if all(q(text) == a for _, q, a in plan.questions for text in texts)
            else None
        ),
        "about texts[k]",
    ),
    "plan: only texts with holes asked": (
        e06.use_plan,
        lambda plan, texts: use_plan(
            e06.Plan(
                [q for q in plan.questions if q[0] in {p[0] for p in plan.pieces if holes(p)}],
                plan.pieces,
            ),
            texts,
        ),
        "without a hole count as well",
    ),
    "plan: filled before it asks": (
        e06.use_plan,
        plan_with(holes_first=True),
        "ask all questions before",
    ),
    "plan: without questions": (e06.use_plan, without_questions, "a plan without questions"),
    "plan: refuses all": (e06.use_plan, lambda plan, texts: None, "a plan without questions"),
    "plan: holes counted": (
        e06.use_plan,
        plan_with(from_hole=lambda k, number: min(number, 1)),
        "a text with two holes",
    ),
    "plan: steps not taken": (e06.use_plan, plan_with(take=False), "take the step"),
    "plan: length before the step": (
        e06.use_plan,
        plan_with(length=lambda text, filled: len(text)),
        "take the step",
    ),
    "plan: one place for each text": (e06.use_plan, plan_with(once=True), "so two places"),
    "plan: ends included": (e06.use_plan, plan_with(last_edge=1), "half-open"),
    "plan: places sorted": (e06.use_plan, plan_with(order="texts"), "in the order of the text"),
    "plan: marks replaced": (e06.use_plan, filled_by_marks, "may look like a hole"),
    "plan: format": (e06.use_plan, filled_by_format, "braces itself"),
    "plan: places searched": (e06.use_plan, searched_places, "Hint: "),
    "plan: False": (e06.use_plan, plan_with(other=False), "return None"),
    "plan: MaskError": (e06.use_plan, raising_instead, "return None"),
    "plan: text alone": (
        e06.use_plan,
        lambda plan, texts: (use_plan(plan, texts) or [None])[0],
        "two things",
    ),
    "plan: spans without k": (
        e06.use_plan,
        lambda plan, texts: (
            (got := use_plan(plan, texts)) and (got[0], [(a, b) for _, a, b in got[1]])
        ),
        "(k, start, end)",
    ),
    "plan: changed": (e06.use_plan, steps_in_place, "changed its plan"),
    "served: texts": (
        e06.check_served,
        served_with(differ=lambda a, b: e06.text_of(a) != e06.text_of(b)),
        "compare ids",
    ),
    "served: lengths": (
        e06.check_served,
        served_with(differ=lambda a, b: len(a) != len(b)),
        "equal lengths are not equal ids",
    ),
    "served: the last ids": (
        e06.check_served,
        served_with(differ=lambda a, b: a[-3:] != b[-3:]),
        "Hint: ",
    ),
    "served: the tail": (
        e06.check_served,
        served_with(differ=lambda a, b: a[-len(b) :] != b),
        "from its first id on",
    ),
    "served: as far as both go": (
        e06.check_served,
        served_with(differ=lambda a, b: any(x != y for x, y in zip(a, b, strict=False))),
        "may be longer",
    ),
    "served: begins with the sample's": (
        e06.check_served,
        served_with(differ=lambda a, b: b[: len(a)] != a),
        "may be longer",
    ),
    "served: sample begins with it": (
        e06.check_served,
        served_with(differ=lambda a, b: a[: len(b)] != b),
        "must begin where the prompt ends",
    ),
    "served: last reply": (e06.check_served, served_with(replies=slice(-1, None)), "the last one"),
    "served: first reply": (e06.check_served, served_with(replies=slice(1)), "the first one alone"),
    "served: runs not counted": (e06.check_served, served_with(counted=False), "graded run"),
    "served: 0 is not graded": (
        e06.check_served,
        served_with(graded=lambda label: label > 0),
        "0 is an id",
    ),
    "served: k counts replies": (e06.check_served, served_with(ordinal=True), "all messages"),
    "served: nothing returned": (
        e06.check_served,
        served_with(count=lambda turns: None),
        "is a return missing",
    ),
    "served: messages counted": (
        e06.check_served,
        served_with(count=lambda turns: turns[-1] + 1),
        "number of replies",
    ),
    "served: true": (
        e06.check_served,
        served_with(count=lambda turns: True),
        "the loop must not end",
    ),
    "served: false instead": (
        e06.check_served,
        lambda *arguments: unless_refused(check_served, arguments, 0),
        "raise MaskError instead",
    ),
    "served: ValueError": (e06.check_served, another_error(check_served), "raised ValueError"),
    "served: refuses all": (e06.check_served, refuse_all, "raised MaskError"),
    "pieces: the whole": (e06.encode_pieces, ids_of_the_whole, "ids of their characters"),
    "pieces: never split": (
        e06.encode_pieces,
        pieces_with(split=lambda typed, graded: False),
        "ids of their characters",
    ),
    "pieces: always split": (
        e06.encode_pieces,
        pieces_with(split=lambda typed, graded: True),
        "encode its pieces as usual",
    ),
    "pieces: users alone": (
        e06.encode_pieces,
        pieces_with(split=lambda typed, graded: typed and not graded),
        "explains a marker",
    ),
    "pieces: masked alone": (
        e06.encode_pieces,
        pieces_with(split=lambda typed, graded: not graded),
        "encode its pieces as usual",
    ),
    "pieces: cut, then joined": (e06.encode_pieces, typed_together, "the template wrote < and >"),
    "pieces: markers deleted": (
        e06.encode_pieces,
        pieces_with(change=lambda text: re.sub("<[a-z]+>", "", text)),
        "is not deleted",
    ),
    "pieces: a blank in markers": (
        e06.encode_pieces,
        pieces_with(change=lambda text: text.replace("<", "< ")),
        "ids of their characters",
    ),
    "pieces: every end of turn graded": (
        e06.encode_pieces,
        pieces_with(label=lambda n, typed, g: n if g or n == 3 else IGNORE_INDEX),
        "an end of turn as well",
    ),
    "pieces: specials masked": (
        e06.encode_pieces,
        pieces_with(label=lambda n, typed, g: n if g and not special(n) else IGNORE_INDEX),
        "end of turn of a reply is graded",
    ),
    "pieces: typed alone is graded": (
        e06.encode_pieces,
        pieces_with(label=lambda n, typed, g: n if g and typed else IGNORE_INDEX),
        "end of turn of a reply is graded",
    ),
    "pieces: users graded": (
        e06.encode_pieces,
        pieces_with(label=lambda n, typed, g: n if typed or g else IGNORE_INDEX),
        "-100 for each id",
    ),
    "pieces: zeros and ones": (
        e06.encode_pieces,
        pieces_with(label=lambda n, typed, g: int(g)),
        "-100 for each id",
    ),
    "pieces: zero for masked": (
        e06.encode_pieces,
        pieces_with(label=lambda n, typed, g: n if g else 0),
        "-100 for each id",
    ),
    "pieces: shifted": (
        e06.encode_pieces,
        lambda *arguments: shifted(*encode_pieces(*arguments)),
        "Hint: ",
    ),
    "pieces: ids alone": (
        e06.encode_pieces,
        lambda *arguments: encode_pieces(*arguments)[0],
        "return two lists",
    ),
    "pieces: nothing returned": (
        e06.encode_pieces,
        lambda *arguments: None,
        "is a return missing",
    ),
    "row: positions run on": (e06.pack_row, row_with(positions="run on"), "counts from 0"),
    "row: padding in position 0": (
        e06.pack_row,
        row_with(positions="padding 0"),
        "so does the padding",
    ),
    "row: seams graded": (e06.pack_row, row_with(seam=None), "a seam"),
    "row: the first sample's first label": (
        e06.pack_row,
        first_label_kept,
        "nothing stands before",
    ),
    "row: the last label masked": (e06.pack_row, row_with(seam=-1), "EOT included"),
    "row: padding graded": (e06.pack_row, row_with(pad_label=0), "padding is never graded"),
    "row: causal alone": (
        e06.pack_row,
        row_with(may=lambda i, j, owner, used, ids: j <= i),
        "different samples",
    ),
    "row: not causal": (
        e06.pack_row,
        row_with(may=lambda i, j, owner, used, ids: owner[i] == owner[j]),
        "look ahead",
    ),
    "row: not itself": (
        e06.pack_row,
        row_with(may=lambda i, j, owner, used, ids: owner[i] == owner[j] and j < i),
        "sees itself",
    ),
    "row: rows and columns": (
        e06.pack_row,
        row_with(may=lambda i, j, owner, used, ids: owner[i] == owner[j] and i <= j),
        "look ahead",
    ),
    "row: split at ends of turn": (e06.pack_row, row_with(may=split_at_ends), "in its own sample"),
    "row: padding sees nothing": (
        e06.pack_row,
        row_with(
            may=lambda i, j, owner, used, ids: owner[i] == owner[j] and j <= i and i < used,
        ),
        "NaN",
    ),
    "row: padding sees itself alone": (
        e06.pack_row,
        row_with(
            may=lambda i, j, owner, used, ids: (
                owner[i] == owner[j] and j <= i and (i < used or i == j)
            ),
        ),
        "block of its own",
    ),
    "row: padding sees all": (
        e06.pack_row,
        row_with(
            may=lambda i, j, owner, used, ids: j <= i and (owner[i] == owner[j] or i >= used),
        ),
        "sees no sample",
    ),
    "row: padding by its id": (
        e06.pack_row,
        lambda samples, length, pad: pack_row(
            samples,
            length,
            pad,
            may=lambda i, j, owner, used, ids: (
                owner[i] == owner[j] and j <= i and (i >= used or ids[j] != pad)
            ),
        ),
        "in its own sample",
    ),
    "row: cut": (e06.pack_row, row_with(fit="cut"), "cut nothing off"),
    "row: samples changed": (e06.pack_row, row_with(copy=False), "changed its samples"),
    "row: a flat mask": (
        e06.pack_row,
        lambda *a: pack_row(*a) | {"attend": [1] * a[1]},
        "lists of",
    ),
    "row: without attend": (
        e06.pack_row,
        lambda *a: {k: v for k, v in pack_row(*a).items() if k != "attend"},
        "a dict with the keys",
    ),
    "row: nothing returned": (e06.pack_row, lambda *a: None, "is a return missing"),
    "row: ValueError": (e06.pack_row, another_error(pack_row), "raised ValueError"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_refused_with_a_reason(name):
    check, answer, words = WRONG[name]
    with pytest.raises(CheckFailed) as caught:
        check(answer)
    message = str(caught.value)
    assert re.search("|".join(map(re.escape, words.split("|"))), message), message
    assert message.startswith("Exercise 6.") and len(message) < 700, len(message)
    assert "\n" not in message and not isinstance(caught.value, NotAttempted)


def test_the_template_in_the_text_is_the_one_of_the_check():
    source = (ROOT / "source/06_masking_in_production.exercises.py").read_text("utf-8")
    shown = "".join(f"# {line}\n" for line in e06.ALWAYS_THINKING.splitlines())
    assert f"# ```\n{shown}# ```\n" in source


def test_a_plan_is_shown_in_one_line():
    for plan in (e06.LLAMA_PLAN, e06.QWEN_PLAN):
        assert "\n" not in repr(plan) and len(repr(plan)) <= 100, repr(plan)
