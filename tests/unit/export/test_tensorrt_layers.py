import json

import pytest
from builder_stand_in import Layer, stand_in
from glocal.export.tensorrt_layers import Inspection, check_engine, inspect_network, layer_precision
from glocal.runtime.errors import GlocalError

TYPED = "tensorrt-10.3.0"


def network(*layers: Layer):
    trt = stand_in(TYPED, layers=layers)
    return trt, trt.INetworkDefinition()


def inspect(precision, *layers, strongly_typed=True) -> Inspection:
    return inspect_network(*network(*layers), "some.onnx", precision, strongly_typed=strongly_typed)


def conv(name: str, dtype: str, *inputs: str) -> Layer:
    return Layer("CONVOLUTION", name, inputs or ("x",), dtype)


def quantized(name: str) -> list[Layer]:
    """A convolution with Q/DQ before both inputs."""
    pairs = [Layer("DEQUANTIZE", f"{name}.{part}", ("q",), "FLOAT") for part in ("x", "w")]
    return [*pairs, conv(name, "FLOAT", f"{name}.x:0", f"{name}.w:0")]


def test_layers_are_counted_by_what_they_were_asked_for():
    found = inspect("fp32", conv("a", "FLOAT"), Layer("MATRIX_MULTIPLY", "b", ("x", "w"), "FLOAT"), conv("c", "HALF"))
    assert found == Inspection({"a": "fp32", "b": "fp32", "c": "fp16"}, {"fp32": 2, "fp16": 1}, "network")


def test_other_layers_and_types_do_not_count():
    assert inspect("fp32", Layer("SOFTMAX", "a", ("x",), "HALF"), conv("b", "INT32")).asked == {}


def test_half_needs_all_convolutions_but_not_all_products():
    product = Layer("MATRIX_MULTIPLY", "head", ("x", "w"), "FLOAT")
    assert inspect("fp16", conv("a", "HALF"), product).precisions == {"fp16": 1, "fp32": 1}
    with pytest.raises(GlocalError, match="asked for in fp16") as caught:
        inspect("fp16", conv("a", "HALF"), conv("b", "HALF"), conv("c", "FLOAT"))
    assert caught.value.found == "c (fp32)"
    half_product = Layer("MATRIX_MULTIPLY", "query", ("x", "w"), "HALF")
    assert inspect("fp16", product, half_product).precisions == {"fp16": 1, "fp32": 1}
    with pytest.raises(GlocalError, match="asked for in fp16"):
        inspect("fp16", product)


def test_int8_is_a_pair_on_both_inputs():
    assert inspect("int8", *quantized("a"), *quantized("b"), conv("c", "FLOAT")).precisions == {"int8": 2, "fp32": 1}
    with pytest.raises(GlocalError, match="asked for in int8") as caught:
        inspect("int8", *quantized("a"), conv("b", "FLOAT"), conv("c", "FLOAT"))
    assert caught.value.found == "b (fp32), c (fp32)"
    assert inspect("int8", Layer("MATRIX_MULTIPLY", "only", ("x", "w"), "FLOAT")).precisions == {"fp32": 1}


def test_a_pair_on_one_input_only_is_refused():
    half_done = [*quantized("a"), Layer("DEQUANTIZE", "d", ("q",), "FLOAT"), conv("b", "FLOAT", "d:0", "weights")]
    with pytest.raises(GlocalError, match="one input") as caught:
        inspect("int8", *half_done)
    assert caught.value.found == "b"


def test_without_types_every_convolution_is_asked_for_half():
    product = Layer("MATRIX_MULTIPLY", "head", ("x", "w"), "FLOAT")
    asked = inspect("fp16", conv("a", "FLOAT"), product, strongly_typed=False)
    assert asked == Inspection({"a": "fp16", "head": "fp32"}, {"fp16": 1, "fp32": 1}, "network", strongly_typed=False)
    assert inspect("fp32", conv("a", "FLOAT"), strongly_typed=False).asked == {"a": "fp32"}


