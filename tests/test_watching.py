"""A template on watched texts writes what it writes on the texts themselves, or says that it can't.

Every case is judged by Jinja as transformers compiles it: with real values in the places of the
marks the output must be its output, for the texts that were watched and for others that give the
same answers.
"""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import _compile_jinja_template

from course_utils import layouts
from course_utils.conversation import conversation
from course_utils.layouts import Planner
from course_utils.masking import MaskError, render_template, training_samples
from course_utils.plans import fill, is_mark
from course_utils.rendering import ChatTemplate, template_of
from course_utils.tokenizers import toy_tokenizer
from course_utils.watching import (
    FIRST_MARK,
    FORMATTING,
    KEPT,
    LAST_MARK,
    Record,
    Ref,
    Unwatchable,
    Watched,
    freeze,
    holds_watched,
    thaw,
    watched_template,
)

QUICK = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


def watched(source, *texts):
    """The record, and the marked output, of a template that sees the texts as `t`."""
    record = Record(list(texts))
    t = [record.text(number) for number in range(len(texts))]
    return record, record.write(watched_template(source), t=t)


def plainly(source, *texts):
    return _compile_jinja_template(source).render(t=list(texts))


def replayed(record, texts):
    """The values for other texts; None if an answer is another one or a step cannot be taken."""
    values = list(texts)
    for place, (function, arguments) in enumerate(record.steps):
        try:
            values.append(function(*thaw(arguments, values)))
        except (IndexError, TypeError, ValueError):
            return None
        number = len(texts) + place
        if number in record.answers and values[-1] != record.answers[number]:
            return None
    return values


# --- what a template may do with a text ----------------------------------------------------------

