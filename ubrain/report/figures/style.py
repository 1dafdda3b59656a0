"""What all figures share: colours of conditions, the look of axes, the mark of a simulation."""

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

# The same colour for the same condition in every figure, in this order (Okabe–Ito, safe for
# colour-blind readers).
CONDITIONS = {
    "ridge, one subject": "#999999",
    "factorised, one subject": "#56B4E9",
    "encoder, one subject": "#E69F00",
    "encoder, crowd": "#009E73",
    "gradient (the paper)": "#D55E00",
    "matching (ours)": "#CC79A7",
    "crowd prior (ours)": "#0072B2",
    "encoder, two datasets": "#882255",
}
# Datasets beside the main one, in the order of the crowd file: no colour of a condition.
DATASETS = ("#54278F", "#8C510A", "#9E9AC8", "#D8B365", "#3F007D", "#543005")
ON_TOP = "matching (ours)"  # often the same numbers as with gradient: dashed, above the others
CEILING = "#333333"
TILE = 200  # grey, in place of an image that may not be shown


def colour(condition: str) -> str:
    """Colour of a condition; of a difference of two ("a − b"), that of the second."""
    return CONDITIONS.get(condition.split(" − ")[-1], "#000000")


def dashes(condition: str) -> dict[str, Any]:
    """How the line of a condition is drawn."""
    return (
        {"ls": "--", "zorder": 3, "markerfacecolor": "white"}
        if condition == ON_TOP
        else {"ls": "-"}
    )


def mark(figure: Figure, text: str) -> Figure:
    """Write what a reader must know of the data below a figure, such as "simulated crowd"."""
    if text:
        lines = fill(text, int(13 * figure.get_figwidth()))
        strip = 0.2 * (1 + lines.count("\n")) / figure.get_figheight()  # kept free of axes
        if (layout := figure.get_layout_engine()) is not None:
            layout.set(rect=(0, strip, 1, 1 - strip))  # type: ignore[call-arg]
        figure.text(
            0.995,
            0.005,
            lines,
            ha="right",
            va="bottom",
            fontsize=9,
            color="#AA3377",
            style="italic",
        )
    return figure


def tiles(pixels: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """A grey tile for each image, of its shape, where images may not be shown."""
    return [np.full_like(image, TILE) for image in pixels]


def pictures(figure: Figure) -> list[NDArray[np.uint8]]:
    """The images (height, width, 3) that a figure shows."""
    drawn = [np.asarray(image.get_array()) for ax in figure.axes for image in ax.images]
    return [pixels for pixels in drawn if pixels.ndim == 3]


def has_tiles(figure: Figure) -> bool:
    """Whether a figure shows a grey tile in place of an image."""
    return any((pixels == TILE).all() for pixels in pictures(figure))


def text_only(ax: Axes, text: str) -> Axes:
    """A panel that says why there is nothing to draw."""
    ax.text(0.5, 0.5, text, ha="center", va="center", wrap=True)
    ax.set_axis_off()
    return ax


def finish(ax: Axes, legend: str = "inside") -> Axes:
    """The look that all axes share; `legend` is "inside", "above" or "" for none."""
    sns.despine(ax=ax)
    ax.grid(axis="y", alpha=0.25)
    if legend == "above":
        longest = max(map(len, ax.get_legend_handles_labels()[1]), default=0)
        width = ax.get_position().width * ax.figure.bbox.width / ax.figure.dpi  # inches
        ax.legend(
            frameon=False,
            fontsize=9,
            ncols=int(np.clip(width / (0.07 * longest + 0.5), 1, 3)),
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            borderaxespad=0.2,
        )
    elif legend:
        ax.legend(frameon=False, fontsize=9)
    return ax
