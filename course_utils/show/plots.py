"""Plots in the course's style; every figure says in words what it shows."""

from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text

from course_utils.show.style import INK, PALE_INK, PALETTE, printable

STYLE = {
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PALE_INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.prop_cycle": matplotlib.cycler(
        color=[PALETTE[name] for name in ("special", "tuned", "graded", "accent", "space", "base")]
    ),
    "axes.axisbelow": True,
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a text of somebody else's with two dollar signs is no formula
    "xtick.color": PALE_INK,
    "ytick.color": PALE_INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": "#E5E5E5",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


class DescribedFigure(Figure):
    """A figure whose plain-text twin and whose image's alternative text are its description.

    Titles and labels may be any text: what no font has is written as its code point.
    """

    def set_label(self, label):
        super().set_label(printable(label))

    def draw(self, renderer):
        for axis in (axis for ax in self.axes for axis in (ax.xaxis, ax.yaxis)):
            labels = [label.get_text() for label in axis.get_ticklabels()]
            if not all(map(_can_be_shown, labels)):
                axis.set_ticks(axis.get_ticklocs(), list(map(printable, labels)))
        for text in self.findobj(Text):
            if not _can_be_shown(text.get_text()):
                text.set_text(printable(text.get_text()))
        super().draw(renderer)

    def __repr__(self):
        return self.get_label()

    def _repr_mimebundle_(self, include=None, exclude=None):
        # The image itself comes from whatever formatter is set up for figures.
        return {}, {"image/png": {"alt": self.get_label()}}


def _can_be_shown(text: str) -> bool:
    return printable(text) == text


def figure(width: float = 7, height: float = 3, *, alt: str):
    """A figure of `width` by `height` inches and its axes; `alt` says what it shows.

    End the cell with `plt.show()`.
    """
    if not alt.strip():
        raise ValueError("alt is empty: say in a sentence what the figure shows.")
    matplotlib.rcParams.update(STYLE)
    fig, ax = plt.subplots(figsize=(width, height), FigureClass=DescribedFigure)
    fig.set_label(alt)
    return fig, ax


def bars(
    labels: Sequence[str],
    values: Sequence[float] | Mapping[str, Sequence[float]],
    *,
    intervals=None,
    xlabel: str,
    alt: str,
):
    """Horizontal bars with their values written at the end, the first label at the top.

    values:    one number for each label; or {series: numbers} for bars side by side, where the
               series "base" and "SFT" get the course's colours for them
    intervals: for each value a pair (low, high), drawn as a line; shaped like `values`
    """
    series = values if isinstance(values, Mapping) else {"": values}
    ranges = intervals if isinstance(intervals, Mapping) else {"": intervals}
    rows, step = len(labels), 0.8 / len(series)
    fig, ax = figure(7, 0.7 + rows * max(0.32, 0.26 * len(series)), alt=alt)
    colours = {"base": PALETTE["base"], "sft": PALETTE["tuned"], "tuned": PALETTE["tuned"]}
    others = iter([PALETTE["special"], PALETTE["space"], PALETTE["accent"], PALETTE["masked"]])
    highest = 0.0
    for number, (name, numbers) in enumerate(series.items()):
        if len(numbers) != rows:
            raise ValueError(f"{name or 'values'} has {len(numbers)} numbers for {rows} labels.")
        ys = [row + (number - (len(series) - 1) / 2) * step for row in range(rows)]
        colour = colours.get(name.lower()) or next(others, PALETTE["masked"])
        ax.barh(
            ys,
            numbers,
            step * 0.9,
            color=colour,
            edgecolor=INK,
            linewidth=0.8,
            label=name,
        )
        pairs = ranges.get(name) or [(value, value) for value in numbers]
        for y, value, (low, high) in zip(ys, numbers, pairs, strict=True):
            if high > low:
                ax.plot([low, high], [y, y], color=INK, linewidth=1.4, solid_capstyle="butt")
            ax.annotate(
                f"{value:.3g}",
                (max(value, high, 0), y),
                (5, 0),
                va="center",
                fontsize=9,
                textcoords="offset points",
            )
            highest = max(highest, value, high)
    ax.set_yticks(range(rows), labels)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(right=highest * 1.12 or 1)
    ax.set_xlabel(xlabel)
    ax.grid(axis="x")
    if len(series) > 1:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(series), borderaxespad=0.2)
    return fig, ax


def heat(matrix, row_labels: Sequence[str], column_labels: Sequence[str], alt: str):
    """A small matrix as colours, with the numbers written in where there is room.

    matrix: rows of numbers, (len(row_labels), len(column_labels)); a tensor will do. Where nothing
            is negative, darker is more; else the two signs have two colours. White is zero.
            An exact zero is written as 0.
    """
    rows = [[float(value) for value in row] for row in matrix]
    shape = (len(rows), len(rows[0]) if rows else 0)
    if shape != (len(row_labels), len(column_labels)) or not all(shape):
        raise ValueError(
            f"the matrix is {shape[0]} by {shape[1]}, but there are {len(row_labels)} row labels "
            f"and {len(column_labels)} column labels."
        )
    largest = max(abs(value) for row in rows for value in row) or 1.0
    signed = min(value for row in rows for value in row) < 0
    width = min(9, 1.6 + 0.42 * shape[1])
    fig, ax = figure(width, 1.1 + 0.34 * shape[0], alt=alt)
    image = ax.imshow(
        rows,
        cmap="PuOr" if signed else "Blues",
        vmin=-largest if signed else 0,
        vmax=largest,
        aspect="auto",
    )
    if shape[1] <= 20:
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                dark = abs(value) > 0.55 * largest
                ax.text(
                    x,
                    y,
                    "0" if value == 0 else f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else INK,
                )
    ax.set_xticks(range(shape[1]), column_labels, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(shape[0]), row_labels)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    fig.colorbar(image, ax=ax, shrink=0.9, pad=0.02).outline.set_visible(False)
    return fig, ax