# Each is tried with all pairs of TEXTS; `t` are two texts.
SOURCES = {
    "written": "{{ t[0] }} and {{ t[1] }}",
    "tilde": "{{ t[0] ~ '-' ~ t[1] ~ 3 ~ none }}",
    "plus": "{{ 'a' + t[0] + '-' + t[1] + 'b' }}",
    "percent": "{{ '<%s>' % t[0] }}",
    "percent with two": "{{ '%s|%5s' % (t[0], t[1]) }}",
    "times": "{{ t[0] * 2 }}{{ 2 * t[1] }}",
    "method format": "{{ '{}+{:>5}|{x}'.format(t[0], t[1], x=t[0]) }}",
    "filter format": "{{ '%s=%s' | format(t[0], t[1]) }}",
    "join": "{{ t | join(', ') }}{{ ', '.join(t) }}{{ ''.join([t[0] | trim, t[1]]) }}",
    "join by a text": "{{ ['x', 'y'] | join(t[0]) }}",
    "tojson": "{{ t[0] | tojson }}{{ {'k': t, 'n': 1} | tojson(indent=2) }}",
    "trim": "{{ t[0] | trim }}{{ t[1].strip() }}{{ t[1].lstrip('\n') }}{{ t[0].rstrip() }}",
    "cases": "{{ t[0] | upper }}{{ t[1] | lower }}{{ t[0] | capitalize }}{{ t[1].title() }}",
    "replace": "{{ t[0] | replace('a', t[1]) }}{{ 'bab'.replace('a', t[0]) }}",
    "split": "{{ t[0].split('</think>')[-1] }}{{ t[1].split(' ')[0].strip() }}",
    "partition": "{{ t[0].partition(' ')[2] }}{{ t[1].rpartition('a')[0] }}",
    "split another": "{{ 'a-b'.split(t[0] or '-') | join('|') }}",
    "slices": "{{ t[0][1:3] }}{{ t[0][:-1] }}{{ t[1][::-1] }}",
    "macro": "{% macro f(x) %}[{{ x | trim }}]{% endmacro %}{{ f(t[0]) }}{{ f(t[1]) | upper }}",
    "caller": (
        "{% macro g() %}({{ caller(t[0]) }}){% endmacro %}{% call(x) g() %}<{{ x }}>{% endcall %}"
    ),
    "set block": "{% set x %}<{{ t[0] }}>{% endset %}{{ x | trim }}{{ x | length }}",
    "filter block": "{% filter upper %}x{{ t[0] }}{% endfilter %}",
    "namespace": "{% set n = namespace(x='') %}{% for x in t %}{% set n.x = n.x ~ x %}{% endfor %}"
    "{{ n.x }}",
    "loop over a text": "{% for c in t[0] %}{{ loop.index }}{{ c }}.{% endfor %}",
    "list": "{% for c in t[0] | list %}{{ c }}-{% endfor %}",
    "first and last": "{% if t[0] %}{{ t[0] | first }}{{ t[0] | last }}{% endif %}",
    "reverse": "{{ t[0] | reverse }}",
    "in a text": "{{ 'yes' if 'a' in t[0] else 'no' }}{{ t[0] in t[1] }}{{ 'a' not in t[1] }}",
    "in a literal": "{{ 'yes' if t[0] in 'a<think>b' else 'no' }}",
    "in a list": "{{ 'yes' if t[0] in ['a', 'b'] else 'no' }}{{ t[1] not in ('a',) }}",
    "truth": "{{ 'T' if t[0] else 'F' }}{{ t[0] or 'x' }}{{ t[1] and 'y' }}{{ not t[0] }}",
    "default": "{{ t[0] | default('x', true) }}{{ t[1] | default('y') }}",
    "lookups": "{{ {'a': 'found'}.get(t[0], 'none') }}{{ {'a': 1}[t[1]] | default(2) }}",
    "is a key": "{{ t[0] in {'a': 1} }}",
    "comparing": "{{ t[0] == t[1] }}{{ 'a' == t[0] }}{{ t[0] != 'b' }}{{ t[0] < t[1] }}",
    "length": "{{ t[0] | length > 2 }}{{ t[1] | length }}{{ t[0] | count }}",
    "starts": "{{ t[0].startswith('<') }}{{ t[1].endswith('a') }}{{ t[0].find('a') }}",
    "starts with one of": "{{ t[0].startswith(('<', 'a')) }}",
    "kinds": "{{ t[0] is string }}{{ t[0] is mapping }}{{ t[0] is iterable }}{{ t[0] is none }}",
    "string": "{{ t[0] | string }}{{ t[0].isdigit() }}{{ t[1] is upper }}",
    "map": "{{ t | map('trim') | list | join('+') }}{{ t | map('length') | sum }}",
    "select": "{{ t | select('eq', 'a') | list | length }}{{ t | reject('in', ['b']) | join }}",
    "sort": "{{ t | sort | join }}{{ t | unique | list | length }}{{ t | max }}",
    "branch": "{% if t[0].startswith('<think>') %}{{ t[0][7:] }}{% else %}{{ t[1] }}{% endif %}",
    "safe": "{{ t[0] | safe }}",
    "a character": "{{ t[0][0] == '<' }}{{ t[1] | trim }}",
    "a character that is missing": "{{ t[0][9] is defined }}{{ t[0] | trim }}",
    "a missing attribute": "{{ t[0].text is defined }}{{ t[0] | trim }}",
    "a missing piece": "{{ t[0].split(' ')[1] }}|{{ t[1] | trim }}",
    "escape": "{{ t[0] | e }}",
    "number": "{{ t[0] | int + 1 }}{{ t[0] | float }}",
    "title": "{{ t[0] | title }}",
    "tags": "{{ t[0] | striptags }}",
    "word count": "{{ t[0] | wordcount }}",
    "word wrap": "{{ t[0] | wordwrap(3) }}",
    "truncate": "{{ t[0] | truncate(3, true, '') }}",
    "printed": "{{ t }}{{ {'a': t[0]} }}",
    "printed as text": "{{ t | string | length }}",
    "replace in a literal": "{{ 'bab' | replace(t[0] or 'x', 'q') }}",
}
TEXTS = ["", "a", " a b \n", "<think>x</think>y", "b<b>a</b>&", "42", '"q" \\ é', "aaaa aa"]
PAIRS = list(itertools.product(TEXTS, repeat=2))


@pytest.mark.parametrize("kind", SOURCES)
def test_a_template_is_followed_or_found_unwatchable(kind):
    """For the texts that are watched, and for others that give the same answers."""
    source = SOURCES[kind]
    for texts in PAIRS[::3]:
        expected = plainly(source, *texts)
        try:
            record, marked = watched(source, *texts)
        except (Unwatchable, TypeError):
            continue  # the way that renders anew is taken
        assert len(record.steps) == len(record.values) - len(texts), "a step without a value"
        assert fill(marked, record.values) == expected, texts
        for others in PAIRS[::5]:
            values = replayed(record, others)
            if values is not None:
                assert fill(marked, values) == plainly(source, *others), (texts, others)


