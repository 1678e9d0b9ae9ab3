"""The demo's page: pictures first, then curves, then the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # no screen is needed
import matplotlib.pyplot as plt

from ..runtime.files import write_atomically
from .html_page import document, element, html_table


def write_page(out: Path, results: dict[str, Any], rows: list[tuple[str, str]]) -> Path:
    """Write ``index.html`` and its curves beside the drawn predictions.

    Args:
        out: The demo's folder, with ``drawn/*.jpg``.
        results: The demo's figures.
        rows: The demo's table, (what, figure).
    """
    _draw_curves(out / "curves.png", results)
    pictures = [
        element("a", element("img", src=f"drawn/{path.name}", alt="prediction"), href=f"drawn/{path.name}")
        for path in sorted((out / "drawn").glob("*.jpg"))
    ]
    what = (
        "A two-branch network was trained on scenes of handwritten digits for "
        f"{results['training_minutes']:.1f} minutes, split into two ONNX graphs, and run on scenes of digits that it "
        "has never seen. The boxes are where the selector found energy in the class maps; the bars are global, local "
        "and fused score of the leading labels."
    )
    page = document(
        "glocal demo",
        element("h1", "glocal demo"),
        element("p", what),
        element("div", *pictures, class_="grid"),
        element("h2", "Training and latency"),
        element("div", element("img", src="curves.png", alt="curves"), class_="wide"),
        element("h2", "Figures"),
        html_table(rows),
        element("p", element("small", json.dumps(results["machine"]))),
    )
    write_atomically(out / "index.html", page)
    return out / "index.html"


def _draw_curves(path: Path, results: dict[str, Any]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    epochs = [row["epoch"] + 1 for row in results["history"]]
    for key, label in (("mAP", "fused"), ("mAP_global", "global"), ("mAP_local", "local")):
        left.plot(epochs, [row[key] for row in results["history"]], marker="o", markersize=3, label=label)
    left.set(title="validation mAP", xlabel="epoch", ylim=(None, 1))
    left.legend(frameon=False)
    stages = {name: value for name, value in results["stages_ms"].items() if name != "total"}
    bars = right.barh(list(stages), list(stages.values()), color="tab:blue")
    right.bar_label(bars, fmt="%.3f", padding=3)
    right.invert_yaxis()
    right.margins(x=0.15)
    right.set(title="median ms of each stage, one image", xlabel="ms")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
