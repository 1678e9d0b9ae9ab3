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
    features: Tensor  # (B, C, h, w), what regions are pooled from: F16 (or F32, by the switch roi_features)
    global_feature: Tensor  # (B, C)


class Output(NamedTuple):
    """What the whole network gives for a batch. A network of one branch has no local logits, maps and regions."""

    scores: Tensor  # (B, N) float32, fused
    global_logits: Tensor  # (B, N) float32
    local_logits: Tensor | None = None  # (B, N) float32
    class_maps: Tensor | None = None  # (B, N, h, w) float32
    region_logits: Tensor | None = None  # (B, N) float32, of the regions before the cross attention
    regions: Regions | None = None


class GlobalBranch(nn.Module):
    """Image -> global logits and class maps (sections 3.1 and 3.2)."""

    def __init__(self, config: ModelConfig, backbone: Backbone) -> None:
        super().__init__()
        channels, categories = backbone.channels32, len(config.classes)
        plain = {"average": "average", "max": "max", "csra": "average_max"}
        self.pool = plain.get(config.head, config.global_pool)
        self.maps_from_16, self.regions_from_16 = config.map_features == "f16", config.roi_features == "f16"
        self.mean: Tensor
        self.inverse_std: Tensor
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("inverse_std", 1 / (torch.tensor(config.std).view(1, 3, 1, 1) * 255), persistent=False)
        self.trunk, self.tail = backbone.trunk, backbone.tail
        self.frozen = False
        attends = config.global_attention and config.head not in plain
        self.attention = NonLocal(channels, scale=True) if attends else nn.Identity()
        self.head = nn.Linear(channels, categories)
        self.map_head: nn.Linear | None = None
        if config.head == "glocal":
            shared = config.shared_map_head and not self.maps_from_16
            map_channels = backbone.channels16 if self.maps_from_16 else channels
            self.map_head = self.head if shared else nn.Linear(map_channels, categories)
            self.map_norm = nn.BatchNorm2d(categories)

    def freeze_trunk(self) -> None:
        """Keep the trunk's weights and its batch norm's statistics as they are."""
        self.frozen = True
        self.trunk.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> GlobalBranch:
        """Choose training or evaluation; a frozen trunk stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self

    def forward(self, images: Tensor) -> GlobalOutputs:
        """Run the branch.

        Args:
            images: (B, H, W, 3) uint8 RGB. Scaling, normalisation and layout change are part of the network.
        """
        return self.from_features(self.trunk_features(images))

    def trunk_features(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 RGB -> F16 (B, C16, H/16, W/16)."""
        # TensorRT may only cast a uint8 tensor, so the cast comes before the transpose.
        return self.trunk((images.float().permute(0, 3, 1, 2) - self.mean) * self.inverse_std)

    def from_features(self, features: Tensor) -> GlobalOutputs:
        """F16 (B, C16, H/16, W/16) -> the branch's outputs; without a map head the class maps are empty."""
        last = self.tail(features)
        positions = last.flatten(2).transpose(1, 2)  # (B, h * w, C)
        if self.map_head is None:
            maps = last.new_zeros(len(last), 0, *last.shape[-2:])
        else:
            source = features if self.maps_from_16 else last
            cells = self.map_head(source.flatten(2).transpose(1, 2)).float()
            maps = self.map_norm(cells.transpose(1, 2).unflatten(2, source.shape[-2:]))
        attended = self.attention(positions)
        logits, global_feature = self.head(attended).float(), attended
        if self.pool == "max":
            logits, global_feature = logits.amax(1), attended.amax(1)
        else:
            peak = 0.5 * logits.amax(1) if self.pool == "average_max" else 0
            logits, global_feature = logits.mean(1) + peak, attended.mean(1)
        return GlobalOutputs(logits, maps, features if self.regions_from_16 else last, global_feature)

    @torch.no_grad()
    def shift(self, signed: bool = False) -> Tensor:
        """(N,) float32, |mean| / sigma of the class maps' batch norm: the unit of the box variants (eq. 8).

        Args:
            signed: A negative mean gives 0 instead of its magnitude.
        """
        norm = self.map_norm
        assert norm.running_mean is not None  # for mypy: this batch norm tracks its statistics
        assert norm.running_var is not None
        mean = norm.running_mean.clamp(min=0) if signed else norm.running_mean.abs()
        return mean / torch.sqrt(norm.running_var + norm.eps)


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
        self.box_fusion = config.box_fusion
        self.stage: nn.Module = nn.Identity()
        if config.roi_features == "f16":
            self.stage = copy.deepcopy(backbone.tail)
            if config.local_stride == 1:
                _keep_every_cell(self.stage)
        self.attention = (
            NonLocal(backbone.channels32, scale=config.cross_scale, normalise=config.normalise_tokens)
            if config.cross_attention
            else None
        )
        self.head = head if config.shared_local_head else nn.Linear(head.in_features, head.out_features)

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

    def tokens(self, features: Tensor, boxes: Tensor, counts: Tensor) -> Tensor:
        """Region tokens (B, K, C) without work on padding slots, whose values would also disturb batch norm."""
        real = counts > 0
        # As a product of matrices, because the operator's backward pass is a slow scatter on a CPU.
        pooled = roi_align_matmul(features, boxes, self.roi_size)[real.flatten()]
        packed = self.stage(pooled).mean((2, 3))
        tokens = packed.new_zeros(*counts.shape, packed.shape[1])
        tokens[real] = packed
        return tokens

    def classify(self, tokens: Tensor, global_feature: Tensor, counts: Tensor) -> Tensor:
        """Region tokens (B, K, C) -> logits (B, N): cross-granularity attention, classifier, fusion over boxes."""
        if self.attention is not None:
            tokens = self.attention(*self.keys(tokens, global_feature, counts))[:, 1:]
        return self.classify_regions(tokens, counts)

    def keys(self, tokens: Tensor, global_feature: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """What the cross attention sees: [F_g, region tokens] (B, 1 + K, C), and the keys' bias (B, 1 + K)."""
        bias = torch.log(counts).masked_fill(counts <= 0, -torch.inf)
        bias = torch.cat([torch.zeros_like(bias[:, :1]), bias], 1)  # F_g is one key
        return torch.cat([global_feature[:, None], tokens], 1), bias

    def classify_regions(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """Tokens (B, K, C), each on its own -> logits (B, N): classifier, fusion over boxes."""
        logits = self.head(tokens).float()
        total = (logits * counts[..., None]).sum(1)
        if self.box_fusion == "sum":
            return total
        peak = logits.masked_fill((counts <= 0)[..., None], -torch.inf).amax(1)
        return peak if self.box_fusion == "max" else total / counts.sum(1, keepdim=True) + 0.5 * peak


def _keep_every_cell(stage: nn.Module) -> None:
    """Give a stage stride 1."""
    for module in stage.modules():
        if isinstance(module, (nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d)) and module.stride in (2, (2, 2)):
            if not isinstance(module, nn.Conv2d):
                module.kernel_size = 1  # resnet-d pools 2x2 on its shortcut
            module.stride = (1, 1) if isinstance(module, nn.Conv2d) else 1


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
        self.local_branch = LocalBranch(config, backbone, self.global_branch.head) if config.head == "glocal" else None

    def select(self, class_maps: Tensor, logits: Tensor) -> Regions:
        """Boxes of a batch, by the same code as at run time; no gradient flows through them.

        Raises:
            ValueError: Class maps or logits are not finite.
        """
        return self.selector()(class_maps.detach().float().cpu().numpy(), logits.detach().float().cpu().numpy())

    def selector(self) -> RegionSelector:
        """The region selector for the class maps' present batch norm."""
        config = self.config
        shift = self.global_branch.shift(signed=config.shift == "signed").cpu().numpy()
        return RegionSelector(shift, config.k_s, config.k_e, config.zetas, config.rank)

    def forward(self, images: Tensor) -> Output:
        """Run all branches.

        Args:
            images: (B, H, W, 3) uint8 RGB, or their F16 (B, C16, H/16, W/16) float32 as ``trunk_features`` gives it.

        Raises:
            ValueError: Class maps or logits are not finite.
        """
        branch = self.global_branch
        out = branch(images) if images.dtype == torch.uint8 else branch.from_features(images)
        local = self.local_branch
        if local is None:
            return Output(out.logits.sigmoid(), out.logits)
        regions = self.select(out.class_maps, out.logits)
        boxes, counts = (torch.from_numpy(a).to(images.device) for a in regions.normalised())
        tokens = local.tokens(out.features, boxes, counts)
        logits = local.classify(tokens, out.global_feature, counts)
        alone = logits if local.attention is None else local.classify_regions(tokens, counts)
        return Output(self.fuse(out.logits, logits), out.logits, logits, out.class_maps, alone, regions)

    def fuse(self, global_logits: Tensor, local_logits: Tensor) -> Tensor:
        """(B, N) fused scores from the logits of both branches (section 3.5)."""
        if self.config.fusion == "logit":
            return ((global_logits + local_logits) / 2).sigmoid()
        return (global_logits.sigmoid() + local_logits.sigmoid()) / 2