FOLLOWED = [kind for kind in SOURCES if kind not in (
    *("in a literal", "starts with one of", "escape", "number", "title", "tags", "word count"),
    *("word wrap", "truncate", "printed", "printed as text", "percent with two", "method format"),
    *("a character", "a character that is missing", "a missing attribute", "a missing piece"),
    "replace in a literal",
)]  # fmt: skip


@pytest.mark.parametrize("kind", FOLLOWED)
def test_what_templates_commonly_do_is_followed(kind):
    for texts in PAIRS[::7]:
        record, marked = watched(SOURCES[kind], *texts)
        assert fill(marked, record.values) == plainly(SOURCES[kind], *texts)


# --- the pieces ----------------------------------------------------------------------------------

ARGUMENTS = {
    "__add__": ("x",), "__contains__": ("a",), "__eq__": ("a",),
    "__ge__": ("a",), "__getitem__": (0,), "__gt__": ("a",), "__le__": ("a",), "__lt__": ("a",),
    "__mod__": ((),), "__mul__": (2,), "__ne__": ("a",), "__rmod__": ("%s",), "__rmul__": (2,),
    "center": (9,), "count": ("a",), "endswith": ("a",), "find": ("a",),
    "index": ("a",),
    "join": (["x", "y"],), "ljust": (9,), "partition": (" ",), "removeprefix": ("a",),
    "removesuffix": ("a",), "replace": ("a", "b"), "rfind": ("a",), "rindex": ("a",),
    "rjust": (9,), "rpartition": (" ",), "startswith": ("a",), "translate": ({97: "b"},),
    "zfill": (9,),
}  # fmt: skip
METHODS = sorted(set(dir(str)) - KEPT - FORMATTING)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_a_text_is_noted(name):
    record = Record(["a b-c"])
    arguments = ARGUMENTS.get(name, ())
    with record.watching():
        found = getattr(record.text(0), name)(*arguments)
    expected = getattr(str, name)("a b-c", *arguments)
    assert record.steps, f"{name} left no trace"
    if isinstance(expected, str):
        assert isinstance(found, Watched) and record.values[record.number(found)] == expected
        assert str.__str__(found) != expected
    elif isinstance(expected, list | tuple):
        assert [record.values[record.number(piece)] for piece in found] == list(expected)
        assert list(record.answers.values()) == [len(expected)]
    else:
        assert found == expected and list(record.answers.values()) == [expected]


@pytest.mark.parametrize("name", sorted(FORMATTING))
def test_a_text_is_never_formatted_past_the_sandbox(name):
    record = Record(["{0.__class__}"])
    with record.watching(), pytest.raises(Unwatchable, match="formats a text"):
        getattr(record.text(0), name)("x")


def test_nothing_is_done_to_a_text_that_nobody_watches():
    record = Record(["a"])
    with pytest.raises(Unwatchable, match="outside the run"):
        record.text(0).strip()
    assert record.steps == []
    other = Record(["a", "b"])
    with record.watching(), pytest.raises(Unwatchable, match="a different conversation"):
        other.text(1).strip()


def test_methods_that_python_adds_one_day_are_noted_too():
    untouched = {name for name in dir(str) if getattr(Watched, name) == getattr(str, name, None)}
    inherited = {"__class__", "__doc__", *KEPT}
    assert untouched <= inherited
    assert {"__hash__", "__len__", "__iter__", "__bool__"} <= set(vars(Watched))


def test_a_joined_text_keeps_the_marks_of_its_parts():
    record = Record(["a", "b"])
    with record.watching():
        joined = "<" + record.text(0) + "|" + record.text(1) + ">"
        cut = joined[1:]
        assert str.__str__("" + record.text(0)) == chr(FIRST_MARK)
    assert str.__str__(joined) == f"<{chr(FIRST_MARK)}|{chr(FIRST_MARK + 1)}>"
    assert record.values[record.number(joined)] == "<a|b>"
    assert len(str.__str__(cut)) == 1 and record.values[record.number(cut)] == "a|b>"


def test_the_same_step_has_one_mark():
    record = Record([" a "])
    text = record.text(0)
    with record.watching():
        once, again = text.strip(), text.strip()
    assert record.number(once) == record.number(again) == 1 and len(record.steps) == 1


