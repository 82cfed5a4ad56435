"""Drawing cases: flags by the types and bounds of the Configs, layouts of what is registered, calls at random."""

import types
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Literal, Union, get_args, get_origin

from search_case import Case, every_block, joined

import xflash
from xflash import activations, blocks, joins, norms, positions, reads, scales
from xflash.flags.aliases import SWITCHES, names
from xflash.flags.flag import Flag, flags_of
from xflash.stack.around import Around
from xflash.stack.config import StackConfig, slot_prefix
from xflash.stack.held import parts_of

# What the outline of a case decides; everything else is drawn by its type.
OUTLINE = (
    "dim",
    "depth",
    "heads",
    "causal",
    "layers",
    "custom_layers",
    "pos",
    "reads",
    "scale",
    "layers_execute_order",
)
STACKS = ("AttentionLayers", "CrossAttender", "Decoder", "Encoder", "PrefixDecoder")
# A default above this is a size that has to be drawn: a search has to be quick.
LARGE = 16
# What of a layer is drawn by its type.
PLAIN = ("norm_place", "shift_tokens", "layer_dropout")
# What no flag of a number or a choice can be.
ODD = (-1, float("nan"), float("inf"), "x", None, 2.5, True, (), (0,))


def number(spec: Flag, chance: Random) -> int:
    """A small whole number within the bounds of a flag."""
    low = max(spec.bounds.get("at_least", spec.bounds.get("above", 0) + 1), 0)
    high = min(spec.bounds.get("at_most", low + 7), spec.bounds.get("below", low + 8) - 1)
    return chance.randint(int(low), int(min(high, low + chance.choice((1, 3, 7)))))


def share(spec: Flag, chance: Random) -> float:
    """A number within the bounds of a flag, near its default."""
    low, high = (
        next((spec.bounds[k] for k in keys if k in spec.bounds), None)
        for keys in (("at_least", "above"), ("below", "at_most"))
    )
    if high is not None and high <= LARGE:
        return chance.choice((0.1, 0.5)) * (high - (low or 0)) + (low or 0)
    base = spec.default if isinstance(spec.default, float) and spec.default else 1.0
    found = base * chance.choice((0.5, 0.75, 1.0, 1.5, 2.0))
    return max(found, low + 0.5) if low is not None and found <= low else found


