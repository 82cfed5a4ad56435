"""Everything on a device that is not the CPU, by shape only (law 10), for tests/stack/test_device.py.

    python tests/on_device.py stacks wrappers costs --all

Prints as JSON what goes wrong in each call of each case, what a call refuses on a CPU too, where the host waits, and
which tensors are on the wrong device.

A process of its own, since the stand-in device (`benchmarks/roofline_device.py`) stays in a process for good.
"""

import argparse
import ast
import gc
import json
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import cases as small
import launches
import laws
from roofline_device import DEVICE, here, moved
from roofline_run import Run, simulated

import xflash
from xflash.base.state import tensors
from xflash.wrappers.examples import EXAMPLES

CONTEXT = ("context", "context_mask")
# A group of the small stacks closes at the second last token.
LENGTH = 11
PROMPT = LENGTH - 3
CUTS = ((0, PROMPT), *((i, i + 1) for i in range(PROMPT, LENGTH)))
Found = dict[str, Any]
Calls = Iterator[tuple[str, Callable[[], Any]]]


def there(given: Any, dtype: torch.dtype | None = None) -> Any:
    """The tensors of `given` on the device, floats in `dtype`."""
    return tree_map_only(Tensor, lambda t: t.to(DEVICE, dtype if t.is_floating_point() else None), given)


def as_given(given: Any, dtype: torch.dtype | None = None) -> Any:
    return given


def right(results: Any) -> None:
    """ValueError unless all that a call gives is on the device."""
    given = [*tree_leaves(results), *tensors(results)] if not isinstance(results, Tensor) else [results]
    wrong = [tuple(t.shape) for t in given if isinstance(t, Tensor) and not here(t)]
    if wrong:
        raise LookupError(f"results of the shapes {wrong} are on the CPU")


def learned(module: nn.Module, results: Any) -> None:
    """Goes backward; LookupError for a parameter without a gradient of its own dtype, shape and device."""
    module.zero_grad()
    floats = [t for t in tree_leaves(results) if isinstance(t, Tensor) and t.requires_grad]
    sum(t.float().square().mean() for t in floats).backward()
    for name, p in module.named_parameters():
        if p.grad is None:
            raise LookupError(f"no gradient for {name}")
        if (p.grad.device, p.grad.dtype, p.grad.shape) != (p.device, p.dtype, p.shape):
            raise LookupError(f"the gradient of {name} is {p.grad.dtype} on {p.grad.device}")


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"[:200]


def tried(run: Run, call: Callable[[], Any]) -> Found:
    """What goes wrong in a call, where the host waits in it, and what in it is on the wrong device."""
    with run.counted() as count:
        found: Found = {}
        try:
            call()
        except Exception as error:
            found["error"] = first_line(error)
    wrong = {"wrong": sorted(count.wrong)} if count.wrong else {}
    return found | wrong | ({"waits": sorted(count.waits)} if count.waits else {})


class Stack:
    """The calls of one stack, on the device or, to see what is refused in any case, on the CPU."""

    def __init__(self, flags: dict[str, Any], causal: bool, on_device: bool, dtype: torch.dtype = torch.float32):
        stack = small.build(causal=causal, **{"depth": 1, **flags})
        self.x = laws.sample(stack, LENGTH).to(dtype)
        self.beside, place = (
            laws.of_tokens(stack, self.x) | laws.beside(stack, self.x),
            there if on_device else as_given,
        )
        self.stack: Any = moved(stack.to(dtype)) if on_device else stack.to(dtype)
        self.x, self.beside = place(self.x, dtype), place(self.beside, dtype)
        self.masks, self.causal, self.on_device = place(laws.masks(LENGTH)), causal, on_device
        self.documents = place(torch.tensor([0] * 5 + [1] + [2] * (LENGTH - 6)).expand(laws.BATCH, -1).contiguous())

    def train(self, **given: Any) -> None:
        y = self.stack.train()(self.x, **self.beside, **given)
        self.checked(y)
        if self.on_device:
            learned(self.stack, y)

    def checked(self, results: Any) -> None:
        if self.on_device:
            right(results)

    @torch.no_grad()
    def decode(self, mask: Tensor | None = None) -> None:
        """Prompts, then tokens one by one, the last behind rows in another order, one of which begins anew."""
        step, state = self.stack.eval().step, None
        for a, b in CUTS:
            given = {n: t[:, a:b] if n == "grid" else t for n, t in self.beside.items() if a == 0 or n not in CONTEXT}
            if a == 0 and mask is not None:
                given["mask"] = mask[:, :b]
            if b == LENGTH:
                rows = torch.arange(laws.BATCH, device=self.x.device)
                state, given["reset"] = state.reorder(rows.flip(0)), rows == 1
            y, state = step(self.x[:, a:b], state, **given)
        self.checked((y, state))

    def cast(self) -> None:
        with torch.autocast(DEVICE if self.on_device else "cpu", torch.bfloat16):
            y = self.stack.train()(self.x, **self.beside)
        if self.on_device:
            learned(self.stack, y)

    def calls(self, every: bool) -> Calls:
        yield "train", self.train
        if self.causal:
            yield "ragged", lambda: self.decode(self.masks["right"])
        if every or not self.causal:
            yield "padded", lambda: self.train(mask=self.masks["holes"])
        if every or self.causal:
            yield "documents", lambda: self.train(doc_ids=self.documents)
        if every:
            yield "autocast", self.cast
        if every and self.causal:
            yield "step", self.decode

    def in_half(self, every: bool) -> Calls:
        if every or self.causal:
            yield "half", self.train
        if every and self.causal:
            yield "half, step", self.decode


