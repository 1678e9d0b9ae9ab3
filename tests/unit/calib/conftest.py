import pytest
from glocal.calib.collect import collect, source_graphs
from glocal.calib.graph import Graph
from glocal.calib.table import Table
from glocal.runtime.bundle import Bundle
from small_model import Answered, Images, make_bundle


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


@pytest.fixture(scope="session")
def labelled(bundle) -> Answered:
    return Answered(bundle, 60, seed=3)