def drawn(hint: Any, spec: Flag, chance: Random, layers: int) -> Any:
    """A value of a type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        # A function of one's own has no place in a program that is printed.
        return drawn(chance.choice([arg for arg in args if arg is not Callable]), spec, chance, layers)
    if origin is Literal:
        return chance.choice(args)
    if origin is tuple:
        # One for each layer, or a few.
        many = layers if len(args) == 2 and spec.name in flags_of(StackConfig) else chance.randint(0, 2)
        return tuple(drawn(args[0], spec, chance, layers) for _ in range(many))
    if origin is not None and issubclass(origin, Mapping):
        return {name: drawn(args[1], spec, chance, layers) for name in ("one", "two")[: chance.randint(1, 2)]}
    if hint is bool:
        return chance.random() < 0.5 if spec.default not in (True, False) else not spec.default
    if hint is str:
        registry = next((r for r in (norms, joins, activations) if spec.default in r), None)
        none = ["none"] if registry is norms else []
        return spec.default if registry is None else chance.choice([*registry, *none])
    makers = {int: number, float: share}
    return makers[hint](spec, chance) if hint in makers else None


def is_size(spec: Flag) -> bool:
    return isinstance(spec.default, int) and spec.default > LARGE


def config_flags(config: type, prefix: str, chance: Random, often: float, layers: int = 1) -> dict[str, Any]:
    """Some of the flags of a Config, and all of its sizes."""
    found = {}
    for name, spec in flags_of(config).items():
        if (prefix or name not in OUTLINE) and (is_size(spec) or chance.random() < often):
            value = drawn(spec.hint, spec, chance, layers)
            found[prefix + name] = value if value != spec.default else drawn(spec.hint, spec, chance, layers)
            found |= {prefix + flag: value for flag, value in company(spec, chance).items()}
    return found


def company(spec: Flag, chance: Random) -> dict[str, Any]:
    """Now and then what a flag is tried with where that is several flags, which alone would be refused."""
    together = [entry for entry in spec.tried or () if isinstance(entry, dict)]
    return chance.choice(together) if together and chance.random() < 0.5 else {}


def held(block: str, field: str, chance: Random) -> Any:
    """A choice of the parts that a block holds, now and then one that it refuses."""
    registry = blocks[block].holds[field]
    fit = [name for name in registry if not blocks[block].refuses(registry[name])]
    fit = list(registry) if chance.random() < 0.05 else fit
    if flags_of(blocks[block].Config)[field].hint is str:
        return chance.choice(fit)
    return tuple(chance.sample(fit, min(len(fit), chance.choice((1, 1, 1, 2, 3))))) or None


def held_flags(block: str, chance: Random, often: float) -> dict[str, Any]:
    """Parts that a block holds, and some of their flags."""
    found = {}
    for field in blocks[block].holds:
        if chance.random() < often:
            found[slot_prefix(block) + field] = held(block, field, chance)
    for field, part, config in parts_of(block):
        if part in names(found.get(slot_prefix(block) + field)):
            found |= config_flags(config, slot_prefix(f"{block}_{part}"), chance, max(often, 0.6))
    return found


def able(cls: str, causal: bool, chance: Random) -> list[str]:
    """Blocks that a stack can have, as their classes say, often those that honour something; now and then all."""
    names = list(blocks)
    if chance.random() < 0.05:
        return names
    if cls == "CrossAttender":
        return [n for n in names if blocks[n].takes_context or not blocks[n].mixes_tokens]
    wishes = sorted({wish for n in names for wish in blocks[n].honours})
    wish = "prefix" if cls == "PrefixDecoder" else chance.choice((None, *wishes, *wishes))
    names = [n for n in names if causal or not blocks[n].causal_only]
    return [n for n in names if wish is None or wish in blocks[n].honours]


def layout(chance: Random, names: list[str], needed: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """One to four layers of these blocks, one of the needed ones among them, some with flags of their own."""
    found = [chance.choice(names) for _ in range(chance.choice((1, 1, 2, 2, 3, 4)))]
    if needed and not set(needed) & set(found):
        found.insert(chance.randint(0, len(found)), chance.choice(needed))
    if any(name == "state_read" for name in found) and not any(blocks[name].publishes for name in found):
        found.append(chance.choice([n for n in blocks if blocks[n].publishes]))
    layers, often = [], chance.choice((0.0, 0.0, 0.3, 0.6))
    while found:
        many = chance.choice((2, 2, 3)) if chance.random() < often else 1
        here, found = found[:many], found[many:]
        layers.append(joined([(name, overrides(chance, name, len(here) > 1)) for name in here]))
    return layers * chance.choice((1, 1, 1, 1, 1, 2)) if len(layers) < 3 else layers


def overrides(chance: Random, name: str, beside: bool) -> dict[str, Any]:
    """What a layout says of a block: flags of its own, and of what stands around it; `beside` others in parallel."""
    own: dict[str, Any] = {}
    if chance.random() < 0.2:
        specs = flags_of(blocks[name].Config)
        for flag in chance.sample(list(specs), min(len(specs), chance.randint(1, 2))):
            part = flag in blocks[name].holds
            own[flag] = held(name, flag, chance) if part else drawn(specs[flag].hint, specs[flag], chance, 1)
    if beside and chance.random() < 0.3:
        own |= {"norm": "own"} | chance.choice(({}, {"norm_eps": 1e-2}))
    elif chance.random() < 0.25:
        own |= around(chance, name)
    return own


def around(chance: Random, name: str) -> dict[str, Any]:
    """One or two things that a layout says of what stands around a block, or of its positions."""
    fit = [p for p in positions if positions[p].fits(blocks[name])]
    pos = chance.choice(fit) if fit else None
    options: list[dict[str, Any]] = [
        {"norm": chance.choice((*norms, "none"))},
        {"norm_eps": 1e-2},
        *({n: drawn(s.hint, s, chance, 1)} for n, s in flags_of(Around).items() if n in PLAIN),
        {"scale": chance.choice((*scales, "none"))},
        {"join": chance.choice([join for join in joins if not joins[join].wide])},
    ]
    if pos is not None:
        own = config_flags(positions[pos].Config, slot_prefix(pos), chance, 0.4)
        options += [{"pos": "none"}, {"pos": pos}, {"pos": pos, **own}, {"pos": pos, **own}]
    return {name: value for option in chance.sample(options, chance.randint(1, 2)) for name, value in option.items()}


def stack(chance: Random, cls: str, prefix: str = "") -> dict[str, Any]:
    """The flags of a stack, each with a prefix."""
    often = chance.choice((0.05, 0.2, 0.4))
    flags: dict[str, Any] = {"dim": chance.choice((3, 5, 7, 8, 11)), "heads": chance.choice((1, 2, 3, 4))}
    if cls == "AttentionLayers":
        flags["causal"] = chance.random() < 0.6
    causal = flags.get("causal", cls in ("Decoder", "PrefixDecoder"))
    names = able(cls, causal, chance)
    crossing = [name for name in names if blocks[name].takes_context]
    # The sides of an encoder-decoder have a context as their names say.
    names = [name for name in names if prefix != "enc_" or name not in crossing]
    layers = layout(chance, names, crossing if prefix == "dec_" or cls == "CrossAttender" else [])
    depth = chance.choice((1, 1, 2))
    flags |= {"layers": layers, "depth": depth}
    if chance.random() < often / 4:
        order = list(range(len(layers) * depth))
        flags["layers_execute_order"] = tuple(order[: chance.choice(order) + 1] + order)
    used = list(dict.fromkeys(name for name, _ in every_block(layers)))
    fit = [p for p in positions if any(p in blocks[name].positions for name in used)] or list(positions)
    pos = chance.sample(fit, min(chance.choice((0, 1, 1, 1, 2)), len(fit)))
    if pos:
        flags["pos"] = tuple(pos)
    flags |= config_flags(StackConfig, "", chance, often / 2, len(layers) * depth)
    for name in used:
        flags |= config_flags(blocks[name].Config, slot_prefix(name), chance, often)
        for field in blocks[name].holds:
            flags.pop(slot_prefix(name) + field, None)
        flags |= held_flags(name, chance, often)
    for name in pos:
        flags |= config_flags(positions[name].Config, slot_prefix(name), chance, often)
    for slot, registry in (("reads", reads), ("scale", scales)):
        if listed := tuple(name for name in registry if chance.random() < often / 2):
            flags[slot] = listed
        for name in listed:
            flags |= config_flags(registry[name].Config, slot_prefix(name), chance, often)
    for registry, name, own in ((norms, flags.get("norm", "layernorm"), "norm"), (joins, flags.get("join"), None)):
        if name in registry:
            flags |= config_flags(registry[name].Config, slot_prefix(own or name), chance, often)
    return {prefix + name: value for name, value in unusual(flags, chance).items()}


def unusual(flags: dict[str, Any], chance: Random) -> dict[str, Any]:
    """The flags, now and then one of them said as another library says it, or with a value that makes no sense."""
    if chance.random() < 0.05:
        flags = {**flags, chance.choice(list(SWITCHES)): chance.random() < 0.7}
    own = [name for name in flags if name not in ("dim", "heads", "depth", "layers")]
    if own and chance.random() < 0.04:
        flags = {**flags, chance.choice(own): chance.choice(ODD)}
    return flags


def arguments(cls: type, chance: Random, often: float, given: tuple[str, ...]) -> dict[str, Any]:
    """Some of the arguments of a wrapper."""
    specs = {name: spec for name, spec in flags_of(cls.Config).items() if name not in given}
    return {name: drawn(spec.hint, spec, chance, 1) for name, spec in specs.items() if chance.random() < often}


def model(chance: Random) -> dict[str, Any]:
    """A TransformerWrapper's arguments but the stack."""
    given = {"num_tokens": chance.choice((5, 7, 13)), "max_seq_len": 64}
    found = arguments(xflash.TransformerWrapper, chance, chance.choice((0.05, 0.2)), (*given, "attn_layers"))
    return {**given, **found}


