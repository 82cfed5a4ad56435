"""The loss that keeps attention's scores small, against a loop over queries: of every kind of scores, padded, cut."""

import laws
import pytest
import torch
from torch import Tensor

from xflash import AutoregressiveWrapper, Decoder, Encoder, RecurrentMemoryWrapper, TransformerWrapper, XTransformer

WEIGHT = 0.3
REAL = torch.arange(7) < torch.tensor([4, 3, 2])[:, None]


def built(kind: type = Decoder, **flags):
    torch.manual_seed(5)
    given = {"dim": 10, "heads": 2, "attn_dim_head": 3, "depth": 2, "layers": "attn ff", "attn_z_loss": WEIGHT}
    return laws.live(kind(**{**given, **flags})).double()


def scores_of(stack, *given, **beside) -> list[tuple[Tensor, Tensor]]:
    """Of each layer the scores of all keys, and which of these a query sees, from what it reads."""
    found, hooks = [], []
    for block in stack.blocks():
        if block.weighs():
            hooks.append(block.reader.register_forward_hook(lambda _, args, out: found.append(args)))
    stack(*given, **beside)
    for hook in hooks:
        hook.remove()
    scores = []
    for q, k, _, mask, bias, causal, *_ in found:
        s = torch.einsum("bhnd,bhmd->bhnm", q, k.repeat_interleave(q.shape[1] // k.shape[1], 1))
        s = s * stack.blocks()[0].reader.scale + (0 if bias is None else bias)
        seen = torch.ones_like(s, dtype=torch.bool) if mask is None else mask.expand_as(s)
        later = torch.ones(s.shape[-2:], dtype=torch.bool).triu(s.shape[-1] - s.shape[-2] + 1)
        scores.append((s, seen & ~later if causal else seen))
    return scores


def by_definition(stack, real: Tensor, *given, changed=lambda s: s, **beside) -> Tensor:
    """Query by query: the square of the log of the sum of exp of the scores that it sees, a mean over layers."""
    layers = []
    for s, seen in scores_of(stack, *given, **beside):
        squares = [
            torch.stack([changed(x).exp() for x in s[row, head, at][seen[row, head, at]]]).sum().log().square()
            for row, at in real.nonzero().tolist()
            for head in range(s.shape[1])
        ]
        layers.append(torch.stack(squares).mean())
    return WEIGHT * torch.stack(layers).mean()


CASES = {
    "plain": ({}, lambda s: s),
    "shared keys": ({"attn_kv_heads": 1, "attn_num_mem_kv": 2}, lambda s: s),
    "a bias": ({"pos": "alibi", "attn_window": 3}, lambda s: s),
    "clamped": ({"attn_scores": "softclamp", "attn_softclamp_value": 2.0}, lambda s: 2 * (s / 2).tanh()),
    "tied": ({"weight_tie_layers": True}, lambda s: s),
    "latents": ({"attn_dim_latent_kv": 5, "attn_dim_latent_q": 7}, lambda s: s),
}


@pytest.mark.parametrize("case", CASES)
def test_the_loss_and_its_gradients_are_those_of_the_definition(case: str):
    flags, changed = CASES[case]
    stack = built(**flags)
    x = laws.sample(stack, 7).double()
    laws.own_loss(stack, x, by_definition(stack, torch.ones_like(REAL), x, changed=changed))


@pytest.mark.parametrize("flags", [{}, {"attn_scores": "talking_heads learned_sink"}], ids=["plain", "steps"])
def test_padding_counts_for_nothing(flags: dict):
    """Whatever stands where, each row alone weighs by its queries; of no tokens nothing is lost."""
    stack = built(**flags)
    x = laws.sample(stack, 7).double()
    alone = [stack(x[i : i + 1, :n], return_auxiliary_loss=True)[-1] for i, n in enumerate((4, 3, 2))]
    expected = sum(n * loss for n, loss in zip((4, 3, 2), alone, strict=True)) / 9
    for shift in (0, 3):
        padded = stack(x.roll(shift, 1), REAL.roll(shift, 1), return_auxiliary_loss=True)
        laws.close(padded[-1], expected, "padded")
    if not flags:
        laws.close(expected, by_definition(stack, REAL, x, REAL), "by definition")
    assert stack(x, torch.zeros_like(REAL), return_auxiliary_loss=True)[-1] == 0


def test_it_is_the_same_cut_into_steps_and_of_hidden_keys():
    stack = built()
    x = laws.sample(stack, 7).double()
    whole = stack(x, return_auxiliary_loss=True)[-1]
    _, state, first = stack.step(x[:, :3], return_auxiliary_loss=True)
    _, _, last = stack.step(x[:, 3:], state, return_auxiliary_loss=True)
    laws.close((3 * first + 4 * last) / 7, whole, "cut")
    # A query that sees nothing has no scores; the others have those of what they see.
    seen = torch.rand(3, 1, 7, 7) < 0.5
    seen[:, :, 2] = False
    encoder = built(Encoder)
    real = torch.ones_like(REAL)
    real[:, 2] = False
    loss = encoder(x, attn_mask=seen, return_auxiliary_loss=True)[-1]
    laws.close(loss, by_definition(encoder, real, x, attn_mask=seen), "hidden")


def test_a_context_and_trainers():
    stack = built(layers="cross_attn ff")
    x, context = laws.sample(stack, 7).double(), torch.randn(3, 5, 10).double()
    loss = stack(x, context=context, return_auxiliary_loss=True)[-1]
    laws.close(loss, by_definition(stack, torch.ones_like(REAL), x, context=context), "of a context")
    net = TransformerWrapper(num_tokens=13, max_seq_len=17, attn_layers=built()).double()
    trainer, ids = AutoregressiveWrapper(net), torch.randint(13, (3, 8))
    own = net(ids[:, :-1], return_auxiliary_loss=True)[-1]
    laws.close(trainer.train()(ids), trainer.eval()(ids) + own, "trained")


REFUSED = {
    r"attn_z_loss=0.3 needs the scores, which attn_flash=True never makes: leave one out": {"attn_flash": True},
    r"attn_z_loss=0.3 is of a softmax, but the weights are of attn_weight_fn='sigmoid'": {"attn_weight_fn": "sigmoid"},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_has_no_scores_of_a_softmax(said: str):
    with pytest.raises(ValueError, match=said):
        built(**REFUSED[said])


def test_where_it_would_be_lost():
    net = TransformerWrapper(num_tokens=13, max_seq_len=17, attn_layers=built())
    with pytest.raises(ValueError, match=r"attn_z_loss=0.3 gives a loss of a call, and a segment with its memory"):
        RecurrentMemoryWrapper(net, num_memory_tokens=2, segment_len=3)
    sides = {f"{side}_{name}": n for side in ("enc", "dec") for name, n in {"num_tokens": 13, "depth": 1}.items()}
    sides |= {"dim": 10, "enc_max_seq_len": 8, "dec_max_seq_len": 8}
    with pytest.raises(ValueError, match=r"attn_z_loss=0.3 \(of the encoder\) would be lost"):
        XTransformer(**sides, enc_attn_z_loss=WEIGHT)
