"""Average finished runs: ``python run/ensemble.py --dir results/a results/b --out results/a_and_b``.

Each experiment contributes its method with the best mean validation score. For each seed, the ensemble is the mean of
the members' class probabilities, as SimTeG's is over encoders (Duan et al. 2023, arXiv 2308.02565). Its runs are an
experiment like any other: leaderboard.py ranks it, with the costs of all members. Exit status: 0 done, 1 error, 2 wrong
command line.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_line import path, run_program
from session import run_to_status

if TYPE_CHECKING:
    from glem_graphgym.report.experiments import Experiment

    Member = tuple[Experiment, str]  # an experiment and one of its methods

ROWS_AT_ONCE = 1 << 16


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--dir", nargs="+", type=path, required=True, help="folders of at least two experiments")
    parser.add_argument("--out", type=path, required=True, help="folder for the ensemble's runs; must not exist")
    return run_to_status(average, parser.parse_args(argv), computes=False)


def average(args: argparse.Namespace) -> int:
    """Write the ensemble's experiment; returns the exit status."""
    from torch_geometric.graphgym.config import cfg

    from glem_graphgym.build.graph import load_text_graph_of, metrics_of
    from glem_graphgym.build.run import scores_of
    from glem_graphgym.config import load_config, metric_of
    from glem_graphgym.files import making
    from glem_graphgym.report import aggregate, reliability, stats
    from glem_graphgym.report.experiments import read_experiments
    from glem_graphgym.scores import blind_folder, hides_test

    out = args.out
    if out.exists():
        raise ValueError(f"--out {out} is there already; name another folder, or delete it")
    experiments = read_experiments(args.dir)[0]
    seeds = check_members(experiments)
    for experiment in experiments:
        if (hidden := blind_folder(experiment.folder)) and not hides_test(out):
            raise ValueError(f"--out {out} would show test scores that {hidden} hides; name a folder in that one")
    members = [(experiment, best_method(experiment, seeds)) for experiment in experiments]
    config = experiments[0].folder / "config.yaml"
    load_config(cfg, config)
    with making(out) as unfinished:
        if unfinished is None:
            raise ValueError(f"--out {out} has been made by another process meanwhile; name another folder")
        shutil.copyfile(config, unfinished / config.name)
        for seed in seeds:
            cfg.seed = seed  # of several fixed splits, it chooses one
            graph = load_text_graph_of(cfg)
            recorded = experiments[0].fingerprint or graph.fingerprint()
            if graph.fingerprint() != recorded:
                raise ValueError(
                    f"{graph.name} has the fingerprint {graph.fingerprint()} now, but the runs were on {recorded}; "
                    "restore the dataset's files"
                )
            run_dir = unfinished / str(seed)
            write_run(members, seed, functools.partial(scores_of, graph, metrics=metrics_of(graph)), run_dir)
            stats.finish_run(run_dir, cfg.round)
            reliability.describe_run(run_dir, graph.label, graph.split, graph.class_names)
        aggregate.aggregate_seeds(unfinished, cfg.metric_best, cfg.metric_agg, digits=cfg.round)
        rows = aggregate.aggregate_summaries(unfinished)
    aggregate.print_aggregate(rows, f"{out.name}, {len(seeds)} seeds", metric_of(cfg), blind=hides_test(out))
    return 0


def check_members(members: Sequence[Experiment]) -> list[int]:
    """Seeds that every experiment has finished; ValueError if the experiments cannot be averaged."""
    if len(members) < 2:
        raise ValueError(f"--dir names one experiment, {members[0].name}; expected at least two")
    for member in members:
        if member.stages.empty:
            raise ValueError(f"{member.name} is of train.mode {member.mode}, which keeps no logits; expected our modes")
        for fact in ("fingerprint", "metric"):
            value, expected = getattr(member, fact), getattr(members[0], fact)
            if value != expected:
                raise ValueError(
                    f"{members[0].name} has the {fact} {expected}, {member.name} {value}; expected runs on one "
                    "graph, by one metric"
                )
    seeds = sorted(set.intersection(*(set(member.runs) for member in members)))
    if not seeds:
        raise ValueError(f"no seed is finished in all of {', '.join(member.name for member in members)}")
    return seeds


def best_method(experiment: Experiment, seeds: Sequence[int]) -> str:
    """The method with the best mean validation score over ``seeds``, among those that each of these seeds has."""
    valid = experiment.results.pivot(index="seed", columns="method", values="valid")
    valid = valid.loc[list(seeds)].dropna(axis="columns")
    if valid.empty:
        raise ValueError(f"{experiment.name}: no method is finished in all of the seeds {', '.join(map(str, seeds))}")
    return str(valid.mean().idxmax())


def write_run(members: Sequence[Member], seed: int, evaluate: Callable[[Any], Any], run_dir: Path) -> None:
    """Write the ``run.json`` of a run, and its one stage: the mean of the members' predictions with that seed.

    Args:
        evaluate: logits (N, C) -> scores, as for a `Journal`.
    """
    import numpy as np
    import pandas as pd
    import torch

    from glem_graphgym.em.fit import FitLog
    from glem_graphgym.em.journal import Journal, StageKey, StageOutput
    from glem_graphgym.files import read_array, write_json
    from glem_graphgym.report.ogb_entry import external_data

    first_member = members[0][0]
    run_json = first_member.runs[seed]
    run_dir.mkdir(parents=True)
    names = [experiment.name for experiment, _ in members]
    settings = {"dataset.name": run_json["settings"].get("dataset.name", first_member.dataset), "members": names}
    # Runs of earlier versions recorded less.
    recorded = {
        key: run_json[key] for key in ("dataset", "fingerprint", "origin", "facts", "versions") if key in run_json
    }
    identity = {"seed": seed, "mode": "ensemble", "metric": first_member.metric, "settings": settings, "files": {}}
    sources = [source for experiment, _ in members for source in external_data(experiment)]
    write_json(run_dir / "run.json", {**identity, **recorded, "external_data": list(dict.fromkeys(sources))})
    costs = pd.DataFrame([experiment.results_of(method).loc[seed] for experiment, method in members])
    logits = []
    for experiment, method in members:
        if not (folder := experiment.stage_folders(method).get(seed)):
            run = experiment.folder / str(seed)
            raise ValueError(f"{run}: stages/ lacks the stage of {method}; start that seed's run again to redo it")
        logits.append(read_array(folder / "logits.npy"))
    glem = any(method.startswith("GLEM") for _, method in members)
    journal = Journal(run_dir, seed, evaluate, metric=first_member.metric)
    with journal.stage(StageKey(0, "ensemble", "none", "GLEM ensemble" if glem else "Ensemble")) as stage:
        out = stage.predictions("logits", logits[0].shape)
        for start in range(0, len(out), ROWS_AT_ONCE):
            block = slice(start, start + ROWS_AT_ONCE)
            shares = [torch.from_numpy(member_logits[block].astype(np.float32)).softmax(-1) for member_logits in logits]
            out[block] = torch.stack(shares).mean(0).clamp(min=1e-7).log().numpy()
        sums = costs.reindex(columns=["params", "seconds", "texts"]).fillna(0).sum()
        output = StageOutput(FitLog(), {}, int(sums["params"]), 0.0, texts=int(sums["texts"]))
        output.seconds_before = float(sums["seconds"])
        stage.finish(output)
        stage.peak_mb = max(stage.peak_mb, float(costs["peak_memory_mb"].max()))


if __name__ == "__main__":
    sys.exit(run_program(main))
