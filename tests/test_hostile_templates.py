"""Templates from strangers: none executes anything, reads anything, or runs past its bounds.

Every template goes through everything that runs one. The judge looks at what must not have
happened: a file that was made, a secret of the environment or of a file that was written into a
text, a time or a memory that was exceeded; and every outcome is a mask or one sentence.
"""

import gc
import os
import platform
import time
from pathlib import Path

import pytest
from tiny_base import tiny_model, tiny_tokenizer

from course_utils import confinement
from course_utils.batching import prepare
from course_utils.conversation import Conversation, Message, conversation
from course_utils.masking import MaskError, training_samples
from course_utils.replies import prompt_ids, stop_ids
from course_utils.sealing import MACHINES
from course_utils.tokenizers import toy_tokenizer
from course_utils.watching import Record, Watched, watched_template

SECRET = "c4n4ry-5ecret"
BODY = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
RUN = "os.system('touch CANARY')"

# Each is put before a harmless template. CANARY is the path of a file that must not appear.
WALKS = {
    "the watcher's record": "{% set w = c|wordwrap(9) %}{{ c.record.steps[0][1][0].context }}",
    "the watcher by item": "{{ c['record'] }}{{ c['_record'] }}{{ c|attr('record') }}",
    "a joined text's record": "{{ (c ~ 'x').record.values }}{{ (c + 'y').number }}",
    "class": "{{ c.__class__.__mro__[-1].__subclasses__() }}",
    "class by item": "{{ c['__class__']['__base__'] }}",
    "class by attr": "{{ c|attr('__class__')|attr('__mro__') }}",
    "class by map": "{{ [c]|map(attribute='__class__')|list }}",
    "class by selectattr": "{{ [c]|selectattr('__class__')|map(attribute='__class__')|list }}",
    "class by groupby": "{{ [c]|groupby('__class__') }}",
    "class by sort": "{{ [c, c]|sort(attribute='__class__.__name__') }}",
    "class by sum": "{{ [c]|sum(attribute='__len__') }}",
    "method's globals": "{{ c.strip.__func__.__globals__ }}{{ c.strip.__self__.__class__ }}",
    "cycler": "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "lipsum": "{{ lipsum.__globals__['os'].system('touch CANARY') }}",
    "joiner": "{{ joiner.__init__.__globals__.__builtins__.open('CANARY', 'w') }}",
    "namespace": "{{ namespace.__init__.__globals__ }}{% set n = namespace(__class__=1) %}",
    "raise_exception": "{{ raise_exception.__globals__.json.os.system('touch CANARY') }}",
    "strftime_now": "{{ strftime_now.__globals__.datetime }}{{ strftime_now('%d')|length }}",
    "dict": "{{ dict.__call__.__globals__ }}{{ dict.fromkeys('ab') }}",
    "template itself": "{{ self._TemplateReference__context.environment.template_class }}",
    "block": "{% block b %}{{ self.b._context }}{{ self.b.__init__ }}{% endblock %}",
    "loop": "{% for x in [1] %}{{ loop.__init__.__globals__ }}{{ loop._iterator }}{% endfor %}",
    "macro": "{% macro f() %}{{ caller.__globals__ }}{% endmacro %}{{ f._func.__globals__ }}",
    "caller": "{% macro f() %}{{ caller._environment }}{% endmacro %}{% call f() %}{% endcall %}",
    "undefined": "{{ nothing._fail_with_undefined_error.__globals__ }}{{ nothing.__class__ }}",
    "generator": "{{ ([c]|map('upper')).gi_frame.f_globals }}",
    "exception": "{{ raise_exception(c.__class__) }}",
    "environment": "{{ environment }}{{ context }}{{ __loader__ }}{{ environment.template_class }}",
    "compiled names": "{{ l_0_messages }}{{ undefined.__globals__ }}{{ t_1.__globals__ }}",
}
FORMATS = {
    "format of a literal": "{{ '{0.__class__.__mro__}'.format(c) }}",
    "format of an object": "{{ '{0.__init__.__globals__[os].environ}'.format(cycler) }}",
    "format with a text": "{{ '{1.__init__.__globals__[os].environ}'.format(c, cycler) }}",
    "format_map": "{{ '{x.__init__.__globals__}'.format_map({'x': cycler}) }}",
    "format by attr": "{{ ('{0.__init__.__globals__}'|attr('format'))(cycler) }}",
    "format by map": "{{ ['{0.__init__.__globals__}']|map('attr', 'format')|first }}",
    "format of the content": "{{ messages[0].content.format(cycler) }}{{ c.format_map({}) }}",
    "format of a joined text": "{{ ('{0.__class__' ~ '}' ~ c).format(c) }}",
    "percent": "{{ '%s %r'|format(c, cycler.__init__) }}{{ '%(a)s' % {'a': lipsum} }}",
    "conversion": "{{ '{!r:>{w}}'.format(c, w=9) }}",
    "translate": "{{ c.translate({65: 'B'}) }}{{ c.maketrans('a', 'b') }}",
}
FILES = {
    "include": "{% include '/etc/passwd' %}",
    "include by list": "{% include ['x', '/etc/hostname'] ignore missing %}",
    "import": "{% import 'os' as os %}{{ " + RUN + " }}",
    "from": "{% from 'os' import system %}{{ system('touch CANARY') }}",
    "extends": "{% extends '../secret.txt' %}",
    "do": "{% do messages.append(1) %}",
    "mutation": "{% set x = messages.append({'role': 'user', 'content': 'x'}) %}",
    "mutated message": "{% set x = messages[0].update({'content': 'x'}) %}{{ messages.clear() }}",
    "mutated options": "{% set x = tools.append(1) %}",
    "pop": "{{ messages.pop() }}{{ messages[0].popitem() }}{{ messages.sort() }}",
}
ENDLESS = {
    "range": "{% for i in range(10**9) %}{{ i }}{% endfor %}",
    "nested loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i * j %}"
        "{% endfor %}{% endfor %}"
    ),
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "two macros": (
        "{% macro f(n) %}{{ g(n) }}{{ g(n) }}{% endmacro %}"
        "{% macro g(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "recursive loop": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "power": "{{ (10**10**9)|string|length }}",
    "power of a variable": "{% set n = messages|length * 10 %}{{ (n ** (n ** 9)) % 7 }}",
    "shift by repetition": "{{ ('x' * 10**11)|length }}",
    "repetition of a variable": "{{ ('x' * (10 ** (messages|length + 9)))|length }}",
    "a long list": "{{ ([0] * 10**11)|length }}",
    "doubling": (
        "{% set n = namespace(x=c) %}{% for i in range(90) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
    ),
    "doubling a literal": (
        "{% set n = namespace(x='x') %}{% for i in range(90) %}{% set n.x = n.x + n.x %}"
        "{% endfor %}{{ n.x|length }}"
    ),
    "nested lists as JSON": (
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}"
        "{% endfor %}{{ n.x|tojson }}"
    ),
    "nested lists printed": (
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}"
        "{% endfor %}{{ n.x }}"
    ),
    "nested lists compared": (
        "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}"
        "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}"
    ),
    "nested tuples as a key": (
        "{% set n = namespace(x=(1,)) %}{% for i in range(60) %}{% set n.x = (n.x, n.x) %}"
        "{% endfor %}{{ {n.x: 1}|length }}"
    ),
    "center": "{{ c.center(10**11)|length }}{{ 'x'|center(10**11)|length }}",
    "padding": "{{ '%099999999999d' % 1 }}",
    "format width": "{{ '{:>99999999999}'.format('x')|length }}",
    "zfill": "{{ '1'.zfill(10**11)|length }}",
    "indent": "{{ c|indent(10**11)|length }}{{ (c ~ '\n' ~ c)|indent(10**10)|length }}",
    "lipsum": "{{ lipsum(n=10**9)|length }}",
    "replace": "{% set a = 'x' * 10**5 %}{{ a.replace('x', a * 10**4)|length }}",
    "join": "{% set a = 'x' * 10**7 %}{{ a|list|join(a)|length }}",
    "batch": "{{ [1]|batch(10**10, 0)|list|length }}",
    "sum of lists": "{{ ([[0] * 9999] * 99999)|sum(start=[])|length }}",
    "a flood": "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "tabs": "{{ ('\t' * 10**6).expandtabs(10**6)|length }}",
    "constant folding": "{% if false %}{{ 'x' * 10**11 }}{{ 9**9**9 }}{% endif %}",
    "links": "{{ ('http://' ~ 'a.' * 10**6)|urlize|length }}",
    "comments": "{{ ('<!--' * 10**6)|striptags|length }}",
}
BROKEN = {
    "one by zero": "{{ 1/0 }}",
    "syntax": "{% if %}",
    "unknown filter": "{{ c|no_such_filter }}",
    "unknown tag": "{% no_such_tag %}",
    "unclosed": "{% for x in y %}",
    "deep expression": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "deep lists": "{{ " + "[" * 5_000 + "]" * 5_000 + " }}",
    "long source": "{# " + "x" * 5_000_000 + " #}",
    "many branches": "".join(f"{{% if {n} %}}" for n in range(300)) + "{% endif %}" * 300,
    "an attribute of nothing": "{{ nothing.at.all }}",
    "an exception that lies": "{{ raise_exception('\x1b[2J\n' * 99) }}",
    "a lone surrogate": "{{ '\\ud800' }}",
    "marks": "\U000f0000{{ c }}\U000ffffd",
    "not text": "{{ messages }}{{ range }}",
    "private-use arithmetic": "{{ c ~ '\U000f0001' }}",
}
HOSTILE = WALKS | FORMATS | FILES | ENDLESS | BROKEN
CHATS = [
    conversation(("user", "What is {0.__class__}?"), ("assistant", "A walk."), id="walk"),
    Conversation(
        (
            Message("system", "Be brief."),
            Message("user", "Sky?"),
            Message("assistant", "", tool_calls=({"function": {"name": "f", "arguments": {}}},)),
            Message("tool", "clear", name="f"),
            Message("assistant", "Clear.", reasoning="It said so."),
        ),
        id="tools",
    ),
]


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer(["What is the sky? Clear. Be brief.\n"] * 4)


