"""BlockRecurrentTransformer and its trainer: the calls of block-recurrent-transformer-pytorch, and then some."""

import laws
import pytest
import torch

import xflash
from xflash import AutoregressiveWrapper, BlockRecurrentTransformer, RecurrentTrainerWrapper
from xflash.base.state import tensors
from xflash.wrappers.block_recurrent import Memories

W = 4


def build(**arguments):
    torch.manual_seed(0)
    sizes = {
        "num_tokens": 31,
        "dim": 26,
        "depth": 2,
        "dim_head": 10,
        "heads": 2,
        "block_width": W,
        "max_seq_len": 3 * W,
    }
    return BlockRecurrentTransformer(**{**sizes, "recurrent_layers": (2,), **arguments}).double().eval()


RETRIEVE = {"recurrent_retrieve": 2, "recurrent_retrieve_len": 2 * W, "block_attn_retrieve": 1}


def ids(n, rows=3, seed=1):
    return torch.randint(31, (rows, n), generator=torch.Generator().manual_seed(seed))


def test_the_port_s_own_example():
    with torch.device("meta"):
        model = BlockRecurrentTransformer(
            num_tokens=20000, dim=512, depth=6, dim_head=64, heads=8, max_seq_len=1024, block_width=512,
            num_state_vectors=512, recurrent_layers=(4,), use_compressed_mem=False, compressed_mem_factor=4,
            use_flash_attn=True,
        )  # fmt: skip
    assert sum(p.numel() for p in model.parameters()) > 38e6
    model, seq = build(), ids(3 * W)
    out, mems1, states1 = model(seq)
    out, mems2, states2 = model(seq, xl_memories=mems1, states=states1)
    out, _, states3 = model(seq, xl_memories=mems2, states=states2)
    assert out.shape == (3, 3 * W, 31) and states3[0].shape == (3, W, 26)


@pytest.mark.parametrize(
    "arguments", [{}, {"use_compressed_mem": True}, {"depth": 3, "read_recurrent_layers": (1,)}, RETRIEVE]
)
def test_any_cut_is_the_whole(arguments):
    model, seq = build(**arguments), ids(41)
    whole, _, _ = model(seq)
    pieces, memories, states = [], None, None
    for piece in seq.split([5, 1, 1, 17, 2, 15], 1):
        out, memories, states = model(piece, xl_memories=memories, states=states)
        pieces.append(out)
    laws.close(torch.cat(pieces, 1), whole, "cut")


def test_what_is_carried_is_not_detached():
    model, seq = build(), ids(2 * W)
    _, memories, states = model(seq)
    assert states[0].requires_grad
    loss, _, _ = model(ids(2 * W, seed=2), xl_memories=memories, states=states, return_loss=True)
    loss.backward()
    assert model.attn_layers.branches[2].block.start.grad.abs().max() > 0


def test_the_trainer_reads_any_length():
    model = build()
    trainer, seq = RecurrentTrainerWrapper(model), ids(40)
    whole, _, _ = model(seq, return_loss=True)
    assert abs(trainer(seq) - whole) < 1e-9
    loss, memories, states = trainer(seq, return_memories_and_states=True)
    assert abs(loss - whole) < 1e-9 and memories.state.bound == 39 and len(states) == 1
    trainer.train()(seq).backward()


def test_masked_and_ignored_tokens_are_no_targets():
    model, seq = build(), ids(17)
    mask = torch.arange(17) < torch.tensor([[17], [6], [11]])
    alone = [
        model(row[real][None], return_loss=True)[0] * (real.sum() - 1) for row, real in zip(seq, mask, strict=True)
    ]
    expected = sum(alone) / (mask.sum() - 3)
    assert abs(model(seq, mask, return_loss=True)[0] - expected) < 1e-9
    ignored = seq.masked_fill(~mask, -100)
    assert abs(model(ignored, return_loss=True)[0] - expected) < 1e-9
    assert abs(RecurrentTrainerWrapper(model)(ignored) - expected) < 1e-9
    with pytest.raises(ValueError, match="the target 31 is not in the vocabulary of 31 tokens"):
        model(torch.full((1, 3), 31).index_fill(1, torch.tensor([0, 1]), 2), return_loss=True)


