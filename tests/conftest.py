"""Fixtures that several test files share: tokenizers are made or loaded once."""

import os

import pytest
from hypothesis import settings

# The same examples in every run, so that a failure on a learner's machine can be repeated on ours.
# To look for new ones: pytest --hypothesis-profile=explore
settings.register_profile("course", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("course")


def how_many(usual: int, thorough: int) -> int:
    """How many random examples a test draws: with COURSE_THOROUGH=1 more than each run needs."""
    return thorough if os.environ.get("COURSE_THOROUGH") else usual


TOY_TEXTS = ["Water boils at 100 degrees Celsius. Hi! User: hello\n\nAssistant: Answer yes.\n"] * 8


@pytest.fixture(scope="session")
def bare_toy():
    """A toy tokenizer without a chat template, as a base model's has none."""
    from course_utils.tokenizers import toy_tokenizer

    return toy_tokenizer(TOY_TEXTS)


@pytest.fixture(scope="session")
def toy():
    """toy(template): a toy tokenizer with a family's template, or with the Jinja source given."""
    from course_utils.templates import FAMILIES, chat_template
    from course_utils.tokenizers import toy_tokenizer

    made = {}

    def with_template(template):
        if template not in made:
            made[template] = toy_tokenizer(TOY_TEXTS)
            named = template in FAMILIES
            made[template].chat_template = chat_template(template) if named else template
        return made[template]

    return with_template


@pytest.fixture(scope="session")
def real():
    """real(name): a real tokenizer; skips where neither cache nor npm nor the Hub gives it."""
    from course_utils.tokenizers import TokenizerError, load_tokenizer

    found = {}

    def load(name):
        if name not in found:
            try:
                found[name] = load_tokenizer(name)
            except TokenizerError as error:
                found[name] = error
        if isinstance(found[name], TokenizerError):
            pytest.skip(str(found[name]))
        return found[name]

    return load
