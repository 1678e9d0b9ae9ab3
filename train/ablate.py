"""Train and score the rows of a table; what is finished is kept, what was interrupted goes on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import time
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from pydantic import ValidationError
from rich.console import Console

from ..runtime.errors import CheckpointError, UsageError
from ..runtime.files import is_new_or_empty, write_atomically
from ..runtime.thresholds import DEFAULT
from .ablate_report import write_report
from .ablate_tables import Row, Table, choose_rows, find_table
from .bootstrap import Interval, paired_bootstrap
from .checkpoint import MODEL_FILE, STATE_FILE, load_model
from .config import PRESETS, ModelConfig
from .data import LabeledImages, open_data
from .evaluate import Scores, score_model, summarise
from .fit import build_model, fit, open_split, prepare
from .history import read_history
from .probe import probe as probe_model
from .settings import NOT_OF_THE_RUN, TrainConfig

RESULT_FILE, SCORES_FILE = "result.json", "scores.npz"


class Run(NamedTuple):
    """One trained and scored model.

    Attributes:
        config: How it was trained.
        folder: Its run folder.
        split: The split that it was scored on.
        metrics: What ``evaluate.summarise`` gives; the probe's figures under ``probe`` where they were asked for.
        epochs: Epochs trained.
        val_map: Fused mAP of the kept epoch on the validation split, a fraction.
        minutes: Of training, without the making of kept features; None where that was interrupted.
        load: The machine's load average over the last minute at the end of training, where that was seen.
        scores: Of all images of the split.
    """

    config: TrainConfig
    folder: Path
    split: str
    metrics: dict[str, Any]
    epochs: int
    val_map: float
    minutes: float | None
    load: float | None
    scores: Scores


class RowResult(NamedTuple):
    """A row of a table with its runs, one for each seed, and its distance from the reference rows.

    ``against`` gives for each reference the mean over the seeds of this row's mAP minus the reference's of the same
    seed. Its bounds are the lowest and the highest that the paired bootstrap gives for any of the seeds.
    """

    row: Row
    runs: tuple[Run, ...]
    against: dict[str, Interval]


def ablate(
    table: str,
    base: TrainConfig,
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    split: str = "test",
    only: Iterable[str] = (),
    probe: bool = False,
    quiet: bool = False,
) -> list[RowResult]:
    """Train and score every row of a table with every seed, and write the report.

    Args:
        table: Name of a table (see ``ablate_tables.TABLES``).
        base: Settings that all rows share. A row's own switches and settings go before these.
        out: Gets ``TABLE.csv`` (a line a run), ``TABLE-summary.csv`` (a line a row), ``TABLE.png``, and a run folder
            ``TABLE/ROW-sSEED`` for each run, with ``result.json`` and ``scores.npz`` (fused, global, local; float32).
            A finished run found there is kept, and an interrupted one is resumed. Where another table of ``out`` has
            a finished run of the same model, that one is taken.
        seeds: Of weights, order and augmentation.
        split: Of the data, to score on.
        only: Names or slugs of the rows to run; all if empty.
        probe: Also ask of each model of two branches whether its regions matter (see ``probe.probe``).
        quiet: No progress bar in training.

    Raises:
        UsageError: There is no such table, row or switch, or ``out`` holds a run with other settings.
        DataError: The data do not follow their layout.
        GlocalError: A training diverged.
    """
    definition = find_table(table)
    if base.world > 1 or not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(
            "an ablation takes one process and different seeds",
            found=f"{base.world} processes, seeds {list(seeds)}",
            fix="use devices 1 and nodes 1, and give each seed once",
        )
    rows = _different(choose_rows(definition, tuple(only)), base)
    images = open_data(base.data, split, length=base.val_images, size=base.image_size)
    # Seed by seed, so that all rows can be compared as early as possible.
    plan = []
    for seed in seeds:
        for row in rows:
            config = _settings(row, base, seed)
            plan.append((row, config, _place(config, out, out / table / f"{row.slug}-s{seed}")))
    console, runs = Console(stderr=True), {row.name: list[Run]() for row in rows}
    waiting = sum(not (folder / RESULT_FILE).is_file() for *_, folder in plan)
    minutes = []
    for index, (row, config, folder) in enumerate(plan, 1):
        name = f"{index} of {len(plan)}: {row.name}, seed {config.seed}"
        ready, start = (folder / RESULT_FILE).is_file(), time.perf_counter()
        if not ready:
            console.print(f"{name} -> {folder}", highlight=False, markup=False)
        run = _run(config, folder, split, images, probe, quiet)
        runs[row.name].append(run)
        line = f"{name}: mAP {100 * run.metrics['mAP']:.2f}" + (" (was there)" if ready else "")
        if not ready:
            minutes.append((time.perf_counter() - start) / 60)
            rest = (waiting - len(minutes)) * np.mean(minutes)
            if rest >= 1:
                line += f"; about {rest:.0f} minutes to go"
        console.print(line, highlight=False, markup=False)
    results = [RowResult(row, tuple(runs[row.name]), {}) for row in rows]
    results = [result._replace(against=_against(result, results, definition, images)) for result in results]
    write_report(out, table, definition, results)
    return results


def _settings(row: Row, base: TrainConfig, seed: int) -> TrainConfig:
    fields = {**base.model_dump(), **row.settings, "seed": seed, "switches": {**base.switches, **row.switches}}
    # As it will be read from the run folder, where a tuple is a list.
    return TrainConfig.model_validate_json(TrainConfig(**fields).model_dump_json())


def _different(rows: Iterable[Row], base: TrainConfig) -> tuple[Row, ...]:
    """The rows without those that would train the same model as an earlier one."""
    kept: dict[str, Row] = {}
    for row in rows:
        first = kept.setdefault(_identity(_settings(row, base, 0)), row)
        if first is not row:
            note = f"{row.name} is left out: it is the same as {first.name}"
            Console(stderr=True).print(note, highlight=False, markup=False)
    return tuple(kept.values())


def _identity(config: TrainConfig) -> str:
    """The same text for settings that train the same model, however they are written."""
    defaults = {name: field.default for name, field in ModelConfig.model_fields.items() if not field.is_required()}
    switches = {**defaults, **PRESETS[config.preset], **config.switches}
    resolved = {"preset": None, "region_weight": config.weight_of_regions, "switches": switches}
    return json.dumps({**config.model_dump(mode="json", exclude=NOT_OF_THE_RUN), **resolved}, sort_keys=True)


def _place(config: TrainConfig, out: Path, folder: Path) -> Path:
    """The folder of a run: ``folder``, or that of another table's finished run of the same model."""
    if not is_new_or_empty(folder):
        _refuse_another(config, folder)
        return folder
    for result in sorted(out.glob(f"*/*-s{config.seed}/{RESULT_FILE}")):
        with contextlib.suppress(OSError, ValidationError):
            before = TrainConfig.model_validate_json((result.parent / "config.json").read_bytes())
            if _identity(before) == _identity(config):
                return result.parent
    return folder


