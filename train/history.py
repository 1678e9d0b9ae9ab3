"""What a run leaves behind each epoch: a row in metrics.csv and, when it is the best, the model."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..runtime.files import write_atomically
from .checkpoint import MODEL_FILE, save_model
from .model import GlocalNet

CSV_FILE = "metrics.csv"
COLUMNS = (
    "epoch",
    "loss",
    "loss_global",
    "loss_weak",
    "loss_local",
    "loss_region",
    "boxes",
    "mAP",
    "mAP_global",
    "mAP_local",
)


class History:
    """The curve of a run in ``metrics.csv``.

    Args:
        out: The run folder.
        training: How the model is trained, written into its checkpoint.
        resume: Keep the rows of the epochs before the one that is run next.
    """

    def __init__(self, out: Path, training: Mapping[str, Any], *, resume: bool) -> None:
        self.out, self.training = out, dict(training)
        self.rows = read_history(out) if resume else []

    def add(
        self,
        epoch: int,
        logged: Mapping[str, Any],
        metrics: Mapping[str, float],
        model: GlocalNet,
        thresholds: Sequence[float],
    ) -> None:
        """Record an epoch (0-based); keep the model if no earlier epoch has a higher fused mAP on val.

        A loss or a metric that the model does not have is recorded as nan.
        """
        earlier = [row for row in self.rows if row["epoch"] < epoch]
        values: dict[str, Any] = {"epoch": epoch, "loss": logged.get("loss_epoch"), **metrics}
        values |= {column: logged.get(column.replace("_", "/")) for column in COLUMNS if column.startswith("loss_")}
        values["boxes"] = logged.get("boxes")
        row = {column: float("nan") if (value := values.get(column)) is None else float(value) for column in COLUMNS}
        if all(row["mAP"] > before["mAP"] for before in earlier):
            save_model(self.out / MODEL_FILE, model, self.training, {"epoch": epoch, **metrics}, thresholds)
        self.rows = [*earlier, row]
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in self.rows)
        write_atomically(self.out / CSV_FILE, text.getvalue().encode())
        line = f"epoch {epoch + 1}: loss {row['loss']:.3f}, val mAP {row['mAP']:.4f}"
        if "mAP_local" in metrics:
            line += f" fused, {row['mAP_global']:.4f} global, {row['mAP_local']:.4f} local, {row['boxes']:.1f} boxes"
        Console(stderr=True).print(line, highlight=False)


def read_history(run: Path) -> list[dict[str, float]]:
    """The rows of a run's ``metrics.csv``; empty when there is none yet."""
    path = run / CSV_FILE
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
