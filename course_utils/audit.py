"""What is in a set of conversations: copies, overlap, variety, languages, graded tokens.

    python -m course_utils.audit chats.jsonl --against prompts.jsonl --base course-base

Texts are compared as lists of words: case, punctuation and white space do not count. System texts
are left out, since many conversations may rightly share one.
"""

import argparse
import random
import re
import statistics
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from math import ceil
from pathlib import Path

from course_utils import commands
from course_utils.batching import prepare
from course_utils.commands import printable
from course_utils.conversation import Conversation, load_conversations
from course_utils.masking import MaskError, Sample

SPOKEN = ("user", "assistant")


class AuditError(RuntimeError):
    """Something cannot be measured here; says what to do."""


# --- words ---------------------------------------------------------------------------------------

# Chinese and Japanese write no spaces, so each of their characters counts as a word. A sign between
# two numbers counts as well: 3 + 4 is another question than 3 * 4.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+|(?<=\d)\s*[-+*/×÷^]\s*(?=\d)")


def words(text: str) -> list[str]:
    """The words of a text in lower case and one Unicode form (NFKC).

    A text without any, such as one of emoji, counts as it is written.
    """
    normal = unicodedata.normalize("NFKC", text).casefold()
    return [word.strip() for word in WORD.findall(normal)] or normal.split()


def shingles(found: Sequence[str], n: int) -> set[tuple[str, ...]]:
    """All runs of n words; of a text with fewer words, the whole text."""
    return {tuple(found[i : i + n]) for i in range(max(1, len(found) - n + 1))} if found else set()


def spoken(conversation: Conversation) -> list[str]:
    """The words of its user and assistant turns, one after the other."""
    return [word for m in conversation if m.role in SPOKEN for word in words(m.content)]


def first_turn(conversation: Conversation) -> list[str]:
    """The words of its first user turn."""
    return next((words(m.content) for m in conversation if m.role == "user"), [])


def name(conversation: Conversation, position: int) -> str:
    return conversation.id or f"conversation {position}"


# --- copies --------------------------------------------------------------------------------------


def duplicates(conversations: Iterable[Conversation]) -> list[tuple[int, ...]]:
    """Groups of positions whose user and assistant turns have the same words, turn by turn."""
    groups = defaultdict(list)
    for position, chat in enumerate(conversations):
        turns = tuple((m.role, *words(m.content)) for m in chat if m.role in SPOKEN)
        groups[turns].append(position)
    return [tuple(group) for turns, group in groups.items() if turns and len(group) > 1]


@dataclass(frozen=True)
class Pair:
    """Two similar texts by position (first < second), their Jaccard index, their longest run."""

    first: int
    second: int
    score: float
    passage: str


def near_duplicates(
    conversations: Sequence[Conversation], threshold: float = 0.5, *, n: int = 5
) -> list[Pair]:
    """Pairs of conversations that share most of their word 5-grams, the most similar first.

    The score is the Jaccard index of the two sets of n-grams (shared / all; Broder 1997, "On the
    resemblance and containment of documents") over user and assistant text, 1 for exact copies.
    Of several copies, each is paired with the first only. A changed word, and each seam where
    sentences were moved, costs up to n of the n-grams: a changed text of a dozen words falls below
    0.5, and so does one of short sentences in a new order. `near_duplicate_prompts` sees those
    whose question is still similar.
    """
    return _pairs([spoken(chat) for chat in conversations], threshold, n)


def near_duplicate_prompts(
    conversations: Sequence[Conversation], threshold: float = 0.5, *, n: int = 2
) -> list[Pair]:
    """The same for first user turns alone, by word pairs, since most questions are short.

    One question may rightly stand under two system texts: read these before you delete any.
    """
    return _pairs([first_turn(chat) for chat in conversations], threshold, n)


