"""What is kept about events. Every module in this folder is a projection; loading registers it."""

import pkgutil
from importlib import import_module

from worker.registry import Registry, registry


def load() -> Registry:
    """Import every projection and give the registry that they filled.

    Raises `RegistrationError` for a handler or table that cannot be registered.
    """
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return registry
