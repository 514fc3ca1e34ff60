"""Export the models of a finished run: ``python run/export.py --dir results/glem_debian/0``, or ``--cfg FILE``.

The LM becomes a sentence-transformers folder, which ``lm.model`` can name too; beside it are the GNN's weights, and the
embeddings and predictions of all nodes. With --cfg, give the options that the run was trained with.
Exit status: as for run/main.py.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from command_line import parse_with_options, path, run_program
from session import experiment_name, run_to_status, set_up_logging, set_up_process


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write the LM, the GNN's weights, the embeddings and the predictions of a finished run.",
        epilog="Options 'key value' override the YAML; with --cfg give those that the run was trained with.",
    )
    run = parser.add_mutually_exclusive_group(required=True)
    run.add_argument("--cfg", dest="cfg_file", type=path, help="YAML configuration file of the run")
    run.add_argument("--dir", dest="run_dir", type=path, help="the run's folder, such as results/glem_debian/0")
    parser.add_argument("--out", type=path, help="folder to write (default: export, in the run's folder)")
    parser.add_argument("--stage", help="stage to take, such as e_step_2 (default: the best by validation)")
    parser.add_argument("--adapter", action="store_true", help="LoRA: write the adapters alone, not merged")
    return parse_with_options(parser, argv)


def main(argv: list[str] | None = None) -> int:
    return run_to_status(export, parse_args(argv))


def export(args: argparse.Namespace) -> int:
    """Export one run; returns the exit status."""
    from torch_geometric.graphgym.config import cfg

    from glem_graphgym.build.export import export_run
    from glem_graphgym.build.run_folder import require_finished
    from glem_graphgym.config import load_config
    from glem_graphgym.files import read_json

    if args.run_dir:
        run_dir = args.run_dir.resolve()
        require_finished(run_dir)
        load_config(cfg, run_dir.parent / cfg.cfg_dest, args.opts)
        cfg.seed = read_json(run_dir / "run.json")["seed"]
    else:
        load_config(cfg, args.cfg_file, args.opts)
        run_dir = Path(cfg.out_dir) / experiment_name(args.cfg_file) / str(cfg.seed)
        require_finished(run_dir)
    cfg.out_dir, cfg.run_dir = str(run_dir.parent), str(run_dir)
    set_up_logging(cfg)
    set_up_process(cfg)
    out = args.out or run_dir / "export"
    export_run(cfg, out, args.stage, args.adapter)
    logging.info(f"Exported: {out}, with {', '.join(sorted(path.name for path in out.iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
