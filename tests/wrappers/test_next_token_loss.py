"""The loss of telling each next token: which count, and what is left out."""

import pytest
import torch
from tiny_lm import TinyLM

from xflash.wrappers.autoregressive import AutoregressiveWrapper

B, N = 3, 5


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(17)


def row_loss(model, row):
    """Sum and number of the cross-entropies of one row without padding."""
    logits = model.net(row[None, :-1])[0]
    return -logits.log_softmax(-1)[range(len(row) - 1), row[1:]].sum(), len(row) - 1


def test_loss_is_the_mean_over_all_next_tokens(model, prompts):
    total, count = (sum(part) for part in zip(*(row_loss(model, row) for row in prompts), strict=True))
    torch.testing.assert_close(model(prompts), total / count)
    assert model.net.calls[-1] == ("forward", N - 1, [])


@pytest.mark.parametrize("kind", ["right", "left", "holes"])
def test_loss_with_padding_is_that_of_the_rows_alone(model, kind):
    n, lens = 13, [13, 7, 2, 1, 0]
    x, mask = torch.full((5, n), -100), torch.zeros(5, n, dtype=torch.bool)
    parts = []
    for i, length in enumerate(lens):
        anywhere = torch.randperm(n)[:length].sort().values
        places = {"right": torch.arange(length), "left": torch.arange(n - length, n), "holes": anywhere}[kind]
        row = torch.randint(0, 11, (length,))
        x[i, places], mask[i, places] = row, True
        if length > 1:
            parts.append(row_loss(model, row))
    total, count = (sum(part) for part in zip(*parts, strict=True))
    torch.testing.assert_close(model(x, mask), total / count)
    torch.testing.assert_close(model(x, mask.long()), total / count)
    if kind == "right":
        torch.testing.assert_close(model(x, lens=torch.tensor(lens)), total / count)
        torch.testing.assert_close(model(x, lens=lens), total / count)
    x[~mask] = torch.randint(-100, 11, (int((~mask).sum()),))
    torch.testing.assert_close(model(x, mask), total / count)


def test_mask_and_lens_both_count(model, prompts):
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[:, 0] = False
    torch.testing.assert_close(model(prompts, mask, lens=[4, 4, 4]), model(prompts[:, 1:4]))


def test_ignore_index_is_no_target_and_is_read_as_pad_value(prompts):
    model = AutoregressiveWrapper(TinyLM().double(), ignore_index=-3, pad_value=7).eval()
    prompts[0, 2] = -3
    filled = prompts.masked_fill(prompts == -3, 7)
    log_probs = model.net(filled[:, :-1]).log_softmax(-1)
    losses = -log_probs.gather(-1, filled[:, 1:, None])[..., 0]
    losses[0, 1] = 0
    torch.testing.assert_close(model(prompts), losses.sum() / (B * (N - 1) - 1))


def test_labels_stand_where_their_token_stands(model, prompts):
    labels = prompts.clone()
    labels[:, :3] = -100
    log_probs = model.net(prompts[:, :-1]).log_softmax(-1)
    expected = -log_probs.gather(-1, prompts[:, 1:, None])[:, 2:].mean()
    torch.testing.assert_close(model(prompts, labels=labels), expected)


def test_documents_don_t_predict_each_other(model):
    class Packed(TinyLM):
        def forward(self, ids, mask=None, doc_ids=None):
            assert doc_ids.shape == ids.shape
            return torch.cat((super().forward(ids[:, :3]), super().forward(ids[:, 3:])), 1)

    packed = Packed().double().eval()
    packed.load_state_dict(model.net.state_dict())
    x = torch.randint(0, 11, (2, 8))
    docs = torch.tensor([[4] * 3 + [6] * 5] * 2)
    first, second = model(x[:, :3]), model(x[:, 3:])
    torch.testing.assert_close(AutoregressiveWrapper(packed)(x, doc_ids=docs), (2 * first + 4 * second) / 6)


def test_loss_without_targets_is_zero_and_differentiable(model, prompts):
    loss = model(prompts, torch.zeros(B, N, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_return_outputs_gives_the_logits_too(model, prompts):
    loss, logits = model(prompts, return_outputs=True)
    assert torch.equal(loss, model(prompts))
    assert torch.equal(logits, model.net(prompts[:, :-1]))


def test_kwargs_of_the_loss_reach_the_net(model, prompts):
    context = torch.randn(B, 7, dtype=torch.double)
    assert model(prompts, context=context) != model(prompts)
    assert model.net.calls[-2] == ("forward", N - 1, ["context"])
