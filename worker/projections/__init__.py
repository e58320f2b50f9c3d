"""The projections. Every module in this folder is one; loading a module registers it."""

import pkgutil
import traceback
from importlib import import_module

from worker.errors import RegistrationError, WorkerError
from worker.registry import Registry, registry


def load() -> Registry:
    """Import every projection and return the registry that they filled.

    Raises `RegistrationError` for a handler or a table that the worker cannot use.
    """
    for module in pkgutil.iter_modules(__path__):
        try:
            import_module(f"{__name__}.{module.name}")
        except WorkerError:
            raise
        except Exception as error:
            raise RegistrationError(
                f"The projection {module.name!r} cannot be loaded ({type(error).__name__}: {error}"
                f"{_place(error)}).",
                "correct its module.",
            ) from error
    registry.require_schemas()
    return registry


def _place(error: Exception) -> str:
    """Return the line of a projection that raised an error; a SyntaxError names its own."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    others = (each for each in frames if each.filename != __file__)
    ours = (each for each in others if each.filename.startswith(__path__[0]))
    return next((f"; {each.filename}:{each.lineno}" for each in ours), "")
