"""Law 7 for models: wrappers compile without graph breaks, few graphs for all lengths, with the numbers of eager."""

import laws
import pytest
import torch
from quick import quick
from torch._dynamo.testing import CompileCounterWithBackend

import xflash

V, B, D = 31, 3, 12
LENGTHS = (7, 8, 16, 30, 13)
FLASH = {"num_tokens": V, "dim": D, "depth": 1, "group_size": 8, "query_key_dim": 6}
SIDES = {
    f"{side}_{name}": value
    for side in ("enc", "dec")
    for name, value in {"num_tokens": V, "depth": 1, "heads": 2, "attn_dim_head": 6, "max_seq_len": 64}.items()
}
BLOCKS = {"dim_head": 6, "block_width": 4, "max_seq_len": 8, "num_state_vectors": 3, "recurrent_layers": (1,)}


def stack(cls=xflash.Decoder, **flags):
    return cls(dim=D, depth=1, heads=2, attn_dim_head=6, **flags)


def language_model(cls=xflash.Decoder, **arguments):
    return xflash.TransformerWrapper(num_tokens=V, max_seq_len=64, attn_layers=stack(cls), **arguments)


MODELS = {
    "tied, with memory tokens": lambda: language_model(tie_embedding=True, num_memory_tokens=2),
    "prefix": lambda: language_model(xflash.PrefixDecoder),
    "FLASHTransformer": lambda: xflash.FLASHTransformer(**FLASH, causal=True),
    "bidirectional FLASHTransformer": lambda: xflash.FLASHTransformer(**FLASH),
    "GAU": lambda: xflash.GAU(D, query_key_dim=6, causal=True),
    "FLASH": lambda: xflash.FLASH(D, query_key_dim=6, group_size=8, causal=True),
    "XTransformer": lambda: xflash.XTransformer(dim=D, **SIDES),
    "NonAutoregressiveWrapper": lambda: xflash.NonAutoregressiveWrapper(language_model(xflash.Encoder), mask_id=1),
    "BlockRecurrentTransformer": lambda: xflash.BlockRecurrentTransformer(
        num_tokens=V, dim=D, depth=1, heads=2, **BLOCKS
    ),
}


TRACED = ("prefix", "FLASH")


def given(model, n):
    """Inputs of n tokens; an encoder-decoder's target is one longer."""
    chance = torch.Generator().manual_seed(n)
    if isinstance(model, xflash.GAU | xflash.FLASH):
        return (torch.randn(B, n, D, dtype=torch.float64, generator=chance),)
    ids = torch.randint(2, V, (B, n + 1), generator=chance)
    return (ids[:, :n].contiguous(), ids) if isinstance(model, xflash.XTransformer) else (ids[:, :n].contiguous(),)


def played(call, model, n):
    """The output and the gradients of all parameters."""
    torch.manual_seed(n)
    out = call(*given(model, n))
    out = out[0] if isinstance(out, tuple) else out
    wanted = list(model.parameters())
    return out, *torch.autograd.grad(out.square().sum(), wanted, allow_unused=True, materialize_grads=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", quick(MODELS, lambda name, _: name in TRACED))
def test_few_graphs_train_at_every_length(name):
    torch.manual_seed(3)
    model = laws.live(MODELS[name]())
    torch._dynamo.reset()
    # Stacks are traced further elsewhere; of wrappers that are much the same in graphs, two.
    counter = CompileCounterWithBackend("aot_eager" if name in TRACED else "eager")
    fast = torch.compile(model, fullgraph=True, backend=counter)
    for n in LENGTHS:
        for ours, expected in zip(played(fast, model, n), played(model, model, n), strict=True):
            laws.close(ours, expected, f"{name} compiled at {n}")
    assert counter.frame_count <= 3, f"{counter.frame_count} graphs for {len(LENGTHS)} lengths"