def side(chance: Random, prefix: str, cls: str) -> dict[str, Any]:
    """The flags of one side of an XTransformer: a stack's, and its model's."""
    flags = stack(chance, cls, prefix)
    del flags[f"{prefix}dim"]
    return {**flags, **{prefix + name: value for name, value in model(chance).items()}}


def case(chance: Random) -> Case:
    """The module of a case; its call is drawn when it is known what the module can be given."""
    kind = chance.choices(("stack", "model", "seq2seq", "vit"), (12, 5, 1, 1))[0]
    if kind == "seq2seq":
        flags = {"dim": chance.choice((4, 5, 7)), **side(chance, "enc_", "Encoder"), **side(chance, "dec_", "Decoder")}
        known = tuple(flags)
        return Case("XTransformer", {**flags, **arguments(xflash.XTransformer, chance, 0.2, (*known, "flags"))})
    if kind == "vit":
        given = {"image_size": chance.choice((4, (4, 6))), "patch_size": 2}
        found = arguments(xflash.ViTransformerWrapper, chance, 0.2, (*given, "attn_layers"))
        return Case("Encoder", stack(chance, "Encoder"), (("ViTransformerWrapper", {**given, **found}),))
    cls = chance.choices(STACKS, (2, 1, 6, 4, 2))[0]
    return Case(cls, stack(chance, cls), (("TransformerWrapper", model(chance)),) if kind == "model" else ())


def bits(chance: Random, count: int, often: float = 0.6) -> list[int]:
    return [int(chance.random() < often) for _ in range(count)]