def stacks(every: bool) -> Iterator[tuple[str, Found]]:
    """Each block, alone and looking both ways, and with `every` all that is registered."""
    for name, flags, causal in small.ways(small.CASES):
        if not every and not name.startswith("block "):
            continue
        if "state_read" in flags["layers"] and "recurrent_block_width" not in flags:
            # Whole stacks are run block of tokens after block.
            flags = {**flags, "recurrent_block_width": 10}
        found: Found = {}
        with simulated(memory=False) as run:
            single = Stack(flags, causal, True)
            half = Stack(flags, causal, True, torch.bfloat16)
            thorough = every and name.startswith("block ")
            calls = (*single.calls(thorough), *half.in_half(thorough))
            found |= {call: tried(run, make) for call, make in calls}
        refused = [call for call, result in found.items() if result.get("error", "").startswith("ValueError")]
        for call in refused:
            found[call] = on_cpu(flags, causal, call) or found[call]
        yield name, found


def on_cpu(flags: dict[str, Any], causal: bool, call: str) -> Found:
    """{"refused": sentence} if the CPU refuses the call too."""
    half = call.startswith("half")
    stack = Stack(flags, causal, False, torch.bfloat16 if half else torch.float32)
    try:
        dict(stack.in_half(True) if half else stack.calls(True))[call]()
    except ValueError as error:
        return {"refused": first_line(error)}
    return {}


def wrappers(every: bool) -> Iterator[tuple[str, Found]]:
    """The example of each wrapper, its model moved to the device, what it draws drawn there."""
    kinds = ("float32", "autocast", "bfloat16")
    for i, (name, code) in enumerate(EXAMPLES.items()):
        yield name, {kind: example(code, kind) for j, kind in enumerate(kinds) if every or (i - j) % 3 == 0}


def example(code: str, kind: str) -> Found:
    """Runs an example; forward and backward, or what it generates."""
    drawn = {
        "randint": lambda *a, **k: torch.randint(*a, **k, device=DEVICE),
        "randn": lambda *a, **k: torch.randn(*a, **k, device=DEVICE, dtype=dtype),
    }
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    names: dict[str, Any] = {**vars(xflash), "torch": types.SimpleNamespace(**drawn)}
    *lines, last = [line for line in code.strip().splitlines() if not line.lstrip().startswith("#")]
    call: Any = ast.parse(last, mode="eval").body.args[0]
    while not isinstance(call, ast.Call):
        # All that the model gives, not a part of it, or its shape.
        call = call.value
    call = ast.unparse(call)
    with simulated(memory=False) as run:
        exec("\n".join(lines), names)
        names["model"] = moved(names["model"].train(), dtype)

        def once() -> None:
            with torch.autocast(DEVICE, torch.bfloat16, enabled=kind == "autocast"):
                results = eval(call, names)
            right(results)
            if any(t.requires_grad for t in tree_leaves(results) if isinstance(t, Tensor)):
                learned(names["model"], results)

        return tried(run, once)


def costs(every: bool) -> Iterator[tuple[str, launches.Row]]:
    return launches.table()


PARTS: dict[str, Callable[[bool], Iterator[tuple[str, Any]]]] = {"stacks": stacks, "wrappers": wrappers, "costs": costs}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--all", action="store_true", help="everything that is registered, not only blocks")
    options = parser.parse_args(words)
    warnings.filterwarnings("ignore")
    if not options.all:
        # Looking for what is held in circles takes a tenth of the time.
        gc.disable()
    print(json.dumps({part: dict(PARTS[part](options.all)) for part in options.parts}, indent=1))


if __name__ == "__main__":
    main()
