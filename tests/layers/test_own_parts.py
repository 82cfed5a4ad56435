"""A part of one's own of every kind: a few lines each, then like any other."""

import json
from dataclasses import dataclass

import laws
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import xflash
from xflash import (
    Bias,
    Block,
    Decoder,
    Encoder,
    Join,
    Norm,
    Read,
    Scale,
    TransformerWrapper,
    activations,
    blocks,
    flag,
    joins,
    norms,
    positions,
    reads,
    residuals,
    scales,
    scores,
    side_inputs,
    weight_fns,
)

DIM = 26
REGISTRIES = (blocks, norms, positions, reads, scales, joins, scores, weight_fns, side_inputs, activations)


class EMA(Block):
    """y_t = decay * y_(t-1) + (1 - decay) * x_t."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        decay: float = flag(0.9, "share of the past that stays", at_least=0, below=1)

    def forward(self, x, ctx, state=None):
        means = [torch.zeros_like(x[:, 0]) if state is None else state[0]]
        for token in x.unbind(1):
            means.append(torch.lerp(token, means[-1], self.config.decay))
        y = torch.stack(means, 1)
        end = y[:, -1] if ctx.new is None else y[torch.arange(len(x)), ctx.new]
        return y[:, 1:] * self.site.branches**-0.5, (end,) if ctx.keep_state else None


class TanhNorm(Norm):
    """tanh(a x) * g (https://arxiv.org/abs/2503.10622)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        start: float = flag(0.5, "what a starts at", above=0)

    def __init__(self, config, site):
        super().__init__(config, site)
        self.slope = nn.Parameter(torch.tensor(config.start))
        self.gain = nn.Parameter(torch.ones(site.dim))

    def forward(self, x, ctx):
        return torch.tanh(self.slope * x) * self.gain


class LogBias(Bias):
    """-a log(1 + b distance) added to the scores (KERPLE, https://arxiv.org/abs/2205.09921)."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        slope: float = flag(1.0, "a", above=0)
        bend: float = flag(0.3, "b", above=0)

    def by_distance(self, distance, heads, dtype):
        slopes = self.config.slope * torch.arange(1, heads + 1, device=distance.device, dtype=dtype)
        return -slopes[:, None] * torch.log1p(self.config.bend * distance.abs())


class Halved(Scale):
    """f(x) / 2."""

    def forward(self, update, ctx):
        return update / 2


class Turned(Join):
    """a x + b f(x), a and b cosine and sine of a learned angle."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        angle: float = flag(0.7, "what the angle starts at", above=0)

    def __init__(self, config, site):
        super().__init__(config, site)
        self.angle = nn.Parameter(torch.tensor(config.angle))

    def forward(self, x, update, ctx):
        return self.angle.cos() * x + self.angle.sin() * update


class Echo(Read):
    """y + g (y - what the first branch read)."""

    def __init__(self, config, site):
        super().__init__(config, site)
        self.gain = nn.Parameter(torch.zeros(site.dim))

    def forward(self, y, ctx, place):
        if place == 0:
            ctx.relay.leave("first", 0, y)
        return y + self.gain * (y - ctx.relay.take("first", 0))


@pytest.fixture
def own():
    """The parts, registered for one test: as decorators they would be under every other test of the run too."""
    before = [(registry, dict(registry._parts)) for registry in REGISTRIES]
    blocks.register("ema")(EMA)
    norms.register("tanh_norm")(TanhNorm)
    positions.register("log_bias")(LogBias)
    reads.register("echo")(Echo)
    scales.register("halved")(Halved)
    residuals.register("turned")(Turned)
    activations.register("selu")(F.selu)
    yield
    for registry, parts in before:
        registry._parts = parts


def build(cls, **flags):
    torch.manual_seed(0)
    return cls(**{"dim": DIM, "depth": 2, "heads": 2, **flags})


@pytest.mark.parametrize("cls", [Decoder, Encoder])
@pytest.mark.parametrize(
    "flags",
    [
        {"layers": "ema", "ema_decay": 0.7},
        {"layers": "ema ff", "shift_tokens": 1, "num_memory_tokens": 2, "norm": "tanh_norm"},
        {"layers": "attn ff", "reads": "echo", "weight_tie_layers": True, "residual": "turned", "turned_angle": 0.3},
        {
            "layers": "attn(window=9) ff",
            "attn_dim_head": 6,
            "pos": "log_bias",
            "scale": "halved layerscale",
            "join": "turned",
            "reads": "echo",
            "ff_activation": "selu",
        },
        {
            "layers": "attn gau",
            "attn_dim_head": 6,
            "gau_query_key_dim": 6,
            "pos": "rotary log_bias",
            "log_bias_slope": 2,
        },
    ],
    ids=str,
)
def test_own_parts_keep_the_laws(own, cls, flags, tmp_path):
    laws.all_laws(build(cls, **flags), tmp_path)


@pytest.mark.parametrize("cls", [Decoder, Encoder])
def test_own_parts_start_sanely(own, cls):
    """Without an output projection (`site.linear_out`) to start small, what it adds is held back by the residual."""
    laws.sane_start(build(cls, layers="ema ff", depth=12, norm="tanh_norm"))


def test_own_parts_are_in_the_flags_the_table_and_the_config(own):
    flags = {"ema_decay": 0.5, "norm": "tanh_norm", "norm_start": 0.25, "pos": "log_bias", "attn_dim_head": 6}
    stack = build(
        Decoder, layers="flash*2 ema(decay=0) ema attn ff", flash_query_key_dim=6, flash_group_size=5, **flags
    )
    table = stack.flag_table()
    for line in ("ema_decay", "norm_start", "log_bias_bend"):
        assert line in table
    assert "share of the past that stays" in table
    assert "TanhNorm(26, start=0.25)" in stack.module_tree()
    assert [b.config.decay for b in stack.blocks() if hasattr(b.config, "decay")] == [0, 0.5] * 2
    again = xflash.from_config(json.loads(json.dumps(stack.to_config())))
    assert again.to_config() == stack.to_config()
    with pytest.raises(TypeError, match="unknown flag 'ema_decy'; did you mean 'ema_decay'"):
        build(Decoder, layers="ema", ema_decy=0.5)
    with pytest.raises(ValueError, match=r"ema_decay must be below 1, not 1.0"):
        build(Decoder, layers="ema", ema_decay=1)
    with pytest.raises(ValueError, match="ema_decay is set but the layout 'ff' has no 'ema'"):
        build(Decoder, layers="ff", ema_decay=0.5)
    with pytest.raises(ValueError, match=r"pos has 'log_bias', but no block of the layout 'ema' can use it .*attn"):
        build(Decoder, layers="ema", pos="log_bias")
    with pytest.raises(ValueError, match=r"EMA cannot honour doc_ids; blocks that can: attn"):
        build(Decoder, layers="ema")(torch.randn(1, 4, DIM), doc_ids=torch.zeros(1, 4, dtype=torch.long))


def test_a_model_of_own_parts_decodes(own):
    model = (
        TransformerWrapper(num_tokens=11, attn_layers=build(Decoder, layers="ema flash ff", pos="rotary"))
        .double()
        .eval()
    )
    ids = torch.randint(0, 11, (3, 13))
    mask = torch.arange(13) < torch.tensor([[13], [5], [0]])
    whole, padded = model(ids), model(ids, mask=mask)
    pieces, state = [], None
    for token in ids.split(1, 1):
        logits, state = model.step(token, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(padded[1, :5], model(ids[1:2, :5])[0])


@pytest.mark.parametrize(
    ("out", "error", "match"),
    [
        (lambda x: x, TypeError, r"Wrong.forward must give \(y, state\), a tensor and a state or None, not Tensor"),
        (lambda x: (x, None, None), TypeError, r"must give \(y, state\), .* not \(torch.float32, NoneType, NoneType\)"),
        (lambda x: (None, x), TypeError, r"Wrong.forward must give \(y, state\), .* not \(NoneType, torch.float32\)"),
        (lambda x: (x[:, :1], None), ValueError, r"give y in the shape of x, \(2, 5, 26\), not \(2, 1, 26\)"),
        (lambda x: (x[..., :1], None), ValueError, r"Wrong.forward .* \(2, 5, 26\), not \(2, 5, 1\)"),
        (lambda x: (x[0], None), ValueError, r"Wrong.forward .* \(2, 5, 26\), not \(5, 26\)"),
    ],
    ids=["no state", "three", "no tensor", "one token", "one channel", "no batch"],
)
def test_a_block_gives_an_update_and_a_state(own, out, error, match):
    """Two rows would be taken apart into a pair, and a smaller update be broadcast: wrong numbers without a word."""

    class Wrong(Block):
        def forward(self, x, ctx, state=None):
            return out(x)

    blocks.register("wrong")(Wrong)
    for layers in ("wrong", "ff wrong attn"):
        with pytest.raises(error, match=match):
            build(Decoder, layers=layers, depth=1)(torch.randn(2, 5, DIM))


def test_a_state_is_loaded_by_torch_as_it_is(own, tmp_path):
    """Without a word about weights_only, which is True: the classes of our states are known to be harmless."""
    sizes = {"flash_group_size": 5, "block_attn_block_width": 5, "recurrent_block_width": 5}
    layers = "attn(window=4) gau flash ema cross_attn cross_gau block_attn recurrent ff"
    net = TransformerWrapper(
        num_tokens=11,
        attn_layers=build(
            Decoder, layers=layers, depth=1, pos="rotary", recurrent_num_state_vectors=3, shift_tokens=1, **sizes
        ),
    ).eval()
    rmt = xflash.RecurrentMemoryWrapper(
        TransformerWrapper(num_tokens=11, attn_layers=build(Decoder, pos="rotary")), 2, 7
    ).eval()
    ids, context = torch.randint(0, 11, (3, 13)), torch.randn(3, 5, DIM)
    mask = torch.arange(13) < torch.tensor([[13], [5], [9]])
    for model, beside in ((net, {"context": context}), (rmt, {})):
        for no_grad in (True, False):
            with torch.set_grad_enabled(not no_grad):
                state = model.step(ids, None, mask, **beside)[1].detach()
                torch.save({"state": state}, tmp_path / "state.pt")
                again = torch.load(tmp_path / "state.pt")["state"]
                assert type(again) is type(state)
                assert torch.equal(model.step(ids[:, :1], again)[0], model.step(ids[:, :1], state)[0])


def test_a_name_belongs_to_one_class(own):
    with pytest.raises(ValueError, match=r"the block 'ema' is already registered, by .*EMA"):

        @blocks.register("ema")
        class Other(Block):
            """Another."""

    with pytest.raises(ValueError, match="the scale 'gru' needs another name: there is a join 'gru'"):
        scales.register("gru")(type("GRU", (Scale,), {}))
    for registry, name, part in ((norms, "none", TanhNorm), (norms, "own", TanhNorm), (blocks, "a", EMA)):
        match = f"the {registry.kind} '{name}' needs another name: in a layout, '{name}' means "
        with pytest.raises(ValueError, match=match):
            registry.register(name)(part)
    # A cell of a notebook that is run again defines the same class anew.
    blocks.register("ema")(type("EMA", (EMA,), {}))
    with pytest.raises(ValueError, match="a norm needs a name that is an identifier, not 'my norm'"):
        norms.register("my norm")


@pytest.mark.parametrize(
    ("registry", "part", "match"),
    [
        (blocks, nn.Linear, "the block 'own' must be a subclass of xflash.Block, not Linear"),
        (blocks, TanhNorm, "the block 'own' must be a subclass of .*Block, not TanhNorm"),
        (blocks, Block, "must be a subclass of .*Block, not Block"),
        (blocks, F.gelu, "must be a subclass of .*Block, not <built-in"),
        (norms, nn.LayerNorm, "the norm 'own' must be a subclass of xflash.Norm, not LayerNorm"),
        (
            positions,
            nn.Embedding,
            "the position 'own' must be a subclass of xflash.Position, not Emb",
        ),
        (
            scores,
            type("Own", (xflash.ScoreStep,), {"befor": F.relu}),
            "the score step 'own' changes nothing: Own has none",
        ),
        (residuals, nn.Identity, "the join 'own' must be a subclass of xflash.Join, not Ident"),
        (activations, nn.GELU, "the activation 'own' must be a function of a tensor, not GELU"),
        (activations, "gelu", "the activation 'own' must be a function of a tensor, not 'gelu'"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_is_no_such_part_is_not_registered(own, registry, part, match):
    """It would break every stack of the process: the flags of all that is registered are known to each."""
    with pytest.raises(TypeError, match=match):
        registry.register("own")(part)
    assert "own" not in registry
    build(Decoder)


def test_parts_of_the_first_version_are_refused_with_what_is_asked_of_them(own):
    """Their second argument was the width, and nothing said what is known beside x."""

    class Old(Norm):
        def forward(self, x):
            return x

    from xflash.layers.residuals import Residual

    class Older(Residual):
        def forward(self, x, update):
            return x

    match = r"the norm 'old' is built as Old\(config, site\), whose width is site.dim, and called with \(x, ctx\), but"
    with pytest.raises(TypeError, match=match):
        norms.register("old")(Old)
    with pytest.raises(TypeError, match=r"the join 'old' .* called with \(x, update, ctx\), but its forward takes"):
        residuals.register("old")(Older)
    build(Decoder)


def test_what_nobody_left_is_not_read(own):
    class Late(Read):
        def forward(self, y, ctx, place):
            return ctx.relay.take("first", 5)

    reads.register("late")(Late)
    with pytest.raises(ValueError, match="no layer has left 'first' at 5 in this call"):
        build(Decoder, reads="late")(torch.randn(1, 3, DIM))


def test_the_config_of_a_part_is_a_dataclass_that_can_be_read(own):
    class Plain(EMA):
        class Config:
            decay = 0.9

    class Unreadable(EMA):
        @dataclass(frozen=True, kw_only=True)
        class Config:
            decay: "nowhere" = flag(0.9, "...")

    with pytest.raises(TypeError, match="the block 'plain' needs a Config that is a dataclass"):
        blocks.register("plain")(Plain)
    with pytest.raises(TypeError, match=r"Config of the block 'unreadable' has a type that cannot be read: .*nowhere"):
        blocks.register("unreadable")(Unreadable)
    build(Decoder)


def test_the_registries_are_left_as_they_were():
    assert "ema" not in blocks
    assert "log_bias" not in positions


@pytest.mark.parametrize("registry", [r for r in REGISTRIES if r.base is not None], ids=lambda r: r.kind)
def test_what_a_part_derives_from_is_public(registry):
    """Refusals name it, and nothing but the names of the package itself promises to stay."""
    assert getattr(xflash, registry.base.__name__) is registry.base
    assert registry.base.__name__ in xflash.__all__
