"""What known models have in front of a stack and behind it: against a few lines that say what each flag means."""

import pytest
import torch
import torch.nn.functional as F

from xflash import AutoregressiveWrapper, Decoder, TransformerWrapper

V, N = 31, 11


def model(**flags):
    torch.manual_seed(3)
    stack = Decoder(dim=22, depth=1, heads=2, attn_dim_head=6, layers="attn ff")
    made = TransformerWrapper(num_tokens=V, max_seq_len=13, attn_layers=stack, **flags).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def seen(made, x):
    """What the stack reads."""
    found = []
    handle = made.attn_layers.register_forward_pre_hook(lambda module, given: found.append(given[0]))
    made(x)
    handle.remove()
    return found[0]


X = torch.randint(V, (3, N), generator=torch.Generator().manual_seed(1))


def close(a, b):
    assert (a - b).abs().max() < 1e-12


def test_embeddings_are_scaled_and_positions_begin_behind_others():
    made = model(emb_scale=4.5, pos_emb_offset=2)
    positions = made.embedding.pos_emb.weight
    assert positions.shape == (15, 22) and made.length_limit == 13
    close(seen(made, X), made.embedding.token_emb.weight[X] * 4.5 + positions[2 : 2 + N])


def test_embeddings_of_another_width():
    """OPT-350m: positions behind the map to the stack's width, and a tied head behind a map back."""
    made = model(emb_dim=5, emb_proj_bias=False, pos_emb_at_dim=True, tie_embedding=True)
    embedding, table = made.embedding, made.embedding.token_emb.weight
    assert table.shape == (V, 5) and embedding.project_emb.bias is None
    close(seen(made, X), table[X] @ embedding.project_emb.weight.T + embedding.pos_emb.weight[:N])
    logits = made(X, return_embeddings=True) @ made.project_out.weight.T @ table.T
    close(made(X), logits)
    loss = AutoregressiveWrapper(made, loss_chunk=4)(X)
    close(loss, F.cross_entropy(logits[:, :-1].flatten(0, 1), X[:, 1:].flatten()))
    first, state = made.step(X[:, :4])
    close(torch.cat((first, made.step(X[:, 4:], state)[0]), 1), logits)


def test_a_projection_of_embeddings_has_a_bias_and_positions_are_as_wide_as_they():
    made = model(emb_dim=5, tie_embedding=True)
    embedding = made.embedding
    plain = embedding.token_emb.weight[X] + embedding.pos_emb.weight[:N]
    close(seen(made, X), plain @ embedding.project_emb.weight.T + embedding.project_emb.bias)


@pytest.mark.parametrize("bias", [False, True])
def test_norm_behind_the_embeddings(bias):
    made = model(post_emb_norm=True, post_emb_norm_eps=1e-2, post_emb_norm_bias=bias)
    norm, embedding = made.embedding.post_emb_norm, made.embedding
    plain = embedding.token_emb.weight[X] + embedding.pos_emb.weight[:N]
    close(seen(made, X), F.layer_norm(plain, (22,), norm.gain, norm.bias if bias else None, 1e-2))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("head", [{}, {"tie_embedding": True, "logits_bias": True, "tie_embedding_scale": 0.7}])
def test_head(bias, head):
    made = model(head_transform="gelu", head_transform_eps=1e-2, head_transform_bias=bias, logits_softclamp=1.5, **head)
    dense, norm = made.transform.dense, made.transform.norm
    y = made(X, return_embeddings=True)
    y = F.gelu(y @ dense.weight.T + (dense.bias if bias else 0))
    y = F.layer_norm(y, (22,), norm.gain, norm.bias, 1e-2)
    plain = 0.7 * y @ made.embedding.token_emb.weight.T + made.tied_bias if head else y @ made.to_logits.weight.T
    close(made(X), 1.5 * torch.tanh(plain / 1.5))


def test_an_activation_that_there_is_not():
    with pytest.raises(ValueError, match=r"head_transform has an unknown activation 'gelo'; did you mean 'gelu'\?"):
        model(head_transform="gelo")
