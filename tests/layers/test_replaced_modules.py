"""Every Linear of a model replaced: by one without a weight, by a quantised one, by one with another inside."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn

from xflash import (
    FLASH,
    GAU,
    AutoregressiveWrapper,
    BlockRecurrentTransformer,
    CrossAttender,
    Decoder,
    Encoder,
    FLASHTransformer,
    MaskedLMWrapper,
    RecurrentMemoryWrapper,
    RecurrentTrainerWrapper,
    SegmentWrapper,
    TransformerWrapper,
    ViTransformerWrapper,
    XLAutoregressiveWrapper,
    XTransformer,
)
from xflash.layers.blocks.recurrence import as_built

V, DIM, N = 31, 20, 11
IDS = torch.randint(1, V, (2, N), generator=torch.Generator().manual_seed(0))
SIZES = {
    "attn": {"attn_dim_head": 6},
    "gau": {"gau_query_key_dim": 6},
    "flash": {"flash_query_key_dim": 6, "flash_group_size": 5},
    "block_attn": {"block_attn_dim_head": 6, "block_attn_block_width": 4},
    "recurrent": {"recurrent_dim_head": 6, "recurrent_block_width": 4, "recurrent_num_state_vectors": 3},
    "state_read": {"state_read_dim_head": 6},
}


class Unweighted(nn.Module):
    """A product whose matrix is nobody's `weight`."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.matrix, self.offset = linear.weight, linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.matrix, self.offset)


