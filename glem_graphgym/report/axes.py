"""Settings in which experiments differ: as axes of comparison, and as words in the names of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from glem_graphgym.modes import MODES
from glem_graphgym.report.experiments import Experiment

FOLDER = Path(__file__).with_name("templates")
SIMPLEST_FIRST = list(MODES)  # earlier train modes are parts of later ones
# "group.key" (keys that change together are joined by " + ") -> value, in order -> names of its experiments.
Axes = dict[str, dict[str, list[str]]]
WORDS: dict[str, list[Any]] = yaml.safe_load((FOLDER / "axes.yaml").read_text(encoding="utf-8"))
SMOOTHED = "+C&S"
# Method -> start and end of its row's name, "start (network, settings) · end"; other methods are the start themselves.
NAME_ENDS = {
    "LM+Cascade": ("Cascade", "LM + GNN"),
    "GLEM-LM": ("GLEM", "LM"),
    "GLEM-GNN": ("GLEM", "GNN"),
    "GLEM-LM+GNN": ("GLEM", "LM + GNN"),
}
# Keys of group glem that matter from the first EM iteration on, as e_step.* does; groups that an LM alone ignores.
EM_KEYS = "order em_iterations em_max_iterations alpha beta targets temperature confidence pseudo_nodes smooth_pseudo "
EM_KEYS += "lm_pseudo_ratio gnn_pseudo_ratio lm_redraw lm_init lm_init_first first_predictions"
GNN_GROUPS = ("model", "gnn", "optim", "train")
FAMILIES_WITH_GNN = ("GNN", "Cascade", "Joint", "GLEM")


def complexity(mode: str) -> int:
    return [*SIMPLEST_FIRST, mode].index(mode)


def varied_settings(experiments: Sequence[Experiment]) -> list[tuple[str, ...]]:
    """Keys of the settings in which experiments differ; keys that change together share a tuple."""
    partitions: dict[tuple[int, ...], list[str]] = {}
    for key in sorted({key for experiment in experiments for key in experiment.settings}):
        values = [json.dumps(experiment.settings.get(key), sort_keys=True, default=str) for experiment in experiments]
        partition = tuple(map(values.index, values))
        if any(partition):
            partitions.setdefault(partition, []).append(key)
    return list(map(tuple, partitions.values()))


def axes_within_modes(experiments: Sequence[Experiment]) -> Axes:
    """Axes of comparison within each train mode, GLEM's first; keys that several modes vary are one axis over them.

    A setting that differs only between modes is no axis: its effect could not be told from the mode's.
    """
    varied: dict[tuple[str, ...], list[Experiment]] = {}
    for mode in sorted({experiment.mode for experiment in experiments}, key=complexity, reverse=True):
        members = [experiment for experiment in experiments if experiment.mode == mode]
        for keys in varied_settings(members):
            varied.setdefault(keys, []).extend(members)
    axes: Axes = {}
    for keys, members in varied.items():
        names_by_value: dict[str, list[str]] = {}
        sort_keys: dict[str, Any] = {}
        for experiment in members:
            values = [experiment.settings.get(key) for key in keys]
            value_text = ", ".join(map(show_value, values))
            names_by_value.setdefault(value_text, []).append(experiment.name)
            sort_keys[value_text] = tuple(map(sort_key, values))
        axes[" + ".join(keys)] = {
            value_text: names_by_value[value_text] for value_text in sorted(names_by_value, key=sort_keys.__getitem__)
        }
    return axes


def sort_key(value: Any, text: Callable[[Any], str] = str) -> tuple[int, float, str]:
    return (0, value, "") if isinstance(value, int | float) else (1, 0, text(value))


def show_value(value: Any) -> str:
    """A setting as it is typed: ``0.001``, ``true``, ``[5, 10]``; ``unset`` for none."""
    if value is None:
        return "unset"
    return value if isinstance(value, str) and value else json.dumps(value)


# ---- in words -----------------------------------------------------------------------------------------------------


def family_of(method: str) -> str:
    """Kind of a method: LM, GNN, Cascade, Joint or GLEM; any other method is a kind of its own."""
    base = method.removesuffix(SMOOTHED)
    return NAME_ENDS.get(base, (base, ""))[0]


def leading(keys: Sequence[str]) -> str:
    """The key to mention in names, of keys that change together: the first in ``axes.yaml``, else the first given."""
    return next((key for key in WORDS if key in keys), keys[0])


def _order(key: str) -> int:
    """Position of a setting in names: that in ``axes.yaml``; keys that are not listed there come last."""
    return [*WORDS, key].index(key)


def value_in_words(key: str, value: Any) -> str:
    """``LoRA 16``, ``2 iterations``, ``width 256``."""
    words, words_by_value = [*WORDS.get(key, ["", ""])[1:], {}][:2]
    if not isinstance(value, list | dict) and value in words_by_value and type(value) in map(type, words_by_value):
        return str(words_by_value[value])
    value_text = ", ".join(map(str, value)) if isinstance(value, list) else show_value(value)
    if key == "lm.model":
        value_text = PurePath(value_text).name
    if words and value is not None:
        return str(words).replace("{}", value_text)
    name = key.rpartition(".")[2].replace("_", " ")
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {value_text}"


def axis_sentence(axis: str) -> str:
    """A sentence on the setting of an axis; ``""`` if ``axes.yaml`` does not list it."""
    return str(WORDS.get(leading(axis.split(" + ")), [""])[0])


def network_of(experiment: Experiment) -> str:
    """The GNN in words, such as ``SAGE``; for GraphGym's own network its layer type, empty for an ensemble."""
    network = str(experiment.settings.get("model.type", ""))
    if network == "gnn":
        return str(experiment.settings.get("gnn.layer_type", network))
    return value_in_words("model.type", network) if network else ""


