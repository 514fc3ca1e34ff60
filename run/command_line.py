"""The part of the command line that is the same wherever a configuration is named: ``--cfg FILE [key value ...]``."""

from __future__ import annotations

import argparse


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg``."""
    parser.add_argument("--cfg", dest="cfg_file", required=True, help="YAML configuration file")


def parse_with_options(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Flags, and in ``opts`` the ``key value`` options that override the YAML, in any order; ends with 2 if wrong."""
    args, options = parser.parse_known_args(argv)
    unknown = [option for option in options if option.startswith("--")]
    if unknown:
        parser.error(f"unknown flag {unknown[0]}; options are written as 'key value', without dashes")
    args.opts = options
    return args
