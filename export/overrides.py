"""Settings that an export may change: fewer boxes, smaller regions. Weights stay as they were trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..runtime.bundle import Bundle
from ..runtime.errors import BundleError, UsageError

if TYPE_CHECKING:
    from ..train.model import GlocalNet

NAMES = ("k_s", "k_e", "roi_size")
MOST_BOXES = 1024  # that the local graph is exported for
MOST_CELLS = 64  # of a region's side; far beyond the feature map of any sensible input


@dataclass(frozen=True)
class Overrides:
    """What to change; None for what stays as it was trained.

    Attributes:
        k_s: Categories whose regions are proposed, per image; more than there are labels means all of them.
        k_e: Regions per category.
        roi_size: Side of a pooled region in cells.

    Raises:
        UsageError: A value is less than 1, or beyond `MOST_CELLS`.
    """

    k_s: int | None = None
    k_e: int | None = None
    roi_size: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            option = "--" + name.replace("_", "-")
            if value < 1:
                raise UsageError(f"{option} must be at least 1", found=str(value), fix="leave it out for the model's")
            if name == "roi_size" and value > MOST_CELLS:
                raise UsageError(f"{option} must be at most {MOST_CELLS}", found=str(value), fix="such as 2 or 3")

    def given(self) -> dict[str, int]:
        """The values to change, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def override(model: GlocalNet, overrides: Overrides) -> dict[str, tuple[int, int]]:
    """Change a network of two branches, for good.

    Args:
        model: The network.
        overrides: What to change.

    Returns:
        What is another now, as (before, after) by name.

    Raises:
        UsageError: There would be too many boxes, or regions that the local stage cannot take.
    """
    config, local = model.config, model.local_branch
    changed = {
        name: (getattr(config, name), value)
        for name, value in overrides.given().items()
        if getattr(config, name) != value
    }
    if not changed or local is None:
        return {}
    model.config = config.model_copy(update={name: after for name, (_, after) in changed.items()})
    if model.config.k_o > MOST_BOXES:
        found = f"{model.config.k_s} x {model.config.k_e} x {1 + len(config.zetas)} boxes"
        raise UsageError(
            f"an image may have at most {MOST_BOXES} boxes", found=found, fix="give a lower --k-s or --k-e"
        )
    if "roi_size" in changed:
        local.roi_size = model.config.roi_size
        _check_size(model)
    return changed


def overrides_of(bundle: Bundle) -> Overrides:
    """What was changed when a bundle was exported.

    Raises:
        BundleError: Its provenance does not say so in whole numbers.
    """
    noted = {name: text for name, text in bundle.manifest.provenance.items() if name in NAMES}
    try:
        return Overrides(**{name: int(text) for name, text in noted.items()})
    except (ValueError, UsageError) as error:
        found = ", ".join(f"{name} {text!r}" for name, text in noted.items())
        fix = "Export the bundle again."
        raise BundleError(f"The provenance of {bundle.path} has unusable settings.", found=found, fix=fix) from error


def _check_size(model: GlocalNet) -> None:
    """Run the local branch once: a stage of its own may need more cells than a region has now."""
    import torch

    assert model.local_branch is not None  # for mypy: checked above
    try:
        with torch.inference_mode():
            out = model.global_branch.eval()(torch.zeros(1, *model.config.image_size, 3, dtype=torch.uint8))
            box = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
            model.local_branch.eval()(out.features, out.global_feature, box, torch.ones(1, 1))
    except RuntimeError as error:
        raise UsageError(
            f"--roi-size {model.config.roi_size} does not fit the local stage of {model.config.backbone}",
            found=str(error).splitlines()[0],
            fix="give a larger one",
        ) from error
