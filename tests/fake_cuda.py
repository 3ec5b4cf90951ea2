"""A CUDA device for machines without one: tensors that say they lie on it, compute on the CPU, and refuse to be mixed.

What a real device refuses is refused: operations on tensors of two devices, a generator of another device, and NumPy.
All else is as on the CPU, numbers too, so that whole runs go through. What happens within one operation is not looked
at, nor are gradients.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 63)  # of no machine: what is kept of real ones is not taken for this one's
COPIES = (Tensor.copy_, Tensor.__setitem__)  # from one device to another
CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
_Generator = torch.Generator


class FakeCuda(Tensor):
    """A tensor of the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # the mode below sees all that is called


class FakeGenerator(_Generator):
    """A generator of the device."""


class _Generators(_Generator):
    """torch.Generator, which makes those."""

    def __new__(cls, device: object = "cpu") -> _Generator:
        return FakeGenerator() if _is_cuda(device) else _Generator()


class _Mode(TorchFunctionMode):
    """Answers for the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        there = any(isinstance(one, FakeCuda) for one in tensors)
        with torch._C.DisableTorchFunction():
            if func == Tensor.device.__get__:
                return CUDA if there else func(*args)
            if func in (Tensor.is_cuda.__get__, Tensor.is_cpu.__get__) and there:
                return func == Tensor.is_cuda.__get__
            if func == Tensor.__deepcopy__ and there:
                return _copied(*args)
            name = getattr(func, "__name__", "")
            if name in ("device", "_parse_to"):  # which make and read names of devices
                return func(*args, **kwargs)
            if name == "_has_compatible_shallow_copy_type":  # what a module asks before it puts one in another's place
                return isinstance(args[0], FakeCuda) is isinstance(args[1], FakeCuda)
            if name in ("numpy", "__array__") and there:
                raise TypeError("can't convert cuda device type tensor to numpy. Use Tensor.cpu() first")
            goal = _goal(name, args, kwargs, there)
            _refuse_mixtures(func, name, tensors, args, kwargs, goal)
            result = func(*_on_cpu(args), **_on_cpu(kwargs))
            if name in ("to", "cpu") and goal != isinstance(args[0], FakeCuda):
                result = result.clone()
            return tree_map(lambda one: _as(one, goal, args), result)


def _goal(name: str, args: Any, kwargs: Any, there: bool) -> bool:
    """Whether the result lies on the device."""
    if name == "cpu":
        return False
    named = [one for one in (kwargs.get("device"), *args) if isinstance(one, torch.device)]
    named += [one for one in (kwargs.get("device"), *(args if name == "to" else ())) if isinstance(one, str)]
    if named:
        return _is_cuda(named[0])
    if name == "to" and len(args) > 1 and isinstance(args[1], Tensor):
        return isinstance(args[1], FakeCuda)
    return there


def _refuse_mixtures(func: Any, name: str, tensors: list[Tensor], args: Any, kwargs: Any, goal: bool) -> None:
    generator = kwargs.get("generator")
    if generator is not None and isinstance(generator, FakeGenerator) != goal:
        raise RuntimeError(f"{name}: a generator of another device")
    if name == "__getitem__" and isinstance(args[0], FakeCuda):  # by indices of any device
        return
    far = any(isinstance(one, FakeCuda) for one in tensors)
    if far and func not in COPIES and name != "to" and any(one.ndim for one in tensors if type(one) is Tensor):
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found cuda and cpu")


def _is_cuda(value: object) -> bool:
    return isinstance(value, str | torch.device) and str(value).startswith("cuda")


def _on_cpu(values: Any) -> Any:
    return tree_map(lambda one: torch.device("cpu") if _is_cuda(one) else one, values)


def _as(value: Any, goal: bool, args: Any) -> Any:
    """A result as a tensor of its device; what an operation gave back of its arguments stays the same object."""
    if not isinstance(value, Tensor) or isinstance(value, FakeCuda) == goal or any(value is one for one in args):
        return value
    kind = FakeCuda if goal else Tensor
    if value.is_leaf and value.requires_grad:
        return value.detach().as_subclass(kind).requires_grad_()
    return value.as_subclass(kind)


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    if id(tensor) not in memo:
        copied = tensor.detach().clone().as_subclass(FakeCuda).requires_grad_(tensor.requires_grad)
        if isinstance(tensor, nn.Parameter):
            copied._is_param = True
        memo[id(tensor)] = copied
    return memo[id(tensor)]


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Let device "cuda" be one of these."""
    free = 2**33
    with ExitStack() as stack:
        for module in ("torch.nn.functional", "torch.functional"):  # whose functions are looked into
            for check in CHECKS:
                stack.enter_context(mock.patch(f"{module}.{check}", lambda *_: False, create=True))
        for name, own in {
            "torch.Generator": _Generators,
            "torch.cuda.is_available": lambda: False,  # a real one pins memory and streams
            "torch.cuda.mem_get_info": lambda *_: (free, free),
            "torch.cuda.synchronize": lambda *_: None,
            "torch.cuda.reset_peak_memory_stats": lambda *_: None,
            "torch.cuda.max_memory_allocated": lambda *_: free,
            "torch.cuda.get_rng_state": lambda *_: torch.get_rng_state(),
            "torch.cuda.set_rng_state": lambda *_: None,
        }.items():
            stack.enter_context(mock.patch(name, own))
        stack.enter_context(_Mode())
        yield
