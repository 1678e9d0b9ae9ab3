"""The same network by what a user might pick instead, against `Pipeline`, in turn in one process.

All take decoded images of any size and give fused scores, in fp32, with the same number of threads; resizing counts.
Those that compute the same are compared first, so that nothing is timed that gives other scores.
"""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.bundle import Bundle
from ..runtime.errors import GlocalError, UsageError
from ..runtime.fusion import fuse
from ..runtime.images import read_image, resize
from ..runtime.pipeline import Pipeline, selector_of
from ..runtime.plans import graph_path
from ..runtime.progress import note
from ..runtime.threads import usable_cores
from . import record
from .boxes import different_boxes
from .pictures import pictures
from .scored import scored
from .timing import alternate, ratio, summary

if TYPE_CHECKING:
    from ..train.model import GlocalNet

Images = Sequence[NDArray[np.uint8]]
GLOCAL, EAGER, COMPILED, OPENVINO = "glocal", "PyTorch eager", "torch.compile", "OpenVINO"
TOLERANCE = 1e-3  # of a fused score
_MOST_IMAGES = 64  # decoded ones in memory
_COMPARED = 16
_PAUSE_S = 0.02  # until the idle threads of PyTorch's OpenMP have stopped to spin


class _CannotRunError(GlocalError):
    """A peer that this machine cannot run."""


@dataclass(frozen=True)
class _Peer:
    """One way to run the network.

    Attributes:
        name: What to call it.
        predict: B decoded images of any size -> (B, N) float32 fused scores.
        same: Whether it computes what the pipeline computes.
        load_s: Seconds until it could be called.
        compile_s: Seconds of compiling in its first calls.
    """

    name: str
    predict: Callable[[Images], NDArray[np.float32]]
    same: bool
    load_s: float
    compile_s: float = 0.0


def bench_peers(
    bundle: Path,
    checkpoint: Path,
    *,
    rounds: int = 50,
    batches: Sequence[int] = (1,),
    images: Path | None = None,
    threads: int | None = None,
    compiled: bool = True,
) -> record.Report:
    """Time a bundle's pipeline against other ways to run the same network.

    - ``glocal``: `Pipeline`, fp32 in ONNX Runtime.
    - ``PyTorch eager``: `GlocalNet` in inference mode, its region selector included.
    - ``torch.compile``: both branches compiled in the default mode, the selector between them.
    - ``one ONNX graph, all K boxes``: both graphs merged into one, which is all that one gets without a selector
      between: always k_o slots, here with a fixed set of different boxes. Its scores are others.
    - ``OpenVINO``: both graphs, the selector between them; where it is installed.

    Args:
        bundle: The bundle's folder.
        checkpoint: The run that it was exported from.
        rounds: Timed calls of each.
        batches: Images per call.
        images: A photo or a folder of photos, of which the first 64 are taken; by default generated ones.
        threads: Threads of each; by default as many as there are cores.
        compiled: Whether ``torch.compile`` takes part, which compiles for minutes where the network is large.

    Returns:
        The report that ``--json`` writes. ``results``, per peer and batch: milliseconds of a call (see
        `timing.summary`), ``images_per_s`` at the median, ``ratio`` to glocal (see `timing.ratio`). ``peers``: by name
        ``load_s``, ``compile_s`` (torch.compile's first calls) and ``max_score_difference`` to glocal's scores.
        ``skipped``: peers that cannot run here, with the reason.

    Raises:
        UsageError: The bundle, the checkpoint or the images do not exist, or a batch is less than 1.
        BundleError: The bundle is damaged.
        CheckpointError: The checkpoint is unsafe or damaged.
        GlocalError: A peer gives other scores, or an image cannot be read.
    """
    from ..train.checkpoint import load_model

    if not batches or min(batches) < 1:
        raise UsageError("A batch has at least one image.", found=", ".join(str(batch) for batch in batches))
    opened, model = Bundle.load(bundle), load_model(checkpoint).model
    threads = threads or usable_cores()
    report = record.begin("peers", opened) | {"rounds": rounds, "threads": threads, "results": [], "skipped": []}
    with ExitStack() as stack:
        paths, report["images"] = stack.enter_context(pictures(images))
        stack.enter_context(_torch_threads(threads))
        decoded = [read_image(path) for path in paths[:_MOST_IMAGES]]
        openers = [partial(_glocal, stack, opened, threads), partial(_eager, model)]
        openers += [partial(_compiled, opened, model, batches)] if compiled else []
        openers += [partial(_one_graph, opened, threads), partial(_openvino, opened, threads)]
        peers = list(_opened(openers, report["skipped"]))
        report["peers"] = _compare(peers, decoded[:_COMPARED])
        for batch in dict.fromkeys(batches):
            note(f"batch {batch}: {rounds} rounds of {len(peers)} peers")
            calls = {peer.name: _in_turn(peer, decoded, batch) for peer in peers}
            times = alternate(calls, rounds, pause_s=_PAUSE_S)
            for name, values in times.items():
                found = summary(values)
                speed = round(batch / found["p50_ms"] * 1e3, 2)
                row = {"peer": name, "batch": batch, **found, "images_per_s": speed}
                report["results"].append({**row, "ratio": ratio(values, times[GLOCAL])})
    return record.finish(report)


