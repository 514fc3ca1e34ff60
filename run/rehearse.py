"""Rehearse the runs on OGB's graphs: ``python run/rehearse.py arxiv [--scale 0.1] [key value ...]``.

Writes a generated graph in the exact format and size of ogbn-arxiv (or ogbn-products) and a small DeBERTa with random
weights, then runs the commands that a user types: run/prepare.py, run/main.py for each configuration,
run/leaderboard.py. Ends with a table of time, memory and scores per stage, which is kept in figures.md. Type the same
command again to resume. Exit status: 0 done; 1 a step failed and said why; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from command_line import CONFIGS, parse_with_options, path, run_program
from session import run_to_status

Options = Mapping[str, object]
# Random weights learn nothing in a few epochs at learning rates that are meant for pretrained weights.
FEW_EPOCHS: dict[str, Options] = {
    "tiny": {
        "lm.epochs": 1, "lm.lr": 2e-3, "lm.warmup_epochs": 0.1, "e_step.epochs": 1, "e_step.lr": 2e-3,
        "optim.max_epoch": 10, "optim.warmup_epochs": 2,
    },
    "base": {"lm.epochs": 1, "e_step.epochs": 1, "optim.max_epoch": 300},
}  # fmt: skip
ALWAYS: Options = {"glem.em_iterations": 1, "glem.share_lm_gold": True}
RUNS: dict[str, dict[str, Options]] = {
    "arxiv": {"glem_arxiv": {}, "glem_revgat_arxiv": {"optim.max_epoch": 5}},
    "products": {"glem_gamlp_products": {"glem.encode_nodes": "needed", "optim.max_epoch": 2}},
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Run the configurations of an OGB dataset on a generated graph of its size, from the first command "
        "to the leaderboard.",
        epilog="Options 'key value' override the YAML and the values that this script sets, e.g.: lm.max_length 128",
    )
    parser.add_argument("dataset", choices=list(RUNS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the true size, 0.001 to 1 (default: 1)")
    parser.add_argument("--lm", choices=list(FEW_EPOCHS), default="tiny", help="size of the DeBERTa (default: tiny)")
    parser.add_argument("--precision", choices=["bf16", "16", "32"], default="bf16", help="for the LM (default: bf16)")
    parser.add_argument("--full_length", action="store_true", help="generate texts of more than 512 tokens each")
    parser.add_argument("--prepare", action="store_true", help="stop after run/prepare.py")
    parser.add_argument(
        "--folder", type=path, default=Path("datasets/rehearsal"), help="root folder (default: datasets/rehearsal)"
    )
    args = parse_with_options(parser, argv)
    if not 0.001 <= args.scale <= 1:
        parser.error(f"--scale is {args.scale:g}, expected 0.001 to 1")
    return args


def main(argv: list[str] | None = None) -> int:
    return run_to_status(rehearse, parse_args(argv))


def rehearse(args: argparse.Namespace) -> int:
    """Do all steps and print their costs; returns the exit status."""
    from benchmarks.measure import describe_machine
    from rehearsal import graphs
    from rehearsal.models import make_deberta
    from rehearsal.steps import Steps
    from torch_geometric.graphgym.config import cfg

    from glem_graphgym.config import load_config
    from glem_graphgym.disk import disk_full_errors
    from glem_graphgym.files import atomic_write

    shape = {"arxiv": graphs.ARXIV, "products": graphs.PRODUCTS}[args.dataset].scaled(args.scale)
    if args.full_length:
        shape = replace(shape, body=graphs.Lengths(600, 0.0, 600))
    data = args.folder / f"{args.dataset}_{args.scale:g}{'_full' if args.full_length else ''}"
    results = data / f"results_{args.lm}_{args.precision}"
    lm = args.folder / f"deberta_{args.lm}"
    folders = {"dataset.dir": data, "out_dir": results, "lm.model": lm, "lm.precision": args.precision}
    options_of: dict[str, list[str]] = {}
    for config, config_options in RUNS[args.dataset].items():
        options = {**folders, **ALWAYS, **FEW_EPOCHS[args.lm], **config_options}
        words = [str(word) for key, value in options.items() if key not in args.opts for word in (key, value)]
        options_of[config] = [*words, *args.opts]
        load_config(cfg, CONFIGS / f"{config}.yaml", options_of[config])  # refused before anything is generated
    with disk_full_errors(args.folder):
        print(f"{data}: {shape.nodes:,} nodes, {shape.edges:,} edges in the format of {shape.name}", flush=True)
        graphs.write_graph(data, shape)
        make_deberta(lm, args.lm)
        steps = Steps(results, data)
        for config, words in options_of.items():
            settings = ["--cfg", CONFIGS / f"{config}.yaml", *words]
            steps.run(f"prepare, {config}", "prepare.py", *settings)
            if not args.prepare:
                steps.run(f"run, {config}", "main.py", *settings)
        if not args.prepare:
            title_note = "Rehearsal on a generated graph: these scores say nothing of the method"
            steps.run("leaderboard", "leaderboard.py", "--dir", results, "--title", title_note)
        title = f"{shape.name} x {args.scale:g}, DeBERTa {args.lm}, {args.precision}"
        text = f"{title}; {describe_machine()}\n\n{steps.table()}"
        with atomic_write(results / "figures.md", "w") as file:
            file.write(f"{text}\n")
    print(f"\n{text}\nin {results / 'figures.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
