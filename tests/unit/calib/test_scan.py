import time

import pytest
from glocal.calib import scan as module
from glocal.calib.graph import default_exclude
from glocal.calib.scan import Point, State, choose, ranking, scan
from glocal.calib.scan_plot import plot
from glocal.runtime.errors import CalibrationError

BLOCKS = ["global/trunk.0", "global/trunk.1", "global/trunk.2", "local/stage.0"]


@pytest.fixture
def run(bundle, graphs, table, labelled, tmp_path):
    exclude = default_exclude(graphs.values())

    def start(method="minmax", share=0.99, seconds=60.0):
        file = tmp_path / "scan.json"
        return scan(
            bundle, graphs, table, method, exclude, labelled, file, share=share, seconds=seconds, threads=1
        )  # fmt: skip

    start.file = tmp_path / "scan.json"
    return start


@pytest.fixture
def counted(monkeypatch) -> list[tuple[str, ...]]:
    """What is tried, in order."""
    tried: list[tuple[str, ...]] = []
    point = module.Bench.point

    def count(self, blocks, base_ms):
        tried.append(blocks)
        return point(self, blocks, base_ms)

    monkeypatch.setattr(module.Bench, "point", count)
    return tried


def test_each_block_is_tried_and_then_the_best_together(run, counted):
    result = run()
    assert [blocks for blocks in counted if len(blocks) == 1] == [(block,) for block in BLOCKS]
    best = ranking(result.state)
    assert counted[4:] == [tuple(best[:n]) for n in range(2, len(best) + 1)]
    assert result.untried == ()
    assert result.state.fp32.mAP == pytest.approx(1)
    assert result.state.fp32.score_shift == 0 < result.state.int8.score_shift
    # what is left in fp32 brings the scores nearer to it
    assert min(point.score_shift for point in result.state.trials.values()) < result.state.int8.score_shift
    assert State.model_validate_json(run.file.read_bytes()) == result.state
    assert plot(result.state, result.chosen, 0.99).startswith(b"\x89PNG")


def test_a_scan_goes_on_where_it_ended(run, counted, monkeypatch):
    finish = module._save

    def break_off(file, state):
        finish(file, state)
        if len(state.trials) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_save", break_off)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert len(counted) == 2
    monkeypatch.setattr(module, "_save", finish)
    state = State.model_validate_json(run.file.read_bytes())
    result = run()
    assert counted[2] == (BLOCKS[2],)  # the first two are not tried again
    assert {name: result.state.trials[name] for name in state.trials} == state.trials
    assert run() == result  # and a finished scan has nothing to do


def test_no_trial_begins_that_would_end_too_late(run, counted, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    point = module.Bench.point

    def slow(self, blocks, base_ms):
        clock[0] += 10
        return point(self, blocks, base_ms)

    monkeypatch.setattr(module.Bench, "point", slow)
    result = run(seconds=25)
    assert counted == [(BLOCKS[0],), (BLOCKS[1],)]
    assert result.untried == (BLOCKS[2], BLOCKS[3])
    assert run(seconds=-1).untried == result.untried
    assert run(seconds=1000).untried == ()


def test_the_state_of_another_scan_is_refused(run):
    run(seconds=-1)
    with pytest.raises(CalibrationError, match="another model, table, method or data"):
        run(method="mse")
    run.file.write_text("{}")
    with pytest.raises(CalibrationError, match="no state of a scan"):
        run()


def test_what_noise_has_made_fast_is_timed_again(run, monkeypatch):
    """A first timing of a hundredth of the truth does not decide."""
    times: dict[tuple[str, ...], int] = {}

    def ms(self, blocks, base_ms):
        times[blocks] = times.get(blocks, 0) + 1
        return 0.01 if blocks == (BLOCKS[1],) and times[blocks] == 1 else 2 * base_ms

    monkeypatch.setattr(module.Bench, "ms", ms)
    result = run(share=0.5)
    assert times[BLOCKS[1],] == 2
    assert result.chosen == ()
    assert result.state.trials[BLOCKS[1]].ms_again > 1.9 * result.state.int8.ms
    assert run(share=0.5) == result
    assert times[BLOCKS[1],] == 2


def state(**trials: tuple[float, float, float]) -> State:
    def make(mean: float, shift: float, ms: float) -> Point:
        return Point(mAP=mean, score_shift=shift, same_boxes=1, ms=ms)

    points = {name.replace("_", " "): make(*values) for name, values in trials.items()}
    return State(key="x", fp32=make(0.8, 0, 30), int8=make(0.7, 0.05, 10), trials=points)


def test_blocks_are_ranked_by_what_a_millisecond_gives_back():
    known = state(cheap=(0.7, 0.04, 11), dear=(0.7, 0.02, 20), free=(0.7, 0.049, 9.5), bad=(0.7, 0.06, 8))
    assert ranking(known) == ["free", "cheap", "dear"]


def test_the_fastest_point_that_keeps_the_share_is_chosen():
    known = state(a=(0.75, 0.03, 11), b=(0.795, 0.03, 14), c=(0.8, 0.02, 14.5), a_c=(0.8, 0.01, 16))
    assert choose(known, 0.99) == ("c",)  # b is as fast, within what timing tells apart, and farther from fp32
    assert choose(known, 0.8) == ()
    assert choose(known, 1.01) == ("c",) or known.trials["a c"].mAP == known.trials["c"].mAP
