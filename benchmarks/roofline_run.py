"""Runs models on the stand-in device and counts what they do: kernels, host waits, tensors on the wrong device.

    with simulated() as run:
        net = moved(build(), torch.bfloat16)
        with run.counted() as count:
            net(ids).sum().backward()
    print(count.launches, count.bytes, count.seconds, count.waits)

Tensors on the device have shapes only; those on the CPU are real, as they are beside a GPU. Every call goes through
`Run`: it takes apart what is made of other calls (operators of the package too, whose bodies are run), notes what makes
the host wait for the device, answers with a guess where a value is asked for, and counts the rest.
"""

import contextlib
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from roofline_attention import attention_kernel, flex_attention, scaled_dot_product_attention
from roofline_costs import FREE, H200, Kernel, Machine, kernel_of
from roofline_device import AUTOCAST, DEVICE, WHOLE, here
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["Count", "Run", "simulated"]

AT_WORK: list["Run"] = []
# How many numbers there are found to be where only the device knows.
SOME = 7
# Frames that are not where something happens.
ELSEWHERE = (
    "/torch/",
    "/benchmarks/roofline",
    "/einops/",
    "/jaxtyping/",
    "/beartype/",
    "<",
    "/unittest/",
    "contextlib.py",
)
ELSEWHERE += ("base/shapes.py",)


class Count:
    """What was counted between two points."""

    def __init__(self, machine: Machine):
        self.machine = machine
        self.kernels: list[Kernel] = []
        self.waits: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.peak = 0.0

    @property
    def launches(self) -> int:
        return sum(kernel.launches for kernel in self.kernels)

    @property
    def bytes(self) -> float:
        return sum(kernel.bytes for kernel in self.kernels)

    @property
    def flops(self) -> float:
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def device(self) -> float:
        return sum(kernel.seconds for kernel in self.kernels)

    def by(self, key: Callable[[Kernel], str]) -> list[tuple[str, int, float, float]]:
        """Launches, bytes and seconds of all kernels that `key` names alike, the longest first."""
        found: dict[str, list[Kernel]] = {}
        for kernel in self.kernels:
            found.setdefault(key(kernel), []).append(kernel)
        rows = [
            (name, sum(k.launches for k in ks), sum(k.bytes for k in ks), sum(k.seconds for k in ks))
            for name, ks in found.items()
        ]
        return sorted(rows, key=lambda row: -row[3])


