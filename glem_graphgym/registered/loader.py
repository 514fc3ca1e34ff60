"""Text-attributed graphs for GraphGym's own training: ``dataset.format: TAG``."""

from __future__ import annotations

import numpy as np
import torch
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import register_loader

from glem_graphgym.build.features import static_embeddings
from glem_graphgym.build.graph import load_text_graph_of, open_tokens
from glem_graphgym.config import ConfigError, check_config, feature_kinds
from glem_graphgym.data.text_graph import DataError, TextGraph
from glem_graphgym.modes import MODES


class TextGraphDataset(InMemoryDataset):
    """A text graph in GraphGym's form: one `Data` with x, y, edge_index, masks, and ``n_id``, the index of each node.

    GraphGym's samplers subset ``n_id`` like other node attributes; the text encoder looks up tokens by it.
    """

    def __init__(self, graph: TextGraph, x: np.ndarray) -> None:
        super().__init__(None)
        masks = {}
        for split, mask in (("train", "train_mask"), ("valid", "val_mask"), ("test", "test_mask")):
            masks[mask] = torch.zeros(graph.num_nodes, dtype=torch.bool)
            masks[mask][torch.from_numpy(graph.split[split])] = True
        data = Data(
            x=torch.from_numpy(np.array(x, dtype=np.float32)),
            edge_index=torch.from_numpy(graph.edge_index()),
            # GraphGym would count -1 as a class. Nodes without a label are in no mask, so their 0 is never read.
            y=torch.from_numpy(np.maximum(graph.label, 0)),
            n_id=torch.arange(graph.num_nodes),
            **masks,
        )
        self.data, self.slices = self.collate([data])


class UnreadDataset(TextGraphDataset):
    """The graph for GraphGym's mains, which make loaders before they call one of this package's train modes.

    These modes load the graph themselves, so only GraphGym's own training would read a batch: an error.
    """

    def get(self, idx: int) -> Data:
        mode = cfg.train.mode
        raise ConfigError(
            f"train.mode is '{mode}', but GraphGym's own training has been started, which knows train.mode standard "
            f"alone; call train_dict['{mode}']() in place of it, as run/main.py does, or set train.mode to standard"
        )


@register_loader("glem_text_graph")
def load_text_graph_dataset(format: str, name: str, dataset_dir: str) -> TextGraphDataset | None:
    """GraphGym's loader for ``dataset.format: TAG``; None for other formats, which have other loaders.

    Raises:
        ConfigError: the configuration has a mistake, such as another format with a train mode of this package.
    """
    is_ours = cfg.train.mode in MODES
    if format != "TAG" and not is_ours:
        return None
    check_config(cfg)
    graph = load_text_graph_of(cfg)
    if is_ours:
        return UnreadDataset(graph, np.zeros((graph.num_nodes, 1)))
    kind = feature_kinds(cfg.glem.node_features)
    if (cfg.dataset.node_encoder and cfg.dataset.node_encoder_name == "glem_text") or cfg.model.type == "glem_lm":
        x = np.zeros((graph.num_nodes, 1))  # the text encoder makes the features
    elif kind == ["raw"] and graph.features is not None:
        x = np.asarray(graph.features)
    elif kind == ["static"]:
        x = static_embeddings(cfg, open_tokens(cfg, graph))
    else:
        raise DataError(
            f"train.mode standard on {graph.name}: glem.node_features is '{cfg.glem.node_features}' and the graph has "
            f"{'raw' if graph.features is not None else 'no raw'} features; expected static, raw (where there are "
            "any), or dataset.node_encoder_name glem_text"
        )
    return TextGraphDataset(graph, x)
