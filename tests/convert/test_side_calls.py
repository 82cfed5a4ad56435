"""What x-transformers' users tell a call: it gives what it gives there, or the answer says what to use instead."""

import pytest
import torch
from x_transformers_cases import exact, peers

from xflash import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper
from xflash.convert import from_x_transformers

V, N = 31, 11


def both(**flags):
    """A model of x-transformers and ours with its weights."""
    torch.manual_seed(0)
    stack = peers.Decoder(dim=18, depth=2, heads=2, attn_dim_head=8, verbose=False, **flags)
    there = exact(peers.TransformerWrapper(num_tokens=V, max_seq_len=16, attn_layers=stack))
    return there, from_x_transformers(there).double().eval()


def ids(n=N):
    return torch.randint(V, (3, n), generator=torch.Generator().manual_seed(2))


def close(ours, there):
    torch.testing.assert_close(ours, there, rtol=0, atol=1e-8)


POSITIONS = [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}]


@pytest.mark.parametrize("flags", POSITIONS, ids=str)
def test_a_cache_is_a_state(flags):
    """The loop that their users write, with all tokens or the new ones, gives what it gives there."""
    there, ours = both(**flags)
    x, found = ids(), []
    for net in (there, ours):
        logits, cache = net(x[:, :5], return_intermediates=True)
        every = [logits]
        for n in range(6, N + 1):
            extra = {"input_not_include_cache": True} if n % 2 else {}
            given = x[:, n - 1 : n] if n % 2 else x[:, :n]
            logits, cache = net(given, cache=cache, return_intermediates=True, **extra)
            every.append(logits[:, -1:])
        found.append(torch.cat(every, 1))
    close(found[1], found[0])
    close(found[1], ours(x))
    cache = ours(x[:, :4], return_intermediates=True)[1]
    several = ours(x, cache=cache)
    close(several, ours(x)[:, 4:])
    close(ours(x[:, 4:], cache=cache, input_not_include_cache=True), several)


@pytest.mark.parametrize("flags", POSITIONS, ids=str)
def test_where_rows_begin(flags):
    there, ours = both(**flags)
    x, starts = ids(), torch.tensor([0, 3, 7])
    real = torch.arange(N) >= starts[:, None]
    found = ours(x, seq_start_pos=starts)
    close(found[real], there(x, seq_start_pos=starts)[real])
    close(found, ours(x, real))
    logits, cache = ours(x[:, :8], seq_start_pos=starts, return_intermediates=True)
    close(torch.cat((logits, ours(x, seq_start_pos=starts, cache=cache)), 1), found)
    close(ours(x, real.long(), cache=cache), found[:, 8:])


def test_which_keys_are_seen():
    there, ours = both(rotary_pos_emb=True)
    x = ids()
    seen = torch.rand(3, N, generator=torch.Generator().manual_seed(3)) < 0.6
    seen[:, 0] = True
    found = ours(x, self_attn_kv_mask=seen)
    close(found, there(x, self_attn_kv_mask=seen))
    assert (found - ours(x)).abs().max() > 1e-3
    band = torch.ones(N, N).triu(-3).bool()
    close(ours(x, self_attn_kv_mask=seen, attn_mask=band), ours(x, attn_mask=band & seen[:, None, None]))
    front = torch.randn(3, 2, 18).double()
    loss = AutoregressiveWrapper(ours)(x, self_attn_kv_mask=seen, prepend_embeds=front)
    whole = torch.nn.functional.pad(seen[:, None, None], (2, 0), value=True).expand(3, 1, N + 2, N + 2)
    close(loss, AutoregressiveWrapper(ours)(x, attn_mask=whole, prepend_embeds=front))


