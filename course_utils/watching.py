"""Run a chat template on texts that are watched, and learn where they go and what it asks of them.

A template is a program that somebody else wrote. It writes a text as it is, trims it, cuts it at
"</think>", or looks whether it starts with "<tool_response>" and then writes something else. To
know where a text lands, the template gets a `Watched` in its place: a string whose only character
is a *mark*, so that it can be found in what the template writes. Whatever the template does to it
is done to the real text and noted as a *step*; whatever it asks is answered truthfully and noted
as an *answer*.

What comes out holds for other texts, too: a template that gets the same answers takes the same way
through its program, so it writes the same marks between the same pieces of its own.
"""

import operator
from copy import copy
from dataclasses import dataclass, field
from types import GeneratorType

# Mark number n is the private-use character U+F0000 + n.
FIRST_MARK, LAST_MARK = 0xF0000, 0xFFFFD


class Unwatchable(ValueError):
    """The template does something with a text that cannot be followed."""


@dataclass(frozen=True)
class Ref:
    """In the arguments of a step: the value with this number."""

    number: int


@dataclass
class Record:
    """The steps that a template took with the `texts` of one conversation.

    Values are numbered: first the texts, then the result of each step. `steps[i]` is a function
    and its arguments, where a `Ref` stands for an earlier value. `answers` are the results that
    the template saw as they are (yes, no, a number): they decide which way it goes.
    """

    texts: list[str]
    steps: list[tuple] = field(default_factory=list)
    answers: dict[int, object] = field(default_factory=dict)

    def __post_init__(self):
        self.values = list(self.texts)
        self.known = {}  # the same step taken twice has one number, and so one mark

    def text(self, number: int) -> "Watched":
        return Watched(self, number)

    def apply(self, function, *arguments, characters: str | None = None):
        """Take the step `function(*arguments)`; texts come back watched, a list piece by piece."""
        frozen = freeze(arguments)
        key = (function, repr(frozen))
        if key not in self.known:
            try:
                value = function(*thaw(frozen, self.values))
            except Unwatchable:
                raise
            except Exception as error:
                # Jinja catches some of these, so that a text failed is an answer, too.
                self.apply(_fails, type(error), function, *arguments)
                raise
            self.known[key] = len(self.values)
            self.steps.append((function, frozen))
            self.values.append(value)
        number = self.known[key]
        value = self.values[number]
        if isinstance(value, str):
            return Watched(self, number, characters)
        if isinstance(value, list | tuple):
            count = self.apply(len, Ref(number))
            return [self.apply(operator.getitem, Ref(number), place) for place in range(count)]
        self.answers[number] = value
        return value


class Watched(str):
    """A text in the hands of a template. Its characters are marks; `record` knows what they mean.

    Texts that were joined keep the marks of their parts, so that each can be found in the output.
    """

    def __new__(cls, record: Record, number: int, characters: str | None = None):
        if FIRST_MARK + number > LAST_MARK:
            raise Unwatchable("the template takes too many steps with the texts")
        self = super().__new__(cls, chr(FIRST_MARK + number) if characters is None else characters)
        self.record, self.number = record, number
        return self

    def __str__(self):
        return self  # str(text) must not lose the one who watches

    def __add__(self, other):
        return _join(self.record, self, other)

    def __radd__(self, other):
        return _join(self.record, other, self)


def _unseen(self):
    raise Unwatchable("the template prints a text as Python would, inside a list or an object")


def _note(name: str):
    """The method of that name, taken as a step. Hashing, comparing and so on are methods, too."""
    function = getattr(str, name)

    def method(self, *arguments):
        return self.record.apply(function, self, *arguments)

    return method


# Everything that can be done to a string, except what makes it a Python object.
KEPT = {"__new__", "__init__", "__str__", "__add__", "__radd__", "__class__", "__doc__"}
KEPT |= {"__getattribute__", "__setattr__", "__delattr__", "__dir__", "__repr__", "__sizeof__"}
KEPT |= {"__reduce__", "__reduce_ex__", "__getnewargs__", "__init_subclass__", "__subclasshook__"}
KEPT |= {"__getstate__", "maketrans", "__iter__"}
for _name in set(dir(str)) - KEPT:
    setattr(Watched, _name, _note(_name))
Watched.__bool__ = lambda self: self.record.apply(bool, self)  # else Python asks for the length


def _characters(self):
    yield from self.record.apply(list, self)  # not before somebody wants the first


Watched.__iter__ = _characters
Watched.__repr__ = _unseen


def _fails(kind, function, *arguments) -> bool:
    try:
        function(*arguments)
    except kind:
        return True
    return False


def _concatenate(*parts):
    return "".join(parts)


def _join(record: Record, *parts):
    """The texts one behind the other: a step of its own, but with the marks of its parts."""
    characters = "".join(str.__str__(part) for part in parts)
    return record.apply(_concatenate, *parts, characters=characters)


