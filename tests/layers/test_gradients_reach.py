"""Every parameter has a gradient whatever the data and the length: what a call did not use gets zeros, never None.

Processes that train together wait for the gradient of each parameter; texts of different lengths use different ones.
"""

import laws
import matrix
import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from xflash import (
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
    XLAutoregressiveWrapper,
)

SETS, V = matrix.stored(), 31
# Of the combinations of flags of each kind, every so many: with 1 they take two minutes.
EVERY = {"stack": 31, "cross": 11, "recurrent": 9, "wrapper": 11, "vit": 5, "seq2seq": 7}


def reached(module, loss) -> None:
    """Backward of a loss gives every parameter a gradient."""
    module.zero_grad()
    loss.backward()
    missing = [name for name, p in module.named_parameters() if p.grad is None]
    assert not missing, f"no gradient reaches {missing}"


def units(stack) -> set[int]:
    """Lengths at, before and behind the borders of groups and blocks."""
    settings = [vars(block.config) for block in stack.blocks()]
    found = {s[name] for s in settings for name in ("group_size", "block_width") if name in s}
    return {1} | {unit + more for unit in found or {5} if unit < 20 for more in (-1, 0, 1)}


def every_length(stack) -> None:
    """Whole calls of every length, a call without any token, and calls behind a state that is cut off."""
    stack.train()
    for n in units(stack) - {0}:
        reached(stack, laws.run(stack, laws.sample(stack, n).float()).square().sum())
    x = laws.sample(stack, max(units(stack))).float()
    reached(stack, laws.run(stack, x, torch.zeros(x.shape[:2], dtype=torch.bool)).square().sum())
    if stack.causal and not any(block.refuses_step() for block in stack.blocks()):
        y, state = laws.go(stack, x)
        reached(stack, y.square().sum())
        for n in (1, 3):
            reached(stack, laws.go(stack, x[:, :n], state.detach())[0].square().sum())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in SETS if kind.split()[0] in ("stack", "cross", "recurrent")])
def test_stacks(kind):
    what, direction = kind.split()
    _, build = matrix.domain_of(what)
    for row in SETS[kind]["accepted"][:: EVERY[what]]:
        every_length(build(direction == "causal", matrix.as_row(what, row)))


@pytest.mark.parametrize("kind", [kind for kind in SETS if kind.split()[0] in ("wrapper", "vit", "seq2seq")])
def test_models(kind):
    what, direction = kind.split()
    _, build = matrix.domain_of(what)
    for row in SETS[kind]["accepted"][:: EVERY[what]]:
        model = build(direction == "causal", matrix.as_row(what, row)).train()
        if what == "vit":
            reached(model, model(torch.randn(2, model.channels, *model.image_size)).square().sum())
            continue
        for n in (2, 9):
            ids = torch.randint(1, V, (2, n))
            for mask in (None, torch.zeros_like(ids, dtype=torch.bool)):
                out = model(ids, ids, mask) if what == "seq2seq" else laws.run(model, ids, mask)
                reached(model, out.square().sum())


def stack(cls=Decoder, **flags):
    flags = {"dim": 20, "depth": 1, "heads": 2, "layers": "block_attn recurrent ff", "num_memory_tokens": 2, **flags}
    for block in ("block_attn", "recurrent"):
        small = {f"{block}_dim_head": 6, f"{block}_block_width": 4, f"{block}_compress": "conv"}
        flags = {**small, **flags} if block in flags["layers"].split() else flags
    return cls(**flags)


def model(cls=Decoder, own=None, **flags):
    torch.manual_seed(0)
    return TransformerWrapper(num_tokens=V, attn_layers=stack(cls, **flags), use_abs_pos_emb=False, **own or {})


def block_recurrent():
    torch.manual_seed(0)
    return BlockRecurrentTransformer(
        num_tokens=V, dim=20, depth=2, dim_head=6, heads=2, block_width=4, max_seq_len=8, num_state_vectors=3
    )


