"""Models that a wrapper cannot train or sample, states put in an impossible order: refused by name, not from inside."""

import pytest
import torch
from torch import nn

from xflash import (
    FLASH,
    GAU,
    AutoregressiveWrapper,
    BlockRecurrentTransformer,
    Decoder,
    Encoder,
    MaskedLMWrapper,
    NonAutoregressiveWrapper,
    RecurrentMemoryWrapper,
    RecurrentTrainerWrapper,
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


def scaled():
    return model(max_mem_len=3, flags={"pos": "rotary"})


NO_MODELS = {
    "AutoregressiveWrapper gives a loss of token ids": lambda: AutoregressiveWrapper(model()),
    "SegmentWrapper gives a loss of token ids": lambda: SegmentWrapper(model(), 5),
    "XLAutoregressiveWrapper gives a loss of token ids": lambda: XLAutoregressiveWrapper(scaled()),
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
    "not <function": lambda: lambda ids: ids,
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


def test_what_needs_a_condition_is_no_net_where_none_is_given():
    """Refused when it is built: no call could be given one."""
    with pytest.raises(ValueError, match="parts of the stack need condition, but images come without"):
        ViTransformerWrapper(image_size=6, patch_size=3, attn_layers=stack(Encoder, norm="adaptive_layernorm"))
    with pytest.raises(ValueError, match="need condition, but a model read with memory tokens is given ids"):
        RecurrentMemoryWrapper(model(flags={"scale": "adaptive_layerscale"}), 2, 5)
    net = BlockRecurrentTransformer(num_tokens=V, dim=DIM, depth=2, heads=2, block_width=4, norm="adaptive_rmsnorm")
    with pytest.raises(ValueError, match="need condition, but its trainer is given ids of tokens only"):
        RecurrentTrainerWrapper(net)


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


OTHER_IDS = {"embed_num_tokens": {"segment": 3}}


@pytest.mark.parametrize("what", ["generate", "stream", "beam_search"])
def test_ids_of_further_embeddings_cannot_be_made(what):
    with pytest.raises(
        ValueError, match=rf"built with embed_num_tokens \('segment'\), and {what} makes token ids only"
    ):
        getattr(AutoregressiveWrapper(model(**OTHER_IDS)), what)(IDS, 3, embed_ids={"segment": IDS % 3})


@pytest.mark.parametrize("wrap", [lambda net: SegmentWrapper(net, 5), XLAutoregressiveWrapper])
def test_segments_are_of_token_ids_only(wrap):
    net = model(**OTHER_IDS, max_mem_len=3, flags={"pos": "rotary"})
    with pytest.raises(ValueError, match=r"embed_num_tokens \('segment'\), and segments are read with token ids only"):
        wrap(net)


def test_what_stands_beside_the_tokens_is_cut_as_they_are():
    """The loss reads all tokens but the last: ids of further embeddings and an attention mask are those of all."""
    net = model(**OTHER_IDS).double().eval()
    lm, other, n = AutoregressiveWrapper(net), IDS * 5 % 3, IDS.shape[1]
    seen = torch.rand(n, n, generator=torch.Generator().manual_seed(1)) < 0.6
    seen |= torch.eye(n, dtype=torch.bool)
    logits = net(IDS[:, :-1], embed_ids={"segment": other[:, :-1]}, attn_mask=seen[:-1, :-1])
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(lm(IDS, embed_ids={"segment": other}, attn_mask=seen), expected)
    torch.testing.assert_close(lm(IDS, embed_ids={"segment": other}, attn_mask=seen[None, None].long()), expected)
    front = torch.randn(2, 3, DIM, dtype=torch.float64)
    wide = torch.ones(n + 3, n + 3, dtype=torch.bool)
    given = {"embed_ids": {"segment": other}, "prepend_embeds": front}
    torch.testing.assert_close(lm(IDS, attn_mask=wide, **given), lm(IDS, **given))
    with pytest.raises(ValueError, match=r"embed_ids\['segment'\] has shape \(2, 10\), but x has \(2, 11\)"):
        lm(IDS, embed_ids={"segment": other[:, 1:]})
    with pytest.raises(ValueError, match=r"attn_mask must end in \(11, 11\), a row and a .* not \(10, 10\)"):
        lm(IDS, attn_mask=seen[1:, 1:], embed_ids={"segment": other})
    with pytest.raises(ValueError, match=r"attn_mask must end in \(14, 14\), a row and a .* not \(11, 11\)"):
        lm(IDS, attn_mask=seen, **given)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"enc_use_cls_token": True}, "enc_use_cls_token=True makes one embedding of the source, but the decoder att"),
        ({"enc_attn_pool": True}, "enc_attn_pool=True makes one embedding of the source, but the decoder attends to"),
        ({"enc_average_pool_embed": True}, "enc_average_pool_embed=True makes one embedding of the source"),
        ({"dec_attn_pool": True}, "dec_attn_pool=True pools the decoder's outputs: it would predict no next token"),
        ({"enc_embed_num_tokens": {"a": 2}}, "enc_embed_num_tokens is set, but a source and a target are token ids"),
        ({"dec_embed_num_tokens": {"a": 2}}, "dec_embed_num_tokens is set, but a source and a target are token ids"),
        ({"dec_max_mem_len": 5}, "dec_max_mem_len=5 is set, but nothing comes before a target"),
    ],
    ids=str,
)
def test_sides_that_could_never_run_are_not_built(flags, match):
    with pytest.raises(ValueError, match=match):
        seq2seq(**flags)


