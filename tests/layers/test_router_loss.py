"""The losses that balance experts, against a loop over tokens: padded, cut, tied, in pieces, recomputed."""

import laws
import pytest
import torch
from torch import Tensor

from xflash import Decoder, Encoder, TransformerWrapper, ViTransformerWrapper

FLAGS = {"dim": 10, "heads": 2, "moe_experts": 5, "moe_dim": 3}
WEIGHTS = {"moe_balance_loss": 0.3, "moe_z_loss": 0.07}
REAL = torch.arange(7) < torch.tensor([4, 3, 2])[:, None]


def built(kind: type = Decoder, **flags):
    torch.manual_seed(5)
    return laws.live(kind(**{"layers": "attn moe", "depth": 2, **FLAGS, **WEIGHTS, **flags})).double()


def by_definition(stack, x: Tensor, mask: Tensor) -> Tensor:
    """Token by token of what each router was given."""
    found, routers = [], [(block, block.router) for block in stack.blocks() if block.weighs()]
    seen: list[tuple] = []
    hooks = [r.register_forward_hook(lambda _, given, out, b=b: seen.append((b, out))) for b, r in routers]
    stack(x)
    for hook in hooks:
        hook.remove()
    for block, scores in seen:
        config = block.config
        scores = scores.unflatten(0, x.shape[:2])[mask]
        shares = scores.softmax(-1) if config.router == "softmax" else scores.sigmoid()
        shares = shares / shares.sum(-1, keepdim=True)
        loads = torch.zeros(config.experts, dtype=x.dtype)
        for token in scores:
            for e in token.argsort(descending=True)[: config.top_k]:
                loads[e] += 1 / (config.top_k * len(scores))
        balance = config.experts * sum(loads[e] * shares[:, e].mean() for e in range(config.experts))
        z = scores.exp().sum(-1).log().square().mean()
        found.append(config.balance_loss * balance + config.z_loss * z)
    return torch.stack(found).mean()


@pytest.mark.parametrize(
    "flags",
    [{}, {"moe_router": "sigmoid", "moe_top_k": 3}, {"weight_tie_layers": True}, {"layers": "attn+moe(experts=3) moe"}],
)
def test_the_loss_and_its_gradients_are_those_of_the_definition(flags: dict):
    stack = built(Encoder, **flags)
    x = laws.sample(stack, 7).double()
    laws.own_loss(stack, x, by_definition(stack, x, torch.ones_like(REAL)))


def test_padding_counts_for_nothing_and_no_tokens_lose_nothing():
    stack = built()
    x = laws.sample(stack, 7).double()
    expected = by_definition(stack, x, REAL)
    for shift in (0, 3):
        mask, tokens = REAL.roll(shift, 1), x.roll(shift, 1)
        laws.close(stack(tokens, mask, return_auxiliary_loss=True)[-1], expected, "padded")
    assert stack(x, torch.zeros_like(REAL), return_auxiliary_loss=True)[-1] == 0


def test_a_call_of_step_gives_the_loss_of_its_tokens_also_in_pieces():
    stack = built(layers="recurrent moe state_read", depth=1, recurrent_num_state_vectors=3, recurrent_block_width=4)
    x = laws.sample(stack, 11).double()
    y, loss = stack(x, return_auxiliary_loss=True)
    laws.close(loss, by_whole_scores(stack, x), "in pieces")
    after, state, whole = stack.step(x, return_auxiliary_loss=True)
    laws.close(whole, loss, "step")
    laws.close(after, y, "output")
    _, state, _ = stack.step(x[:, :5], return_auxiliary_loss=True)
    _, _, hiddens, tail = stack.step(x[:, 5:], state, return_hiddens=True, return_auxiliary_loss=True)
    assert len(hiddens) == len(stack.order) + 2
    assert torch.isfinite(tail)


def by_whole_scores(stack, x: Tensor) -> Tensor:
    """The definition where a router is asked about one piece after the other."""
    (block,) = [b for b in stack.blocks() if b.weighs()]
    seen: list[Tensor] = []
    hook = block.router.register_forward_hook(lambda _, given, out: seen.append(out))
    stack(x)
    hook.remove()
    scores = torch.cat(seen)
    return block.weigh(block.router_sums(scores, scores.topk(block.config.top_k, -1).indices, None))


def test_models_give_it_behind_all_else():
    model = TransformerWrapper(num_tokens=13, max_seq_len=17, attn_layers=built()).double()
    ids = torch.randint(13, (2, 7))
    logits, hiddens, loss = model(ids, return_hiddens=True, return_auxiliary_loss=True)
    embedded = model.embedding(ids)[0]
    laws.close(loss, model.attn_layers(embedded, return_auxiliary_loss=True)[-1], "of the stack")
    laws.close(model.step(ids, return_auxiliary_loss=True)[-1], loss, "step")
    laws.close(model(ids, return_attn=True, return_auxiliary_loss=True)[-1], loss, "beside maps")
    laws.close(model(ids, return_mems=True, return_auxiliary_loss=True)[-1], loss, "beside a memory")
    assert len(hiddens) == 6
    images = ViTransformerWrapper(image_size=6, patch_size=2, num_classes=3, attn_layers=built(Encoder)).double()
    logits, loss = images(torch.randn(2, 3, 6, 6).double(), return_auxiliary_loss=True)
    assert logits.shape == (2, 3)
    assert loss > 0


def test_what_has_no_loss_says_what_would_give_one():
    with pytest.raises(ValueError, match=r"no layer has a loss of a call \(.*moe_balance_loss=0.01.* gives one"):
        built(moe_balance_loss=0.0, moe_z_loss=0.0)(torch.zeros(1, 2, 10).double(), return_auxiliary_loss=True)
    with pytest.raises(TypeError, match="return_auxiliary_loss must be True or False, not 1"):
        built()(torch.zeros(1, 2, 10).double(), return_auxiliary_loss=1)
