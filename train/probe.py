"""What the regions of a trained two-branch model do: whether it matters where they are."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..runtime.errors import UsageError
from ..runtime.metrics import multilabel_metrics
from ..runtime.progress import progressed
from ..runtime.selector import Regions
from .bootstrap import paired_bootstrap
from .controls import box_controls
from .model import GlobalOutputs, GlocalNet, LocalBranch

Arrays = dict[str, NDArray[Any]]


def probe(
    model: GlocalNet, dataset: Dataset[tuple[Tensor, Tensor]], batch: int = 16, workers: int = 2, seed: int = 0
) -> dict[str, Any]:
    """Change what the local branch sees, and see what its scores lose.

    A local branch may learn to read F_g through the cross attention and to ignore its regions. Then boxes at random
    places cost it nothing, and no switch of the region selection can matter.

    Args:
        model: A model of two branches, on any device.
        dataset: What the model takes, images or features, each with its target (N,).
        batch: Images at a time, at least 2: sizes of random boxes, boxes and F_g of "another image" come from the same
            batch.
        workers: Processes that load images.
        seed: Of the random boxes and the bootstrap.

    Returns:
        Fractions, with a dict for each of these:

        - ``mAP``: ``fused``, ``global``, ``local``.
        - ``controls``: by name (see ``controls.box_controls``) the mAP ``local`` and ``fused`` with these boxes. In a
          model with cross attention also ``local_alone`` and ``fused_alone``, where that is skipped, so that F_g
          cannot help; and the control ``other_global``: the selected boxes with F_g of the image before in the batch.
        - ``intervals``: ``difference``, ``low``, ``high`` of ``paired_bootstrap`` for ``fused_minus_global``,
          ``fused_minus_local``, ``local_minus_random`` and, with cross attention, ``alone_minus_random``: the last two
          are the local mAP with selected minus that with random boxes.
        - ``regions``: see ``_region_figures``.

        ``attention_on_global``: how much of its cross attention a region gives to F_g, as the mean over the unique
        boxes of all images (only with cross attention). ``logit_correlation``: Pearson's, of global and local logits
        over all images and classes. ``images``: their number.

    Raises:
        UsageError: The model has no local branch, or there are fewer than two images in the data or a batch.
        ValueError: The targets hold no positive, or class maps are not finite.
    """
    local, size = model.local_branch, len(dataset)  # type: ignore[arg-type]
    if local is None:
        raise UsageError(
            "a model of one branch has no regions to probe",
            found=f"head {model.config.head}",
            fix="probe one with head glocal",
        )
    if min(batch, size) < 2:
        raise UsageError(
            "the probe exchanges boxes between images", found=f"{size} images, batch {batch}", fix="give at least 2"
        )
    device = next(model.parameters()).device
    # Of nearly equal size, because a last batch of one image would have none to exchange with.
    batches = np.array_split(np.arange(size), min(-(-size // batch), size // 2))
    loader = DataLoader(dataset, batch_sampler=[rows.tolist() for rows in batches], num_workers=workers)
    parts: dict[str, list[NDArray[Any]]] = defaultdict(list)
    model.eval()
    with torch.inference_mode():
        for step, (inputs, targets) in enumerate(progressed(loader, "probing the regions")):
            inputs, branch = inputs.to(device), model.global_branch
            out = branch(inputs) if inputs.dtype == torch.uint8 else branch.from_features(inputs)
            regions = model.select(out.class_maps, out.logits)
            found = _local_logits(local, out, regions, np.random.default_rng((seed, step)))
            found |= _facts(regions, out, model.config.k_s) | {"global": out.logits.cpu().numpy()}
            for name, values in (found | {"targets": targets.numpy()}).items():
                parts[name].append(values)
    return _summary(model, {name: np.concatenate(values) for name, values in parts.items()}, seed)


def _local_logits(local: LocalBranch, out: GlobalOutputs, regions: Regions, rng: np.random.Generator) -> Arrays:
    """Local logits (B, N) by ``control/kind``, and the attention on F_g (boxes,)."""
    found = {}
    for name, arrays in box_controls(regions, rng).items():
        boxes, counts = (torch.from_numpy(array).to(out.logits.device) for array in arrays)
        tokens = local.tokens(out.features, boxes, counts)
        found[f"{name}/local"] = local.classify(tokens, out.global_feature, counts)
        if local.attention is None:
            continue
        found[f"{name}/local_alone"] = local.classify_regions(tokens, counts)
        if name == "selected":
            found["other_global/local"] = local.classify(tokens, out.global_feature.roll(1, 0), counts)
            keys, bias = local.keys(tokens, out.global_feature, counts)
            on_global = local.attention.weights(local.attention.norm(keys), bias)[:, 1:, 0]
            found["attention"] = on_global[counts > 0]
    return {name: logits.cpu().numpy() for name, logits in found.items()}


def _facts(regions: Regions, out: GlobalOutputs, k_s: int) -> Arrays:
    """What is known of each image's regions: (B,) each, and the share of the image of each unique box (boxes,)."""
    chosen = out.logits.argsort(dim=1, descending=True, stable=True)[:, :k_s]
    empty = (out.class_maps.amax((2, 3)) <= 0).gather(1, chosen)
    corners = regions.boxes[np.arange(regions.boxes.shape[1]) < regions.n[:, np.newaxis]]
    sides = corners[:, 2:] - corners[:, :2]
    return {
        "unique": regions.n,
        "proposals": regions.counts.sum(axis=1),
        "fallback": regions.categories[:, 0] < 0,
        "area": sides.prod(axis=1) / np.prod(regions.grid),
        "empty": empty.float().mean(1).cpu().numpy(),
    }


