from pathlib import Path

import numpy as np
import pytest
from glocal.calib.collect import collect, source_graphs
from glocal.calib.graph import Graph
from glocal.calib.table import Table
from glocal.runtime.bundle import Bundle, write_bundle
from glocal.runtime.pipeline import Pipeline
from small_model import SIZE, fields, global_graph, local_graph

LABELS = tuple("abcde")


class Images:
    """Blobs on noise, each image its own, with targets that random weights can be scored against."""

    def __init__(self, count: int, seed: int = 0, labels: int = len(LABELS)) -> None:
        rng = np.random.default_rng(seed)
        self.pixels = rng.integers(0, 90, (count, SIZE, SIZE, 3), dtype=np.uint8)
        for image in self.pixels:
            y, x = rng.integers(0, SIZE - 24, 2)
            image[y : y + 24, x : x + 24] = rng.integers(0, 256, 3)
        self.targets = rng.integers(0, 2, (count, labels))

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, index: int) -> np.ndarray:
        return self.pixels[index]


def make_bundle(path: Path, seed: int = 0, **changes) -> Bundle:
    files = {
        "fp32/global.onnx": global_graph(len(LABELS), seed),
        "fp32/local.onnx": local_graph(len(LABELS)),
        "fp32/local.tensorrt.onnx": local_graph(len(LABELS), first="other_name"),
    }
    return write_bundle(path, files, **{**fields(LABELS), **changes})


@pytest.fixture(scope="session")
def images() -> Images:
    return Images(40)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("calib") / "bundle")


@pytest.fixture(scope="session")
def table(bundle, images) -> Table:
    return collect(bundle, images, threads=1)


@pytest.fixture(scope="session")
def graphs(bundle) -> dict[str, Graph]:
    return source_graphs(bundle)


class Answered(Images):
    """Images whose targets are what the fp32 network says: its mAP is 1, and what int8 changes costs mAP."""

    def __init__(self, bundle: Bundle, count: int, seed: int) -> None:
        super().__init__(count, seed)
        with Pipeline.load(bundle.path, threads=1) as pipeline:
            scores = np.stack([prediction.scores for prediction in pipeline.predict(list(self.pixels))])
        self.targets = (scores > np.median(scores, axis=0)).astype(np.int8)


@pytest.fixture(scope="session")
def labelled(bundle) -> Answered:
    return Answered(bundle, 60, seed=3)
