"""Masks: the right tokens are graded, in every template, or there is no mask."""

import re
import unicodedata
from dataclasses import replace

import pytest
from chats import (
    ALTERNATES,
    FAMILY_NAMES,
    HARMLESS,
    ROLES,
    TRIMS,
    alternating,
    any_chats,
    any_order,
    as_conversation,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from course_utils.conversation import conversation
from course_utils.examples import TINY_CHATS, WALKTHROUGH
from course_utils.masking import (
    IGNORE_INDEX,
    MASK_MODES,
    GradedSpan,
    MaskError,
    Sample,
    character_mask,
    graded_spans,
    render_template,
    spans_by_rerendering,
    token_labels,
    training_samples,
    truncate,
)
from course_utils.templates import chat_template, render
from course_utils.tokenizers import GUARD, Encoded, WordTokenizer, special_tokens

QUICK = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]
USER, REPLY = ("user", "Hi"), ("assistant", "Hello")
TWO_REPLIES = conversation(USER, REPLY, ("user", "Bye?"), ("assistant", "Bye."), id="two")


def sample_of(chat, tokenizer, **options):
    (sample,) = training_samples(chat, tokenizer, **options)
    return sample


def graded_text(sample, tokenizer):
    return tokenizer.decode([label for label in sample.labels if label != IGNORE_INDEX])


def specials_in(sample, tokenizer):
    ids = {tokenizer.convert_tokens_to_ids(token) for token in special_tokens(tokenizer)}
    return [number for number in sample.input_ids if number in ids]


def check_sample(sample):
    """What holds for every sample."""
    assert len(sample.input_ids) == len(sample.labels) == len(sample)
    pairs = zip(sample.input_ids, sample.labels, strict=True)
    assert all(label in (number, IGNORE_INDEX) for number, label in pairs)
    graded = [place for place, label in enumerate(sample.labels) if label != IGNORE_INDEX]
    assert graded == [place for run in sample.graded for place in range(run.start, run.end)]
    assert sample.graded_tokens == len(graded) > 0
    assert list(sample.cuts) == sorted(set(sample.cuts)) and sample.cuts[-1] <= len(sample)


# --- the walkthrough -----------------------------------------------------------------------------


def test_walkthrough_in_words():
    tokenizer = WordTokenizer()
    sample = sample_of(WALKTHROUGH, tokenizer)
    check_sample(sample)
    tokens = [tokenizer.token(number) for number in sample.input_ids]
    assert len(sample) == 36
    assert sum(token.startswith("<|") for token in tokens) == 10
    assert sample.graded_tokens == 10
    assert sample.graded == (GradedSpan(26, 36, message=2),) and sample.cuts == (36,)
    assert tokens[26:] == [*WALKTHROUGH[2].content.split(), "<|eot_id|>"]
    assert sample.labels[:26] == [IGNORE_INDEX] * 26 and sample.id == "walkthrough"


@pytest.mark.parametrize("name", ["llama3", "llama3_1"])
@pytest.mark.parametrize("template", ["its own", "ours"])
def test_walkthrough_in_llama_3_tokens(name, template, real):
    tokenizer = real(name)
    own = tokenizer.chat_template
    try:
        tokenizer.chat_template = own if template == "its own" else chat_template("llama3")
        sample = sample_of(WALKTHROUGH, tokenizer)
    finally:
        tokenizer.chat_template = own
    check_sample(sample)
    assert (len(sample), sample.graded_tokens) == (40, 12)
    assert len(specials_in(sample, tokenizer)) == 10
    assert graded_text(sample, tokenizer) == f"{WALKTHROUGH[2].content}<|eot_id|>"


# --- the modes -----------------------------------------------------------------------------------

# What each mode grades in TWO_REPLIES as llama3 writes it.
HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n"
ASK, TELL = HEAD.format("user"), HEAD.format("assistant")
END = "<|eot_id|>"
OTHERS = f"<|begin_of_text|>{ASK}Hi{END}{TELL}{ASK}Bye?{END}{TELL}"
GRADED = {
    "everything": str(render(TWO_REPLIES, "llama3")),
    "assistant_content": "HelloBye.",
    "assistant": f"Hello{END}Bye.{END}",
    "assistant_and_header": f"{TELL}Hello{END}{TELL}Bye.{END}",
    "last_turn": f"Bye.{END}",
    "inverted": OTHERS,
}


