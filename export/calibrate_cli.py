"""The ``calibrate`` command: labelled data from the training side for the functions of ``calib``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ..calib.calibrate import Calibrated
    from ..calib.scan import Result


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="The bundle to add int8 to.", show_default=False)],
    data: Annotated[str, typer.Option(help="'digits', or a data folder: labels.csv, VOC or COCO.")],
    method: Annotated[
        Literal["minmax", "entropy", "percentile", "mse"], typer.Option(help="How ranges are computed.")
    ] = "percentile",
    images: Annotated[int, typer.Option(min=1, help="Images to calibrate with, of the train split.")] = 256,
    split: Annotated[str, typer.Option(help="Split to compare with fp32 on and to fit thresholds on.")] = "val",
    share: Annotated[float, typer.Option(min=0, max=1, help="Part of the fp32 mAP that int8 must keep.")] = 0.99,
    table: Annotated[
        Path | None, typer.Option(help="A calibration table to use again, such as BUNDLE/int8/calibration.json.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="A node or block that stays in fp32, such as global/trunk.0; repeatable.")
    ] = None,
    scan: Annotated[bool, typer.Option("--scan", help="Find the blocks that are worth leaving in fp32.")] = False,
    scan_minutes: Annotated[float, typer.Option(min=0, help="Time that the scan may take.")] = 10,
    scan_images: Annotated[int, typer.Option(min=1, help="Images that each trial of the scan is scored on.")] = 256,
    scan_file: Annotated[
        Path | None, typer.Option(help="Where the scan is kept, to go on with. Default: BUNDLE.scan.json.")
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Scenes a split (digits only).")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of drawing images.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of ONNX Runtime.")] = None,
) -> None:
    """Add int8 graphs to a bundle, if they keep its accuracy."""
    from ..calib.calibrate import calibrate as add_int8
    from ..calib.collect import source_graphs
    from ..calib.graph import default_exclude
    from ..calib.table import read_table
    from ..runtime.bundle import Bundle
    from ..train.data import open_data
    from ..train.labeled import check_labels

    opened = Bundle.load(bundle)
    side = opened.manifest.input_size[0]
    known = None if table is None else read_table(table)
    labelled = open_data(data, split, length=length, size=side)
    check_labels(labelled, opened.manifest.labels)
    photos = open_data(data, "train", length=length, size=side) if known is None else None
    kept = default_exclude(source_graphs(opened).values()) if exclude else ()
    file = scan_file or bundle.with_name(f"{bundle.resolve().name}.scan.json")
    result = add_int8(
        opened,
        photos,
        labelled,
        table=known,
        method=method,
        images=images,
        seed=seed,
        share=share,
        exclude=[*kept, *exclude] if exclude else None,
        scan_file=file if scan else None,
        scan_seconds=60 * scan_minutes,
        scan_images=scan_images,
        threads=threads,
    )
    console = Console()
    if result.scan is not None:
        _show_scan(console, result.scan, file, share)
    _show(console, result)
    print(f"added int8 to {bundle}")


def _show_scan(console: Console, scan: Result, file: Path, share: float) -> None:
    from ..calib.scan import ranking
    from ..calib.scan_plot import plot
    from ..runtime.files import write_atomically

    picture = file.with_suffix(".png")
    write_atomically(picture, plot(scan.state, scan.chosen, share))
    table = Table("left in fp32", "mAP", "score shift", "same boxes", "ms", box=None, header_style="bold")
    state = scan.state
    rows = {"everything": state.fp32, "nothing": state.int8}
    rows |= {name: state.trials[name] for name in ranking(state)[:8]}
    rows |= {name: point for name, point in state.trials.items() if " " in name}
    for name, point in rows.items():
        style = "bold" if name == " ".join(scan.chosen) else None
        figures = (f"{point.mAP:.4f}", f"{point.score_shift:.4f}", f"{point.same_boxes:.1%}", f"{point.slower_ms:.1f}")
        table.add_row(name, *figures, style=style)
    console.print(table)
    chosen = ", ".join(scan.chosen) or "nothing"
    untried = f"; no time for {len(scan.untried)} blocks, run again to go on" if scan.untried else ""
    console.print(f"left in fp32: {chosen}{untried}; see {picture}", highlight=False)


def _show(console: Console, result: Calibrated) -> None:
    report = result.report
    table = Table("", "fp32", "int8", box=None, header_style="bold")
    for name in ("mAP", "CF1", "OF1"):
        table.add_row(name, f"{report[f'fp32/{name}']:.4f}", f"{report[name]:.4f}")
    table.add_row("ms an image", f"{report['fp32/ms']:.1f}", f"{report['ms']:.1f}")
    console.print(table)
    console.print(
        f"{report['mAP_share']:.2%} of the mAP is left; {report['same_boxes']:.1%} of the boxes are the same "
        f"(IoU {report['box_iou']:.3f}), {report['same_box_sets']:.1%} of the images have exactly the same boxes; "
        f"scores move by {report['score_shift']:.4f} on average, {report['score_shift_max']:.3f} at most",
        highlight=False,
    )
