"""A report of every kind, as the commands write them, with made-up figures."""

from typing import Any


def summary(value: float, unit: str = "ms") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for percent, factor in ((50, 1.0), (90, 1.1), (99, 1.3)):
        found[f"p{percent}_{unit}"] = value * factor
        found[f"p{percent}_{unit}_ci"] = [value * factor * 0.99, value * factor * 1.02]
    return {**found, "calls": 50}


def ratio(value: float) -> dict[str, Any]:
    return {"p50": value, "p10": value - 0.02, "p90": value + 0.03, "p50_ci": [value - 0.003, value + 0.003]}


def head(benchmark: str, name: str = "photos-r101") -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "machine": {
            "cpu": "AMD EPYC",
            "cores": 2,
            "packages": {"numpy": "2.3.1", "onnxruntime": "1.32.0"},
            "commit": "0123456789abcdef with changes",
            "date": "2026-11-25",
            "load_average": [0.1, 0.2, 0.3],
        },
        "model": {
            "name": name,
            "labels": 80,
            "input_size": [448, 448],
            "checkpoint_sha256": "c0ffee00" * 8,
            "manifest_sha256": "f00d0000" * 8,
            "files": {"fp32/global.onnx": "ab" * 32},
        },
        "busy_before": 0.01,
        "busy_after": 0.02,
        "load_average_after": [1.0, 0.5, 0.3],
        "loaded": False,
    }


def latency() -> dict[str, Any]:
    def row(precision: str, batch: int, boxes_from: str, boxes: float, times: float) -> dict[str, Any]:
        whole, plain = 293.1 * batch * times, 271.9 * batch
        stages = {"decode": 3.1, "resize": 0.8, "global": 262.0, "select": 0.1, "local": 20.5 * times, "fuse": 0.05}
        return {
            "backend": "onnxruntime",
            "precision": precision,
            "batch": batch,
            "boxes_from": boxes_from,
            **summary(whole),
            "images_per_s": batch / whole * 1e3,
            "ratio": ratio(whole / plain),
            "to_first": ratio(times),
            "plain": {**summary(plain), "engine": summary(plain / batch - 4), "load_s": 0.5, "first_ms": 290.0},
            "engines": {**summary(282.0), "ratio": ratio(1.06)},
            "host_share": ratio(0.011),
            "boxes": {"mean": boxes, "median": boxes, "p95": boxes + 4, "images": 50},
            "load_s": 1.1,
            "first_ms": 310.0,
            "stages": {name: summary(value) for name, value in {**stages, "total": whole / batch}.items()},
        }

    cases = [("fp32", 1, "own", 7.1, 1.0), ("fp32", 1, "24", 24, 1.06), ("fp32", 8, "own", 7.1, 0.9)]
    skipped = [{"backend": "tensorrt", "precision": "fp32", "reason": "no GPU", "fix": "see `glocal doctor`"}]
    return head("latency") | {"rounds": 50, "results": [row(*case) for case in cases], "skipped": skipped}


def peers() -> dict[str, Any]:
    ways = {"glocal": 293.0, "PyTorch eager": 520.0, "torch.compile": 470.0, "one ONNX graph, all 24 boxes": 330.0}
    rows = [
        {"peer": name, "batch": batch, **summary(value * batch), "images_per_s": 3.0, "ratio": ratio(value / 293)}
        for batch in (1, 8)
        for name, value in ways.items()
    ]
    facts = {name: {"load_s": 1.0, "compile_s": None, "max_score_difference": 1e-6} for name in ways}
    return head("peers") | {
        "results": rows,
        "peers": facts,
        "skipped": [{"peer": "OpenVINO", "reason": "not installed"}],
    }


def selector() -> dict[str, Any]:
    def way(value: float, batch: int) -> dict[str, Any]:
        value *= batch
        first = summary(3 * value, "us")
        return {**summary(value, "us"), "us_per_image": value / batch, "first_us": first, "ratio": ratio(value / 10)}

    rows = [
        {
            **{"maps": f"12x{side}x{side}", "images": 16, "source": "noise", "regions_per_map": 4.1},
            **{"k_s": k_s, "k_e": 2, "zetas": zetas, "batch": batch, "unique_boxes": 12.5},
            "ways": {"glocal": way(side * 0.9, batch), "findContours": way(side * 9.0, batch)},
        }
        for side in (14, 28, 56)
        for k_s, zetas in ((12, []), (4, [0.5, 1.0]))
        for batch in (1, 8)
    ]
    pipeline = {"select": summary(0.03), "total": summary(12.0), "share": 0.0025, "boxes": 7.1}
    return head("selector") | {"results": rows, "skipped": {"cc3d": "not installed"}, "pipeline": pipeline}


