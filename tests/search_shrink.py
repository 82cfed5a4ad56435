"""From a case that is wrong to the least one that still is, and to a program that shows it."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from search_case import (
    BY_CONTEXT,
    BY_TOKEN,
    Case,
    built,
    every_block,
    inputs,
    joined,
    layouts,
    members,
    sentence,
    spoken,
)
from search_measure import LAWS, forward

SIZES = ("dim", "depth", "heads", "num_tokens")


class Wrong(NamedTuple):
    """A case, the law it breaks, and how."""

    case: Case
    law: str
    reason: str

    @property
    def sort(self) -> tuple[str, str]:
        """What two wrongs have in common that are of one sort: the law, and numbers or an error."""
        return self.law, self.reason.split(":")[0]


def outcome(case: Case, name: str, model: Any = None) -> str:
    """How a case breaks a law, '' if it keeps it or is refused."""
    try:
        model = built(case) if model is None else model
        x, call = inputs(case, model)
        if name == "accepted":
            forward(model, x, call)
            return ""
    except Exception as error:
        return sentence(error)
    holds, check = LAWS[name]
    try:
        if not holds(case, model, call):
            return ""
        if name != "finite" and name != "accepted":
            forward(model, x, call)
    except (TypeError, ValueError):
        return ""
    except Exception as error:
        return sentence(error)
    try:
        check(model, x, call, case.plan)
    except AssertionError as error:
        return f"{error}"
    except Exception as error:
        return sentence(error) or f"refused in part: {error}"
    return ""


def tried(wrong: Wrong, case: Case) -> Wrong | None:
    """The case as a wrong of the same sort, if it is one."""
    reason = outcome(case, wrong.law)
    found = Wrong(case, wrong.law, reason)
    return found if reason and found.sort == wrong.sort else None


def shrunk(wrong: Wrong, seconds: float = 20.0) -> Wrong:
    """The wrong with as little as possible in it: each thing is left out, or made smaller, that it does not need."""
    end, smaller = time.monotonic() + seconds, True
    while smaller:
        smaller = False
        for make in (fewer_flags, fewer_layers, less_call, less_input, lower):
            for case in make(wrong.case):
                if time.monotonic() > end:
                    return wrong
                if (found := tried(wrong, case)) is not None:
                    wrong, smaller = found, True
                    break
    return wrong


def side(flag: str) -> str:
    """The prefix of a flag of one side of an encoder-decoder."""
    return flag[:4] if flag.startswith(("enc_", "dec_")) else ""


def fewer_flags(case: Case) -> Iterator[Case]:
    for name in case.flags:
        if name.removeprefix(side(name)) not in (*SIZES, "layers"):
            yield case.changed(flags={k: v for k, v in case.flags.items() if k != name})
    for at, (wrapper, given) in enumerate(case.wraps):
        for name in given:
            less = (wrapper, {k: v for k, v in given.items() if k != name})
            yield case.changed(wraps=(*case.wraps[:at], less, *case.wraps[at + 1 :]))
    if case.kind == "model":
        yield case.changed(wraps=())
    for cls in ("Decoder", "Encoder"):
        if case.cls in ("AttentionLayers", "PrefixDecoder", "CrossAttender"):
            yield case.changed(cls=cls, flags={k: v for k, v in case.flags.items() if k != "causal"})


def fewer_layers(case: Case) -> Iterator[Case]:
    for name, layers in layouts(case).items():
        for i, layer in enumerate(layers):
            for m, (block, own) in enumerate(here := members(layer)):
                # A block less: of those in parallel, or with it the layer.
                left = [joined([*here[:m], *here[m + 1 :]])] if len(here) > 1 else []
                kept = [*layers[:i], *left, *layers[i + 1 :]]
                if kept:
                    yield from without_block(case, name, block, kept)
                for flag in own:
                    less = [*here[:m], (block, {k: v for k, v in own.items() if k != flag}), *here[m + 1 :]]
                    yield case.changed(flags={**case.flags, name: [*layers[:i], joined(less), *layers[i + 1 :]]})


def without_block(case: Case, name: str, block: str, kept: list) -> Iterator[Case]:
    """The case with the layers that are left, and without what then is said of a block that is gone."""
    yield case.changed(flags={**case.flags, name: kept})
    if block not in [other for other, _ in every_block(kept)]:
        flags = {k: v for k, v in case.flags.items() if not k.startswith(f"{side(name)}{block}_")}
        yield case.changed(flags={**flags, name: kept})
        beside = {k: v for k, v in case.call.items() if not k.startswith("context")}
        yield case.changed(flags={**flags, name: kept}, call=beside)


def less_call(case: Case) -> Iterator[Case]:
    for name in case.call:
        yield case.changed(call={k: v for k, v in case.call.items() if k != name})
        if name in ("context", "prepend_embeds"):
            beside = (name, *BY_CONTEXT) if name == "context" else (name, "prepend_mask")
            yield case.changed(call={k: v for k, v in case.call.items() if k not in beside})
    for name, value in case.plan.items():
        yield case.changed(plan={k: v for k, v in case.plan.items() if k != name})
        if name == "cuts" and value != (1,):
            yield case.changed(plan={**case.plan, name: (1,)})
            if len(value) > 1:
                yield case.changed(plan={**case.plan, name: value[:-1]})
        elif name == "kept" and len(value) > 2:
            yield case.changed(plan={**case.plan, name: value[:2]})
            yield case.changed(plan={**case.plan, name: value[:-1]})
    for name, value in case.call.items():
        if name in ("mask", "context_mask", "prepend_mask", "attn_mask", "doc_ids"):
            yield from flatter(case, name, value)


def flatter(case: Case, name: str, value: Any) -> Iterator[Case]:
    """Entries of a list made the plainest they can be: tokens that are there, pairs that are seen, documents 0."""
    plain = 0 if name == "doc_ids" else 1
    tensor = torch.tensor(value)
    if name == "attn_mask" and tensor.dim() == 4:
        yield case.changed(call={**case.call, name: tensor[0, 0].tolist()})
    for i in range(tensor.shape[-2]):
        other = tensor.clone()
        other[..., i, :] = plain
        if not torch.equal(other, tensor):
            yield case.changed(call={**case.call, name: other.tolist()})
    if tensor.numel() <= 60:
        flat = tensor.flatten()
        for i in (flat != plain).nonzero()[:, 0].tolist():
            other = flat.clone()
            other[i] = plain
            yield case.changed(call={**case.call, name: other.view_as(tensor).tolist()})


def less_input(case: Case) -> Iterator[Case]:
    """A row less, a token less, a token of the context less."""
    for row in range(case.rows if case.rows > 1 else 0):
        yield case.changed(
            rows=case.rows - 1, call={k: without_row(k, v, row, case.rows) for k, v in case.call.items()}
        )
    for token in range(case.tokens if case.tokens > 1 else 0):
        fewer = {k: without_token(k, v, token, case.call.get("prepend_embeds", 0)) for k, v in case.call.items()}
        yield case.changed(tokens=case.tokens - 1, call=fewer)
    for name in ("context", "src"):
        for token in range(case.call[name] if case.call.get(name, 0) > 1 else 0):
            cut = {k: drop(v, token, -1) for k, v in case.call.items() if k in BY_CONTEXT}
            yield case.changed(call={**case.call, **cut, name: case.call[name] - 1})


def drop(value: Any, index: int, axis: int) -> Any:
    tensor = torch.tensor(value)
    keep = [i for i in range(tensor.shape[axis]) if i != index]
    return tensor.index_select(axis, torch.tensor(keep, dtype=torch.long)).tolist()


def without_row(name: str, value: Any, row: int, rows: int) -> Any:
    if not isinstance(value, list) or name == "context_pos":
        return value
    if name == "attn_mask":
        tensor = torch.tensor(value)
        return value if tensor.dim() == 2 or len(tensor) == 1 else drop(value, row, 0)
    return drop(value, row, 0)


def without_token(name: str, value: Any, token: int, front: int) -> Any:
    if name in BY_TOKEN:
        return drop(value, token, 1)
    if name == "attn_mask":
        return drop(drop(value, token + front, -1), token + front, -2)
    return value


def lower(case: Case) -> Iterator[Case]:
    """Numbers closer to one, widths and counts among them."""
    for name, value in case.flags.items():
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            for less in sorted({1, 2, value // 2, value - 1} - {0, value}):
                yield case.changed(flags={**case.flags, name: less})
    for at, (wrapper, given) in enumerate(case.wraps):
        for name, value in given.items():
            if isinstance(value, int) and not isinstance(value, bool) and value > 1:
                for less in sorted({1, 2, value // 2, value - 1} - {0, value}):
                    made = (wrapper, {**given, name: less})
                    yield case.changed(wraps=(*case.wraps[:at], made, *case.wraps[at + 1 :]))
    for name in ("prefix_attn_len", "prepend_embeds"):
        if isinstance(case.call.get(name), int) and case.call[name] > 1 and "prepend_mask" not in case.call:
            yield case.changed(call={**case.call, name: case.call[name] - 1})


def shown(wrong: Wrong) -> str:
    """A program that shows the wrong, run in the repository with tests/ on its path."""
    case = wrong.case
    made = f"xflash.{case.cls}({arguments(spoken(case.flags))})"
    for name, given in case.wraps:
        inner = "net" if name not in ("TransformerWrapper", "ViTransformerWrapper") else "attn_layers"
        made = f"xflash.{name}({inner}={made}, {arguments(given)})"
    module = "search_checks" if wrong.law == "accepted" else LAWS[wrong.law][1].__module__
    lines = ["import sys; sys.path.insert(0, 'tests')", f"import laws, {module}, torch, xflash"]
    lines += ["from search_case import noise, words", ""]
    lines += ["torch.manual_seed(0)", f"model = laws.live({made})"]
    x, call = inputs_text(case)
    lines += [f"x = {x}", f"call = {{{call}}}"]
    if wrong.law == "accepted":
        lines.append("model(x, **call)")
    else:
        lines.append(f"{module}.{wrong.law}(model, x, call, {dict(case.plan)})")
    return "\n".join([*lines, f"# {wrong.reason}"])


def arguments(flags: Any) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in flags.items())


def inputs_text(case: Case) -> tuple[str, str]:
    """x and the rest of a call as code."""
    b, n = case.rows, case.tokens
    if case.kind == "vit":
        return f"noise(1, {b}, model.channels, *model.image_size)", ""
    width = "model.attn_layers.dim" if case.kind == "model" else "model.dim"
    count = "model.decoder.net.num_tokens" if case.kind == "seq2seq" else "model.num_tokens"
    x = f"noise(1, {b}, {n}, model.dim)" if case.kind == "stack" else f"words({b}, {n}, {count})"
    call = {}
    for name, value in case.call.items():
        if name == "src":
            call[name] = f"words({b}, {value}, model.encoder.num_tokens)"
        elif name == "context":
            known = [v for f, v in case.flags.items() if f.endswith("dim_context") and v]
            call[name] = f"noise(2, {b}, {value}, {known[0] if known else case.flags['dim']})"
        elif name == "prepend_embeds":
            call[name] = f"noise(3, {b}, {value}, {width})"
        elif isinstance(value, int):
            call[name] = repr(value)
        else:
            call[name] = f"torch.tensor({value})" + (".bool()" if name.endswith("mask") else "")
    return x, ", ".join(f"{name!r}: {text}" for name, text in call.items())
