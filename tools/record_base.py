"""Record what a base model does with questions: python -m tools.record_base gemma-3-270m

Measures what lecture 01 shows of a base too large to run in every lecture, and writes it with
hardware, versions and command to data/recorded/base_NAME.json. The questions, transcripts and
documents stand in the record as well, so that it can be read by itself.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

from tqdm import tqdm

from course_utils.checkpoints import CheckpointError, family_for, hardware, load_base
from course_utils.conversation import conversation, load_conversations
from course_utils.replies import generate, prompt_ids
from course_utils.templates import render
from course_utils.tokenizers import encode
from course_utils.turns import (
    FORMS,
    breaks,
    end_tokens,
    expected_after,
    follows,
    script,
    sentence_ends,
    speakers_next,
)

ROOT = Path(__file__).resolve().parents[1]

# Questions whose answer a string can check ...
FACTS = {
    "What is the boiling point of water?": ["100", "212"],
    "What is the capital of France?": ["Paris"],
    "Who wrote Romeo and Juliet?": ["Shakespeare"],
    "How many days are there in a leap year?": ["366"],
    "What is 12 times 12?": ["144"],
    "How many legs does a spider have?": ["8", "eight"],
    "What does a thermometer measure?": ["temperature"],
    "In which year did the Second World War end?": ["1945"],
    "Which planet is the largest?": ["Jupiter"],
    "What colour do blue and yellow make?": ["green"],
    "Where do penguins live?": ["Antarctica", "Antarctic", "southern"],
    "What is the opposite of hot?": ["cold"],
}
# ... and some that have no such answer.
OPEN = """How do I boil an egg?
How can I fall asleep faster?
What should I cook tonight?
Can you recommend a book for a long flight?
How do I reverse a list in Python?
My printer does not work. What can I do?
Should I learn to play the piano or the guitar?
Explain photosynthesis in two sentences.
Write a haiku about rain.
Translate "good morning" into Spanish.
Give me three names for a cat.
List the planets of the solar system.
Summarise the story of Cinderella.
Tell me a joke.
Who are you?""".splitlines()

INSTRUCTION = "You are a helpful assistant. Answer the question in one sentence, then stop.\n\n"
SHOTS = """Q: What do bees make?
A: Bees make honey.

Q: How do I clean a window?
A: Wash it with soapy water and dry it with a soft cloth.

Q: Name a river in Egypt.
A: The Nile.

