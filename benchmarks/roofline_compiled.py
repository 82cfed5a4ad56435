"""What torch.compile would launch on the stand-in device: the kernels that inductor makes of a model, not run.

Dynamo and AOTAutograd trace forward and backward with tensors that have shapes only; inductor's scheduler then fuses
by the rules of its Triton backend, for which the device is registered, and says what each kernel reads and writes.
Matrix products stay calls of a library; operators of the package, and attention, are counted as they are without
compiling. What inductor does to a graph before that (pattern matching) is left out, and nothing is tuned. The modules
of inductor that this asks are PyTorch's own affair and change with it: tried with torch 2.13.
"""

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from roofline_attention import scaled_dot_product_attention
from roofline_costs import H200, Kernel, seconds_of
from roofline_device import DEVICE
from roofline_run import Count, simulated
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_map_only

__all__ = ["compiled"]

# Operators that are counted as without compiling; what is no kernel to inductor.
OPENED = ("xflash", "standin")
NONE = ("NopKernelSchedulerNode", "MultiOutput")


@functools.cache
def register() -> None:
    """Tells Dynamo and inductor of the device: a GPU as large as an H200."""
    from torch._dynamo.device_interface import CpuInterface, register_interface_for_device
    from torch._inductor.codegen.common import init_backend_registration, register_backend_for_device
    from torch._inductor.codegen.triton import TritonScheduling
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen

    large = types.SimpleNamespace(
        type=DEVICE, index=0, name=DEVICE, major=9, minor=0, multi_processor_count=132, warp_size=32,
        max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536,
    )  # fmt: skip

    class Interface(CpuInterface):
        get_compute_capability = staticmethod(lambda device=None: 90)
        get_device_properties = staticmethod(lambda device=None: large)

        class Worker:
            get_device_properties = staticmethod(lambda device=None: large)

    init_backend_registration()
    register_backend_for_device(DEVICE, TritonScheduling, PythonWrapperCodegen)
    register_interface_for_device(DEVICE, Interface)


def opened(graph: torch.fx.GraphModule) -> Iterator[Kernel]:
    """The kernels of operators that inductor does not look into."""
    for node in graph.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "namespace", "") in OPENED:
            given = torch.fx.map_arg((node.args, dict(node.kwargs)), lambda n: n.meta["val"])
            with simulated(memory=False) as run:
                args, kwargs = tree_map_only(
                    Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=DEVICE), given
                )
                with run.counted() as count:
                    node.target(*args, **kwargs)
            yield from count.kernels


def fused(graph: torch.fx.GraphModule, inputs: list[Any]) -> Iterator[Kernel]:
    """The kernels that inductor makes of the rest, and the products that it calls."""
    from torch._inductor.compile_fx import fake_tensor_prop, shape_env_from_inputs
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    shapes, fake = shape_env_from_inputs(inputs), fake_tensor_prop(graph, inputs)
    with unset_fake_temporarily(), V.set_fake_mode(fake):
        lowered = GraphLowering(graph, shape_env=shapes)
        with V.set_debug_handler(DebugContext()), V.set_graph_handler(lowered), V.set_extern_kernel_nodes([]):
            lowered.run(*inputs)
            lowered._update_scheduler()
            for node in lowered.scheduler.nodes:
                inner = getattr(node, "node", None)
                operator = getattr(inner, "op_overload", None)
                if {type(node).__name__, type(inner).__name__} & set(NONE):
                    continue
                if getattr(operator, "namespace", "") in OPENED:
                    continue
                moved, flops = float(node.get_read_write_buffers_sizes()), float(node.estimate_flops() or 0)
                called = getattr(inner, "python_kernel_name", None)
                name = called.rpartition(".")[2] if isinstance(called, str) else "fused"
                yield Kernel(name, 1, moved, flops, *seconds_of(H200, 1, moved, flops, H200.half))


def counting(found: list[Kernel]) -> Callable[..., Any]:
    """A backend of torch.compile that notes kernels, and gives back the graphs as they are."""
    from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    def note(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        with unset_fake_temporarily():
            found.extend(opened(graph))
        found.extend(fused(graph, inputs))
        return make_boxed_func(graph.forward)

    partition = functools.partial(min_cut_rematerialization_partition, compiler="inductor")
    return aot_autograd(
        fw_compiler=note, bw_compiler=note, decompositions=select_decomp_table(), partition_fn=partition
    )


def compiled(prepared: Callable[[Any], Callable[[], Any]]) -> Count:
    """The kernels of a training step; prepared: makes the step of what is to be called around the model."""
    register()
    torch._dynamo.reset()
    count = Count(H200)
    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", scaled_dot_product_attention))
        wrap = functools.partial(torch.compile, backend=counting(count.kernels), fullgraph=True, dynamic=False)
        prepared(wrap)()
    return count
