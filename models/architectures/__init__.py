"""The folder is the registry: one file per architecture, named as the file."""

import importlib
import inspect
import pkgutil
from functools import cache

from models.base import SegmentationModel


def list_architectures() -> list[str]:
    """Names of all architectures, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


@cache
def get_architecture(name: str) -> type[SegmentationModel]:
    """The one SegmentationModel defined in `architectures/<name>.py`; ValueError for an unknown name."""
    if name not in list_architectures():
        raise ValueError(f"got architecture {name!r}, wanted one of {', '.join(list_architectures())}")
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, SegmentationModel)
        and member.__module__ == module.__name__
        and not inspect.isabstract(member)
    ]
    if len(found) != 1:
        raise ValueError(f"{module.__name__} defines {len(found)} architectures, wanted one")
    return found[0]