def startup() -> dict[str, Any]:
    seconds = {"import glocal.runtime": [0.01, 0.012], "Pipeline.load": [0.8, 0.9], "first prediction": [0.3, 0.31]}
    return head("startup") | {"seconds": seconds}


def stream() -> dict[str, Any]:
    rates = {"serial loop": 3.2, "stream": 3.5}
    rows = [
        {"name": name, "images_per_s": rate, "images_per_s_ci": [rate - 0.1, rate + 0.1]}
        for name, rate in rates.items()
    ]
    bounds = {"slowest stage of the serial loop (global)": 3.4, "global engine alone": 3.6}
    shares = {name: 3.5 / value for name, value in bounds.items()}
    given = {"batch": 1, "workers": 2, "threads": 1, "ratio": ratio(1.09)}
    return head("stream") | given | {"results": rows, "bounds": bounds, "share_of_bound": shares}


def soak() -> dict[str, Any]:
    memory = [[frame, 410.0 + frame % 7 * 0.01] for frame in range(0, 20_000, 100)]
    counts = {"frames": 20_000, "predicted": 20_000, "failed": 0, "lost": 0, "out_of_order": 0, "images_per_s": 140.2}
    return (
        head("soak")
        | counts
        | {"memory": memory, "slope": {"mib_per_1000": 0.0004, "ci": [-0.002, 0.003]}, "flat": True}
    )


def threads() -> dict[str, Any]:
    rates = {(1, 1): 1.67, (1, 2): 3.17, (2, 1): 3.3, (2, 2): 2.53}
    rows = [
        {"workers": workers, "threads": count, "images_per_s": rate, "images_per_s_ci": [rate, rate + 0.1]}
        for (workers, count), rate in rates.items()
    ]
    single = [{"name": name, **summary(value), "ratio": ratio(value / 293)} for name, value in (("as it is", 293.0),)]
    return head("threads") | {"results": [row | {"ratio": ratio(1.0)} for row in rows], "latency": single}


def tradeoff() -> dict[str, Any]:
    points = {
        ("coco", "fp32", False): (0.696, 9.6),
        ("coco", "int8", False): (0.691, 5.2),
        ("k2", "fp32", True): (0.694, 7),
    }
    rows = [
        {
            **{"name": f"{bundle} {precision}", "bundle": bundle, "precision": precision, "early_exit": early},
            **{"mAP": accuracy, "OF1": 0.7, "boxes": 6.9, "exits": 0.4 * early, "mean_ms": time},
            **summary(time),
            **{"mean_ratio": time / 9.6, "timed_exits": 0.4},
        }
        for (bundle, precision, early), (accuracy, time) in points.items()
    ]
    return head("tradeoff") | {"models": {"coco": {}}, "data": "coco", "split": "test", "images": 3000, "results": rows}


def macs() -> dict[str, Any]:
    rows = []
    for size in (224, 448):
        for boxes in (7, 24):
            for network, cost in (("backbone", 31.2e9), ("full", 32.2e9 + boxes * 1.1e8)):
                cost *= (size / 448) ** 2
                setting = {"backbone": "resnet101", "preset": "paper", "size": size, "labels": 80, "boxes": boxes}
                counted = {"products": {"trunk": cost}, "rest": 2e8, "parameters": 74.42e6}
                rows.append({**setting, "network": network, **counted, "macs": cost, "with_rest": cost + 2e8})
    rows[-1]["paper"] = {"with_rest": 35.98e9, "parameters": 74.42e6}
    return head("macs") | {"results": rows}


ALL = {
    made["benchmark"]: made
    for made in (latency(), peers(), stream(), soak(), threads(), tradeoff(), selector(), macs(), startup())
}
