"""What `from_x_transformers` does not take: each by the name of its flag, and nothing overlooked."""

import importlib
import inspect
import re

import pytest
import torch
from x_transformers_cases import (
    BIDIRECTIONAL_WRAPPERS,
    CAUSAL_STACKS,
    CAUSAL_WRAPPERS,
    CROSS,
    IDLE,
    PREFIX,
    REFUSED,
    SMALL,
    STACKS,
    VITS,
    WRAPPERS,
    make_stack,
    make_vit,
    make_wrapper,
    peers,
)
from x_transformers_scores import DRAWN, SCORES

from xflash.convert.x_transformers import from_x_transformers


@pytest.mark.parametrize("part", IDLE)
def test_every_argument_of_the_peer_is_accounted_for(part):
    """Each is converted by a case above, refused by one, or listed as changing nothing by itself."""
    module = importlib.import_module("x_transformers.x_transformers")
    known = {PREFIX[part] + name for name in inspect.signature(getattr(module, part).__init__).parameters} - {"self"}
    stacks = [*STACKS.values(), *CAUSAL_STACKS.values(), *CROSS.values(), *SCORES.values(), DRAWN]
    both = [w for cases in (WRAPPERS, CAUSAL_WRAPPERS, BIDIRECTIONAL_WRAPPERS, VITS, REFUSED) for w in cases.values()]
    used = {name for flags in stacks for name in flags} | {name for pair in both for flags in pair for name in flags}
    idle = {PREFIX[part] + name for name in IDLE[part].split()}
    unsaid = known - used - idle - {PREFIX[part] + "self"}
    assert not unsaid, f"no test says what becomes of {unsaid}"


@pytest.mark.parametrize("name", REFUSED)
def test_what_xflash_has_not_is_refused_by_name(name):
    flags, arguments = REFUSED[name]
    peer = make_wrapper(flags, arguments, causal=True)
    with pytest.raises(ValueError, match=f"no counterpart of x-transformers' [^()]*{re.escape(name)}"):
        from_x_transformers(peer)


def test_other_classes_are_refused():
    for other in (torch.nn.Linear(2, 2), peers.AutoregressiveWrapper(make_wrapper({}, {}, causal=True))):
        with pytest.raises(
            TypeError,
            match=f"takes an XTransformer, a TransformerWrapper, a ViT.* or a CrossAttender .*{type(other).__name__}",
        ):
            from_x_transformers(other)
    prefix = peers.TransformerWrapper(num_tokens=3, max_seq_len=3, attn_layers=peers.PrefixDecoder(**SMALL))
    with pytest.raises(ValueError, match=r"counterpart of x-transformers' PrefixDecoder"):
        from_x_transformers(prefix)


def test_what_a_vision_transformer_of_xflash_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"attn_layers \(a causal Decoder in a ViTransformerWrapper\)"):
        from_x_transformers(make_vit({}, {}, causal=True))
    peer = make_vit({}, {"num_classes": 3})
    peer.mlp_head = torch.nn.Sequential(peer.mlp_head)
    with pytest.raises(ValueError, match=r"mlp_head \(Sequential\)"):
        from_x_transformers(peer)
    with pytest.raises(ValueError, match="attn_cog_signed"):
        from_x_transformers(make_vit({"attn_cog_signed": True}, {}))


def test_both_sides_of_an_xtransformer_are_checked():
    sizes = {"dim": 34, "enc_num_tokens": 7, "dec_num_tokens": 7, "enc_depth": 1, "dec_depth": 1}
    lengths = {"enc_max_seq_len": 9, "dec_max_seq_len": 9}
    for flags, name in (
        ({"enc_attn_laser": True}, "attn_laser"),
        ({"dec_cross_attn_cog_signed": True}, "attn_cog_signed"),
    ):
        with pytest.raises(ValueError, match=f"no counterpart of x-transformers' {name}"):
            from_x_transformers(peers.XTransformer(**sizes, **lengths, **flags))
    peer = peers.XTransformer(**sizes, **lengths)
    peer.decoder.mask_prob = 0.2
    with pytest.raises(ValueError, match="no counterpart of x-transformers' mask_prob"):
        from_x_transformers(peer)


def test_weights_shared_or_added_are_refused():
    peer = make_wrapper({}, {}, causal=True)
    peer.to_logits.weight = peer.token_emb.emb.weight
    with pytest.raises(ValueError, match=r"token_emb.emb.weight is shared by two parts"):
        from_x_transformers(peer)
    peer = make_wrapper({}, {"embed_num_tokens": {"segment": 2}}, causal=True)
    peer.embeds["segment_embed"] = torch.nn.Embedding(2, 34, max_norm=1.0)
    with pytest.raises(ValueError, match=r"x-transformers' embed_num_tokens \(with segment_embed a Embedding\)"):
        from_x_transformers(peer)
    peer = make_stack({}, causal=True)
    peer.layers[0][1].extra = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="attn_extra"):
        from_x_transformers(peer)
    peer = make_stack({}, causal=True)
    peer.layers[0][1].to_q.extra = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"tensors \(layers.0.1.to_q.extra\)"):
        from_x_transformers(peer)
    peer = make_stack({"rotary_pos_emb": True}, causal=True).bfloat16()
    with pytest.raises(ValueError, match=r"rotary_pos_emb \(with frequencies that follow no base"):
        from_x_transformers(peer)
    peer = make_wrapper({}, {"scaled_sinu_pos_emb": True}, causal=True).bfloat16()
    with pytest.raises(ValueError, match="frequencies that were rounded"):
        from_x_transformers(peer)