def _opened(openers: Sequence[Callable[[], _Peer]], skipped: list[dict[str, str]]) -> Iterator[_Peer]:
    for opener in openers:
        try:
            yield opener()
        except _CannotRunError as error:
            skipped.append({"peer": error.what, "reason": error.found, "fix": error.fix})


def _glocal(stack: ExitStack, bundle: Bundle, threads: int) -> _Peer:
    start = time.perf_counter()
    pipeline = stack.enter_context(Pipeline.load(bundle.path, "onnxruntime", "fp32", threads))

    def predict(images: Images) -> NDArray[np.float32]:
        predictions = scored(pipeline.predict(images, batch=len(images)), "The bundle could not predict.")
        return np.stack([prediction.scores for prediction in predictions])

    return _Peer(GLOCAL, predict, True, time.perf_counter() - start)


def _eager(model: GlocalNet) -> _Peer:
    import torch

    start, size = time.perf_counter(), model.config.image_size
    model.eval()

    @torch.inference_mode()
    def predict(images: Images) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = model(torch.from_numpy(_stack(images, size))).scores.numpy()
        return scores

    return _Peer(EAGER, predict, True, time.perf_counter() - start)


def _compiled(bundle: Bundle, model: GlocalNet, batches: Sequence[int]) -> _Peer:
    import torch

    start, size = time.perf_counter(), model.config.image_size
    assert model.local_branch is not None  # for mypy: a bundle's network has two branches
    selector = selector_of(bundle.manifest)
    model.local_branch.roi_form = "matmul"  # as exported; eager execution uses the same
    with _or_skipped(COMPILED, "Install a C++ compiler."):
        first, second = torch.compile(model.global_branch), torch.compile(model.local_branch)

    @torch.inference_mode()
    def predict(images: Images) -> NDArray[np.float32]:
        out = first(torch.from_numpy(_stack(images, size)))
        boxes, counts = selector(out.class_maps.numpy(), out.logits.numpy()).normalised()
        local = second(out.features, out.global_feature, torch.from_numpy(boxes), torch.from_numpy(counts))
        scores: NDArray[np.float32] = model.fuse(out.logits, local).numpy()
        return scores

    loaded = time.perf_counter()
    with _or_skipped(COMPILED, "Install a C++ compiler."), torch.inference_mode():
        for batch in batches:  # one box is a case of its own to the compiler, two further numbers make it a variable
            out = first(torch.zeros(batch, *size, 3, dtype=torch.uint8))
            for boxes in (1, 2, 3):
                place = torch.tensor([0.1, 0.2, 0.8, 0.9]).expand(batch, boxes, 4).contiguous()
                second(out.features, out.global_feature, place, torch.ones(batch, boxes))
    return _Peer(COMPILED, predict, True, loaded - start, time.perf_counter() - loaded)


