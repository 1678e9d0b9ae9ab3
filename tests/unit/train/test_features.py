import numpy as np
import pytest
import torch
from glocal.runtime.errors import DataError, UsageError
from glocal.train.checkpoint import load_model
from glocal.train.data import TrainImages, open_data
from glocal.train.features import keep_features
from glocal.train.fit import fit
from glocal.train.settings import TrainConfig

SIZE = (64, 64)


@pytest.fixture
def scenes():
    return open_data("digits", "train", length=6, size=64)


@pytest.fixture
def branch(build_model):
    model = build_model("glocal", image_size=SIZE)
    model.global_branch.freeze_trunk()
    return model.global_branch


def keep(branch, scenes, folder, **options):
    return keep_features(branch, scenes, SIZE, folder, workers=0, **options)


def test_kept_features_are_those_of_the_trunk(branch, scenes, tmp_path):
    kept = keep(branch, scenes, tmp_path, views=2, augment=True)
    assert len(kept) == 6
    images = TrainImages(scenes, SIZE, augment=True, seed=0)
    seen = []
    for epoch in range(3):
        kept.set_epoch(epoch)
        images.set_epoch(epoch % 2)
        for index in (0, 5):
            features, target = kept[index]
            pixels, label = images[index]
            with torch.inference_mode():
                expected = branch.trunk_features(pixels[None])[0]
            torch.testing.assert_close(features, expected, atol=2e-3, rtol=2e-3)
            assert torch.equal(target, label)
        seen.append(features)
    assert torch.equal(seen[0], seen[2])  # view 0 again
    assert not torch.equal(seen[0], seen[1])


def test_the_network_gives_the_same_on_images_and_on_their_features(build_model):
    model = build_model("glocal", image_size=SIZE)
    images = torch.randint(0, 256, (2, *SIZE, 3), dtype=torch.uint8)
    with torch.inference_mode():
        features = model.global_branch.trunk_features(images)
        torch.testing.assert_close(model(features).scores, model(images).scores)


def test_features_are_computed_once_and_for_these_weights_only(branch, scenes, tmp_path):
    first = keep(branch, scenes, tmp_path)
    before = first.views[0].stat().st_mtime_ns
    assert keep(branch, scenes, tmp_path).views == first.views
    assert first.views[0].stat().st_mtime_ns == before
    with torch.no_grad():
        next(branch.trunk.parameters()).mul_(1.5)
    other = keep(branch, scenes, tmp_path)
    assert other.views != first.views
    assert not torch.equal(other[0][0], first[0][0])


def test_an_interrupted_view_leaves_nothing_behind(branch, scenes, tmp_path, monkeypatch):
    calls = iter(range(10))

    def trunk(x):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return torch.zeros(len(x), 4, 4, 4)

    monkeypatch.setattr(branch, "trunk_features", trunk)
    with pytest.raises(KeyboardInterrupt):
        keep(branch, scenes, tmp_path, batch=2)
    assert list(tmp_path.iterdir()) == []


def test_features_that_overflow_are_refused(branch, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(branch, "trunk_features", lambda x: torch.full((len(x), 4, 4, 4), 1e6))
    with pytest.raises(DataError, match="do not fit into 16 bits"):
        keep(branch, scenes, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_clear_error(branch, scenes, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="features cannot be kept"):
        keep(branch, scenes, tmp_path / "file" / "cache")


SMALL = {
    "data": "digits",
    "backbone": "test_resnet",
    "image_size": 64,
    "epochs": 2,
    "batch": 8,
    "train_images": 16,
    "val_images": 8,
    "workers": 0,
}


def test_training_on_kept_features_leaves_the_trunk_alone(tmp_path):
    cached = {"freeze": "spatial", "views": 2, "cache": str(tmp_path / "cache")}
    out = fit(TrainConfig(**SMALL, **cached), tmp_path / "run", quiet=True)
    plain = fit(TrainConfig(**SMALL, freeze="trunk"), tmp_path / "plain", quiet=True)
    assert len(list((tmp_path / "cache").iterdir())) == 3
    a, b = load_model(out).model.state_dict(), load_model(plain).model.state_dict()
    trunk = [key for key in a if ".trunk." in key]
    assert trunk
    # Both start from the same seed, and neither moves weights nor statistics of the trunk.
    assert all(torch.equal(a[key], b[key]) for key in trunk)
    assert not all(torch.equal(a[key], b[key]) for key in a if ".tail." in key)


def test_views_without_a_frozen_trunk_are_refused(tmp_path):
    with pytest.raises(UsageError, match="kept views need a frozen trunk"):
        fit(TrainConfig(**SMALL, views=2), tmp_path / "run", quiet=True)


def test_negative_targets_come_through(branch, scenes, tmp_path):
    scenes.targets[0, 3] = -1
    assert keep(branch, scenes, tmp_path)[0][1][3] == -1
    assert np.array_equal(keep(branch, scenes, tmp_path).targets, scenes.targets)
