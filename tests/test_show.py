"""Pictures are complete, readable without colour and without CSS, and the same every time."""

import math
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from collections import Counter
from io import BytesIO
from itertools import islice
from types import SimpleNamespace

import matplotlib
import pytest

from course_utils import FAMILIES, MASK_MODES, render, show, training_samples
from course_utils.conversation import conversation
from course_utils.examples import TINY_CHATS, WALKTHROUGH
from course_utils.show.style import KINDS, columns, printable, visible
from course_utils.show.svg import WIDEST
from course_utils.templates import SPAN_KINDS
from course_utils.tokenizers import WordTokenizer, toy_tokenizer

matplotlib.use("Agg")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def walkthrough():
    tokenizer = WordTokenizer()
    (sample,) = training_samples(WALKTHROUGH, tokenizer)
    return sample, tokenizer


def words(picture) -> list[str]:
    """All text in the drawing, with ordinary spaces."""
    return [
        element.text.replace("\u00a0", " ")
        for element in ET.fromstring(picture.svg).iter(f"{SVG}text")
    ]


def sample_tokenizer():
    tokenizer = toy_tokenizer(["Hi."])
    assert {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.get_vocab())
    return tokenizer


def every_picture(walkthrough):
    sample, tokenizer = walkthrough
    yield show.strip(["Hi", " there", "\n\n", "a\tb", "<&>\"'", ""], [0, 1, 1, 0, 1, 0])
    yield show.strip(["x"] * len(KINDS), kinds=list(KINDS), numbers=False, title="<kinds>")
    yield show.sample(sample, tokenizer)
    yield show.masks(["a", "b"], {"one": [True, False], "<two>": [False, False]}, title="t & t")
    yield show.plan(f"<|im_start|>{chr(0xF0001)}<", sample_tokenizer())
    yield show.all_families(WALKTHROUGH)
    yield show.all_modes(WALKTHROUGH)
    for family in FAMILIES:
        yield show.rendered(render(WALKTHROUGH, family, lossy=True))
    for chat in TINY_CHATS:
        yield show.all_families(chat, title="tiny")


# --- strips --------------------------------------------------------------------------------------


def test_walkthrough_in_plain_text(walkthrough):
    lines = show.sample(*walkthrough).text.split("\n")
    assert len(lines) == 37
    assert lines[0] == " 0 · bos     <|begin_of_text|>"
    assert lines[2] == " 2 · role    system"
    assert lines[4] == " 4 · space   ↵↵"
    assert lines[25:28] == [
        "25 · space   ↵↵",
        "26 ✓ content Water",
        "27 ✓ content boils",
    ]
    assert lines[35] == "35 ✓ eot     <|eot_id|>"
    assert lines[36] == "36 tokens, 10 special, 10 graded (28 %)"
    assert [number for number, line in enumerate(lines[:36]) if line[3] == "✓"] == [*range(26, 36)]


def test_plain_text_without_kinds_is_number_sign_token():
    assert show.strip(["Say", " yes"], [False, True]).text == (
        "0 · Say\n1 ✓ ·yes\n2 tokens, 1 graded (50 %)"
    )
    assert show.strip(["Say", " yes"], numbers=False, title="T").text == ("T\nSay\n·yes\n2 tokens")


def test_drawing_holds_every_token_with_number_and_sign(walkthrough):
    sample, tokenizer = walkthrough
    found = words(show.sample(sample, tokenizer))
    for position, number in enumerate(sample.input_ids):
        assert visible(tokenizer.token(number)) in found
        assert str(position) in found
    in_legend = 1
    assert found.count("✓") == 10 + in_legend
    assert found.count("·") == 26 + in_legend


def test_walkthrough_has_a_row_for_each_turn(walkthrough):
    heights = {
        element.get("y")
        for element in ET.fromstring(show.sample(*walkthrough).svg).iter(f"{SVG}text")
        if element.text.isdigit() and element.get("font-size") == "10"
    }
    assert len(heights) == 3


