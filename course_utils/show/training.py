"""The loss of a training run: as a figure, and while it runs."""

from io import BytesIO
from time import monotonic

import matplotlib.pyplot as plt

from course_utils.show.plots import figure
from course_utils.show.style import PALETTE


def loss_curve(steps, *, alt: str, window: int = 20):
    """The loss of every step as dots, and its mean over the last `window` steps as a line.

    steps: objects with `step`, `loss` (nats per graded token) and `graded_tokens`; in the mean
           every graded token counts the same
    """
    steps = list(steps)
    if not steps:
        raise ValueError("nothing to show: there are no training steps.")
    fig, ax = figure(7, 3, alt=alt)
    _draw_loss(ax, steps, window)
    return fig, ax


def _draw_loss(ax, steps, window: int) -> None:
    xs = [one.step for one in steps]
    ax.plot(
        xs,
        [one.loss for one in steps],
        ".",
        color=PALETTE["masked"],
        markersize=4,
        label="each step",
    )
    ax.plot(
        xs,
        smoothed(steps, window),
        color=PALETTE["tuned"],
        label=f"mean of the last {window} steps",
    )
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

    def __init__(self, total: int, window: int = 20):
        self.total, self.window, self.steps = total, window, []
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
        fig, ax = loss_curve(self.steps, alt=alt, window=self.window)
        ax.set_xlim(0, self.total)
        ax.set_title(f"step {len(self.steps)} of {self.total}")
        buffer = BytesIO()
        fig.savefig(buffer, format="png")
        plt.close(fig)
        return buffer.getvalue()


def live_loss(total: int, *, window: int = 20) -> LiveLoss:
    """What to give to a training loop of `total` steps as `on_step`."""
    return LiveLoss(total, window)


def _in_jupyter() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None
