"""The stack knows no part: what it must know of one, the part answers. One's own work wherever built-in ones do."""

import ast
import importlib
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path

import laws
import pytest
import torch
from torch import nn

import xflash
from xflash import AttentionLayers, Block, CrossAttender, Decoder, Encoder, ScoreStep, TransformerWrapper
from xflash.base.registry import blocks, joins, norms, positions, reads, scales, scores, weight_fns
from xflash.flags.flag import flag
from xflash.layers.positions.position import Position
from xflash.stack.config import StackConfig

FOLDER = Path(xflash.__file__).parent / "stack"
REGISTRIES = (blocks, norms, positions, reads, scales, joins, scores, weight_fns)
# Names of blocks and positions and their flags are looked for inside texts; those of the others are plain
# English words.
NAMED = {name: part for registry in (blocks, positions) for name, part in registry.items()}
INSIDE = {*NAMED, *(f"{name}_{f.name}" for name, part in NAMED.items() for f in fields(part.Config))}
WHOLE = {name for registry in (norms, reads, scales, joins) for name in registry}
OWN_FIELDS = {f.name for f in fields(StackConfig)}


def trees():
    for file in sorted(FOLDER.glob("*.py")):
        yield file.stem, ast.parse(file.read_text())


def docstrings(tree) -> set[int]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, kinds) and is_text(node.body[0])}


def is_text(node) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def of_flags(tree) -> set[int]:
    """What stands in `flag(...)`: defaults are names, and the texts name examples."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "flag"]
    return {id(inner) for call in calls for inner in ast.walk(call)}


def texts(tree):
    spared = docstrings(tree) | of_flags(tree)
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in spared]
    return [node.value for node in nodes if isinstance(node.value, str)]


def test_the_stack_names_no_part():
    found = [f"{stem}: {text!r}" for stem, tree in trees() for text in texts(tree) if names_a_part(text)]
    assert not found


def names_a_part(text: str) -> bool:
    return text in WHOLE or bool(INSIDE & set(re.findall(r"\w+", text)))


def test_the_stack_asks_no_part_of_what_class_it_is():
    parts = tuple(registry.base for registry in REGISTRIES)
    found = []
    for stem, tree in trees():
        module = importlib.import_module(f"xflash.stack.{stem}")
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", "") not in ("isinstance", "issubclass"):
                continue
            names = [name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)]
            kinds = [vars(module).get(name) for name in names]
            found += [f"{stem}: {cls.__name__}" for cls in kinds if isinstance(cls, type) and issubclass(cls, parts)]
    assert not found


def test_the_stack_reads_no_flag_of_a_part():
    """`config.` is the stack's own; the flags of a part are asked of it."""
    theirs = {f.name for registry in REGISTRIES for part in registry.values() for f in fields(part.Config)} - OWN_FIELDS
    found = []
    for stem, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in theirs and ast.unparse(node.value).endswith("config"):
                found.append(f"{stem}: {ast.unparse(node)}")
    assert not found


def test_what_the_search_looks_for_would_be_found(tmp_path, monkeypatch):
    (tmp_path / "door.py").write_text(
        "from xflash.layers.positions.rotary import Rotary\n"
        "def f(p):\n    'rotary'\n    return 'ff' if isinstance(p, Rotary) else p.config.emb_dim\n"
    )
    monkeypatch.setattr(f"{__name__}.FOLDER", tmp_path)
    monkeypatch.setattr(importlib, "import_module", lambda _: xflash.layers.positions.relative)
    monkeypatch.setattr(xflash.layers.positions.relative, "Rotary", positions["rotary"], raising=False)
    for test in (
        test_the_stack_names_no_part,
        test_the_stack_asks_no_part_of_what_class_it_is,
        test_the_stack_reads_no_flag_of_a_part,
    ):
        with pytest.raises(AssertionError):
            test()


class Blend(Block):
    """A channel mixer."""

    mixes_tokens = False
    honours = frozenset({"attn_mask", "doc_ids", "prefix"})

    def __init__(self, config, site):
        super().__init__(config, site)
        self.to_out = site.linear_out(site.dim)

    def forward(self, x, ctx, state=None):
        return self.to_out(x.tanh()), None


