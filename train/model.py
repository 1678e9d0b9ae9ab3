"""The two-branch network. Each branch is a module that is exported as it stands."""

from __future__ import annotations

import copy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..runtime.errors import UsageError
from ..runtime.selector import Regions, RegionSelector
from .attention import NonLocal
from .backbone import Backbone, create_timm_model, split
from .config import ModelConfig
from .roi_align import roi_align_matmul, roi_align_operator


class GlobalOutputs(NamedTuple):
    """What the global branch gives, in the order of the global graph's outputs."""

    logits: Tensor  # (B, N) float32
    class_maps: Tensor  # (B, N, h, w) float32, after batch norm and before ReLU
    features: Tensor  # (B, C16, H/16, W/16)
    global_feature: Tensor  # (B, C)


class Output(NamedTuple):
    """What the whole network gives for a batch."""

    global_logits: Tensor  # (B, N) float32
    local_logits: Tensor  # (B, N) float32
    class_maps: Tensor  # (B, N, h, w) float32
    regions: Regions

    @property
    def scores(self) -> Tensor:
        """(B, N) fused scores: the mean of the two probabilities (section 3.5)."""
        return (self.global_logits.sigmoid() + self.local_logits.sigmoid()) / 2


class GlobalBranch(nn.Module):
    """Image -> global logits and class maps (sections 3.1 and 3.2)."""

    def __init__(self, config: ModelConfig, backbone: Backbone) -> None:
        super().__init__()
        channels, categories = backbone.channels32, len(config.classes)
        self.pool = config.global_pool
        self.mean: Tensor
        self.inverse_std: Tensor
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("inverse_std", 1 / (torch.tensor(config.std).view(1, 3, 1, 1) * 255), persistent=False)
        self.trunk, self.tail = backbone.trunk, backbone.tail
        self.attention = NonLocal(channels, scale=True) if config.global_attention else nn.Identity()
        self.head = nn.Linear(channels, categories)
        self.map_head = self.head if config.shared_head else nn.Linear(channels, categories)
        self.map_norm = nn.BatchNorm2d(categories)

    def forward(self, images: Tensor) -> GlobalOutputs:
        """Run the branch.

        Args:
            images: (B, H, W, 3) uint8 RGB. Scaling, normalisation and layout change are part of the network.
        """
        # TensorRT may only cast a uint8 tensor, so the cast comes before the transpose.
        x = (images.float().permute(0, 3, 1, 2) - self.mean) * self.inverse_std
        features = self.trunk(x)
        last = self.tail(features)
        positions = last.flatten(2).transpose(1, 2)  # (B, h * w, C)
        maps = self.map_head(positions).float().transpose(1, 2).unflatten(2, last.shape[-2:])
        attended = self.attention(positions)
        cells = self.head(attended).float()
        if self.pool == "max":
            logits, global_feature = cells.amax(1), attended.amax(1)
        else:
            logits, global_feature = cells.mean(1) + 0.5 * cells.amax(1), attended.mean(1)
        return GlobalOutputs(logits, self.map_norm(maps), features, global_feature)

    @torch.no_grad()
    def shift(self) -> Tensor:
        """(N,) float32, |mean| / sigma of the class maps' batch norm: the unit of the box variants (eq. 8)."""
        norm = self.map_norm
        assert norm.running_mean is not None  # for mypy: this batch norm tracks its statistics
        assert norm.running_var is not None
        return norm.running_mean.abs() / torch.sqrt(norm.running_var + norm.eps)


