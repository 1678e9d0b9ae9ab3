"""A picture of a scan: accuracy against latency, with the chosen point."""

from __future__ import annotations

import io

from .scan import State, ranking


def plot(state: State, chosen: tuple[str, ...], share: float) -> bytes:
    """A PNG with a point for each trial: mAP above, score shift below, both against milliseconds.

    Args:
        state: What the scan knows.
        chosen: The blocks that it chose.
        share: The part of the fp32 mAP that was asked for.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    single = {name: point for name, point in state.trials.items() if " " not in name}
    together = [point for name, point in state.trials.items() if " " in name]
    best = ranking(state)
    path = [state.int8, *([state.trials[best[0]]] if best else []), *together]
    name = " ".join(chosen)
    taken = state.trials[name] if name else state.int8
    figure = Figure(figsize=(7, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 1, sharex=True)
    for axis, what in zip(axes, ("mAP", "score_shift"), strict=True):
        axis.plot([p.slower_ms for p in path], [getattr(p, what) for p in path], "-", color="tab:blue", lw=1, zorder=1)
        for points, label, marker, colour in (
            (list(single.values()), "one block in fp32", "o", "tab:grey"),
            (together, "the best blocks in fp32", "s", "tab:blue"),
            ([state.int8], "int8", "D", "tab:orange"),
            ([state.fp32], "fp32", "^", "black"),
            ([taken], "chosen", "*", "tab:red"),
        ):
            size = 180 if label == "chosen" else 30
            ms, values = [p.slower_ms for p in points], [getattr(p, what) for p in points]
            axis.scatter(ms, values, s=size, c=colour, marker=marker, label=label)
        for block in best[:5]:
            point = single[block]
            axis.annotate(
                block, (point.slower_ms, getattr(point, what)), fontsize=7, xytext=(4, 4), textcoords="offset points"
            )
        axis.grid(alpha=0.3)
    axes[0].axhline(share * state.fp32.mAP, ls="--", color="tab:red", lw=1)
    axes[0].set_ylabel(f"mAP (dashed: {share:.0%} of fp32)")
    axes[0].legend(fontsize=8)
    axes[1].set_ylabel("mean score shift")
    axes[1].set_xlabel("ms for one image, ONNX Runtime on this machine")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