class Run(TorchDispatchMode):
    """Sees every call; counts those on the device while `counted`.

    places: whether each kernel is to know its line.  memory: whether the peak is to be known.  instead: what is called
    in the place of operators, by name.
    """

    def __init__(
        self,
        machine: Machine,
        places: bool = False,
        memory: bool = True,
        instead: dict[str, Callable[..., Any]] | None = None,
    ):
        super().__init__()
        self.fake = FakeTensorMode()
        self.machine, self.places, self.memory, self.instead = machine, places, memory, instead or {}
        self.count = Count(machine)
        # Of all scores, what block masks leave to be seen.
        self.share = 1.0
        self.live, self.storages = 0.0, set()

    @contextlib.contextmanager
    def counted(self) -> Iterator[Count]:
        AUTOCAST.cast_weights.clear()
        before, self.count = self.count, Count(self.machine)
        self.count.peak = self.live
        try:
            yield self.count
        finally:
            self.count = before

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        space, _, name = func._schema.name.partition("::")
        if space == "prim":
            return func(*args, **kwargs)
        if body := self.instead.get(func._schema.name):
            return body(self, *args, **kwargs)
        if space == "xflash":
            return self.again(OPDEFS[func._schema.name]._init_fn, args, kwargs)
        # Below autograd, in an operator, composite calls come in one piece.
        if space == "aten" and name not in WHOLE and composite(func):
            return self.again(func.decompose, args, kwargs)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if name in LOOKS and any(isinstance(t, FakeTensor) for t in given):
            return LOOKS[name](self, func, args, kwargs)
        device = kwargs.get("device")
        onto = device is not None and torch.device(device).type == DEVICE
        if not onto and not any(isinstance(t, FakeTensor) for t in given):
            # The CPU's own.
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return self.noted(func, name, args, kwargs, given)

    def again(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function does, call by call."""
        with self:
            return function(*args, **kwargs)

    def noted(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor]) -> Any:
        """A call by shape, and what it costs."""
        if not all(isinstance(t, FakeTensor) for t in given):
            # FakeTensorMode would really copy a tensor of the CPU to the device.
            args, kwargs = tree_map_only(Tensor, self.by_shape, (args, kwargs))
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        out = func(*args, **kwargs)
        outs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        there = {t.device.type for t in (*given, *outs)}
        if DEVICE not in there:
            return out
        if self.memory:
            self.hold(outs)
        if len(there) > 1:
            self.between(name, args, kwargs, given, outs)
        if is_view(func) or name in FREE:
            return out
        if name in ("attention", "attention_backward"):
            kernel = attention_kernel(self.machine, name != "attention", args, outs)
        else:
            written = [kwargs[a.name] for a in func._schema.arguments if a.is_out and a.name in kwargs]
            read = [t for t in given if not any(t is w for w in written)]
            kernel = kernel_of(self.machine, name, args, kwargs, read, outs)
        self.add(kernel)
        return out

    def by_shape(self, t: Tensor) -> Tensor:
        return t if isinstance(t, FakeTensor) else self.fake.from_tensor(t)

    def add(self, kernel: Kernel) -> None:
        self.count.kernels.append(kernel._replace(place=place()) if self.places else kernel)

    def between(self, name: str, args: Any, kwargs: Any, given: list[Tensor], outs: list[Tensor]) -> None:
        """A call that tensors of both devices take part in: a copy, or one on the wrong device."""
        if name not in ("_to_copy", "copy_"):
            if any(not here(t) and t.dim() for t in given):
                self.count.wrong[f"{name}, {place()}"] += 1
            return
        back = not here(args[0] if name == "copy_" else outs[0])
        patient = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        if back or not patient:
            self.wait("copy to the CPU" if back else "copy from the CPU")

    def wait(self, why: str) -> None:
        self.count.waits[f"{why}, {place()}"] += 1

    def hold(self, outs: list[Tensor]) -> None:
        """Counts memory that is held, until it is given back."""
        for t in outs:
            storage = t.untyped_storage()
            if here(t) and storage._cdata not in self.storages:
                self.storages.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self.let_go, storage._cdata, storage.nbytes())
        self.count.peak = max(self.count.peak, self.live)

    def let_go(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.live -= size

    # Looks at what only the device knows: the host waits, and gets a guess.

    def number(self, func: Any, args: Any, kwargs: Any) -> Any:
        if here(args[0]):
            self.wait("a number")
        return guess(args[0])

    def same(self, func: Any, args: Any, kwargs: Any) -> bool:
        self.wait("equal")
        return True

    def nonzero(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        self.wait("nonzero")
        return args[0].new_empty((min(args[0].numel(), SOME), args[0].dim()), dtype=torch.long)

    def selected(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        self.wait("masked_select")
        return args[0].new_empty(min(args[0].numel(), SOME))

    def repeated(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        if kwargs.get("output_size") is None:
            self.wait("repeat_interleave")
        return args[0].new_empty(kwargs.get("output_size") or SOME)

    def indexed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """By a mask: its places have to be counted, unless one number is laid down in all of them."""
        masks = [t for t in args[1] if t is not None and t.dtype in (torch.bool, torch.uint8)]
        if masks and not (func._schema.name != "aten::index" and args[2].numel() == 1):
            self.wait("index by a mask")
            index: list[Any] = []
            for t in args[1]:
                is_mask = t is not None and t.dtype in (torch.bool, torch.uint8)
                index += [t.new_empty(SOME, dtype=torch.long) for _ in range(t.dim())] if is_mask else [t]
            args = (args[0], index, *args[2:])
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        return self.noted(func, func._schema.name.partition("::")[2], args, kwargs, given)

    def listed(self, t: Tensor) -> Any:
        """`tolist`."""
        if here(t):
            self.wait("tolist")

        def nest(shape: tuple[int, ...]) -> Any:
            return [nest(shape[1:]) for _ in range(shape[0])] if shape else guess(t)

        return nest(tuple(t.shape))


LOOKS: dict[str, Callable[..., Any]] = {
    "_local_scalar_dense": Run.number, "item": Run.number, "is_nonzero": Run.number, "equal": Run.same,
    "nonzero": Run.nonzero, "masked_select": Run.selected, "repeat_interleave": Run.repeated, "index": Run.indexed,
    "index_put": Run.indexed, "index_put_": Run.indexed,
}  # fmt: skip


def guess(t: Tensor) -> Any:
    return False if t.dtype == torch.bool else 1.0 if t.is_floating_point() else 1


KINDS: dict[Any, tuple[bool, bool]] = {}


def kinds(func: Any) -> tuple[bool, bool]:
    """Whether a function is made of others, and whether all that it gives is a view."""
    if func not in KINDS:
        made = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
        returns = func._schema.returns
        views = [r.alias_info is not None and not r.alias_info.is_write for r in returns]
        KINDS[func] = made, bool(views) and all(views)
    return KINDS[func]


def composite(func: Any) -> bool:
    return kinds(func)[0]


def is_view(func: Any) -> bool:
    return kinds(func)[1]


def place() -> str:
    """The innermost line that is neither PyTorch's nor of this tool: 'layers/branch.py forward'."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not any(part in name for part in ELSEWHERE):
            return f"{'/'.join(name.split('/')[-3:])} {frame.f_code.co_name}".removeprefix("xflash/")
        frame = frame.f_back  # type: ignore[assignment]
    return "autograd"


def stand_ins(run: Run) -> dict[tuple[Any, str], Any]:
    """What tensors without values cannot do, and how it is done here."""
    tensor, generator = torch.tensor, torch.Generator

    def made(data: Any, *, device: Any = None, **flags: Any) -> Tensor:
        if device is None or torch.device(device).type != DEVICE:
            return tensor(data, device=device, **flags)
        return tensor(data, **flags).to(device)

    class Generator(generator):
        """One of the device is one of the CPU."""

        def __new__(cls, device: Any = "cpu") -> Any:
            return generator("cpu" if torch.device(device).type == DEVICE else device)

    from torch.nn.attention import flex_attention as flex

    return {
        # Where the package asks for a GPU of NVIDIA's, this is one; what would be compiled is counted as it is.
        (FakeTensor, "is_cuda"): property(here),
        (torch, "compile"): lambda model=None, **_: model,
        # Whoever has kept it asks whichever run is at work.
        (flex, "flex_attention"): lambda *args, **kwargs: flex_attention(AT_WORK[-1], *args, **kwargs),
        (FakeTensor, "tolist"): lambda t: run.listed(t),
        (Tensor, "data_ptr"): lambda t: t.untyped_storage()._cdata + t.storage_offset() * t.element_size(),
        (torch, "tensor"): made,
        (torch, "Generator"): Generator,
        (F, "scaled_dot_product_attention"): scaled_dot_product_attention,
        **looks(),
    }


def looks() -> dict[tuple[Any, str], Any]:
    """Values can be had of a tensor on the device, if its host waits: the package must not take it for a traced one."""
    from xflash.base import looks as module

    def has_values(t: Tensor) -> bool:
        return not t.is_meta and not torch.compiler.is_compiling()

    known = [m for name, m in list(sys.modules.items()) if name.startswith("xflash")]
    return {(m, "has_values"): has_values for m in known if getattr(m, "has_values", None) is module.has_values}


@contextlib.contextmanager
def simulated(machine: Machine = H200, **options: Any) -> Iterator[Run]:
    """The device, at work; options: of `Run`."""
    run = Run(machine, **options)
    with contextlib.ExitStack() as stack:
        stack.enter_context(run.fake)
        for (owner, name), value in stand_ins(run).items():
            stack.enter_context(mock.patch.object(owner, name, value, create=name == "is_cuda"))
        AT_WORK.append(run)
        stack.callback(AT_WORK.pop)
        stack.enter_context(run)
        yield run
