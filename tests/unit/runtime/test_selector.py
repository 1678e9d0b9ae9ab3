import copy
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from glocal.runtime import selector as selector_module
from glocal.runtime.errors import GlocalError
from glocal.runtime.selector import RegionSelector, SelectorError
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

FIELDS = ("boxes", "counts", "categories", "variants", "energies", "n")
KINDS = ("noise", "blobs", "integers", "sparse", "mirrored", "wild", "subnormal", "empty", "full")


def slow_regions(crop, rank):
    """[(box, energy)] of a 2-D array by the rules, strongest first."""
    labels, number = ndimage.label(crop > 0, structure=np.ones((3, 3)))
    found = []
    for label in range(1, number + 1):
        ys, xs = np.nonzero(labels == label)  # in row-major order
        box = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
        inside = np.maximum(crop[box[1] : box[3], box[0] : box[2]], 0)
        energy = float(inside.sum(dtype=np.float64))
        found.append((-len(ys) if rank == "area" else -energy, (ys[0], xs[0]), box, energy))
    return [(box, energy) for _, _, box, energy in sorted(found)]


def slow_select(maps, logits, shift, *, k_s, k_e, zetas, rank="energy"):
    """Per image, [(x0, y0, x1, y1, category, variant, energy)] in proposal order, repeats included."""
    batch = []
    for planes, scores in zip(maps, logits, strict=True):
        proposals = []
        for category in sorted(range(len(scores)), key=lambda c: (-scores[c], c))[:k_s]:
            for region, energy in slow_regions(planes[category], rank)[:k_e]:
                box = region
                proposals.append((*box, category, 0, energy))
                x0, y0, x1, y1 = region
                for variant, zeta in enumerate(zetas, 1):
                    step = np.float32(zeta) * shift[category]
                    for inner, inner_energy in slow_regions(planes[category, y0:y1, x0:x1] - step, rank)[:1]:
                        box = inner[0] + x0, inner[1] + y0, inner[2] + x0, inner[3] + y0
                        energy = inner_energy
                    proposals.append((*box, category, variant, energy))
        batch.append(proposals or [(0, 0, planes.shape[2], planes.shape[1], -1, 0, 0.0)])
    return batch


def make_case(seed, kind, batch, total, height, width):
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(batch, total, height, width))
    shift = np.abs(rng.normal(size=total)) * 0.6
    if kind == "blobs":
        maps = ndimage.gaussian_filter(maps, (0, 0, 1.5, 1.5)) * 4 - 0.3
    elif kind == "integers":  # many ties, of energies too
        maps, shift = np.rint(maps), np.rint(shift)
    elif kind == "sparse":
        maps -= 2
    elif kind == "mirrored":  # two regions of equal energy, but for the order of summation
        maps = np.abs(maps) * np.exp(5 * rng.normal(size=maps.shape))
        half = (width - 1) // 2
        maps[..., half : width - half] = -1
        maps[..., width - half :] = maps[..., :half][..., ::-1]
    elif kind == "wild":
        maps = maps * np.exp(15 * rng.normal(size=maps.shape))
    elif kind == "subnormal":
        maps, shift = np.rint(maps * 3) * 2.0**-149, np.rint(shift * 3) * 2.0**-149
    elif kind == "empty":
        maps = -np.abs(maps)
    elif kind == "full":
        maps = np.abs(maps) + 0.1
    logits = np.rint(2 * rng.normal(size=(batch, total))) / 2
    return maps.astype(np.float32), logits.astype(np.float32), shift.astype(np.float32)


def assert_agrees(regions, expected):
    """Whether regions are the merged proposals, slot by slot, and unused slots are as documented."""
    for image, proposals in enumerate(expected):
        first, counts = {}, {}
        for proposal in proposals:
            first.setdefault(proposal[:4], proposal)
            counts[proposal[:4]] = counts.get(proposal[:4], 0) + 1
        n = regions.n[image]
        assert regions.boxes[image, :n].tolist() == [list(box) for box in first]
        assert regions.counts[image, :n].tolist() == list(counts.values())
        assert regions.counts[image].sum() == len(proposals)
        assert regions.categories[image, :n].tolist() == [proposal[4] for proposal in first.values()]
        assert regions.variants[image, :n].tolist() == [proposal[5] for proposal in first.values()]
        energies = np.array([proposal[6] for proposal in first.values()]).astype(np.float32)
        np.testing.assert_array_equal(regions.energies[image, :n], energies)
        assert not regions.boxes[image, n:].any()
        assert not regions.counts[image, n:].any()
        assert not regions.variants[image, n:].any()
        assert not regions.energies[image, n:].any()
        assert (regions.categories[image, n:] == -1).all()


