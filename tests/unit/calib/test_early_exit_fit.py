"""Fitting the thresholds of an early exit, and the command that does it."""

import json

import numpy as np
import pytest
from glocal.calib.early_exit import _grid, _Mixes, _of1_of_mixes, fit_early_exit
from glocal.export.early_exit_cli import early_exit
from glocal.runtime.bundle import Bundle
from glocal.runtime.early_exit import decided
from glocal.runtime.errors import CalibrationError, DataError, UsageError
from glocal.runtime.metrics import multilabel_metrics
from glocal.runtime.pipeline import Pipeline
from glocal.train.digits import CLASSES
from small_model import make_bundle
from typer import Typer
from typer.testing import CliRunner


def case(seed, images=120, labels=6, noise=1.5, ignored=0.05, digits=9):
    """Global scores that know less than the fused ones; few digits make equal scores."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, labels)) < 0.3).astype(np.int8)
    targets[rng.random(targets.shape) < ignored] = -1
    fused = 4.0 * (targets == 1) - 2 + rng.normal(size=targets.shape)
    alone = fused + rng.normal(size=targets.shape, scale=noise)
    scores = [(1 / (1 + np.exp(-logits))).round(digits).astype(np.float32) for logits in (alone, fused)]
    return *scores, targets, rng.uniform(0.3, 0.6, labels).astype(np.float32)


def figures(alone, fused, targets, thresholds, found):
    mixed = np.where(decided(alone, (found.low, found.high))[:, None], alone, fused)
    return multilabel_metrics(mixed, targets, thresholds)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("digits", [2, 9])
def test_the_loss_is_never_above_the_limit_and_more_loss_never_lets_fewer_exit(seed, digits):
    given = case(seed, noise=0.5 + seed / 3, digits=digits)
    shares = []
    for limit in (0, 0.1, 0.5, 2, 100):
        found = fit_early_exit(*given, max_loss=limit)
        after = figures(*given, found)
        before = multilabel_metrics(given[1], *given[2:])
        for name in ("mAP", "OF1"):
            assert after[name] >= before[name] - limit / 100
            assert (found.before[name], found.after[name]) == (before[name], after[name])
        assert found.exits == decided(given[0], (found.low, found.high)).mean()
        assert 0 <= found.low <= found.high <= 1
        shares.append(found.exits)
    assert shares == sorted(shares)
    assert shares[-1] == 1  # whatever it costs
    assert shares[0] < 1


def test_no_other_pair_of_the_grid_that_keeps_the_limit_lets_more_exit():
    given = case(1)
    found = fit_early_exit(*given, max_loss=1)
    before = multilabel_metrics(given[1], *given[2:])
    best = 0.0
    for low, high in _grid(given[0], given[2]):
        mask = decided(given[0], (low, high))
        after = multilabel_metrics(np.where(mask[:, None], given[0], given[1]), *given[2:])
        if all(after[name] >= before[name] - 0.01 for name in ("mAP", "OF1")):
            best = max(best, mask.mean())
    assert found.exits == best > 0


def test_where_the_global_scores_are_useless_nobody_exits():
    _, fused, targets, thresholds = case(0, ignored=0)
    wrong = np.where(targets == 1, 0.02, 0.98).astype(np.float32) + np.linspace(0, 0.01, len(targets))[:, None]
    found = fit_early_exit(wrong.astype(np.float32), fused, targets, thresholds, max_loss=0)
    assert (found.low, found.high, found.exits) == (0, 1, 0)
    assert found.after == found.before


def test_where_the_global_scores_are_as_good_all_exit():
    _, fused, targets, thresholds = case(0)
    assert fit_early_exit(fused, fused, targets, thresholds, max_loss=0).exits == 1


def test_the_answer_is_the_same_each_time():
    assert fit_early_exit(*case(3)) == fit_early_exit(*case(3))


@pytest.mark.parametrize("digits", [1, 9])
def test_the_quick_figures_are_those_of_the_metrics(digits):
    alone, fused, targets, thresholds = case(2, digits=digits)
    targets[:, 2] = np.where(targets[:, 2] == 1, 0, targets[:, 2])  # a class without a positive
    masks = np.random.default_rng(0).random((5, len(alone))) < np.linspace(0, 1, 5)[:, None]
    of1, mixes = _of1_of_mixes(alone, fused, targets, thresholds.astype(float), masks), _Mixes(alone, fused, targets)
    for mask, quick in zip(masks, of1, strict=True):
        exact = multilabel_metrics(np.where(mask[:, None], alone, fused), targets, thresholds)
        assert quick == pytest.approx(exact["OF1"], abs=1e-12)
        assert mixes.mean_precision(mask) == pytest.approx(exact["mAP"], abs=1e-12)


def test_scores_of_exactly_0_and_1_may_make_it_impossible():
    _, fused, targets, thresholds = case(0, ignored=0)
    wrong = (targets != 1).astype(np.float32)
    with pytest.raises(CalibrationError, match="all 0 or 1"):
        fit_early_exit(wrong, fused, targets, thresholds, max_loss=0)


@pytest.mark.parametrize("loss", [-0.1, float("nan")])
def test_wrong_arguments(loss):
    alone, fused, targets, thresholds = case(0)
    with pytest.raises(UsageError, match="at least 0"):
        fit_early_exit(alone, fused, targets, thresholds, max_loss=loss)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        fit_early_exit(alone + 1, fused, targets, thresholds)
    with pytest.raises(ValueError, match="one shape"):
        fit_early_exit(alone[:5], fused, targets, thresholds)


@pytest.fixture
def fit(tmp_path):
    make_bundle(tmp_path / "bundle", labels=CLASSES)
    app = Typer(pretty_exceptions_enable=False)
    app.command()(early_exit)

    def start(*args: str):
        common = ["--data", "digits", "--length", "60", "--threads", "1"]
        return CliRunner().invoke(app, [str(tmp_path / "bundle"), *common, *args])

    return start


def test_the_command_writes_thresholds_that_do_what_it_says(fit, tmp_path):
    done = fit("--limit", "40", "--max-loss", "1", "--json", str(tmp_path / "exit.json"))
    assert done.exit_code == 0, done.exception
    facts = json.loads((tmp_path / "exit.json").read_text())
    assert (facts["split"], facts["images"], facts["max_loss"]) == ("val", 40, 1)
    found = facts["results"]["fp32"]
    manifest = Bundle.load(tmp_path / "bundle").manifest
    assert manifest.early_exit == {"fp32": (found["low"], found["high"])}
    assert manifest.provenance["fp32_early_exit"] == "digits val, 40 images, at most 1.0 points"
    assert f"{100 * found['exits']:.2f}" in done.output
    with Pipeline.load(tmp_path / "bundle", threads=1, early_exit=True):
        pass


def test_nothing_is_written_when_something_is_wrong(fit, tmp_path):
    before = Bundle.load(tmp_path / "bundle")
    assert isinstance(fit("--precision", "int8").exception, UsageError)
    assert isinstance(fit("--precision", "fp8").exception, UsageError)
    assert isinstance(fit("--split", "nowhere").exception, UsageError)
    make_bundle(tmp_path / "other")
    app = Typer(pretty_exceptions_enable=False)
    app.command()(early_exit)
    other = CliRunner().invoke(app, [str(tmp_path / "other"), "--data", "digits"])
    assert isinstance(other.exception, DataError)
    assert Bundle.load(tmp_path / "bundle") == before
