"""From images to predictions: global engine, region selector, local engine, fusion."""

from __future__ import annotations

import itertools
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .backends import Backend, Engines, GlobalOutputs, choose, open_engines
from .bundle import Bundle
from .early_exit import decided, exit_thresholds, spread
from .errors import EngineError, ImageError, UsageError
from .fusion import fuse, sigmoid
from .images import check_image, read_image, resize
from .manifest import Manifest, Precision
from .prediction import Prediction, Region
from .sources import AnySource, open_source
from .stream import Decoded, Stream
from .threads import Goal, decide_threads, usable_cores

if TYPE_CHECKING:
    from .selector import Regions, RegionSelector


_STAGES = ("decode", "resize", "to_device", "global", "to_host", "select", "local", "fuse")
_NO_SCORES = np.empty(0, np.float32)
_ENGINE_FIX = "Try another precision, or export the bundle again."


@dataclass(frozen=True, eq=False)
class _Item:
    """An image ready for the network."""

    source: str
    size: tuple[int, int]
    pixels: NDArray[np.uint8]
    decode_ms: float
    resize_ms: float


class Pipeline:
    """A model loaded from a bundle, ready to predict. Close it, or use it in a ``with`` statement.

    One thread at a time may use it; what the threads of a stream use of it is safe for them.

    Attributes:
        labels: The N labels, in the order of a prediction's scores.
        input_size: (height, width) to which images are resized, pixels.
        precision: The precision of the engines.
        backend: What runs the graphs.
        threads: Threads of one engine on the CPU; None where the engine library chose.
        thresholds: (N,) float32, fused scores from which a label is given.
    """

    def __init__(
        self,
        manifest: Manifest,
        precision: Precision,
        engines: Engines,
        selector: Callable[[NDArray[np.float32], NDArray[np.float32]], Regions],
        backend: Backend = "onnxruntime",
        threads: int | None = None,
        early_exit: tuple[float, float] | None = None,
    ) -> None:
        self.labels = manifest.labels
        self.input_size = manifest.input_size
        self.precision = precision
        self.thresholds = np.array(manifest.thresholds[precision], dtype=np.float32)
        self.backend, self.threads = backend, threads
        self._fusion = manifest.fusion
        self._selector = selector
        self._early_exit = early_exit
        self._engines: Engines | None = engines
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        backend: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        early_exit: bool = False,
    ) -> Pipeline:
        """Load a bundle.

        Args:
            path: The bundle's folder.
            backend: ``onnxruntime``, ``onnxruntime-cuda``, ``onnxruntime-tensorrt``, ``tensorrt`` or ``tensorrt_rtx``.
                ``auto`` takes TensorRT where the bundle has a plan that fits this machine, else ``onnxruntime``.
            precision: ``fp32``, ``fp16`` or ``int8``. ``auto`` is that of the plan, fp16 before fp32, where TensorRT
                runs, else fp32.
            threads: Threads of one engine on the CPU; None leaves the choice to the engine library.
            early_exit: Skip the selector and the local engine for images that the global scores settle (see
                `glocal.runtime.early_exit`), between the bundle's thresholds for the precision.

        Raises:
            UsageError: There is no such folder, backend or precision, the engine library is not installed, or the
                bundle has no thresholds for an early exit.
            BundleError: The bundle is incomplete, changed, of another schema version, or has no plan for this machine.
            EngineError: There is no GPU for the backend.
        """
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}.")
        bundle = Bundle.load(path)
        chosen_backend, chosen = choose(bundle, backend, precision)
        thresholds = exit_thresholds(bundle, chosen) if early_exit else None
        engines = open_engines(bundle, chosen_backend, chosen, threads)
        selector = selector_of(bundle.manifest)
        return cls(bundle.manifest, chosen, engines, selector, chosen_backend, threads, thresholds)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines, after ending the streams that still run; their consumers get an error. Twice is fine."""
        for stream in list(self._streams):
            stream.close(UsageError("The pipeline was closed while a stream ran.", fix="Close the stream first."))
        if self._engines is not None:
            self._engines.close()
            self._engines = None

    def predict(
        self, images: Sequence[NDArray[np.uint8]], sources: Sequence[str] | None = None, batch: int = 8
    ) -> list[Prediction]:
        """Predict images in memory.

        Args:
            images: (H, W, 3) uint8 RGB arrays, each of any size.
            sources: What to call the images; ``image 0`` and so on by default.
            batch: How many images go through the engines at a time.

        Returns:
            One prediction per image, in the same order. An array that is no image has its error.

        Raises:
            UsageError: The pipeline is closed, or the arguments do not fit together.
        """
        self._check_use(batch)
        if isinstance(images, np.ndarray) and images.ndim != 4:
            raise UsageError("predict takes a sequence of images.", found="one array", fix="Give [image].")
        if sources is None:
            sources = [f"image {index}" for index in range(len(images))]
        if len(sources) != len(images):
            raise UsageError(f"{len(sources)} sources for {len(images)} images.")
        items = (self._prepare(array, source) for array, source in zip(images, sources, strict=True))
        return list(self._predict(items, batch))

    def predict_files(self, paths: Iterable[str | os.PathLike[str]], batch: int = 8) -> Iterator[Prediction]:
        """Predict image files. They are read batch by batch, as the predictions are taken.

        Args:
            paths: Image files.
            batch: How many images go through the engines at a time.

        Returns:
            One prediction per file, in the same order. A file that cannot be read has its error.

        Raises:
            UsageError: The pipeline is closed, or ``batch`` is less than 1.
        """
        self._check_use(batch)
        return self._predict((self._prepare_file(path) for path in paths), batch)

    def stream(
        self,
        source: AnySource,
        batch: int = 1,
        max_wait_ms: float | None = None,
        workers: int | None = None,
        readers: int | None = None,
        drop: bool | None = None,
        on_frame: Callable[[NDArray[np.uint8] | None, Prediction], None] | None = None,
    ) -> Stream:
        """Predict the frames of a source as they come; reading and the stages of several batches overlap.

        Args:
            source: Images, a folder, a video, a camera, a URL or an iterable, see `glocal.runtime.sources.open_source`;
                open it with that function to choose how often a lost camera is tried.
            batch: Frames that go through the engines at a time, at most.
            max_wait_ms: How long a frame waits for its batch to fill; by default 20 ms for a live source, 200 else.
            workers: Batches that are predicted at once; by default as many as the cores have room for
                (`glocal.runtime.threads.decide_threads`): load the pipeline with ``threads=1`` to have one per core.
            readers: Threads that decode; by default 1 for a video, a camera or a URL, which allow no more, else as
                many as workers.
            drop: Whether to give up the oldest waiting frames when frames come faster than they are predicted or taken;
                by default only those of a live source. If not, the source waits.
            on_frame: Called with each source image, None for one that failed, and its prediction, in order, in the
                thread that takes the predictions, before it gets them.

        Returns:
            One prediction per frame, in the order of the source; a frame that cannot be decoded has its error. Close
            it, or use it in a ``with`` statement.

        Raises:
            UsageError: The pipeline is closed, or an argument is wrong.
            SourceError: The source cannot be opened.
        """
        self._check_use(batch)
        opened = open_source(source)
        goal: Goal = "latency" if opened.live else "throughput"
        stream = Stream(
            opened,
            self._predict_decoded,
            self.labels,
            batch=batch,
            max_wait_ms=max_wait_ms,
            workers=decide_threads(goal, self.backend, self.threads or usable_cores(), workers).workers,
            readers=readers,
            drop=drop,
            on_frame=on_frame,
        )
        self._streams.add(stream)
        return stream

    def _opened(self) -> Engines:
        if self._engines is None:
            raise UsageError("The pipeline is closed.", fix="Load it again, or predict before closing it.")
        return self._engines

    def _check_use(self, batch: int) -> None:
        self._opened()
        if batch < 1:
            raise UsageError(f"batch must be at least 1, not {batch}.")

    def _prepare_file(self, path: str | os.PathLike[str]) -> _Item | Prediction:
        start = time.perf_counter()
        try:
            image = read_image(path)
        except ImageError as error:
            return Prediction.failed(os.fspath(path), str(error), self.labels)
        return self._prepare(image, os.fspath(path), _ms(start))

    def _prepare(self, array: NDArray[np.uint8], source: str, decode_ms: float = 0.0) -> _Item | Prediction:
        start = time.perf_counter()
        try:
            image = check_image(array, source)
        except ImageError as error:
            return Prediction.failed(source, str(error), self.labels)
        pixels = resize(image, self.input_size)
        return _Item(source, (image.shape[0], image.shape[1]), pixels, decode_ms, _ms(start))

    def _predict(self, items: Iterator[_Item | Prediction], batch: int) -> Iterator[Prediction]:
        while chunk := list(itertools.islice(items, batch)):
            yield from self._predict_chunk(chunk)

    def _predict_chunk(self, chunk: Sequence[_Item | Prediction]) -> list[Prediction]:
        predicted = iter(self._predict_good([item for item in chunk if isinstance(item, _Item)]))
        return [item if isinstance(item, Prediction) else next(predicted) for item in chunk]

    def _predict_decoded(self, images: Sequence[Decoded]) -> list[Prediction]:
        """Predict a batch of a stream. Threads may call it at once: they may the engines and the selector."""
        return self._predict_chunk([self._prepare(array, source, ms) for array, source, ms in images])

    def _predict_good(self, items: list[_Item]) -> list[Prediction]:
        if not items:
            return []
        try:
            return self._run(items)
        except EngineError as error:
            if len(items) > 1:  # one image at a time shows which is at fault, and spares the others
                return [prediction for item in items for prediction in self._predict_good([item])]
            message = f"{items[0].source} could not be predicted. {error}"
            return [Prediction.failed(items[0].source, message, self.labels, items[0].size)]

    def _run(self, items: list[_Item]) -> list[Prediction]:
        engines = self._opened()
        times = [time.perf_counter()]
        outputs = engines.run_global(np.stack([item.pixels for item in items]))
        times.append(time.perf_counter())
        rows = self._undecided(outputs.logits)
        regions = self._select(outputs, rows) if len(rows) else None
        times.append(time.perf_counter())
        logits = self._local_logits(engines, outputs, regions, rows) if regions is not None else None
        times.append(time.perf_counter())
        global_scores = sigmoid(outputs.logits)
        scores, local_scores, found = global_scores, {}, {}
        if regions is not None and logits is not None:
            scores = global_scores.copy()
            scores[rows] = fuse(outputs.logits[rows], logits, self._fusion)
            local_scores = dict(zip(rows.tolist(), sigmoid(logits), strict=True))
            found = {row: self._regions(regions, at, items[row].size) for at, row in enumerate(rows.tolist())}
        labels = [self._labels(row) for row in scores]
        times.append(time.perf_counter())

        whole, *rest = [(end - start) * 1e3 for start, end in itertools.pairwise(times)]
        copies = outputs.to_device_ms, outputs.to_host_ms
        stages = (copies[0], whole - sum(copies), copies[1], *rest)
        shares = [stage / len(items) for stage in stages]
        return [
            Prediction(
                source=item.source,
                size=item.size,
                classes=self.labels,
                labels=labels[index],
                scores=scores[index],
                global_scores=global_scores[index],
                local_scores=local_scores.get(index, _NO_SCORES),
                thresholds=self.thresholds,
                regions=found.get(index, ()),
                timings=_timings(item.decode_ms, item.resize_ms, *shares),
                exited=index not in found,
            )
            for index, item in enumerate(items)
        ]

    def _undecided(self, logits: NDArray[np.float32]) -> NDArray[np.intp]:
        """Which images of a batch the local branch is asked about: all, but for an early exit."""
        if self._early_exit is None:
            return np.arange(len(logits))
        return np.flatnonzero(~decided(sigmoid(logits), self._early_exit))

    def _local_logits(
        self, engines: Engines, outputs: GlobalOutputs, regions: Regions, rows: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """(U, N) local logits of the images ``rows``, whose regions these are.

        The engine runs the whole batch, whose features lie together on the device.
        """
        boxes, counts = spread(*regions.normalised(), rows, len(outputs.logits))
        logits = engines.run_local(outputs, boxes, counts)[rows]
        if not np.isfinite(logits).all():
            raise EngineError("The local engine gave values that are not finite.", fix=_ENGINE_FIX)
        return logits

    def _select(self, outputs: GlobalOutputs, rows: NDArray[np.intp]) -> Regions:
        whole = len(rows) == len(outputs.logits)  # which needs no copy
        maps, logits = (array if whole else array[rows] for array in (outputs.class_maps, outputs.logits))
        try:
            regions = self._selector(maps, logits)
        except ValueError as error:
            what = "No regions can be selected from what the global engine gave."
            raise EngineError(what, found=str(error), fix=_ENGINE_FIX) from error
        if not np.isfinite(regions.energies).all():  # finite maps can still sum up to infinity
            raise EngineError("The class maps are too large to be summed up.", fix=_ENGINE_FIX)
        return regions

    def _labels(self, scores: NDArray[np.float32]) -> tuple[str, ...]:
        order = np.argsort(-scores, kind="stable")
        return tuple(self.labels[index] for index in order if scores[index] >= self.thresholds[index])

    def _regions(self, regions: Regions, index: int, size: tuple[int, int]) -> tuple[Region, ...]:
        (height, width), (rows, columns) = size, regions.grid
        scale = np.array([width / columns, height / rows] * 2)
        kept = slice(int(regions.n[index]))
        boxes = (regions.boxes[index, kept] * scale).tolist()
        categories = regions.categories[index, kept].tolist()
        energies = regions.energies[index, kept].tolist()
        variants = regions.variants[index, kept].tolist()
        counts = regions.counts[index, kept].tolist()
        return tuple(
            Region(tuple(box), self.labels[category] if category >= 0 else None, energy, variant, count)
            for box, category, energy, variant, count in zip(boxes, categories, energies, variants, counts, strict=True)
        )


def selector_of(manifest: Manifest) -> RegionSelector:
    """The region selector of a bundle's model."""
    from .selector import RegionSelector

    settings = manifest.selector
    shift = np.array(settings.shift, dtype=np.float32)
    return RegionSelector(shift, settings.k_s, settings.k_e, settings.zetas, settings.rank)


def _ms(start: float) -> float:
    return (time.perf_counter() - start) * 1e3


def _timings(*stages: float) -> dict[str, float]:
    return {**dict(zip(_STAGES, stages, strict=True)), "total": sum(stages)}