def test_freezing_and_thawing():
    record = Record(["a", "b"])
    text, other = record.text(0), record.text(1)
    with record.watching():
        frozen = freeze([text, {"k": (other, 3)}, "c"])
    assert frozen == [Ref(0), {"k": (Ref(1), 3)}, "c"]
    assert thaw(frozen, ["x", "y"])[0] == "x" and thaw(frozen, ["x", "y"])[1]["k"][0] == "y"
    assert holds_watched({"k": [1, (other,)]}) and not holds_watched(["a", {"b": 1}, 3])


def test_a_step_keeps_tuples_as_tuples():
    """'%s %s' % (a, b) and startswith((a, b)) want a tuple."""
    assert isinstance(thaw(freeze((("a", "b"),)), [])[0], tuple)


def test_too_many_steps_are_refused():
    record = Record(["a"])
    assert str.__str__(record.text(LAST_MARK - FIRST_MARK)) == chr(LAST_MARK)
    with pytest.raises(Unwatchable, match="too many steps"):
        record.text(LAST_MARK - FIRST_MARK + 1)


def test_a_template_that_uses_the_marks_itself_is_refused():
    for character in (FIRST_MARK, LAST_MARK):
        with pytest.raises(Unwatchable, match="private characters"):
            watched_template(f"{{{{ t }}}}{chr(character)}")


def test_the_templates_environment_is_left_as_it_was():
    source = "{{ t | join(',') }}"
    watched(source, "a", "b")
    environment = _compile_jinja_template(source).environment
    assert environment.filters["join"].__module__ == "jinja2.filters"
    assert plainly(source, "a", "b") == "a,b"


# --- any small template --------------------------------------------------------------------------

EXPRESSIONS = st.recursive(
    st.sampled_from(["t[0]", "t[1]", "'a'", "'<b> '", "''"]),
    lambda inner: st.one_of(
        st.tuples(
            inner,
            st.sampled_from(
                ["|trim", "|upper", "|lower", "|tojson", "|reverse", "[1:]", "[:2]", "|string"]
                + [".strip('a')", ".split('a')[0]", ".rpartition(' ')[-1]", "|replace('a', 'bb')"]
                + ["|list|join('.')", "|default('d', true)", " * 2", "|capitalize", ".title()"]
            ),
        ).map(lambda pair: f"({pair[0]}){pair[1]}"),
        st.tuples(inner, st.sampled_from(["~", "+"]), inner).map(
            lambda three: "({} {} {})".format(*three)
        ),
        st.tuples(inner, inner).map(lambda two: "('%s.' % ({}) ~ [{}]|join)".format(*two)),
    ),
    max_leaves=5,
)
QUESTIONS = st.tuples(
    EXPRESSIONS,
    st.sampled_from(
        ["", " == 'a'", "|length > 2", ".startswith('<')", " in ['a', 'A']", "|length is odd"]
        + [".isalpha()", " < 'b'", ".count('a') == 1", " != t[1]", ".find('b') < 0"]
    ),
).map(lambda two: f"({two[0]}){two[1]}")
STATEMENTS = st.recursive(
    st.one_of(
        st.sampled_from(["x", "<|im_end|>", "\n"]),
        EXPRESSIONS.map(lambda inner: "{{ " + inner + " }}"),
        QUESTIONS.map(lambda inner: "{{ " + inner + " }}"),
    ),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(QUESTIONS, inner, inner).map(
            lambda three: "{{% if {} %}}{}{{% else %}}{}{{% endif %}}".format(*three)
        ),
        st.tuples(inner, st.sampled_from(["|trim", "|length", "|upper", ""])).map(
            lambda two: "{{% set x %}}{}{{% endset %}}{{{{ x{} }}}}".format(*two)
        ),
        st.tuples(EXPRESSIONS, inner).map(
            lambda two: "{{% for c in {} %}}{{{{ c }}}}{}{{% endfor %}}".format(*two)
        ),
    ),
    max_leaves=5,
)
TEXT = st.one_of(st.sampled_from(TEXTS), st.text("ab <>\n{%é", max_size=6))


