"""Pictures: one palette, one token strip, one plotting style for every lecture.

    from course_utils import show
    show.strip(["Hi", " there"], [False, True])

Strips are drawn as SVG without any CSS, so that web pages which strip styles from notebooks show
them as they are, and each has a twin in plain text. matplotlib and ipywidgets are imported by the
first picture that needs them.
"""

from importlib import import_module

from course_utils.show.lanes import masks
from course_utils.show.overviews import all_families, all_modes
from course_utils.show.strips import plan, rendered, sample, strip
from course_utils.show.style import PALETTE
from course_utils.show.svg import Picture
from course_utils.show.tables import Table, table

_LATER = {
    **dict.fromkeys(("bars", "figure", "heat"), "plots"),
    **dict.fromkeys(("live_loss", "loss_curve"), "training"),
    **dict.fromkeys(("mask_explorer", "template_explorer"), "explorers"),
}

__all__ = [
    "PALETTE",
    "Picture",
    "Table",
    "all_families",
    "all_modes",
    "masks",
    "plan",
    "rendered",
    "sample",
    "strip",
    "table",
    *_LATER,
]


def __getattr__(name):
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


def __dir__():
    return __all__
