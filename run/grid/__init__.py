"""Grids of experiments: the code behind configs_gen.py, parallel.sh and agg_batch.py."""
