import json

import pytest
import torch
from glocal.benchmarks.cli import app
from glocal.benchmarks.macs import compare_costs, count_backbone, count_network
from glocal.benchmarks.plain import PlainClassifier
from glocal.train.config import model_config
from glocal.train.model import GlocalNet
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def paper() -> dict:
    return compare_costs("resnet101", "paper", 448, 80, 24)


def test_the_papers_network_has_the_papers_parameters(paper):
    assert {name: round(cost.parameters / 1e6, 2) for name, cost in paper.items()} == {
        "backbone": 42.66,  # the paper's 44.55 M are with ImageNet's 1000 classes
        "without attentions": 57.63,
        "full": 74.42,
    }


def test_the_backbone_costs_what_ptflops_says(paper):
    assert paper["backbone"].macs / 1e9 == pytest.approx(31.20, abs=0.01)
    assert paper["backbone"].with_rest / 1e9 == pytest.approx(31.39, abs=0.03)
    assert paper["full"].macs / 1e9 <= 35.0


def settings(**switches) -> dict:
    return {"backbone": "test_resnet", "classes": tuple("abcde"), "image_size": (96, 128), **switches}


@pytest.mark.parametrize("preset", ["paper", "glocal"])
@pytest.mark.parametrize("boxes", [1, 7])
def test_products_agree_with_pytorchs_counter(preset, boxes):
    config = model_config(preset, **settings())
    cost = count_network(config, boxes)
    model = GlocalNet(config).eval()
    model.local_branch.roi_form = "matmul"
    image = torch.zeros(1, 96, 128, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = model.global_branch(image)
        model.local_branch(out.features, out.global_feature, torch.rand(1, boxes, 4), torch.ones(1, boxes))
    assert cost.macs == counter.get_total_flops() / 2
    assert {"trunk", "tail", "attention", "head", "local RoIAlign", "local head"} <= set(cost.products)
    assert ("map_head" in cost.products) == (preset == "glocal")  # the paper shares one classifier
    assert ("local stage" in cost.products) == (preset == "paper")


def test_the_plain_backbone_agrees_too():
    config = model_config("paper", **settings())
    plain = PlainClassifier(GlocalNet(config).eval())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain(torch.zeros(1, 96, 128, 3, dtype=torch.uint8))
    assert count_backbone(config).macs == counter.get_total_flops() / 2


def test_boxes_cost_in_proportion_but_for_the_attention():
    one, two = (count_network(model_config("paper", **settings()), boxes).products for boxes in (4, 8))
    assert two["local stage"] == 2 * one["local stage"]
    assert two["trunk"] == one["trunk"]
    assert two["local attention"] > one["local attention"]


def test_the_command(tmp_path):
    arguments = ["macs", "--backbone", "test_resnet", "--labels", "5", "--size", "64", "--size", "96", "--boxes", "3"]
    files = ["--json", str(tmp_path / "macs.json"), "--plot", str(tmp_path / "macs.png")]
    done = CliRunner().invoke(app, [*arguments, *files])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "macs.json").read_text())
    rows = report["results"]
    assert (report["benchmark"], report["machine"]["cores"] >= 1) == ("macs", True)
    assert all(row["macs"] == sum(row["products"].values()) for row in rows)
    assert not any("paper" in row for row in rows)  # the paper says nothing of this backbone
    assert [(row["size"], row["network"]) for row in rows[::3]] == [(64, "backbone"), (96, "backbone")]
    assert (tmp_path / "macs.png").read_bytes().startswith(b"\x89PNG")
