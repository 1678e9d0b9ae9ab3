"""Do two forms of a model compute the same? Output by output, then end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..runtime.backends import Engines
from ..runtime.backends import GlobalOutputs as EngineOutputs
from ..runtime.errors import GlocalError
from ..runtime.fusion import fuse
from ..runtime.manifest import Fusion, Precision
from ..runtime.selector import RegionSelector

GLOBAL_OUTPUTS = ("logits", "class_maps", "features", "global_feature")


@dataclass(frozen=True)
class Tolerance:
    """The largest difference allowed between two forms of a model.

    Attributes:
        outputs: Of an output, relative to its largest value.
        scores: Of a fused score, absolute, where both get the same boxes.
    """

    outputs: float
    scores: float


# fp32: implementations of a deep network that sum in another order stay well below; a wrong graph does not.
# fp16: 11 bits of mantissa through some hundred layers. int8: only a wrong graph exceeds it; whether the accuracy is
# good enough is for the accuracy gate to say.
TOLERANCE: dict[Precision, Tolerance] = {
    "fp32": Tolerance(outputs=1e-3, scores=1e-3),
    "fp16": Tolerance(outputs=3e-2, scores=1e-2),
    "int8": Tolerance(outputs=1.0, scores=0.5),
}


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a global graph gives for B images.

    Attributes:
        values: By name; engines that keep features on the device give logits and class maps only.
        handle: Where the features are, for the form that they come from.
    """

    values: Mapping[str, NDArray[np.float32]]
    handle: Any = None