class Tally(Block):
    """Publishes one vector: the sum of the tokens of all full blocks so far."""

    causal_only, publishes, reads_own = True, True, False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        every: int = flag(4, "tokens in a block", at_least=1)

    def __init__(self, config, site):
        super().__init__(config, site)
        self.to_out = site.linear_out(site.dim)

    def publishes_every(self):
        return self.config.every

    def published(self, state, x):
        return x.new_zeros(x.shape[0], 1, x.shape[2]) if state is None else state[0][:, None]

    def forward(self, x, ctx, state=None):
        zero = torch.zeros_like(x[:, 0])
        closed, opened, seen = (zero, zero, zero[:, 0].long()) if state is None else state
        real = ctx.real(x.shape[1])
        for i, token in enumerate(x.unbind(1)):
            there = torch.ones_like(seen, dtype=torch.bool) if real is None else real[:, i]
            opened, seen = opened + token.masked_fill(~there[:, None], 0), seen + there
            full = (there & (seen % self.config.every == 0))[:, None]
            closed, opened = torch.where(full, closed + opened, closed), opened.masked_fill(full, 0)
        return self.to_out(x), (closed, opened, seen) if ctx.keep_state else None


class Clock(Position):
    """Neither a bias nor a turn: what time it is at each place."""

    places_context = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        period: float = flag(7.0, "tokens in a turn of the clock", above=0)

    def check(self, users):
        if self.config.period > 100:
            raise ValueError(f"{positions.name_of(type(self))}_period={self.config.period} for {len(users)} users")

    def time(self, where, dtype):
        return (where.to(dtype) * (6.28 / self.config.period)).sin()[..., None]


class Punctual(Block):
    """Reads the clock."""

    positions = frozenset({"clock"})
    honours = frozenset({"attn_mask", "doc_ids", "prefix"})
    mixes_tokens = False

    def __init__(self, config, site):
        super().__init__(config, site)
        self.to_out = site.linear_out(site.dim)

    def forward(self, x, ctx, state=None):
        where = ctx.positions if ctx.doc_ids is None else ctx.doc_positions()
        for clock in [] if ctx.relative is None else ctx.relative.of(Clock):
            x = x * clock.time(where, x.dtype)
        return self.to_out(x), None


class Glance(Block):
    """Reads the mean of a context, each of its tokens as loud as the clock says where it stands."""

    positions = frozenset({"clock"})
    honours = frozenset({"attn_mask", "doc_ids", "prefix"})
    mixes_tokens, takes_context = False, True

    def __init__(self, config, site):
        super().__init__(config, site)
        self.key = nn.Linear(site.dim, site.dim, bias=False)
        self.to_out = site.linear_out(site.dim)

    def context_width(self):
        return self.site.dim

    def kept_on_reset(self, state):
        return state

    def optional(self, state):
        return () if state is None else ("key",)

    def forward(self, x, ctx, state=None):
        if state is None:
            c, places = ctx.context, ctx.context_pos
            for clock in [] if ctx.relative is None or places is None else ctx.relative.of(Clock):
                c = c * clock.time(places, c.dtype)
            state = (self.key(c).mean(1),)
        return self.to_out(x * state[0][:, None]), state if ctx.keep_state else None


class Worth(ScoreStep):
    """Each key is worth to a query what both say of themselves, kept beside it."""

    needs, brings = frozenset({"causal"}), ("worth",)

    def __init__(self, config, site, heads, kind):
        super().__init__(config, site, heads, kind)
        self.say = nn.Linear(site.dim, heads)

    def bring(self, x, ctx, last):
        return {"worth": self.say(x).mT[..., None]}

    def bias(self, read):
        return read.fresh["worth"] * read.buffers["worth"].mT


@pytest.fixture
def own():
    before = [(registry, dict(registry._parts)) for registry in REGISTRIES]
    for name, block in {"blend": Blend, "tally": Tally, "punctual": Punctual, "glance": Glance}.items():
        blocks.register(name)(block)
    positions.register("clock")(Clock)
    scores.register("worth")(Worth)
    yield
    for registry, parts in before:
        registry._parts = parts


