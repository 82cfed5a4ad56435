"""What PyTorch does for its own operators and not for ours: transforms, autocast, and modules that were changed."""

import copy

import laws
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrize, prune

import xflash
from xflash import AutoregressiveWrapper, Decoder, TransformerWrapper
from xflash.base.state import tensors
from xflash.layers.blocks import flash
from xflash.layers.blocks.recurrent import Recurrent
from xflash.layers.kernels import fused_pieces, operators
from xflash.layers.kernels.gated import gated_attention
from xflash.layers.kernels.tiled import Between

V, N = 31, 13
SIZES = {"gau": {"gau_query_key_dim": 6}, "flash": {"flash_group_size": 4, "flash_query_key_dim": 6}}


def build(name, **flags):
    torch.manual_seed(3)
    return laws.live(Decoder(dim=10, depth=1, heads=2, layers=name, **SIZES.get(name, {}), **flags))


# From inside torch 2.13, whose rules for jvp are scripts.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", SIZES)
def test_transforms_take_the_plain_way(name):
    stack = build(name)
    x, along = laws.sample(stack, N), laws.sample(stack, N, seed=2)
    _, tangent = torch.func.jvp(stack, (x,), (along,))
    step = 1e-6
    with torch.no_grad():
        expected = (stack(x + step * along) - stack(x - step * along)) / (2 * step)
    torch.testing.assert_close(tangent, expected, rtol=1e-5, atol=1e-6)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(stack(leaf).square().sum(), leaf)
    laws.close(torch.func.grad(lambda x: stack(x).square().sum())(x), expected, "torch.func.grad")
    each = torch.func.vmap(torch.func.grad(lambda row: stack(row[None]).square().sum()))(x)
    laws.close(each, expected, "gradients of each row")


@pytest.mark.parametrize(("name", "operator"), [("gau", "gated_tiles"), ("flash", "flash_groups")])
def test_compiled_stacks_take_the_fast_way(name, operator):
    stack = build(name)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    torch.compile(stack, fullgraph=True, backend=counter)(laws.sample(stack, N))
    assert any(operator in str(node.target) for graph in counter.graphs for node in graph.graph.nodes)


def test_on_a_gpu_compiled_flash_is_fused_by_the_compiler(monkeypatch):
    assert not operators.plain_is_better("cuda", False) and not operators.plain_is_better("cpu", True)
    assert operators.plain_is_better("cuda", True) and not operators.compiler_fuses()
    # As if a CPU were none: the graph has no operator of ours, its results and gradients are those of the operator.
    monkeypatch.setattr(flash, "plain_is_better", lambda device, fuses: operators.plain_is_better("cuda", fuses))
    stack = build("flash", pos="rotary")
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(stack, fullgraph=True, backend=counter)
    for n in (N, 4, 17, 29):
        found = []
        for net in (stack, compiled):
            x = laws.sample(stack, n).requires_grad_()
            y = net(x)
            found.append((y, *torch.autograd.grad(y.sin().sum(), (x, *stack.parameters()))))
        for ours, wanted in zip(*found, strict=True):
            laws.close(ours, wanted, f"{n} tokens")
    assert counter.frame_count <= 3
    assert not any("xflash" in str(node.target) for graph in counter.graphs for node in graph.graph.nodes)
    graph = torch.export.export(stack, (laws.sample(stack, N),)).graph
    assert any("flash_groups" in str(node.target) for node in graph.nodes)


def test_one_token_is_exported_without_operators():
    net = model()
    with torch.no_grad():
        program = torch.export.export(net, (torch.zeros(3, 1, dtype=torch.long),))
    assert not any("xflash" in str(node.target) for node in program.graph.nodes)


def model(**arguments):
    torch.manual_seed(5)
    return TransformerWrapper(num_tokens=V, max_seq_len=32, attn_layers=build("attn ff"), **arguments).double().eval()


