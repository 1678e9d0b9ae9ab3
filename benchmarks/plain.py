"""The opponent: the same backbone with average pooling and one classifier, on the same engine and input."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from ..export.graphs import export_module
from ..runtime.images import resize
from ..train.model import GlocalNet


class PlainClassifier(nn.Module):
    """Backbone, mean over space, classifier; weights are those of the two-branch network's global branch."""

    def __init__(self, model: GlocalNet) -> None:
        super().__init__()
        branch = model.global_branch
        self.mean: Tensor
        self.inverse_std: Tensor
        self.register_buffer("mean", branch.mean, persistent=False)
        self.register_buffer("inverse_std", branch.inverse_std, persistent=False)
        self.trunk, self.tail, self.head = branch.trunk, branch.tail, branch.head

    def forward(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 RGB -> (B, N) logits."""
        x = (images.float().permute(0, 3, 1, 2) - self.mean) * self.inverse_std
        return self.head(self.tail(self.trunk(x)).mean((2, 3)))


class PlainEngine:
    """The plain classifier in ONNX Runtime, from an image of any size to probabilities."""

    def __init__(self, model: GlocalNet) -> None:
        self._size = model.config.image_size
        image = torch.zeros(2, *self._size, 3, dtype=torch.uint8)
        shapes = {"images": {0: Dim("batch", min=1, max=1024)}}
        graph = export_module(PlainClassifier(model).eval(), {"images": image}, shapes, ["image"], ["logits"])
        self._session = onnxruntime.InferenceSession(graph)

    def predict(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(H, W, 3) uint8 RGB -> (N,) probabilities."""
        logits = self._session.run(["logits"], {"image": resize(image, self._size)[None]})[0][0]
        return 1 / (1 + np.exp(-logits))