def test_the_fused_kernel_is_left_alone_where_asked():
    blocks = {flag: build(use_flash_attn=flag).attn_layers.blocks() for flag in (None, True, False)}
    assert {flag: {b.config.flash for b in found if hasattr(b, "kv_heads")} for flag, found in blocks.items()} == {
        None: {True}, True: {True}, False: {False},
    }  # fmt: skip
    laws.close(build(use_flash_attn=False)(ids(19))[0], build()(ids(19))[0], "plain kernel")


def test_its_own_loss_is_the_only_one():
    for how in (lambda lm: lm(ids(9)), lambda lm: lm.generate(ids(4), 2, cache_kv=False)):
        with pytest.raises(
            TypeError, match="BlockRecurrentTransformer called with ids gives a tuple, not logits alone"
        ):
            how(AutoregressiveWrapper(build()))


def test_a_state_holds_nothing_beside_itself():
    """After a prompt of many blocks as much memory is alive as after one: no view of what the call has made."""
    model = build(use_compressed_mem=True)
    for mask in (None, torch.arange(60) < torch.tensor([[60], [31], [8]])):
        with torch.no_grad():
            _, state = model.step(ids(60), None, mask)
        held = [t for t in tensors(state.stack.branches) if t.dim() == 3 or t.dim() == 4]
        assert held and all(t.untyped_storage().nbytes() == t.nbytes for t in held)


def test_dropping_memories_and_states():
    model = build()
    torch.manual_seed(0)
    trainer = RecurrentTrainerWrapper(model, xl_memories_dropout=0.99, state_dropout=0.99).train()
    seq = ids(3 * W * 2 + 1)
    model.eval()
    apart = sum(model(part, return_loss=True)[0] for part in (seq[:, : 3 * W + 1], seq[:, 3 * W :])) / 2
    assert abs(trainer(seq) - apart) < 1e-9
    assert abs(trainer.eval()(seq) - model(seq, return_loss=True)[0]) < 1e-9


def test_detaching_cuts_gradients():
    model, seq = build(), ids(3 * W * 2 + 1)
    embedded = []
    model.embedding.register_forward_hook(lambda _m, _i, out: embedded.append(out[0]))
    for every, reaches in ((None, True), (1, False)):
        embedded.clear()
        trainer = RecurrentTrainerWrapper(model, detach_every=every)
        _, _, states = trainer(seq, return_memories_and_states=True)
        (grad,) = torch.autograd.grad(states[0].square().sum(), embedded[0], allow_unused=True)
        assert (grad is not None and bool(grad.abs().max() > 0)) is reaches


def test_generation_counts_the_prime_and_goes_past_max_seq_len():
    model, prime = build(), ids(15)
    trainer = RecurrentTrainerWrapper(model)
    made = trainer.generate(prime, 33, temperature=0.0)
    assert torch.equal(torch.stack(list(trainer.stream(prime, 33, temperature=0.0)), 1), made)
    assert made.shape == (3, 18)
    known = prime
    for token in made.unbind(1)[:5]:
        assert torch.equal(model(known)[0][:, -1].argmax(-1), token)
        known = torch.cat((known, token[:, None]), 1)
    assert torch.equal(model.generate(ids(4), temperature=0.0), model.generate(ids(4), 3 * W + 1, temperature=0.0))
    assert next(iter(AutoregressiveWrapper(model).stream(prime, 2))).shape == (3,)