def _refuse_another(config: TrainConfig, folder: Path) -> None:
    """Refuse a run folder that holds something else than this run."""
    try:
        before = TrainConfig.model_validate_json((folder / "config.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise UsageError(
            f"{folder} is no run of this table",
            found=str(error).splitlines()[0],
            fix="give another --out, or delete that folder",
        ) from error
    fields = set(TrainConfig.model_fields) - NOT_OF_THE_RUN
    changed = sorted(name for name in fields if getattr(before, name) != getattr(config, name))
    if changed:
        raise UsageError(
            f"the run in {folder} was trained with other settings",
            found=", ".join(f"{name}: {getattr(before, name)} then, {getattr(config, name)} now" for name in changed),
            fix="give another --out, the same settings, or delete that folder",
        )


def _run(config: TrainConfig, folder: Path, split: str, images: LabeledImages, probe: bool, quiet: bool) -> Run:
    """A finished run as it is in its folder; what is missing there is made."""
    minutes: float | None = None
    load: float | None = None
    if (folder / RESULT_FILE).is_file():
        run = _read(config, folder)
        complete = "probe" in run.metrics or "mAP_local" not in run.metrics or not probe
        if complete and (run.split, run.metrics["images"]) == (split, len(images)):
            return run
        minutes, load = run.minutes, run.load
    elif not ((folder / MODEL_FILE).is_file() and len(read_history(folder)) == config.epochs):
        minutes = _train(config, folder, quiet)
        load = os.getloadavg()[0]
    checkpoint = load_model(folder)
    model = checkpoint.model.to("cuda" if torch.cuda.is_available() else "cpu")
    dataset = prepare(config, model, images, augment=False)
    scores = score_model(model, dataset, config.batch, config.workers)
    thresholds = np.array(checkpoint.thresholds or [DEFAULT] * len(images.classes), np.float32)
    metrics = summarise(scores, images, thresholds)
    if probe and model.local_branch is not None:
        metrics["probe"] = probe_model(model, dataset, config.batch, config.workers)
    val_map, epochs = float(checkpoint.metrics["mAP"]), len(read_history(folder))
    run = Run(config, folder, split, metrics, epochs, val_map, minutes, load, scores)
    _write(run)
    return run


def _train(config: TrainConfig, folder: Path, quiet: bool) -> float | None:
    """Train from the beginning or from where a run was interrupted; minutes, or None for an interrupted run."""
    resume = (folder / STATE_FILE).is_file()
    if not resume and folder.is_dir():
        shutil.rmtree(folder)  # interrupted before its first epoch ended
    if config.views:
        # As `fit` would, but outside of the time that is measured: later runs find these features.
        lightning.seed_everything(config.seed, verbose=False)
        model = None
        for name in ("train", "val"):
            part = open_split(config, name)
            model = model or build_model(config, part.classes)
            prepare(config, model, part, augment=name == "train")
    start = time.perf_counter()
    fit(config, folder, resume=resume, quiet=quiet)
    return None if resume else (time.perf_counter() - start) / 60


def _write(run: Run) -> None:
    arrays = {"fused": run.scores.fused, "global": run.scores.global_, "local": run.scores.local}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.float32(array) for name, array in arrays.items() if array is not None})
    write_atomically(run.folder / SCORES_FILE, buffer.getvalue())
    kept = {name: getattr(run, name) for name in ("split", "metrics", "epochs", "val_map", "minutes", "load")}
    kept["settings"] = run.config.model_dump(mode="json")
    # Last, because it says that the run is finished.
    write_atomically(run.folder / RESULT_FILE, (json.dumps(kept, indent=2) + "\n").encode())
    (run.folder / STATE_FILE).unlink(missing_ok=True)  # several times the model's size, in each of many runs


def _read(config: TrainConfig, folder: Path) -> Run:
    try:
        kept = json.loads((folder / RESULT_FILE).read_bytes())
        with np.load(folder / SCORES_FILE) as file:
            scores = Scores(file["fused"], *(file[name] for name in ("global", "local") if name in file))
        names = ("split", "metrics", "epochs", "val_map", "minutes", "load")
        split, metrics, epochs, val_map, minutes, load = (kept[name] for name in names)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"the result in {folder} cannot be read",
            found=f"{type(error).__name__}: {error}",
            fix=f"delete {folder / RESULT_FILE}: the run will be scored again",
        ) from error
    return Run(config, folder, split, metrics, epochs, val_map, minutes, load, scores)


def _against(result: RowResult, results: list[RowResult], table: Table, images: LabeledImages) -> dict[str, Interval]:
    found = {}
    for other in results:
        if other.row.name in table.references and other is not result:
            pairs = zip(result.runs, other.runs, strict=True)
            each = [paired_bootstrap(a.scores.fused, b.scores.fused, images.targets) for a, b in pairs]
            bounds = (min(one.low for one in each), max(one.high for one in each))
            found[other.row.name] = Interval(float(np.mean([one.difference for one in each])), *bounds)
    return found
