"""What compare.py sets side by side: each contender is built on demand, and makes one call of fixed work."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import xflash
from xflash import Decoder, TransformerWrapper
from xflash.convert import from_flash_pytorch

__all__ = ["bits", "decoding", "layer", "model", "paper_pair", "reading", "training"]

DIM, HEADS, VOCABULARY = 256, 4, 256
# Of torch.compile, for the steps that are compiled.
COMPILED: dict[str, Any] = {}
Call = Callable[[], Any]


def bits(dtype: str, device: str) -> Any:
    """The precision a call runs in: float32, or bfloat16 by autocast."""
    return torch.autocast(device, torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()


def layer(name: str) -> nn.Module:
    """A single causal layer: 'gau' or 'flash' of xflash, of the peer, or the peer's with its weights in xflash."""
    import flash_pytorch
    from rotary_embedding_torch import RotaryEmbedding

    torch.manual_seed(0)
    kind, _, side = name.partition(" ")
    if side == "xflash":
        if kind == "gau":
            return xflash.GAU(DIM, causal=True, rel_pos_bias=True)
        return xflash.FLASH(DIM, causal=True, rotary_pos_emb=True)
    if kind == "gau":
        peer = flash_pytorch.GAU(dim=DIM, causal=True)
    else:
        peer = flash_pytorch.FLASH(dim=DIM, causal=True, rotary_pos_emb=RotaryEmbedding(dim=32))
    return from_flash_pytorch(peer) if side == "converted" else peer


def model(name: str, depth: int, n: int) -> nn.Module:
    """A language model: softmax attention of xflash (its step compiled or not) or the peer (its default or attn_flash),
    or the FLASH of either."""
    import flash_pytorch
    import x_transformers

    torch.manual_seed(0)
    kind, _, side = name.partition(" ")
    if side == "xflash, compile_step":
        net: Any = model(f"{kind} xflash", depth, n)
        net.compile_step(**COMPILED)
        return net
    if kind == "flash":
        library = xflash if side == "xflash" else flash_pytorch
        return library.FLASHTransformer(num_tokens=VOCABULARY, dim=DIM, depth=depth, causal=True)
    if side == "xflash":
        stack = Decoder(dim=DIM, depth=depth, heads=HEADS, pos="rotary")
        return TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=n, attn_layers=stack, use_abs_pos_emb=False)
    peer = x_transformers.Decoder(
        dim=DIM, depth=depth, heads=HEADS, rotary_pos_emb=True, attn_flash=side == "peer, attn_flash"
    )
    return x_transformers.TransformerWrapper(
        num_tokens=VOCABULARY, max_seq_len=n, attn_layers=peer, use_abs_pos_emb=False
    )


def paper_pair(n: int) -> dict[str, nn.Module]:
    """FLASH, and a Transformer++ (softmax attention, GLU, rotary) of as many parameters, both of xflash."""
    shapes: dict[str, dict[str, Any]] = {
        "Transformer++": {"layers": "attn ff", "depth": 2, "ff_glu": True, "ff_swish": True, "ff_no_bias": True},
        "FLASH": {"layers": "flash", "depth": 5},
    }
    pair = {}
    for name, flags in shapes.items():
        torch.manual_seed(0)
        stack = Decoder(dim=DIM, heads=HEADS, pos="rotary", **flags)
        pair[name] = TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=n, attn_layers=stack, use_abs_pos_emb=False)
    return pair


def given(net: nn.Module, n: int, rows: int, device: str) -> Tensor:
    """Ids for a model, embeddings for a layer."""
    chance = torch.Generator().manual_seed(0)
    if hasattr(net, "token_emb") or hasattr(net, "embedding"):
        return torch.randint(VOCABULARY, (rows, n), generator=chance).to(device)
    return torch.randn(rows, n, DIM, generator=chance).to(device)


def training(net: nn.Module, n: int, dtype: str = "fp32", device: str = "cpu", rows: int = 1) -> Call:
    """Forward and backward over rows of n tokens."""
    net = net.to(device).train()
    x = given(net, n, rows, device)
    if x.is_floating_point():
        x.requires_grad_()

    def call() -> None:
        net.zero_grad(set_to_none=True)
        x.grad = None
        with bits(dtype, device):
            y = net(x)
        y.float().square().mean().backward()

    return call


def reading(net: nn.Module, n: int, device: str = "cpu", rows: int = 1) -> Call:
    """Forward without gradients."""
    net = net.to(device).eval()
    x = given(net, n, rows, device)
    return lambda: without_grad(net, x)


def decoding(name: str, net: nn.Module, n: int, device: str = "cpu") -> Callable[[], Call]:
    """Begins, each time anew, to decode behind the same n tokens: what it gives makes one token more at every call.

    Each library does it as for its `generate`; xflash has made a first token already, for which its buffers have grown.
    """
    net = net.to(device).eval()
    ids = torch.randint(VOCABULARY, (1, n + 1), generator=torch.Generator().manual_seed(0)).to(device)
    kind, _, side = name.partition(" ")
    if side.startswith("xflash"):
        with torch.inference_mode():
            _, first = net.step(ids[:, :n])
        return lambda: stepping(net, ids[:, n:], first)
    if kind == "flash":
        return lambda: lambda: without_grad(net, ids)
    with torch.inference_mode():
        _, cache = net(ids[:, :n], return_intermediates=True)
    return lambda: cached(net, ids, cache)


def stepping(net: Any, token: Tensor, first: Any) -> Call:
    """One token more behind a state at every call."""
    with torch.inference_mode():
        held = [net.step(token, first)[1]]

    def step() -> Tensor:
        with torch.inference_mode():
            logits, held[0] = net.step(token, held[0])
        return logits

    return step


def cached(net: nn.Module, ids: Tensor, cache: Any) -> Call:
    """The same with x-transformers' cache, which is given all tokens and takes the last."""
    kept: list[Any] = [cache, ids]

    def step() -> Tensor:
        with torch.inference_mode():
            logits, kept[0] = net(kept[1], return_intermediates=True, cache=kept[0])
        kept[1] = torch.cat((kept[1], ids[:, -1:]), 1)
        return logits

    return step


def without_grad(net: nn.Module, *args: Tensor) -> Tensor:
    with torch.inference_mode():
        return net(*args)
