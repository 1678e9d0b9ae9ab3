import json
import pickle

import numpy as np
import pytest
import torch
from glocal.runtime.errors import CheckpointError, UsageError
from glocal.train.checkpoint import MODEL_FILE, SafetensorsIO, load_model, save_model
from safetensors import safe_open
from safetensors.torch import save_file


@pytest.fixture
def saved(tmp_path, model):
    path = tmp_path / "run" / MODEL_FILE
    save_model(path, model, {"data": "digits"}, {"mAP": 0.5})
    return path


def test_a_model_comes_back_as_it_was(saved, model, images):
    loaded = load_model(saved.parent)
    assert loaded.model.config == model.config
    assert loaded.training == {"data": "digits"}
    assert loaded.metrics == {"mAP": 0.5}
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(images).scores, model(images).scores, rtol=0, atol=0)


def test_thresholds_come_back_exactly(saved, model):
    assert load_model(saved).thresholds is None
    thresholds = np.random.default_rng(0).random(7).astype(np.float32)
    save_model(saved, model, {}, {}, thresholds)
    np.testing.assert_array_equal(np.array(load_model(saved).thresholds, np.float32), thresholds)
    save_model(saved, model, {}, {}, thresholds[:3])
    with pytest.raises(CheckpointError, match="3 thresholds, 7 classes"):
        load_model(saved)


def test_a_file_from_before_there_were_thresholds_loads(saved, model):
    save_model(saved, model, {}, {}, [0.25] * 7)
    with safe_open(saved, framework="pt") as file:
        header = json.loads(file.metadata()["glocal"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    del header["thresholds"]
    save_file(tensors, saved, {"glocal": json.dumps(header)})
    assert load_model(saved).thresholds is None


def test_a_shared_head_stays_shared(saved):
    loaded = load_model(saved).model
    shared = loaded.global_branch.head is loaded.local_branch.head
    assert shared == loaded.config.shared_local_head
    assert (loaded.global_branch.head is loaded.global_branch.map_head) == loaded.config.shared_map_head


def test_a_pickle_is_refused(tmp_path):
    for name, write in (
        ("zip.safetensors", torch.save),
        ("raw.safetensors", lambda x, p: p.write_bytes(pickle.dumps(x))),
    ):
        write({"a": torch.zeros(2)}, tmp_path / name)
        with pytest.raises(CheckpointError, match="a pickle") as error:
            load_model(tmp_path / name)
        assert "never loaded" in str(error.value)


def test_damage_is_found(saved):
    data = saved.read_bytes()
    saved.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="no safetensors checkpoint"):
        load_model(saved)
    saved.write_bytes(b"")
    with pytest.raises(CheckpointError):
        load_model(saved)


def test_nothing_there(tmp_path):
    with pytest.raises(UsageError, match="no checkpoint"):
        load_model(tmp_path)


def test_an_interrupted_write_keeps_the_old_file(saved, model, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_model(saved, model, {}, {})
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [MODEL_FILE]


def test_training_state_round_trip(tmp_path):
    state = {
        "epoch": 3,
        "optimizer_states": [
            {"state": {0: {"step": torch.tensor(5.0)}, 1: {"m": torch.eye(2)}}, "groups": [{"lr": 0.1}]}
        ],
        "betas": (0.9, 0.999),
        "best": float("inf"),
        "none": None,
    }
    SafetensorsIO().save_checkpoint(state, tmp_path / "last.safetensors")
    back = SafetensorsIO().load_checkpoint(tmp_path / "last.safetensors")
    assert json.dumps(str(back)) == json.dumps(str(state))
    torch.testing.assert_close(back["optimizer_states"][0]["state"][1]["m"], torch.eye(2))


def test_state_that_json_cannot_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"\.a\.b has a set"):
        SafetensorsIO().save_checkpoint({"a": {"b": {1}}}, tmp_path / "x.safetensors")