def test_a_loss_in_chunks_is_transformed():
    net = AutoregressiveWrapper(model(), loss_chunk=7)
    ids = torch.randint(V, (3, N))
    weights = {name: p.detach() for name, p in net.named_parameters()}
    found = torch.func.grad(lambda w: torch.func.functional_call(net, w, (ids,)))(weights)
    net(ids).backward()
    for name, p in net.named_parameters():
        laws.close(found[name], p.grad, name)


@pytest.mark.parametrize("name", SIZES)
def test_autocast_leaves_float64_alone(name):
    stack = build(name)
    x, net, ids = laws.sample(stack, N), AutoregressiveWrapper(model(), loss_chunk=7), torch.randint(V, (3, N))
    expected = stack(x), net(ids)
    with torch.autocast("cpu", torch.bfloat16):
        for ours, there in zip((stack(x), net(ids)), expected, strict=True):
            laws.close(ours, there, "under autocast")


HEADS = {
    "a hook": lambda net: net.to_logits.register_forward_hook(lambda _module, _given, out: 3 * out),
    "a hook in front": lambda net: net.to_logits.register_forward_pre_hook(lambda _module, given: (3 * given[0],)),
    "pruned": lambda net: prune.l1_unstructured(net.to_logits, "weight", 0.5),
    "a head of one's own": lambda net: setattr(net, "logits", lambda y: 3 * type(net).logits(net, y)),
    "a forward of one's own": lambda net: setattr(
        net.to_logits, "forward", lambda y: F.linear(y, net.to_logits.weight**2)
    ),
}


@pytest.mark.parametrize("change", HEADS)
def test_a_changed_head_is_asked_itself(change):
    net = AutoregressiveWrapper(model(), loss_chunk=7)
    plain, ids = net.net.logits(torch.ones(1, 1, 10).double()), torch.randint(V, (3, N))
    HEADS[change](net.net)
    assert not torch.equal(net.net.logits(torch.ones(1, 1, 10).double()), plain)
    for _ in range(3):
        loss = net(ids)
        laws.close(loss, net(ids, return_outputs=True)[0], change)
        loss.backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
        net.zero_grad()


class Reader(nn.Module):
    """A net whose head has a name of its own."""

    def __init__(self):
        super().__init__()
        self.table, self.readout, self.causal = nn.Embedding(V, 10), nn.Linear(10, V), True

    def logits(self, y):
        return self.readout(y)

    def forward(self, x, return_embeddings=False):
        return self.table(x) if return_embeddings else self.logits(self.table(x))


def test_any_net_with_a_head_has_a_loss_in_chunks():
    net, ids = AutoregressiveWrapper(Reader().double(), loss_chunk=7), torch.randint(V, (3, N))
    laws.close(net(ids), net(ids, return_outputs=True)[0], "another net")


@pytest.mark.parametrize("trained", [("attn_layers", "embedding"), ("to_logits",)], ids=["body", "head"])
def test_a_loss_in_chunks_where_something_is_frozen(trained):
    found, ids = [], torch.arange(3 * N).view(3, N) % V
    for chunk in (None, 7):
        net = AutoregressiveWrapper(model(logits_bias=True), loss_chunk=chunk)
        for name, p in net.net.named_parameters():
            p.requires_grad_(name.startswith(trained))
        found.append(torch.autograd.grad(net(ids), [p for p in net.parameters() if p.requires_grad]))
    for ours, expected in zip(*found, strict=True):
        laws.close(ours, expected, "gradients")


def test_a_loss_in_chunks_on_the_meta_device():
    net = AutoregressiveWrapper(model(), loss_chunk=7).to("meta")
    loss = net(torch.zeros(3, N, dtype=torch.long, device="meta"))
    loss.backward()
    assert loss.is_meta and net.net.to_logits.weight.grad.shape == (V, 10)


class Threefold(nn.Module):
    def forward(self, weight):
        return 3 * weight


def hooked(block):
    block.gate.to_update.register_forward_hook(lambda _module, _given, out: 3 * out)