@pytest.fixture(scope="module")
def shared_reference():
    data = os.environ.get("GLOCAL_DATA")
    folder = Path(data).parent / "reference" if data else None
    if folder is None or not (folder / "select_regions.py").is_file():
        pytest.skip("beside the folder that GLOCAL_DATA names stands no reference/select_regions.py")
    spec = importlib.util.spec_from_file_location("select_regions", folder / "select_regions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, np.load(folder / "region_vectors.npz")


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    batch=st.integers(1, 2),
    total=st.integers(1, 5),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    k_s=st.integers(1, 6),
    k_e=st.integers(1, 4),
    zetas=st.sampled_from([(), (0.5,), (0.5, 1.0), (0.25, 0.5, 3.0)]),
    rank=st.sampled_from(["energy", "area"]),
)
def test_selector_follows_the_rules(seed, kind, batch, total, height, width, k_s, k_e, zetas, rank):
    maps, logits, shift = make_case(seed, kind, batch, total, height, width)
    parameters = {"k_s": k_s, "k_e": k_e, "zetas": zetas, "rank": rank}
    regions = RegionSelector(shift, **parameters)(maps, logits)
    assert regions.boxes.shape == (batch, k_s * k_e * (1 + len(zetas)), 4)
    assert regions.grid == (height, width)
    assert {regions.boxes.dtype, regions.counts.dtype, regions.n.dtype} == {np.dtype(np.int32)}
    assert_agrees(regions, slow_select(maps, logits, shift, **parameters))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(28, 28), (56, 56), (3, 131), (131, 3)])
@pytest.mark.parametrize("rank", ["energy", "area"])
def test_selector_follows_the_rules_on_larger_maps(kind, size, rank):
    maps, logits, shift = make_case(7, kind, 1, 4, *size)
    parameters = {"k_s": 3, "k_e": 3, "zetas": (0.5, 1.0), "rank": rank}
    assert_agrees(RegionSelector(shift, **parameters)(maps, logits), slow_select(maps, logits, shift, **parameters))


def test_selector_reproduces_the_shared_vectors(shared_reference):
    _, vectors = shared_reference
    cases = sorted(name[:2] for name in vectors.files if name.endswith("_maps"))
    assert cases
    for case in cases:
        maps, logits = vectors[f"{case}_maps"], vectors[f"{case}_logits"]
        rows, energies = vectors[f"{case}_proposals"].tolist(), vectors[f"{case}_energy"].tolist()
        expected = [[] for _ in maps]
        for (image, *proposal), energy in zip(rows, energies, strict=True):
            expected[image].append((*proposal, energy))
        assert_agrees(RegionSelector(vectors[f"{case}_shift"])(maps, logits), expected)


def test_selector_agrees_with_the_shared_reference(shared_reference):
    reference, _ = shared_reference
    for seed in range(20):
        for kind in KINDS:
            rng = np.random.default_rng(seed)
            height, width = rng.integers(1, 21, 2)
            maps, logits, shift = make_case(seed, kind, 2, 4, height, width)
            parameters = {"k_s": 3, "k_e": 2, "zetas": (0.5, 1.0)}
            regions = RegionSelector(shift, **parameters)(maps, logits)
            assert_agrees(regions, reference.select_regions(maps, logits, shift, **parameters))


def test_regions_touch_at_corners_and_ties_go_to_the_first_cell():
    plane = np.float32([[0, 0, 1, 0, 0], [0, 1, 0, 0, 2], [0, 0, 0, 0, 0], [2, 0, 0, 0, 1]])
    regions = RegionSelector([0.0], k_s=1, k_e=4, zetas=())(plane[None, None], np.zeros((1, 1), np.float32))
    assert regions.boxes[0].tolist() == [[1, 0, 3, 2], [4, 1, 5, 2], [0, 3, 1, 4], [4, 3, 5, 4]]
    assert regions.energies[0].tolist() == [2, 2, 2, 1]


@pytest.mark.filterwarnings("error")
def test_a_step_beyond_float32_repeats_the_box_before_it():
    selector = RegionSelector([3e38], k_s=1, k_e=1, zetas=(1e-38, 2.0))
    regions = selector(np.float32([[[[1, 5]]]]), np.zeros((1, 1), np.float32))
    assert regions.boxes[0, :2].tolist() == [[0, 0, 2, 1], [1, 0, 2, 1]]
    assert regions.counts[0].tolist() == [1, 2, 0]


def test_images_of_a_batch_do_not_touch_each_other():
    maps, logits, shift = make_case(3, "blobs", 6, 5, 14, 14)
    maps[2] = -1
    selector = RegionSelector(shift)
    together = selector(maps, logits)
    for image in range(6):
        alone = selector(maps[image : image + 1], logits[image : image + 1])
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(together, field)[image], getattr(alone, field)[0])


