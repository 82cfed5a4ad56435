"""`rebuild`: a model with other flags keeps the weights that have the same place, says which, and shares none."""

import pytest
import torch
from torch import nn

import xflash
from xflash import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper, ViTransformerWrapper, rebuild

SMALL = {"dim": 12, "heads": 2, "attn_dim_head": 5, "norm_bias": True, "attn_out_bias": True}


def net(**flags):
    return TransformerWrapper(num_tokens=11, max_seq_len=13, attn_layers=Decoder(**{**SMALL, "depth": 3, **flags}))


def test_every_second_attention_becomes_flash():
    model, ids = net(depth=4).eval(), torch.randint(11, (2, 7))
    hybrid, kept, fresh, left = rebuild(model, layers="attn ff flash ff", depth=2, flash_group_size=3)
    assert hybrid.attn_layers.layout == "(attn ff flash ff) x 2" and not hybrid.training
    ours, theirs = hybrid.state_dict(), model.state_dict()
    assert {*kept, *fresh} == {*ours} and {*kept, *left} == {*theirs} and not {*kept} & {*fresh, *left}
    assert {name.split(".block")[0] for name in (*fresh, *left)} == {f"attn_layers.branches.{i}" for i in (2, 6)}
    assert all(torch.equal(ours[name], theirs[name]) for name in kept)
    hiddens, expected = (each(ids, return_hiddens=True)[1] for each in (hybrid, model))
    assert all(map(torch.equal, hiddens[:3], expected[:3])) and not torch.equal(hiddens[3], expected[3])


def test_without_other_flags_it_is_a_copy():
    model = net().double()
    model.embedding.token_emb.weight.requires_grad_(False)
    copy, _, fresh, left = rebuild(model)
    assert fresh == left == () and copy.to_config() == model.to_config() and copy.training
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for name, parameter in copy.named_parameters():
        assert parameter.dtype == torch.double and parameter.requires_grad == ("token_emb" not in name)
        nn.init.constant_(parameter, 7.0)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


# Each with the place of the first fresh weight ('': there is none), and how many old ones are left.
CASES = {
    "fewer layers": (net(), {"depth": 2}, "", 11),
    "another spelling": (net(), {"use_rmsnorm": True}, "attn_layers.branches.0.before.gain", 14),
    "a column in one word": (net(), {"custom_layers": ("a", "f")}, "", 22),
    "no attention": (net(attn_qk_norm=True), {"layers": "gau ff"}, "attn_layers.branches.0.block.gamma", 9),
    "within a trainer": (AutoregressiveWrapper(net()), {"rotary_pos_emb": True}, "", 1),
    "a flag of the model": (net(), {"tie_embedding": True}, "", 1),
    "a stack": (Encoder(**SMALL, depth=1), {"num_memory_tokens": 3}, "memory_tokens.tokens", 0),
    "both sides": (
        xflash.XTransformer(dim=12, enc_num_tokens=11, enc_depth=1, enc_heads=2, dec_num_tokens=11, dec_depth=1,
                            dec_heads=2, enc_max_seq_len=13, dec_max_seq_len=13),
        {"dec_layers": "attn cross_attn ff ff"}, "decoder.net.attn_layers.branches.3.before.gain", 0,
    ),
    "images": (
        ViTransformerWrapper(image_size=6, patch_size=3, num_classes=5, attn_layers=Encoder(**SMALL, depth=1)),
        {"num_classes": 7}, "to_logits.weight", 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_fresh_and_what_is_left(case):
    model, flags, first, count = CASES[case]
    _, kept, fresh, left = rebuild(model, **flags)
    assert kept and (*fresh, "")[0] == first and len(left) == count


def test_a_block_of_another_kind_is_another_place():
    """Even where a weight of the same name and shape stands there."""
    model = Decoder(dim=12, depth=1, heads=2, layers="ff(no_bias=True)", ff_dim=12)
    _, kept, fresh, _ = rebuild(model, layers="attn", attn_dim_head=6)
    assert "branches.0.block.to_out.weight" in fresh and kept == ("branches.0.before.gain", "final_norm.gain")


@pytest.mark.parametrize(
    ("model", "flags", "error", "message"),
    [
        (nn.Linear(2, 2), {}, TypeError, "model must be one of xflash's, which have a config, not a Linear"),
        (net(), {"layrs": "ff"}, TypeError, "unknown flag 'layrs'; did you mean 'layers'"),
        (net(), {"flash_group_size": 3}, ValueError, "flash_group_size is set but the layout 'attn ff' has no 'flash'"),
        (net(), {"num_tokens": 0}, ValueError, "num_tokens must be at least 1, not 0"),
    ],
)
def test_what_is_refused(model, flags, error, message):
    with pytest.raises(error, match=message):
        rebuild(model, **flags)
