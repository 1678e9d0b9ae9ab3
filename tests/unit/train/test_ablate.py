import csv
import json

import numpy as np
import pytest
import torch
from glocal.benchmarks.cli import app
from glocal.runtime.errors import CheckpointError, UsageError
from glocal.train.ablate import ablate
from glocal.train.ablate_tables import TABLES
from glocal.train.bootstrap import paired_bootstrap
from glocal.train.data import open_data
from glocal.train.digits import CLASSES, write_data_folder
from glocal.train.evaluate import evaluate
from glocal.train.fit import build_model, fit
from glocal.train.history import read_history
from glocal.train.settings import TrainConfig
from typer.testing import CliRunner

SMALL = {"backbone": "test_resnet", "weights": "none", "image_size": 64, "epochs": 1, "batch": 8, "workers": 0}
FIGURES = ("mAP", "mAP_global", "mAP_local", "CF1", "OF1")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_data_folder(folder, {"train": 16, "val": 12, "test": 24}, size=64)
    return str(folder)


@pytest.fixture(scope="module")
def base(data) -> TrainConfig:
    return TrainConfig(data=data, **SMALL)


@pytest.fixture(scope="module")
def out(base, tmp_path_factory):
    """Table 3 without its last row, with two seeds."""
    folder = tmp_path_factory.mktemp("ablation")
    ablate("3", base, folder, seeds=(0, 1), only=("full", "without-ca"), quiet=True)
    return folder