def test_any_small_template():
    counts = {"followed": 0, "replayed": 0, "other": 0}

    @settings(max_examples=400, suppress_health_check=QUICK)
    @given(STATEMENTS, st.tuples(TEXT, TEXT), st.lists(st.tuples(TEXT, TEXT), max_size=4))
    def followed(source, texts, others):
        record, marked = watched(source, *texts)
        assert fill(marked, record.values) == plainly(source, *texts)
        counts["followed"] += any(map(is_mark, marked))
        for other in others:
            values = replayed(record, other)
            counts["replayed" if values else "other"] += 1
            if values is not None:
                assert fill(marked, values) == plainly(source, *other)
            else:
                again, marked_again = watched(source, *other)
                assert fill(marked_again, again.values) == plainly(source, *other)

    followed()
    assert min(counts.values()) > 20, counts


def test_the_same_answers_give_the_same_marks():
    """Two texts with the same answers take the same steps; so the plan of one is the other's."""
    counts = {"same": 0}

    @settings(max_examples=200, suppress_health_check=QUICK)
    @given(STATEMENTS, st.tuples(TEXT, TEXT), st.tuples(TEXT, TEXT))
    def same(source, texts, others):
        record, marked = watched(source, *texts)
        if replayed(record, others) is not None:
            counts["same"] += texts != others
            again, marked_again = watched(source, *others)
            assert marked_again == marked
            # Jinja's own objects among the arguments are made anew with each template.
            names = [[function.__name__ for function, _ in r.steps] for r in (again, record)]
            assert names[0] == names[1] and again.answers == record.answers

    same()
    assert counts["same"] > 20


# --- plans ---------------------------------------------------------------------------------------

