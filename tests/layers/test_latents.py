"""Multi-latent attention: what is kept of a token, and that latents are read as keys and values would be."""

import laws
import pytest
import torch
from cases import DIM, HEADS, build
from torch import nn

from xflash import Decoder
from xflash.base.state import tensors
from xflash.layers.blocks import latents

N, WIDTH = 11, 6
FLAGS = {
    "latents": {"attn_dim_latent_kv": 5},
    "grouped": {"attn_dim_latent_kv": 5, "attn_kv_heads": 2, "attn_value_dim_head": 7, "attn_window": 4},
    "turned": {"attn_dim_latent_kv": 5, "attn_dim_latent_q": 7, "attn_latent_rope_subheads": 2, "pos": "rotary alibi"},
    "grouped, turned": {
        "attn_dim_latent_kv": 5, "attn_kv_heads": 2, "attn_latent_rope_subheads": 1, "pos": "rotary",
        "attn_head_scale": True, "attn_window": 4, "attn_sinks": 1,
    },
}  # fmt: skip


def stack(depth=1, **flags):
    return laws.live(build("attn", depth, causal=True, final_norm=False, **flags))


def bytes_kept(net, n):
    """How many bytes a state of one row of n tokens has."""
    _, state = net.step(torch.randn(1, n, DIM, dtype=torch.float64))
    return sum(t.numel() * t.element_size() for t in tensors(state))


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ({}, 2 * HEADS * WIDTH),
        ({"attn_dim_latent_q": 3}, 2 * HEADS * WIDTH),
        ({"attn_dim_latent_kv": 5}, 5),
        ({"attn_dim_latent_kv": 5, "pos": "rotary"}, 5),
        ({"attn_dim_latent_kv": 5, "attn_latent_rope_subheads": 1, "pos": "rotary"}, 5 + WIDTH),
        ({"attn_dim_latent_kv": 5, "attn_latent_rope_subheads": 1, "depth": 3}, 3 * (5 + WIDTH)),
    ],
    ids=str,
)
def test_a_token_takes_the_bytes_of_its_latent(flags, kept):
    net = stack(**flags)
    assert bytes_kept(net, 19) - bytes_kept(net, 12) == 7 * kept * 8


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_latents_read_as_keys_and_values_would_be(flags, monkeypatch):
    """One way and the other, in outputs and gradients; a projection that is no plain one is not looked into."""
    net, x = stack(**flags), torch.randn(2, N, DIM, dtype=torch.float64)
    found = []
    for plain in (True, False):
        monkeypatch.setattr(latents, "is_plain", lambda linear, plain=plain: plain)
        y, _ = laws.steps(net, x, [N - 3, 1, 1, 1])
        found.append((y, *torch.autograd.grad(y[:, -3:].square().sum(), list(net.parameters()))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    assert not latents.is_plain(nn.Identity())
    monkeypatch.undo()
    assert latents.is_plain(nn.Linear(2, 2)) and not latents.is_plain(nn.Sequential(nn.Linear(2, 2)))


def test_keys_and_values_are_made_of_latents_by_hand():
    net, x = stack(attn_dim_latent_kv=5, attn_dim_latent_q=7), torch.randn(1, N, DIM, dtype=torch.float64)
    block, y = net.branches[0].block, net.branches[0].before(x)
    q = block.to_q.weight @ block.to_latent_q.weight
    k, v = (to.weight @ block.to_latent_kv.weight for to in (block.to_k, block.to_v))
    heads = []
    for h in range(HEADS):
        own = slice(h * WIDTH, (h + 1) * WIDTH)
        scores = (y @ q[own].T) @ (y @ k[own].T).mT * WIDTH**-0.5
        weights = scores.masked_fill(torch.ones(N, N).triu(1).bool(), -torch.inf).softmax(-1)
        heads.append(weights @ y @ v[own].T)
    laws.close(net(x), x + block.to_out(torch.cat(heads, -1)), "by hand")


def test_half_of_a_projection_is_refused():
    net = Decoder(dim=DIM, depth=1, heads=HEADS, attn_dim_head=WIDTH, layers="attn", attn_dim_latent_kv=5)
    block = net.branches[0].block
    block.to_v = nn.Linear(5, HEADS * WIDTH // 2)
    with pytest.raises(
        ValueError, match=f"a projection of attn gave {HEADS * WIDTH // 2} of its {HEADS * WIDTH} chann"
    ):
        net(torch.randn(1, N, DIM))


def test_what_a_switch_means_is_said():
    with pytest.raises(TypeError, match="attn_use_latent_q must be True or False for the whole stack, not 1"):
        Decoder(dim=DIM, depth=1, attn_use_latent_q=1)
    with pytest.raises(ValueError, match=r"attn_use_latent_kv=False.*but attn_dim_latent_kv=5"):
        Decoder(dim=DIM, depth=1, attn_use_latent_kv=False, attn_dim_latent_kv=5)
