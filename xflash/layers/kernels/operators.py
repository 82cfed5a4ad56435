"""What all operators of our own have to do by hand, since PyTorch does not look into them."""

from collections.abc import Callable, Sequence

import torch

from ...base.looks import is_exporting, transformed
from ...base.shapes import Tensor

__all__ = ["as_autocast", "compiler_fuses", "gradients_of", "operators_work", "plain_is_better"]


def as_autocast(*given: Tensor | None) -> list[Tensor | None]:
    """The tensors as PyTorch's own products take them under autocast, which leaves float64 alone."""
    device = next(t for t in given if t is not None).device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return list(given)
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in given]


def operators_work() -> bool:
    """Whether operators of our own can be used: transforms of torch.func have no rules for them, ONNX no names."""
    return not transformed() and not torch.onnx.is_in_onnx_export()


def compiler_fuses() -> bool:
    """Whether a compiler is at work that makes one kernel of many operations, wherever it sees into them."""
    return torch.compiler.is_compiling() and not is_exporting()


def plain_is_better(device: str, fuses: bool) -> bool:
    """Whether an operator that works on pieces is better left out, where a compiler would fuse what it does.

    On a CPU its pieces stay in the caches, which no compiler arranges; on a GPU they only cost launches and bytes.
    """
    return fuses and device != "cpu"


def gradients_of(
    slow: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
    above: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """What an operator's backward gives where it is to be differentiated again (create_graph=True).

    slow: the operator's results by PyTorch's own means.  above: the gradients of these, None for zeros.
    """
    # Views, for one input may have been made of another: what is asked for ends here.
    inputs = [t if t is None else t.view_as(t) for t in inputs]
    results = [(y, dy) for y, dy in zip(slow(*inputs), above, strict=True) if dy is not None and y.requires_grad]
    asked = [t for t, is_wanted in zip(inputs, wanted, strict=True) if t is not None and is_wanted]
    made, given = zip(*results, strict=True)
    found = iter(torch.autograd.grad(made, asked, given, create_graph=True, materialize_grads=True))
    return [next(found) if t is not None and is_wanted else None for t, is_wanted in zip(inputs, wanted, strict=True)]
