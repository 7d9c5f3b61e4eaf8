"""Replace the classes of modules; the only place where a module's class is changed or restored."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

Undo = Callable[[], None]
Table = Mapping[type[nn.Module], type[nn.Module]]


def swap(model: nn.Module, table: Table, wanted: Callable[[str, nn.Module], bool] = lambda name, module: True) -> Undo | None:
    """Change the class of every `wanted` module whose exact type is a key of `table` to the class listed there.

    Returns a function that restores the classes, or None if the model has modules of neither the old nor the new classes.
    Parameters, buffers, hooks and names stay as they are. A second call changes nothing.
    """
    changed = [(m, type(m)) for name, m in model.named_modules() if type(m) in table and wanted(name, m)]
    targets = tuple(table.values())
    if not changed and not any(isinstance(module, targets) for module in model.modules()):
        return None
    for kind in set(targets):
        kind._get_name = _library_name  # type: ignore[method-assign] # print(model) shows the library's names
    for module, kind in changed:
        module.__class__ = table[kind]

    def undo() -> None:
        for module, kind in changed:
            module.__class__ = kind

    return undo


def _library_name(module: nn.Module) -> str:
    """The name of the class that a kernel's class replaces."""
    return next(kind.__name__ for kind in type(module).__mro__ if not kind.__module__.startswith("medgraft."))
