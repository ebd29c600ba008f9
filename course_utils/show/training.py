"""The loss of a training run: as a figure, and while it runs."""

from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from math import ceil
from time import monotonic

import matplotlib.pyplot as plt

from course_utils.show.plots import figure
from course_utils.show.style import PALETTE


def loss_curve(steps, *, alt: str, window: int = 20, epochs: Sequence[int] = ()):
    """The loss of every step as dots, and its mean over the last `window` steps as a line.

    steps:  objects with `step`, `loss` (nats per graded token) and `graded_tokens`; in the mean
            every graded token counts the same
    epochs: the steps with which the second epoch and those after it begin, as `epoch_starts` gives
            them. Each is marked, and the mean begins anew: across it a step would look like a slope
    """
    steps = list(steps)
    if not steps:
        raise ValueError("nothing to show: there are no training steps.")
    fig, ax = figure(7, 3, alt=alt)
    _draw_loss(ax, steps, window, epochs)
    return fig, ax


def epoch_starts(samples: int, batch_size: int, steps: int, accumulate: int = 1) -> list[int]:
    """The steps of a run, counted from 0, that are the first to see samples for the second time,
    the third time and so on.

    An epoch is ceil(samples / batch_size) batches (see `batching.length_batches`), and a step takes
    `accumulate` batches.
    """
    if min(samples, batch_size, accumulate) < 1:
        raise ValueError("samples, batch_size and accumulate must be at least 1.")
    batches = ceil(samples / batch_size)
    starts = (first // accumulate for first in range(batches, steps * accumulate, batches))
    return list(dict.fromkeys(starts))


def _draw_loss(ax, steps, window: int, epochs: Sequence[int]) -> None:
    xs = [one.step for one in steps]
    ax.plot(
        xs,
        [one.loss for one in steps],
        ".",
        color=PALETTE["masked"],
        markersize=4,
        label="each step",
    )
    label = f"mean of the last {window} steps"
    for start, end in pairwise([float("-inf"), *epochs, float("inf")]):
        if part := [one for one in steps if start <= one.step < end]:
            means = smoothed(part, window)
            ax.plot([one.step for one in part], means, color=PALETTE["tuned"], label=label)
            label = None  # one line in the legend for all parts
    label = "an epoch begins"
    for start in epochs:
        ax.axvline(start - 0.5, color=PALETTE["special"], linestyle="--", linewidth=1, label=label)
        label = None
    ax.set_ylim(bottom=0)
    ax.set_xlabel("step")
    ax.set_ylabel("loss (nats per graded token)")
    ax.grid(axis="y")
    ax.legend(loc="upper right")


def smoothed(steps, window: int = 20) -> list[float]:
    """At each step the loss per graded token over it and the `window` - 1 steps before it."""
    means = []
    for end in range(1, len(steps) + 1):
        recent = steps[max(end - window, 0) : end]
        tokens = sum(one.graded_tokens for one in recent)
        total = sum(one.loss * one.graded_tokens for one in recent)
        means.append(total / tokens if tokens else float("nan"))
    return means


class LiveLoss:
    """Call it with each training step: in Jupyter it keeps one plot up to date, elsewhere it only
    collects `steps`. After `total` steps, or `finish()`, the plot stays as it is.
    """

    def __init__(self, total: int, window: int = 20, epochs: Sequence[int] = ()):
        self.total, self.window, self.epochs, self.steps = total, window, epochs, []
        self._display, self._drawn_at = None, float("-inf")

    def __call__(self, step) -> None:
        self.steps.append(step)
        if len(self.steps) >= self.total:
            self.finish()
        elif monotonic() - self._drawn_at >= 1:
            self._draw()

    def finish(self) -> None:
        if self.steps:
            self._draw()

    def _draw(self) -> None:
        if not _in_jupyter():
            return
        from IPython.display import Image, display

        first, last = self.steps[0], self.steps[-1]
        alt = (
            f"Training loss after {len(self.steps)} of {self.total} steps: {first.loss:.2f} at "
            f"step {first.step}, {last.loss:.2f} at step {last.step}."
        )
        image = Image(self._png(alt), alt=alt)
        if self._display is None:
            self._display = display(image, display_id=True)
        else:
            self._display.update(image)
        self._drawn_at = monotonic()

    def _png(self, alt: str) -> bytes:
        fig, ax = loss_curve(self.steps, alt=alt, window=self.window, epochs=self.epochs)
        ax.set_xlim(0, self.total)
        ax.set_title(f"step {len(self.steps)} of {self.total}")
        buffer = BytesIO()
        fig.savefig(buffer, format="png")
        plt.close(fig)
        return buffer.getvalue()


def live_loss(total: int, *, window: int = 20, epochs: Sequence[int] = ()) -> LiveLoss:
    """What to give to a training loop of `total` steps as `on_step`."""
    return LiveLoss(total, window, epochs)


def _in_jupyter() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None