FRAME = (
    "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{}<|im_end|>\n{{% endfor %}}"
    "{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)
BODY = "{% if m.content.startswith('!') %}LOUD {% endif %}{{ m.content | trim }}"


def tokenizer_with(body):
    tokenizer = toy_tokenizer(["Water boils at 100 degrees. Hi! LOUD yes\n"] * 4)
    tokenizer.chat_template = FRAME.format(body)
    return tokenizer


def planner_with(body):
    return Planner(template_of(tokenizer_with(body)), {})


def asked(question, reply="Yes."):
    return conversation(("user", question), ("assistant", reply))


@pytest.fixture
def runs(monkeypatch):
    """Counts the runs of templates: on watched texts, and by transformers."""
    counts = {"watched": 0, "plain": 0}
    watched_run, plain_run = layouts.Run.render, ChatTemplate.write

    def count_watched(*arguments, **options):
        counts["watched"] += 1
        return watched_run(*arguments, **options)

    def count_plain(*arguments, **options):
        counts["plain"] += 1
        return plain_run(*arguments, **options)

    monkeypatch.setattr(layouts.Run, "render", count_watched)
    monkeypatch.setattr(ChatTemplate, "write", count_plain)
    return counts


def test_a_plan_is_made_once_and_compared_always(runs):
    planner = planner_with(BODY)
    runs.update(watched=0, plain=0)
    plans = [planner.plan(asked(f"Number {number}?"))[0] for number in range(10)]
    assert len(set(map(id, plans))) == 1 and runs["watched"] == 3
    assert runs["plain"] == 20, "the text and the prompt of each"
    planner.plan(asked(" one more \n", " reply "))
    assert runs == {"watched": 3, "plain": 22}
    assert plans[0].compared == 11


def test_a_text_that_changes_an_answer_gets_another_plan(runs):
    planner = planner_with(BODY)
    quiet, _ = planner.plan(asked("Hi"))
    before = runs["watched"]
    loud, values = planner.plan(asked("!Hi"))
    assert loud is not quiet and runs["watched"] > before
    assert "LOUD" in fill(loud.layouts[0].marked, values)
    before = runs["watched"]
    assert planner.plan(asked("Ho"))[0] is quiet and planner.plan(asked("!Ho"))[0] is loud
    assert runs["watched"] == before
    other_shape, _ = planner.plan(asked("Hi").prefix(1))
    assert other_shape not in (quiet, loud)


def test_only_so_many_plans_of_a_shape_are_kept():
    planner = planner_with("{{ m.content | length }}{{ m.content }}")
    for length in range(1, 15):
        plan, values = planner.plan(asked("a" * length))
        assert f"{length}{'a' * length}" in fill(plan.layouts[0].marked, values)
    (kept,) = planner.plans.values()
    assert len(kept) == layouts.KEPT_PLANS
    assert planner.dropped == list(range(14 - layouts.KEPT_PLANS))


# Bodies of templates, with two questions: one that hides what the template does, and one that shows
# it.
HIDDEN = {
    "length": ("{{ 'N' if m.content | length > 3 }}{{ m.content }}", "abc", "long one"),
    "in a list": ("{{ 'N' if m.content in ['u', 'v'] }}{{ m.content }}", "abc", "v"),
    "equal": ("{{ 'N' if 'hello' == m.content }}{{ m.content }}", "abc", "hello"),
    "key": ("{{ {'hello': 'N'}[m.content] }}{{ m.content }}", "abc", "hello"),
    "count": ("{{ 'N' if 'hello'.count(m.content) else '' }}{{ m.content }}", "abc", "l"),
    "slice": ("{{ 'N' if m.content[:1] == '<' }}{{ m.content }}", "abc", "<b"),
    "digits": ("{{ 'N' if m.content.isdigit() }}{{ m.content }}", "abc", "12"),
    "joined": ("{{ 'N' if ('x' ~ m.content) == 'xhello' }}{{ m.content }}", "abc", "hello"),
    "neighbour": (
        "{{ 'N' if loop.previtem and loop.previtem.content == m.content }}{{ m.content }}",
        "abc",
        "Yes.",
    ),
    "all as JSON": ("{{ 'N' if m | tojson | length > 50 }}{{ m.content }}", "abc", "hello" * 9),
    "in a literal": ("{{ 'N' if m.content in 'hello world' }}{{ m.content }}", "abc", "hello"),
    "test in a literal": ("{{ 'N' if m.content is in('hello') }}{{ m.content }}", "abc", "hello"),
    "number": ("{{ 'N' if m.content | int }}{{ m.content }}", "abc", "42"),
    "fraction": ("{{ 'N' if m.content | float }}{{ m.content }}", "abc", "4.5"),
    "escape": ("{{ m.content | e }}", "abc", "<b>"),
    "title": ("{{ m.content | title }}", "A", "abc def"),
    "tags": ("{{ m.content | striptags }}", "abc", "a<b>c</b>"),
    "word wrap": ("{{ m.content | wordwrap(5) }}", "abc", "abcdef ghij"),
    "links": ("{{ m.content | urlize }}", "abc", "http://a.de"),
    "replaced": (
        "{{ 'N' if 'hello' | replace(m.content, '') == '' }}{{ m.content }}",
        "abc",
        "hello",
    ),
    "all joined": (
        "{{ messages | map(attribute='content') | join == 'helloYes.' }}{{ m.content }}",
        "abc",
        "hello",
    ),
    "all as text": ("{{ 'N' if m | string | length > 50 }}{{ m.content }}", "abc", "hello" * 9),
    "a filter's block": ("{% filter title %}{{ m.content }}{% endfilter %}", "A", "abc"),
    "a character": ("{{ 'N' if m.content[1] == '<' }}{{ m.content }}", "a", "<<"),
    "first character": ("{{ 'N' if m.content[0] == '<' }}{{ m.content }}", "", "<<"),
    "a missing piece": ("{{ m.content.split('|')[1] }}{{ m.content }}", "a", "1|2"),
    "one of several": ("{{ 'N' if m.content.startswith(('<', '[')) }}{{ m.content }}", "a", "<b"),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_plan_is_never_used_for_a_text_that_the_template_treats_in_another_way(kind):
    body, hides, shows = HIDDEN[kind]
    tokenizer = tokenizer_with(body)
    made = 0
    for question in (hides, hides, hides, hides, shows):
        chat = asked(question)
        try:
            (sample,) = training_samples(chat, tokenizer)
        except MaskError:
            continue
        made += 1
        assert tokenizer.decode(sample.input_ids) == render_template(tokenizer, chat.as_messages())
    assert made or kind in ("title", "a filter's block"), "every conversation was refused"


def test_what_cannot_be_watched_is_rendered_anew_and_masked_right():
    tokenizer = tokenizer_with("{{ m.content }}{{ [m.content] | string | length }}")
    chat = asked("Hi", "Yes")
    with pytest.raises(Unwatchable):
        Planner(template_of(tokenizer), {}).plan(chat)
    (sample,) = training_samples(chat, tokenizer)
    assert tokenizer.decode([n for n in sample.labels if n >= 0]) == "Yes7<|im_end|>"
