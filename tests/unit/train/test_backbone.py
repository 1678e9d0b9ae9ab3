import pytest
import torch
from glocal.runtime.errors import UsageError
from glocal.train.backbone import create_timm_model, split


@pytest.mark.parametrize(
    ("name", "channels16", "channels32"),
    [
        ("resnet18", 256, 512),
        ("tf_efficientnet_lite0", 112, 1280),
        ("regnetx_002", 152, 368),
        ("mobilenetv3_small_050", 24, 288),
        ("convnext_atto", 160, 320),
    ],
)
def test_split_keeps_the_function(name, channels16, channels32):
    """Split runs the chain itself against forward_features; here again on another size, and the shapes."""
    model = create_timm_model(name).eval()
    backbone = split(model, name)
    x = torch.randn(1, 3, 96, 160)
    with torch.inference_mode():
        f16 = backbone.trunk.eval()(x)
        f32 = backbone.tail.eval()(f16)
        torch.testing.assert_close(f32, model.eval().forward_features(x), atol=1e-4, rtol=1e-4)
    assert f16.shape == (1, channels16, 6, 10)
    assert f32.shape == (1, channels32, 3, 5)
    assert (backbone.channels16, backbone.channels32) == (channels16, channels32)


def test_unknown_backbone_names_similar_ones():
    with pytest.raises(UsageError, match="resnet18"):
        create_timm_model("resnet18x")


def test_a_backbone_without_feature_maps_is_refused():
    with pytest.raises(UsageError, match="cannot be split"):
        split(create_timm_model("test_vit"), "test_vit")
