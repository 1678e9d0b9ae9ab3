import pickle

import pytest
import torch
from glocal.runtime.errors import CheckpointError, UsageError
from glocal.runtime.images import resize
from glocal.train.backbone import create_timm_model
from glocal.train.weights import load_backbone
from safetensors.torch import save_file


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return create_timm_model("test_resnet").state_dict() | {
        "fc.weight": torch.zeros(10, 96),
        "fc.bias": torch.zeros(10),
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_file_is_loaded(tmp_path, state, suffix):
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    start = load_backbone("test_resnet", path)
    torch.testing.assert_close(start.backbone.trunk[0].weight, state["conv1.0.weight"])


def test_weights_of_another_backbone_are_refused(tmp_path, state):
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="does not hold the weights of resnet18"):
        load_backbone("resnet18", tmp_path / "other.safetensors")


class Exploit:
    def __reduce__(self):
        return (print, ("pickle was executed",))


@pytest.mark.parametrize("name", ["evil.pth", "evil.safetensors"])
def test_a_pickle_is_refused_without_running_it(tmp_path, capsys, name):
    (tmp_path / name).write_bytes(pickle.dumps({"conv1.weight": Exploit()}, protocol=2))
    with pytest.raises(CheckpointError, match="never loaded"):
        load_backbone("test_resnet", tmp_path / name)
    assert "executed" not in capsys.readouterr().out


def test_a_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no weights file"):
        load_backbone("test_resnet", tmp_path / "none.safetensors")


def test_without_the_hub_the_local_file_is_offered(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read once, when it is imported
    with pytest.raises(UsageError, match="--weights PATH"):
        load_backbone("test_efficientnet", "hub")


def test_imagenet_weights_of_efficientnet_lite_see_photos(photo_data):
    """Keys, normalisation and padding are right if the original classifier, put back, names what photos show."""
    path = photo_data.parent / "weights" / "efficientnet_lite0_imagenet_fp16.safetensors"
    if not path.is_file():
        pytest.skip("the EfficientNet-Lite0 weights file is not beside GLOCAL_DATA")
    from safetensors.torch import load_file
    from sklearn.datasets import load_sample_images

    start = load_backbone("tf_efficientnet_lite0", path)
    classifier = load_file(path)
    mean, std = torch.tensor(start.mean), torch.tensor(start.std)
    china, flower = (torch.from_numpy(resize(photo, (224, 224))) for photo in load_sample_images().images)
    x = ((torch.stack([china, flower]).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        features = start.backbone.tail.eval()(start.backbone.trunk.eval()(x)).mean((2, 3))
    logits = features @ classifier["_fc.weight"].float().T + classifier["_fc.bias"].float()
    top = logits.topk(3).indices.tolist()
    assert 698 in top[0] or 497 in top[0] or 832 in top[0], top[0]  # palace, church, stupa
    assert 985 in top[1] or 986 in top[1] or 308 in top[1] or 723 in top[1], top[1]  # daisy and what holds flowers
