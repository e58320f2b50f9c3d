"""What is kept about events. Every module in this folder is a projection; loading registers it."""

import pkgutil
from importlib import import_module

from worker.registry import Registry, registry


def load() -> Registry:
    """Import every projection, and return the registry that they filled.

    Raises `RegistrationError` for a handler or a table that the worker could not use.
    """
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    registry.require_schemas()
    return registry
