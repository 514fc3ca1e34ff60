"""Make one configuration per point of a grid, after checking all of them.

``python run/configs_gen.py --config configs_gg/synthetic.yaml --grid configs_gg/grids/example.txt`` writes
``configs_gg/synthetic_grid_example/synthetic-<alias>=<value>-....yaml``: as with GraphGym's script, beside the base.
Exit status: 0 done; 1 the grid is wrong and nothing was written; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import sys

from command_line import MADE_CONFIGS, before_imports, path, run_program

MOST = 10_000  # configurations per grid; more is taken for a mistake


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make one configuration per point of a grid, after checking all of them.",
        epilog="In file names, %%XX (as in a URL) stands for '/', space, '=' and other special characters.",
    )
    parser.add_argument("--config", type=path, help="base YAML: its values hold for keys that the grid does not name")
    parser.add_argument(
        "--grid", type=path, required=True, help="grid: lines 'key alias [value,value]', blank lines between blocks"
    )
    parser.add_argument(
        "--out_dir", type=path, default=MADE_CONFIGS, help=f"parent of <config>_grid_<grid>/ (default: {MADE_CONFIGS})"
    )
    parser.add_argument("--sample", action="store_true", help="a random sample (of 10, or --sample_num) of the grid")
    parser.add_argument("--sample_num", type=int, help="size of the random sample, drawn without replacement")
    parser.add_argument(
        "--sample_alias",
        type=path,
        help="file with aliases on its first line: for each, --sample_num random points, each with all its values",
    )
    parser.add_argument("--seed", type=int, default=123, help="seed of the sample (default: 123)")
    parser.add_argument(
        "--config_budget",
        type=path,
        help="YAML; gnn.dim_inner is fitted to its number of parameters (counted like GraphGym: one input, one output)",
    )
    args = parser.parse_args(argv)
    if args.sample_num is not None and not 1 <= args.sample_num <= MOST:
        parser.error(f"--sample_num is {args.sample_num}, expected 1 to {MOST:,}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    before_imports(computes=False)
    # Imported late, so that --help and a wrong command line answer at once.
    from grid import configs, space
    from grid.where import configs_folder

    try:
        blocks = space.read_grid(args.grid, configs.is_text)
        sample_size = args.sample_num or 10
        total = sum(map(space.size_of, blocks))
        if total > MOST and not (args.sample or args.sample_num or args.sample_alias):
            raise space.GridError(
                f"{args.grid} spans {total:,} points, expected at most {MOST:,}; draw some with --sample_num, "
                "or drop values"
            )
        if args.sample_alias:
            points = space.controlled_points(blocks, space.read_aliases(args.sample_alias), sample_size, args.seed)
        elif args.sample or args.sample_num:
            points = space.random_points(blocks, sample_size, args.seed)
        else:
            points = list(space.all_points(blocks))
        budget = None
        if args.config_budget:
            for axis in (axis for block in blocks for axis in block if axis.key == "gnn.dim_inner"):
                raise space.GridError(
                    f"{args.grid}, line {axis.line}: gnn.dim_inner is fitted by --config_budget; drop one of the two"
                )
            budget = configs.parameters_of(args.config_budget)
        made_configs = configs.make_configs(args.config, args.grid, points, budget)
        folder = configs_folder(args.out_dir, args.config, args.grid)
        notes = configs.write_configs(made_configs, folder)
    except (space.GridError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    sizes = " + ".join(str(space.size_of(block)) for block in blocks)
    print(f"{args.grid}: {sizes} points in {len(blocks)} block(s), {len(made_configs)} configurations in {folder}")
    for note in notes:
        print(note)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
