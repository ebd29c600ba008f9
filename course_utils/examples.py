"""The chats that every lecture comes back to."""

from course_utils.conversation import conversation

# The running example: 36 words and markers in the Llama-3 format.
WALKTHROUGH = conversation(
    ("system", "Answer in one sentence."),
    ("user", "What is the boiling point of water?"),
    ("assistant", "Water boils at 100 degrees Celsius at sea level."),
    id="walkthrough",
)

# Three chats small enough to hold in your head, each with a trap: the reply's text stands in the
# question too; two replies are the same; a user types an end-of-turn marker.
TINY_CHATS = (
    conversation(("user", "Say yes."), ("assistant", "yes"), id="tiny-echo"),
    conversation(
        ("user", "1+1?"),
        ("assistant", "2"),
        ("user", "And 4-2?"),
        ("assistant", "2"),
        id="tiny-twice",
    ),
    conversation(
        ("system", "Be brief."),
        ("user", "What does <|eot_id|> do?"),
        ("assistant", "It ends a turn."),
        id="tiny-marker",
    ),
)
