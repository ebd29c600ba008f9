"""Run a chat template on texts that are watched, and learn where they go and what it asks of them.

A template is a program that somebody else wrote. It writes a text as it is, trims it, cuts it at
"</think>", or looks whether it starts with "<tool_response>" and then writes something else. To
know where a text lands, the template gets a `Watched` in its place: a string whose only character
is a *mark*, so that it can be found in what the template writes. Whatever the template does to it
is done to the real text and noted as a *step*; whatever it asks is answered truthfully and noted
as an *answer*.

What comes out holds for other texts, too: a template that gets the same answers takes the same way
through its program, so it writes the same marks between the same pieces of its own.

A template comes from strangers, so it must not get hold of the one who watches. A watched text has
the attributes of a string and no others: the record is not in it but in the context of the run
(`Record.write`), and a text is known by its marks alone.
"""

import operator
import re
from contextlib import contextmanager
from contextvars import ContextVar
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
        self.joined = {}  # the characters of texts that were joined -> number

    def text(self, number: int) -> "Watched":
        if FIRST_MARK + number > LAST_MARK:
            raise Unwatchable("the template takes too many steps with the texts")
        return Watched(chr(FIRST_MARK + number))

    def write(self, template, /, **variables) -> str:
        """What `template`, a `watched_template`, writes; the variables may hold watched texts."""
        with self.watching():
            return "".join(str.__str__(piece) for piece in template.generate(**variables))

    @contextmanager
    def watching(self):
        """While it lasts, what is done to watched texts is noted here."""
        token = _WATCHING.set(self)
        try:
            yield
        finally:
            _WATCHING.reset(token)

    def number(self, text: "Watched") -> int:
        """The number of the value that a watched text shows."""
        characters = str.__str__(text)
        if characters in self.joined:
            return self.joined[characters]
        number = ord(characters) - FIRST_MARK if len(characters) == 1 else -1
        if not 0 <= number < len(self.values):
            raise Unwatchable("a text of a different conversation")
        return number

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
            if characters is None:
                return self.text(number)
            self.joined[characters] = number
            return Watched(characters)
        if isinstance(value, list | tuple):
            count = self.apply(len, Ref(number))
            return [self.apply(operator.getitem, Ref(number), place) for place in range(count)]
        self.answers[number] = value
        return value


# The record of the run that is going on; nothing that a template can reach leads to it.
_WATCHING: ContextVar[Record | None] = ContextVar("watching", default=None)


def _watching_record() -> Record:
    if (record := _WATCHING.get()) is None:
        raise Unwatchable("a watched text is used outside the run that watches it")
    return record


class Watched(str):
    """A text in the hands of a template. Its characters are marks; the record knows what they mean.

    Texts that were joined keep the marks of their parts, so that each can be found in the output.
    """

    __slots__ = ()

    def __str__(self):
        return self  # str(text) must not lose the one who watches

    def __add__(self, other):
        return _join(self, other)

    def __radd__(self, other):
        return _join(other, self)


def _unseen(self):
    raise Unwatchable("the template prints a text as Python would, inside a list or an object")


def _note(name: str):
    """The method of that name, taken as a step. Hashing, comparing and so on are methods, too."""
    function = getattr(str, name)

    def method(self, *arguments, **options):
        if options:
            return _watching_record().apply(_call, function, (self, *arguments), options)
        return _watching_record().apply(function, self, *arguments)

    return method


def _formatting(self, *arguments, **options):
    # str.format reads attributes of its arguments, past the sandbox.
    raise Unwatchable("the template formats a text as Python would")


# Everything that can be done to a string, except what makes it a Python object.
KEPT = {"__new__", "__init__", "__str__", "__add__", "__radd__", "__class__", "__doc__"}
KEPT |= {"__getattribute__", "__setattr__", "__delattr__", "__dir__", "__repr__", "__sizeof__"}
KEPT |= {"__reduce__", "__reduce_ex__", "__getnewargs__", "__init_subclass__", "__subclasshook__"}
KEPT |= {"__getstate__", "maketrans", "__iter__"}
FORMATTING = {"format", "format_map", "__format__"}
for _name in set(dir(str)) - KEPT:
    setattr(Watched, _name, _formatting if _name in FORMATTING else _note(_name))
# Else Python asks for the length.
Watched.__bool__ = lambda self: _watching_record().apply(bool, self)


def _characters(self):
    yield from _watching_record().apply(list, self)  # not before somebody wants the first


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


def _join(*parts):
    """The texts one after the other: a step of its own, but with the marks of its parts."""
    characters = "".join(str.__str__(part) for part in parts)
    if any(isinstance(part, Watched) and str.__str__(part) == characters for part in parts):
        return Watched(characters)  # nothing was added
    return _watching_record().apply(_concatenate, *parts, characters=characters)


def freeze(value):
    """`value` with a `Ref` in place of every watched text in it."""
    if isinstance(value, Watched):
        return Ref(_watching_record().number(value))
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