def test_threads_share_a_selector():
    cases = [make_case(seed, "noise", 2, 6, 5 + seed % 3 * 20, 30) for seed in range(12)]
    selector = RegionSelector(cases[0][2])
    alone = [selector(maps, logits) for maps, logits, _ in cases]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(20):
            results = pool.map(lambda case: selector(case[0], case[1]), cases)
            for one, other in zip(alone, results, strict=True):
                for field in FIELDS:
                    np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_scratch_space_grows_with_the_need():
    def select_in_turn():
        for height, width, k_s in ((1, 2, 1), (2, 1, 1), (1, 4, 1), (1, 4, 6), (9, 3, 2), (20, 20, 6), (1, 1, 1)):
            maps, logits, shift = make_case(4, "noise", 1, 6, height, width)
            parameters = {"k_s": k_s, "k_e": 2, "zetas": (0.5,)}
            yield RegionSelector(shift, **parameters)(maps, logits), slow_select(maps, logits, shift, **parameters)

    with ThreadPoolExecutor(1) as pool:  # a thread that has no scratch space yet
        for regions, expected in pool.submit(lambda: list(select_in_turn())).result():
            assert_agrees(regions, expected)


def test_the_kernel_releases_the_gil_and_keeps_ieee_arithmetic():
    options = selector_module._kernel().targetoptions
    assert options["nogil"]
    assert not options.get("fastmath")


def test_a_selector_can_be_copied_and_pickled():
    maps, logits, shift = make_case(1, "blobs", 1, 3, 8, 8)
    selector = RegionSelector(shift)
    for other in (copy.deepcopy(selector), pickle.loads(pickle.dumps(selector))):
        np.testing.assert_array_equal(other(maps, logits).boxes, selector(maps, logits).boxes)


def test_any_memory_layout_is_taken():
    maps, logits, shift = make_case(5, "blobs", 2, 3, 9, 7)
    read_only, misaligned = maps.copy(), np.frombuffer(b"?" + maps.tobytes(), np.float32, maps.size, 1)
    read_only.setflags(write=False)
    layouts = [np.asfortranarray(maps), np.repeat(maps, 2, axis=3)[..., ::2], read_only, misaligned.reshape(maps.shape)]
    selector = RegionSelector(shift)
    expected = selector(maps, logits)
    for layout in layouts:
        assert not layout.flags.carray
        np.testing.assert_array_equal(selector(layout, np.asfortranarray(logits)).boxes, expected.boxes)


def test_an_empty_batch_gives_empty_regions():
    regions = RegionSelector([1.0, 1.0])(np.empty((0, 2, 4, 4), np.float32), np.empty((0, 2), np.float32))
    assert regions.boxes.shape == (0, 24, 4)
    assert regions.normalised()[0].shape == (0, 1, 4)


