"""Packages that a plain install leaves out, and the sentence that says how to get them."""

from __future__ import annotations

import importlib.util

from graphs.errors import NotServedError


def is_installed(module: str) -> bool:
    """Whether a module can be imported; it is looked for, not imported."""
    return importlib.util.find_spec(module) is not None


def check_plots(what: str) -> None:
    """Raise where Matplotlib is missing; `what` needs it, as in `check_extra`.

    Raises:
        NotServedError: It is not installed; the message says how to install it.
    """
    check_extra(what, module="matplotlib", package="Matplotlib", extra="plots")


def check_ray(what: str) -> None:
    """Raise where Ray is missing; `what` needs it, as in `check_extra`.

    Raises:
        NotServedError: It is not installed; the message says how to install it.
    """
    check_extra(what, module="ray", package="Ray", extra="ray")


def check_extra(what: str, *, module: str, package: str, extra: str) -> None:
    """Raise where a package is missing, before the work that needs it begins.

    Args:
        what: What needs it, as the sentence begins: ``"placer 'mincut'"``.
        module: The package's module, without a dot.
        package: The package's name for people.
        extra: The extra of this distribution that installs it.

    Raises:
        NotServedError: It is not installed; the message says how to install it.
    """
    if not is_installed(module):
        missing = f"not installed: pip install 'device-placement[{extra}]'"
        raise NotServedError(f"{what} needs {package}, which is {missing}", reason=missing)
