"""affinage: adapt a pretrained model to your data. The names here load what they need when they are first used."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from affinage.errors import AffinageError

if TYPE_CHECKING:
    from affinage.run import Run, fit, load
    from affinage.run import check_data as check

__all__ = ["AffinageError", "Run", "__version__", "check", "fit", "load"]
__version__ = "0.1.0"

_HOMES = {"Run": "Run", "check": "check_data", "fit": "fit", "load": "load"}  # public name: its name in affinage.run


def __getattr__(name: str) -> Any:
    """Names of `affinage.run`, imported at first use: torch and transformers take seconds, `affinage --help` must not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'affinage' has no attribute '{name}'")
    from affinage import run

    return getattr(run, _HOMES[name])


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """`affinage.fit` and `affinage.check` stay the functions, though fit.py and check/ are modules too.

    Python binds a submodule as an attribute of its package when it is first imported; these two are left unbound.
    `from affinage.fit import ...` works as ever.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