def _pairs(texts: Sequence[list[str]], threshold: float, n: int) -> list[Pair]:
    found = [
        Pair(i, j, score, " ".join(_longest_run(texts[i], texts[j])))
        for i, j, score in similar(texts, threshold, n)
    ]
    return sorted(found, key=lambda pair: (-pair.score, pair.first, pair.second))


def similar(texts: Sequence[list[str]], threshold: float, n: int) -> list[tuple[int, int, float]]:
    """(i, j, Jaccard index) of every pair of texts that reaches the threshold; nothing is missed.

    Two sets that share at least the share t of the larger one also share one of the rarest
    |set| - t |set| + 1 members of each, so only those are looked up (prefix filtering: Chaudhuri,
    Ganti and Kaushik 2006, "A primitive operator for similarity joins in data cleaning"). Most
    n-grams occur once, so the time grows about linearly, as long as few texts are similar: measured
    on one core, 1.2 s and 0.2 GB for 10,000 texts of 80 words, 14 s and 1.8 GB for 100,000.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold is {threshold}: give a share above 0 and up to 1.")
    if n < 1:
        raise ValueError(f"n is {n}: give a number of words, 1 or more.")
    first_of, pairs = {}, []
    for position, text in enumerate(texts):
        first = first_of.setdefault(tuple(text), position)
        if first < position and text:
            pairs.append((first, position, 1.0))
    sets = {position: shingles(texts[position], n) for position in first_of.values()}
    count = Counter(shingle for found in sets.values() for shingle in found)
    holders = defaultdict(list)
    for second, found in sets.items():
        needed = ceil(threshold * len(found) - 1e-9)  # 0.1 * 30 is a little more than 3
        rarest = sorted(found, key=lambda shingle: (count[shingle], shingle))
        shared = [shingle for shingle in rarest[: len(found) - needed + 1] if count[shingle] > 1]
        for first in {holder for shingle in shared for holder in holders[shingle]}:
            common = len(found & sets[first])
            score = common / (len(found) + len(sets[first]) - common)
            if score >= threshold:
                pairs.append((first, second, score))
        for shingle in shared:
            holders[shingle].append(second)
    return pairs


def _longest_run(a: list[str], b: list[str]) -> list[str]:
    match = SequenceMatcher(None, a, b, autojunk=False).find_longest_match()
    return a[match.a : match.a + match.size]


# --- overlap with an evaluation ------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """A training turn and an evaluation prompt (by position) that share a run of words."""

    conversation: int
    turn: int
    prompt: int
    passage: str


def overlap(
    conversations: Iterable[Conversation],
    prompts: Sequence[Conversation],
    n: int = 6,
    *,
    roles: Sequence[str] = ("user",),
) -> list[Overlap]:
    """Where a training turn shares a run of n words with a user turn of an evaluation prompt.

    A prompt whose first turn has fewer words counts if a training turn holds the whole of it, from
    three words on ("why is the sky blue"); short later turns ("and in Italy?") do not. Six words
    suit questions. Papers on pretraining look for 13 in all text (GPT-3, arXiv 2005.14165, appendix
    C: 8 to 13, by the length of a task's examples): `n=13, roles=("user", "assistant")`.
    """
    if n < 1:
        raise ValueError(f"n is {n}: give a number of words, 1 or more.")
    asked, holders = [], defaultdict(set)
    for position, prompt in enumerate(prompts):
        first = prompt.roles.index("user") if "user" in prompt.roles else None
        for turn, message in enumerate(prompt):
            text = words(message.content)
            short = turn == first and len(text) >= SHORTEST_PROMPT
            if message.role == "user" and (len(text) >= n or short):
                for run in shingles(text, n):
                    holders[run].add(len(asked))
                asked.append((position, text))
    sizes = {len(run) for run in holders}
    found = {}
    for position, chat in enumerate(conversations):
        for turn, message in enumerate(chat):
            text = words(message.content) if message.role in roles else []
            runs = {run for size in sizes if size <= len(text) for run in shingles(text, size)}
            for number in sorted({k for run in runs for k in holders.get(run, ())}):
                prompt, question = asked[number]
                run = _longest_run(text, question)
                if len(run) > len(found.get((position, turn, prompt), ())):
                    found[position, turn, prompt] = run
    return [Overlap(*place, " ".join(run)) for place, run in found.items()]


SHORTEST_PROMPT = 3  # words; "thank you" may stand anywhere


# --- variety -------------------------------------------------------------------------------------

# Figures about words look at this many: all of them change with the length of the text.
LEXICAL_WORDS = 2000


@dataclass(frozen=True)
class Figure:
    """Mean and standard deviation over random draws; `spread` is 0 if only one was made."""

    mean: float
    spread: float = 0.0

    def __str__(self):
        return f"{self.mean:.3f}" + (f" ± {self.spread:.3f}" if self.spread else "")


def diversity(
    conversations: Sequence[Conversation],
    sample: int | None = None,
    *,
    draws: int = 20,
    seed: int = 0,
) -> dict[str, Figure]:
    """Figures of variety over `draws` random draws of `sample` conversations each.

    All of them depend on the size of what they look at (a larger text compresses better and
    repeats more words). So two sets are comparable at the same `sample`, clearly smaller than
    either: draws of nearly the whole set hardly differ, and their spread says nothing. Without
    `sample` the whole set is taken once.

    distinct openings: different first two words / turns, from `sample` turns of the role
    top opening:       share of turns with the most frequent first two words
    distinct-2:        different word pairs / word pairs (Li et al. 2016, arXiv 1510.03055), in the
                       first 2,000 words of replies in random order, like the next two
    type-token ratio:  different words / words
    compression ratio: bytes / bytes after zlib, larger for text that repeats itself (Shaib et al.
                       2024, arXiv 2403.00553)

    A figure for which there is too little text is left out.
    """
    chats = [[(m.role, words(m.content)) for m in chat] for chat in conversations]
    if sample is not None and not 0 < sample <= len(chats):
        raise ValueError(f"cannot draw {sample} conversations from {len(chats)}.")
    generator, found = random.Random(seed), defaultdict(list)
    for _ in range(draws if sample else 1):
        drawn = generator.sample(chats, sample or len(chats))
        for figure, value in _variety(drawn, generator).items():
            found[figure].append(value)
    return {
        figure: Figure(statistics.fmean(v), statistics.pstdev(v)) for figure, v in found.items()
    }


def _variety(
    chats: list[list[tuple[str, list[str]]]], generator: random.Random
) -> dict[str, float]:
    figures = {}
    for role in SPOKEN:
        turns = [text for chat in chats for speaker, text in chat if speaker == role]
        turns = generator.sample(turns, min(len(turns), len(chats)))
        openings = Counter(tuple(text[:2]) for text in turns)
        if turns:
            figures[f"{role}: distinct openings"] = len(openings) / len(turns)
            figures[f"{role}: top opening"] = max(openings.values()) / len(turns)
    replies = [text for chat in chats for speaker, text in chat if speaker == "assistant"]
    generator.shuffle(replies)
    text = [word for reply in replies for word in reply][:LEXICAL_WORDS]
    if len(text) == LEXICAL_WORDS:
        pairs = list(zip(text, text[1:], strict=False))
        written = " ".join(text).encode()
        figures["replies: distinct-2"] = len(set(pairs)) / len(pairs)
        figures["replies: type-token ratio"] = len(set(text)) / len(text)
        figures["replies: compression ratio"] = len(written) / len(zlib.compress(written, 9))
    return figures


@dataclass(frozen=True)
class Shape:
    """Lengths in words as (lower quartile, median, upper quartile), turns, and shares of tags."""

    user_words: tuple[float, float, float]
    reply_words: tuple[float, float, float]
    replies: dict[int, int]  # number of replies -> conversations
    tags: dict[str, float]  # tag -> share of the conversations


def shape(conversations: Sequence[Conversation]) -> Shape:
    """What does not depend on the size of the set; texts are split at white space."""
    lengths = {
        role: quartiles(
            [len(m.content.split()) for c in conversations for m in c if m.role == role]
        )
        for role in SPOKEN
    }
    tags = Counter(tag for chat in conversations for tag in dict.fromkeys(chat.tags))
    replies = Counter(chat.roles.count("assistant") for chat in conversations)
    return Shape(
        lengths["user"],
        lengths["assistant"],
        dict(sorted(replies.items())),
        {tag: count / len(conversations) for tag, count in tags.most_common()},
    )


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (*values, *values, *values) if values else (0, 0, 0)
    return tuple(statistics.quantiles(values, method="inclusive"))


# --- languages -----------------------------------------------------------------------------------


def languages(conversations: Iterable[Conversation], confidence: float = 0.3) -> list[str]:
    """For each conversation the language of its replies, as an ISO 639 code.

    "zxx" is text in no language (numbers, markup), "und" one that is too short or too mixed for
    that confidence (0 to 1): a list of names, a single word. At 0.3 none of the first 250
    conversations of the course was given a wrong language, and 15 none.

    Raises `AuditError` without py3langid (4.5 MB, works offline).
    """
    identifier = _identifier(confidence)
    replies = ("\n".join(m.content for m in c if m.role == "assistant") for c in conversations)
    return [identifier.classify(text)[0] for text in replies]


@cache
def _identifier(confidence: float):
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise AuditError(
            'languages need py3langid: pip install -e ".[audit]" in the course folder.'
        ) from None
    return LanguageIdentifier.from_model_file(
        MODEL_FILE, norm_probs=True, min_confidence=confidence
    )


# --- tokens --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """What one source costs and teaches. `share` is (min, median, max) over its samples."""

    source: str
    conversations: int
    refused: int
    tokens: int
    graded: int
    share: tuple[float, float, float]

    def row(self) -> dict[str, str]:
        low, middle, high = self.share
        return {
            "source": self.source,
            "conversations": f"{self.conversations:,}",
            "refused": f"{self.refused:,}",
            "tokens": f"{self.tokens:,}",
            "graded": f"{self.graded:,}",
            "share": f"{self.graded / self.tokens:.0%}" if self.tokens else "–",
            "min, median, max": f"{low:.0%}, {middle:.0%}, {high:.0%}",
        }


def source_of(conversation: Conversation) -> str:
    """The source that a converter noted in the meta, else the first tag."""
    source = conversation.meta.get("source")
    # Whatever the file says: it need not be text.
    return str(source) if source else next(iter(conversation.tags), "no tag")


def graded_share(samples: Mapping[str, Sequence[Sample]]) -> dict[str, tuple[float, float, float]]:
    """Per source, the smallest, median and largest share of graded tokens in a sample.

    "30 to 80 % of the tokens should be graded" is no rule: the share only says how long replies
    are beside their prompts. The walkthrough's chat has 10 graded tokens of 36 (28 %), and rightly
    masked samples of the course reach from under 10 % (a yes or no, a number) to over 80 % (long
    code for a short question). What points to a bug is 0 or 1, or one source far from its kind.
    """
    shares = {
        source: [sample.graded_tokens / len(sample) for sample in group]
        for source, group in samples.items()
        if group
    }
    return {source: (min(s), statistics.median(s), max(s)) for source, s in shares.items()}


def token_budget(
    conversations: Iterable[Conversation],
    tokenizer,
    *,
    by: Callable[[Conversation], str] = source_of,
) -> list[Budget]:
    """Tokens and graded tokens per source, the largest first, as `batching.prepare` makes them.

    `refused` counts the conversations that cannot be trained on; the others give the tokens.
    """
    groups = defaultdict(list)
    for chat in conversations:
        groups[by(chat)].append(chat)
    samples, refused = {}, {}
    for source, group in groups.items():
        try:
            prepared = prepare(group, tokenizer)
            samples[source], refused[source] = prepared.samples, len(prepared.refused)
        except MaskError:
            samples[source], refused[source] = [], len(group)
    shares = graded_share(samples)
    budgets = [
        Budget(
            source,
            len(group),
            refused[source],
            sum(len(sample) for sample in samples[source]),
            sum(sample.graded_tokens for sample in samples[source]),
            shares.get(source, (0.0, 0.0, 0.0)),
        )
        for source, group in groups.items()
    ]
    return sorted(budgets, key=lambda budget: (-budget.tokens, budget.source))


# --- everything at once --------------------------------------------------------------------------


@dataclass(frozen=True)
class Audit:
    """What `audit` found. `str()` gives the report; `table` a summary, for `show.table`."""

    conversations: Sequence[Conversation]
    prompts: Sequence[Conversation]
    duplicates: list[tuple[int, ...]]
    near_duplicates: list[Pair]
    near_prompts: list[Pair]
    overlaps: list[Overlap]
    diversity: dict[str, Figure]
    shape: Shape
    languages: Counter | None  # None without py3langid
    budget: list[Budget]  # empty without a tokenizer

    @property
    def clean(self) -> bool:
        """No copies, near-duplicates or overlap. Similar first turns alone are no fault."""
        return not (self.duplicates or self.near_duplicates or self.overlaps)

    def findings(self) -> dict[str, list[str]]:
        """Each kind of finding with its cases, written out."""

        def of(position: int) -> str:
            return name(self.conversations[position], position)

        def pair(p: Pair) -> str:
            return f"{p.score:.2f}  {of(p.first)} and {of(p.second)}: {_cut(p.passage)!r}"

        return {
            "exact copies": [", ".join(map(of, group)) for group in self.duplicates],
            "near-duplicates": [pair(p) for p in self.near_duplicates],
            "similar first user turns": [pair(p) for p in self.near_prompts],
            f"overlap with {len(self.prompts)} prompts": [
                f"{of(case.conversation)}, turn {case.turn}, and prompt "
                f"{name(self.prompts[case.prompt], case.prompt)}: {_cut(case.passage)!r}"
                for case in self.overlaps
            ],
        }

    def table(self) -> list[dict]:
        return [
            {"looked for": kind, "found": len(cases), "first case": cases[0] if cases else "none"}
            for kind, cases in self.findings().items()
        ]

    def __str__(self):
        lines = [f"{len(self.conversations):,} conversations"]
        for kind, cases in self.findings().items():
            lines.append(f"{kind}: {len(cases) or 'none'}")
            lines += [f"  {printable(case)}" for case in cases[:SHOWN]]
            if len(cases) > SHOWN:
                lines.append(f"  and {len(cases) - SHOWN} more")
        found = self.shape
        replies = ", ".join(f"{count} with {n}" for n, count in found.replies.items())
        tags = ", ".join(f"{tag} {share:.0%}" for tag, share in list(found.tags.items())[:SHOWN])
        spoken = ", ".join(
            f"{code} {count}" for code, count in (self.languages or Counter()).most_common()
        )
        lines += [
            "",
            "words, quartiles: user turns {:g}, {:g}, {:g}; replies {:g}, {:g}, {:g}".format(
                *found.user_words, *found.reply_words
            ),
            f"replies per conversation: {replies or 'none'}",
            f"tags: {printable(tags) or 'none'}",
            f"languages of the replies: {spoken or NO_LANGUAGES}",
            *[f"{figure}: {value}" for figure, value in self.diversity.items()],
        ]
        if self.budget:
            lines += ["", _aligned([budget.row() for budget in self.budget])]
        return "\n".join(lines)


SHOWN = 20  # cases of one kind in the report
NO_LANGUAGES = 'not looked at; pip install -e ".[audit]"'


def _cut(passage: str, width: int = 80) -> str:
    return passage if len(passage) <= width else passage[: width - 1] + "…"


def _aligned(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of equal keys as plain text, the first column at the left, all others at the right."""
    lines = [list(rows[0]), *[list(row.values()) for row in rows]]
    lines = [list(map(printable, cells)) for cells in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def audit(
    conversations: Sequence[Conversation],
    prompts: Sequence[Conversation] = (),
    *,
    near: float = 0.5,
    run: int = 6,
    roles: Sequence[str] = ("user",),
    tokenizer=None,
    sample: int | None = None,
) -> Audit:
    """Everything above in one object; `prompts` are those of an evaluation.

    Languages are left out where py3langid is missing, tokens where no tokenizer is given.
    """
    try:
        found_languages = Counter(languages(conversations))
    except AuditError:
        found_languages = None
    return Audit(
        conversations,
        prompts,
        duplicates(conversations),
        near_duplicates(conversations, near),
        near_duplicate_prompts(conversations, near),
        overlap(conversations, prompts, run, roles=roles),
        diversity(conversations, sample),
        shape(conversations),
        found_languages,
        token_budget(conversations, tokenizer) if tokenizer else [],
    )


# --- the command line ----------------------------------------------------------------------------


def _arguments() -> argparse.ArgumentParser:
    parser = commands.Parser(
        prog="python -m course_utils.audit",
        description="Look for copies, overlap with an evaluation and lack of variety in training "
        "conversations; count languages and graded tokens.",
        exits={
            0: "nothing found (similar first user turns alone do not count)",
            1: "copies, near-duplicates or overlap found",
        },
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSONL, audited as one")
    parser.add_argument(
        "--against", nargs="+", type=Path, default=[], metavar="FILE", help="evaluation prompts"
    )
    parser.add_argument("--near", type=float, default=0.5, help="Jaccard index from 0 to 1 (0.5)")
    parser.add_argument(
        "--run", type=commands.number, default=6, help="words that make an overlap (6)"
    )
    parser.add_argument(
        "--in-replies", action="store_true", help="look for overlap in replies, too"
    )
    parser.add_argument(
        "--base", type=commands.name, help="count tokens as for this base, folder or Hub id"
    )
    parser.add_argument(
        "--than", type=Path, metavar="FILE", help="compare the variety with these conversations"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    return commands.run(_arguments(), _report, arguments)


def _report(options) -> int:
    report, compared = _run(options)
    print(report)
    if compared:
        print(f"\n{compared}")
    return 0 if report.clean else 1


def _run(options) -> tuple[Audit, str]:
    for path in [*options.files, *options.against, *([options.than] if options.than else [])]:
        commands.check_input(path)
    conversations = _load(options.files)
    other = _load([options.than]) if options.than else []
    report = audit(
        conversations,
        _load(options.against),
        near=options.near,
        run=options.run,
        roles=SPOKEN if options.in_replies else ("user",),
        tokenizer=_tokenizer(options.base) if options.base else None,
    )
    if not other:
        return report, ""
    sample = max(1, min(len(conversations), len(other)) * 4 // 5)  # so that draws differ
    here, there = diversity(conversations, sample), diversity(other, sample)
    rows = [
        {
            f"variety, draws of {sample}": figure,
            "here": str(here.get(figure, "–")),
            options.than.name: str(there.get(figure, "–")),
        }
        for figure in here | there
    ]
    return report, _aligned(rows)


def _load(paths: Sequence[Path]) -> list[Conversation]:
    return [chat for path in paths for chat in load_conversations(path)]


def _tokenizer(base: str):
    from course_utils.checkpoints import BASES, family_for, local_folder, use_family
    from course_utils.tokenizers import load_tokenizer

    source = local_folder(base) or (BASES[base].hub if base in BASES else base)
    tokenizer = load_tokenizer(str(source))
    if tokenizer.chat_template:
        return tokenizer
    return use_family(tokenizer, family_for(base, tokenizer))


if __name__ == "__main__":
    commands.leave(main())