@pytest.fixture
def bounds(monkeypatch, tmp_path):
    """Short bounds, a secret in the environment and in a file, and the path of the canary."""
    monkeypatch.setattr(confinement, "SECONDS", 1)
    monkeypatch.setenv("A_TOKEN", SECRET)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text(SECRET)
    return tmp_path


def hostile(kind: str, folder: Path) -> str:
    opening = "{% set c = messages[0].content %}"
    return opening + HOSTILE[kind].replace("CANARY", str(folder / "canary")) + BODY


def memory_of(process: confinement.Process) -> int:
    """Bytes that the process holds at this moment."""
    fields = Path(f"/proc/{process.child.pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_is_executed_and_nothing_exceeds_its_bounds(kind, tokenizer, bounds):
    tokenizer.chat_template = hostile(kind, bounds)
    texts, sentences = [], []
    ways = {
        "all": lambda: prepare(CHATS * 3, tokenizer).samples,
        "prompt": lambda: prompt_ids(CHATS[0].prefix(1), tokenizer),
        "one": lambda: training_samples(CHATS[0], tokenizer),
        "other": lambda: training_samples(CHATS[1], tokenizer),
        "stops": lambda: stop_ids(tokenizer),
    }
    began = time.perf_counter()
    for way in ("all", "prompt") if kind in ENDLESS else ways:
        try:
            made = ways[way]()
        except MaskError as error:
            sentences.append(str(error))
            continue
        ids = [s.input_ids if hasattr(s, "input_ids") else [s] for s in made]
        texts += [tokenizer.decode(row) for row in ids]
    seconds = time.perf_counter() - began
    assert not (bounds / "canary").exists(), "something was executed"
    for text in texts + sentences:
        assert SECRET not in text and "root:" not in text
        assert "environ(" not in text and "<module" not in text and "subclasses" not in text
    for sentence in sentences:
        assert sentence and "\n" not in sentence and len(sentence) < 1000
        assert "Traceback" not in sentence and "\x1b" not in sentence
    assert seconds < 20 * confinement.WALL, "the bounds did not hold"
    if confinement._process is not None and Path("/proc").is_dir():
        assert memory_of(confinement._process) < 3 * 2**30


def test_there_are_at_least_as_many_as_promised():
    assert len(HOSTILE) >= 40


def test_a_harmless_template_still_works_after_all_of_them(tokenizer):
    tokenizer.chat_template = BODY
    (sample,) = training_samples(CHATS[0], tokenizer)
    graded = [n for n in sample.labels if n >= 0]
    assert tokenizer.decode(graded) == "A walk.<|im_end|>"


# --- what a watched text shows -------------------------------------------------------------------


def walk(environment, start):
    """Everything that the sandbox lets a template reach from an object, by attribute or by item."""
    seen, waiting = {}, [start]
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen[id(found)] = found
        for name in dir(found):
            try:
                value = getattr(found, name)
            except Exception:
                continue
            if environment.is_safe_attribute(found, name, value):
                waiting.append(value)
        if isinstance(found, dict):
            waiting += [*found, *found.values()]
        elif isinstance(found, list | tuple | set):
            waiting += found
    return seen.values()


def test_all_that_is_reachable_from_a_watched_text():
    """Methods of strings, and what they give: no record, no environment, no function of ours."""
    template = watched_template("{{ c }}")
    record = Record([" a b</think> "])
    with record.watching():
        text = record.text(0)
        found = [text, text + "x", text.strip(), *text.split(), text[1:]]
        reached = [value for one in found for value in walk(template.environment, one)]
    methods = {name for name in dir(str) if not name.startswith("_")}
    for value in reached:
        if callable(value):
            assert value.__name__ in methods | {"method", "_formatting"}
        else:
            assert isinstance(value, str | list), type(value)


def test_a_watched_text_has_the_attributes_of_a_string_and_no_others():
    text = Record(["a"]).text(0)
    assert all(name.startswith("__") for name in set(dir(text)) - set(dir("")))
    assert not hasattr(text, "__dict__")
    for name in ("record", "number", "_record", "steps", "values"):
        assert not hasattr(text, name)
    with pytest.raises(AttributeError):
        text.anything = 1


def test_no_object_of_ours_holds_on_to_a_watched_text():
    record = Record(["a"])
    text = record.text(0)
    holders = [one for one in gc.get_referrers(text) if isinstance(one, Record)]
    assert holders == [] and type(text) is Watched


# --- the process ---------------------------------------------------------------------------------


def test_the_process_has_no_rights_left(tmp_path):
    """What code could do there if a hole in the sandbox let it in."""
    import subprocess
    import sys

    script = """
import os, socket, subprocess, sys
from course_utils.confined import warm_up
from course_utils.sealing import seal
canary, victim = sys.argv[1:]
warm_up()
import ctypes, resource, signal
filtered = seal(2**31)
def reopened(act):
    os.close(0)
    return act()
acts = {
    "read a file": lambda: open("/etc/passwd").read(),
    "read a file in place of another": lambda: reopened(lambda: os.open("/etc/passwd", 0)),
    "write a file": lambda: open(canary, "w").write("x"),
    "import": lambda: __import__("antigravity"),
    "connect": lambda: socket.socket(),
    "run": lambda: subprocess.run(["true"], check=True),
    "take memory": lambda: bytearray(2**32),
}
if filtered:
    acts |= {
        "delete": lambda: os.unlink(victim),
        "rename": lambda: os.rename(victim, canary),
        "shorten": lambda: os.truncate(victim, 0),
        "make a folder": lambda: os.mkdir(canary),
        "make a link": lambda: os.symlink("text", canary),
        "change rights": lambda: os.chmod(victim, 0),
        "fork": lambda: os.fork() or os._exit(0),
        "become a program": lambda: os.execv("/sbin/ldconfig", ["ldconfig"]),
        "send a signal": lambda: os.kill(os.getppid(), 0),
        "look around": lambda: os.listdir("/"),
        "limit others": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU),
        "trace": lambda: 1 / (ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0),
    }
print("filtered", filtered)
for name, act in acts.items():
    try:
        act()
    except BaseException:
        continue
    print("could", name)
print("all tried", flush=True)
"""
    victim, canary = tmp_path / "victim", tmp_path / "canary"
    victim.write_text(SECRET)
    done = subprocess.run(
        [sys.executable, "-c", script, canary, victim],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "all tried" in done.stdout and "could" not in done.stdout, done.stdout + done.stderr
    assert victim.read_text() == SECRET and not canary.exists()
    if sys.platform == "linux" and platform.machine() in MACHINES:
        assert "filtered True" in done.stdout


def test_the_process_takes_no_module_from_the_working_directory(bounds, tokenizer):
    for name in ("json", "jinja2", "course_utils", "encodings", "re"):
        (bounds / f"{name}.py").write_text("open('canary', 'w')")
    confinement._end()
    tokenizer.chat_template = BODY
    training_samples(CHATS[0], tokenizer)
    assert not (bounds / "canary").exists()


# Python expressions for what it answers to every request.
WILD = [
    r"b'{}\n' * 100_000",
    r"b'[' * 200_000 + b'\n'",
    r"""b'{"plan": 0, "values": {}}\n'""",
    r"""b'{"plan": 0, "values": {"7": 3}, "layouts": []}\n'""",
    r"""b'{"plan": 0, "values": {}, "layouts": [["a", [[1, null, 0, 0, 0, 9, 9]], 2, 0]]}\n'""",
    r"""b'{"plan": 0, "values": {}, "layouts": [["a", [[1, null, -1, 0, 0, 1, 1]], 2, 0]]}\n'""",
    r"""b'{"samples": [[["x"]]]}\n'""",
    r"b'\xff\xfe\n'",
    r"b'null\n'",
    r"b'no newline'",
]


@pytest.mark.parametrize("answer", WILD)
def test_whatever_the_process_answers_is_a_refusal_at_worst(answer, tokenizer, bounds, monkeypatch):
    """As if a template had taken it over."""
    started = f"""
import sys
out, answer = sys.stdout.buffer, {answer}
out.write(b'{{"ready": true, "filtered": false}}\\n')
out.flush()
while size := sys.stdin.buffer.read(8):
    sys.stdin.buffer.read(int.from_bytes(size, "big"))
    out.write(answer)
    out.flush()
    if not answer.endswith(b"\\n"):
        break
"""
    confinement._end()
    monkeypatch.setattr(confinement, "_START", started)
    tokenizer.chat_template = BODY + "{# taken over #}"
    with pytest.raises(MaskError):
        prepare(CHATS, tokenizer)
    confinement._end()


def test_it_ends_with_its_owner():
    import subprocess
    import sys

    script = """
from course_utils import confinement
from course_utils.rendering import ChatTemplate
confinement.Confined(ChatTemplate({"default": "x"}, {}, ())).write([{"role": "user"}])
print(confinement._process.child.pid)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    number = int(done.stdout)
    for _ in range(50):
        if not Path(f"/proc/{number}").exists():
            return
        time.sleep(0.1)
    raise AssertionError("the process outlived its owner")


def test_after_bounds_were_exceeded_twice_the_template_is_refused_at_once(tokenizer, bounds):
    tokenizer.chat_template = hostile("nested loops", bounds)
    many = [conversation(("user", f"{n}?"), ("assistant", "Yes.")) for n in range(50)]
    began = time.perf_counter()
    with pytest.raises(MaskError, match="none of 50 .*did not come to an end within 1 seconds"):
        prepare(many, tokenizer)
    assert time.perf_counter() - began < 1 * confinement.FORGIVEN + 15


def test_a_conversation_at_which_it_does_not_end_is_refused_alone(tokenizer, bounds):
    tokenizer.chat_template = (
        "{% if messages[0].content == 'stall' %}" + ENDLESS["nested loops"] + "{% endif %}" + BODY
    )
    names = ["a", "b", "stall", "c", "d"]
    chats = [conversation(("user", name), ("assistant", "Yes."), id=name) for name in names]
    prepared = prepare(chats, tokenizer)
    assert [name for name, _ in prepared.refused] == ["stall"]
    assert [sample.id for sample in prepared.samples] == ["a", "b", "c", "d"]


# --- through the commands ------------------------------------------------------------------------

THROUGH_COMMANDS = (
    *("the watcher's record", "cycler", "format of an object", "include", "nested loops"),
    *("doubling", "one by zero", "an exception that lies"),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small model with a tokenizer, as a stranger would publish it."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", THROUGH_COMMANDS)
def test_commands_end_with_a_sentence(kind, base, bounds, capsys):
    from course_utils import audit, comparison, sft
    from course_utils.conversation import save_conversations

    (base / "chat_template.jinja").write_text(hostile(kind, bounds))
    save_conversations(CHATS[:1], bounds / "chats.jsonl")
    prompt = Conversation(CHATS[0].messages[:1], id="p", meta={"expect": ["walk"]})
    save_conversations([prompt], bounds / "prompts.jsonl")
    short = ["--limit", "1", "--max-new-tokens", "2"]
    for main, arguments in (
        (sft.main, ["--data", "chats.jsonl", "--output", "tuned", "--steps", "1"]),
        (audit.main, ["chats.jsonl"]),
        (comparison.main, ["--tuned", str(base), "--prompts", "prompts.jsonl", *short]),
    ):
        code = main([*arguments, "--base", str(base)])
        said = capsys.readouterr()
        assert code in (0, 1, 2)
        for text in (said.out, said.err):
            assert SECRET not in text and "Traceback" not in text and "\x1b[2J" not in text
    assert not (bounds / "canary").exists()
