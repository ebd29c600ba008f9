"""One conversation in all template families, and under all mask modes."""

from course_utils.conversation import Conversation
from course_utils.masking import MASK_MODES, MaskError
from course_utils.show import lanes, strips
from course_utils.show.strips import Strip
from course_utils.show.svg import Picture
from course_utils.show.tokens import of_spans, of_words
from course_utils.templates import FAMILIES, TemplateError, parse, render


def all_families(conversation: Conversation, *, title: str | None = None) -> Picture:
    """A strip for each family that can render the conversation, and why each other one refuses."""
    shown, refused = [], []
    for family in FAMILIES:
        try:
            shown.append(family_strip(conversation, family))
        except TemplateError as error:
            refused.append(f"{family} refuses: {error}")
    if not shown:
        raise TemplateError("\n".join(refused))
    return strips.picture(shown, title, notes=refused)


def family_strip(conversation: Conversation, family: str, *, lossy: bool = True) -> Strip:
    """The strip of one family, titled with its counts. Says below if it cannot be parsed back."""
    rendered = render(conversation, family, lossy=lossy)
    counts, notes = f"{len(rendered.text)} characters", [_why_not_invertible(conversation, family)]
    try:
        counts += f"; as words and markers: {of_words(rendered).summary}"
    except MaskError as error:
        notes.append(f"Not to be masked by words: {error}")
    return Strip(
        of_spans(rendered, "assistant"),
        title=family,
        note=" ".join(filter(None, notes)) or None,
        counts=counts,
    )


def _why_not_invertible(conversation: Conversation, family: str) -> str | None:
    try:
        parse(render(conversation, family), family)
    except TemplateError as error:
        return f"Not to be parsed back: {error}"
    return None


def all_modes(
    conversation: Conversation, family: str = "llama3", *, title: str | None = None
) -> Picture:
    """A row for each mask mode over the conversation's words and markers."""
    rendered = render(conversation, family, lossy=True)
    shown = of_words(rendered)
    return lanes.picture(
        shown.with_mask(None),
        {mode: of_words(rendered, mode).graded for mode in MASK_MODES},
        title,
    )