def test_normalised_boxes_are_fractions_of_the_map():
    maps = -np.ones((2, 1, 4, 8), np.float32)
    maps[0, 0, 1:3, 2:4] = 1
    maps[0, 0, 0, 7] = 1
    regions = RegionSelector([0.0], k_s=1, k_e=2, zetas=(1.0,))(maps, np.zeros((2, 1), np.float32))
    boxes, counts = regions.normalised()
    assert boxes.dtype == counts.dtype == np.float32
    assert boxes.tolist() == [[[0.25, 0.25, 0.5, 0.75], [0.875, 0, 1, 0.25]], [[0, 0, 1, 1], [0, 0, 0, 0]]]
    assert counts.tolist() == [[2, 2], [1, 0]]
    wide, wide_counts = regions.normalised(8)
    assert wide.shape == (2, 8, 4)
    np.testing.assert_array_equal(wide[:, :2], boxes)
    assert not wide[:, 2:].any()
    assert wide_counts.sum() == counts.sum()
    with pytest.raises(ValueError, match="Use k >= 2"):
        regions.normalised(1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(value):
    maps, logits, shift = make_case(2, "blobs", 3, 4, 6, 6)
    logits[:] = [3, 2, 1, 0]
    selector = RegionSelector(shift, k_s=1)
    maps[1, 3, 4, 5] = value  # not among the categories that are looked at
    maps[2, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"image 1, category 3 (.|\n)*class_maps\[1, 3, 4, 5\]"):
        selector(maps, logits)
    logits[1, 2] = value
    with pytest.raises(SelectorError, match=r"image 1, category 2 (.|\n)*logits\[1, 2\]"):
        selector(maps, logits)


GOOD = np.zeros((2, 3, 4, 4), np.float32)
SCORES = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("maps", "logits", "found"),
    [
        (GOOD.astype(np.float16), SCORES, "float16"),
        (GOOD.astype(">f4"), SCORES, ">f4"),
        (GOOD, SCORES.astype(np.float64), "float64"),
        (GOOD.tolist(), SCORES, "a list"),
        (GOOD[0], SCORES, r"shape \(3, 4, 4\)"),
        (GOOD[:1], SCORES, r"class_maps \(1, 3, 4, 4\) and logits \(2, 3\)"),
        (GOOD[:, :2], SCORES[:, :2], r"class_maps \(2, 2, 4, 4\)"),
        (GOOD[:, :, :0], SCORES, r"class_maps \(2, 3, 0, 4\)"),
    ],
)
def test_wrong_inputs_are_refused(maps, logits, found):
    with pytest.raises(SelectorError, match=f"found: .*{found}") as caught:
        RegionSelector([1.0, 1.0, 1.0])(maps, logits)
    assert isinstance(caught.value, GlocalError)
    assert caught.value.fix


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"shift": [1, -0.5]}, "-0.5 for category 1"),
        ({"shift": [np.nan]}, "nan for category 0"),
        ({"shift": [1e39]}, "inf for category 0"),
        ({"shift": []}, r"shape \(0,\)"),
        ({"shift": [[1.0]]}, r"shape \(1, 1\)"),
        ({"shift": "cat"}, "a str"),
        ({"k_s": 0}, "0"),
        ({"k_e": 1.5}, "1.5"),
        ({"k_s": True}, "True"),
        ({"zetas": (1.0, 0.5)}, r"\(1.0, 0.5\)"),
        ({"zetas": (0.5, 0.5)}, r"\(0.5, 0.5\)"),
        ({"zetas": (0.0,)}, r"\(0.0,\)"),
        ({"zetas": (1e39,)}, r"1e\+39"),
        ({"zetas": (float("nan"), 1.0)}, "nan"),
        ({"zetas": 0.5}, "0.5"),
        ({"rank": "size"}, "'size'"),
        ({"rank": None}, "None"),
        ({"rank": np.array(["energy", "area"])}, "array"),
    ],
)
def test_wrong_parameters_are_refused(arguments, found):
    with pytest.raises(SelectorError, match=f"found: .*{found}"):
        RegionSelector(**{"shift": [1.0, 1.0], **arguments})


def test_the_rules_hold_without_compilation():
    code = (
        "import numpy as np; from glocal.runtime.selector import RegionSelector; maps = np.ones((1, 1, 2, 3), 'f');"
        "print(RegionSelector([1.0], 1, 1, (), 'area')(maps, maps[:, :, 0, 0]).boxes.tolist())"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment) == "[[[0, 0, 3, 2]]]\n"


CHILD = """
import sys
from glocal.runtime import selector
assert "numba" not in sys.modules, "importing the selector must not import Numba"
import numpy as np
regions = selector.RegionSelector([1.0])(np.ones((1, 1, 2, 3), np.float32), np.zeros((1, 1), np.float32))
print(selector.__file__, regions.boxes[0, 0].tolist(), sum(selector._kernel().stats.cache_hits.values()), sep="|")
"""


@pytest.fixture
def blocked_copy(tmp_path):
    """Runs CHILD on a copy of the runtime beside which nothing can be cached; gives (box, cache hits, stderr)."""
    runtime = tmp_path / "site" / "glocal" / "runtime"
    shutil.copytree(Path(selector_module.__file__).parent, runtime, ignore=shutil.ignore_patterns("__pycache__"))
    # Where a folder is needed stands a file, because permissions do not stop a superuser.
    (runtime / "__pycache__").touch()

    def run(user_cache):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA", "XDG"))}
        search = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**kept, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": search, "XDG_CACHE_HOME": str(user_cache)}
        done = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        module, box, hits = done.stdout.strip().split("|")
        assert Path(module).is_relative_to(tmp_path)
        return box, int(hits), done.stderr

    return run


def test_a_second_process_does_not_compile_again(blocked_copy, tmp_path):
    user_cache = tmp_path / "cache"
    for cache_hits in (0, 1):
        box, hits, printed = blocked_copy(user_cache)
        assert (box, hits) == ("[0, 0, 3, 2]", cache_hits)
        assert "cannot cache" not in printed
    assert list(user_cache.rglob("*.nbc"))


def test_the_selector_works_where_nothing_can_be_cached(blocked_copy, tmp_path):
    (tmp_path / "file").touch()
    box, hits, printed = blocked_copy(tmp_path / "file" / "cache")
    assert (box, hits) == ("[0, 0, 3, 2]", 0)
    assert "cannot cache" in printed
