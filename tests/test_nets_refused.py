"""Models that a wrapper cannot train or sample, states put in an impossible order: refused by name, not from inside."""

import pytest
import torch
from torch import nn

from xflash import (
    FLASH,
    GAU,
    AutoregressiveWrapper,
    Decoder,
    Encoder,
    MaskedLMWrapper,
    NonAutoregressiveWrapper,
    RecurrentMemoryWrapper,
    SegmentWrapper,
    TransformerWrapper,
    ViTransformerWrapper,
    XLAutoregressiveWrapper,
    XTransformer,
)

DIM, V, LIMIT = 14, 23, 19
IDS = torch.randint(V, (2, 11), generator=torch.Generator().manual_seed(0))


def stack(cls=Decoder, **flags):
    torch.manual_seed(0)
    small = {} if "layers" in flags else {"attn_dim_head": 6}
    return cls(**{"dim": DIM, "depth": 1, "heads": 2, **small, **flags})


def model(cls=Decoder, flags=None, **arguments):
    return TransformerWrapper(
        **{"num_tokens": V, "max_seq_len": LIMIT, "attn_layers": stack(cls, **(flags or {})), **arguments}
    )


def seq2seq(**flags):
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in (("num_tokens", V), ("depth", 1))}
    limits = {"enc_max_seq_len": LIMIT, "dec_max_seq_len": LIMIT}
    return XTransformer(**{"dim": DIM, **sides, **limits, **flags})


def mems():
    return model(max_mem_len=3, flags={"pos": "rotary"})


NO_MODELS = {
    "AutoregressiveWrapper gives a loss of token ids": lambda: AutoregressiveWrapper(model()),
    "SegmentWrapper gives a loss of token ids": lambda: SegmentWrapper(model(), 5),
    "XLAutoregressiveWrapper gives a loss of token ids": lambda: XLAutoregressiveWrapper(mems()),
    "MaskedLMWrapper gives a loss of token ids": lambda: MaskedLMWrapper(model(Encoder), mask_token_id=3),
    "NonAutoregressiveWrapper gives losses of token ids": lambda: NonAutoregressiveWrapper(model(Encoder), mask_id=3),
    "XTransformer gives a loss of a source and a target": seq2seq,
    "ViTransformerWrapper gives logits of images": lambda: ViTransformerWrapper(
        image_size=6, patch_size=3, attn_layers=stack(Encoder)
    ),
    "Decoder gives embeddings of embeddings": stack,
    "GAU gives embeddings of embeddings": lambda: GAU(DIM, causal=True),
    "FLASH gives embeddings of embeddings": lambda: FLASH(DIM, causal=True),
    "not a single layer, Linear": lambda: nn.Linear(5, 5),
    "not a single layer, GRU": lambda: nn.GRU(5, 5),
    "not <function .* of type function": lambda: lambda ids: ids,
}


@pytest.mark.parametrize("match", NO_MODELS)
@pytest.mark.parametrize(
    "wrap",
    [
        AutoregressiveWrapper,
        lambda net: SegmentWrapper(net, 5),
        lambda net: MaskedLMWrapper(net, mask_token_id=3, num_tokens=V),
    ],
    ids=["autoregressive", "segments", "masked"],
)
def test_what_gives_no_logits_of_ids_is_no_net(wrap, match):
    with pytest.raises(TypeError, match=f"a model from token ids to logits such as TransformerWrapper.*{match}"):
        wrap(NO_MODELS[match]())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda: AutoregressiveWrapper(model(return_only_embed=True)),
        lambda: SegmentWrapper(model(return_only_embed=True), 5),
        lambda: AutoregressiveWrapper(RecurrentMemoryWrapper(model(return_only_embed=True), 2, 5)),
        lambda: MaskedLMWrapper(model(Encoder, return_only_embed=True), mask_token_id=3),
    ],
)
def test_embeddings_are_no_logits(wrap):
    with pytest.raises(ValueError, match="Wrapper has return_only_embed=True: it gives embeddings, and a loss needs"):
        wrap()


