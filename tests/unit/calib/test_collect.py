import numpy as np
import onnxruntime as ort
import pytest
from glocal.calib.collect import collect
from glocal.runtime.bundle import write_bundle
from glocal.runtime.errors import CalibrationError
from glocal.runtime.pipeline import selector_of
from small_model import LABELS, Images, fields, make_bundle


def direct(bundle, graphs, images, tensors) -> dict[str, tuple[float, float]]:
    """Ranges of tensors of the local graph, by running the chain by hand."""
    model = graphs["local"].model
    probe = type(model)()
    probe.CopyFrom(model)
    probe.graph.output.extend(value for value in model.graph.value_info if value.name in tensors)
    sessions = [ort.InferenceSession(bundle.read("fp32/global.onnx")), ort.InferenceSession(probe.SerializeToString())]
    found: dict[str, list[np.ndarray]] = {tensor: [] for tensor in tensors}
    for index in range(len(images)):
        names = ["logits", "class_maps", "features", "global_feature"]
        logits, maps, *features = sessions[0].run(names, {"image": images.load(index)[None]})
        boxes, counts = selector_of(bundle.manifest)(maps, logits).normalised()
        feeds = {"features": features[0], "global_feature": features[1], "boxes": boxes, "counts": counts}
        for tensor, value in zip(tensors, sessions[1].run(list(tensors), feeds), strict=True):
            found[tensor].append(value.ravel())
    return {tensor: (min(v.min() for v in vs), max(v.max() for v in vs)) for tensor, vs in found.items()}


def test_ranges_of_the_local_graph_come_from_the_boxes_of_the_chain(bundle, graphs, images, table):
    for tensor, (low, high) in direct(bundle, graphs, images, ("pooled", "stage.0.conv1.relu")).items():
        found = table.ranges["local"][tensor]["minmax"]
        np.testing.assert_allclose(found, (min(low, 0), max(high, 0)), rtol=1e-5)


def test_other_boxes_give_other_ranges(tmp_path, images, table):
    selector = {"k_s": 1, "k_e": 1, "zetas": (3.0,), "shift": (0.2,) * 5}
    other = collect(make_bundle(tmp_path / "other", selector=selector), images, ["minmax"], threads=1)
    assert other.ranges["global"]["trunk.0.relu"]["minmax"] == table.ranges["global"]["trunk.0.relu"]["minmax"]
    assert other.ranges["local"]["pooled"]["minmax"] != table.ranges["local"]["pooled"]["minmax"]


def test_both_forms_of_the_local_graph_see_the_same(table):
    ours, theirs = table.ranges["local"], table.ranges["local.tensorrt"]
    assert ours["pooled"] == theirs["other_name"]
    assert ours["stage.0.conv1.relu"] == theirs["stage.0.conv1.relu"]


def test_every_tensor_that_can_be_quantised_has_a_range_by_every_method(graphs, table):
    for name, graph in graphs.items():
        assert set(table.ranges[name]) == set(graph.activations())
        for ranges in table.ranges[name].values():
            assert set(ranges) == {"minmax", "entropy", "percentile", "mse"}
            widest = ranges["minmax"]
            assert all(widest[0] <= low <= 0 <= high <= widest[1] for low, high in ranges.values())


def test_the_table_says_what_it_was_made_of(bundle, images, table):
    assert table.graphs["fp32/global.onnx"] == bundle.manifest.files["fp32/global.onnx"]
    assert (table.images, table.input_size, table.resize) == (40, (64, 64), "stretch")
    again = collect(bundle, images, ["minmax"], threads=1)
    assert again.data_sha256 == table.data_sha256
    assert collect(bundle, Images(40, seed=1), ["minmax"], threads=1).data_sha256 != table.data_sha256


def test_too_few_images_are_refused(bundle):
    with pytest.raises(CalibrationError, match="too few"):
        collect(bundle, Images(31))


@pytest.mark.parametrize(("copy", "of"), [(33, 5), (1, 0), (39, 38)])
def test_identical_images_are_refused(bundle, copy, of):
    photos = Images(40)
    photos.pixels[copy] = photos.pixels[of]
    with pytest.raises(CalibrationError, match=f"image {copy} is image {of} again"):
        collect(bundle, photos, ["minmax"])


def test_activations_that_are_not_finite_are_refused(tmp_path, bundle):
    import onnx

    model = onnx.load_from_string(bundle.read("fp32/global.onnx"))
    bias = next(weight for weight in model.graph.initializer if weight.name == "trunk.1.conv1.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(8, np.inf, np.float32), bias.name))
    files = {"fp32/global.onnx": model.SerializeToString(), "fp32/local.onnx": bundle.read("fp32/local.onnx")}
    broken = write_bundle(tmp_path / "broken", files, **fields(LABELS))
    with pytest.raises(CalibrationError, match="not finite for calibration image 0"):
        collect(broken, Images(40), ["minmax"])


def test_an_image_that_is_none_is_refused(bundle):
    class Grey(Images):
        def load(self, index):
            return self.pixels[index, ..., 0]

    with pytest.raises(CalibrationError, match="image 0"):
        collect(bundle, Grey(40))
