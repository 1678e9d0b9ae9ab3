"""Figure 4 of the paper: t-SNE of the region tokens of two runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ..runtime.errors import GlocalError
from .checkpoint import Checkpoint
from .figure_parts import RETRAIN, SMALL, Drawn, Sample, batches, data_name, plain, run_name
from .model import GlocalNet

POINTS = 1500
NEIGHBOURS = 10
SHOWN = 10  # categories with a colour of their own
# matplotlib's tab10 without its grey, which is for all other categories.
PALETTE = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf", "#000000")
OTHER = "#c8ccd2"


class Tokens(NamedTuple):
    """Region tokens of a true label of their photo."""

    values: NDArray[np.float32]  # (P, C)
    categories: NDArray[np.int64]  # (P,)
    photos: NDArray[np.int64]  # (P,) index in the sample


def draw_tsne(runs: Sequence[Checkpoint], sample: Sample, seed: int) -> Drawn:
    """t-SNE of the region tokens of two runs, with and without weak supervision (fig. 4).

    A point is the token of a selected region, before the cross attention, whose category is a true label of the photo:
    each region once, without its variants, and at most ``POINTS`` of a run, drawn at random. Distances are cosine.

    A picture of t-SNE can suggest clusters that are none, so the table judges the tokens themselves: ``knn`` is the
    share of tokens whose category is that of most of their 10 nearest among the tokens of other photos (of the same
    photo, regions overlap), to be compared with ``most_frequent``, the share of the most frequent category.
    ``knn_balanced`` is the mean of that share over categories. ``silhouette`` is scikit-learn's, from -1 to 1.

    Raises:
        GlocalError: A run has too few such regions, or their tokens are all the same or not finite.
    """
    tokens = [thinned(true_tokens(run.model, sample), np.random.default_rng(seed)) for run in runs]
    table = [_figures(run, found) for run, found in zip(runs, tokens, strict=True)]
    classes = sample.images.classes
    counts = np.bincount(np.concatenate([found.categories for found in tokens]), minlength=len(classes))
    shown = [int(category) for category in np.argsort(-counts, kind="stable")[:SHOWN] if counts[category]]
    colours = dict(zip(shown, PALETTE, strict=False))
    figure = Figure((6.2 * len(runs), 6.9), layout="constrained")
    for axes, found, row in zip(figure.subplots(1, len(runs), squeeze=False)[0], tokens, table, strict=True):
        _draw_points(axes, embed(found.values, seed), found.categories, colours)
        axes.set_title(
            f"{plain(row['run'], 40)}, weight of the weak supervision {row['weak_weight']}\n"
            f"10-NN {row['knn']:.1%} (most frequent {row['most_frequent']:.1%}), silhouette {row['silhouette']:.3f}",
            fontsize=10,
        )
    handles = [Line2D([], [], ls="", marker="o", ms=5, color=colour) for colour in (*colours.values(), OTHER)]
    names = [plain(classes[category], 20) for category in shown] + ["other"]
    kept = len(shown) + bool(counts.sum() > counts[shown].sum())
    figure.legend(handles[:kept], names[:kept], loc="outside lower center", ncols=6, fontsize=SMALL + 1, frameon=False)
    figure.suptitle(f"t-SNE of region tokens on {plain(data_name(sample))}, regions of true labels", fontsize=12)
    weights = {str(row["weak_weight"]) for row in table}
    notes = ["Both runs have the same weight of the weak supervision."] if len(weights) < len(table) else []
    return Drawn(figure, table, notes)


def true_tokens(model: GlocalNet, sample: Sample) -> Tokens:
    """The tokens of all selected regions whose category is a true label of their photo."""
    assert model.local_branch is not None  # for mypy: figures take models of two branches
    parts: list[tuple[NDArray[Any], ...]] = []
    start = 0
    for images in batches(model, sample, "tokens of regions"):
        with torch.inference_mode():
            out = model.global_branch(images)
            regions = model.select(out.class_maps, out.logits)
            boxes, counts = (torch.from_numpy(array).to(images.device) for array in regions.normalised())
            tokens = model.local_branch.tokens(out.features, boxes, counts).float().cpu().numpy()
        slots = slice(tokens.shape[1])
        categories = regions.categories[:, slots]
        targets = np.take_along_axis(sample.targets[start : start + len(images)], np.maximum(categories, 0), 1)
        kept = (categories >= 0) & (regions.variants[:, slots] == 0) & (targets == 1)
        parts.append((tokens[kept], categories[kept].astype(np.int64), start + np.nonzero(kept)[0]))
        start += len(images)
    return Tokens(*(np.concatenate(kind) for kind in zip(*parts, strict=True)))


def thinned(tokens: Tokens, rng: np.random.Generator) -> Tokens:
    """At most ``POINTS`` of the tokens, at random."""
    chosen = np.sort(rng.permutation(len(tokens.values))[:POINTS])
    return Tokens(tokens.values[chosen], tokens.categories[chosen], tokens.photos[chosen])


def nearest_category(tokens: Tokens) -> NDArray[np.int64]:
    """(P,) the category of most of the 10 nearest tokens of other photos; of equally many, the lower."""
    unit = _unit(tokens.values)
    likeness = unit @ unit.T
    likeness[tokens.photos[:, None] == tokens.photos] = -np.inf
    nearest = np.argpartition(-likeness, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
    votes = np.zeros((len(unit), tokens.categories.max() + 1), np.int64)
    np.add.at(votes, (np.arange(len(unit))[:, None], tokens.categories[nearest]), 1)
    return votes.argmax(1)


def embed(values: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Tokens (P, C) -> (P, 2) by t-SNE."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(values) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(_unit(values))


def _figures(run: Checkpoint, tokens: Tokens) -> dict[str, Any]:
    from sklearn.metrics import silhouette_score

    total, per_photo = len(tokens.values), np.bincount(tokens.photos, minlength=1)
    kinds, counts = np.unique(tokens.categories, return_counts=True)
    if not 2 <= len(kinds) < total or total - per_photo.max() < NEIGHBOURS:
        raise GlocalError(
            f"{run.path} has too few regions of true labels for a figure",
            found=f"{total} of {len(kinds)} categories",
            fix="look at more photos with --images, or train the model for longer",
        )
    if not np.isfinite(tokens.values).all() or not np.ptp(tokens.values, axis=0).any():
        raise GlocalError(f"the region tokens of {run.path} are not finite or all the same", fix=RETRAIN)
    right = nearest_category(tokens) == tokens.categories
    return {
        "run": run_name(run),
        "weak_weight": run.training.get("weak_weight", "unknown"),
        "points": total,
        "categories": len(kinds),
        "knn": float(right.mean()),
        "knn_balanced": float(np.mean([right[tokens.categories == kind].mean() for kind in kinds])),
        "most_frequent": float(counts.max() / total),
        "silhouette": float(silhouette_score(_unit(tokens.values), tokens.categories)),
    }


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1, whose Euclidean distances rank as cosine distances do."""
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _draw_points(
    axes: Axes, places: NDArray[np.float32], categories: NDArray[np.int64], colours: dict[int, str]
) -> None:
    rgba = np.array([to_rgba(colours.get(int(category), OTHER), 0.75) for category in categories])
    axes.scatter(places[:, 0], places[:, 1], s=14, c=rgba, linewidths=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", "datalim")
