"""The TensorRT runtime on stand-ins for TensorRT, PyCUDA and libcuda, by the names of each TensorRT version."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from fakes.fixtures import BATCH, GLOBAL_PROFILE, LOCAL_PROFILE, PLANS, Open, compare, pictures, proposals
from fakes.gpu import Gpu
from fakes.tensorrt import make_plan
from glocal.runtime import Pipeline
from glocal.runtime.backends import GlobalOutputs
from glocal.runtime.backends.onnxruntime import OnnxRuntimeEngines
from glocal.runtime.errors import BundleError, EngineError, UsageError
from glocal.runtime.manifest import make_manifest
from glocal.runtime.selector import RegionSelector
from tiny_model import FIELDS, FILES, GLOBAL, LOCAL, black_is_nan, graph

HALF = {"float[B, 3, 4, 6] features": "float16[B, 3, 4, 6] features", "float[B, 3] global": "float16[B, 3] global"}


def test_every_version_computes_what_onnx_runtime_does(
    version: str, opened: Open, reference: OnnxRuntimeEngines
) -> None:
    engines = opened(version)
    assert (engines.input_size, engines.labels, engines.max_batch) == ((64, 96), 3, BATCH)
    sizes = [(1, 1), (1, 8), (1, 9), (4, 20), (3, 17), (2, 1), (1, 1), (4, 20), (1, 5), (4, 18), (1, 9), (4, 20)]
    for seed, (batch, boxes) in enumerate(sizes * 2):
        compare(engines, reference, seed, batch, boxes)


def test_pipelines_of_both_backends_predict_the_same(version: str, opened: Open) -> None:
    files = dict.fromkeys(FILES, "0" * 64)
    manifest = make_manifest({**FIELDS, "files": files}, "tiny")
    images = [*pictures(0, 11)]
    pipelines = []
    for engines in (opened(version), OnnxRuntimeEngines(FILES["fp32/global.onnx"], FILES["fp32/local.onnx"], 1)):
        selector = RegionSelector(np.full(3, 0.1, np.float32), 2, 2, (0.5, 1.0))
        pipelines.append(Pipeline(manifest, "fp32", engines, selector))
    for batch in (1, 3, 8):  # 8 is more than the plans take
        ours, theirs = (pipeline.predict(images, batch=batch) for pipeline in pipelines)
        for one, other in zip(ours, theirs, strict=True):
            assert one.error is None
            assert (one.labels, [region.box for region in one.regions]) == (
                other.labels,
                [region.box for region in other.regions],
            )
            np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)
    pipelines[0].close()
    with pytest.raises(UsageError, match="closed"):
        pipelines[0].predict(images)


def test_copies_to_and_from_the_gpu_are_stages_of_their_own(opened: Open) -> None:
    engines = opened()
    outputs = engines.run_global(pictures(0, BATCH + 1))  # two parts
    assert outputs.to_device_ms > 0
    assert outputs.to_host_ms > 0
    manifest = make_manifest({**FIELDS, "files": dict.fromkeys(FILES, "0" * 64)}, "tiny")
    selector = RegionSelector(np.full(3, 0.1, np.float32), 2, 2, (0.5, 1.0))
    with Pipeline(manifest, "fp32", engines, selector) as pipeline:
        timings = pipeline.predict([*pictures(0, 1)])[0].timings
    assert min(timings[stage] for stage in ("to_device", "global", "to_host")) > 0


def test_half_precision_features_stay_on_the_device(version: str, opened: Open) -> None:
    files = []
    for text, lines in (
        (GLOBAL, {"features = Average": "wide = Average", "global_feature = Reduce": "whole = Reduce"}),
        (LOCAL, {"(features, rois": "(wide, rois", "Mul (global_feature": "Mul (whole"}),
    ):
        for old, new in {**HALF, **lines}.items():
            assert old in text
            text = text.replace(old, new)
        files.append(text)
    casts = "  features = Cast <to = 10> (wide)\n  global_feature = Cast <to = 10> (whole)\n"
    files[0] = files[0].replace("  class_maps = Conv", casts + "  class_maps = Conv")
    back = "{\n  wide = Cast <to = 1> (features)\n  whole = Cast <to = 1> (global_feature)\n"
    files[1] = back.join(files[1].rsplit("{\n", 1))
    graphs = [graph(text) for text in files]
    plans = [make_plan(each, profile) for each, profile in zip(graphs, (GLOBAL_PROFILE, LOCAL_PROFILE), strict=True)]
    engines = opened(version, plans)
    for seed in range(6):
        compare(engines, OnnxRuntimeEngines(*graphs, 1), seed, 3, 7)


def test_outputs_are_kept_for_as_many_calls_as_was_said(opened: Open, reference: OnnxRuntimeEngines) -> None:
    for in_flight in (1, 2, 3):
        engines = opened(in_flight=in_flight)
        outputs = [engines.run_global(pictures(seed, 2)) for seed in range(in_flight + 1)]
        boxes, counts = proposals(0, 2, 3)
        with pytest.raises(UsageError, match="no longer on the device") as caught:
            engines.run_local(outputs[0], boxes, counts)
        assert "in_flight" in caught.value.fix
        for seed in range(1, in_flight + 1):
            expected = reference.run_local(reference.run_global(pictures(seed, 2)), boxes, counts)
            for _ in range(2):  # an output may be used again
                np.testing.assert_allclose(engines.run_local(outputs[seed], boxes, counts), expected, rtol=1e-5)


def test_the_global_engine_does_not_overtake_the_local_one(gpu: Gpu, opened: Open, monkeypatch: Any) -> None:
    """The next batch is written to the same memory while the local engine has not yet read it."""
    engines = opened(in_flight=1, cuda_graphs=False)
    outputs = engines.run_global(pictures(1, 1))
    boxes, counts = proposals(1, 1, 3)
    expected = engines.run_local(outputs, boxes, counts)
    synchronize, meanwhile = gpu.synchronize, []
    local = engines._engines[1].stream._queue

    def overtake(queue: Any) -> None:
        if queue is local and not meanwhile:
            meanwhile.append(True)
            other = threading.Thread(target=engines.run_global, args=(pictures(2, 1),))
            other.start()
            other.join()
        synchronize(queue)

    monkeypatch.setattr(gpu, "synchronize", overtake)
    np.testing.assert_array_equal(engines.run_local(outputs, boxes, counts), expected)
    assert meanwhile
    with pytest.raises(UsageError, match="no longer"):
        engines.run_local(outputs, boxes, counts)


def test_a_batch_that_is_too_large_runs_in_parts(opened: Open, reference: OnnxRuntimeEngines) -> None:
    engines = opened()
    for seed, batch in enumerate((9, 4, 5, 1, 13, 9, 9, 9)):
        compare(engines, reference, seed, batch, 6)


def test_both_engines_run_at_once(opened: Open, reference: OnnxRuntimeEngines) -> None:
    engines = opened()
    boxes, counts = proposals(0, 2, 5)
    expected = [reference.run_local(reference.run_global(pictures(seed, 2)), boxes, counts) for seed in range(40)]
    ready: list[GlobalOutputs] = []
    room, filled, found = threading.Semaphore(1), threading.Semaphore(0), []

    def local() -> None:
        for _ in expected:
            assert filled.acquire(timeout=60)
            found.append(engines.run_local(ready.pop(0), boxes, counts))
            room.release()

    thread = threading.Thread(target=local)
    thread.start()
    for seed in range(40):
        outputs = engines.run_global(pictures(seed, 2))  # while the local engine may still run the batch before
        assert room.acquire(timeout=60)
        ready.append(outputs)
        filled.release()
    thread.join()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_threads_with_engines_of_their_own(gpu: Gpu, opened: Open, reference: OnnxRuntimeEngines) -> None:
    problems: list[Any] = []

    def work(seed: int) -> None:
        try:
            engines = opened()
            for call in range(6):
                compare(engines, reference, 100 * seed + call, 1 + call % 3, 5)
            engines.close()
            assert gpu.stack == []
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert gpu.calls.count("retain_primary_context") == 1


@pytest.mark.parametrize(
    ("which", "text", "message"),
    [
        (0, GLOBAL.replace("] image", "] picture").replace("(image)", "(picture)"), "inputs of the global graph"),
        (0, GLOBAL.replace("uint8[B", "float[B"), "image has the wrong type"),
        (1, LOCAL.replace("[B, 3, 4, 6]", "[B, 3, 8, 12]"), "features does not fit"),
        (1, LOCAL.replace("float[B, K] counts", "float[B, 20] counts"), "counts has the wrong type or shape"),
    ],
)
def test_plans_that_break_the_contract_are_refused(which: int, text: str, message: str, opened: Open) -> None:
    profiles = [
        {**GLOBAL_PROFILE, "picture": GLOBAL_PROFILE["image"]},
        {**LOCAL_PROFILE, "features": ((1, 3, 8, 12), (4, 3, 8, 12))}
        if "8, 12" in text
        else {**LOCAL_PROFILE, "boxes": ((1, 20, 4), (4, 20, 4)), "counts": ((1, 20), (4, 20))},
    ]
    plans = [*PLANS]
    plans[which] = make_plan(graph(text), profiles[which])
    with pytest.raises(BundleError, match=message) as caught:
        opened(plans=plans)
    assert "glocal export BUNDLE --backend tensorrt" in caught.value.fix


def test_plans_that_cannot_be_loaded_are_refused(version: str, gpu: Gpu, opened: Open) -> None:
    with pytest.raises(EngineError, match="cannot load the local plan") as caught:
        opened(version, (PLANS[0], b"not a plan"))
    assert "magicTagRead" in caught.value.found
    gpu.failures["create_execution_context"] = 2
    with pytest.raises(EngineError, match="cannot make an execution context"):
        opened(version)


@pytest.mark.parametrize(
    ("profile", "boxes"),
    [
        ({}, 21),
        ({name: ((2, *shapes[0][1:]), shapes[1]) for name, shapes in LOCAL_PROFILE.items()}, 20),
        ({"boxes": ((1, 9, 4), (4, 20, 4)), "counts": ((1, 9), (4, 20))}, 20),
    ],
)
def test_plans_for_other_sizes_are_refused(profile: dict, boxes: int, opened: Open) -> None:
    plans = (PLANS[0], make_plan(FILES["fp32/local.onnx"], {**LOCAL_PROFILE, **profile}))
    with pytest.raises(EngineError, match="must take single images") as caught:
        opened(plans=plans, max_boxes=boxes)
    assert "20 boxes" in caught.value.found


def test_an_engine_that_fails_is_an_error_and_the_next_call_works(
    version: str, gpu: Gpu, opened: Open, reference: OnnxRuntimeEngines
) -> None:
    engines = opened(version)
    outputs = engines.run_global(pictures(0, 2))
    gpu.failures["execute_async_v3"] = 1
    with pytest.raises(EngineError, match="global engine failed") as caught:
        engines.run_global(pictures(0, 2))
    assert "Cask" in caught.value.found
    with pytest.raises(EngineError, match="local engine failed"):
        engines.run_local(outputs, *proposals(0, 2, 3))
    gpu.failures.clear()
    compare(engines, reference, 1, 2, 3)


def test_values_that_are_not_finite_are_an_error_of_their_image(opened: Open) -> None:
    plans = (make_plan(graph(black_is_nan(GLOBAL)), GLOBAL_PROFILE), PLANS[1])
    manifest = make_manifest({**FIELDS, "files": dict.fromkeys(FILES, "0" * 64)}, "tiny")
    selector = RegionSelector(np.full(3, 0.1, np.float32), 2, 2, (0.5, 1.0))
    with Pipeline(manifest, "fp32", opened(plans=plans), selector) as pipeline:
        good, bad = pipeline.predict([pictures(0, 1)[0], np.zeros((9, 9, 3), np.uint8)])
    assert good.error is None
    assert "could not be predicted" in str(bad.error)


def test_wrong_use_is_told(gpu: Gpu, opened: Open) -> None:
    engines, others = opened(), opened()
    outputs = engines.run_global(pictures(0, 2))
    boxes, counts = proposals(0, 2, 3)
    for images in (pictures(0, 2)[:, :32], pictures(0, 2).astype(np.float32), pictures(0, 2)[0], pictures(0, 2)[:0]):
        with pytest.raises(UsageError, match="takes images"):
            engines.run_global(images)
    for wrong in ((boxes[:1], counts[:1]), (boxes, counts[:, :2]), (boxes[:, :0], counts[:, :0]), proposals(0, 2, 21)):
        with pytest.raises(UsageError, match="K from 1 to 20"):
            engines.run_local(outputs, *wrong)
    foreign = GlobalOutputs(outputs.logits, outputs.class_maps, {"features": None})
    for strange in (others.run_global(pictures(0, 2)), foreign):
        with pytest.raises(UsageError, match="not from the global engine of the same engines"):
            engines.run_local(strange, boxes, counts)
    with pytest.raises(UsageError, match="at least 1"):
        opened(in_flight=0)
    with engines:
        pass
    engines.close()
    with pytest.raises(UsageError, match="closed"):
        engines.run_global(pictures(0, 2))
    with pytest.raises(UsageError, match="closed"):
        engines.run_local(outputs, boxes, counts)