"""
RUNS = {
    "greedy": ("{}", {"max_new_tokens": 64}),
    "sampled": ("{}", {"max_new_tokens": 48, "temperature": 0.7, "seed": 1}),
    "instruction": (INSTRUCTION + "{}\n\n", {"max_new_tokens": 48}),
    "few-shot": (SHOTS + "Q: {}\nA:", {"max_new_tokens": 48}),
}

# The user's lines open with a question word, the other's never do.
TRANSCRIPTS = [
    "What is the capital of France? / Paris is the capital of France. "
    "/ How many people live there? / About two million people live in the city. "
    "/ Is it older than London? / Both cities were founded in Roman times.",
    "How long should I boil an egg? / Seven minutes give a soft yolk. / What if I want it hard? "
    "/ Then leave it in for ten minutes. / Do I put it in cold water afterwards? "
    "/ Yes, cold water makes the egg easier to peel.",
    "Why do cats purr? / They purr when they feel safe. / Do they also purr when they are hurt? "
    "/ Some do, perhaps to calm themselves. / Can lions purr as well? "
    "/ No, lions roar and cannot purr.",
    "Can you recommend a tree for a small garden? / An apple tree stays small and gives fruit. "
    "/ When should I plant it? / Late autumn is the best time. / How much water does it need? "
    "/ One bucket a week in the first summer.",
    "Where can I see the northern lights? / The north of Norway is a good place. "
    "/ Which month is best? / The nights are long and clear in February. / Are they ever green? "
    "/ Green is their most common colour.",
    "Who invented the telephone? / Alexander Graham Bell got the patent in 1876. "
    "/ Did anyone else try? / Elisha Gray filed his papers on the same day. "
    "/ How did the first one work? / It turned sound into a changing current.",
]
TRANSCRIPTS = [transcript.split(" / ") for transcript in TRANSCRIPTS]

# Small documents that are over.
DOCUMENTS = {
    "JSON file": '{\n  "name": "course",\n  "version": "1.0"\n}\n',
    "C file": '#include <stdio.h>\n\nint main() {\n    printf("Hello\\n");\n    return 0;\n}\n',
    "JavaScript file": "function double(x) {\n  return 2 * x;\n}\n\nmodule.exports = double;\n",
    "SQL file": "CREATE TABLE cats (\n    id INTEGER PRIMARY KEY,\n    name TEXT\n);\n",
    "shell script": "#!/bin/bash\nset -e\nmake clean\nmake all\n",
    "web page": "<html>\n<body>\n<p>Water boils at 100 degrees.</p>\n</body>\n</html>\n",
    "letter": (
        "Dear Anna,\n\nThank you for your letter. I will visit you on Sunday.\n\n"
        "Yours sincerely,\nTom"
    ),
    "fairy tale": (
        "Once upon a time a little fox found a red ball. He played with it all day. "
        "In the evening he went home and fell asleep.\n\nThe End."
    ),
}


def measure(model, tokenizer, family: str) -> dict:
    """Everything that the record holds of the model itself."""
    runs = {
        name: ask(model, tokenizer, prompt, settings)
        for name, (prompt, settings) in tqdm(RUNS.items(), desc="asking")
    }
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "vocabulary": model.config.vocab_size,
        "questions": {question: FACTS.get(question, []) for question in (*FACTS, *OPEN)},
        "runs": {
            name: {"prompt": prompt, **settings, "replies": runs[name]}
            for name, (prompt, settings) in RUNS.items()
        },
        "transcripts": TRANSCRIPTS,
        "speakers_next": {
            form: [rounded(speakers_next(model, tokenizer, t, form)) for t in TRANSCRIPTS]
            for form in FORMS
        },
        "break_next": break_next(model, tokenizer),
        "documents": DOCUMENTS,
        "ends": ends(model, tokenizer, family, runs["greedy"]),
        "in_a_template": in_a_template(model, tokenizer, family),
    }


def ask(model, tokenizer, prompt: str, settings: dict) -> list[dict]:
    """What the model writes after each question."""
    chats = [conversation(("user", prompt.format(question))) for question in (*FACTS, *OPEN)]
    ids = [prompt_ids(chat, tokenizer, template=False) for chat in chats]
    replies = generate(model, tokenizer, ids, batch_size=len(ids), **settings)
    return [
        # Decoded once more: `text` has lost the white space that it begins with.
        {"text": tokenizer.decode(reply.ids), "stopped": reply.stopped}
        for reply in replies
    ]


def break_next(model, tokenizer) -> dict[str, list[float]]:
    """Per token of the transcripts in lines: how probable is a line break after it?"""
    found = {"at the ends of turns": [], "at other tokens": []}
    for lines in TRANSCRIPTS:
        text, _ = script(lines, "lines")
        tokens = [text[a:b] for a, b in encode(tokenizer, text).offsets]
        p = follows(model, tokenizer, text)[:, breaks(tokenizer)].sum(-1)
        for number, value in enumerate(rounded(p)):
            if tokens[number].strip():
                over = tokens[number + 1 : number + 2] in (["\n"], [])
                found["at the ends of turns" if over else "at other tokens"].append(value)
    return found


def ends(model, tokenizer, family: str, greedy: list[dict]) -> dict:
    """Probabilities of the tokens that could end a reply, at places where something is over."""
    tokens = end_tokens(tokenizer, family)
    single = [c for c in load_conversations(ROOT / "data" / "conversations.jsonl") if len(c) == 2]
    short = [c for c in single if len(c[0].content) + len(c[1].content) < 300][:24]
    answered = [f"{chat[0].content}\n\n{chat[1].content}" for chat in short]
    places = {
        "its own sentences": [
            sentence_ends(tokenizer, question, reply["text"])
            for question, reply in zip((*FACTS, *OPEN), greedy, strict=True)
        ],
        "finished answers": [(text, [len(text)]) for text in answered],
        "finished documents": [(text, [len(text)]) for text in DOCUMENTS.values()],
    }
    p = {place: expected_after(model, tokenizer, texts) for place, texts in places.items()}
    after_answers = p["finished answers"].mean(0)
    values, numbers = after_answers.topk(8)
    return {
        "tokens": {name: tokenizer.convert_ids_to_tokens(n) for name, n in tokens.items()},
        "p": {
            place: {name: rounded(found[:, number]) for name, number in tokens.items()}
            for place, found in p.items()
        },
        "answers": answered,
        "expected_after_answers": dict(
            zip(map(tokenizer.decode, numbers.tolist()), rounded(values), strict=True)
        ),
        "line_break_after_answers": rounded(after_answers[breaks(tokenizer)].sum()),
    }


def in_a_template(model, tokenizer, family: str) -> dict:
    """A base called as if it were a chat model: its reply, and does it expect the turn to end?"""
    chat = conversation(("user", "What is the boiling point of water?"))
    prompt = render(chat, family, add_generation_prompt=True).text
    prompt = prompt.removeprefix(tokenizer.bos_token or "")
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = [start + encode(tokenizer, prompt).ids]
    (reply,) = generate(model, tokenizer, ids, max_new_tokens=40)
    answered = prompt + "Water boils at 100 degrees Celsius at sea level."
    p = follows(model, tokenizer, answered, [len(answered)])[0]
    return {
        "family": family,
        "prompt": prompt,
        "reply": reply.text,
        "stopped": reply.stopped,
        "has_chat_template": tokenizer.chat_template is not None,
        "p_end_of_turn": rounded(p[end_tokens(tokenizer, family)["end of turn"]]),
    }


def rounded(values):
    """Three significant digits; of a number, a tensor, or nested lists."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, list | tuple):
        return [rounded(value) for value in values]
    return float(f"{values:.3g}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.record_base",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", help="a named base, a folder, or a Hub id")
    parser.add_argument("--output", type=Path, help="JSON (default: data/recorded/base_NAME.json)")
    options = parser.parse_args(arguments)
    name = Path(options.base).name
    output = options.output or ROOT / "data" / "recorded" / f"base_{name}.json"
    began = time.perf_counter()
    try:
        model, tokenizer = load_base(options.base)
    except CheckpointError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    measured = measure(model, tokenizer, family_for(options.base, tokenizer))
    record = {
        "base": name,
        "command": shlex.join(["python", "-m", "tools.record_base", *(arguments or sys.argv[1:])]),
        "hardware": hardware(),
        "seconds": round(time.perf_counter() - began, 1),
        **measured,
    }
    text = json.dumps(record, ensure_ascii=False, indent=1)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text + "\n", encoding="utf-8")
    print(f"Wrote {output} ({len(text) / 1000:.0f} kB) after {record['seconds']:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