class Own(nn.Module):
    """A bigram model of one's own that may give the wrong thing."""

    def __init__(self, spoil=lambda logits: logits):
        super().__init__()
        self.table, self.spoil = nn.Embedding(V, V), spoil

    def forward(self, ids, mask=None):
        return self.spoil(self.table(ids))

    def step(self, ids, state=None, mask=None):
        return self.spoil((self.table(ids), state))


def test_a_net_of_ones_own_may_be_anything_that_gives_logits():
    for net in (Own(), nn.Embedding(V, V), nn.Sequential(nn.Embedding(V, 5), nn.Linear(5, V))):
        assert AutoregressiveWrapper(net)(IDS).isfinite()
    assert AutoregressiveWrapper(Own()).generate(IDS, 3).shape == (2, 3)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda y: y[:, 0], r"Own given ids \(2, 10\) must give logits \(2, 10, num_tokens\), not \(2, 23\)"),
        (lambda y: y[:, 1:], r"must give logits \(2, 10, num_tokens\), not \(2, 9, 23\)"),
        (lambda y: y.transpose(0, 1), r"must give logits \(2, 10, num_tokens\), not \(10, 2, 23\)"),
        (lambda y: y[:, :, None], r"not \(2, 10, 1, 23\)"),
    ],
)
def test_logits_have_a_row_for_each_token(spoil, match):
    with pytest.raises(ValueError, match=match):
        AutoregressiveWrapper(Own(spoil))(IDS)
    with pytest.raises(ValueError, match=match.replace("10", "11").replace(" 9,", " 10,")):
        MaskedLMWrapper(Own(lambda y: spoil(y)), mask_token_id=3, num_tokens=V)(IDS)


def test_a_step_gives_logits_and_a_state():
    with pytest.raises(TypeError, match=r"Own.step must give \(logits, state\), not torch.float32"):
        AutoregressiveWrapper(Own(lambda out: out[0])).generate(IDS, 3)
    with pytest.raises(ValueError, match=r"Own given ids \(2, 11\) must give logits .* not \(2, 23\)"):
        AutoregressiveWrapper(Own(lambda out: (out[0][:, -1], out[1]))).generate(IDS, 3)


@pytest.mark.parametrize(
    ("index", "error", "match"),
    [
        (torch.tensor([0, 5]), ValueError, r"index names row 5, but the state has 2 rows \(0 to 1\)"),
        (torch.tensor([-1, 1]), ValueError, r"index names row -1, but the state has 2 rows"),
        (torch.tensor([[0, 1]]), ValueError, r"index must be of shape \(rows,\), .* not \(1, 2\)"),
        (torch.tensor(1), ValueError, r"index must be of shape \(rows,\), .* not \(\)"),
        (torch.tensor([0.0]), TypeError, r"index must be an integer tensor of rows .* not torch.float32"),
        (torch.tensor([True, False]), TypeError, "index must be an integer tensor of rows .* not torch.bool"),
        ([0, 1], TypeError, "index must be an integer tensor of rows .* not list"),
    ],
)
def test_an_order_names_rows(index, error, match):
    net = model()
    recurrent = RecurrentMemoryWrapper(net, 2, 5)
    for state in (net.step(IDS)[1], net.step(IDS)[1].stack, recurrent.step(IDS)[1]):
        with pytest.raises(error, match=match) as caught:
            state.reorder(index)
        assert type(caught.value) is error


def test_an_order_of_any_integers_is_one():
    net = model().eval()
    state = net.step(IDS)[1]
    expected = net.step(IDS[[1, 1, 0], :1], state.reorder(torch.tensor([1, 1, 0])))[0]
    assert torch.equal(
        net.step(IDS[[1, 1, 0], :1], state.reorder(torch.tensor([1, 1, 0], dtype=torch.uint8)))[0], expected
    )
    assert stack(layers="ff").step(torch.randn(2, 3, DIM))[1].reorder(torch.tensor([7])).bound == 3