@pytest.mark.parametrize("mode", MASK_MODES)
def test_mask_modes(mode, toy):
    rendered = render(TWO_REPLIES, "llama3")
    mask = character_mask(rendered, mode)
    assert (
        "".join(c for c, graded in zip(rendered.text, mask, strict=True) if graded)
        == (GRADED[mode])
    )
    assert len(graded_spans(rendered, mode)) == len(rendered.spans)
    sample = sample_of(TWO_REPLIES, toy("llama3"), mode=mode)
    check_sample(sample)
    assert graded_text(sample, toy("llama3")) == GRADED[mode]
    words = WordTokenizer()
    pieces = [words.token(n) for n in sample_of(TWO_REPLIES, words, mode=mode).labels if n >= 0]
    assert "".join(pieces) == GRADED[mode]


def test_the_gap_behind_a_turn_is_never_graded_as_the_assistants():
    for family, gap in (("chatml", "\n"), ("gemma", "\n")):
        rendered = render(TWO_REPLIES, family)
        for mode in MASK_MODES:
            graded = dict(zip(rendered.spans, graded_spans(rendered, mode), strict=True))
            gaps = {graded[span] for span in rendered.spans if span.kind == "gap"}
            assert gaps == {mode in ("everything", "inverted")}, (family, mode)
            assert rendered.text.endswith(gap)


def test_every_mode_is_tested_and_unknown_ones_are_refused(toy):
    assert set(GRADED) == set(MASK_MODES)
    with pytest.raises(MaskError, match="unknown mask mode 'answers': choose from everything"):
        training_samples(TWO_REPLIES, toy("llama3"), mode="answers")


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("mode", MASK_MODES)
def test_modes_agree_between_the_renderer_and_rerendering(family, mode, toy):
    """The spans found in a template's output say the same as the family's own."""
    chat = conversation(("user", "Hi there"), ("assistant", "Hello you"), USER, REPLY)
    ours, found = render(chat, family), spans_by_rerendering(chat, toy(family))
    assert found.text == ours.text
    assert character_mask(found, mode) == character_mask(ours, mode)


@pytest.mark.parametrize("family", [*FAMILY_NAMES, "raw"])
def test_the_end_of_turn_is_graded_in_words_too(family):
    tokenizer = WordTokenizer(family)
    sample = sample_of(TWO_REPLIES, tokenizer)
    pieces = [tokenizer.token(n) for n in sample.labels if n != IGNORE_INDEX]
    stop = {"raw": [], "plain": ["\n"], "chatml": ["<|im_end|>"], "llama3": [END]}.get(
        family, ["</s>"] if family == "mistral" else ["<end_of_turn>"]
    )
    assert pieces == ["Hello", *stop, "Bye.", *stop]


def test_the_runs_say_which_message_they_are_from(toy):
    for tokenizer in (toy("chatml"), WordTokenizer("chatml")):
        assert [run.message for run in sample_of(TWO_REPLIES, tokenizer).graded] == [1, 3]
        everything = sample_of(TWO_REPLIES, tokenizer, mode="everything").graded
        assert [run.message for run in everything] == [None, 1, None, 3]
        assert everything[0].start == 0 and everything[-1].end == len(
            sample_of(TWO_REPLIES, tokenizer)
        )


# --- labels from characters ----------------------------------------------------------------------


def test_labels_stand_at_the_token_they_name():
    encoded = Encoded([7, 8, 9], [(0, 1), (1, 3), (3, 4)])
    mask = [False, True, True, False]
    assert token_labels(encoded, mask) == [IGNORE_INDEX, 8, IGNORE_INDEX]
    assert token_labels(encoded, [True] * 4) == [7, 8, 9]


@pytest.mark.parametrize("mask", [[False, True, True], [True, True, False]])
def test_a_token_across_the_edge_is_refused(mask):
    with pytest.raises(MaskError, match="token 1 covers characters 1 to 3.*only some.*across the"):
        token_labels(Encoded([1, 2], [(0, 1), (1, 3)]), [mask[0], mask[0], mask[2]])


