"""What a generated graph or a network refuses is said in the names of the configuration, not in those of the code."""

from __future__ import annotations

import pytest

from tests.bad_inputs.conftest import Program

SHARES = ("dataset.tag_split", "[0.3, 0.2, 0.3]")
GNN = ("train.mode", "glem_gnn", "glem.node_features", "raw", "dataset.synthetic_features", "4")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("dataset.synthetic_degree", "29"), ["dataset.synthetic_degree", "29", "14.5", "dataset.synthetic_nodes 60"]),
        (("dataset.synthetic_classes", "50"), ["dataset.tag_split", "'train'", "50"]),
        (("dataset.synthetic_classes", "5000", "dataset.synthetic_nodes", "60000"), ["dataset.synthetic_classes"]),
        (("dataset.tag_split", "[0.001, 0.5, 0.4]"), ["dataset.tag_split", "'train'", "dataset.synthetic_nodes"]),
        (("dataset.tag_split", "[0.5, 0.4, 0.4]"), ["dataset.tag_split", "0.4"]),
        (("model.type", "glem_mlp", "gnn.layers_mp", "0"), ["gnn.layers_mp", "0", "glem_mlp", "1"]),
        (("model.type", "glem_revgat", "gnn.layers_mp", "1"), ["gnn.layers_mp", "1", "glem_revgat", "2"]),
        (("model.type", "glem_sign", "gnn.layers_mp", "0"), ["gnn.layers_mp", "0", "glem_sign", "1"]),
        (("model.type", "glem_gamlp", "gnn.layers_mp", "0"), ["gnn.layers_mp", "0", "glem_gamlp", "1"]),
        (("model.type", "glem_revgat", "gnn.dim_inner", "7"), ["gnn.dim_inner", "7", "gnn.rev_groups", "2"]),
        (("model.type", "glem_revgat", "gnn.rev_groups", "3"), ["gnn.dim_inner", "8", "gnn.rev_groups", "3"]),
    ],
)
def test_a_refusal_names_the_key(program: Program, options: tuple[str, ...], names: list[str]) -> None:
    program.refuses(*SHARES, *GNN, *options, names=names)