def _summary(model: GlocalNet, found: Arrays, seed: int) -> dict[str, Any]:
    targets, global_logits = found["targets"], found["global"]
    scores = {"global": _sigmoid(global_logits)}
    for name in [name for name in found if "/local" in name]:
        scores[name] = _sigmoid(found[name])
        fused = model.fuse(torch.from_numpy(global_logits), torch.from_numpy(found[name]))
        scores[name.replace("/local", "/fused")] = fused.numpy()
    ap = {name: multilabel_metrics(kind, targets)["mAP"] for name, kind in scores.items()}
    controls: dict[str, dict[str, float]] = defaultdict(dict)
    for name in ap:
        control, slash, kind = name.partition("/")
        if slash:
            controls[control][kind] = ap[name]
    pairs = {
        "fused_minus_global": ("selected/fused", "global"),
        "fused_minus_local": ("selected/fused", "selected/local"),
        "local_minus_random": ("selected/local", "random/local"),
        "alone_minus_random": ("selected/local_alone", "random/local_alone"),
    }
    correlation = np.corrcoef(global_logits.ravel(), found["selected/local"].ravel())[0, 1]
    result = {
        "images": len(targets),
        "mAP": {"fused": ap["selected/fused"], "global": ap["global"], "local": ap["selected/local"]},
        "logit_correlation": float(correlation),
        "controls": dict(controls),
        "intervals": {
            name: paired_bootstrap(scores[a], scores[b], targets, seed=seed)._asdict()
            for name, (a, b) in pairs.items()
            if a in scores
        },
        "regions": _region_figures(found),
    }
    return result | ({"attention_on_global": float(found["attention"].mean())} if "attention" in found else {})


def _region_figures(found: Arrays) -> dict[str, float]:
    """What the regions are like.

    Returns:
        Means over images: ``unique`` boxes, ``proposals`` (with repeats), ``fallback``: the share of images without
        any region, which get the whole image, ``empty``: the share of the k_s chosen categories whose class map has
        no active cell. ``unique_p95``: of 100 images 95 have at most so many. ``area``: the share of the image that a
        unique box covers, as the mean over all boxes.
    """
    means = {name: float(found[name].mean()) for name in ("unique", "proposals", "fallback", "empty", "area")}
    return means | {"unique_p95": float(np.percentile(found["unique"], 95))}


def _sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    return torch.from_numpy(logits).sigmoid().numpy()