def test_contrastive_decoding_is_theirs():
    """The same tokens, several of which the model alone would not have made."""
    there, ours = both(rotary_pos_emb=True)
    amateurs = both(alibi_pos_bias=True)
    settings = {"beta": 3.0, "alpha": 0.02}
    found = [
        wrapper(net).generate(ids(5), 8, temperature=0.0, amateur_model=weak, contrastive_decode_kwargs=settings)
        for wrapper, net, weak in zip(
            (peers.AutoregressiveWrapper, AutoregressiveWrapper), (there, ours), amateurs, strict=True
        )
    ]
    assert torch.equal(*found)
    assert not torch.equal(found[0], AutoregressiveWrapper(ours).generate(ids(5), 8, temperature=0.0))


def model(stack=Decoder, **own):
    torch.manual_seed(0)
    return TransformerWrapper(num_tokens=V, attn_layers=stack(dim=12, depth=1, heads=2, pos="rotary"), **own)


def test_ids_beside_the_tokens_are_cut_with_them():
    net, x = model(embed_num_tokens={"kind": 4}, num_memory_tokens=2).eval(), ids()
    kinds = {"kind": x % 4}
    cache = net(x[:, :6], embed_ids={"kind": x[:, :6] % 4}, return_intermediates=True)[1]
    torch.testing.assert_close(net(x, cache=cache, embed_ids=kinds), net(x, embed_ids=kinds)[:, 6:])


def test_what_is_refused():
    net, x = model(), ids()
    cache = net(x, return_intermediates=True)[1]
    for given, error, match in (
        ({"cache": cache}, ValueError, "x has 11 tokens, but cache has seen 11: x is all tokens, those that the cache"),
        ({"cache": [cache]}, TypeError, "cache must be the state that return_intermediates=True gave, not list"),
        ({"return_intermediates": 1}, TypeError, "return_intermediates must be True or False, not 1"),
        ({"return_intermediates": True, "return_attn": True}, ValueError, "return_attn cannot be given together with"),
        ({"return_intermediates": True, "doc_ids": x}, ValueError, "doc_ids cannot be given together with cache and"),
        ({"seq_start_pos": torch.tensor([0, 3, 12])}, ValueError, "seq_start_pos must be from 0 to 11"),
        ({"x": x[0], "seq_start_pos": [0]}, ValueError, r"x must be \(batch, tokens\), not \(11,\)"),
        ({"self_attn_kv_mask": x[:, :3] > 3}, ValueError, r"self_attn_kv_mask has shape \(3, 3\)"),
    ):
        with pytest.raises(error, match=match):
            net(**{"x": x, **given})
    with pytest.raises(ValueError, match="is bidirectional and has no state: return_intermediates=True is of causal"):
        model(Encoder)(x, return_intermediates=True)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda net, x: net(x, causal=False), "prefix_attn_len of a PrefixDecoder lets a call's first tokens see"),
        (lambda net, x: net(x, pos=x), "positions are counted from the mask and the doc_ids"),
        (lambda net, x: net(x, sum_embeds=x), "embed_ids add embeddings of further ids"),
        (lambda net, x: net(x, detach_mems=False), r"model\.remember\(state, detach=False\)"),
        (lambda net, x: net.attn_layers(x, self_attn_kv_mask=x), "attn_mask=kept"),
        (lambda net, x: net.attn_layers(x, seq_start_pos=x), "a mask says which tokens are real"),
        (lambda net, x: AutoregressiveWrapper(net)(x, seq_start_pos=x), "a mask says which tokens are real"),
        (lambda net, x: AutoregressiveWrapper(net).generate(x, 3, seq_start_pos=x), "prompt_lens how many"),
        (lambda net, x: AutoregressiveWrapper(net, add_attn_z_loss=True), "attn_z_loss of the stack is its weight"),
        (lambda net, x: AutoregressiveWrapper(net)(x, num_items_in_batch=3), "give reduction='sum', return_count=True"),
    ],
)
def test_what_is_said_otherwise(call, match):
    with pytest.raises(TypeError, match=match):
        call(model(), ids())
