"""Grids of experiments: what configs_gen.py, parallel.sh and agg_batch.py do."""