def test_images_come_without_a_context():
    with pytest.raises(ValueError, match="the layout 'cross_attn ff' attends to a context, but images come without"):
        ViTransformerWrapper(image_size=6, patch_size=3, attn_layers=stack(Encoder, layers="cross_attn ff"))


def test_a_call_has_one_result():
    with pytest.raises(ValueError, match="return_embeddings and return_logits_and_embeddings exclude each other"):
        model()(IDS, return_embeddings=True, return_logits_and_embeddings=True)


WRONG = [
    ({"seed": 1}, r"generate has no option 'seed'; give generator=torch.Generator\(\).manual_seed"),
    ({"top_k": 4}, r"generate has no option 'top_k'; give filter_logits_fn='top_k', filter_kwargs=\{'k': ...\}"),
    ({"num_beams": 3}, r"generate has no option 'num_beams'; beam_search\(..., beams=...\) keeps several"),
    ({"beams": 3}, r"generate has no option 'beams'; beam_search\(..., beams=...\) keeps several"),
    ({"max_new_tokens": 3}, "generate has no option 'max_new_tokens'; it is called 'seq_len' here"),
    ({"temprature": 1.0}, "generate has no option 'temprature'; did you mean 'temperature'"),
    ({"contxt": 1.0}, "generate has no option 'contxt'; did you mean 'context"),
]


@pytest.mark.parametrize(("options", "match"), WRONG, ids=str)
def test_a_wrong_option_is_named(options, match):
    for lm in (AutoregressiveWrapper(model()), SegmentWrapper(model(), 5), XLAutoregressiveWrapper(scaled())):
        with pytest.raises(TypeError, match=match):
            lm.generate(IDS, 3, **options)
        with pytest.raises(TypeError, match=match.replace("generate has", "stream has")):
            lm.stream(IDS, 3, **options)
    if "context" not in match:
        with pytest.raises(TypeError, match=match):
            seq2seq().generate(IDS, IDS[:, :1], 3, **options)


def test_a_wrong_option_of_a_search_or_a_loss_is_named():
    for lm in (AutoregressiveWrapper(model()), XLAutoregressiveWrapper(scaled()), SegmentWrapper(model(), 5)):
        with pytest.raises(TypeError, match="beam_search has no option 'filter_thres'"):
            lm.beam_search(IDS, 3, filter_thres=0.5)
        with pytest.raises(TypeError, match="the loss has no option 'labls'; did you mean 'labels'"):
            lm(IDS, labls=IDS)
    with pytest.raises(TypeError, match="the loss has no option 'attn_mask'"):
        SegmentWrapper(model(), 5)(IDS, attn_mask=torch.ones(11, 11).bool())


def test_settings_of_a_filter_are_a_mapping():
    with pytest.raises(TypeError, match=r"filter_kwargs must map names to values, such as .*, not 'k' of type str"):
        AutoregressiveWrapper(model()).generate(IDS, 3, filter_kwargs="k")
    with pytest.raises(TypeError, match="filter_kwargs must map names to values"):
        MaskedLMWrapper(model(Encoder), mask_token_id=3).generate(IDS, filter_kwargs=["k"])


def test_the_names_of_x_transformers_are_taken_too():
    net = seq2seq().eval()
    expected = net.generate(IDS, IDS[:, :1], 5, temperature=0.0)
    assert torch.equal(net.generate(seq_in=IDS, seq_out_start=IDS[:, :1], seq_len=5, temperature=0.0), expected)
    made = torch.stack(list(net.stream(IDS, seq_out_start=IDS[:, :1], seq_len=5, temperature=0.0)), 1)
    assert torch.equal(made, expected)
    assert torch.equal(net.beam_search(seq_in=IDS, seq_out_start=IDS[:, :1], seq_len=5, beams=1), expected)
    with pytest.raises(TypeError, match="seq_in and src are two names of one argument: give one of them"):
        net.generate(src=IDS, seq_in=IDS, tgt_start=IDS[:, :1], seq_len=5)
