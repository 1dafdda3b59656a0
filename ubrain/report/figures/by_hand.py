"""Three tokens and two voxels: what a softmax does with their products (notebook 00b)."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray


def softmax(scores: ArrayLike) -> NDArray[np.float64]:
    """exp of each number over the sum of its row: (n_voxels, n_tokens), rows sum to 1."""
    a = np.asarray(scores, dtype=float)
    weights = np.exp(a - a.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def looks(
    scale: float, scores: ArrayLike, tokens: tuple[str, ...], voxels: tuple[str, ...]
) -> Figure:
    """How much each voxel looks at each token, if its query were `scale` times as long.

    Parameters
    ----------
    scores : q · k, (n_voxels, n_tokens).
    tokens, voxels : their names.
    """
    figure, axes = plt.subplots(1, len(voxels), figsize=(8, 2.4), sharey=True)
    weights = softmax(scale * np.asarray(scores, dtype=float))
    for ax, name, w in zip(axes, voxels, weights, strict=True):
        bars = ax.bar(tokens, w, color=["0.75" if v < w.max() else "#009e73" for v in w])
        ax.bar_label(bars, fmt="%.2f", fontsize=9)
        ax.set(title=f"voxel {name}", ylim=(0, 1.15))
    axes[0].set_ylabel("weight")
    figure.suptitle(f"query × {scale:g}", fontsize=10)
    plt.close(figure)  # shown once, by who gets it
    return figure
