"""Wrappers that train add what layers lose of their own, while they train, however the loss is put together."""

import laws
import pytest
import torch

from xflash import (
    AutoregressiveWrapper,
    Decoder,
    Encoder,
    MaskedLMWrapper,
    RecurrentMemoryWrapper,
    SegmentWrapper,
    TransformerWrapper,
    XLAutoregressiveWrapper,
    XTransformer,
)

FLAGS = {"dim": 10, "depth": 1, "heads": 2, "layers": "attn moe", "moe_experts": 5, "moe_dim": 3}
IDS = torch.randint(13, (3, 8), generator=torch.Generator().manual_seed(2))
REAL = torch.arange(8) < torch.tensor([8, 5, 3])[:, None]


def model(kind: type = Decoder, weight: float = 0.3, **flags) -> TransformerWrapper:
    torch.manual_seed(7)
    stack = kind(**FLAGS, moe_balance_loss=weight, pos="rotary")
    return TransformerWrapper(num_tokens=13, max_seq_len=17, attn_layers=stack, **flags).double()


def losses(trainer, **given) -> tuple:
    """In training and in evaluation, with the same chance."""
    generator = torch.Generator()
    given = {**given, "generator": generator} if isinstance(trainer, MaskedLMWrapper) else given
    found = []
    for training in (True, False):
        generator.manual_seed(5)
        found.append(trainer.train(training)(IDS, REAL, **given))
    return tuple(found)


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("kind", [AutoregressiveWrapper, MaskedLMWrapper])
def test_the_loss_of_a_call_has_it_while_training(kind: type, chunk: int | None):
    masked = kind is MaskedLMWrapper
    net = model(Encoder if masked else Decoder)
    trainer = kind(net, mask_token_id=12, loss_chunk=chunk) if masked else kind(net, loss_chunk=chunk)
    given = {"loss_weights": torch.rand(3, 8, dtype=torch.float64)}
    seen: list = []
    hook = net.attn_layers.register_forward_hook(lambda *call: seen.append(call[-1][-1]), with_kwargs=False)
    for reduction in ("mean", "sum"):
        here = {**given, "reduction": reduction, "return_count": True}
        (training, count), (plain, _) = losses(trainer, **here)
        own = seen[-2] if reduction == "mean" else seen[-2] * count
        laws.close(training, plain + own, reduction)
    hook.remove()
    if not masked:
        laws.close(seen[0], net(IDS[:, :-1], REAL[:, :-1], return_auxiliary_loss=True)[-1], "of the net")
    trainer.train()(IDS, REAL).backward()
    assert all(p.grad is not None for p in net.attn_layers.parameters())


def test_nothing_is_added_without_weights():
    training, plain = losses(AutoregressiveWrapper(model(weight=0.0)))
    laws.close(training, plain, "no loss of its own")


@pytest.mark.parametrize("again", [False, True])
def test_segments_have_their_own_by_the_targets_in_them(again: bool):
    net = model()
    training, plain = losses(SegmentWrapper(net, 3, grad_checkpoint=again))
    first = net.step(IDS[:, :3], None, REAL[:, :3], return_auxiliary_loss=True)
    second = net.step(IDS[:, 3:6], first[1], REAL[:, 3:6], return_auxiliary_loss=True)
    third = net.step(IDS[:, 6:7], second[1], REAL[:, 6:7], return_auxiliary_loss=True)
    targets = [int((REAL[:, a + 1 : b + 1] & REAL[:, a:b]).sum()) for a, b in ((0, 3), (3, 6), (6, 7))]
    own = sum(n * part[-1] for n, part in zip(targets, (first, second, third), strict=True)) / sum(targets)
    laws.close(training, plain + own, "segments")


def test_other_trainers_add_it_or_say_why_not():
    xl = XLAutoregressiveWrapper(model(max_mem_len=4, use_abs_pos_emb=False))
    (training, plain) = (xl.train(way)(IDS) for way in (True, False))
    assert training > plain
    with pytest.raises(ValueError, match=r"moe_balance_loss=0.3 gives a loss of a call, and a segment with"):
        RecurrentMemoryWrapper(model(), num_memory_tokens=2, segment_len=3)
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in FLAGS.items() if name != "dim"}
    sides |= {"dim": 10, "enc_num_tokens": 13, "dec_num_tokens": 13, "enc_max_seq_len": 8, "dec_max_seq_len": 8}
    sides["dec_layers"] = "attn cross_attn moe"
    pair = XTransformer(**sides, dec_moe_balance_loss=0.3)
    training, plain = (pair.train(way)(IDS, IDS) for way in (True, False))
    assert training > plain
    with pytest.raises(ValueError, match=r"moe_z_loss=0.3 \(of the encoder\) would be lost"):
        XTransformer(**sides, enc_moe_z_loss=0.3)
