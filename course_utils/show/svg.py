"""SVG by presentation attributes alone, and the object that notebooks display.

No ids, no CSS and no patterns: what is drawn does not depend on what else is on the page.
"""

from dataclasses import dataclass
from html import escape

from course_utils.show.style import INK, PAPER, columns, printable

FONT_SIZE, CHARACTER = 11.5, 6.9  # one column of the monospace font, in px
MARGIN, WIDEST = 12, 870  # px
MONO = "DejaVu Sans Mono, Menlo, Consolas, monospace"


@dataclass(frozen=True, repr=False)
class Picture:
    """A picture (`svg`) with its twin in plain text (`text`); both can be shown anywhere."""

    svg: str
    text: str

    def __post_init__(self):
        # Titles and names come from whoever calls. One control character, and the SVG is none.
        object.__setattr__(self, "svg", printable(self.svg))
        object.__setattr__(self, "text", printable(self.text))

    def __repr__(self):
        return self.text

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"image/svg+xml": self.svg, "text/plain": self.text}


def width_of(words: str, size: float = FONT_SIZE) -> float:
    return columns(printable(words)) * CHARACTER * size / FONT_SIZE


def text(x, y, words, *, size=FONT_SIZE, fill=INK, anchor=None, bold=False) -> str:
    """A line of monospace text. Its width is given, so that it fits whatever font is found."""
    words = printable(words)
    # Renderers merge and trim ordinary spaces.
    shown = escape(words.replace(" ", "\u00a0"))
    attributes = [f'x="{x:g}" y="{y:g}" fill="{fill}" font-size="{size}"']
    if anchor:
        attributes.append(f'text-anchor="{anchor}"')
    if bold:
        attributes.append('font-weight="bold"')
    if columns(words) > 1:
        length = f"{width_of(words, size):.4g}"
        attributes.append(f'textLength="{length}" lengthAdjust="spacingAndGlyphs"')
    return f"<text {' '.join(attributes)}>{shown}</text>"


def signs(where, y, sign, *, fill) -> str:
    """The same bold sign around several places of a line."""
    shown = "".join(f'<text x="{x:g}" y="{y:g}">{escape(sign)}</text>' for x in where)
    return (
        f'<g fill="{fill}" font-size="{FONT_SIZE}" font-weight="bold" text-anchor="middle">'
        f"{shown}</g>"
    )


def rect(x, y, width, height, *, fill, stroke=None, stroke_width=1, dashed=False, rx=3) -> str:
    edge = f' stroke="{stroke}" stroke-width="{stroke_width:g}"' if stroke else ""
    dashes = ' stroke-dasharray="3 2"' if dashed else ""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{rx}" '
        f'fill="{fill}"{edge}{dashes}/>'
    )


def document(parts, width, height, *, title, description) -> str:
    """The whole SVG on paper of its own, which dark themes need."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width:g}" '
        f'height="{height:g}" viewBox="0 0 {width:g} {height:g}" font-family="{MONO}">\n'
        f"<title>{escape(title)}</title>\n<desc>{escape(description)}</desc>\n"
        f'<rect width="{width:g}" height="{height:g}" rx="6" fill="{PAPER}"/>\n'
        + "\n".join(parts)
        + "\n</svg>"
    )