WRAPPERS = {
    "autoregressive": lambda: AutoregressiveWrapper(model()),
    "in chunks": lambda: AutoregressiveWrapper(model(own={"tie_embedding": True}), loss_chunk=3),
    "recurrent memory": lambda: AutoregressiveWrapper(RecurrentMemoryWrapper(model(), 2, 4)),
    "dropped layers": lambda: AutoregressiveWrapper(model(layer_dropout=0.9, grad_checkpoint=True)),
    "segments": lambda: SegmentWrapper(model(), 3, detach_every=1, memory_dropout=0.5),
    "Transformer-XL": lambda: XLAutoregressiveWrapper(
        model(layers="attn ff", own={"max_seq_len": 3, "max_mem_len": 2}),
    ),
    "block recurrent": lambda: RecurrentTrainerWrapper(block_recurrent(), state_dropout=0.5, detach_every=1),
    "masked": lambda: MaskedLMWrapper(model(Encoder, layers="attn ff"), mask_token_id=0),
    "non-autoregressive": lambda: NonAutoregressiveWrapper(model(Encoder, layers="attn ff"), mask_id=0),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_losses(name):
    wrapper = WRAPPERS[name]()
    for n in (2, 4, 5, 6, 11):
        ids = torch.randint(1, V, (2, n))
        for mask in (None, torch.zeros_like(ids, dtype=torch.bool)):
            given = {} if mask is None or name == "block recurrent" else {"mask": mask}
            loss = wrapper(ids, **given)
            reached(wrapper, loss[0] if isinstance(loss, tuple) else loss)
    if name in ("segments", "Transformer-XL"):
        word = "state" if name == "segments" else "mems"
        _, state = wrapper(ids, **{f"return_{word}": True})
        for n in (2, 6):
            reached(wrapper, wrapper(ids[:, :n], **{word: state.detach()}))


def test_what_was_not_used_has_zeros():
    """And a NaN in it stays where it is."""
    torch.manual_seed(0)
    net = stack(layers="recurrent", num_memory_tokens=0, recurrent_compress=None).train()
    x = torch.randn(2, 3, 20)
    y = net(x)
    with torch.no_grad():
        net.blocks()[0].gate.decay.fill_(float("nan"))
    assert torch.equal(net(x), y)
    reached(net, net(x).square().sum())
    gate = net.blocks()[0].gate
    assert all((p.grad == 0).all() and p.grad.shape == p.shape for p in gate.parameters())
    assert all(p.grad.isfinite().all() for p in net.parameters())
    with torch.no_grad():
        gate.decay.zero_()
    reached(net, net(torch.randn(2, 9, 20)).square().sum())
    assert (gate.decay.grad != 0).any()


TEXTS = {"autoregressive": (4, 14), "segments": (3, 14)}


def text(name: str, rank: int) -> torch.Tensor:
    return torch.randint(1, V, (2, TEXTS[name][rank]), generator=torch.Generator().manual_seed(rank))


def train_together(rank: int, folder: str) -> None:
    """One of two processes, each with texts of its own length."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for name in TEXTS:
        together = DistributedDataParallel(WRAPPERS[name]().eval())
        for _ in range(2):
            together.zero_grad()
            together(text(name, rank)).backward()
        found[name] = {key: p.grad for key, p in together.module.named_parameters()}
    if rank == 0:
        torch.save(found, f"{folder}/gradients.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_with_texts_of_different_lengths_train_together(tmp_path):
    multiprocessing.spawn(train_together, (str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "gradients.pt")
    for name in TEXTS:
        wrapper = WRAPPERS[name]().eval()
        for rank in range(2):
            (wrapper(text(name, rank)) / 2).backward()
        for key, p in wrapper.named_parameters():
            torch.testing.assert_close(found[name][key], p.grad, msg=f"{name}: {key}")
