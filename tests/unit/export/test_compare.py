import numpy as np
import onnx
import pytest
from glocal.export.compare import TOLERANCE, OnnxSubject, Outputs, check, compare, over_tolerance, why_boxes_differ
from glocal.export.half import to_half
from glocal.runtime.errors import GlocalError
from glocal.runtime.images import resize
from glocal.runtime.selector import RegionSelector
from sklearn.datasets import load_sample_images

SELECTOR = RegionSelector([0.5, 0.5], k_s=2, k_e=1, zetas=(1.0,))


@pytest.fixture(scope="module")
def photos(model) -> np.ndarray:
    return np.stack([resize(photo, model.config.image_size) for photo in load_sample_images().images])


@pytest.fixture(scope="module")
def reference(graphs) -> OnnxSubject:
    return OnnxSubject(graphs["global"], graphs["matmul"])


def test_a_model_is_the_same_as_itself(model, reference, photos):
    report = compare(reference, reference, photos, model.selector(), model.config.fusion)
    assert report.pop("same_boxes") == report.pop("same_labels") == 1
    assert set(report.values()) == {0}


def test_half_precision_differs_within_its_tolerance_and_not_within_that_of_fp32(model, graphs, reference, photos):
    half = OnnxSubject(to_half(graphs["global"]), to_half(graphs["matmul"]))
    report = compare(reference, half, photos, model.selector(), model.config.fusion)
    check(report, "fp16", "the fp16 graphs")
    assert {"global.features", "global.global_feature"} <= set(report)
    assert over_tolerance(report, "fp32")


def scaled(graph: bytes, factor: float, name: str = "tail.0.conv1.weight") -> bytes:
    """The graph with some filters of a convolution changed."""
    model = onnx.load_from_string(graph)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[: len(values) // 2] *= factor
    weight.CopyFrom(onnx.numpy_helper.from_array(values, name))
    return model.SerializeToString()


def test_a_wrong_global_graph_does_not_hide_a_right_local_one(model, graphs, reference, photos):
    wrong = OnnxSubject(scaled(graphs["global"], 1.5), graphs["matmul"])
    report = compare(reference, wrong, photos, model.selector(), model.config.fusion)
    assert report["local.logits"] == 0  # it was given the right features
    assert report["global.logits"] > TOLERANCE["fp32"].outputs
    with pytest.raises(GlocalError, match=r"global\.logits differs by"):
        check(report, "fp32", "the graphs")


def test_values_that_are_not_finite_are_over_every_tolerance(model, graphs, reference, photos):
    wrong = OnnxSubject(scaled(graphs["global"], np.inf), graphs["matmul"])
    report = compare(reference, wrong, photos, model.selector(), model.config.fusion)
    for precision in TOLERANCE:
        assert {"global.logits", "scores"} <= set(over_tolerance(report, precision))
        with pytest.raises(GlocalError, match="inf"):
            check(report, precision, "the graphs", allow=True)
    with pytest.raises(GlocalError, match="not finite"):
        compare(wrong, reference, photos, model.selector(), model.config.fusion)
    broken = OnnxSubject(graphs["global"], scaled(graphs["matmul"], np.inf, "stage.0.conv1.weight"))
    assert compare(reference, broken, photos, model.selector(), model.config.fusion)["scores"] == np.inf


class OtherBoxes:
    """A form of the model whose maps give other boxes, and whose local graph is wrong."""

    def __init__(self, form: OnnxSubject) -> None:
        self.form = form

    def run_global(self, images: np.ndarray) -> Outputs:
        out = self.form.run_global(images)
        return Outputs({**out.values, "class_maps": -out.values["class_maps"]})

    def run_local(self, outputs: Outputs, boxes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return self.form.run_local(outputs, boxes, counts) + 3


def test_scores_are_compared_where_every_box_differs(model, reference, photos):
    report = compare(reference, OtherBoxes(reference), photos, model.selector(), model.config.fusion)
    assert report["same_boxes"] == 0
    assert "scores" in over_tolerance(report, "fp16")


def test_what_is_finite_can_be_allowed():
    report = {"real/global.logits": 0.5}
    with pytest.raises(GlocalError, match="differs by"):
        check(report, "fp32", "the graphs")
    check(report, "fp32", "the graphs", allow=True)


def outputs(*cells: tuple[int, int, int, float], logits: tuple[float, float] = (2.0, 1.0)) -> dict[str, np.ndarray]:
    """Class maps of two categories that are -1 but for some cells (category, y, x, value)."""
    maps = np.full((1, 2, 4, 4), -1, np.float32)
    for category, y, x, value in cells:
        maps[0, category, y, x] = value
    return {"class_maps": maps, "logits": np.array([logits], np.float32)}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (outputs((0, 0, 0, 1.01), (1, 3, 3, 2)), None),  # other values, the same boxes
        (outputs((0, 0, 0, 1), (1, 3, 3, 2), logits=(1.0, 2.0)), "category"),
        (outputs((0, 0, 0, 1), (0, 0, 1, 0.01), (1, 3, 3, 2)), "cell"),
    ],
)
def test_why_boxes_differ(changed, reason):
    assert why_boxes_differ(outputs((0, 0, 0, 1), (1, 3, 3, 2)), changed, SELECTOR) == [reason]


def test_boxes_can_differ_because_of_the_order_of_energies():
    before = outputs((0, 0, 0, 1.00), (0, 3, 3, 0.99))
    after = outputs((0, 0, 0, 0.99), (0, 3, 3, 1.00))
    assert why_boxes_differ(before, after, SELECTOR) == ["energy"]


def test_boxes_can_differ_because_of_a_cell_at_a_variants_threshold():
    before = outputs((0, 0, 0, 1), (0, 0, 1, 0.49))
    after = outputs((0, 0, 0, 1), (0, 0, 1, 0.51))  # the shift is 0.5: now the tighter box holds two cells
    assert why_boxes_differ(before, after, SELECTOR) == ["cell"]
