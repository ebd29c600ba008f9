"""Two explorers for the notebook: edit the turns, switch the family or the mode, see the strip.

What they show is computed in Python, so on a web page they stand still: there the picture of all
families, or of all modes, is shown in their place.
"""

from collections.abc import Callable, Iterable
from html import escape

from ipywidgets import HTML, Checkbox, HBox, Layout, Textarea, ToggleButtons, VBox

from course_utils.conversation import Conversation, ConversationError, Message
from course_utils.masking import MASK_MODES, MaskError
from course_utils.show import strips
from course_utils.show.overviews import all_families, all_modes, family_strip
from course_utils.show.strips import Strip
from course_utils.show.style import printable
from course_utils.show.svg import Picture
from course_utils.show.tokens import of_words
from course_utils.templates import FAMILIES, TemplateError, render

REFUSALS = (ConversationError, MaskError, TemplateError)


class Explorer:
    """The widgets, and how they hang together.

    turns:   a text area for each turn of the conversation; an empty one leaves its turn out
    choice:  the toggle buttons
    option:  a check box, or None
    strip, refusal: what is shown; `refusal` says why there is no strip, if there is none
    picture: the `Picture` that is shown as the strip, or None
    """

    def __init__(
        self,
        conversation: Conversation,
        choices: Iterable[str],
        chosen: str,
        draw: Callable[[Conversation, str, bool], Strip],
        static: Callable[[], Picture],
        option: str | None = None,
    ):
        self._roles, self._draw = conversation.roles, draw
        try:
            self._static = static()
        except REFUSALS as error:
            self._static = strips.picture([], "No strip", notes=[str(error)])
        self.turns = [
            Textarea(
                message.content,
                description=message.role,
                rows=2,
                layout=Layout(width="32%", min_width="220px"),
            )
            for message in conversation
        ]
        self.choice = ToggleButtons(options=list(choices), value=chosen)
        self.choice.style.button_width = "auto"
        self.option = Checkbox(False, description=option, indent=False) if option else None
        self.strip, self.refusal, self.picture = HTML(), HTML(), None
        inputs = [*self.turns, self.choice, *([self.option] if option else [])]
        for widget in inputs:
            widget.observe(self._update, "value")
        turns = HBox(self.turns, layout=Layout(flex_flow="row wrap"))
        self.widget = VBox([turns, *inputs[len(self.turns) :], self.refusal, self.strip])
        self._update()

    def conversation(self) -> Conversation:
        return Conversation(
            tuple(
                Message(role, turn.value)
                for role, turn in zip(self._roles, self.turns, strict=True)
                if turn.value
            )
        )

    def _update(self, change=None) -> None:
        try:
            strip = self._draw(
                self.conversation(), self.choice.value, bool(self.option and self.option.value)
            )
        except REFUSALS as error:
            self.picture, self.strip.value = None, ""
            self.refusal.value = f"<p><b>No strip:</b> {escape(printable(str(error)))}</p>"
        else:
            self.refusal.value = ""
            self.picture = strips.picture([strip])
            self.strip.value = self.picture.svg

    def __repr__(self):
        return repr(self._static)

    def _repr_mimebundle_(self, include=None, exclude=None):
        # A front end takes the first of these that it can show.
        return self._static._repr_mimebundle_() | {
            kind: data
            for kind, data in self.widget._repr_mimebundle_().items()
            if kind != "text/plain"
        }


def template_explorer(conversation: Conversation, family: str = "llama3") -> Explorer:
    """Edit the turns and see what each template family makes of them."""

    def draw(conversation: Conversation, family: str, strict: bool) -> Strip:
        return family_strip(conversation, family, lossy=not strict)

    return Explorer(
        conversation,
        FAMILIES,
        family,
        draw,
        static=lambda: all_families(conversation),
        option="refuse what could not be parsed back",
    )


def mask_explorer(
    conversation: Conversation, mode: str = "assistant", *, family: str = "llama3"
) -> Explorer:
    """Edit the turns and see which words and markers each mask mode grades."""

    def draw(conversation: Conversation, mode: str, _: bool) -> Strip:
        return Strip(of_words(render(conversation, family, lossy=True), mode), title=mode)

    return Explorer(conversation, MASK_MODES, mode, draw, lambda: all_modes(conversation, family))
