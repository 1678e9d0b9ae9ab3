"""TensorRT on a real GPU, against ONNX Runtime on the CPU."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from glocal.runtime import Pipeline
from glocal.runtime.backends.onnxruntime import OnnxRuntimeEngines
from glocal.runtime.backends.tensorrt import TensorRTEngines
from glocal.runtime.bundle import Bundle
from glocal.runtime.errors import UsageError
from glocal.runtime.selector import RegionSelector

Open = Callable[..., TensorRTEngines]
TOLERANCE = 1e-3  # of fp32 without TF32, relative to the largest value


@pytest.fixture(autouse=True)
def _graphs_are_used() -> Any:
    """Going on without CUDA graphs is a failure here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * max(1, np.abs(expected).max()))


def proposals(seed: int, batch: int, boxes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((batch, boxes, 2, 2), np.float32), axis=2)
    counts = rng.integers(1, 4, (batch, boxes)).astype(np.float32)
    counts[:, 1:] *= rng.random((batch, boxes - 1)) > 0.3
    return corners.reshape(batch, boxes, 4), counts


def run(engines: Any, images: np.ndarray, seed: int, boxes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits and class maps of the global engine, logits of the local one."""
    outputs = engines.run_global(images)
    return outputs.logits, outputs.class_maps, engines.run_local(outputs, *proposals(seed, len(images), boxes))


def test_engines_compute_what_onnx_runtime_does(
    opened: Open, reference: OnnxRuntimeEngines, images: np.ndarray
) -> None:
    engines = opened()
    assert (engines.input_size, engines.labels) == (reference.input_size, reference.labels)
    # Each shape three times: enqueued, captured, launched. 9 is more than the plans take at once.
    for seed, (batch, boxes) in enumerate([(1, 1), (1, 8), (2, 9), (4, 24), (3, 17), (9, 12)] * 6):
        chosen = images[seed % 8 : seed % 8 + batch]
        for found, expected in zip(run(engines, chosen, seed, boxes), run(reference, chosen, seed, boxes), strict=True):
            close(found, expected)


def test_graphs_compute_what_plain_enqueues_do(opened: Open, images: np.ndarray) -> None:
    graphs, plain = opened(), opened(cuda_graphs=False)
    for seed in range(12):
        for batch, boxes in ((1, 5), (4, 24)):
            chosen = images[seed : seed + batch]
            pairs = zip(run(graphs, chosen, seed, boxes), run(plain, chosen, seed, boxes), strict=True)
            for found, expected in pairs:
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_pipelines_predict_the_same(
    opened: Open, bundle: Bundle, reference: OnnxRuntimeEngines, photos: Sequence[np.ndarray]
) -> None:
    settings = bundle.manifest.selector
    shift = np.array(settings.shift, np.float32)
    selector = RegionSelector(shift, settings.k_s, settings.k_e, settings.zetas, settings.rank)
    ours = Pipeline(bundle.manifest, "fp32", opened(), selector)
    theirs = Pipeline(bundle.manifest, "fp32", reference, selector)  # not closed: the session's tests share it
    found, expected = ours.predict(photos, batch=4), theirs.predict(photos, batch=4)
    same = 0
    for one, other in zip(found, expected, strict=True):
        assert one.error is None
        close(one.global_scores, other.global_scores)
        if [region.box for region in one.regions] == [region.box for region in other.regions]:
            same += 1
            close(one.scores, other.scores)
    assert same >= 0.8 * len(photos)  # where two cells are about equal, rounding decides


def test_padding_and_batch_do_not_change_a_result(opened: Open, images: np.ndarray) -> None:
    engines = opened()
    boxes, counts = proposals(0, 4, 6)
    outputs = engines.run_global(images[:4])
    together = engines.run_local(outputs, boxes, counts)
    wider = np.zeros((4, 24, 4), np.float32), np.zeros((4, 24), np.float32)
    wider[0][:, :6], wider[1][:, :6] = boxes, counts
    close(engines.run_local(outputs, *wider), together)
    for index in range(4):
        alone = engines.run_global(images[index : index + 1])
        close(engines.run_local(alone, boxes[index : index + 1], counts[index : index + 1])[0], together[index])


def test_features_that_were_overwritten_are_refused(opened: Open, images: np.ndarray) -> None:
    engines = opened()
    first, second = engines.run_global(images[:1]), engines.run_global(images[1:2])
    expected = engines.run_local(first, *proposals(0, 1, 3))
    engines.run_local(second, *proposals(0, 1, 3))
    np.testing.assert_array_equal(engines.run_local(first, *proposals(0, 1, 3)), expected)
    engines.run_global(images[2:3])
    with pytest.raises(UsageError, match="no longer on the device"):
        engines.run_local(first, *proposals(0, 1, 3))


def test_two_threads_with_engines_of_their_own(opened: Open, reference: OnnxRuntimeEngines, images: np.ndarray) -> None:
    expected = [run(reference, images[seed : seed + 2], seed, 9) for seed in range(8)]
    problems: list[BaseException] = []

    def work() -> None:
        try:
            engines = opened()
            for _ in range(10):
                for seed, wanted in enumerate(expected):
                    for one, other in zip(run(engines, images[seed : seed + 2], seed, 9), wanted, strict=True):
                        close(one, other)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_the_next_batch_may_start_while_the_local_engine_runs(
    opened: Open, reference: OnnxRuntimeEngines, images: np.ndarray
) -> None:
    engines = opened()
    expected = [run(reference, images[seed : seed + 2], 0, 9)[2] for seed in range(8)]
    found: list[np.ndarray] = []
    thread: threading.Thread | None = None
    for seed in range(80):
        outputs = engines.run_global(images[seed % 8 : seed % 8 + 2])
        if thread:
            thread.join()
        thread = threading.Thread(
            target=lambda given=outputs: found.append(engines.run_local(given, *proposals(0, 2, 9)))
        )
        thread.start()
    assert thread
    thread.join()
    for seed in range(80):
        close(found[seed], expected[seed % 8])


def test_a_thousand_calls_take_no_more_memory(opened: Open, images: np.ndarray) -> None:
    import pycuda.driver as driver

    engines = opened()

    def free() -> int:
        with engines._device.current():
            return int(driver.mem_get_info()[0])

    sizes = [(1, 3), (4, 24), (2, 12)]
    for _ in range(10):
        for batch, boxes in sizes:
            run(engines, images[:batch], 0, boxes)
    before = free()
    for call in range(1000):
        batch, boxes = sizes[call % 3]
        run(engines, images[:batch], call, boxes)
    assert free() >= before - (1 << 20)


def test_closing_gives_the_memory_back(opened: Open, images: np.ndarray) -> None:
    import pycuda.driver as driver
    from glocal.runtime.backends.device import Device

    keeper = Device()

    def free() -> int:
        with keeper.current():
            return int(driver.mem_get_info()[0])

    levels = []
    for _ in range(4):
        engines = opened()
        for seed in range(6):
            run(engines, images[:4], seed, 24)
        engines.close()
        levels.append(free())
    assert levels[-1] >= levels[0] - (4 << 20)


def test_torch_works_in_the_same_process(opened: Open, reference: OnnxRuntimeEngines, images: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    engines = opened()
    weights = torch.randn(512, 512, device="cuda")
    for seed in range(12):
        product = weights @ weights
        for found, expected in zip(run(engines, images[:2], seed, 9), run(reference, images[:2], seed, 9), strict=True):
            close(found, expected)
        torch.testing.assert_close(product.cpu(), weights.cpu() @ weights.cpu(), rtol=1e-2, atol=1e-1)
        torch.cuda.synchronize()
    engines.close()
    assert float((weights * 0 + 1).sum()) == 512 * 512  # the context that torch uses is still there
