import pytest
import torch
from glocal.export.build import build_bundle
from glocal.runtime.errors import DataError
from glocal.train.checkpoint import save_model
from glocal.train.config import model_config
from glocal.train.digits import CLASSES, write_data_folder
from glocal.train.evaluate import evaluate
from glocal.train.model import GlocalNet


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    model = GlocalNet(model_config("glocal", backbone="test_resnet", classes=CLASSES, image_size=(64, 64)))
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save_model(path, model, {"data": "digits", "image_size": 64, "seed": 0}, {})
    return path.parent


def test_a_run_and_its_bundle_have_the_same_numbers(run, tmp_path):
    build_bundle(run, tmp_path / "bundle")
    write_data_folder(tmp_path / "data", {"test": 30}, size=64)
    of_run = evaluate(run, str(tmp_path / "data"), workers=0)
    of_bundle = evaluate(tmp_path / "bundle", str(tmp_path / "data"))
    assert of_run["images"] == 30
    assert set(of_run["per_class_AP"]) == set(CLASSES)
    for name in ("mAP", "mAP_global", "mAP_local", "CF1", "OF1"):
        assert of_run[name] == pytest.approx(of_bundle[name], abs=1e-4)
    # A folder of scenes is the scenes: PNG keeps every pixel.
    assert evaluate(run, "digits", length=30, workers=0) == of_run


def test_other_labels_are_refused(run, tmp_path):
    write_data_folder(tmp_path / "data", {"test": 2}, size=64)
    (tmp_path / "data" / "classes.txt").write_text("\n".join(reversed(CLASSES)))
    with pytest.raises(DataError, match="another order"):
        evaluate(run, str(tmp_path / "data"), workers=0)