def _one_graph(bundle: Bundle, threads: int) -> _Peer:
    import onnx

    from ..runtime.backends.onnxruntime import open_session

    start, size, fusion = time.perf_counter(), bundle.manifest.input_size, bundle.manifest.fusion
    merged = onnx.compose.merge_models(
        onnx.load_from_string(bundle.read("fp32/global.onnx")),
        onnx.load_from_string(bundle.read("fp32/local.onnx")),
        io_map=[("features", "features"), ("global_feature", "global_feature")],
        prefix1="global/",
        prefix2="local/",
        outputs=["global/logits", "local/logits"],
    )
    session = open_session(merged.SerializeToString(), "merged", threads)
    most = selector_of(bundle.manifest).k_o
    boxes, counts = different_boxes(most).normalised()

    def predict(images: Images) -> NDArray[np.float32]:
        inputs: dict[str, NDArray[Any]] = {"global/image": _stack(images, size)}
        inputs["local/boxes"], inputs["local/counts"] = (value.repeat(len(images), 0) for value in (boxes, counts))
        first, second = session.run(["global/logits", "local/logits"], inputs)
        return fuse(first, second, fusion)

    return _Peer(f"one ONNX graph, all {most} boxes", predict, False, time.perf_counter() - start)


def _openvino(bundle: Bundle, threads: int) -> _Peer:
    with _or_skipped(OPENVINO, "pip install openvino"):
        openvino: Any = importlib.import_module("openvino")  # most machines lack it, type checkers too
    start, size, fusion = time.perf_counter(), bundle.manifest.input_size, bundle.manifest.fusion
    core, selector = openvino.Core(), selector_of(bundle.manifest)
    # bfloat16 would be its choice where the processor has it.
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    # The graphs for TensorRT have what the others have before they were changed to suit ONNX Runtime.
    names = ("fp32/global.onnx", graph_path(bundle.manifest, "fp32", "local"))
    with _or_skipped(OPENVINO, "Try another version of OpenVINO."):
        models = [core.compile_model(core.read_model(bundle.read(name)), "CPU", options) for name in names]
        first, second = (model.create_infer_request() for model in models)

    def predict(images: Images) -> NDArray[np.float32]:
        first.infer({"image": _stack(images, size)}, share_inputs=True)
        logits = first.get_tensor("logits").data
        boxes, counts = selector(first.get_tensor("class_maps").data, logits).normalised()
        features = {name: first.get_tensor(name) for name in ("features", "global_feature")}
        second.infer({**features, "boxes": boxes, "counts": counts}, share_inputs=True)
        return fuse(logits, second.get_tensor("logits").data, fusion)

    return _Peer(OPENVINO, predict, True, time.perf_counter() - start)


def _compare(peers: Sequence[_Peer], images: Images) -> dict[str, dict[str, Any]]:
    """What is known of each peer; refuses one that should give the same scores and does not."""
    facts: dict[str, dict[str, Any]] = {}
    wanted = np.concatenate([peers[0].predict([image]) for image in images])
    for peer in peers:
        found = np.concatenate([peer.predict([image]) for image in images])
        if found.shape != wanted.shape:
            labels = f"{found.shape[1]} labels, the bundle has {wanted.shape[1]}"
            raise GlocalError("The checkpoint is not that of the bundle.", found=labels, fix="Name its run.")
        furthest = float(np.abs(found - wanted).max())
        if peer.same and not furthest <= TOLERANCE:
            raise GlocalError(
                f"{peer.name} gives other scores than the bundle.",
                found=f"they differ by up to {furthest:.2g} on {len(images)} images, at most {TOLERANCE} was expected",
                fix="Name the run that the bundle was exported from with --checkpoint.",
            )
        times = {"load_s": round(peer.load_s, 3), "compile_s": round(peer.compile_s, 3)}
        facts[peer.name] = {**times, "computes_the_same": peer.same, "max_score_difference": furthest}
    return facts


def _in_turn(peer: _Peer, images: Images, batch: int) -> Callable[[], None]:
    endless = itertools.cycle(images)

    def call() -> None:
        peer.predict(list(itertools.islice(endless, batch)))

    return call


def _stack(images: Images, size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.stack([resize(image, size) for image in images])


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _or_skipped(name: str, fix: str) -> Iterator[None]:
    """Makes a `_CannotRunError` of whatever another project's library raises: there is no common class."""
    try:
        yield
    except Exception as error:
        raise _CannotRunError(name, found=_line(error), fix=fix) from error


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"
