"""The mini-web: a small synthetic web whose every fact is known, and what is made of it.

`course-base`, the model that ships with the course, was pretrained on its pages. Because the tables
in `data/miniweb/` say which facts stand on them, and how, the course can measure what fine-tuning
adds and what it only lets out.

    facts  --> pages  --> course-base            (tools.pretrain)
           --> chats  --> a tuned course-base    (lecture 08)
           --> probes --> what either of them knows (lectures 01 and 09)
"""

from course_utils.miniweb.chats import conversations, prompts
from course_utils.miniweb.facts import TELLINGS, Fact, Relation, facts, relations
from course_utils.miniweb.pages import PAGE_BREAK, pages

__all__ = [
    "PAGE_BREAK",
    "TELLINGS",
    "Fact",
    "Relation",
    "conversations",
    "facts",
    "pages",
    "prompts",
    "relations",
]
