"""A stand-in accelerator: a device that is not the CPU and has no kernels, on which tensors have shapes only.

PyTorch's PrivateUse1 backend is given a name and what it needs to be called, so that models run on it under
FakeTensorMode, forward and backward; what they do is counted by `roofline_run.py`. A process that imports this has the
device for good. Of autocast, which PyTorch leaves to each backend, it has CUDA's lists as far as models use them.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

__all__ = ["DEVICE", "here", "moved"]

DEVICE = "standin"
# What CUDA casts down, and what it casts up.
LOWER = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "addbmm", "conv1d", "conv2d", "mv")
EXACT = (
    "layer_norm", "softmax.int", "log_softmax.int", "nll_loss", "nll_loss_nd", "cumsum", "sum", "sum.dim_IntList",
    "exp", "rsqrt", "pow.Tensor_Scalar", "log", "cross_entropy_loss",
)  # fmt: skip
# CUDA has a kernel for these, which a backend without one takes apart before anybody sees it.
WHOLE = ("silu_backward", "mish_backward")


class Backend:
    """What PyTorch asks the module of a backend."""

    _is_in_bad_fork = staticmethod(lambda: False)
    is_available = staticmethod(lambda: True)
    is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda device=None: torch.empty(16, dtype=torch.uint8))
    set_rng_state = staticmethod(lambda state, device=None: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16, torch.float32])


def named(name: str) -> Any:
    """An ATen function by name and overload."""
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


class Autocast:
    """What the device does under torch.autocast; weights are cast once for each way of being asked."""

    def __init__(self):
        self.cast_weights: dict[Any, Any] = {}
        self.key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        self.rest = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
        self.rest.fallback(torch.library.fallthrough_kernel)
        self.ours = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
        for name in (*LOWER, *EXACT):
            self.ours.impl(name, self.casting(named(name), name in LOWER))

    def casting(self, function: Any, lower: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(self.key):
                dtype = torch.get_autocast_dtype(DEVICE) if lower else torch.float32
                given = [self.cast(value, dtype) for value in args]
                return function(*given, **{name: self.cast(value, dtype) for name, value in kwargs.items()})

        return call

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
            return [self.cast(v, dtype) for v in value]
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.device.type != DEVICE:
            return value
        if value.dtype in (dtype, torch.float64):
            return value
        return self.weight(value, dtype) if value.is_leaf and value.requires_grad else value.to(dtype)

    def weight(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        key = id(value), dtype, torch.is_grad_enabled()
        if key not in self.cast_weights or self.cast_weights[key][0]() is not value:
            self.cast_weights[key] = weakref.ref(value), value.to(dtype)
        return self.cast_weights[key][1]


def below_autograd(function: Any) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return function(*args, **kwargs)

    return call


def registered() -> tuple[Autocast, torch.library.Library]:
    """Makes the device; what must be kept for it to work."""
    _setup_privateuseone_for_python_backend(DEVICE)
    module = getattr(torch, DEVICE)
    for name, value in vars(Backend).items():
        if not name.startswith("__") and (name == "get_amp_supported_dtype" or not hasattr(module, name)):
            setattr(module, name, value)
    whole = torch.library.Library("aten", "IMPL", "AutogradPrivateUse1")
    for name in WHOLE:
        whole.impl(name, below_autograd(named(name)))
    return Autocast(), whole


AUTOCAST, KEPT = registered()


def here(t: Any) -> bool:
    """Whether it is a tensor on the device."""
    return isinstance(t, Tensor) and t.device.type == DEVICE


def moved(module: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """The module with its weights on the device, floats in `dtype`; tied ones stay tied."""
    made: dict[int, Any] = {}

    def there(t: Tensor) -> Tensor:
        if id(t) not in made:
            kind = dtype if dtype is not None and t.is_floating_point() else t.dtype
            new = torch.empty(t.shape, dtype=kind, device=DEVICE)
            new = nn.Parameter(new, requires_grad=t.requires_grad) if isinstance(t, nn.Parameter) else new
            # The old one is kept, or another would get its id.
            made[id(t)] = t, new
        return made[id(t)][1]

    for part in module.modules():
        for held in (part._parameters, part._buffers):
            held.update({name: there(t) for name, t in held.items() if t is not None})
    return module
