import pytest
from glocal.calib.table import check_table, parse_table, read_table
from glocal.runtime.errors import CalibrationError
from small_model import make_bundle

GRAPHS = ("fp32/global.onnx", "fp32/local.onnx", "fp32/local.tensorrt.onnx")


def test_a_table_survives_its_file(tmp_path, bundle, table):
    (tmp_path / "table.json").write_bytes(table.to_bytes())
    again = read_table(tmp_path / "table.json")
    assert again == table
    assert again.sha256 == table.sha256
    check_table(again, bundle.manifest, GRAPHS)


def test_the_table_of_another_model_is_refused(tmp_path, table):
    other = make_bundle(tmp_path / "other", seed=5)
    with pytest.raises(CalibrationError, match="another model") as error:
        check_table(table, other.manifest, GRAPHS)
    assert "fp32/global.onnx" in error.value.found
    assert "fp32/local.onnx" not in error.value.found
    assert "glocal calibrate" in error.value.fix


@pytest.mark.parametrize(
    ("field", "value"),
    [("selector", {"k_s": 1, "k_e": 2, "zetas": (0.5,), "shift": (0.2,) * 5}), ("input_size", (64, 96))],
)
def test_a_table_of_other_pixels_or_boxes_is_refused(tmp_path, table, field, value):
    other = make_bundle(tmp_path / "other", **{field: value})
    with pytest.raises(CalibrationError, match=f"another {field.replace('_', ' ')}"):
        check_table(table, other.manifest, GRAPHS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d | {"images": 5}, "images"),
        (lambda d: d | {"extra": 1}, "extra"),
        (lambda d: {k: v for k, v in d.items() if k != "data_sha256"}, "data_sha256"),
        (lambda d: d | {"ranges": {"global": {"x": {"minmax": [1.0, 2.0]}}}}, "ranges"),
        (lambda d: d | {"schema_version": 2}, "schema_version"),
    ],
)
def test_a_table_that_breaks_the_schema_is_refused(table, change, message):
    import json

    document = change(json.loads(table.to_bytes()))
    with pytest.raises(CalibrationError, match=message):
        parse_table(json.dumps(document).encode(), "table.json")


def test_a_missing_file_or_method_is_an_error_that_says_so(tmp_path, table):
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_table(tmp_path / "none.json")
    narrow = table.model_copy(update={"methods": ("minmax",)})
    with pytest.raises(CalibrationError, match="no mse ranges"):
        narrow.of("global", "mse")
