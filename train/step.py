"""One training step and one validation of the network; Lightning carries the loop."""

from __future__ import annotations

from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..runtime.errors import GlocalError
from ..runtime.metrics import multilabel_metrics
from ..runtime.thresholds import fit_thresholds
from .history import History
from .losses import classification_loss, weak_loss
from .model import GlocalNet, Output
from .sampler import gathered
from .schedule import TimeLimit, falling_steps, warmup_cosine
from .settings import TrainConfig


class Fit(lightning.LightningModule):
    """What is trained, how, and what is recorded.

    Args:
        model: The network.
        config: How to train it.
        history: Where epochs are recorded.
        limit: The clock of a run with a time limit.
        val_images: Images of the validation split, over all processes.
    """

    def __init__(
        self, model: GlocalNet, config: TrainConfig, history: History, limit: TimeLimit, val_images: int
    ) -> None:
        super().__init__()
        self.model, self.config, self.history, self.limit = model, config, history, limit
        self.val_images = val_images
        self.averaged: AveragedModel | None = None
        if config.ema:
            self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
            self.averaged.requires_grad_(False)
        self.collected: list[tuple[np.ndarray, ...]] = []
        self.metrics: dict[str, float] = {}
        self.thresholds: tuple[float, ...] = ()

    @property
    def kept(self) -> GlocalNet:
        """The network that is validated and written: the averaged one where there is one."""
        averaged: nn.Module | None = self.averaged and self.averaged.module
        return averaged if isinstance(averaged, GlocalNet) else self.model

    def forward(self, x: Tensor) -> Output:
        """The network on images or features.

        Raises:
            GlocalError: Class maps or logits are not finite.
        """
        try:
            return (self.model if self.training else self.kept)(x)
        except ValueError as error:  # the selector refuses class maps that are not finite
            raise self._diverged(str(error)) from error

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Loss = L_global + L_local + weight * L_weak (section 3.6), as far as the network has these parts."""
        inputs, targets = batch
        config, out = self.config, self(inputs)
        parts = {"global": classification_loss(out.global_logits, targets, config.loss)}
        if out.local_logits is not None and out.class_maps is not None:
            parts["local"] = classification_loss(out.local_logits, targets, config.loss)
            if config.weak_weight:
                parts["weak"] = weak_loss(out.class_maps, targets) * config.weak_weight
            weight = config.weight_of_regions
            # Without cross attention the regions are all that the local logits are made from.
            if weight and out.region_logits is not None and out.region_logits is not out.local_logits:
                parts["region"] = classification_loss(out.region_logits, targets, config.loss) * weight
        loss = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(loss):
            raise self._diverged(f"loss {loss.item()}")
        size = len(inputs)
        logged = {f"loss/{name}": value for name, value in parts.items()}
        if out.regions is not None:
            logged["boxes"] = torch.tensor(float(out.regions.n.mean()), device=loss.device)
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=size, sync_dist=config.world > 1)
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=size, sync_dist=config.world > 1)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the average towards the weights."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def _diverged(self, found: str) -> GlocalError:
        return GlocalError(
            f"training diverged in epoch {self.current_epoch}",
            found=found,
            fix="use a lower --lr or 32-true precision; the best model of earlier epochs is kept in the run folder",
        )

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Collect the scores of all kinds that there are."""
        inputs, targets = batch
        out = self(inputs)
        kinds = [targets, out.scores]
        if out.local_logits is not None:
            kinds += [out.global_logits.sigmoid(), out.local_logits.sigmoid()]
        if not all(torch.isfinite(kind).all() for kind in kinds):
            raise self._diverged("validation scores that are not finite")
        self.collected.append(tuple(kind.float().cpu().numpy() for kind in kinds))

    def on_validation_epoch_end(self) -> None:
        """Mean AP over the images of all processes, and per-class thresholds."""
        share = [np.concatenate(kind) for kind in zip(*self.collected, strict=True)]
        self.collected.clear()
        targets, fused, *branches = gathered(share, self.val_images, self.config.world)
        labels = targets.astype(np.int8)
        named = dict(zip(("mAP", "mAP_global", "mAP_local"), (fused, *branches), strict=False))
        self.metrics = {name: multilabel_metrics(scores, labels)["mAP"] for name, scores in named.items()}
        self.thresholds = tuple(fit_thresholds(fused, labels).tolist())
        self.log_dict({f"val/{name}": value for name, value in self.metrics.items()}, prog_bar=True)

    def on_train_epoch_end(self) -> None:
        """Record the epoch; validation has run by now, and the epoch's mean losses are known."""
        if self.global_rank == 0:
            logged = self.trainer.callback_metrics
            self.history.add(self.current_epoch, logged, self.metrics, self.kept, self.thresholds)

    def configure_optimizers(self) -> Any:
        """Optimizer over four groups (backbone or heads, decayed or not) and the schedule."""
        config = self.config
        groups: dict[tuple[bool, float], dict[str, Any]] = {}
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            backbone = any(part in f".{name}" for part in (".trunk.", ".tail.", ".stage."))
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            lr = config.lr * (config.backbone_lr if backbone else 1.0)
            group = groups.setdefault((backbone, decay), {"params": [], "lr": lr, "weight_decay": decay})
            group["params"].append(parameter)
        optimizer: torch.optim.Optimizer
        if config.optimizer == "adamw":
            optimizer = torch.optim.AdamW(groups.values())
        else:
            optimizer = torch.optim.SGD(groups.values(), momentum=0.9)
        steps = int(self.trainer.estimated_stepping_batches)
        shape = warmup_cosine if config.schedule == "cosine" else falling_steps

        def factor(step: int) -> float:
            # A run that will be stopped by the clock ends with small steps too.
            return shape(max(step / steps, self.limit.progress()))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
