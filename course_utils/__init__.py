"""Helpers of the course: from a conversation to text, mask, tokens, a tuned model, a comparison.

`import course_utils` is instant: only the rooms written in plain Python are loaded here, and torch
and transformers are imported by the functions that need them.
"""

from course_utils import commands as commands  # first: Ctrl-C is a clean end from here on
from course_utils.conversation import (
    Conversation,
    ConversationError,
    Message,
    load_conversations,
    save_conversations,
)
from course_utils.masking import IGNORE_INDEX, MASK_MODES, MaskError, training_samples
from course_utils.templates import FAMILIES, TemplateError, parse, render

__version__ = "0.1.0"

__all__ = [
    "FAMILIES",
    "IGNORE_INDEX",
    "MASK_MODES",
    "Conversation",
    "ConversationError",
    "MaskError",
    "Message",
    "TemplateError",
    "load_conversations",
    "parse",
    "render",
    "save_conversations",
    "training_samples",
]
