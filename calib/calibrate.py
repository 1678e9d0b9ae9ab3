"""The whole of it: collect, quantise, compare with fp32, refit thresholds, add int8 to the bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..runtime.bundle import Bundle, add_to_bundle, drop_from_bundle
from ..runtime.errors import UsageError
from ..runtime.metrics import multilabel_metrics
from ..runtime.thresholds import fit_thresholds
from .build import quantize
from .collect import collect, source_graphs
from .gate import SHARE, check, class_shift, compare, predict
from .graph import default_exclude, expand
from .methods import METHODS, Method
from .photos import Labelled, Photos, draw, draw_labelled
from .scan import Result, scan
from .table import TABLE, Table, check_table
from .trial import open_pipeline, time_by_turns

METHOD: Method = "percentile"
IMAGES = 256


class Calibrated(NamedTuple):
    """What calibration gave.

    Attributes:
        bundle: The bundle with int8.
        table: Its calibration table.
        report: Figures of int8 against fp32, see ``gate.compare``; with ``fitted/CF1`` and so on at the refitted
            thresholds, and ``ms`` and ``fp32/ms`` for one image on this machine.
        scan: What the scan found, if there was one.
    """

    bundle: Bundle
    table: Table
    report: dict[str, float]
    scan: Result | None


def calibrate(
    bundle: Bundle,
    photos: Photos | None,
    labelled: Labelled,
    *,
    table: Table | None = None,
    method: Method = METHOD,
    images: int = IMAGES,
    seed: int = 0,
    share: float = SHARE,
    exclude: Sequence[str] | None = None,
    scan_file: Path | None = None,
    scan_seconds: float = 600,
    scan_images: int = 256,
    threads: int | None = None,
) -> Calibrated:
    """Add int8 to a bundle, or refuse to.

    Args:
        bundle: A bundle with fp32 graphs. Its int8 graphs, if it has any, are replaced.
        photos: Images like those of the field; may be None with a ``table``. No labels are needed.
        labelled: Other images, with labels, on which int8 is compared with fp32 and thresholds are refitted.
        table: Ranges from an earlier calibration of the same model; none are collected then.
        method: How ranges are computed.
        images: How many of ``photos`` are drawn.
        seed: Of drawing images.
        share: The part of the fp32 mAP that int8 must keep.
        exclude: Nodes (``global/trunk.0``) and groups that stay in fp32. Default: see ``graph.Graph.kept``.
        scan_file: Scan for blocks to leave in fp32 as well, and keep the state of the scan there.
        scan_seconds: See ``scan.scan``.
        scan_images: How many of ``labelled`` the scan draws.
        threads: Of ONNX Runtime.

    Raises:
        CalibrationError: The table or the images are unsuitable, or int8 loses too much accuracy. The bundle stays as
            it was.
        UsageError: ``exclude`` names what is not there, or there are neither photos nor a table.
    """
    graphs = source_graphs(bundle)
    excluded = default_exclude(graphs.values()) if exclude is None else expand(graphs.values(), exclude)
    if table is None:
        if photos is None:
            raise UsageError("Without a table, images to calibrate with are needed.", fix="Give photos, or a table.")
        table = collect(bundle, draw(photos, images, seed), METHODS, threads)
    check_table(table, bundle.manifest, tuple(f"fp32/{name}.onnx" for name in graphs))
    scanned = None
    if scan_file is not None:
        data = draw_labelled(labelled, min(scan_images, len(labelled)), seed)
        scanned = scan(
            bundle, graphs, table, method, excluded, data, scan_file, share=share, seconds=scan_seconds, threads=threads
        )
        excluded = tuple(sorted({*excluded, *expand(graphs.values(), scanned.chosen)}))
    files = quantize(bundle, graphs, table, method, excluded)
    report, thresholds, shift = _gate(bundle, files, labelled, share, threads)
    document = {
        "method": method,
        "share_asked": share,
        "report": report,
        "class_shift": shift,
        "exclude": excluded,
        "scanned_blocks": scanned.chosen if scanned else (),
        "table_sha256": table.sha256,
    }
    files[f"int8/{TABLE}"] = table.to_bytes()
    files["int8/gate.json"] = (json.dumps(document, indent=1) + "\n").encode()
    return Calibrated(_write(bundle, files, report, thresholds, document), table, report, scanned)


def _gate(
    bundle: Bundle, files: dict[str, bytes], labelled: Labelled, share: float, threads: int | None
) -> tuple[dict[str, float], list[float], dict[str, float]]:
    manifest = bundle.manifest
    fp32_files = {path: bundle.read(path) for path in ("fp32/global.onnx", "fp32/local.onnx")}
    with (
        open_pipeline(manifest, fp32_files, "fp32", threads) as fp32,
        open_pipeline(manifest, files, "int8", threads) as int8,
    ):
        before, after = predict(fp32, labelled, "fp32"), predict(int8, labelled, "int8")
        ms = time_by_turns({"fp32": fp32, "int8": int8}, labelled.load(0))
    report = compare(before, after, labelled.targets) | {"images": float(len(labelled))}
    check(report, "int8", share)
    scores = np.stack([prediction.scores for prediction in after])
    thresholds = fit_thresholds(scores, labelled.targets)
    fitted = multilabel_metrics(scores, labelled.targets, thresholds)
    report |= {f"fitted/{name}": fitted[name] for name in ("CF1", "OF1")}
    report |= {"ms": ms["int8"], "fp32/ms": ms["fp32"]}
    return report, [float(value) for value in thresholds], class_shift(before, after)


def _write(
    bundle: Bundle,
    files: dict[str, bytes],
    report: dict[str, float],
    thresholds: list[float],
    document: dict[str, Any],
) -> Bundle:
    bundle = drop_from_bundle(bundle, "int8") if "int8" in bundle.manifest.precisions else bundle
    return add_to_bundle(
        bundle,
        files,
        thresholds={"int8": thresholds},
        metrics={"int8": {f"val/{name}": value for name, value in report.items()}},
        provenance={
            "int8_method": document["method"],
            "int8_share_asked": str(document["share_asked"]),
            "int8_table_sha256": document["table_sha256"],
            "int8_exclude": ", ".join(document["exclude"]) or "nothing",
        },
    )