class LocalBranch(nn.Module):
    """Features and boxes -> local logits (sections 3.4 and 3.5).

    The boxes of an image are unique and carry the number of times m they were proposed. A key with ``log(m)`` added
    to its attention logit weighs as much as m equal keys, and a maximum does not change when an element is repeated,
    so the result equals that of the paper's k_o boxes, repeats included.
    """

    def __init__(self, config: ModelConfig, backbone: Backbone, head: nn.Linear) -> None:
        super().__init__()
        self.roi_size = config.roi_size
        self.roi_form: Literal["operator", "matmul"] = "operator"
        self.stage = copy.deepcopy(backbone.tail)
        self.attention = (
            NonLocal(backbone.channels32, scale=config.cross_scale, normalise=config.normalise_tokens)
            if config.cross_attention
            else None
        )
        self.head = head if config.shared_head else nn.Linear(head.in_features, head.out_features)

    def forward(self, features: Tensor, global_feature: Tensor, boxes: Tensor, counts: Tensor) -> Tensor:
        """Run the branch on padded boxes, as exported.

        Args:
            features: (B, C16, H/16, W/16).
            global_feature: (B, C).
            boxes: (B, K, 4) float32, x0, y0, x1, y1 in [0, 1].
            counts: (B, K) float32, how often each box was proposed; 0 for a padding slot, at least one box an image.

        Returns:
            (B, N) float32 local logits.
        """
        if self.roi_form == "matmul":
            pooled = roi_align_matmul(features, boxes, self.roi_size)
        else:
            image = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(-1, boxes.shape[1])
            pooled = roi_align_operator(features, boxes.flatten(0, 1), image.flatten(), self.roi_size)
        tokens = self.stage(pooled).mean((2, 3)).unflatten(0, boxes.shape[:2])
        return self.classify(tokens, global_feature, counts)

    def forward_packed(self, features: Tensor, global_feature: Tensor, boxes: Tensor, counts: Tensor) -> Tensor:
        """The same result without work on padding slots, whose values would also disturb batch norm in training."""
        real = counts > 0
        # As a product of matrices, because the operator's backward pass is a slow scatter on a CPU.
        pooled = roi_align_matmul(features, boxes, self.roi_size)[real.flatten()]
        packed = self.stage(pooled).mean((2, 3))
        tokens = packed.new_zeros(*counts.shape, packed.shape[1])
        tokens[real] = packed
        return self.classify(tokens, global_feature, counts)

    def classify(self, tokens: Tensor, global_feature: Tensor, counts: Tensor) -> Tensor:
        """Region tokens (B, K, C) -> logits (B, N): cross-granularity attention, classifier, maximum over boxes."""
        padding = counts <= 0
        if self.attention is not None:
            bias = torch.log(counts).masked_fill(padding, -torch.inf)
            bias = torch.cat([torch.zeros_like(bias[:, :1]), bias], 1)  # F_g is one key
            tokens = self.attention(torch.cat([global_feature[:, None], tokens], 1), bias)[:, 1:]
        logits = self.head(tokens).float()
        return logits.masked_fill(padding[..., None], -torch.inf).amax(1)


class GlocalNet(nn.Module):
    """Both branches with the region selector between them, as trained.

    Args:
        config: The model's switches.
        backbone: A split backbone to start from, such as one with pretrained weights. Default: random weights.

    Raises:
        UsageError: The backbone is unknown or cannot be split, or the image size does not fit.
    """

    def __init__(self, config: ModelConfig, backbone: Backbone | None = None) -> None:
        super().__init__()
        if any(side < 32 or side % 32 for side in config.image_size):
            raise UsageError(
                f"image size {config.image_size} does not fit", fix="use multiples of 32, such as 224 or 448"
            )
        if backbone is None:
            backbone = split(create_timm_model(config.backbone), config.backbone)
        self.config = config
        self.global_branch = GlobalBranch(config, backbone)
        self.local_branch = LocalBranch(config, backbone, self.global_branch.head)

    def select(self, class_maps: Tensor, logits: Tensor) -> Regions:
        """Boxes of a batch, by the same code as at run time; no gradient flows through them."""
        config = self.config
        selector = RegionSelector(self.global_branch.shift().cpu().numpy(), config.k_s, config.k_e, config.zetas)
        return selector(class_maps.detach().float().cpu().numpy(), logits.detach().float().cpu().numpy())

    def forward(self, images: Tensor) -> Output:
        """Run both branches on (B, H, W, 3) uint8 RGB images.

        Raises:
            ValueError: Class maps or logits are not finite.
        """
        out = self.global_branch(images)
        regions = self.select(out.class_maps, out.logits)
        boxes, counts = (torch.from_numpy(a).to(images.device) for a in regions.normalised())
        local = self.local_branch.forward_packed(out.features, out.global_feature, boxes, counts)
        return Output(out.logits, local, out.class_maps, regions)
