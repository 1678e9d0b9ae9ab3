"""The figures of the paper, by name, from runs and data."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..runtime.errors import UsageError
from ..runtime.files import write_atomically
from .checkpoint import Checkpoint, load_model
from .figure_parts import Draw, Drawn, open_sample
from .figure_photos import draw_photos
from .figure_proposals import draw_proposals
from .figure_regions import draw_energy, draw_variants
from .figure_tsne import draw_tsne

DPI = 110


class Kind(NamedTuple):
    """A figure of the paper."""

    draw: Draw
    images: int  # how many photos it looks at, unless told
    paper: str  # what the paper shows
    runs: int = 1  # how many it takes


KINDS = {
    "tsne": Kind(draw_tsne, 1000, "fig. 4: t-SNE of the local features, without and with weak supervision", runs=2),
    "photos": Kind(draw_photos, 500, "fig. 5 and 9: photos, their regions, and scores of the global branch and fused"),
    "energy": Kind(
        draw_energy,
        500,
        "fig. 6: regions by energy and by area. Table 7, mAP by energy and by area: 85.31 and 84.23 on MS-COCO, 95.17 "
        "and 95.00 on VOC 2007",
    ),
    "variants": Kind(draw_variants, 500, "fig. 7: a region and its variants for the zetas (eq. 8)"),
    "proposals": Kind(draw_proposals, 50, "fig. 8: the selected regions against the proposals of selective search"),
}


class Written(NamedTuple):
    """A figure on disk."""

    picture: Path
    csv: Path
    drawn: Drawn


def write_figure(
    name: str,
    runs: Sequence[Path],
    data: str,
    out: Path,
    split: str = "test",
    images: int | None = None,
    seed: int = 0,
) -> Written:
    """Draw a figure of the paper, and write it as ``NAME.png`` with its numbers in ``NAME.csv``.

    Args:
        name: One of ``KINDS``.
        runs: Run folders of models with both branches; as many as the figure takes.
        data: ``digits``, ``digits-hard`` or a data folder.
        out: The folder to write into.
        split: Of the data.
        images: How many photos to look at, drawn at random; by default as ``KINDS`` says.
        seed: Of all that is drawn at random.

    Raises:
        UsageError: There is no such figure or run, it takes another number of runs, a model has one branch, or
            ``out`` cannot be written.
        CheckpointError: A run is damaged.
        DataError: The data do not follow their layout, or have other labels than a model.
        GlocalError: There is nothing to draw, such as no region in any photo.
    """
    if name not in KINDS:
        raise UsageError(f"there is no figure {name!r}", fix=f"one of {', '.join(KINDS)}")
    kind = KINDS[name]
    if len(runs) != kind.runs:
        what = "two runs, one with and one without weak supervision" if kind.runs == 2 else "one run"
        raise UsageError(f"figure {name} takes {what}", found=f"{len(runs)}", fix="give the run folders after the name")
    if seed < 0:
        raise UsageError("a seed cannot be negative", found=str(seed))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be a folder", found=str(error), fix="name another --out") from error
    loaded = [_load(run) for run in runs]
    if any(run.model.config.classes != loaded[0].model.config.classes for run in loaded):
        raise UsageError("the runs have different labels", fix="give runs that were trained on the same data")
    count = kind.images if images is None else images
    sample = open_sample(data, split, loaded[0].model.config, count, seed)
    drawn = kind.draw(loaded, sample, seed)
    picture = io.BytesIO()
    drawn.figure.savefig(picture, format="png", dpi=DPI)
    written = Written(out / f"{name}.png", out / f"{name}.csv", drawn)
    try:
        write_atomically(written.csv, _as_csv(drawn.table))
        write_atomically(written.picture, picture.getvalue())
    except OSError as error:
        raise UsageError(
            f"{out} cannot be written", found=str(error), fix="free space, or name another --out"
        ) from error
    return written


def _load(path: Path) -> Checkpoint:
    run = load_model(path)
    if run.model.local_branch is None:
        raise UsageError(
            f"{path} has one branch, and the figures show regions",
            found=f"head {run.model.config.head}",
            fix="give a run with head glocal",
        )
    run.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return run


def _as_csv(table: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode()
