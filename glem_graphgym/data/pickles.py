"""Reads datasets that other libraries keep as pickles, without running any pickled code."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glem_graphgym.data.errors import DataError

FORCE, FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
BUILTINS = {"object", *("list", "dict", "set", "frozenset", "tuple")}
BUILTINS |= {"int", "float", "complex", "bytes", "bytearray", "long"}
NUMPY = {"ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer"}
# Names that pickles of arrays, sparse matrices and plain containers use, from Python 2 too: module -> names.
DATA = {
    "builtins": BUILTINS,
    "__builtin__": BUILTINS,
    "collections": {"defaultdict", "OrderedDict"},
    "copyreg": {"_reconstructor"},
    "copy_reg": {"_reconstructor"},
    "_codecs": {"encode"},
    **{
        f"numpy{submodule}": NUMPY
        for submodule in ("", ".core.multiarray", "._core.multiarray", ".core.numeric", "._core.numeric")
    },
    **{
        f"scipy.sparse.{private}{kind}": {f"{kind}_matrix", f"{kind}_array"}
        for private in ("", "_")
        for kind in ("csr", "csc", "coo", "lil")
    },
}


class DataUnpickler(pickle.Unpickler):
    """Unpickles arrays, sparse matrices and containers; refuses everything else before it is even imported."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in DATA.get(module, ()):
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)


@contextlib.contextmanager
def only_data_is_unpickled(folder: Path) -> Iterator[None]:
    """Within this block `pickle.load` makes only plain data, and `torch.load` only tensors and classes declared safe.

    PyTorch Geometric loads `processed/pre_transform.pt` and the raw files of some datasets without such a limit.

    Raises:
        DataError: a file holds something else; names it, or the dataset's ``folder``.
    """
    load, environment = pickle.load, {name: os.environ.pop(name, None) for name in (FORCE, FORBID)}

    def load_data(file: Any, **options: Any) -> Any:
        try:
            return DataUnpickler(file, **options).load()
        except pickle.UnpicklingError as error:
            raise _refused(getattr(file, "name", folder), error) from error

    pickle.load, os.environ[FORCE] = load_data, "1"
    try:
        yield
    except pickle.UnpicklingError as error:
        raise _refused(_first_unsafe(folder), error) from error
    finally:
        pickle.load = load
        os.environ.pop(FORCE)
        os.environ.update({name: value for name, value in environment.items() if value is not None})


def _refused(file: object, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(
        f"{file}: this pickle would run code when it is loaded, or is damaged ({reason:.200}); delete it if it is in a "
        "folder 'processed', which is made anew, else download it again"
    )


def _first_unsafe(folder: Path) -> Path:
    import torch

    for file in sorted(folder.rglob("processed/*.pt")):
        try:
            torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            return file
        except Exception:  # damaged, but not the file that was refused
            continue
    return folder
