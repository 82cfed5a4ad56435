"""The join `orthogonal`: what joins is orthogonal to the stream."""

import laws
import pytest
import torch

from xflash import Site
from xflash.layers.joins.orthogonal import Orthogonal


def test_only_what_is_orthogonal_joins():
    peer = pytest.importorskip("x_transformers.x_transformers").OrthogonalResidualUpdate(13)
    x, update = torch.randn(2, 3, 5, 13, dtype=torch.float64)
    x[0, 0] = 0
    join = Orthogonal(Orthogonal.Config(eps=1e-30), Site(13))
    y = join(x, update, None)
    laws.close(((y - x) * x).sum(-1), torch.zeros(3, 5).double(), "orthogonal")
    laws.close(y[0, 0], update[0, 0], "a stream of zeros")
    # Theirs projects whole rows, which looks ahead: alike where a row is one token.
    theirs = peer(update.flatten(0, 1)[:, None], x.flatten(0, 1)[:, None])
    laws.close(y.flatten(0, 1)[:, None], theirs, "x-transformers")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_are_summed_in_float32(dtype):
    """Their squares are beyond what half precision can hold."""
    x, update = 300 * torch.randn(2, 2, 3, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    join = Orthogonal(Orthogonal.Config(), Site(64))
    y = join(x, update, None)
    assert y.dtype == dtype
    torch.testing.assert_close(y, join(x.double(), update.double(), None).to(dtype))
