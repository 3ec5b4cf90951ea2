"""timm, and networks without values, both without torch's compiler.

torchvision, timm and torch's rules for tensors without values import torch._dynamo for decorators that only
torch.compile heeds. It brings sympy and much of torch.distributed along: a third of the CPU time that a command needs
to start.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

COMPILER, UTILS = "torch._dynamo", "torch._dynamo.utils"


@contextmanager
def without_compiler() -> Iterator[None]:
    """Let torch's compiler stay unloaded: what is decorated to be left out when compiling is left as it is."""
    if COMPILER in sys.modules:
        yield
        return
    compiler, utils = ModuleType(COMPILER), ModuleType(UTILS)
    compiler.disable = _as_it_is
    utils.is_compile_supported = lambda device: importlib.import_module(UTILS).is_compile_supported(device)
    sys.modules |= {COMPILER: compiler, UTILS: utils}
    try:
        yield
    finally:
        del sys.modules[COMPILER], sys.modules[UTILS]


@contextmanager
def shapes_only() -> Iterator[None]:
    """What is made inside has shapes and no values, and takes no memory."""
    with without_compiler(), torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Leaves out to fill tensors at random: without values, that is nothing but an import of sympy."""

    FILLS = (Tensor.normal_, Tensor.uniform_, Tensor.random_)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if function in self.FILLS else function(*args, **(kwargs or {}))


def _as_it_is(function: Callable[..., Any] | None = None, *_: Any, **options: Any) -> Callable[..., Any]:
    """A decorator, with and without arguments, that changes nothing."""
    return (lambda decorated: decorated) if function is None else function


try:
    with without_compiler():
        import timm
except (ImportError, AttributeError):  # a version that needs more of the compiler than its decorators
    import timm

__all__ = ["shapes_only", "timm", "without_compiler"]