def test_a_token_that_covers_nothing_goes_with_its_neighbours():
    encoded = Encoded([1, 2, 3], [(0, 1), (1, 1), (1, 2)])
    assert token_labels(encoded, [True, True]) == [1, 2, 3]
    assert token_labels(encoded, [False, False]) == [IGNORE_INDEX] * 3
    with pytest.raises(MaskError, match="only some are graded"):
        token_labels(encoded, [False, True])


def merging_toy(text, template):
    """A toy without word boundaries that was trained on one text, so that it is one token."""
    from tokenizers import pre_tokenizers, trainers

    from course_utils.tokenizers import toy_tokenizer

    tokenizer = toy_tokenizer([])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=list(special_tokens(tokenizer)),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.train_from_iterator([text] * 5, trainer)
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1
    tokenizer.chat_template = template
    return tokenizer


def test_a_reply_that_merges_with_its_prompt_is_refused():
    template = (
        "{% for m in messages %}{{ m.role + ':' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    tokenizer = merging_toy("::", template)
    assert (
        graded_text(sample_of(TWO_REPLIES, tokenizer), tokenizer) == "Hello<|im_end|>Bye.<|im_end|>"
    )
    with pytest.raises(MaskError, match="'smiley': turn 1: the reply's first .* merge with the"):
        training_samples(conversation(USER, ("assistant", ":-)"), id="smiley"), tokenizer)


def test_a_merge_inside_the_prompt_is_refused(toy):
    """The edge falls between two tokens, but the prompt alone has other ids than in the sample."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # "ab" is one token alone; before "c" the higher-ranked merge "bc" takes the b away.
    vocab = {"a": 0, "b": 1, "c": 2, "bc": 3, "ab": 4, "<e>": 5, "q": 6, "bcbc": 7}
    backend = Tokenizer(models.BPE(vocab, [("b", "c"), ("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.Split("q", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'ab' if m.role == 'assistant' else '' }}{{ m.content }}<e>"
        "{% endfor %}{% if add_generation_prompt %}ab{% endif %}"
    )
    with pytest.raises(MaskError, match="turn 1: the reply's first characters 'c' merge with the"):
        training_samples(conversation(("user", "q"), ("assistant", "c")), tokenizer)


# --- content can be anything ---------------------------------------------------------------------


def replies_in(chat, family):
    stop = {"plain": "\n", "chatml": "<|im_end|>", "llama3": END, "gemma": "<end_of_turn>"}
    before = " " if family in ("plain", "mistral") else ""
    trim = str.strip if family in TRIMS else str
    return "".join(
        before + trim(m.content) + stop.get(family, "</s>") for m in chat if m.role == "assistant"
    )


def harmless_like(chat):
    return conversation(*((m.role, "x" if m.content.strip() else m.content) for m in chat))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_content_gives_no_special_id_with_the_toy(family, toy):
    tokenizer = toy(family)
    typed = []

    @settings(max_examples=150, suppress_health_check=QUICK)
    @given(any_chats(family))
    def safe(chat):
        assume("assistant" in chat.roles and chat.roles[0] != "assistant")
        sample = sample_of(chat, tokenizer)
        check_sample(sample)
        text = tokenizer.decode(sample.input_ids)
        assert text == str(render(chat, family, lossy=True))
        written = specials_in(sample_of(harmless_like(chat), tokenizer), tokenizer)
        assert specials_in(sample, tokenizer) == written
        assert graded_text(sample, tokenizer) == replies_in(chat, family)
        naive = tokenizer(text, add_special_tokens=False)["input_ids"]
        typed.append(naive != sample.input_ids)

    safe()
    assert sum(typed) > 10, "the contents hold no special tokens: nothing was tested"


@pytest.mark.parametrize("name", ["llama3", "llama3_1", "qwen3", "gemma3"])
def test_content_gives_no_special_id_with_real_tokenizers(name, real):
    tokenizer = real(name)
    outcomes = {"refused": 0, "made": 0}
    roles = ("system", "user", "assistant")
    chats = alternating() if name in ("gemma3", "qwen3") else any_order(roles)
    typed = ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", *special_tokens(tokenizer)[-3:]]

    # Gemma's 6,000 added tokens make every example slow.
    @settings(max_examples=40 if name == "gemma3" else 100, suppress_health_check=QUICK)
    @given(chats.map(as_conversation), st.sampled_from(typed), st.integers(0, 20))
    def safe(chat, token, place):
        if name == "qwen3":  # its template rewrites earlier turns, so only one exchange is possible
            chat = chat.prefix(2 + (chat.roles[0] == "system"))
        chat = conversation(*((m.role, insert(m.content, token, place)) for m in chat))
        if name == "gemma3":  # it writes "▁" for a space, so the two cannot be told apart
            chat = conversation(*((m.role, m.content.replace("▁", "_")) for m in chat))
        assume("assistant" in chat.roles and chat.roles[0] != "assistant")
        try:
            sample = sample_of(chat, tokenizer)
        except MaskError:
            outcomes["refused"] += 1
            return
        outcomes["made"] += 1
        check_sample(sample)
        harmless = sample_of(harmless_like(chat), tokenizer)
        assert specials_in(sample, tokenizer) == specials_in(harmless, tokenizer)
        written = tokenizer.apply_chat_template(chat.as_messages(), tokenize=False)
        if name == "llama3":  # it writes the generation prompt unasked
            written = written.removesuffix(TELL)
        assert same(tokenizer.decode(sample.input_ids), written)
        family = {"qwen3": "chatml", "gemma3": "gemma"}.get(name, "llama3")
        thought = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
        replies = replies_in(chat, family)
        if name == "qwen3":
            replies = replies.lstrip("\n")
        assert same(graded_text(sample, tokenizer), thought + replies)

    def same(decoded, text):
        """Qwen3's tokenizer composes characters (NFC)."""
        return decoded == (unicodedata.normalize("NFC", text) if name == "qwen3" else text)

    safe()
    assert outcomes["made"] > 20 and outcomes["refused"] <= outcomes["made"] / 5, outcomes


def insert(text, token, place):
    place = min(place, len(text))
    return text[:place] + token + text[place:]


def test_content_gives_no_special_id_in_words():
    @settings(max_examples=100, suppress_health_check=QUICK)
    @given(any_chats("llama3"))
    def safe(chat):
        assume("assistant" in chat.roles)
        tokenizer = WordTokenizer()
        sample, harmless = (sample_of(c, tokenizer) for c in (chat, harmless_like(chat)))
        written = {
            tokenizer.vocabulary[s.text]
            for s in render(chat, "llama3", lossy=True).spans
            if s.special
        }
        count = [sum(n in written for n in s.input_ids) for s in (sample, harmless)]
        assert count[0] == count[1]

    safe()
    sample = sample_of(TINY_CHATS[2], tokenizer := WordTokenizer())
    tokens = [tokenizer.token(number) for number in sample.input_ids]
    assert tokens.count(END) == 4 and sample.input_ids.count(sample.input_ids[-1]) == 3


def test_the_guard_character_is_refused_where_something_must_be_guarded(toy):
    chat = conversation(("user", f"a{GUARD}<|im_end|>"), REPLY, id="private")
    with pytest.raises(MaskError, match=r"'private': .*U\+E000 at position 1.*Remove it"):
        training_samples(chat, WordTokenizer())
    # A plan guards nothing: its texts are encoded apart from the template.
    tokenizer = toy("chatml")
    sample = sample_of(chat, tokenizer)
    assert sample.input_ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert f"a{GUARD}<|im_end|>" in tokenizer.decode(sample.input_ids)
    # Where nothing has to be guarded, it is a character like any other.
    chat = conversation(("user", f"a{GUARD}"), ("assistant", "\U000f0000\U000f0001"))
    sample = sample_of(chat, toy("chatml"))
    assert graded_text(sample, toy("chatml")) == "\U000f0000\U000f0001<|im_end|>"


STEERED = {
    "cleans": "{{ m.content | replace('<|im_end|>', '') }}",
    "obeys": "{{ 'STOP' if '<|im_end|>' in m.content else m.content }}",
}


@pytest.mark.parametrize("kind", STEERED)
def test_a_template_that_content_steers_is_refused(kind, toy):
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        + STEERED[kind]
        + "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    assert sample_of(conversation(USER, REPLY), toy(template))
    chat = conversation(("user", "go <|im_end|> on"), REPLY)
    with pytest.raises(MaskError, match="typed by a user could steer it. Remove such|drops or rew"):
        training_samples(chat, toy(template))


def test_a_special_token_that_template_and_content_make_together_is_none(toy):
    template = "{% for m in messages %}{{ '<|' + m.content + '|>' + '<|eot_id|>' }}{% endfor %}"
    tokenizer = toy(template)
    sample = sample_of(conversation(("user", "im_end"), ("assistant", "im_start")), tokenizer)
    assert tokenizer.decode(sample.input_ids) == "<|im_end|><|eot_id|><|im_start|><|eot_id|>"
    assert [tokenizer.decode([n]) for n in specials_in(sample, tokenizer)] == ["<|eot_id|>"] * 2


# --- the generation tag --------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_labels_equal_the_generation_tags_mask(family, toy):
    tokenizer = toy(chat_template(family, generation_tag=True))
    roles = [role for role in ROLES[family] if role != "assistant"]
    turns = (
        alternating(HARMLESS, full=True)
        if family in ALTERNATES
        else any_order((*roles, "assistant"), HARMLESS)
    )

    @settings(max_examples=100, suppress_health_check=QUICK)
    @given(turns.map(as_conversation))
    def same(chat):
        assume("assistant" in chat.roles and chat.roles[0] != "assistant")
        theirs = tokenizer.apply_chat_template(
            chat.as_messages(),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        sample = sample_of(chat, tokenizer)
        assert sample.input_ids == list(theirs["input_ids"])
        ours = [int(label != IGNORE_INDEX) for label in sample.labels]
        assert ours == list(theirs["assistant_masks"])

    same()


# --- templates that rewrite, drop, or do without -------------------------------------------------

OPEN = "{{ '<|im_start|>' + m.role + '\n' }}"
BODY = "{% for m in messages %}" + OPEN + "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
ASKED = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
REWRITES = {
    "time": (
        "{{ strftime_now('%H:%M:%S.%f') + '<|im_end|>\n' }}" + BODY + ASKED,
        r"turn 1: adding .* changes what stood before it, at character \d+: '\d+.*' became '\d",
    ),
    "number of turns": (
        "{{ messages | length }}" + BODY + ASKED,
        r"turn 1: adding the reply changes .* character 0: '1<\|im_start.* became '2<",
    ),
    "prompt inside": (
        BODY + "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}",
        r"turn 1: adding the reply changes .*'model\\n' became 'assistant",
    ),
}


@pytest.mark.parametrize("kind", REWRITES)
def test_a_prompt_that_the_finished_turn_does_not_begin_with_is_refused(kind, toy):
    template, message = REWRITES[kind]
    with pytest.raises(MaskError, match=f"conversation 'two': {message}.*Change the template"):
        training_samples(TWO_REPLIES, toy(template))


# Templates that write earlier turns in another way than the last, as served: what each writes for
# the first reply while it is the last, and afterwards.
FORGETS = {
    "last user turn": (
        "{% for m in messages %}" + OPEN + "{% if m.role == 'user' and loop.revindex <= 2 %}"
        "{{ 'Think. ' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}" + ASKED
    ),
    "old replies": (
        "{% for m in messages %}" + OPEN + "{{ (m.content if loop.last or m.role == 'user' "
        "else m.content[:3]) + '<|im_end|>\n' }}{% endfor %}" + ASKED
    ),
}


@pytest.mark.parametrize("kind", FORGETS)
def test_a_template_that_rewrites_history_gives_a_sample_for_each_reply(kind, toy):
    tokenizer = toy(FORGETS[kind])
    samples = training_samples(TWO_REPLIES, tokenizer)
    for sample, turn in zip(samples, (1, 3), strict=True):
        check_sample(sample)
        assert [run.message for run in sample.graded] == [turn]
        messages = TWO_REPLIES.as_messages()
        assert tokenizer.decode(sample.input_ids) == render_template(
            tokenizer, messages[: turn + 1]
        )
        prompt = render_template(tokenizer, messages[:turn], add_generation_prompt=True)
        assert tokenizer.decode(sample.input_ids[: sample.graded[0].start]) == prompt


def test_qwen3_rewrites_history(real):
    """Every reply as a sample of its own, each with the prompt that a server would send."""
    tokenizer = real("qwen3")
    samples = training_samples(TWO_REPLIES, tokenizer)
    for sample, turn, reply in zip(samples, (1, 3), ("Hello", "Bye."), strict=True):
        check_sample(sample)
        last = sample_of(TWO_REPLIES.prefix(turn + 1), tokenizer, mode="last_turn")
        assert sample == last
        assert graded_text(sample, tokenizer) == f"<think>\n\n</think>\n\n{reply}<|im_end|>"
        prompt = tokenizer.apply_chat_template(
            TWO_REPLIES.prefix(turn).as_messages(), tokenize=False, add_generation_prompt=True
        )
        start = sample.graded[0].start
        assert tokenizer.decode(sample.input_ids[:start]) == prompt
    chat = conversation(*((m.role, m.content) for m in TWO_REPLIES), ("user", "Hm?"), id="two")
    assert training_samples(chat, tokenizer) == samples


DROPS = {
    "system text": (
        "{% for m in messages if m.role != 'system' %}" + OPEN + "{{ m.content + '<|im_end|>\n' }}"
        "{% endfor %}" + ASKED,
        "turn 0: the template drops or rewrites the text of the system turn, 'Be brief.'",
    ),
    "user text": (
        "{% for m in messages %}" + OPEN + "{{ (m.content[:4] if m.role == 'user' else m.content)"
        " + '<|im_end|>\n' }}{% endfor %}" + ASKED,
        "turn 1: the template drops or rewrites the text of the user turn, 'yes now.'",
    ),
    "reply": (
        "{% for m in messages %}"
        + OPEN
        + "{{ m.content[:12] + '<|im_end|>\n' }}{% endfor %}"
        + ASKED,
        "turn 2: the template drops or rewrites the text of the assistant turn, 'easure.'",
    ),
    "capitals": (
        "{% for m in messages %}" + OPEN + "{{ (m.content if m.role != 'assistant' else m.content "
        "| upper) + '<|im_end|>\n' }}{% endfor %}" + ASKED,
        "turn 2: the template drops or rewrites the text of the assistant turn, 'Yes, with",
    ),
    "more after the end": (
        "{% for m in messages %}" + OPEN + "{{ m.content + '<|im_end|>' + m.role + '\n' }}"
        "{% endfor %}" + ASKED,
        "turn 2: after the end of turn the template writes 'assistant'.*comes last",
    ),
}


@pytest.mark.parametrize("kind", DROPS)
def test_a_template_that_drops_text_is_refused(kind, toy):
    template, message = DROPS[kind]
    chat = conversation(
        ("system", "Be brief."), ("user", "Say yes now."), ("assistant", "Yes, with pleasure.")
    )
    with pytest.raises(MaskError, match=message):
        training_samples(chat, toy(template))


def test_tool_outputs_may_be_written_as_json(toy):
    template = (
        "{% for m in messages %}" + OPEN + "{{ (m.content | tojson if m.role == 'tool' else "
        "m.content) + '<|im_end|>\n' }}{% endfor %}" + ASKED
    )
    chat = conversation(USER, REPLY, ("tool", '{"a": "b\nc"}'), REPLY)
    assert graded_text(sample_of(chat, toy(template)), toy(template)) == "Hello<|im_end|>" * 2
    dropped = template.replace("| tojson", "[:2]")
    with pytest.raises(MaskError, match="turn 2: .*text of the tool turn"):
        training_samples(chat, toy(dropped))


def test_a_template_that_always_opens_a_reply(real, toy):
    """The first Llama-3 template writes the generation prompt whether asked or not."""
    tokenizer = real("llama3")
    assert render_template(tokenizer, TWO_REPLIES.as_messages()).endswith(TELL)
    sample = sample_of(TWO_REPLIES, tokenizer)
    assert tokenizer.decode(sample.input_ids) == str(render(TWO_REPLIES, "llama3"))
    assert graded_text(sample, tokenizer) == GRADED["assistant"]
    sample = sample_of(TWO_REPLIES.prefix(3), tokenizer)
    assert tokenizer.decode(sample.input_ids) == str(render(TWO_REPLIES.prefix(3), "llama3"))
    for family, prompt in (("chatml", "<|im_start|>assistant\n"), ("plain", "Assistant:")):
        source = chat_template(family)
        always = toy(source[: source.index("{%- if add_gen")] + f"{{{{- {prompt!r} -}}}}")
        for turns in (4, 3, 2):
            chat = TWO_REPLIES.prefix(turns)
            assert render_template(always, chat.as_messages()).endswith(prompt)
            sample = sample_of(chat, always)
            assert always.decode(sample.input_ids) == str(render(chat, family))
            assert graded_text(sample, always) == replies_in(chat, family)


def test_a_template_that_ends_turns_with_text(toy):
    """What every turn ends with is no generation prompt, though a prompt ends with it too."""
    tokenizer = toy("{% for m in messages %}{{ m.content + ' [/END]' }}{% endfor %}")
    sample = sample_of(TWO_REPLIES, tokenizer)
    assert graded_text(sample, tokenizer) == "Hello [/END]Bye. [/END]"
    content = sample_of(TWO_REPLIES, tokenizer, mode="assistant_content")
    assert graded_text(content, tokenizer) == "HelloBye."


def test_a_tokenizer_without_a_template(bare_toy):
    with pytest.raises(MaskError, match="'two': the tokenizer has no chat template.*set one with"):
        training_samples(TWO_REPLIES, bare_toy)


def test_a_template_without_a_special_end_of_turn(toy):
    tokenizer = toy("plain")
    assert graded_text(sample_of(TWO_REPLIES, tokenizer), tokenizer) == " Hello\n Bye.\n"
    sample = sample_of(TWO_REPLIES, tokenizer, mode="last_turn")
    assert graded_text(sample, tokenizer) == " Bye.\n"
    sample = sample_of(TWO_REPLIES.prefix(2), tokenizer, mode="assistant_content")
    assert graded_text(sample, tokenizer) == " Hello"
    merging = merging_toy("Yes!\n", chat_template("plain"))
    chat = conversation(USER, ("assistant", "Yes!"), id="point")
    assert graded_text(sample_of(chat, merging), merging) == " Yes!\n"
    with pytest.raises(MaskError, match="conversation 'point': a token .*across the edge"):
        training_samples(chat, merging, mode="assistant_content")


# --- turns in every order ------------------------------------------------------------------------


def test_a_conversation_that_ends_with_the_user(toy):
    for family in FAMILY_NAMES:
        sample = sample_of(TWO_REPLIES.prefix(3), toy(family))
        whole = sample_of(TWO_REPLIES, toy(family))
        assert whole.input_ids[: len(sample)] == sample.input_ids
        assert graded_text(sample, toy(family)) == replies_in(TWO_REPLIES.prefix(2), family)
        assert sample.cuts[-1] < len(sample)


def test_two_replies_in_a_row(toy):
    chat = conversation(USER, REPLY, ("assistant", "And?"))
    for family in ("plain", "chatml", "llama3"):
        assert graded_text(sample_of(chat, toy(family)), toy(family)) == replies_in(chat, family)
        assert [run.message for run in sample_of(chat, toy("chatml")).graded] == [1, 2]
    for family in ALTERNATES:
        with pytest.raises(MaskError, match="chat template refuses the roles .*alternate"):
            training_samples(chat, toy(family))
        with pytest.raises(MaskError, match=f"{family} needs alternating turns: .*message 2"):
            training_samples(chat, WordTokenizer(family))


def test_a_conversation_that_begins_with_a_reply(toy):
    with pytest.raises(MaskError, match="turn 0 is an assistant turn.*Drop it, or put a user turn"):
        training_samples(conversation(REPLY, USER), toy("chatml"))


def test_an_unknown_family_of_the_word_tokenizer():
    with pytest.raises(MaskError, match="unknown family 'alpaca': choose from"):
        training_samples(WALKTHROUGH, WordTokenizer("alpaca"))


NOTHING = [
    (conversation(USER, id="q"), {}),
    (conversation(("system", "S"), USER, id="q"), {"mode": "assistant_content"}),
    (conversation(USER, id="q"), {"mode": "last_turn"}),
    (conversation(USER, ("assistant", ""), id="q"), {"mode": "assistant_content"}),
    (conversation(USER, REPLY, USER, REPLY, id="q"), {"mode": "last_turn", "max_length": 5}),
]


@pytest.mark.parametrize(("chat", "options"), NOTHING)
def test_nothing_left_to_grade(chat, options, toy):
    message = "conversation 'q': (nothing is left to grade.*leave it out|no assistant turn ends)"
    for tokenizer in (toy("llama3"), WordTokenizer()):
        with pytest.raises(MaskError, match=message):
            training_samples(chat, tokenizer, **options)


def test_an_empty_reply_still_ends(toy):
    chat = conversation(USER, ("assistant", ""), USER, ("assistant", " "))
    for family in FAMILY_NAMES:
        sample = sample_of(chat, toy(family))
        check_sample(sample)
        assert graded_text(sample, toy(family)) == replies_in(chat, family)


# --- cutting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_cuts_fall_on_the_ends_of_replies(family, toy):
    tokenizer = toy(family)

    @settings(max_examples=60, suppress_health_check=QUICK)
    @given(alternating(system=family not in ALTERNATES, full=True).map(as_conversation), st.data())
    def cut(chat, data):
        whole = sample_of(chat, tokenizer)
        ends = []
        for turn, message in enumerate(chat):
            if message.role == "assistant":
                ends.append(len(sample_of(chat.prefix(turn + 1), tokenizer)))
        assert list(whole.cuts) == ends
        limit = data.draw(st.integers(1, len(whole) + 2))
        fitting = [end for end in ends if end <= limit]
        if not fitting:
            with pytest.raises(MaskError, match=f"ends within {limit} tokens.*Allow more tokens"):
                sample_of(chat, tokenizer, max_length=limit)
            return
        sample = sample_of(chat, tokenizer, max_length=limit)
        check_sample(sample)
        assert len(sample) == fitting[-1] == sample.cuts[-1]
        assert sample.input_ids == whole.input_ids[: len(sample)]
        assert sample.labels == whole.labels[: len(sample)]
        assert sample.id == whole.id

    cut()


@pytest.mark.parametrize("max_length", [0, -1, -100])
def test_a_length_below_one_is_refused(max_length, toy):
    with pytest.raises(
        MaskError, match=f"max_length is {max_length}: give a number of tokens, 1 or"
    ):
        training_samples(TWO_REPLIES, toy("chatml"), max_length=max_length)
    with pytest.raises(MaskError, match="max_length is"):
        truncate(Sample([1], [1], (GradedSpan(0, 1, 1),), (1,)), max_length)


def test_a_sample_that_fits_is_left_as_it_is(toy):
    whole = sample_of(TWO_REPLIES.prefix(3), toy("chatml"))
    assert truncate(whole, len(whole)) is whole
    shorter = truncate(whole, len(whole) - 1)
    assert (shorter.dropped_replies, shorter.dropped_tokens) == (0, len(whole) - len(shorter))
    shorter = replace(shorter, dropped_tokens=0)
    assert shorter == sample_of(TWO_REPLIES.prefix(2), toy("chatml"))


def test_every_refusal_is_one_line(toy, bare_toy):
    refused = [
        lambda: training_samples(TWO_REPLIES, bare_toy),
        lambda: training_samples(TWO_REPLIES, toy(REWRITES["time"][0])),
        lambda: training_samples(TWO_REPLIES.prefix(1), toy("chatml")),
    ]
    for call in refused:
        with pytest.raises(MaskError) as raised:
            call()
        assert re.fullmatch(r"conversation 'two': [^\n]+", str(raised.value))
        assert raised.value.__suppress_context__
