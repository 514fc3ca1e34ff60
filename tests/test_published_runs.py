"""What the configurations of published runs come to once they are resolved: what really acted there acts here.

The names of settings are not enough: in the published code some have no effect, and some act without being named.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.gnn import build_gnn
from glem_graphgym.build.run import lm_learners
from glem_graphgym.config import load_config
from glem_graphgym.em.e_step import LMLearner
from glem_graphgym.em.fit import Validation
from glem_graphgym.models.dropout import Dropout
from glem_graphgym.models.gamlp import GAMLP
from glem_graphgym.models.text_encoder import TextClassifier

FOLDER = Path(__file__).resolve().parents[1] / "configs_gg"
OF_OGB = [file for file in sorted(FOLDER.glob("*.yaml")) if re.search("_(arxiv|products|papers100m)$", file.stem)]
GLEM = [file for file in OF_OGB if file.stem.startswith("glem_")]
FINE_TUNED = [
    file
    for file in OF_OGB
    if re.match("(glem|lm|cascade|joint)_", file.stem) and "lora" not in file.stem and "deberta" in file.read_text()
]
CLASSES = 3


@pytest.fixture(scope="module")
def deberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration of a small DeBERTa, whose dropouts are the published model's."""
    from transformers import DebertaConfig

    folder = tmp_path_factory.mktemp("deberta")
    sizes: dict[str, Any] = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 16}
    DebertaConfig(**sizes, num_attention_heads=2, relative_attention=True, pos_att_type="c2p|p2c").save_pretrained(
        folder
    )
    return folder


def learners(file: Path, deberta: Path) -> tuple[LMLearner, LMLearner]:
    """The LM of the configuration as it is fine-tuned on gold labels, and as it is trained in E-steps."""
    load_config(cfg, file, ["lm.model", str(deberta), "lm.pretrained", "False", "accelerator", "cpu"])
    tokens: Any = SimpleNamespace()
    return lm_learners(cfg, tokens, CLASSES, Validation(torch.empty(0).long().numpy(), lambda logits: 0.0))


def dropouts(module: nn.Module) -> set[float]:
    """All probabilities of dropout in a module, those of attention among them."""
    found = {part.p for part in module.modules() if isinstance(part, nn.Dropout | Dropout)}
    return found | {
        float(value) for part in module.modules() for name, value in vars(part).items() if name == "drop_prob"
    }


@pytest.mark.parametrize("file", FINE_TUNED, ids=lambda file: file.stem)
def test_the_encoder_trains_at_its_pretrained_dropouts(file: Path, deberta: Path) -> None:
    """The published code sets others after the model is built, which nothing reads."""
    for learner, key in zip(learners(file, deberta), ("lm", "e_step"), strict=True):
        model: TextClassifier = learner.build()
        assert dropouts(model.encoder) == {0.1}, key
        assert dropouts(model.head) == {head_dropout(key)}  # which does act there


def head_dropout(key: str) -> float:
    own = cfg[key].head_dropout
    return cfg.lm.head_dropout if own is None else own


@pytest.mark.parametrize("file", [file for file in GLEM if "papers100m" in file.stem], ids=lambda file: file.stem)
def test_gamlp_on_papers100m_has_its_label_branch_and_no_label_among_its_features(file: Path) -> None:
    load_config(cfg, file)
    net = build_gnn(cfg, 100, 172)
    assert isinstance(net, GAMLP) and net.label_branch is not None
    assert sum(parameter.numel() for parameter in net.parameters()) == 16_079_375
    assert sum(parameter.numel() for parameter in net.label_branch.parameters()) == 2_458_797
    net.eval()
    hops, labels = torch.randn(7, 4, 100), torch.rand(1, 4, 172)
    with torch.no_grad():
        with_labels, without = net(hops, labels), net.hop_logits(hops)
        torch.testing.assert_close(with_labels, without + net.label_branch(labels[0]))
    assert (with_labels != without).any()