CHANGES = {
    "nothing": lambda block: None,
    "a hook": hooked,
    "a parametrization": lambda block: parametrize.register_parametrization(
        block.state_key_value, "weight", Threefold()
    ),
    "another module": lambda block: setattr(block, "state_to_q", nn.Sequential(block.state_to_q, nn.Tanh())),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_recurrent_layer_compiles_to_what_it_is(change):
    stack = build("recurrent", recurrent_block_width=4, recurrent_num_state_vectors=3, recurrent_dim_head=6)
    x, before = laws.sample(stack, N), copy.deepcopy(stack)
    CHANGES[change](stack.branches[0].block)
    torch._dynamo.reset()
    with torch.no_grad():
        laws.close(torch.compile(stack, backend="eager")(x), stack(x), f"compiled with {change}")
        assert (change == "nothing") == torch.equal(stack(x), before(x))


@pytest.mark.slow
def test_a_subclass_of_the_recurrent_layer_renews_as_it_says():
    @xflash.blocks.register("threefold")
    class Tripled(Recurrent):
        """Renews three times as much."""

        def renew(self, states, k, v, seen):
            return 3 * super().renew(states, k, v, seen)

    try:
        flags = {"threefold_block_width": 4, "threefold_num_state_vectors": 3, "threefold_dim_head": 6}
        stack = build("threefold", **flags)
        x = laws.sample(stack, N)
        torch._dynamo.reset()
        with torch.no_grad():
            laws.close(torch.compile(stack, backend="eager")(x), stack(x), "compiled")
    finally:
        del xflash.blocks._parts["threefold"]


def test_dropout_acts_behind_the_sum_of_a_row():
    """Weights that are left are divided by the sum of all, whichever way is taken."""
    q, k = (torch.rand(1, 1, 5, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    torch.manual_seed(0)
    drawn = torch.cat(
        [
            gated_attention(q, k, torch.ones(1, 1, 5, 2), attn_fn="relu2", divisor="row_sum", dropout_p=0.5)[
                0, 0, :, :1
            ]
            for _ in range(500)
        ],
        1,
    )
    assert drawn.std(1).min() > 0.1
    torch.testing.assert_close(drawn.mean(1), torch.ones(5), rtol=0, atol=0.1)


@pytest.mark.parametrize("name", ["attn", "gau"])
def test_a_state_keeps_nothing_else_alive(name):
    one = {"attn_kv_heads": 1, "attn_dim_head": 6} if name == "attn" else {}
    for pos in ("rotary", None):
        stack = build(name, pos=pos, **one)
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                _, state = stack.step(laws.sample(stack, N))
            assert all(t.untyped_storage().nbytes() == t.nbytes for t in tensors(state))


def test_gradients_of_many_pieces_are_summed_in_float32(monkeypatch):
    """Of a model cast to bfloat16: sums over hundreds of pieces in its own dtype would lose most of their digits."""
    stack, found = build("flash").bfloat16(), []
    x = laws.sample(stack, 2048).bfloat16()[:1]
    block = stack.branches[0].block
    for size in (2**30, 1):
        monkeypatch.setitem(fused_pieces.BYTES, "cpu", size)
        found.append(torch.autograd.grad(stack(x).float().sum(), (block.gamma, block.beta)))
    for together, apart in zip(*found, strict=True):
        assert (apart.float() - together.float()).norm() <= 0.02 * together.float().norm()


def test_tiles_whose_first_key_lies_ahead():
    """Of which some queries see nothing, by their bounds and by causality."""
    q, k, v = (torch.randn(1, 1, 6, 4, dtype=torch.double) for _ in range(3))
    since = torch.tensor([[5] * 6])
    y = gated_attention(q, k, v, attn_fn="relu2", causal=True, between=Between(since, None))
    allowed = (torch.arange(6) >= 5).expand(1, 1, 6, 6)
    torch.testing.assert_close(y, gated_attention(q, k, v, attn_fn="relu2", causal=True, allowed=allowed))
