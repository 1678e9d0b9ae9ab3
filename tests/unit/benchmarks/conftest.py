import sys
from pathlib import Path

import numpy as np
import pytest
from glocal.runtime.bundle import Bundle, add_to_bundle, write_bundle

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))  # the tiny model stands there
LABELS, SIDE = 5, 96


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Path:
    from tiny_model import FIELDS, FILES

    write_bundle(tmp_path / "bundle", FILES, **FIELDS)
    return tmp_path / "bundle"


class Scenes:
    """Smooth images to calibrate with."""

    def __len__(self) -> int:
        return 32

    def load(self, index: int) -> np.ndarray:
        coarse = np.random.default_rng(index).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        return coarse.repeat(16, 0).repeat(16, 1)


@pytest.fixture(scope="session")
def random_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small network with random weights."""
    from glocal.benchmarks.random_model import write_random_model

    run = tmp_path_factory.mktemp("random") / "run"
    write_random_model(run / "model.safetensors", "test_resnet", SIDE, LABELS)
    return run


@pytest.fixture(scope="session")
def exported(random_run: Path) -> Bundle:
    """Its bundle in fp32, fp16 and int8. No test may change it."""
    from glocal.calib.build import quantize
    from glocal.calib.collect import collect, source_graphs
    from glocal.calib.graph import default_exclude
    from glocal.export.build import build_bundle
    from glocal.export.extend import read_graphs
    from glocal.export.half import to_half

    bundle = build_bundle(random_run, random_run.with_name("bundle"))
    thresholds = bundle.manifest.thresholds["fp32"]
    half = {name.replace("fp32/", "fp16/"): to_half(graph) for name, graph in read_graphs(bundle, "fp32").items()}
    graphs, table = source_graphs(bundle), collect(bundle, Scenes(), ("minmax",), 1)
    whole = quantize(bundle, graphs, table, "minmax", default_exclude(graphs.values()))
    return add_to_bundle(bundle, {**half, **whole}, thresholds={"fp16": thresholds, "int8": thresholds})
