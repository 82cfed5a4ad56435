"""Weight functions of one's own, and those that draw by chance."""

import laws
import pytest
import torch
from cases import build

import xflash
from xflash import WeightFn, weight_fns


def squares(s):
    return s.square() / 9


def test_a_function_of_ones_own(tmp_path):
    """It is given -inf where nothing is seen, and gives those keys no weight whatever it makes of that."""
    stack = build("attn cross_attn block_attn", causal=True, attn_weight_fn=squares, block_attn_weight_fn=squares)
    assert stack.blocks()[1].config.weight_fn is squares
    laws.causal(laws.live(stack))
    laws.chunk(stack, grads=(False,))
    laws.padding(stack)
    x = laws.sample(stack, 7).requires_grad_()
    laws.run(stack, x).sum().backward()
    assert x.grad.isfinite().all()
    with pytest.raises(TypeError, match="'attn_weight_fn' keeps this module from having a config: <function squares"):
        stack.to_config()
    with pytest.raises(TypeError, match="'attn_weight_fn' keeps this module"):
        stack.save(tmp_path)


@pytest.fixture
def own():
    before = dict(weight_fns._parts)

    @weight_fns.register("halves")
    class Halves(WeightFn):
        def forward(self, s):
            return s.softmax(-1) / 2

    yield Halves
    weight_fns._parts = before


def test_one_that_is_registered_is_saved_by_its_name(own):
    stack = build("attn", causal=True, attn_weight_fn=own)
    assert stack.to_config()["attn_weight_fn"] == "halves"
    same = xflash.from_config(stack.to_config())
    assert type(same.blocks()[0].reader.weigh) is own


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="attn_weight_fn must be a text or a function, not 3"):
        build("attn", attn_weight_fn=3)


@pytest.mark.parametrize("hard", [True, False])
def test_keys_are_drawn_by_their_weights_while_training(hard):
    fn = weight_fns["gumbel"](weight_fns["gumbel"].Config(temperature=0.5, hard=hard))
    s = torch.tensor([0.3, -1.0, 1.2, -torch.inf], dtype=torch.float64).requires_grad_()
    drawn = fn(s.expand(4000, 4))
    first = torch.nn.functional.one_hot(drawn.argmax(-1), 4).double()
    torch.testing.assert_close(first.mean(0), s.softmax(-1), rtol=0, atol=0.03)
    assert torch.allclose(drawn, first) is hard
    drawn[:, 2].sum().backward()
    assert s.grad[2] > 0 > s.grad[0] and s.grad.isfinite().all()
    assert torch.equal(fn.eval()(s), s.softmax(-1))