def test_where_tensorrt_could_choose_most_layers_must_be_as_asked_for():
    asked = Inspection(dict.fromkeys("abc", "fp16"), {}, "network", strongly_typed=False)
    single = {"Weights": {"Type": "Float"}}
    assert check_engine(engine(("a", HALF), ("b", HALF), ("c", single)), "x", asked).precisions == {
        "fp16": 2,
        "fp32": 1,
    }
    with pytest.raises(GlocalError, match="wider"):
        check_engine(engine(("a", HALF), ("b", single), ("c", single)), "x", asked)


def test_what_is_allowed_is_told(capsys):
    trt, parsed = network(conv("a", "FLOAT"))
    found = inspect_network(trt, parsed, "some.onnx", "fp16", allow=True)
    assert found.precisions == {"fp32": 1}
    told = capsys.readouterr().err
    assert "some.onnx was asked for in fp16" in told
    assert "a (fp32)" in told


def test_many_layers_are_not_all_named():
    with pytest.raises(GlocalError) as caught:
        inspect("fp16", *(conv(f"layer{index}", "FLOAT") for index in range(12)))
    assert caught.value.found.endswith("layer4 (fp32) and 7 more")


# As TensorRT 8.6 and 10 write them; with dynamic shapes they do not tell types of tensors.
ENTRIES = [
    ({"LayerType": "CaskConvolution", "Weights": {"Type": "Half", "Count": 9408}}, "fp16"),
    ({"LayerType": "CaskConvolution", "Weights": {"Type": "Int8", "Count": 9408}, "TacticName": "x_f16f16_"}, "int8"),
    ({"LayerType": "CaskConvolution", "Weights": {"Type": "Float", "Count": 9408}}, "fp32"),
    ({"TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs"}, "int8"),
    ({"TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x64x64"}, "fp16"),
    ({"TacticName": "sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize32x32x64"}, "fp32"),
    ({"Inputs": [{"Format/Datatype": "Row major linear FP16 format"}]}, "fp16"),
    ({"Inputs": [{"Format/Datatype": "Row major Int8 format"}, {"Format/Datatype": "Float"}]}, "int8"),
    ({"Inputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]}, None),
    ({"LayerType": "kgen"}, None),
]


@pytest.mark.parametrize(("entry", "precision"), ENTRIES)
def test_the_inspectors_words_for_a_precision(entry, precision):
    assert layer_precision(entry) == precision


def engine(*entries: tuple[str, dict]) -> str:
    return json.dumps({"Layers": [{"Name": name, "LayerType": "CaskConvolution", **entry} for name, entry in entries]})


HALF = {"Weights": {"Type": "Half"}}
ASKED = Inspection({"trunk.1": "fp16", "trunk.10": "fp16", "head": "fp32"}, {}, "network")


def test_layers_are_recognised_in_fused_ones():
    text = engine(
        ("trunk.1 + relu", HALF), ("__myl_Conv", HALF | {"Metadata": "[ONNX Layer: trunk.10]\u001e[ONNX Layer: b]"})
    )
    assert check_engine(text, "some.onnx", ASKED).precisions == {"fp16": 2, "unknown": 1}


def test_names_are_whole_names():
    with pytest.raises(GlocalError, match="wider") as caught:
        check_engine(engine(("trunk.10 + relu", {"Weights": {"Type": "Float"}}), ("trunk.1", HALF)), "some.onnx", ASKED)
    assert caught.value.found == "trunk.10 (fp32 instead of fp16)"


def test_a_narrower_type_than_asked_for_is_not_an_error_of_this_kind():
    assert check_engine(engine(("head", HALF)), "some.onnx", ASKED).precisions == {"unknown": 2, "fp16": 1}


def test_copies_before_a_layer_are_not_the_layer():
    entry = {"LayerType": "Reformat", "Inputs": [{"Format/Datatype": "FP32"}]}
    assert check_engine(engine(("copy of input to trunk.1", entry)), "some.onnx", ASKED).precisions == {"unknown": 3}


@pytest.mark.parametrize("text", ["", "{}", '{"Layers": ["trunk.1", "trunk.10"]}', "[]", "null"])
def test_an_engine_that_says_nothing_is_unknown(text):
    assert check_engine(text, "some.onnx", ASKED).precisions == {"unknown": 3}
