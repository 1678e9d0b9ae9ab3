"""The whole main job on a bare machine: train on built-in data, export, run, draw, and compare."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..export.build import build_bundle
from ..runtime.bundle import Bundle
from ..runtime.draw import draw
from ..runtime.errors import UsageError
from ..runtime.files import is_new_or_empty, write_atomically
from ..runtime.images import encode_jpeg, list_images, read_image
from ..runtime.pipeline import Pipeline
from ..train.checkpoint import load_model
from ..train.data import TrainImages, open_data
from ..train.digits import write_data_folder
from ..train.evaluate import score_bundle, score_model, summarise
from ..train.fit import fit
from ..train.history import read_history
from ..train.pretrain import pretrain
from ..train.settings import TrainConfig
from .machine import machine_facts
from .page import write_page
from .plain_engine import PlainPipeline, open_plain
from .timing import alternate

SETTINGS: dict[str, Any] = {
    "data": "digits",
    "backbone": "test_resnet",  # timm's smallest ResNet
    "image_size": 128,
    # Digits are small: regions from F32 cost 0.3 mAP on val (`glocal ablate 6 --budget digits`). The preset's other
    # switches were measured on photos; on digits these have given fused scores above the global ones.
    "switches": {"roi_features": "f16", "roi_size": 4, "box_fusion": "max", "fusion": "probability"},
    "region_weight": 0.0,
    "batch": 16,
    "lr": 4e-3,
    "backbone_lr": 0.5,  # the backbone has been pretrained
    "weight_decay": 0.02,
    "val_images": 150,
}
DRAWN = 12
MINUTES = 3.0  # what training may take at most, pretraining included


def demo(
    out: Path, *, pretrain_crops: int, epochs: int, train_images: int, test_images: int, rounds: int
) -> dict[str, Any]:
    """Train, export, run, draw and compare; everything is left under ``out`` with one ``index.html``.

    Args:
        out: An empty or new folder.
        pretrain_crops: Single digits that the backbone sees first.
        epochs: Passes over the training scenes.
        train_images: Scenes an epoch.
        test_images: Held-out scenes that the scores are taken on.
        rounds: Timed rounds of each kind of inference.

    Returns:
        The figures of the table, as written to ``results.json``.

    Raises:
        UsageError: ``out`` is not empty.
    """
    if not is_new_or_empty(out):
        raise UsageError(f"{out} is not empty", fix="remove it, or name another folder with --out")
    console = Console(stderr=True)
    console.rule("1/4 train on built-in scenes of handwritten digits")
    start = time.monotonic()
    weights = out / "pretrained.safetensors"
    pretrain(SETTINGS["backbone"], weights, crops=pretrain_crops)
    left = MINUTES - (time.monotonic() - start) / 60
    config = TrainConfig(
        **SETTINGS, weights=str(weights), epochs=epochs, train_images=train_images, max_minutes=max(left, 0.1)
    )
    run = fit(config, out / "run")
    minutes = (time.monotonic() - start) / 60
    console.rule("2/4 export both graphs and verify them")
    bundle = build_bundle(run, out / "bundle")
    console.rule("3/4 run the bundle on held-out scenes")
    model = load_model(run).model
    with Pipeline.load(bundle.path) as pipeline:
        _predict_and_draw(pipeline, out, config.image_size)
        results = _accuracy(pipeline, model, config, test_images)
        console.rule("4/4 measure latency")
        results |= _latency(pipeline, bundle, out, rounds)
    results |= {"training_minutes": minutes, "history": read_history(run)}
    results["machine"] = machine_facts()
    write_atomically(out / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    write_page(out, results, table_rows(results))
    return results


def _predict_and_draw(pipeline: Pipeline, out: Path, size: int) -> None:
    """Files in, JSON lines and pictures out, as `glocal run` does."""
    write_data_folder(out / "scenes", {"test": DRAWN}, size=size)
    paths = list_images(out / "scenes" / "JPEGImages")
    lines = []
    for path, prediction in zip(paths, pipeline.predict_files(paths), strict=True):
        lines.append(json.dumps(prediction.to_json()))
        picture = draw(read_image(path), prediction)
        write_atomically(out / "drawn" / f"{path.stem}.jpg", encode_jpeg(picture))
    write_atomically(out / "predictions.jsonl", ("\n".join(lines) + "\n").encode())


def _accuracy(pipeline: Pipeline, model: Any, config: TrainConfig, images: int) -> dict[str, Any]:
    test = open_data("digits", "test", length=images, size=config.image_size, seed=config.seed)
    inputs = TrainImages(test, model.config.image_size, augment=False, seed=0)
    ours, torchs = score_bundle(pipeline, test), score_model(model, inputs, workers=config.workers)
    metrics = summarise(ours, test, pipeline.thresholds)
    pairs = zip(("fused", "global", "local"), ours, torchs, strict=True)
    gaps = {kind: float(np.abs(a - b).max()) for kind, a, b in pairs if a is not None and b is not None}
    return {"test_images": images, "metrics": metrics, "max_score_difference": gaps}


def _latency(pipeline: Pipeline, bundle: Bundle, out: Path, rounds: int) -> dict[str, Any]:
    """Batch 1 from the decoded image on: both pipelines resize, run their engine, and give probabilities."""
    images = [read_image(path) for path in list_images(out / "scenes" / "JPEGImages")]
    plain = PlainPipeline(open_plain(bundle, "onnxruntime", "fp32"), bundle.manifest.input_size)
    turn = iter(range(10**9))
    stages: list[dict[str, float]] = []

    def two_branch() -> None:
        stages.append(pipeline.predict([images[next(turn) % len(images)]])[0].timings)

    def plain_backbone() -> None:
        plain.predict([images[next(turn) % len(images)]])

    times = alternate({"glocal": two_branch, "plain": plain_backbone}, rounds)
    measured = stages[-rounds:]  # of images that are decoded already
    ratio = times["glocal"] / times["plain"]
    return {
        "latency_ms": {name: float(np.median(values)) for name, values in times.items()},
        "ratio": {
            "median": float(np.median(ratio)),
            "p10": float(np.quantile(ratio, 0.1)),
            "p90": float(np.quantile(ratio, 0.9)),
        },
        "stages_ms": {
            stage: statistics.median(timing[stage] for timing in measured) for stage in measured[0] if stage != "decode"
        },
        "rounds": rounds,
    }


def table_rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The demo's one table: what was measured, and the figure."""
    metrics, gaps, latency, ratio = (results[key] for key in ("metrics", "max_score_difference", "latency_ms", "ratio"))
    rows = [
        ("training, pretraining included", f"{results['training_minutes']:.1f} min"),
        ("held-out scenes", f"{results['test_images']}"),
    ]
    rows += [
        (f"mAP {name}", f"{metrics[key]:.4f}")
        for name, key in (("global", "mAP_global"), ("local", "mAP_local"), ("fused", "mAP"))
    ]
    rows.append(("CF1, OF1 (fused)", f"{metrics['CF1']:.4f}, {metrics['OF1']:.4f}"))
    rows.append(("fused scores, ONNX Runtime against PyTorch", f"differ by at most {gaps['fused']:.1e}"))
    rows += [(f"stage {stage}, median", f"{value:.3f} ms") for stage, value in results["stages_ms"].items()]
    rows.append(("two branches, from image to scores", f"{latency['glocal']:.2f} ms"))
    rows.append(("plain backbone, from image to scores", f"{latency['plain']:.2f} ms"))
    rows.append(("ratio (p10 to p90)", f"{ratio['median']:.2f} ({ratio['p10']:.2f} to {ratio['p90']:.2f})"))
    return rows


def print_table(results: dict[str, Any], console: Console) -> None:
    """Show the demo's table."""
    table = Table("what", "figure")
    for row in table_rows(results):
        table.add_row(*row)
    console.print(table)