SIZES = {"dim": 26, "depth": 2, "heads": 2}
STACKS = {
    "a mixer beside a context": (Decoder, {"layers": "attn cross_attn blend", "cross_attend": True, "pos": "rotary"}),
    "a mixer in a stack of contexts only": (CrossAttender, {"layers": "cross_attn blend"}),
    "a publisher that is read": (Decoder, {"layers": "state_read tally blend", "depth": 1, "tally_every": 3}),
    "a clock": (Decoder, {"layers": "punctual attn ff", "pos": "clock rotary"}),
    "a clock both ways": (Encoder, {"layers": "punctual gau", "pos": "clock", "clock_period": 5, "shift_tokens": 1}),
    "a clock beside state vectors": (
        Decoder,
        {"layers": "punctual state_read tally", "pos": "clock", "depth": 1, "num_memory_tokens": 2},
    ),
    "a step with a buffer beside a context": (
        Decoder,
        {"layers": "attn cross_attn blend", "cross_attend": True, "attn_scores": "worth softclamp", "attn_window": 5},
    ),
    "a step with a buffer beside state vectors": (
        Decoder,
        {"layers": "attn state_read tally", "depth": 1, "attn_scores": "worth", "num_memory_tokens": 2},
    ),
    "a clock beside a context": (Decoder, {"layers": "punctual glance blend", "pos": "clock", "cross_attend": True}),
}


def build(cls, **flags) -> AttentionLayers:
    torch.manual_seed(0)
    small = {"attn": 6, "cross_attn": 6, "state_read": 6}
    widths = {f"{name}_dim_head": width for name, width in small.items() if name in flags["layers"].split()}
    return cls(**{**SIZES, **widths, **flags})


@pytest.mark.parametrize("name", STACKS)
def test_own_parts_keep_the_laws(own, name, tmp_path):
    cls, flags = STACKS[name]
    stack = build(cls, **flags)
    laws.all_laws(stack, tmp_path, cuts=(1, 9), ways=(False,))
    assert xflash.from_config(json.loads(json.dumps(stack.to_config()))).to_config() == stack.to_config()


def test_a_model_with_a_clock_generates(own):
    torch.manual_seed(0)
    model = TransformerWrapper(num_tokens=11, attn_layers=build(Decoder, layers="punctual attn ff", pos="clock")).eval()
    ids = torch.randint(0, 11, (3, 5))
    made = xflash.AutoregressiveWrapper(model).generate(ids, 4, temperature=0.0)
    for i in range(4):
        before = torch.cat((ids, made[:, :i]), 1)
        assert torch.equal(model(before)[:, -1].argmax(-1), made[:, i])


def test_a_clock_counts_where_a_context_stands(own):
    """`context_pos` tells a family that places a context; and each packed document has a time of its own."""
    stack = build(Encoder, layers="punctual glance", pos="clock").double().eval()
    x, context = (torch.randn(2, n, 26, dtype=torch.float64) for n in (5, 3))
    here, there = (stack(x, context=context, context_pos=torch.arange(3) + at) for at in (0, 2))
    assert not torch.allclose(here, there)
    assert torch.allclose(there, stack(x, context=context, context_pos=torch.arange(2, 5)))
    packed = build(Encoder, layers="punctual", pos="clock").double().eval()
    both = packed(torch.cat((x, x), 1), doc_ids=torch.arange(2).repeat_interleave(5).expand(2, -1))
    assert torch.allclose(both, torch.cat((packed(x), packed(x)), 1))


def test_what_a_part_answers_is_asked(own):
    with pytest.raises(ValueError, match=r"clock_period=200\.0 for 2 users"):
        build(Decoder, layers="punctual attn", pos="clock", clock_period=200)
    with pytest.raises(ValueError, match=r"pos has 'clock', but no block of the layout 'attn ff' .* punctual, glance"):
        build(Decoder, layers="attn ff", pos="clock")
    with pytest.raises(ValueError, match=r"pos='clock' has nothing to turn in the layout .* give context_pos"):
        build(Encoder, layers="glance blend", pos="clock")(torch.randn(1, 2, 26), context=torch.randn(1, 3, 26))
    layers = "state_read(source=1) state_read(source=2) tally(every=2) tally(every=3)"
    with pytest.raises(ValueError, match="layers that others read must publish after equally many tokens"):
        build(Decoder, layers=layers, depth=1)
    with pytest.raises(ValueError, match="reads the state vectors of its tally layer 1"):
        build(Decoder, layers="tally", depth=1)
    with pytest.raises(ValueError, match="only_cross=True contradicts the layout 'glance tally'"):
        build(AttentionLayers, layers="glance tally", only_cross=True, causal=True)