def holds_watched(value) -> bool:
    """Is there a watched text in `value`?"""
    if isinstance(value, dict):
        return any(holds_watched(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple):
        return any(map(holds_watched, value))
    return isinstance(value, Watched)


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
            if not {op.op for op in node.ops} & {"in", "notin"}:
                return super().visit_Compare(node, frame)
            if len(node.ops) != 1:
                raise Unwatchable("the template looks for a text in a chain of comparisons")
            self.write("(not " if node.ops[0].op == "notin" else "(")
            self.write("environment.holds(")
            self.visit(node.expr, frame)
            self.write(", ")
            self.visit(node.ops[0].expr, frame)
            self.write("))")

    # An empty template gives the environment; the optimizer must not run before ours is in place.
    original = _compile_jinja_template("").environment

    class Environment(type(original)):
        intercepted_binops = frozenset(["%", "*"])

        def call(self, context, function, *arguments, **options):
            owner = getattr(function, "__self__", None)
            plain = isinstance(owner, str) and not isinstance(owner, Watched)
            arguments = tuple(map(listed, arguments))
            if plain and holds_watched(arguments):
                if function.__name__ in FORMATTING:
                    return _formatting(owner)
                own = {n: o for n, o in options.items() if n not in ("_loop_vars", "_block_vars")}
                return _stepwise(getattr(str, function.__name__), (owner, *arguments), own)
            return unmarked(super().call(context, function, *arguments, **options))

        def holds(self, item, container):
            if isinstance(item, Watched) and type(container) is str:
                return _watching_record().apply(str.__contains__, container, item)
            return item in container

        def call_binop(self, context, symbol, left, right):
            return _stepwise(self.binop_table[symbol], (left, right), {})

    environment = copy(original)
    environment.__class__ = Environment
    environment.code_generator_class = Generator
    environment.concat = concat
    environment.filters = {
        name: function if name in STRUCTURAL else _watching(function, environment)
        for name, function in original.filters.items()
    }
    environment.tests = {**original.tests, "in": environment.holds, "sameas": _same}
    return environment.from_string(source)


def listed(value):
    """A generator or a view as the list of what it gives; any other value as it is."""
    if isinstance(value, GeneratorType | map | filter | zip | reversed | dict_views):
        return list(value)
    return list(value) if type(value).__name__ in ITERATORS else value


dict_views = type({}.keys()) | type({}.values()) | type({}.items())
ITERATORS = {"list_iterator", "list_reverseiterator", "tuple_iterator", "dict_keyiterator"}
ITERATORS |= {"dict_valueiterator", "dict_itemiterator", "generator", "set_iterator"}
MARKS = re.compile(f"[{chr(FIRST_MARK)}-{chr(LAST_MARK)}]")


def unmarked(value):
    """The result of a call; marks in an ordinary string were put there past the one who watches."""
    if type(value) is str and MARKS.search(value):
        raise Unwatchable("the template hands a text to a function that cannot be followed")
    return value


def _same(value, other) -> bool:
    if holds_watched((value, other)):
        raise Unwatchable("the template asks whether two texts are the same object")
    return value is other


def read_by(source: str) -> set[str]:
    """The variables that a template reads and does not set itself."""
    from jinja2.meta import find_undeclared_variables
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return find_undeclared_variables(_compile_jinja_template("").environment.parse(source))


def drawn_by(source: str) -> set[str]:
    """What in a template draws at random."""
    from jinja2 import nodes
    from transformers.utils.chat_template_utils import _compile_jinja_template

    tree = _compile_jinja_template("").environment.parse(source)
    names = {node.name for node in tree.find_all((nodes.Filter, nodes.Name))}
    for node in tree.find_all(nodes.Filter):  # map("random")
        names |= {arg.value for arg in node.args if isinstance(arg, nodes.Const)}
    return {"random", "lipsum"} & {name for name in names if isinstance(name, str)}


def concat(pieces):
    """What Jinja joins the output of a macro or a block with."""
    pieces = list(pieces)
    return _join(*pieces) if holds_watched(pieces) else "".join(pieces)


# Filters that move texts about, or call their methods, without reading their characters.
STRUCTURAL = {"map", "select", "reject", "selectattr", "rejectattr", "list", "first", "last"}
STRUCTURAL |= {"length", "count", "items", "batch", "slice", "groupby", "sort", "dictsort"}
STRUCTURAL |= {"unique", "default", "d", "attr", "min", "max", "sum", "random", "reverse"}
STRUCTURAL |= {"string", "trim", "upper", "lower", "capitalize"}


def _watching(function, environment):
    """The filter, taken as a step where it gets a watched text."""
    from functools import partial, wraps

    from jinja2.nodes import EvalContext
    from jinja2.utils import _PassArg

    passes = getattr(function, "jinja_pass_arg", None)
    # What the filter wants to know of its surroundings. It is the same in every rendering, so the
    # step does not depend on the one in which it was first taken.
    given = {
        None: (),
        _PassArg.environment: (environment,),
        _PassArg.eval_context: (EvalContext(environment),),
    }.get(passes)
    step = partial(function, *given) if given is not None else None

    @wraps(function)  # keeps Jinja's marks on filters that want the context
    def filtered(*arguments, **options):
        own = arguments[passes is not None :]
        own = tuple(map(listed, own))
        if not holds_watched((own, options)):
            return unmarked(function(*arguments[: passes is not None], *own, **options))
        if step is None:
            raise Unwatchable(f"the filter {function.__name__} reads the template's variables")
        return _stepwise(step, own, options)

    return filtered


def _stepwise(function, arguments, options):
    arguments = tuple(map(listed, arguments))
    if not holds_watched((arguments, options)):
        return unmarked(function(*arguments, **options))
    return _watching_record().apply(_call, function, arguments, options)


def _call(function, arguments, options):
    return function(*arguments, **options)


def name_of(function) -> str:
    """The name of a step's function, or of the filter that it calls."""
    return getattr(function, "__name__", None) or getattr(function, "func", function).__name__