def lines(path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def contents(folder) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("preset", ["glocal", "paper"])
def test_every_row_is_a_network_that_runs(table, preset):
    rows = TABLES[table].rows
    assert len({row.slug for row in rows}) == len(rows)
    assert set(TABLES[table].references) <= {row.name for row in rows}
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    for row in rows:
        fields = {"data": "digits", **SMALL, "preset": preset, **row.settings, "switches": dict(row.switches)}
        model = build_model(TrainConfig(**fields), CLASSES).eval()
        for name, value in row.switches.items():
            assert getattr(model.config, name) == value
        assert model(images).scores.shape == (2, len(CLASSES))


def test_rows_without_weak_loss_have_maps_that_are_trained():
    rows = [row for table in TABLES.values() for row in table.rows if row.settings.get("weak_weight") == 0]
    assert len(rows) == 3
    assert all(row.switches["shared_map_head"] for row in rows)


def test_the_report_has_the_numbers_of_evaluate(out, base):
    runs = lines(out / "3.csv")
    assert [(run["row"], run["seed"]) for run in runs] == [
        (row, seed) for row in ("full", "without CA") for seed in ("0", "1")
    ]
    for run in runs:
        metrics = evaluate(out / run["folder"], base.data, workers=0)
        for name in FIGURES:
            assert float(run[name]) == pytest.approx(metrics[name], abs=1e-5)
        assert float(run["fitted_OF1"]) == pytest.approx(metrics["fitted"]["OF1"], abs=1e-5)
        history = read_history(out / run["folder"])
        assert float(run["val_mAP"]) == pytest.approx(max(row["mAP"] for row in history), abs=1e-5)
        assert (run["split"], run["images"], run["epochs"]) == ("test", "24", "1")
        assert float(run["minutes"]) > 0
    assert (runs[0]["paper_VOC"], runs[2]["paper_VOC"]) == ("0.9517", "")
    assert (out / "3.png").read_bytes().startswith(b"\x89PNG")


def test_the_summary_compares_with_the_first_row(out, base):
    full, without = lines(out / "3-summary.csv")
    runs = lines(out / "3.csv")
    maps = [float(run["mAP"]) for run in runs if run["row"] == "without CA"]
    assert float(without["mAP"]) == pytest.approx(np.mean(maps), abs=1e-5)
    assert (float(without["mAP_min"]), float(without["mAP_max"])) == (min(maps), max(maps))
    assert full["minus_full"] == ""
    assert float(without["minus_full"]) == pytest.approx(float(without["mAP"]) - float(full["mAP"]), abs=1e-5)
    targets = open_data(base.data, "test").targets
    scores = {run["folder"]: np.load(out / run["folder"] / "scores.npz") for run in runs}
    assert all(file["local"].dtype == np.float32 for file in scores.values())
    pairs = [(f"3/without-ca-s{seed}", f"3/full-s{seed}") for seed in (0, 1)]
    each = [paired_bootstrap(scores[a]["fused"], scores[b]["fused"], targets) for a, b in pairs]
    assert float(without["minus_full_low"]) == pytest.approx(min(one.low for one in each), abs=1e-5)
    assert float(without["minus_full_high"]) == pytest.approx(max(one.high for one in each), abs=1e-5)


def test_finished_runs_are_kept_and_missing_ones_are_made(out, base):
    before, report = contents(out / "3"), (out / "3.csv").read_text()
    results = ablate("3", base, out, seeds=(0, 1), only=("full", "without CA"), quiet=True)
    assert contents(out / "3") == before
    assert (out / "3.csv").read_text() == report
    assert [len(result.runs) for result in results] == [2, 2]


def test_a_run_of_another_table_is_taken_where_it_is_the_same_model(base, tmp_path):
    options = {"seeds": (1,), "quiet": True}
    (first,) = ablate("3", base, tmp_path, only=("full",), **options)
    energy, area = ablate("7", base, tmp_path, **options)
    assert energy.runs[0].folder == first.runs[0].folder
    assert energy.runs[0].metrics == first.runs[0].metrics
    assert area.runs[0].folder == tmp_path / "7" / "area-s1"
    assert [run["folder"] for run in lines(tmp_path / "7.csv")] == ["3/full-s1", "7/area-s1"]
    other = ablate("7", base.model_copy(update={"lr": 0.01}), tmp_path, seeds=(1,), only=("energy",), quiet=True)
    assert other[0].runs[0].folder == tmp_path / "7" / "energy-s1"


def test_a_probe_can_follow(base, tmp_path):
    options = {"only": ("csra", "glocal-l-global-l-local-l-weak"), "quiet": True}
    ablate("peers", base, tmp_path, **options)
    models = {path: path.read_bytes() for path in tmp_path.rglob("model.safetensors")}
    assert len(models) == 2
    plain, full = ablate("peers", base, tmp_path, probe=True, **options)
    assert {path: path.read_bytes() for path in models} == models  # nothing was trained again
    assert "probe" not in plain.runs[0].metrics
    controls = full.runs[0].metrics["probe"]["controls"]
    row = lines(tmp_path / "peers.csv")[1]
    assert float(row["local_random_boxes"]) == pytest.approx(controls["random"]["local"], abs=1e-5)
    assert float(row["mAP_local"]) == pytest.approx(controls["selected"]["local"], abs=1e-4)
    before = contents(tmp_path / "peers")
    ablate("peers", base, tmp_path, probe=True, **options)
    assert contents(tmp_path / "peers") == before


def test_another_split_is_scored_without_training(base, tmp_path):
    (trained,) = ablate("7", base, tmp_path, only=("area",), quiet=True)
    weights = (trained.runs[0].folder / "model.safetensors").stat().st_mtime_ns
    (result,) = ablate("7", base, tmp_path, only=("area",), split="val", quiet=True)
    run = result.runs[0]
    assert (run.folder / "model.safetensors").stat().st_mtime_ns == weights
    assert run.minutes == trained.runs[0].minutes
    assert run.metrics["mAP"] == pytest.approx(run.val_map, abs=1e-6)
    assert lines(tmp_path / "7.csv")[0]["images"] == "12"


def test_an_interrupted_run_goes_on(base, tmp_path):
    config = base.model_copy(update={"epochs": 2})
    folder = tmp_path / "7" / "energy-s0"
    switches = {"rank": "energy"}
    fit(config.model_copy(update={"switches": switches, "max_minutes": 1e-4}), folder, quiet=True)
    header, first = (folder / "metrics.csv").read_text().splitlines()
    (result,) = ablate("7", config, tmp_path, only=("energy",), quiet=True)
    assert (folder / "metrics.csv").read_text().splitlines()[:2] == [header, first]
    assert result.runs[0].epochs == 2
    assert result.runs[0].minutes is None  # the time before the interruption is not known
    assert result.runs[0].metrics["mAP"] == pytest.approx(evaluate(folder, base.data, workers=0)["mAP"], abs=1e-6)


def test_a_run_that_ended_before_its_first_epoch_starts_again(base, tmp_path):
    folder = tmp_path / "7" / "energy-s0"
    folder.mkdir(parents=True)
    config = base.model_copy(update={"switches": {"rank": "energy"}})
    (folder / "config.json").write_text(config.model_dump_json())
    (folder / "tensorboard").mkdir()
    (result,) = ablate("7", base, tmp_path, only=("energy",), quiet=True)
    assert result.runs[0].epochs == 1


def test_other_settings_and_strange_folders_are_refused(out, base, tmp_path):
    before = contents(out)
    with pytest.raises(UsageError, match=r"lr: 0\.001 then, 0\.01 now"):
        ablate("3", base.model_copy(update={"lr": 0.01}), out)
    assert contents(out) == before
    (tmp_path / "7" / "energy-s0").mkdir(parents=True)
    (tmp_path / "7" / "energy-s0" / "photo.jpg").touch()
    with pytest.raises(UsageError, match="no run of this table"):
        ablate("7", base, tmp_path)


def test_a_damaged_result_is_refused(base, tmp_path):
    ablate("7", base, tmp_path, only=("energy",), quiet=True)
    result = tmp_path / "7" / "energy-s0" / "result.json"
    good = result.read_text()
    result.write_text(good[: len(good) // 2])
    with pytest.raises(CheckpointError, match="delete"):
        ablate("7", base, tmp_path, only=("energy",))
    result.unlink()
    (again,) = ablate("7", base, tmp_path, only=("energy",))
    assert again.runs[0].metrics["mAP"] == json.loads(good)["metrics"]["mAP"]


def test_rows_equal_to_an_earlier_one_are_left_out(base, tmp_path, capsys):
    results = ablate("switches", base, tmp_path, only=("preset", "roi_size 3", "region-weight-1-0"), quiet=True)
    assert [result.row.name for result in results] == ["preset"]
    assert "roi_size 3 is left out: it is the same as preset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ("9", {}, "no table '9'"),
        ("3", {"only": ("full", "nothing")}, "no row 'nothing'"),
        ("3", {"seeds": (0, 0)}, "different seeds"),
    ],
)
def test_what_does_not_exist_is_refused(base, tmp_path, table, options, message):
    with pytest.raises(UsageError, match=message):
        ablate(table, base, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_command_trains_on_kept_features(data, tmp_path):
    out = tmp_path / "out"
    options = "--backbone test_resnet --weights none --image-size 64 --epochs 1 --batch 8 --set k_s=2"
    command = ["ablate", "peers", "--data", data, "--out", str(out), *options.split()]
    done = CliRunner().invoke(app, [*command, "--only", "average", "--only", "csra"])
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == {"features", "peers", "peers.csv", "peers-summary.csv", "peers.png"}
    # Both rows trained on the same features: a view of train, val and test.
    assert sorted(path.name.split("-")[0] for path in (out / "features").iterdir()) == ["test", "train", "val"]
    assert "only the order of the rows can be compared" in " ".join(done.output.split())
    assert "79.30" in done.output
    config = TrainConfig.model_validate_json((out / "peers" / "csra-s0" / "config.json").read_text())
    assert (config.freeze, config.views, config.backbone_lr) == ("spatial", 1, 0.4)
    assert config.switches == {"k_s": 2, "head": "csra"}
    # Features have 16 bits, so the numbers are nearly those on images.
    run = lines(out / "peers.csv")[1]
    assert float(run["mAP"]) == pytest.approx(evaluate(out / run["folder"], data, workers=0)["mAP"], abs=0.02)
    assert run["mAP_local"] == ""