def freeze(value):
    """`value` with a `Ref` in place of every watched text in it."""
    if isinstance(value, Watched):
        return Ref(value.number)
    if isinstance(value, list | tuple):
        return type(value)(freeze(item) for item in value)
    if isinstance(value, dict):
        return {freeze(key): freeze(item) for key, item in value.items()}
    return value


def thaw(value, values: list):
    """What `freeze` was given, with real values in the places of the `Ref`s."""
    if isinstance(value, Ref):
        return values[value.number]
    if isinstance(value, list | tuple):
        return type(value)(thaw(item, values) for item in value)
    if isinstance(value, dict):
        return {thaw(key, values): thaw(item, values) for key, item in value.items()}
    return value


def watcher_in(value) -> Record | None:
    """The record of the first watched text in `value`, or None if there is none."""
    if isinstance(value, Watched):
        return value.record
    items = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list | tuple):
        return next(filter(None, map(watcher_in, items)), None)
    return None


# --- the template's environment ------------------------------------------------------------------


def watched_template(source: str):
    """The template, compiled in transformers' own sandbox, with every way past the marks closed.

    A watched text that is joined, formatted or written as JSON by a function that reads its
    characters would be lost from sight. So these functions take a step, too.
    """
    from jinja2.compiler import CodeGenerator
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if any(FIRST_MARK <= ord(character) <= LAST_MARK for character in source):
        raise Unwatchable("the template uses the private characters of the marks")

    class Generator(CodeGenerator):
        def visit_Concat(self, node, frame):  # a ~ b
            self.write("environment.concat((")
            for part in node.nodes:
                self.write("str(")
                self.visit(part, frame)
                self.write("), ")
            self.write("))")

        def visit_Compare(self, node, frame):  # a in b, where b may be text of the template's own
            if len(node.ops) != 1 or node.ops[0].op not in ("in", "notin"):
                return super().visit_Compare(node, frame)
            self.write("(not " if node.ops[0].op == "notin" else "(")
            self.write("environment.holds(")
            self.visit(node.expr, frame)
            self.write(", ")
            self.visit(node.ops[0].expr, frame)
            self.write("))")

    original = _compile_jinja_template(source).environment

    class Environment(type(original)):
        intercepted_binops = frozenset(["%", "*"])

        def call(self, context, function, *arguments, **options):
            owner = getattr(function, "__self__", None)
            if isinstance(owner, str) and not isinstance(owner, Watched) and watcher_in(arguments):
                return _stepwise(getattr(str, function.__name__), (owner, *arguments), {})
            return super().call(context, function, *arguments, **options)

        def holds(self, item, container):
            if isinstance(item, Watched) and type(container) is str:
                return item.record.apply(str.__contains__, container, item)
            return item in container

        def call_binop(self, context, symbol, left, right):
            return _stepwise(self.binop_table[symbol], (left, right), {})

    environment = copy(original)
    environment.__class__ = Environment
    environment.code_generator_class = Generator
    environment.concat = concat
    environment.filters = {
        name: function if name in STRUCTURAL else _watching(function)
        for name, function in original.filters.items()
    }
    environment.tests = {**original.tests, "in": environment.holds}
    return environment.from_string(source)


def concat(pieces):
    """What Jinja joins the output of a macro or a block with."""
    pieces = list(pieces)
    record = watcher_in(pieces)
    return _join(record, *pieces) if record else "".join(pieces)


# Filters that move texts about, or call their methods, without reading their characters.
STRUCTURAL = {"map", "select", "reject", "selectattr", "rejectattr", "list", "first", "last"}
STRUCTURAL |= {"length", "count", "items", "batch", "slice", "groupby", "sort", "dictsort"}
STRUCTURAL |= {"unique", "default", "d", "attr", "min", "max", "sum", "random", "reverse"}
STRUCTURAL |= {"string", "trim", "upper", "lower", "capitalize"}


def _watching(function):
    """The filter, taken as a step where it gets a watched text."""
    from functools import wraps

    passes = hasattr(function, "jinja_pass_arg")

    @wraps(function)  # keeps Jinja's marks on filters that want the context
    def filtered(*arguments, **options):
        if not passes:
            return _stepwise(function, arguments, options)
        # The context is another object in every rendering, and the step is the same.
        inner.context, *arguments = arguments
        return _stepwise(inner, tuple(arguments), options)

    @wraps(function)
    def inner(*arguments, **options):
        return function(inner.context, *arguments, **options)

    return filtered


def _stepwise(function, arguments, options):
    arguments = tuple(list(a) if isinstance(a, GeneratorType) else a for a in arguments)
    record = watcher_in(arguments) or watcher_in(options)
    if record is None:
        return function(*arguments, **options)
    return record.apply(_call, function, arguments, options)


def _call(function, arguments, options):
    return function(*arguments, **options)
