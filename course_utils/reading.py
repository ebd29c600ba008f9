"""Find in a marked text what belongs to which message, and that nothing of it is lost.

A mark shows where a text stands. What the template made of a text (trimmed, split, joined) has a
mark of its own, and the record says from which texts it comes.
"""

import os
import re

from course_utils.conversation import Conversation
from course_utils.plans import Turn, fill, is_mark, refs
from course_utils.rendering import MaskError
from course_utils.rerendering import rewritten, shown
from course_utils.shapes import map_leaves
from course_utils.watching import FIRST_MARK, Record, Unwatchable, name_of

# Steps that keep a text but for the white space around it, or write it as JSON.
KEEPING = {"strip", "lstrip", "rstrip", "_concatenate", "tojson", "join", "do_join", "do_format"}
KEEPING |= {"do_mark_safe"}


class Reader:
    """Finds in a marked text what belongs to which message.

    record:   the steps that the template took with the conversation's texts
    owners:   for each text, the index of its message
    specials: pattern of the tokenizer's special tokens

    What has to be looked at again in every conversation gathers in `cut_texts` and `absent`; see
    `Plan`.
    """

    def __init__(
        self, record: Record, owners: list[int], conversation: Conversation, specials: re.Pattern
    ):
        self.record, self.owners, self.conversation = record, owners, conversation
        self.specials, self.cut_texts, self.absent = specials, [], []
        # For each value: the texts that it comes from, and whether it is the whole of them.
        self.sources = [frozenset([number]) for number in range(len(record.texts))]
        self.whole = [True] * len(record.texts)

    def texts_of(self, mark: str) -> frozenset[int]:
        """Which of the conversation's texts a mark comes from."""
        number = ord(mark) - FIRST_MARK
        while len(self.sources) <= number:
            function, frozen = self.record.steps[len(self.sources) - len(self.owners)]
            earlier = refs(frozen)
            self.sources.append(frozenset().union(*(self.sources[n] for n in earlier)))
            name = name_of(frozen[0] if name_of(function) == "_call" else function)
            keeps = name in KEEPING
            self.whole.append(keeps and all(self.whole[n] for n in earlier))
        return self.sources[number]

    def marks(self, text: str, start: int, message: int, field: int | None = None) -> list[int]:
        """Positions from `start` on of marks that come from this message (and this text)."""
        return [
            place
            for place in range(start, len(text))
            if is_mark(text[place])
            and any(
                self.owners[n] == message and field in (None, n) for n in self.texts_of(text[place])
            )
        ]

    def fields(self, message: int) -> list[int]:
        return [number for number, owner in enumerate(self.owners) if owner == message]

    def turn(self, run, message: int, headers: bool) -> Turn:
        """The positions of a reply in `run.text(message + 1)`, a marked text."""
        before, prompt = run.text(message), run.text(message, prompt=True)
        text = run.text(message + 1)
        if not text.startswith(prompt):
            real_prompt, real_text = self.real(prompt, text)
            if real_text.startswith(real_prompt):
                raise Unwatchable("a text is part of the prompt in one run and not in the other")
            raise MaskError(rewritten(message, real_prompt, real_text, "adding the reply"))
        if headers and not prompt.startswith(before):
            raise MaskError(rewritten(message, *self.real(before, prompt), "the generation prompt"))
        start = len(prompt)
        marks = self.marks(text, start, message)
        self.check_reply(text, start, message)
        behind = marks[-1] + 1 if marks else start
        openers = set(self.specials.findall(prompt[len(os.path.commonprefix([before, prompt])) :]))
        stop, end = self.end_of_turn(text, behind, message, openers)
        self.check_own(text, start, end, message)
        head = len(before) if headers else None
        return Turn(
            message, head, start, self.answer(text, start, stop, message), stop, end, len(text)
        )

    def end_of_turn(self, text: str, behind: int, message: int, openers: set) -> tuple[int, int]:
        """Begin and end of the last special token that ends the reply, or of all that follows it.

        openers: special tokens that open turns; after one of them somebody else speaks
        """
        found = list(self.specials.finditer(text, behind))
        if not found:
            return behind, len(text)
        last = 0
        while last + 1 < len(found):
            between = text[found[last].end() : found[last + 1].start()]
            # Between the tokens of a call some formats write text; a reply that is over is over.
            inside = self.conversation[message].tool_calls
            if (between and not inside) or found[last + 1][0] in openers:
                break
            last += 1
        rest = self.specials.sub("", text[found[last].end() :])
        if rest.strip():
            raise MaskError(
                f"turn {message}: after the end of turn the template writes "
                f"{shown(fill(text[found[last].end() :], self.record.values))}; it is unclear "
                "whether the model is to write that. Change the template so that the end of turn "
                "comes last."
            )
        return found[last].span()

    def check_own(self, text: str, start: int, end: int, message: int) -> None:
        """In what the model writes every text of the reply may be once, and no other's at all."""
        seen = set()
        for mark in filter(is_mark, text[start:end]):
            owners = {self.owners[number] for number in self.texts_of(mark)}
            if owners - {message}:
                raise MaskError(
                    f"turn {message}: the template writes the text of turn "
                    f"{min(owners - {message})} inside the reply. Change the template."
                )
            said = self.texts_of(mark) & set(self.fields(message)[: self.spoken(message)])
            if mark in seen and said:
                raise MaskError(
                    f"turn {message}: the template writes a text of the reply twice, and it is "
                    "unclear where the reply ends. Change the template."
                )
            seen.add(mark)

    def answer(self, text: str, start: int, stop: int, message: int) -> int:
        """Behind the reasoning: behind the last </think>, or the last mark of the reasoning."""
        closing = text.rfind("</think>", start, stop)
        if closing >= 0:
            closing += len("</think>")
            while closing < stop and text[closing].isspace():
                closing += 1
        own = []
        if self.conversation[message].reasoning is not None:
            reasoning = self.fields(message)[1]
            own = [place for place in self.marks(text, start, message, reasoning) if place < stop]
        if not own or closing > own[-1]:
            return max(start, closing)
        later = [place for place in self.marks(text, start, message) if place > own[-1]]
        return later[0] if later else own[-1] + 1

    def spoken(self, message: int) -> int:
        """How many of a message's texts are what it says: the content, perhaps the reasoning."""
        return 1 + (self.conversation[message].reasoning is not None)

    def content_field(self, message: int) -> int:
        """The number of a message's content, which comes first among its texts."""
        return self.fields(message)[0]

    # --- nothing may be lost ---------------------------------------------------------------------

    def check_reply(self, text: str, start: int, message: int) -> None:
        """All texts of a reply must stand in what the model writes."""
        for number in self.fields(message):
            if number not in self.identities(message):
                self.look_for(number, text, start, message)

    def check_context(self, text: str, count: int) -> None:
        """The text of every message that is not a reply must stand somewhere."""
        for message in range(count):
            if self.conversation[message].role != "assistant":
                self.look_for(self.content_field(message), text, 0, message)

    def look_for(self, number: int, text: str, start: int, message: int) -> None:
        """Does the text stand there, whole? If not, every conversation's will be looked at."""
        marks = self.marks(text, start, message, number)
        pieces = [ord(text[place]) - FIRST_MARK for place in marks]
        if not marks:
            self.absent.append((message, number))
        elif not any(self.whole[piece] for piece in pieces):
            self.cut_texts.append((message, number, pieces))

    def identities(self, message: int) -> set[int]:
        """The numbers of the ids of a message's calls, which many templates leave out."""
        found, number = set(), self.content_field(message) + self.spoken(message)
        for call in self.conversation[message].tool_calls:
            if isinstance(call.get("id"), str):
                found.add(number)
                number += 1
            leaves = []
            map_leaves(call["function"], leaves.append)
            number += len(leaves)
        return found

    def real(self, *marked: str) -> list[str]:
        return [fill(text, self.record.values) for text in marked]


def lost(message: int, role: str, text: str) -> str:
    return (
        f"turn {message}: the template drops or rewrites the text of the {role} turn, "
        f"{shown(text)}. Put the text where the template renders it (a system text into the first "
        "user turn, say), write it as the template does, or change the template."
    )


def check_kept(message: int, role: str, text: str, pieces: list[str]) -> None:
    """A text that the template took apart: nothing but tags and white space may be missing."""
    rest = text
    for piece in sorted(
        {piece.strip() for piece in pieces if piece.strip()}, key=len, reverse=True
    ):
        rest = rest.replace(piece, "\n", 1)
    for tag in ("<think>", "</think>"):
        rest = rest.replace(tag, "")
    if rest.strip():
        raise MaskError(lost(message, role, rest))