def test_only_presentation_attributes(walkthrough):
    for picture in every_picture(walkthrough):
        root = ET.fromstring(picture.svg)
        assert root.get("role") == "img"
        assert root[0].tag == f"{SVG}title" and root[0].text
        assert root[1].tag == f"{SVG}desc" and root[1].text
        assert root[2].tag == f"{SVG}rect" and root[2].get("fill") == "#FFFFFF"
        assert float(root.get("width")) <= WIDEST
        for element in root.iter():
            assert not {"style", "class", "id"} & set(element.attrib)
            assert element.tag.removeprefix(SVG) in {"svg", "title", "desc", "rect", "text", "g"}
        assert "\x1b" not in picture.text and picture.text == repr(picture)
        assert picture._repr_mimebundle_() == {
            "image/svg+xml": picture.svg,
            "text/plain": picture.text,
        }


def test_nothing_is_drawn_outside(walkthrough):
    for picture in every_picture(walkthrough):
        root = ET.fromstring(picture.svg)
        width, height = float(root.get("width")), float(root.get("height"))
        for box in root.iter(f"{SVG}rect"):
            right = float(box.get("x", 0)) + float(box.get("width"))
            lower = float(box.get("y", 0)) + float(box.get("height"))
            assert right <= width and lower <= height


def test_same_every_time(walkthrough):
    once, again = every_picture(walkthrough), every_picture(walkthrough)
    for one, other in zip(once, again, strict=True):
        assert (one.svg, one.text) == (other.svg, other.text)