def names_in_words(rows: Sequence[tuple[str, Sequence[Experiment]]], experiments: Sequence[Experiment]) -> list[str]:
    """A name per row: its kind of method, the GNN, and the settings that tell experiments of its train mode apart.

    ``Cascade (GAMLP)``, ``GLEM (SAGE, 2 iterations) · GNN``, ``LM, LoRA 16``. Rows that would share a name are told
    apart by settings in which they differ, first those that matter to their method, then by their number of seeds, then
    by the name of the experiment.

    Args:
        rows: per row its method and the experiments that gave this result; the row is named after the first.
        experiments: all experiments of the table.
    """
    by_mode = {mode: [one for one in experiments if one.mode == mode] for mode in {one.mode for one in experiments}}
    varied_in_mode = {mode: varied_settings(same_mode) for mode, same_mode in by_mode.items()}
    words_by_row = []
    for method, (experiment, *others) in rows:
        mode = experiment.mode
        settings = _distinguishing_settings(method, [experiment, *others], by_mode[mode], varied_in_mode[mode])
        words_by_row.append(_settings_in_words(experiment, settings))
    names = [_row_name(method, members[0], words) for (method, members), words in zip(rows, words_by_row, strict=True)]
    for tie_breaker in TIE_BREAKERS:
        for namesakes in [[i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)]:
            varied = varied_settings([rows[i][1][0] for i in namesakes])
            candidates = [tie_breaker(rows[i][0], rows[i][1][0], varied) for i in namesakes]
            if candidates.count(candidates[0]) == len(candidates):
                continue  # these words tell nothing apart
            for i, candidate in zip(namesakes, candidates, strict=True):
                words_by_row[i] += [words for words in candidate if words not in words_by_row[i]][:2]
                names[i] = _row_name(rows[i][0], rows[i][1][0], words_by_row[i])
    return names


def _distinguishing_settings(
    method: str, members: Sequence[Experiment], same_mode: Sequence[Experiment], varied: Sequence[tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Of the settings that are ``varied`` in a train mode, those that tell more experiments apart than the network and
    the settings before them do; ``members`` are the row's experiments."""
    # A setting that differs between experiments with identical scores did not influence them.
    common = [keys for keys in varied if len({_values(member, keys) for member in members}) == 1]
    told_apart = [network_of(one) if family_of(method) in FAMILIES_WITH_GNN else "" for one in same_mode]
    distinguishing = []
    for keys in sorted(_relevant(method, common), key=lambda keys: _order(leading(keys))):
        refined = [before + _values(one, keys) for before, one in zip(told_apart, same_mode, strict=True)]
        if len(set(refined)) > len(set(told_apart)):
            distinguishing.append(keys)
            told_apart = refined
    return distinguishing


def _values(experiment: Experiment, keys: Sequence[str]) -> str:
    return str([experiment.settings.get(key) for key in keys])


def _relevant(method: str, varied: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Of settings that change together, those on which a method's result can depend."""
    relevant = [tuple(key for key in keys if _matters(method, key)) for keys in varied]
    return [keys for keys in relevant if keys]


def _matters(method: str, key: str) -> bool:
    """Whether a method's result can depend on a setting."""
    group, _, name = key.partition(".")
    family = family_of(method)
    if family != "GLEM" and (group == "e_step" or (group == "glem" and name in EM_KEYS.split())):
        return False
    return family != "LM" or group not in GNN_GROUPS


def _settings_in_words(experiment: Experiment, varied: Sequence[tuple[str, ...]]) -> list[str]:
    without_network = [[key for key in keys if key != "model.type"] for keys in varied]
    keys = [leading(keys) for keys in without_network if keys]
    ordered = sorted((key for key in keys if key in experiment.settings), key=_order)
    return [words for key in ordered if (words := value_in_words(key, experiment.settings.get(key)))]


# (method, experiment, settings in which its namesakes differ) -> words that may tell it apart, tried in this order.
TIE_BREAKERS: list[Callable[[str, Experiment, Sequence[tuple[str, ...]]], list[str]]] = [
    lambda method, experiment, varied: _settings_in_words(experiment, _relevant(method, varied)),
    lambda method, experiment, varied: _settings_in_words(experiment, varied),
    lambda method, experiment, varied: [f"{len(experiment.runs)} seeds"],
    lambda method, experiment, varied: [experiment.name],
]


def _row_name(method: str, experiment: Experiment, words: Sequence[str]) -> str:
    base = method.removesuffix(SMOOTHED)
    start, end = NAME_ENDS.get(base, (base, ""))
    if start in FAMILIES_WITH_GNN:
        start_in_words = f"{start} ({', '.join([network_of(experiment), *words])})"
    else:
        start_in_words = ", ".join([start, *words])
    return " · ".join(filter(None, [start_in_words, end, "C&S" if base != method else ""]))