def test_saved_is_built(tmp_path):
    model = build(use_compressed_mem=True, recurrent_gate="lstm")
    model.save(tmp_path)
    again = xflash.load(tmp_path).eval()
    assert again.to_config() == model.to_config()
    assert torch.equal(again(ids(9))[0], model(ids(9))[0])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"max_seq_len": 10}, ValueError, "block_width=4 does not divide max_seq_len=10"),
        ({"recurrent_layers": (3,)}, ValueError, "recurrent_layers are counted from 1 to the depth 2, not 3"),
        ({"recurrent_layers": (0,)}, ValueError, "recurrent_layers are counted from 1 to the depth 2, not 0"),
        ({"recurrent_layers": (2, 2)}, ValueError, "recurrent_layers names a layer twice"),
        (
            {"recurrent_layers": ("2",)},
            TypeError,
            "recurrent_layers must be a tuple of whole numbers or None, not",
        ),
        ({"read_recurrent_layers": (1, 2)}, ValueError, "read_recurrent_layers has 2 entries, but recurrent_layers 1"),
        (
            {"recurrent_layers": (1,), "read_recurrent_layers": (2,)},
            ValueError,
            r"read_recurrent_layers=\(2,\): layer 1 cannot be read above itself, at 2",
        ),
        ({"num_state_vectors": 0}, ValueError, "num_state_vectors must be at least 1, not 0"),
        ({"use_flash_attn": 1}, TypeError, "use_flash_attn must be True or False or None, not 1"),
        ({"depth": 0}, ValueError, "depth must be at least 1, not 0"),
        ({"recurrent_layer": (1,)}, TypeError, "unknown flag 'recurrent_layer'; did you mean 'recurrent_layers'"),
        ({"custom_layers": ("a", "f")}, ValueError, "custom_layers cannot be set: depth and recurrent_layers say"),
    ],
)
def test_wrong_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        build(**arguments)


def test_wrong_memories_and_states():
    model, seq = build(), ids(2 * W)
    _, memories, states = model(seq)
    for given, error, match in (
        ({"xl_memories": [torch.zeros(2)]}, TypeError, "xl_memories must be what the model gave, Memories, not list"),
        ({"states": [*states, *states]}, ValueError, "states has 2 entries, but there are 1 recurrent layers"),
        ({"states": [states[0][:2]]}, ValueError, r"states must be of shape \(3, 4, 26\), not \(2, 4, 26\)"),
        ({"states": [states[0].float()]}, ValueError, "states must be torch.float64, as this model keeps them"),
        ({"states": [states[0].long()]}, TypeError, r"states must be floating-point tensors of \(3, 4, 26\)"),
    ):
        with pytest.raises(error, match=match):
            model(seq, **given)
    with pytest.raises(ValueError, match="the state has 3 rows, but x has 2"):
        model(seq[:2], xl_memories=memories)
    narrow = Memories(memories.state.to(torch.float32))
    with pytest.raises(ValueError, match=r"xl_memories are torch\.float32, but the model is torch\.float64"):
        model(seq, xl_memories=narrow)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert build().float()(seq, xl_memories=narrow)[0].isfinite().all()
    with pytest.raises(ValueError, match="the state was made by another stack"):
        build(heads=1)(seq, xl_memories=memories)
    with pytest.raises(ValueError, match="a loss needs"):
        model(seq[:, :1], return_loss=True)
    with pytest.raises(ValueError, match=r"length=8 counts the prime, of shape \(3, 8\), and must be longer"):
        model.generate(seq, 8)
    with pytest.raises(TypeError, match="transformer must be a BlockRecurrentTransformer, not Linear"):
        RecurrentTrainerWrapper(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="a loss needs"):
        RecurrentTrainerWrapper(model)(seq[:, :1])


def test_the_trainer_is_saved_as_it_was_built(tmp_path):
    trainer = RecurrentTrainerWrapper(build(), xl_memories_dropout=0.1, detach_every=4).eval()
    trainer.save(tmp_path)
    again = xflash.load(tmp_path).eval()
    assert again.to_config() == trainer.to_config() and again.detach_every == 4
    assert torch.equal(again(ids(19)), trainer(ids(19)))