class Subject(Protocol):
    """One form of a model that can be compared with another."""

    def run_global(self, images: NDArray[np.uint8]) -> Outputs:
        """Outputs of the global graph for images (B, H, W, 3) uint8 RGB."""

    def run_local(
        self, outputs: Outputs, boxes: NDArray[np.float32], counts: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Local logits (B, N) for boxes (B, K, 4) and counts (B, K).

        The outputs are this form's own or, where it gives features, may be another's.
        """


class OnnxSubject:
    """Two ONNX graphs in ONNX Runtime on the CPU, every output visible."""

    def __init__(self, global_graph: bytes, local_graph: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._global, self._local = (
            onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            for graph in (global_graph, local_graph)
        )
        kinds = {value.name: value.type for value in self._local.get_inputs()}
        self._dtype = np.float16 if kinds["features"] == "tensor(float16)" else np.float32

    def run_global(self, images: NDArray[np.uint8]) -> Outputs:
        """See `Subject`."""
        values = self._global.run(list(GLOBAL_OUTPUTS), {"image": images})
        return Outputs({name: np.float32(value) for name, value in zip(GLOBAL_OUTPUTS, values, strict=True)})

    def run_local(
        self, outputs: Outputs, boxes: NDArray[np.float32], counts: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """See `Subject`."""
        features = {name: outputs.values[name].astype(self._dtype) for name in ("features", "global_feature")}
        return self._local.run(["logits"], {**features, "boxes": boxes, "counts": counts})[0]


class EngineSubject:
    """Engines of the runtime; features stay where they are."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    def run_global(self, images: NDArray[np.uint8]) -> Outputs:
        """See `Subject`."""
        out = self._engines.run_global(images)
        return Outputs({"logits": out.logits, "class_maps": out.class_maps}, out)

    def run_local(
        self, outputs: Outputs, boxes: NDArray[np.float32], counts: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """See `Subject`; the outputs must be this form's own."""
        assert isinstance(outputs.handle, EngineOutputs)
        return self._engines.run_local(outputs.handle, boxes, counts)


def compare(
    expected: Subject,
    found: Subject,
    images: NDArray[np.uint8],
    selector: RegionSelector,
    fusion: Fusion,
    thresholds: Sequence[float] | None = None,
) -> dict[str, float]:
    """Compare two forms of a model on real images.

    Where both give features, the local graphs get the same ones, so that one difference does not hide another. The
    scores come from each form's own chain: once with the reference's boxes, since where boxes differ scores rightly do
    too, and once with the boxes that its own class maps give.

    Args:
        expected: The reference.
        found: What is compared with it.
        images: (B, H, W, 3) uint8 RGB, already resized.
        selector: The model's region selector.
        fusion: ``probability`` or ``logit``.
        thresholds: (N,) of the reference's labels; None: 0.5.

    Returns:
        Largest difference by name: ``global.logits`` and so on, relative to the largest value of that output;
        ``scores``, absolute, with the reference's boxes, and ``scores.all`` with each form's own. As shares of the
        images: ``same_boxes``, ``same_labels``, and why boxes differ (see `why_boxes_differ`): ``boxes.category``,
        ``boxes.cell``, ``boxes.energy``.

    Raises:
        GlocalError: The reference gives values that are not finite.
    """
    ours, theirs = expected.run_global(images), found.run_global(images)
    if not _selectable(ours):
        raise GlocalError(
            "the network gives values that are not finite", fix="train it again, or take another checkpoint"
        )
    report = {f"global.{name}": difference(ours.values[name], value) for name, value in theirs.values.items()}
    regions = selector(ours.values["class_maps"], ours.values["logits"])
    boxes, counts = regions.normalised()
    expected_local = expected.run_local(ours, boxes, counts)
    chained = found.run_local(theirs, boxes, counts)
    isolated = found.run_local(ours, boxes, counts) if "features" in theirs.values else chained
    report["local.logits"] = difference(expected_local, isolated)
    if not _selectable(theirs):
        return report | {"scores": np.inf}
    own = selector(theirs.values["class_maps"], theirs.values["logits"])
    local = found.run_local(theirs, *own.normalised())
    if not (np.isfinite(chained).all() and np.isfinite(local).all()):
        return report | {"scores": np.inf}
    scores = fuse(ours.values["logits"], expected_local, fusion)
    given, whole = (fuse(theirs.values["logits"], logits, fusion) for logits in (chained, local))
    limits = np.asarray(0.5 if thresholds is None else thresholds, np.float32)
    why = why_boxes_differ(ours.values, theirs.values, selector)
    return report | {
        "scores": float(np.abs(scores - given).max()),
        "scores.all": float(np.abs(scores - whole).max()),
        "same_boxes": float(np.mean([reason is None for reason in why])),
        "same_labels": float(((scores >= limits) == (whole >= limits)).all(1).mean()),
        **{f"boxes.{kind}": float(np.mean([kind == reason for reason in why])) for kind in REASONS},
    }


def _selectable(outputs: Outputs) -> bool:
    return all(bool(np.isfinite(outputs.values[name]).all()) for name in ("logits", "class_maps"))


REASONS = ("category", "cell", "energy")


def why_boxes_differ(
    expected: Mapping[str, NDArray[np.float32]], found: Mapping[str, NDArray[np.float32]], selector: RegionSelector
) -> list[str | None]:
    """What makes the boxes of each image differ, the first that applies; None where they are the same.

    Args:
        expected: ``logits`` (B, N) and ``class_maps`` (B, N, h, w) of the reference.
        found: Likewise, of what is compared with it.
        selector: Selects from both.

    Returns:
        ``category``: the leading categories, or their order, differ. ``cell``: in one of these a cell is active in one
        form only, at the threshold of the region or of a variant (eq. 8). ``energy``: neither, so that the order of
        energies decides.
    """
    regions, own = (selector(side["class_maps"], side["logits"]) for side in (expected, found))
    steps = np.array([0, *selector.zetas], np.float32)[:, None] * selector.shift  # (1 + zetas, N)
    pairs = ((regions.boxes, own.boxes), (regions.counts, own.counts))
    reasons: list[str | None] = []
    for index in range(len(regions.n)):
        if all(np.array_equal(a[index], b[index]) for a, b in pairs):
            reasons.append(None)
            continue
        leading = [np.argsort(-side["logits"][index], kind="stable")[: selector.k_s] for side in (expected, found)]
        if not np.array_equal(leading[0], leading[1]):
            reasons.append("category")
            continue
        active = [
            side["class_maps"][index, leading[0]] - steps[:, leading[0], None, None] > 0 for side in (expected, found)
        ]
        reasons.append("energy" if np.array_equal(active[0], active[1]) else "cell")
    return reasons


def difference(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Largest difference, relative to the largest expected value; infinite where shapes or finiteness disagree."""
    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(expected - found).max() / max(float(np.abs(expected).max()), 1e-6))


def over_tolerance(report: Mapping[str, float], precision: Precision) -> dict[str, float]:
    """What a comparison found beyond the precision's tolerance, by name."""
    tolerance, over = TOLERANCE[precision], {}
    for name, value in report.items():
        kind = name.rpartition("/")[2]
        limit = tolerance.scores if kind == "scores" else tolerance.outputs
        if (kind == "scores" or kind.startswith(("global.", "local."))) and not value <= limit:
            over[name] = value
    return over


def check(report: Mapping[str, float], precision: Precision, what: str, *, allow: bool = False) -> None:
    """Refuse a form of a model that differs from its reference.

    Args:
        report: What `compare` gave.
        precision: Of what was compared.
        what: What to call it in the error.
        allow: Accept any difference but values that are not finite.

    Raises:
        GlocalError: A difference is over the tolerance.
    """
    over = over_tolerance(report, precision)
    if allow:
        over = {name: value for name, value in over.items() if not np.isfinite(value)}
    if over:
        tolerance = TOLERANCE[precision]
        raise GlocalError(
            f"{what} do not compute what the network computes",
            found=", ".join(f"{name} differs by {value:.2g}" for name, value in over.items())
            + f"; allowed: outputs {tolerance.outputs:g} of their largest value, scores {tolerance.scores:g}",
            fix="try another precision, or another version of the exporter or engine and report it"
            + ("" if allow else "; --allow accepts what is finite"),
        )


def summary(report: dict[str, float]) -> str:
    """The worst of a comparison in a few words."""
    outputs = [value for name, value in report.items() if name.split("/")[-1].startswith(("global.", "local."))]
    same = report.get("real/same_boxes", 1.0)
    return f"outputs differ by {max(outputs):.1e} at most, {same:.0%} of the images have the same boxes"


def worst(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Several comparisons as one: the largest differences, and the smallest shares of what is the same."""
    return {
        name: (min if "same_" in name else max)(report[name] for report in reports if name in report)
        for name in reports[0]
    }
