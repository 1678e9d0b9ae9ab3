"""What the two graphs of a bundle take and give, and the check that a pair of graphs or plans does so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..errors import BundleError

FEATURES = ("features", "global_feature")  # from the global graph into the local one


class Binding(NamedTuple):
    """An input or output of a graph.

    Attributes:
        kind: Its NumPy type, such as ``float32``; what the library calls it where NumPy has none.
        shape: Its axes; None for one that may differ from run to run.
    """

    kind: str
    shape: tuple[int | None, ...]


class _Expected(NamedTuple):
    kinds: tuple[str, ...]
    dynamic: tuple[bool, ...]


_SINGLE, _HALF_OR_SINGLE = ("float32",), ("float16", "float32")
_BATCH_FEATURES = {
    "features": _Expected(_HALF_OR_SINGLE, (True, False, False, False)),
    "global_feature": _Expected(_HALF_OR_SINGLE, (True, False)),
}
_LOGITS = {"logits": _Expected(_SINGLE, (True, False))}
_GLOBAL_INPUTS = {"image": _Expected(("uint8",), (True, False, False, False))}
_GLOBAL_OUTPUTS = {**_LOGITS, "class_maps": _Expected(_SINGLE, (True, False, False, False)), **_BATCH_FEATURES}
_LOCAL_INPUTS = {
    **_BATCH_FEATURES,
    "boxes": _Expected(_SINGLE, (True, True, False)),
    "counts": _Expected(_SINGLE, (True, True)),
}


def check_graphs(
    global_inputs: Mapping[str, Binding],
    global_outputs: Mapping[str, Binding],
    local_inputs: Mapping[str, Binding],
    local_outputs: Mapping[str, Binding],
    fix: str,
) -> tuple[tuple[int, int], int]:
    """Check names, types and shapes of both graphs, and that they fit together.

    Args:
        global_inputs: The inputs of the global graph, by name.
        global_outputs: Its outputs.
        local_inputs: The inputs of the local graph.
        local_outputs: Its outputs.
        fix: What to do about graphs that break the contract.

    Returns:
        (height, width) of the images in pixels, and the number of labels.

    Raises:
        BundleError: They break the contract.
    """
    _check(global_inputs, _GLOBAL_INPUTS, "inputs of the global graph", fix)
    _check(global_outputs, _GLOBAL_OUTPUTS, "outputs of the global graph", fix)
    _check(local_inputs, _LOCAL_INPUTS, "inputs of the local graph", fix)
    _check(local_outputs, _LOGITS, "outputs of the local graph", fix)
    for name in FEATURES:
        given, taken = global_outputs[name], local_inputs[name]
        if given != taken:
            found = f"{_text(given)} from the global graph, {_text(taken)} into the local graph"
            raise BundleError(f"{name} does not fit between the graphs.", found=found, fix=fix)
    scores = (global_outputs["logits"], global_outputs["class_maps"], local_outputs["logits"])
    counted = {binding.shape[1] for binding in scores}
    _, height, width, _ = global_inputs["image"].shape
    (labels, *others) = counted
    if others or height is None or width is None or labels is None:  # None was refused above
        raise BundleError("The graphs differ in labels.", found=f"{sorted(map(str, counted))} labels", fix=fix)
    return (height, width), labels


def _check(found: Mapping[str, Binding], contract: Mapping[str, _Expected], what: str, fix: str) -> None:
    if set(found) != set(contract):
        raise BundleError(
            f"The {what} are not those of a bundle's graph.",
            found=f"{', '.join(sorted(found))}, expected {', '.join(sorted(contract))}",
            fix=fix,
        )
    for name, binding in found.items():
        expected = contract[name]
        dynamic = tuple(length is None for length in binding.shape)
        if binding.kind not in expected.kinds or dynamic != expected.dynamic:
            wanted = ", ".join("dynamic" if free else "fixed" for free in expected.dynamic)
            raise BundleError(
                f"{name} has the wrong type or shape among the {what}.",
                found=f"{_text(binding)}, expected {' or '.join(expected.kinds)} [{wanted}]",
                fix=fix,
            )


def _text(binding: Binding) -> str:
    axes = ", ".join("?" if length is None else str(length) for length in binding.shape)
    return f"{binding.kind} [{axes}]"