class LowRank(nn.Module):
    """LoRA (https://arxiv.org/abs/2106.09685): the product of before, which is frozen, and a small one beside it."""

    def __init__(self, linear: nn.Linear, std: float = 0.02):
        super().__init__()
        self.base = linear.requires_grad_(False)
        self.down = nn.Linear(linear.in_features, 2, bias=False)
        self.up = nn.Linear(2, linear.out_features, bias=False)
        nn.init.normal_(self.up.weight, std=std)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Linear(nn.Linear):
    """Another one of the same name, with the same parameters."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x):
        return 2 * super().forward(x)


def replaced(make, model):
    for name, child in list(model.named_children()):
        if type(child) is nn.Linear:
            setattr(model, name, make(child))
        else:
            replaced(make, child)
    return model


def quantised(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of what will come instead
        return torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear})


WAYS = {
    "without a weight": partial(replaced, Unweighted),
    "low rank": partial(replaced, LowRank),
    "low rank, nothing learned": partial(replaced, partial(LowRank, std=0.0)),
    "quantised": quantised,
}
EXACT = ("without a weight", "low rank, nothing learned")


def stack(cls=Decoder, **flags):
    flags = {"dim": DIM, "depth": 1, "heads": 2, "layers": "attn ff", **flags}
    for block in flags["layers"].split():
        flags = {**SIZES.get(block, {}), **flags}
    return cls(**flags)


def model(cls=Decoder, own=None, **flags):
    own = {"max_seq_len": 40, **(own or {})}
    return TransformerWrapper(num_tokens=V, attn_layers=stack(cls, **flags), **own)


def block_recurrent():
    return BlockRecurrentTransformer(
        num_tokens=V, dim=DIM, depth=2, dim_head=6, heads=2, block_width=4, max_seq_len=8, num_state_vectors=3
    )


CAUSAL = {
    "attn": model,
    "tied": partial(model, own={"tie_embedding": True}),
    "head and width": partial(model, own={"emb_dim": 12, "logits_bias": True}),
    "mixed": partial(model, layers="attn gau flash ff", num_memory_tokens=2, pos=("rotary", "alibi")),
    "attn parts": partial(
        model, attn_gate_values=True, attn_num_mem_kv=2, attn_kv_heads=1, attn_qk_norm=True, ff_glu=True
    ),
    "recurrent": partial(
        model, layers="block_attn state_read recurrent ff", block_attn_compress="conv", recurrent_retrieve=2
    ),
    "block recurrent": block_recurrent,
    "FLASHTransformer": lambda: FLASHTransformer(
        num_tokens=V, dim=DIM, depth=1, group_size=5, query_key_dim=6, causal=True
    ),
    "recurrent memory": lambda: RecurrentMemoryWrapper(model(), 2, 5),
}


def trains(module, loss) -> None:
    """A step of training."""
    loss.backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
    torch.optim.SGD(module.parameters(), 0.01).step()


def like_before(way, after, before) -> None:
    """What does the same gives the same; eight bits give about the same."""
    if way in EXACT:
        torch.testing.assert_close(after, before)
    elif way == "quantised":
        assert (after - before).norm() < 0.2 * before.norm()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models(name, way):
    torch.manual_seed(0)
    net = CAUSAL[name]().eval()
    before, _ = net.step(IDS)
    net = WAYS[way](net)
    whole, _ = net.step(IDS)
    like_before(way, whole, before)
    head, state = net.step(IDS[:, :5])
    pieces = torch.cat((head, net.step(IDS[:, 5:], state)[0]), 1)
    wrapper = AutoregressiveWrapper(net)
    assert wrapper.generate(IDS[:, :4], 3).shape == (2, 3)
    assert wrapper.beam_search(IDS[:, :4], 3, 2).shape == (2, 3)
    assert SegmentWrapper(net, 4)(IDS).isfinite()
    if way == "quantised":  # whose numbers depend on what else is in a call, and which is not trained
        like_before(way, pieces, whole)
        return
    torch.testing.assert_close(pieces, whole)
    if name not in ("block recurrent", "recurrent memory"):
        chunked = AutoregressiveWrapper(net, loss_chunk=3)(IDS)
        torch.testing.assert_close(chunked, wrapper(IDS))
        trains(net, chunked)
    trains(net, SegmentWrapper(net.train(), 4)(IDS))


def seq2seq():
    sizes = {"depth": 1, "heads": 2, "num_tokens": V, "max_seq_len": 40}
    return XTransformer(dim=DIM, **{f"{side}_{name}": size for side in ("enc", "dec") for name, size in sizes.items()})


def xl():
    return XLAutoregressiveWrapper(model(pos="rotary", own={"max_seq_len": 6, "max_mem_len": 6}))


def vit():
    return ViTransformerWrapper(image_size=12, patch_size=4, num_classes=5, attn_layers=stack(Encoder), pool="attn")


X, IMAGES = torch.randn(2, 9, DIM), torch.randn(2, 3, 12, 12)
OTHERS = {
    "images": (vit, (IMAGES,), {}),
    "seq2seq": (seq2seq, (IDS, IDS.flip(1)), {}),
    "masked": (lambda: MaskedLMWrapper(model(Encoder), mask_token_id=0), (IDS,), {}),
    "pooled": (lambda: model(Encoder, own={"attn_pool": True}), (IDS,), {}),
    "block recurrent": (lambda: RecurrentTrainerWrapper(block_recurrent()), (IDS,), {}),
    "Transformer-XL": (xl, (IDS,), {}),
    "context": (
        lambda: CrossAttender(dim=DIM, depth=1, heads=2, layers="cross_attn cross_gau ff"),
        (X,),
        {"context": torch.randn(2, 7, DIM)},
    ),
    "GAU": (lambda: GAU(DIM, 6, causal=True), (X,), {}),
    "FLASH": (lambda: FLASH(DIM, 5, 6), (X,), {}),
}
GENERATED = {
    "seq2seq": lambda net: net.generate(IDS, IDS[:, :2], 3),
    "masked": lambda net: net.generate(batch_size=2, seq_len=5),
    "block recurrent": lambda net: net.generate(IDS[:, :4], 9),
    "Transformer-XL": lambda net: net.generate(IDS, 4),
}


@pytest.mark.parametrize("way", ["without a weight", "low rank", "quantised"])
@pytest.mark.parametrize("name", OTHERS)
def test_other_models(name, way):
    make, given, beside = OTHERS[name]
    torch.manual_seed(0)
    net = make().eval()
    torch.manual_seed(1)
    before = net(*given, **beside)
    net = WAYS[way](net)
    torch.manual_seed(1)
    out = net(*given, **beside)
    like_before(way, out, before)
    if name in GENERATED:
        assert len(GENERATED[name](net)) == 2
    if way != "quantised":
        trains(net, net.train()(*given, **beside).square().sum())


@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_dtype_is_named_whatever_the_projections_are(way):
    """What the weights look like is looked at where a call fails, and not before."""
    with pytest.raises(TypeError, match=r"x is torch\.float64, but the model is torch\.float32"):
        WAYS[way](stack())(X.double())
    with pytest.raises(TypeError, match=r"img is torch\.float64, but the model is torch\.float32"):
        WAYS[way](vit())(IMAGES.double())
    net = WAYS[way](block_recurrent())
    _, memories, states = net(IDS[:, :5])
    with pytest.raises(ValueError, match=r"xl_memories are torch\.float64, but the model is torch\.float32"):
        net(IDS[:, :5], xl_memories=type(memories)(memories.state.to(torch.float64)))
    again, _, _ = net(IDS[:, :5], states=states)
    assert again.isfinite().all()


def test_a_tied_embedding_without_a_weight():
    class Lookup(nn.Module):
        def forward(self, ids):
            return torch.zeros(*ids.shape, DIM)

    net = model(own={"tie_embedding": True})
    net.embedding.token_emb = Lookup()
    with pytest.raises(TypeError, match="the token embedding's weight, but Lookup has no tensor of this name"):
        net(IDS)


def test_a_layer_of_the_same_name_is_not_what_was_built():
    """A compiled recurrent layer computes with what it was built from only if it still is that."""
    net = stack(layers="recurrent").blocks()[0]
    assert as_built(net)
    replaced(Linear, net)
    assert not as_built(net)
    net = stack(layers="recurrent").blocks()[0]
    net.gate.to_update.forward = lambda h: torch.zeros_like(h[..., :DIM])
    assert not as_built(net)
