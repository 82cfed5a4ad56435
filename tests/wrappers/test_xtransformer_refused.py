"""What XTransformer refuses, when it is built and when it is called."""

import pytest
from test_xtransformer import BEGIN, DEC, ENC, FRONT, MASK, SMALL, SRC, TGT, build

from xflash import XTransformer

BUILT = [
    ({"enc_depht": 3}, TypeError, "unknown flag 'enc_depht'; did you mean 'enc_depth'"),
    ({"dec_attn_flsh": True}, TypeError, "unknown flag 'dec_attn_flsh'; did you mean 'dec_attn_flash'"),
    ({"tie_token_embs": True}, TypeError, "unknown flag 'tie_token_embs'; did you mean 'tie_token_emb'"),
    ({"rotary_pos_emb": True}, TypeError, "rotary_pos_emb is a flag of one side: give enc_rotary_pos_emb or dec_"),
    ({"num_tokens": 3}, TypeError, "num_tokens is a flag of one side: give enc_num_tokens or dec_num_tokens"),
    ({"enc_dim": 3}, TypeError, "enc_dim=3: both sides have the same width; give dim instead"),
    ({"enc_attn_layers": None}, TypeError, "unknown flag 'enc_attn_layers'; did you mean 'enc_"),
    ({"dec_return_only_embed": True}, TypeError, "unknown flag 'dec_return_only_embed'"),
    ({"enc_num_tokens": ...}, TypeError, "XTransformer needs enc_num_tokens, the size of the encoder's vocabulary"),
    ({"dec_num_tokens": ...}, TypeError, "XTransformer needs dec_num_tokens, the size of the decoder's vocabulary"),
    ({"dim": ...}, TypeError, "XTransformer: missing a required .*'dim'"),
    ({"dim": 2.0}, TypeError, "dim must be a whole number, not 2.0"),
    ({"dim": 0}, ValueError, "dim must be at least 1, not 0"),
    ({"tie_token_emb": 1}, TypeError, "tie_token_emb must be True or False, not 1"),
    ({"cross_attn_tokens_dropout": 1.0}, ValueError, "cross_attn_tokens_dropout must be below 1, not 1.0"),
    ({"pad_value": None}, TypeError, "pad_value must be a whole number"),
    ({"enc_heads": 0}, ValueError, "in the encoder, whose flags begin with enc_: heads must be at least 1, not 0"),
    ({"dec_layers": "atn"}, ValueError, "in the decoder, whose flags begin with dec_: unknown block 'atn'; did"),
    ({"dec_gau_heads": 2}, ValueError, r"decoder, .*: gau_heads is set but the layout 'attn cross_attn ff' has"),
    ({"enc_depth": ...}, TypeError, "in the encoder, .*: the flag 'depth' .* must be given"),
    ({"enc_max_seq_len": ...}, ValueError, "in the encoder, .*: learned absolute positions need max_seq_len"),
    ({"enc_causal": True}, ValueError, "in the encoder, .*: causal=True contradicts Encoder"),
    ({"enc_tie_embedding": True}, ValueError, "return_only_embed=True leaves no head, so tie_embedding cannot be set"),
    ({"enc_logits_dim": 3}, ValueError, "return_only_embed=True leaves no head, so logits_dim cannot be set"),
    ({"enc_logits_bias": True}, ValueError, "return_only_embed=True leaves no head, so logits_bias cannot be set"),
    ({"enc_cross_attend": True}, ValueError, "the encoder's layout 'attn cross_attn ff' attends to a context, but"),
    ({"dec_cross_attend": False}, ValueError, r"the decoder's layout '\(attn ff\) x 2' does not attend to the encoder"),
    ({"dec_layers": "attn ff"}, ValueError, "decoder, .*: cross_attend=True, but no block of the layout 'attn ff'"),
    ({"dec_cross_attn_dim_context": 20}, ValueError, "attends to a context of width 20, but the encoder's has dim=24"),
    ({"dec_layers": "cross_gau", "dec_pos": "rotary"}, ValueError, "the decoder's pos='rotary' has nothing to turn in"),
    ({"tie_token_emb": True}, ValueError, r"tie_token_emb=True needs enc_num_tokens \(19\) to be dec_num_tokens \(1"),
    (
        {"tie_token_emb": True, "enc_num_tokens": DEC, "enc_emb_dim": 7}, ValueError,
        r"tie_token_emb=True needs enc_emb_dim \(7\) to be dec_emb_dim \(24\)",
    ),
    (
        {"tie_token_emb": True, "enc_num_tokens": DEC, "dec_l2norm_embed": True}, ValueError,
        r"tie_token_emb=True needs enc_l2norm_embed \(False\) to be dec_l2norm_embed \(True\)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "error", "match"), BUILT, ids=[str(row[0])[:50] for row in BUILT])
def test_what_is_not_built(flags, error, match):
    given = {name: value for name, value in {**SMALL, **flags}.items() if value is not ...}
    with pytest.raises(error, match=match) as caught:
        XTransformer(**given)
    assert type(caught.value) is error


CALLED = [
    (lambda m: m(SRC, TGT[:, :1]), ValueError, r"tgt has shape \(3, 1\), but a loss needs \(b, n\) with at least"),
    (lambda m: m(SRC, TGT[:, :0]), ValueError, r"tgt has shape \(3, 0\), but a loss needs"),
    (lambda m: m(SRC, TGT[0]), ValueError, r"tgt has shape \(7,\), but a loss needs"),
    (lambda m: m(SRC, TGT.float()), TypeError, "tgt must hold integer token ids, not torch.float32"),
    (lambda m: m(SRC, TGT.tolist()), TypeError, "tgt must be a tensor of integer token ids"),
    (lambda m: m(SRC[:2], TGT), ValueError, "src has 2 rows, but tgt has 3: give one for each"),
    (lambda m: m(SRC, TGT, MASK[:, 1:]), ValueError, r"mask has shape \(3, 10\), but the tokens it stands for have"),
    (lambda m: m(SRC, TGT, tgt_mask=MASK), ValueError, r"mask has shape \(3, 11\), but the tokens it stands for have"),
    (lambda m: m(SRC, TGT + DEC), ValueError, "token ids must be from 0 to 12"),
    (lambda m: m(SRC + ENC, TGT), ValueError, "token ids must be from 0 to 18"),
    (lambda m: m(SRC.repeat(1, 2), TGT), ValueError, "22 tokens are more than max_seq_len=11"),
    (lambda m: m(SRC, TGT, src_prepend_embeds=FRONT[..., 1:]), ValueError, r"prepend_embeds must be \(3, any number"),
    (lambda m: m(SRC, TGT, src_prepend_mask=MASK), ValueError, "prepend_mask is given without prepend_embeds"),
    (lambda m: m.generate(SRC, BEGIN[:2], 3), ValueError, "src has 3 rows, but tgt_start has 2: give one for each"),
    (lambda m: m.generate(SRC, [BEGIN[0]], 3), ValueError, "src has 3 rows, but tgt_start has 1: give one for each"),
    (lambda m: m.generate(SRC, BEGIN[0], 3), ValueError, "src has 3 rows, but tgt_start has 1: give one for each"),
    (lambda m: m.generate(SRC, 1, 3), TypeError, "tgt_start must be a tensor of token ids, or a list of them, not int"),
    (lambda m: m.generate(SRC, BEGIN[:, :0], 3), ValueError, "a prompt needs at least one token"),
    (lambda m: m.generate(SRC, BEGIN, 0), ValueError, "seq_len must be at least 1"),
    (lambda m: m.generate(SRC, BEGIN, 30), ValueError, "need 30 positions, but the model has max_seq_len=17"),
    (lambda m: m.generate(SRC, BEGIN, 3, temprature=1.0), TypeError, "generate has no option 'temprature'; did you"),
    (lambda m: m.generate(SRC, BEGIN, 3, context=FRONT), TypeError, "generate has no option 'context'"),
    (lambda m: m.beam_search(SRC, BEGIN, 3, filter_thres=1), TypeError, "beam_search has no option 'filter_thres'"),
    (lambda m: m.generate(SRC, BEGIN, 3, eos_token=DEC), ValueError, "eos_token=13 is not in the model's vocabulary"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "match"), CALLED, ids=[f"{i} {r[2][:40]}" for i, r in enumerate(CALLED)])
def test_what_a_call_is_refused_for(call, error, match):
    model = build()
    with pytest.raises(error, match=match) as caught:
        call(model)
    assert type(caught.value) is error
    assert not model.training
