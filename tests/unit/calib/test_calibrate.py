import json

import numpy as np
import pytest
from glocal.calib.calibrate import calibrate
from glocal.calib.table import read_table
from glocal.runtime.bundle import Bundle
from glocal.runtime.errors import CalibrationError, UsageError
from glocal.runtime.pipeline import Pipeline
from glocal.runtime.thresholds import fit_thresholds
from small_model import LABELS, Answered, Images, make_bundle

FILES = {
    "int8/global.onnx", "int8/local.onnx", "int8/global.tensorrt.onnx", "int8/local.tensorrt.onnx",
    "int8/calibration.json", "int8/gate.json",
}  # fmt: skip


def contents(bundle: Bundle) -> dict[str, bytes]:
    return {str(p.relative_to(bundle.path)): p.read_bytes() for p in bundle.path.rglob("*") if p.is_file()}


@pytest.fixture
def fresh(tmp_path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def add(fresh, images, labelled):
    def run(**options):
        return calibrate(
            Bundle.load(fresh.path), images, labelled, **{"images": 36, "share": 0.9, "threads": 1, **options}
        )

    return run


def test_int8_is_added_with_all_that_belongs_to_it(add, fresh, labelled):
    result = add(method="mse")
    bundle = Bundle.load(fresh.path)
    manifest = bundle.manifest
    assert set(manifest.files) - set(fresh.manifest.files) == FILES
    assert manifest.thresholds["fp32"] == fresh.manifest.thresholds["fp32"]
    assert manifest.metrics["int8"]["val/mAP"] == result.report["mAP"] < 1
    assert manifest.provenance["int8_method"] == "mse"
    assert manifest.provenance["int8_share_asked"] == "0.9"
    table = read_table(bundle.path / "int8/calibration.json")
    assert manifest.provenance["int8_table_sha256"] == table.sha256 == manifest.files["int8/calibration.json"]
    assert table.images == 36
    gate = json.loads(bundle.read("int8/gate.json"))
    assert gate["exclude"] == ["global/head/MatMul", "local/head/MatMul", "local.tensorrt/head/MatMul"]
    assert set(gate["class_shift"]) == set(LABELS)

    with Pipeline.load(fresh.path, precision="int8", threads=1) as pipeline:
        predictions = pipeline.predict(list(labelled.pixels))
    scores = np.stack([prediction.scores for prediction in predictions])
    np.testing.assert_array_equal(manifest.thresholds["int8"], fit_thresholds(scores, labelled.targets))
    assert manifest.thresholds["int8"] != manifest.thresholds["fp32"]


def test_too_much_lost_leaves_the_bundle_as_it_was(add, fresh):
    before = contents(fresh)
    with pytest.raises(CalibrationError, match="loses too much") as error:
        add(share=0.99999)
    assert "mAP" in error.value.found
    assert contents(fresh) == before


def test_int8_can_be_made_again(add, fresh):
    first = add(method="minmax")
    second = add(method="mse")
    bundle = Bundle.load(fresh.path)
    assert bundle.manifest.provenance["int8_method"] == "mse"
    assert first.bundle.manifest.files["int8/global.onnx"] != second.bundle.manifest.files["int8/global.onnx"]
    assert bundle.manifest.files == second.bundle.manifest.files
    assert set(contents(bundle)) == {*bundle.manifest.files, "manifest.json"}


def test_a_table_is_used_again(add, fresh, table, labelled):
    result = calibrate(fresh, None, labelled, table=table, share=0.9, threads=1)
    assert result.table is table
    assert result.bundle.manifest.provenance["int8_table_sha256"] == table.sha256


def test_a_table_of_another_model_is_refused_before_anything_is_built(tmp_path, table):
    other = make_bundle(tmp_path / "other", seed=4)
    with pytest.raises(CalibrationError, match="another model"):
        calibrate(other, None, Answered(other, 40, seed=1), table=table)


def test_without_photos_a_table_is_needed(fresh, labelled):
    with pytest.raises(UsageError, match="images to calibrate with"):
        calibrate(fresh, None, labelled)


def test_fewer_images_than_asked_for_are_an_error(add):
    with pytest.raises(CalibrationError, match="41 images are wanted"):
        add(images=41)


def test_what_a_scan_chose_stays_in_fp32(add, fresh, tmp_path):
    result = add(scan_file=tmp_path / "scan.json", scan_images=40, share=0.9)
    gate = json.loads(result.bundle.read("int8/gate.json"))
    assert tuple(gate["scanned_blocks"]) == result.scan.chosen
    for block in result.scan.chosen:
        assert any(name.startswith(block) for name in gate["exclude"])


def test_an_image_that_fails_in_int8_is_no_pass(add, labelled):
    class Broken(Images):
        def load(self, index):
            return self.pixels[index][..., 0] if index == 5 else self.pixels[index]

    from glocal.calib.gate import predict

    with pytest.raises(CalibrationError, match="image 5"):
        predict(Pipeline.load(add().bundle.path, threads=1), Broken(8), "int8")
