"""The opponent in PyTorch: the same backbone with average pooling and one classifier (`plain_graph` has it as ONNX)."""

from __future__ import annotations

from torch import Tensor, nn

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