def test_same_in_another_process():
    code = (
        "from course_utils import show; from course_utils.examples import WALKTHROUGH; import zlib;"
        "print(zlib.crc32((show.all_families(WALKTHROUGH).svg + show.all_modes(WALKTHROUGH).svg)"
        ".encode()))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_long_conversations_and_long_tokens_wrap():
    chat = conversation(
        *[("user", "Tell me more, please. " * 20), ("assistant", "wordwithoutspace" * 30)] * 4
    )
    for picture in (show.rendered(render(chat, "chatml")), show.all_modes(chat)):
        root = ET.fromstring(picture.svg)
        assert float(root.get("width")) <= WIDEST
        assert len({box.get("y") for box in root.iter(f"{SVG}rect")}) > 20
    pieces = words(show.strip(["wordwithoutspace" * 30]))
    assert "".join(pieces[1:-1]) == "wordwithoutspace" * 30


def test_white_space_is_visible():
    assert visible(" boils at 100") == "·boils at 100"
    assert visible("a  b \n\n\t") == "a··b·↵↵→"
    assert visible("") == "∅"
    assert visible("\u200b\x00\ue000\ud800") == "⟨200B⟩⟨0000⟩⟨E000⟩⟨D800⟩"
    assert columns("日本") == 4 and columns("e\u0301") == 1


def test_markup_in_a_token_stays_text():
    token = "</text><script>alert('x')</script>&amp;"
    assert token in words(show.strip([token], title=token))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([],), "there are no tokens"),
        (("Hello",), "one string"),
        (([1, 2],), "decode ids first"),
        ((["a", "b"], [True]), "graded has 1 entries, but there are 2 tokens"),
        ((["a"], None, ["verb"]), "unknown kind 'verb'"),
        ((["a"], None, []), "kinds has 0 entries"),
        ((["a", "b"], [-100, 7]), "-100"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_words(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        show.strip(*arguments)


def test_every_span_kind_has_a_sign():
    assert set(SPAN_KINDS) <= set(KINDS)
    signs = [sign for sign, _ in KINDS.values()]
    assert len(set(signs)) == len(signs)


def test_sample_of_a_real_tokenizer():
    tokenizer = toy_tokenizer([message.content for message in WALKTHROUGH])
    from course_utils.templates import chat_template

    tokenizer.chat_template = chat_template("llama3")
    chat = conversation(("user", "What does <|eot_id|> do? \U0001f9d1"), ("assistant", "It ends."))
    (sample,) = training_samples(chat, tokenizer)
    lines = show.sample(sample, tokenizer).text.split("\n")
    kinds = [line.split()[2] for line in lines[:-1]]
    assert kinds.count("eot") == 2 and kinds.count("bos") == 1 and kinds.count("open") == 2
    assert "role" in kinds and "�" in "".join(lines)
    graded = [label != -100 for label in sample.labels]
    assert ["✓" in line for line in lines[:-1]] == graded


def test_a_plan_has_special_tokens_and_holes_of_their_own():
    hole = chr(0xF0000), chr(0xF0002)
    marked = f"<|im_start|>user\n{hole[0]}{hole[1]} <|im_end|>"
    picture = show.plan(marked, sample_tokenizer(), "text {}".format, title="A plan")
    assert "⟨text 0⟩" in words(picture) and "⟨text 2⟩" in words(picture)
    assert "6 pieces, 2 special" in picture.text and "graded" not in picture.text
    assert "⟨0⟩" in show.plan(hole[0], sample_tokenizer()).text


def test_a_plan_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to show"):
        show.plan("", sample_tokenizer())


def test_tensors_and_numbers_count_as_masks():
    torch = pytest.importorskip("torch")
    expected = show.strip(["a", "b"], [False, True]).svg
    assert show.strip(["a", "b"], torch.tensor([False, True])).svg == expected
    assert show.strip(["a", "b"], [0, 1]).svg == expected


def test_masks_in_plain_text():
    picture = show.masks(["Say", " yes"], {"all": [True, True], "reply": [False, True]}, "Two")
    assert picture.text == (
        "Two\n   ┌ all: 2/2 100 %\n   │  ┌ reply: 1/2 50 %\n0  ✓  ·  Say\n1  ✓  ✓  ·yes"
    )
    with pytest.raises(ValueError, match="at least one mask"):
        show.masks(["a"], {})
    with pytest.raises(ValueError, match="mask 'short' has 1 entries"):
        show.masks(["a", "b"], {"short": [True]})


# --- overviews and explorers ---------------------------------------------------------------------


def test_all_families_are_shown_or_refuse_in_words():
    text = show.all_families(WALKTHROUGH).text
    for family in FAMILIES:
        assert f"\n{family}\n" in f"\n{text}\n"
    assert "286 characters; as words and markers: 36 tokens, 10 special, 10 graded (28 %)" in text
    assert text.count("Not to be parsed back") == 3  # raw, gemma, mistral
    tools = conversation(("user", "2+2?"), ("assistant", "add"), ("tool", "4"), ("assistant", "4"))
    picture = show.all_families(tools)
    assert "gemma refuses: gemma has no tool role" in picture.text
    assert any("gemma refuses" in line for line in words(picture))


def test_all_modes_are_shown():
    text = show.all_modes(WALKTHROUGH).text
    for mode, share in zip(MASK_MODES, ("100", "25", "28", "39", "28", "72"), strict=True):
        assert f"┌ {mode}: " in text
        assert f" {share} %" in text


def test_template_explorer_follows_what_is_typed():
    explorer = show.template_explorer(WALKTHROUGH)
    before = explorer.strip.value
    assert "36 tokens, 10 special, 10 graded (28 %)" in explorer.picture.text
    explorer.turns[2].value = "At <b>100</b>."
    assert explorer.strip.value != before
    assert "At\u00a0&lt;b&gt;100&lt;/b&gt;." in explorer.strip.value
    explorer.choice.value = "chatml"
    assert "&lt;|im_start|&gt;" in explorer.strip.value


def test_template_explorer_shows_a_refusal_in_place():
    explorer = show.template_explorer(WALKTHROUGH)
    explorer.choice.value = "gemma"
    assert explorer.strip.value and not explorer.refusal.value
    explorer.option.value = True
    assert "gemma has no system role" in explorer.refusal.value
    assert not explorer.strip.value and explorer.picture is None
    explorer.turns[0].value = ""
    assert explorer.strip.value and not explorer.refusal.value
    explorer.turns[1].value = ""
    assert "gemma" in explorer.refusal.value
    explorer.turns[2].value = ""
    assert "empty" in explorer.refusal.value


def test_mask_explorer_follows_the_mode():
    explorer = show.mask_explorer(WALKTHROUGH)
    seen = {}
    for mode in MASK_MODES:
        explorer.choice.value = mode
        seen[mode] = explorer.strip.value
    assert "26 graded (72 %)" in explorer.picture.text
    assert len(set(seen.values())) == len(MASK_MODES)


def test_explorers_have_a_picture_for_web_pages():
    for explorer, static in (
        (show.template_explorer(WALKTHROUGH), show.all_families(WALKTHROUGH)),
        (show.mask_explorer(WALKTHROUGH), show.all_modes(WALKTHROUGH)),
    ):
        bundle = explorer._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in bundle
        assert bundle["image/svg+xml"] == static.svg
        assert bundle["text/plain"] == static.text == repr(explorer)


# --- tables --------------------------------------------------------------------------------------


def test_table_in_plain_text_is_aligned():
    rows = [
        {"family": "llama3", "tokens": 36, "share": 0.2778},
        {"family": "日本", "tokens": 7, "share": 12345.6, "note": True},
    ]
    assert show.table(rows, caption="Overhead").text == (
        "Overhead\n"
        "family  tokens   share  note\n"
        "------  ------  ------  ----\n"
        "llama3      36   0.278  –\n"
        "日本         7  12,346  yes"
    )


def test_table_in_html_is_escaped_and_without_styles():
    table = show.table([{"<a>": "x & y\nz", "b": None}], caption="<c>")
    root = ET.fromstring(table.html.replace("<br>", "<br/>"))
    assert root.find("caption").text == "<c>"
    assert [cell.text for cell in root.iter("th")] == ["<a>", "b"]
    assert all(not {"style", "class"} & set(element.attrib) for element in root.iter())
    assert set(table._repr_mimebundle_()) == {"text/html", "text/plain"}
    for nothing in ([], [{}]):
        with pytest.raises(ValueError, match="nothing to show"):
            show.table(nothing)


# --- plots ---------------------------------------------------------------------------------------


def steps(number):
    return [
        SimpleNamespace(step=n, loss=3 * math.exp(-n / 9), graded_tokens=n, seconds=0.1, lr=1e-3)
        for n in range(1, number + 1)
    ]


@pytest.fixture
def pyplot():
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def test_figures_carry_their_description(pyplot):
    fig, ax = show.figure(5, 2, alt="A line that falls.")
    assert repr(fig) == fig.get_label() == "A line that falls."
    assert fig._repr_mimebundle_() == ({}, {"image/png": {"alt": "A line that falls."}})
    assert not ax.spines["top"].get_visible() and not ax.spines["right"].get_visible()
    with pytest.raises(ValueError, match="alt is empty"):
        show.figure(alt=" ")


def test_bars_with_series_and_intervals(pyplot):
    fig, ax = show.bars(
        ["answers", "stops"],
        {"base": [0.2, 0.3], "SFT": [0.9, 1.0]},
        intervals={"SFT": [(0.8, 0.95), (0.97, 1.0)]},
        xlabel="share",
        alt="Two bars each.",
    )
    assert [bar.get_width() for bar in ax.patches] == [0.2, 0.3, 0.9, 1.0]
    assert [text.get_text() for text in ax.texts] == ["0.2", "0.3", "0.9", "1"]
    assert ax.get_xlim()[1] > 1.0
    assert len(ax.lines) == 2
    with pytest.raises(ValueError, match="1 numbers for 2 labels"):
        show.bars(["a", "b"], [1], xlabel="x", alt="a")


def test_smoothing_counts_every_graded_token_once():
    from course_utils.show.training import smoothed

    two = [SimpleNamespace(loss=1.0, graded_tokens=1), SimpleNamespace(loss=4.0, graded_tokens=2)]
    assert smoothed(two, window=2) == [1.0, 3.0]
    assert smoothed(two, window=1) == [1.0, 4.0]
    assert math.isnan(smoothed([SimpleNamespace(loss=math.nan, graded_tokens=0)])[0])


def test_loss_curve_draws_points_and_line(pyplot):
    fig, ax = show.loss_curve(steps(30), alt="The loss falls.")
    points, line = ax.lines
    assert len(points.get_xdata()) == len(line.get_xdata()) == 30
    with pytest.raises(ValueError, match="no training steps"):
        show.loss_curve([], alt="x")


def test_loss_curve_marks_epochs_and_its_mean_does_not_cross_them(pyplot):
    two = [SimpleNamespace(step=n, loss=9.0 - 8 * (n > 3), graded_tokens=1) for n in range(8)]
    fig, ax = show.loss_curve(two, alt="The loss falls at step 4.", epochs=[4])
    points, first, second, mark = ax.lines
    assert list(first.get_xdata()) == [0, 1, 2, 3] and set(first.get_ydata()) == {9.0}
    assert list(second.get_xdata()) == [4, 5, 6, 7] and set(second.get_ydata()) == {1.0}
    assert set(mark.get_xdata()) == {3.5}
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert words == ["each step", "mean of the last 20 steps", "an epoch begins"]
    # An epoch that has not begun yet, as in a run that still goes on.
    fig, ax = show.loss_curve(two[:2], alt="Two steps.", epochs=[4])
    assert len(ax.lines) == 3


@pytest.mark.parametrize(
    ("samples", "batch_size", "steps", "accumulate"),
    [(250, 8, 90, 1), (2000, 32, 120, 1), (7, 3, 9, 2), (3, 4, 5, 1), (64, 8, 20, 3), (1, 1, 3, 4)],
)
def test_epochs_begin_where_a_sample_comes_again(samples, batch_size, steps, accumulate):
    from course_utils.batching import length_batches
    from course_utils.show.training import epoch_starts

    batches = length_batches([[number] for number in range(samples)], batch_size)
    seen, starts, most = Counter(), [], 1
    for step in range(steps):
        seen.update(one for batch in islice(batches, accumulate) for (one,) in batch)
        if max(seen.values()) > most:
            most = max(seen.values())
            starts.append(step)
    assert epoch_starts(samples, batch_size, steps, accumulate) == starts
    with pytest.raises(ValueError, match="at least 1"):
        epoch_starts(0, batch_size, steps)


STRANGE = [
    *(" ", "\n", "\n\n", "\t ", "\r", "\x00", "\x07", "\x0b", "\x1b[31mred", "\x85", "\x9b2J"),
    *("\u00a0", "\u200b", "\u2028", "\u202e", "\u3000", "\ufeff", "\ufffe", "\U000f0000"),
]


def can_be_shown(picture):
    """Well-formed SVG, and nothing in the text that a terminal would obey."""
    ET.fromstring(picture.svg)
    assert picture.text == printable(picture.text)
    assert not set(picture.text) & {chr(n) for n in (*range(10), *range(11, 32), *range(127, 160))}
    return True


@pytest.mark.parametrize("strange", STRANGE, ids=ascii)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_strange_text_neither_crashes_nor_vanishes(strange, role):
    turns = {"system": "Be kind.", "user": "Hi", "assistant": "Ho"} | {role: strange}
    chat = conversation(*turns.items())
    families = show.all_families(chat, title=strange)
    assert can_be_shown(families)
    assert all(f"\n{family}\n" in families.text for family in ("raw", "chatml", "llama3"))
    assert visible(strange) in families.text
    for family in ("raw", "chatml"):
        explorer = show.template_explorer(chat, family)
        assert explorer.picture and can_be_shown(explorer.picture)
        masks = show.mask_explorer(chat, family=family)
        assert bool(masks.picture) != bool(masks.refusal.value)
        assert can_be_shown(masks._static)


def test_a_mask_that_is_refused_is_named_and_leaves_the_explorer_usable():
    """The header's line break and the reply's are one token."""
    chat = conversation(("user", "Hi"), ("assistant", "\n"))
    assert "Not to be masked by words: token" in show.all_families(chat).text
    explorer = show.mask_explorer(chat, family="chatml")
    assert "only some are graded" in explorer.refusal.value and "only some" in repr(explorer)
    explorer.turns[1].value = "Ho"
    assert explorer.picture and not explorer.refusal.value


def test_turns_without_any_word_are_no_error():
    explorer = show.mask_explorer(conversation(("user", "Hi")), family="raw")
    explorer.turns[0].value = " "
    assert explorer.picture.text.endswith("0 tokens, 0 graded (none)")
    assert "0/0 none" in show.all_modes(conversation(("user", " ")), "raw").text


@pytest.mark.parametrize("strange", [*STRANGE, "\ud800"], ids=ascii)
def test_strange_titles_names_and_cells(strange, pyplot):
    for picture in (
        show.strip(["a", strange], title=strange),
        show.masks(["a", "b"], {strange: [True, False]}, title=strange),
    ):
        assert can_be_shown(picture)
    table = show.table([{strange: strange}], caption=f"a{strange}b")
    assert can_be_shown(SimpleNamespace(svg="<svg/>", text=table.text))
    assert not set(table.html) & set("\x00\x07\x1b\x9b\u202e\ud800")


FIGURES = [*(text for text in STRANGE if text != "\n\n"), "\ud800", "$\\frac$", "$5 or $6"]


@pytest.mark.parametrize("strange", FIGURES, ids=ascii)
def test_strange_titles_and_labels_of_figures(strange, pyplot):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that the font lacks
        bars, ax = show.bars([strange, "b"], [1, 2], xlabel=strange, alt=f"x{strange}")
        ax.set_title(strange)
        ax.set_xticks([0, 1], [strange, "c"])
        bars.savefig(BytesIO())
        heat, _ = show.heat([[1, 2]], [strange], [strange, "b"], f"x{strange}")
        heat.savefig(BytesIO())
    assert ax.get_title("left") == printable(strange)
    assert can_be_shown(SimpleNamespace(svg="<svg/>", text=repr(bars)))


def test_live_loss_only_collects_in_a_terminal(pyplot):
    live = show.live_loss(3)
    for step in steps(3):
        live(step)
    assert len(live.steps) == 3 and not pyplot.get_fignums()


def test_live_loss_updates_one_display_at_most_once_per_second(pyplot, monkeypatch):
    from course_utils.show import training

    calls, now = [], [0.0]

    def display(image, display_id):
        calls.append(("display", image))
        return SimpleNamespace(update=lambda image: calls.append(("update", image)))

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(training, "_in_jupyter", lambda: True)
    monkeypatch.setattr(training, "monotonic", lambda: now[0])
    live = show.live_loss(20)
    for step in steps(20):
        now[0] += 0.25
        live(step)
    # At steps 1, 5, 9, 13, 17, and in the end.
    assert [call for call, _ in calls] == ["display"] + ["update"] * 5
    assert "after 20 of 20 steps" in calls[-1][1].alt
    assert not pyplot.get_fignums()


def test_heat_writes_exact_zeros_as_0(pyplot):
    fig, ax = show.heat([[0.0, 1e-9], [0.5, -1.0]], ["a", "b"], ["x", "y"], "Gradients.")
    assert [text.get_text() for text in ax.texts] == ["0", "1e-09", "0.5", "-1"]
    with pytest.raises(ValueError, match="the matrix is 1 by 2, but there are 2 row labels"):
        show.heat([[1, 2]], ["a", "b"], ["x", "y"], "Gradients.")


# --- the package ---------------------------------------------------------------------------------


def test_import_loads_nothing_heavy():
    code = (
        "import sys, course_utils.show as show; assert show.__all__;"
        "bad = {'torch', 'transformers', 'matplotlib', 'ipywidgets', 'IPython'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_exists():
    for name in show.__all__:
        assert getattr(show, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'stripe'"):
        _ = show.stripe
