"""The ``glocal`` command. It stands here because only this folder may import all others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..export.calibrate_cli import calibrate
from ..export.cli import ListCommand, export, verify
from ..export.early_exit_cli import early_exit
from ..runtime.cli import main_with_errors, run
from ..runtime.doctor_cli import doctor
from ..train.ablate_cli import ablate
from ..train.cli import evaluate, train
from ..train.figure_cli import figure
from .latency_cli import latency
from .macs_cli import macs
from .peers_cli import peers
from .report_cli import report
from .selector_cli import selector as bench_selector
from .soak import main as bench_soak
from .startup import startup
from .stream import stream
from .threads import threads
from .tradeoff_cli import tradeoff

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Two-branch multi-label image classification: train, export, run, evaluate.",
)
bench = typer.Typer(no_args_is_help=True, help="Measure.")
app.add_typer(bench, name="bench")
for command in (train, evaluate, ablate, figure, calibrate, run, doctor, macs):
    app.command()(command)
app.command(cls=ListCommand)(export)
app.command(cls=ListCommand)(verify)
app.command("early-exit", cls=ListCommand)(early_exit)
bench.command("latency", cls=ListCommand)(latency)
bench.command("peers")(peers)
bench.command("report")(report)
bench.command("selector")(bench_selector)
bench.command("soak")(bench_soak)
bench.command("startup")(startup)
bench.command("tradeoff", cls=ListCommand)(tradeoff)
bench.command("stream")(stream)
bench.command("threads")(threads)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="An empty or new folder.")] = Path("runs/demo"),
    pretrain_crops: Annotated[int, typer.Option(min=100, help="Single digits to pretrain the backbone on.")] = 12_000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training scenes.")] = 7,
    train_images: Annotated[int, typer.Option(min=32, help="Training scenes an epoch.")] = 1000,
    test_images: Annotated[int, typer.Option(min=50, help="Held-out scenes.")] = 1000,
    rounds: Annotated[int, typer.Option(min=5, help="Timed rounds.")] = 100,
) -> None:
    """The main job on built-in data: train for 3 minutes at most, export, run, draw, compare."""
    from rich.console import Console

    from .demo import demo as run_demo
    from .demo import print_table

    results = run_demo(
        out,
        pretrain_crops=pretrain_crops,
        epochs=epochs,
        train_images=train_images,
        test_images=test_images,
        rounds=rounds,
    )
    print_table(results, Console())
    print(f"look at {out / 'index.html'}")


def main() -> None:
    """Entry point of the console script."""
    main_with_errors(app)
