"""`summary`: what a model consists of, layer by layer, and what each part costs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from torch import nn

from ..base.checks import check_count, check_switch, given
from ..base.state import tensors
from ..base.tables import html_table, text_table
from ..layers.branch import Branch
from ..stack.face import AttentionLayers
from ..stack.stepping import refused_step
from .inputs import Maker, beside_stack, example_of, model_of
from .layers import HOLDERS
from .meter import count_flops, on_meta, size, time_parts

__all__ = ["Row", "Summary", "summary"]


class Part(NamedTuple):
    """A module that has a row, its name, how many parameters are its own, and the layers that it is, if any."""

    name: str
    module: nn.Module
    parameters: int
    stack: AttentionLayers | None = None
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """A part of a model: a layer of a stack, or something beside the layers.

    shape: of what it gives, for one row of tokens.  parameters: those that no row above has.  flops: of the whole
    call.  state_bytes_per_token, state_bytes: what its state holds for each token, and whatever the tokens; None where
    there is no state.  seconds: None where nothing was timed.
    """

    name: str
    shape: tuple[int, ...] | None
    parameters: int
    flops: int
    state_bytes_per_token: float | None = None
    state_bytes: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Summary:
    """The rows of a model, and their totals; printed as a table, in notebooks too.

    tokens: in the call that was counted, of the last stack.  seconds: of the whole call, None where none was timed.
    """

    name: str
    rows: tuple[Row, ...]
    tokens: int
    seconds: float | None = None

    @property
    def parameters(self) -> int:
        """How many numbers the model has, tied ones once."""
        return sum(row.parameters for row in self.rows)

    @property
    def flops(self) -> int:
        """Of the call that was counted, forward: two for a multiplication and an addition."""
        return sum(row.flops for row in self.rows)

    @property
    def flops_per_token(self) -> float:
        """Of the call that was counted, by the tokens of its last stack."""
        return self.flops / self.tokens

    @property
    def state_bytes_per_token(self) -> float | None:
        """By how much a state grows with each token; None where nothing has a state."""
        return total(row.state_bytes_per_token for row in self.rows)

    @property
    def state_bytes(self) -> float | None:
        """What a state holds whatever the number of tokens; None where nothing has a state."""
        return total(row.state_bytes for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Rows and totals, as JSON can hold them."""
        names = ("parameters", "flops", "flops_per_token", "state_bytes_per_token", "state_bytes", "tokens", "seconds")
        rows = [{**vars(row), "shape": row.shape and list(row.shape)} for row in self.rows]
        return {"name": self.name, **{name: getattr(self, name) for name in names}, "rows": rows}

    def __str__(self) -> str:
        return text_table(*self.table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(*self.table())

    def table(self) -> tuple[list[str], list[list[str]], str]:
        """Its head, its rows with the totals as last, and the line below."""
        sum_of = Row(
            "all", None, self.parameters, self.flops, self.state_bytes_per_token, self.state_bytes, self.seconds
        )
        timed, stated = self.seconds is not None, self.state_bytes is not None
        head = ["", "gives", "parameters", "FLOPs a token"]
        head += ["state bytes a token", "and always"] * stated + ["ms"] * timed
        lines = []
        for row in (*self.rows, sum_of):
            line = [row.name, "" if row.shape is None else " x ".join(map(str, row.shape)), f"{row.parameters:,}"]
            line.append(f"{row.flops / self.tokens:,.0f}")
            if stated:
                line += ["" if n is None else f"{n:,.0f}" for n in (row.state_bytes_per_token, row.state_bytes)]
            lines.append(line + ["" if row.seconds is None else f"{1000 * row.seconds:.2f}"] * timed)
        return head, lines, f"{self.name}, one row of {self.tokens:,} tokens"


def total(found: Any) -> Any:
    """The sum of what there is; None of nothing."""
    there = [number for number in found if number is not None]
    return sum(there) if there else None


def summary(model: Any, *inputs: Any, seq_len: int | None = None, time: bool = True, **named: Any) -> Summary:
    """What a model or a stack consists of: for each layer, and what is beside layers, what it gives and costs.

    Parameters; FLOPs of a forward as torch counts them, on the meta device, so that nothing is computed; bytes of the
    state a token, and those that do not grow, between seq_len and twice as many tokens; and seconds, of one row, where
    the model is no model on the meta device and `time` is left on. Of a trainer it is that of its model.

    inputs, named: what a call is given, in place of one row of seq_len tokens (None: the model's max_seq_len, 1,024 at
    most); a vision transformer gets an image, and a module of your own must be given them. ValueError without.
    """
    check_switch("time", time)
    if seq_len is not None:
        check_count("seq_len", seq_len)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a model, a trainer or a stack, not {given(model)}")
    called, inputs, named = call_of(model, inputs, seq_len, named)
    parts, alike = list(parts_of(model, "", set())), on_meta(model)
    meter = count_flops(alike[id(called)], [alike[id(part.module)] for part in parts], inputs, named)
    seconds, whole = {}, None
    if time and not any(p.is_meta for p in model.parameters()):
        seconds, whole = time_parts(called, [part.module for part in parts], inputs, named)
    shapes = {part.module: meter.shapes.get(alike[id(part.module)]) for part in parts}
    for part in parts:
        # A layer sees memory tokens too, and pieces of a text one by one: what the stack gives is the caller's.
        if part.stack is not None:
            shapes[part.module] = shapes[part.stack] or shapes[part.module]
    streams = [shape for part in parts if part.stack is not None and (shape := shapes[part.module])]
    tokens = streams[-1][0] * streams[-1][1] if streams else 1
    states, rows = states_of(parts, alike, tokens), []
    for name, module, parameters, stack, _ in parts:
        flops, held = int(meter.spent.get(alike[id(module)], 0)), states.get(id(module), (None, None))
        if parameters or flops or stack is not None:
            rows.append(Row(name, shapes[module], parameters, flops, *held, seconds.get(module)))
    return Summary(type(model).__name__, tuple(rows), tokens, whole)


def call_of(model: nn.Module, inputs: tuple, seq_len: int | None, named: dict[str, Any]) -> tuple:
    """The module that is called, and with what."""
    if inputs or named:
        return model, inputs, named
    example = example_of(model, seq_len)
    if example is None:
        raise ValueError(
            f"what a {type(model_of(model)).__name__} is called with is not known: give it, as in summary(model, x)"
        )
    return example


def parts_of(module: nn.Module, name: str, counted: set[int]) -> Iterator[Part]:
    """The rows of a module: layers of stacks, and whatever stands beside them, from the outside in."""
    if isinstance(module, AttentionLayers):
        yield from layers_in(module, name, counted)
        skipped = {id(module.branches)}
    elif any(isinstance(inner, AttentionLayers) for inner in module.modules()):
        skipped = set()
    else:
        yield Part(name, module, fresh(module.parameters(), counted))
        return
    yield Part(name or type(module).__name__, module, fresh(module.parameters(recurse=False), counted))
    for child_name, child in module.named_children():
        if id(child) not in skipped:
            yield from parts_of(child, joined(name, child_name), counted)


def layers_in(stack: AttentionLayers, name: str, counted: set[int]) -> Iterator[Part]:
    """Those of a stack, tied ones once."""
    for index, module in enumerate(stack.branches):
        places = tuple(place for place, i in enumerate(stack.order) if i == index)
        numbers = ",".join(str(place + 1) for place in places)
        label = f"{numbers} {'+'.join(cast(Branch, module).kinds())}"
        yield Part(f"{name} {label}".strip(), module, fresh(module.parameters(), counted), stack, places)


def joined(name: str, child: str) -> str:
    """The name of a child, without what wrappers call all that they hold."""
    return name if child in HOLDERS else f"{name}.{child}".removeprefix(".")


def fresh(parameters: Any, counted: set[int]) -> int:
    """How many numbers are in the parameters that are not counted yet."""
    new = {id(p): p for p in parameters if id(p) not in counted}
    counted.update(new)
    return sum(p.numel() for p in new.values())


def states_of(parts: list[Part], alike: dict[int, nn.Module], n: int) -> dict[int, tuple[float, float]]:
    """For layers with a state the bytes of it a token, and those that there are whatever the tokens."""
    found: dict[int, tuple[float, float]] = {}
    for stack in {id(part.stack): part.stack for part in parts if part.stack is not None}.values():
        if refused_step(stack):
            continue
        short, long = (bytes_of(cast(AttentionLayers, alike[id(stack)]), k * n) for k in (1, 2))
        for part in parts:
            if part.stack is stack:
                few, many = (sum(held[place] for place in part.places) for held in (short, long))
                found[id(part.module)] = (many - few) / n, 2 * few - many
    return found


def bytes_of(stack: AttentionLayers, n: int) -> list[int]:
    """The bytes of each layer's state behind n tokens of one row."""
    make = Maker(stack)
    beside = {**beside_stack(stack, n, make)}
    if "context" in beside:
        beside["context"] = beside["context"][:, :1]
    _, state = stack.step(make.floats(1, n, stack.dim), None, **beside)
    return [size(tensors(branch)) for branch in state.branches]