def padding(chance: Random, rows: int, tokens: int) -> list[list[int]]:
    """A mask: to the right, to the left, in holes, or of each kind; rows may be empty."""
    kind = chance.choice(("right", "left", "holes", "any"))
    found = []
    for _ in range(rows):
        length = chance.choice((0, tokens, *[chance.randint(1, tokens) for _ in range(4)]))
        row = [1] * length + [0] * (tokens - length)
        way = chance.choice(("right", "left", "holes")) if kind == "any" else kind
        found.append(row if way == "right" else row[::-1] if way == "left" else bits(chance, tokens))
    return found


def documents(chance: Random, rows: int, tokens: int) -> list[list[int]]:
    """Numbers in runs, some of them again."""
    found = []
    for _ in range(rows):
        row: list[int] = []
        while len(row) < tokens:
            row += [chance.choice((0, 1, 2, 3, 9))] * chance.randint(1, max(tokens // 2, 1))
        found.append(row[:tokens])
    return found


def attention_mask(chance: Random, rows: int, heads: int, n: int) -> list:
    """Of one of the shapes that a stack takes; some queries may see nothing."""
    often = chance.choice((0.3, 0.7, 0.9))
    if chance.random() < 0.4:
        return [bits(chance, n, often) for _ in range(n)]
    shape = chance.choice((1, rows)), chance.choice((1, heads))
    return [[[bits(chance, n, often) for _ in range(n)] for _ in range(shape[1])] for _ in range(shape[0])]


def call(chance: Random, of: Case, built: Any) -> Case:
    """The case with a call that its module can be given, or nearly."""
    rows, tokens = chance.choice((1, 2, 2, 3)), chance.choice((*range(1, 10), 11, 13, chance.randint(14, 24)))
    if of.kind == "vit":
        return of.changed(rows=rows, plan=plan(chance, rows))
    if of.kind == "seq2seq":
        # A loss needs two tokens.
        tokens = max(tokens, 2)
        given = source(chance, rows, tokens)
        sides = {"condition": built.decoder.net.attn_layers, "src_condition": built.encoder.attn_layers}
        given |= {name: 0 for name, side in sides.items() if "condition" in side.heeded}
        return of.changed(rows=rows, tokens=tokens, call=given, plan=plan(chance, rows))
    stack = getattr(built, "attn_layers", built)
    blocks_here = stack.blocks()
    able = set.intersection(*(set(block.honours) for block in blocks_here))
    given: dict[str, Any] = {}
    front = chance.randint(1, 3) if of.wraps and chance.random() < 0.25 else 0
    if front:
        given["prepend_embeds"] = front
        if chance.random() < 0.5:
            given["prepend_mask"] = padding(chance, rows, front)
    if chance.random() < 0.6:
        given["mask"] = padding(chance, rows, tokens)
    if chance.random() < (0.6 if "doc_ids" in able and not front else 0.03):
        given["doc_ids"] = documents(chance, rows, tokens)
    if chance.random() < (0.4 if "attn_mask" in able else 0.03):
        heads = next((h for block in blocks_here if (h := block.bias_heads()) is not None), 1)
        given["attn_mask"] = attention_mask(chance, rows, heads, tokens + front)
    if any(block.takes_context for block in blocks_here):
        c = given["context"] = chance.randint(1, 6)
        if chance.random() < 0.6:
            given["context_mask"] = padding(chance, rows, c)
        if chance.random() < (0.5 if "rotary" in stack.positions else 0.03):
            given["context_pos"] = [chance.randint(0, 9) for _ in range(c)]
    if chance.random() < (0.98 if "condition" in stack.heeded else 0.02):
        given["condition"] = 0
    if chance.random() < (0.8 if stack.takes_prefix else 0.02):
        longest = tokens + front
        given["prefix_attn_len"] = chance.choice(
            (chance.randint(0, longest), [chance.randint(0, longest) for _ in range(rows)])
        )
    return of.changed(rows=rows, tokens=tokens, call=given, plan=plan(chance, rows))


def source(chance: Random, rows: int, tokens: int) -> dict[str, Any]:
    """What an encoder-decoder is given beside its target."""
    c = chance.randint(1, 7)
    given: dict[str, Any] = {"src": c}
    if chance.random() < 0.6:
        given["context_mask"] = padding(chance, rows, c)
    if chance.random() < 0.5:
        given["mask"] = padding(chance, rows, tokens)
    return given


def plan(chance: Random, rows: int) -> dict[str, Any]:
    """How a sequence is cut, and what is done with its state and its tokens."""
    sizes = chance.choice(((1,), (2, 1), (chance.randint(1, 9),), tuple(chance.randint(1, 4) for _ in range(3))))
    return {
        "cuts": sizes,
        "order": tuple(chance.randrange(rows) for _ in range(chance.randint(1, 3))),
        "reset": tuple(bits(chance, rows, 0.5)),
        "kept": tuple(bits(chance, 7)),
    }
