"""The benchmark of masks: its paths agree where they should, and it says where they do not."""

import pytest

from benchmarks import mask_speed
from benchmarks.mask_libraries import IGNORE
from benchmarks.mask_speed import SOURCES, Setting, Writer, differences, measure, work_of

TAGGED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def writer():
    return Writer([row for path in SOURCES for row in mask_speed.read_records(path)], seed=0)


def test_conversations_are_as_long_as_asked_and_seeded(writer):
    made = [writer.ordinary() for _ in range(50)]
    assert {len(row["messages"]) for row in made} <= set(range(2, 22))
    for row in made:
        odd = len(row["messages"]) % 2 == 1
        assert (row["messages"][0]["role"] == "system") == odd
        assert row["messages"][-1]["role"] == "assistant"
    again = Writer([r for path in SOURCES for r in mask_speed.read_records(path)], seed=0)
    assert [again.ordinary() for _ in range(50)] == made


def test_paths_agree_on_a_template_that_grades_what_the_course_grades(toy, writer):
    tokenizer = toy(TAGGED)
    # writer.write() rather than ordinary(): the toy's words are single characters.
    work, other = (
        work_of(tokenizer, [writer.write(n, 200) for n in sizes]) for sizes in ((2, 4, 5), (3,))
    )
    found = measure(Setting("toy", "tagged"), work, other, rounds=2)
    rows = found["paths"]
    assert rows["encode_batch"]["ratio"] == 1
    assert rows["prefixes rendered anew"]["conversations"] == 1
    for name in ("course, exact", "transformers, one by one", "transformers, one call"):
        assert rows[name]["against_course"] == {"identical": 3}, name
        assert rows[name]["tokens"] == rows["encode_batch"]["tokens"]
        assert len(rows[name]["seconds"]) == 2


def test_a_path_that_fails_is_named(toy, writer, monkeypatch):
    def broken(work):
        raise ImportError("not here")

    monkeypatch.setattr(mask_speed, "trl", broken)
    work = work_of(toy(TAGGED), [writer.write(2, 200)])
    found = measure(Setting("toy", "tagged"), work, work, rounds=1)
    assert found["left_out"]["TRL"] == "ImportError: not here"
    assert "TRL" not in found["paths"]


def test_differences_are_counted(toy):
    tokenizer = toy(TAGGED)
    ids = tokenizer("Hi!", add_special_tokens=False)["input_ids"]
    graded, none = [(ids, ids)], [(ids, [IGNORE] * len(ids))]
    assert differences([graded, graded], [graded, none], tokenizer) == {
        "identical": 1,
        "other_labels": 1,
        "graded_by_course_only": {"Hi!": 1},
    }
    assert differences([graded], [graded + graded], tokenizer) == {"other_samples": 1}
    assert differences([graded], [[(ids[1:], ids[1:])]], tokenizer) == {"other_ids": 1}
