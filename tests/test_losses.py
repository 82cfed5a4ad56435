import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xflash.losses import check_targets, next_token_loss, next_tokens

rows = st.integers(2, 11).flatmap(
    lambda n: st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 2)), min_size=n, max_size=n)
)


def slow_targets(row, ignore):
    """For each place but the last: the label of the next real place of the same document."""
    targets = []
    for i, (_, real, doc) in enumerate(row[:-1]):
        later = [(label, its_doc) for label, its_real, its_doc in row[i + 1 :] if its_real]
        targets.append(later[0][0] if real and later and later[0][1] == doc else ignore)
    return targets


@settings(deadline=None)
@given(rows)
def test_targets_are_the_next_real_tokens(row):
    labels, mask, docs = (torch.tensor([column]) for column in zip(*row, strict=True))
    assert next_tokens(labels, mask, docs, -7).tolist() == [slow_targets(row, -7)]
    alone = [(label, real, 0) for label, real, _ in row]
    assert next_tokens(labels, mask, None, -7).tolist() == [slow_targets(alone, -7)]
    unmasked = [(label, True, doc) for label, _, doc in row]
    assert next_tokens(labels, None, docs, -7).tolist() == [slow_targets(unmasked, -7)]


def test_targets_by_hand():
    labels = torch.tensor([[5, 3, 8, 2, 9]])
    mask = torch.tensor([[0, 1, 0, 1, 1]]).bool()
    assert next_tokens(labels).tolist() == [[3, 8, 2, 9]]
    assert next_tokens(labels, mask).tolist() == [[-100, 2, -100, 9]]


def test_loss_is_the_mean_over_targets():
    logits, targets = torch.randn(3, 5, 7, dtype=torch.double), torch.randint(0, 7, (3, 5))
    targets[0, :2], targets[2] = -100, -100
    picked = torch.stack([-logits[i, j].log_softmax(-1)[targets[i, j]] for i, j in (targets != -100).nonzero()])
    assert len(picked) == 8
    torch.testing.assert_close(next_token_loss(logits, targets), picked.mean())


def test_loss_without_targets_is_zero_with_a_gradient():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = next_token_loss(logits, torch.full((2, 3), -100))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(2, 3, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_of_half_logits_is_summed_in_float32(dtype):
    logits, targets = torch.randn(7, 1009, 13).to(dtype), torch.randint(0, 13, (7, 1009))
    loss = next_token_loss(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), next_token_loss(logits.double(), targets), rtol=1e-5, atol=0)


def test_a_target_outside_the_vocabulary_is_refused():
    check_targets(torch.tensor([[-100, 0, 6]]), -100, 7)
    with pytest.raises(ValueError, match=r"the target 7 is not in the vocabulary of 7 tokens \(0 to 6\)"):
        check_targets(torch.tensor([[-100, 0, 7]]), -100, 7)
    with pytest.raises(ValueError, match="the target -1 is not in the vocabulary"):
        check_targets(torch.tensor([[-100, 0, -1]]), -100, 7)


def test_targets_and_loss_compile_for_any_length():
    def both(logits, labels, mask):
        return next_token_loss(logits, next_tokens(labels, mask))

    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="eager")
    for n in (5, 7, 11, 13):
        logits, labels, mask = torch.randn(3, n - 1, 17), torch.randint(0, 17, (3, n)), torch.rand(3, n) < 0.7
        torch.testing.assert_close(compiled(logits, labels, mask), both(logits, labels, mask))
