"""A tiny model that follows the contract of the two graphs, small enough to reason about.

It tells the colours red, green and blue apart. With x the mean of a channel, from 0 to 1: the class map of a
colour is 4x - 2 in each cell of 32 pixels, its global logit 10 max(x) - 5 over the cells, its local logit
10 max(x) - 5 over the boxes, where x of a box is what RoIAlign makes of features of 16 pixels.
"""

from __future__ import annotations

import numpy as np
import onnx

LABELS = ("red", "green", "blue")
SIZE = (64, 96)

GLOBAL = """
<ir_version: 9, opset_import: ["": 18]>
tiny_global (uint8[B, 64, 96, 3] image) =>
  (float[B, 3] logits, float[B, 3, 2, 3] class_maps, float[B, 3, 4, 6] features, float[B, 3] global_feature)
<
  float brightest = {255}, float ten = {10}, float five = {5}, int64[2] space = {2, 3},
  float[3, 3, 1, 1] weight = {4, 0, 0, 0, 4, 0, 0, 0, 4}, float[3] bias = {-2, -2, -2}
>
{
  single = Cast <to = 1> (image)
  planes = Transpose <perm = [0, 3, 1, 2]> (single)
  scaled = Div (planes, brightest)
  features = AveragePool <kernel_shape = [16, 16], strides = [16, 16]> (scaled)
  cells = AveragePool <kernel_shape = [32, 32], strides = [32, 32]> (scaled)
  global_feature = ReduceMean <keepdims = 0> (cells, space)
  class_maps = Conv (cells, weight, bias)
  peak = ReduceMax <keepdims = 0> (cells, space)
  tenfold = Mul (peak, ten)
  logits = Sub (tenfold, five)
}
"""

LOCAL = """
<ir_version: 9, opset_import: ["": 18]>
tiny_local (float[B, 3, 4, 6] features, float[B, 3] global_feature, float[B, K, 4] boxes, float[B, K] counts) =>
  (float[B, 3] logits)
<
  int64 zero = {0}, int64 one = {1}, int64[1] slots = {1}, int64[1] last = {2}, int64[2] space = {2, 3},
  int64[1] flat = {-1}, int64[2] rows_of_four = {-1, 4}, int64[3] per_box = {0, 0, 3}, int64[2] per_image = {0, -1},
  float[4] extent = {6, 4, 6, 4}, float ten = {10}, float five = {5}, float nothing = {0}, float lowest = {-10000}
>
{
  shape = Shape (counts)
  images = Gather (shape, zero)
  range = Range (zero, images, one)
  column = Unsqueeze (range, slots)
  table = Expand (column, shape)
  owners = Reshape (table, flat)
  cells = Mul (boxes, extent)
  rois = Reshape (cells, rows_of_four)
  pooled = RoiAlign <output_height = 2, output_width = 2, sampling_ratio = 2> (features, rois, owners)
  means = ReduceMean <keepdims = 0> (pooled, space)
  channels = Shape <start = 1> (means)
  sizes = Concat <axis = 0> (shape, channels)
  tokens = Reshape (means, sizes)
  tenfold = Mul (tokens, ten)
  scores = Sub (tenfold, five)
  empty = Equal (counts, nothing)
  mask = Unsqueeze (empty, last)
  kept = Where (mask, lowest, scores)
  peak = ReduceMax <keepdims = 0> (kept, slots)
  silent = Mul (global_feature, nothing)
  logits = Add (peak, silent)
}
"""


def graph(text: str) -> bytes:
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def black_is_nan(text: str) -> str:
    """The global graph such that the logits of an entirely black image are not finite."""
    poison = """
  most = ReduceMax <keepdims = 0> (peak, slots)
  infinite = Log (most)
  poison = Mul (infinite, nothing)
  column = Unsqueeze (poison, slots)
  clean = Sub (tenfold, five)
  logits = Add (clean, column)
"""
    text = text.replace("  logits = Sub (tenfold, five)\n", poison.lstrip("\n"))
    return text.replace("float five = {5},", "float five = {5}, float nothing = {0}, int64[1] slots = {1},")


FILES = {"fp32/global.onnx": graph(GLOBAL), "fp32/local.onnx": graph(LOCAL)}
FIELDS = {
    "name": "tiny",
    "labels": LABELS,
    "input_size": SIZE,
    "selector": {"k_s": 2, "k_e": 2, "zetas": (0.5, 1.0), "shift": (0.1, 0.1, 0.1)},
    "thresholds": {"fp32": (0.5, 0.5, 0.9)},
    "metrics": {"fp32": {"mAP": 0.5}},
    "provenance": {"checkpoint": "none"},
}


def painted(height: int, width: int, *patches: tuple[slice, slice, tuple[int, int, int]]) -> np.ndarray:
    """A grey image with coloured patches."""
    image = np.full((height, width, 3), 90, np.uint8)
    for rows, columns, colour in patches:
        image[rows, columns] = colour
    return image
