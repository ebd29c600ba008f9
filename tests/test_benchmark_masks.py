"""The survey of masks: the judge knows right from wrong, the table says what ran."""

import json

import pytest

from benchmarks import mask_libraries, masks
from benchmarks.mask_libraries import IGNORE, LIBRARIES, Chat, Library, NotForThis

FAMILIES = {"Llama 3": "llama3", "Qwen 2.5": "chatml"}


@pytest.fixture(autouse=True)
def toys(monkeypatch, toy):
    """Toy tokenizers with the course's templates, so that nothing has to be fetched."""
    monkeypatch.setattr(mask_libraries, "tokenizer_for", lambda name: toy(FAMILIES[name]))


@pytest.fixture(params=FAMILIES)
def chat(request):
    return Chat(request.param, masks.TWO)


def right(chat: Chat) -> tuple[list[int], list[int]]:
    """The whole chat as one sample, put together from the strings that a server sees."""
    ids, labels = [], []
    for reply in masks.expected(chat).values():
        prompt = encode(chat, reply.prompt)
        assert prompt[: len(ids)] == ids
        labels += [IGNORE] * (len(prompt) - len(ids)) + encode(chat, reply.text)
        ids = prompt + encode(chat, reply.text)
    return ids, labels


def encode(chat: Chat, text: str) -> list[int]:
    return chat.tokenizer(text, add_special_tokens=False)["input_ids"]


def kinds(chat: Chat, ids: list[int], labels: list[int]) -> list[str]:
    return list(dict.fromkeys(finding.kind for finding in masks.judge(chat, [(ids, labels)])))


def runs(labels: list[int]) -> list[tuple[int, int]]:
    """Where the graded tokens begin and end."""
    graded = [label != IGNORE for label in labels]
    starts = [i for i in range(len(graded)) if graded[i] and not graded[i - 1]]
    ends = [i + 1 for i in range(len(graded)) if graded[i] and not any(graded[i + 1 : i + 2])]
    return list(zip(starts, ends, strict=True))


def test_a_right_mask_is_right(chat):
    ids, labels = right(chat)
    assert kinds(chat, ids, labels) == []
    assert len(runs(labels)) == 2


def test_a_sample_for_each_reply_is_right_too(chat):
    samples = []
    for reply in masks.expected(chat).values():
        prompt, text = encode(chat, reply.prompt), encode(chat, reply.text)
        samples.append((prompt + text, [IGNORE] * len(prompt) + text))
    assert masks.judge(chat, samples) == []
    assert [finding.kind for finding in masks.judge(chat, samples[1:])] == ["missing"]


def test_known_wrong_masks_are_refused(chat):
    ids, labels = right(chat)
    (start, end), (second, last) = runs(labels)

    def changed(places, graded: bool) -> list[str]:
        new = list(labels)
        for i in places:
            new[i] = ids[i] if graded else IGNORE
        return kinds(chat, ids, new)

    assert kinds(chat, ids, [IGNORE] * len(ids)) == ["nothing"]
    assert "user" in kinds(chat, ids, list(ids))
    assert changed(range(start, end), graded=False) == ["missing"]
    assert changed([end - 1, last - 1], graded=False) == ["no end"]
    assert changed([start], graded=False) == ["part"]
    question = next(i for i in range(end, second) if "?" in chat.tokenizer.decode([ids[i]]))
    assert changed([question], graded=True) == ["user"]
    header = masks._header(chat.tokenizer)
    opening = second - len(encode(chat, header))
    assert changed(range(opening, second), graded=True) == ["header"]


def test_ids_that_no_server_sends_are_refused(chat):
    ids, labels = right(chat)
    assert kinds(chat, ids[1:], labels[1:]) == ["prompt"]
    assert kinds(chat, ids, labels[1:]) == ["ids"]
    assert kinds(chat, ids, [label if label == IGNORE else label + 1 for label in labels]) == [
        "ids"
    ]


def test_a_graded_line_break_behind_the_end_is_a_gap():
    chat = Chat("Qwen 2.5", masks.TWO)
    ids, labels = right(chat)
    (_, end), _ = runs(labels)
    assert chat.tokenizer.decode([ids[end]]) == "\n"
    labels[end] = ids[end]
    assert kinds(chat, ids, labels) == ["gap"]


def test_a_reply_without_its_end_is_cut(chat):
    ids, labels = right(chat)
    limited = Chat(chat.template, chat.messages, max_length=len(ids) - 2)
    assert kinds(limited, ids[:-2], labels[:-2]) == ["cut"]
    _, (second, _) = runs(labels)
    assert kinds(limited, ids[:second], labels[:second]) == []
    assert kinds(limited, ids, labels) == ["long"]


def test_typed_special_tokens_must_stay_text():
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    typed = masks._turns(f"What is {header}?", "It opens a turn.", "And then?", "Text.")
    chat = Chat("Llama 3", typed)
    assert kinds(chat, *right(chat)) == ["control"]
    assert str(masks.run(library("course"), chat)) == "ok"


def library(head: str) -> Library:
    return next(library for library in LIBRARIES if library.head == head)


@pytest.mark.parametrize("head", ["course", "prefix"])
def test_paths_that_need_no_other_library_run(head, chat):
    found = masks.run(library(head), chat)
    assert set(found.kinds) <= {"ok", "gap"}


def test_a_cell_is_refused_or_has_nothing_to_say(chat):
    def fails(chat):
        raise ValueError("no mask\nfor this")

    def passes(chat):
        raise NotForThis("no such template")

    found = masks.run(Library("x", "x", fails), chat)
    assert (str(found), found.detail) == ("refused", "ValueError: no mask")
    assert str(masks.run(Library("x", "x", passes), chat)) == "-"


def test_missing_libraries_are_named_and_have_no_cells(chat):
    def broken(chat):
        raise ImportError("no GPU here")

    libraries = [
        library("course"),
        Library("none", "not there", broken, "surely-not-installed"),
        Library("broken", "cannot be imported", broken),
    ]
    rows, absent = masks.survey({"two turns": chat}, libraries)
    assert list(rows["two turns"]) == ["course"]
    assert absent == {
        "not there": "surely-not-installed is not installed",
        "cannot be imported": "could not be imported: no GPU here",
    }


def test_a_stand_in_is_there_only_while_its_library_runs(chat):
    def imports(chat):
        from surely_missing.deep import Thing

        @Thing()
        def unchanged():
            return []

        return unchanged()

    spared = Library("x", "x", imports, spare=("surely_missing",))
    assert masks.run(spared, chat).kinds == ("nothing",)
    assert importable("json") and not importable("surely_missing_too")


def importable(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def test_the_table_names_cases_columns_and_kinds(tmp_path, capsys, monkeypatch):
    output = tmp_path / "masks.json"
    asked = ["--libraries", "prefix,course", "--cases", "two turns", "--details"]
    name = "two turns, Llama 3"
    monkeypatch.setattr(masks, "CASES", {name: masks.CASES[name]})
    assert masks.main([*asked, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("python ") and "transformers" in printed
    lines = [line.split() for line in printed.splitlines()]
    assert ["prefix", "course"] in lines
    assert ["two", "turns,", "Llama", "3", "ok", "ok"] in lines
    record = json.loads(output.read_text())
    assert record["cases"][name]["course"]["kinds"] == ["ok"]


def test_columns_and_cases_are_told_apart():
    heads = [library.head for library in LIBRARIES]
    assert len(set(heads)) == len(heads)
    assert {chat.template for chat in masks.CASES.values()} <= mask_libraries.TEMPLATES.keys()
    assert len(masks.CASES) >= 30
