"""The command ``glocal macs``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table


def macs(
    backbone: Annotated[str, typer.Option(help="A timm model name.")] = "resnet101",
    preset: Annotated[Literal["glocal", "paper"], typer.Option(help="Which network.")] = "paper",
    size: Annotated[
        list[int] | None, typer.Option(min=32, help="Side of the input in pixels; give it again for more. [448]")
    ] = None,
    labels: Annotated[int, typer.Option(min=1)] = 80,
    boxes: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Boxes of an image; give it again for more. [7, as real photos; 24]"),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw them over the sizes into this PNG.")] = None,
) -> None:
    """Multiply-accumulates and parameters against the plain backbone, the paper's figures beside ours."""
    from ..runtime.files import write_atomically
    from ..runtime.progress import progressed
    from . import record
    from .macs import PAPER, PAPER_SETTING, compare_costs
    from .report_counts import macs as section

    sizes, counts = sorted(set(size or [448])), sorted(set(boxes or [7, 24]))
    report = record.begin("macs")
    found = {
        (side, number): compare_costs(backbone, preset, side, labels, number)
        for side, number in progressed([(s, n) for s in sizes for n in counts], "counting")
    }
    console = Console()
    for (side, number), costs in found.items():
        table = Table(
            title=f"{backbone}, {preset}, {side} px, {labels} labels, {number} boxes", title_justify="left", box=None
        )
        for name in ("", "G MACs", "with the rest", "of the backbone", "M parameters", "paper: G", "M"):
            table.add_column(name, justify="right" if name else "left")
        for name, cost in costs.items():
            paper = PAPER[name] if (backbone, preset, side, labels, number) == PAPER_SETTING else None
            table.add_row(
                name,
                f"{cost.macs / 1e9:.2f}",
                f"{cost.with_rest / 1e9:.2f}",
                f"{cost.macs / costs['backbone'].macs:.3f}",
                f"{cost.parameters / 1e6:.2f}",
                *((f"{value:.2f}" for value in paper) if paper else ("", "")),
            )
        console.print(table)
        stages = ", ".join(f"{stage} {macs / 1e9:.2f}" for stage, macs in costs["full"].products.items() if macs > 5e6)
        console.print(f"full by stage, G: {stages}\n", highlight=False)
    console.print(
        "G MACs: convolutions, linear layers, products of attention and RoIAlign. With the rest: as ptflops and the "
        "paper, also batch norm, activations, pooling.",
        highlight=False,
    )
    report["results"] = [
        {
            **{
                "backbone": backbone,
                "preset": preset,
                "size": side,
                "labels": labels,
                "boxes": number,
                "network": name,
            },
            **asdict(cost),
            **{"macs": cost.macs, "with_rest": cost.with_rest},
            **_paper((backbone, preset, side, labels, number), name),
        }
        for (side, number), costs in found.items()
        for name, cost in costs.items()
    ]
    record.save(record.finish(report), json_file)
    if plot_file:
        draw = section(report).draw
        assert draw is not None  # for mypy: there is a size and a network
        write_atomically(plot_file, draw())


def _paper(setting: tuple[str, str, int, int, int], network: str) -> dict[str, Any]:
    """The paper's values, operations and parameters, where it has some for this network."""
    from .macs import PAPER, PAPER_SETTING

    if setting != PAPER_SETTING:
        return {}
    giga, million = PAPER[network]
    return {"paper": {"with_rest": giga * 1e9, "parameters": million * 1e6}}
