"""What a tokenizer's chat template writes, from the template and plain data alone.

A template is a program that somebody else wrote. `ChatTemplate` is all that it takes to run one; it
holds no tokenizer, so it can be sent to a process that has nothing else in reach (`confinement`).
"""

import json
import re
from dataclasses import dataclass

from course_utils.tokenizers import special_tokens


class MaskError(ValueError):
    """No mask that is certainly right can be made; names the turn and says what to do."""


NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # of a template; it becomes the name of a file
# What transformers itself passes, or takes for itself, when it calls a template.
RESERVED = {"messages", "conversation", "conversations", "tools", "documents", "chat_template"}
RESERVED |= {"add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask"}
RESERVED |= {"tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
RESERVED |= {"tokenizer_kwargs", "sanitize_control_tokens"}


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's templates by name, and what they are given besides a chat.

    sources:   Jinja source of each; a tokenizer with one template calls it "default"
    variables: `bos_token` and its like
    specials:  the texts of the tokenizer's special tokens
    """

    sources: dict[str, str]
    variables: dict
    specials: tuple[str, ...]

    def name(self, tools) -> str:
        """Which of the templates a chat with these tools is written with, as in transformers."""
        if tools and "tool_use" in self.sources:
            return "tool_use"
        if "default" in self.sources:
            return "default"
        raise MaskError(
            f"the tokenizer has the chat templates {', '.join(self.sources)} and none called "
            "'default'. Set tokenizer.chat_template to the one that you serve with."
        )

    def begin_run(self) -> None:
        """Called before the template runs; `confined` sets its limit of time here."""

    def write(
        self,
        messages: list[dict],
        *,
        tools=None,
        prompt: bool = False,
        options: dict | None = None,
    ) -> str:
        """The text of a chat as transformers writes it; with `prompt`, the generation prompt too.

        options: what the template is given besides, such as {"enable_thinking": False}

        Raises `MaskError` where the template refuses, fails, or needs too much memory.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        source = self.sources[self.name(tools)]
        self.begin_run()
        try:
            (text,), _ = render_jinja_template(
                [messages],
                tools=tools or None,
                chat_template=source,
                add_generation_prompt=prompt,
                **self.variables | (options or {}),
            )
        except MemoryError:
            raise
        except Exception as error:  # a template may raise anything: 1/0 is one
            roles = [m["role"] for m in messages]
            raise MaskError(
                f"the chat template refuses the roles {one_line(roles)}: {said_by(error)}"
            ) from None
        try:
            text.encode()
        except UnicodeEncodeError:
            raise MaskError("the chat template writes a lone surrogate.") from None
        return text


def said_by(error: Exception) -> str:
    """What an error says, in one line: the words may be a stranger's."""
    return one_line(str(error).strip() or type(error).__name__)


def one_line(said, width: int = 300) -> str:
    said = " ".join(str(said).split())
    said = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in said)
    return said if len(said) <= width else f"{said[:width]} ..."


def template_of(tokenizer) -> ChatTemplate:
    """The chat template of a transformers tokenizer; `MaskError` if there is none to be used."""
    found = getattr(tokenizer, "chat_template", None)
    if not found:
        raise MaskError(
            "the tokenizer has no chat template. A base model's usually has none: set one with "
            "tokenizer.chat_template = course_utils.templates.chat_template('chatml') or another "
            "family whose special tokens this tokenizer has."
        )
    sources = dict(found) if isinstance(found, dict) else {"default": found}
    if odd := [name for name in sources if not NAME.fullmatch(str(name))]:
        raise MaskError(
            f"the tokenizer has a chat template called {one_line(ascii(odd[0]), 60)}. A name is "
            "letters, digits, _ and -; rename it in tokenizer.chat_template."
        )
    if not all(isinstance(source, str) for source in sources.values()):
        raise MaskError("the tokenizer's chat template is not text. Set tokenizer.chat_template.")
    if _writes_in_its_own_way(tokenizer):
        raise MaskError(
            f"a {type(tokenizer).__name__} writes chats with code of its own instead of a chat "
            "template, so they cannot be followed. Load the tokenizer with AutoTokenizer."
        )
    # As JSON, so that what is compared, sent and rendered is plain data.
    variables = json.loads(json.dumps(tokenizer.special_tokens_map, default=str))
    if taken := sorted(RESERVED & set(variables)):
        raise MaskError(
            f"the tokenizer calls a special token {taken[0]!r}, a name that transformers keeps for "
            "what it passes to a template. Rename the token."
        )
    return ChatTemplate(sources, variables, special_tokens(tokenizer))


def _writes_in_its_own_way(tokenizer) -> bool:
    from transformers import PreTrainedTokenizerBase

    own = getattr(type(tokenizer), "apply_chat_template", None)
    return own is not PreTrainedTokenizerBase.apply_chat_template
