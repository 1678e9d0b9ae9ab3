"""The demo's page: pictures first, then curves, then the table."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # no screen is needed
import matplotlib.pyplot as plt

from ..runtime.files import write_atomically

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #1c2330; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1rem; }
.grid img, .wide img { width: 100%; border-radius: 6px; box-shadow: 0 1px 4px #0003; }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; }
td + td { font-variant-numeric: tabular-nums; } tr { border-bottom: 1px solid #dde; }
small { color: #667; }
"""


def write_page(out: Path, results: dict[str, Any], rows: list[tuple[str, str]]) -> Path:
    """Write ``index.html`` and its curves beside the drawn predictions.

    Args:
        out: The demo's folder, with ``drawn/*.jpg``.
        results: The demo's figures.
        rows: The demo's table, (what, figure).
    """
    _draw_curves(out / "curves.png", results)
    pictures = "".join(
        f'<a href="drawn/{html.escape(path.name)}"><img src="drawn/{html.escape(path.name)}" alt="prediction"></a>'
        for path in sorted((out / "drawn").glob("*.jpg"))
    )
    table = "".join(f"<tr><td>{html.escape(what)}</td><td>{html.escape(figure)}</td></tr>" for what, figure in rows)
    machine = html.escape(json.dumps(results["machine"]))
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>glocal demo</title><style>{_STYLE}</style>
<h1>glocal demo</h1>
<p>A two-branch network was trained on scenes of handwritten digits for {results["training_minutes"]:.1f} minutes,
split into two ONNX graphs, and run on scenes of digits that it has never seen. The boxes are where the selector found
energy in the class maps; the bars are global, local and fused score of the leading labels.</p>
<div class="grid">{pictures}</div>
<h2>Training and latency</h2><div class="wide"><img src="curves.png" alt="curves"></div>
<h2>Figures</h2><table>{table}</table>
<p><small>{machine}</small></p></html>
"""
    write_atomically(out / "index.html", page.encode())
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
