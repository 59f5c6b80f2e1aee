"""Samples of ops that multiply and sum, and of normalisations."""

from __future__ import annotations

from typing import Any

import torch
from rule_law import Sample
from rule_tensors import case, flags, whole
from rule_tensors import numbers as n

SQUARE = n(4, 4)


def masked(op: str, *args: Any, opens: int, **kwargs: Any) -> Sample:
    """A sum of products: what is cut off counts as zero."""
    return case(op, *args, opens=opens, values="masked", **kwargs)


def single(*shape: int) -> torch.Tensor:
    """Small whole numbers as float32, whose sums of products are exact."""
    return whole(*shape, below=3).float()


def mixing(op: str, *args: Any, opens: int, **kwargs: Any) -> Sample:
    """An op whose numbers depend on how many positions there are."""
    return case(op, *args, opens=opens, values="shape", **kwargs)


PRODUCTS = (
    masked("linear.default", n(2, 3, 4), n(5, 4), n(5), opens=4),
    masked("linear.default", n(4), n(5, 4), opens=2),
    masked("linear.default", n(3, 4), n(4), opens=2),
    masked("linear.default", n(4, 4), n(4, 4), n(4), opens=3),
    masked("addmm.default", n(5), n(3, 4), n(4, 5), opens=3),
    masked("addmm.default", n(3, 5), n(3, 4), n(4, 5), beta=0.5, alpha=2, opens=3),
    masked("addmm.default", n(1, 5), n(3, 4), n(4, 5), opens=3),
    masked("addmm.default", n(4), n(4, 4), n(4, 4), opens=3),
    masked("matmul.default", n(3, 4), n(4, 5), opens=3),
    masked("matmul.default", n(2, 3, 4), n(2, 4, 5), opens=4),
    masked("matmul.default", n(6, 1, 3, 4), n(2, 4, 5), opens=5),
    masked("matmul.default", n(4), n(4), opens=1),
    masked("matmul.default", n(2, 3, 4), n(4), opens=3),
    masked("matmul.default", n(4), n(2, 4, 5), opens=3),
    masked("matmul.default", n(4, 4), n(4, 4), opens=3),
    masked("matmul.default", SQUARE, SQUARE, opens=1),
    masked("mm.default", n(3, 4), n(4, 5), opens=3),
    masked("bmm.default", n(2, 3, 4), n(2, 4, 5), opens=4),
    masked("bmm.default", n(3, 3, 3), n(3, 3, 3), opens=4),
    masked("mv.default", n(3, 4), n(4), opens=2),
    masked("dot.default", n(4), n(4), opens=1),
    masked("baddbmm.default", n(2, 3, 5), n(2, 3, 4), n(2, 4, 5), opens=4),
    masked("baddbmm.default", n(3, 5), n(2, 3, 4), n(2, 4, 5), opens=4),
    masked("baddbmm.default", n(2, 1, 5), n(2, 3, 4), n(2, 4, 5), beta=0.5, opens=4),
    masked("outer.default", n(3), n(4), opens=2),
)

RARER = (
    masked("tensordot.default", n(2, 3, 4), n(4, 5), [2], [0], opens=4),
    masked("tensordot.default", n(2, 3, 4), n(3, 5, 4), [1, -1], [0, 2], opens=4),
    masked("tensordot.default", n(3, 3), n(3, 3), [0], [1], opens=3),
    masked("inner.default", n(2, 3, 4), n(5, 4), opens=4),
    masked("inner.default", n(3, 3), n(3, 3), opens=3),
    masked("inner.default", n(), n(3, 4), opens=2),
    masked("vdot.default", n(4), n(4), opens=1),
    masked("linalg_vecdot.default", n(2, 3, 4), n(3, 4), opens=3),
    masked("linalg_vecdot.default", n(3, 3), n(3, 3), dim=0, opens=2),
    masked("addbmm.default", n(3, 5), n(2, 3, 4), n(2, 4, 5), opens=4),
    masked("addbmm.default", n(4), n(4, 4, 4), n(4, 4, 4), opens=4),
    masked("addmv.default", n(3), n(3, 4), n(4), opens=2),
    masked("addmv.default", n(4), n(4, 4), n(4), opens=2),
    masked("addr.default", n(3, 4), n(3), n(4), opens=2),
    masked("addr.default", n(4), n(4), n(4), opens=2),
    masked("bilinear.default", n(2, 3), n(2, 4), n(5, 3, 4), n(5), opens=4),
    masked("bilinear.default", n(2, 6, 4), n(2, 6, 4), n(4, 4, 4), opens=5),
    masked("cdist.default", n(2, 3, 4), n(2, 5, 4), opens=4),
    masked("cdist.default", n(3, 4), n(3, 4), 1.0, opens=3),
    masked("_grouped_mm.default", single(6, 8), single(2, 8, 16), torch.tensor([4, 6]).int(), opens=1),
    masked("_grouped_mm.default", single(6, 16), single(2, 16, 4), torch.tensor([4, 6]).int(), opens=1),
    case("_grouped_mm.default", single(2, 3, 4), single(2, 4, 8), opens=None),
)

FOREIGN = (
    Sample(
        "transformers.grouped_mm_fallback.default",
        (n(6, 4), n(2, 4, 5), torch.tensor([4, 6])),
        opens=2,
        values="masked",
    ),
    Sample(
        "transformers.grouped_mm_fallback.default",
        (n(6, 6), n(3, 6, 6), torch.tensor([0, 4, 6])),
        opens=2,
        values="masked",
    ),
)

QUERY, KEY, VALUE = n(2, 3, 5, 4), n(2, 3, 6, 4), n(2, 3, 6, 7)
SDPA = "scaled_dot_product_attention.default"
ATTENTION = (
    mixing(SDPA, QUERY, KEY, VALUE, opens=6),
    mixing(SDPA, QUERY, KEY, VALUE, n(5, 6), opens=6),
    mixing(SDPA, QUERY, KEY, VALUE, n(2, 1, 5, 6), scale=0.3, opens=6),
    mixing(SDPA, QUERY, KEY, VALUE, flags(2, 1, 1, 6), opens=6),
    mixing(SDPA, QUERY, n(1, 3, 6, 4), n(1, 3, 6, 7), opens=6),
    mixing(SDPA, n(2, 5, 4), n(2, 6, 4), n(2, 6, 7), opens=5),
    mixing(SDPA, n(2, 3, 5, 4), n(2, 3, 5, 4), n(2, 3, 5, 4), is_causal=True, opens=4),
    mixing(SDPA, n(2, 6, 5, 4), n(2, 3, 7, 4), n(2, 3, 7, 4), enable_gqa=True, opens=7),
    mixing(SDPA, n(2, 6, 5, 4), n(2, 1, 7, 4), n(2, 1, 7, 4), enable_gqa=True, opens=6),
    mixing(SDPA, n(2, 3, 5, 4), n(2, 3, 7, 4), n(2, 3, 7, 4), enable_gqa=True, opens=6),
    mixing(SDPA, n(2, 6, 5, 4), n(2, 3, 7, 4), n(2, 3, 7, 4), n(2, 6, 5, 7), enable_gqa=True, opens=7),
)

EINSUM = (
    masked("einsum.default", "bhid,bhjd->bhij", [n(2, 3, 5, 4), n(2, 3, 6, 4)], opens=5),
    masked("einsum.default", "b i, o i -> b o", [n(2, 4), n(5, 4)], opens=3),
    masked("einsum.default", "...ij,...jk->...ik", [n(2, 3, 5, 4), n(3, 4, 6)], opens=5),
    masked("einsum.default", "i...,j...->ij...", [n(2, 3, 4), n(5, 3, 4)], opens=4),
    masked("einsum.default", "...ij->...ji", [n(2, 3, 4)], opens=3),
    masked("einsum.default", "ii->i", [n(4, 4)], opens=1),
    masked("einsum.default", "ij,jk", [n(3, 4), n(4, 5)], opens=3),
    masked("einsum.default", "kj,ik", [n(3, 4), n(5, 3)], opens=3),
    masked("einsum.default", "ij,jk,kl->il", [n(2, 3), n(3, 4), n(4, 5)], opens=4),
    masked("einsum.default", "bn,anm,bm->ba", [n(2, 3), n(5, 3, 4), n(2, 4)], opens=4),
    masked("einsum.default", "ij,ij->ij", [n(3, 1), n(3, 4)], opens=2),
    masked("einsum.default", "ij->", [n(3, 4)], opens=2),
    masked("einsum.default", "ij,jk->ki", [n(4, 4), n(4, 4)], opens=3),
)

CONVOLUTION = (
    masked("conv1d.default", n(2, 4, 9), n(6, 4, 3), n(6), opens=3),
    masked("conv1d.default", n(2, 6, 9), n(4, 3, 3), n(4), [1], [1], [1], 2, opens=4),
    masked("conv1d.default", n(4, 9), n(6, 4, 3), opens=2),
    masked("conv1d.padding", n(2, 4, 9), n(6, 4, 3), n(6), [1], "same", opens=3),
    masked("conv2d.default", n(2, 4, 5, 6), n(3, 4, 3, 2), n(3), opens=3),
    masked("conv2d.default", n(2, 4, 4, 4), n(4, 4, 3, 3), n(4), opens=3),
    masked("conv2d.default", n(4, 5, 6), n(3, 4, 3, 2), n(3), opens=2),
    masked("conv2d.default", n(2, 6, 5, 5), n(8, 3, 3, 3), n(8), [2, 2], [1, 1], [1, 1], 2, opens=4),
    masked("conv2d.default", n(2, 4, 5, 5), n(4, 1, 3, 3), n(4), [1, 1], [1, 1], [1, 1], 4, opens=2),
    masked("conv2d.default", n(2, 4, 5, 5), n(8, 1, 3, 3), None, [1, 1], [0, 0], [2, 2], 4, opens=3),
    masked("conv2d.default", n(2, 6, 5, 5), n(3, 2, 3, 3), n(3), [1, 1], [0, 0], [1, 1], 3, opens=3),
    masked("conv2d.padding", n(2, 6, 5, 5), n(8, 3, 3, 3), n(8), [1, 1], "valid", [1, 1], 2, opens=4),
    masked("conv3d.default", n(2, 4, 3, 4, 5), n(3, 4, 2, 2, 2), n(3), opens=3),
    masked("conv3d.padding", n(2, 4, 3, 4, 5), n(3, 4, 3, 3, 3), n(3), [1, 1, 1], "same", opens=3),
    masked("conv_transpose1d.default", n(2, 4, 5), n(4, 6, 3), n(6), opens=3),
    masked("conv_transpose1d.default", n(4, 5), n(4, 6, 3), n(6), opens=2),
    masked("conv_transpose2d.input", n(2, 4, 5, 4), n(4, 3, 2, 2), n(3), [2, 2], opens=3),
    masked("conv_transpose2d.input", n(2, 6, 5, 4), n(6, 4, 2, 2), n(8), [2, 2], [0, 0], [1, 1], 2, opens=4),
    masked("conv_transpose2d.input", n(2, 6, 5, 4), n(6, 1, 2, 2), n(6), [2, 2], [0, 0], [0, 0], 6, opens=2),
    masked("conv_transpose2d.input", n(2, 6, 5, 4), n(6, 2, 2, 2), n(12), [2, 2], [0, 0], [0, 0], 6, opens=3),
    *(
        masked(f"{op}.default", image, weight, n(6), [1, 1], [0, 0], [1, 1], turned, [0, 0], groups, *more, opens=opens)
        for op, more in (("convolution", ()), ("_convolution", (False, False, False, False)))
        for image, weight, turned, groups, opens in (
            (n(2, 4, 5, 6), n(6, 4, 3, 2), False, 1, 3),
            (n(2, 4, 5, 6), n(6, 2, 3, 2), False, 2, 4),
            (n(2, 4, 5, 4), n(4, 6, 2, 2), True, 1, 3),
            (n(2, 4, 5, 4), n(4, 3, 2, 2), True, 2, 4),
        )
    ),
    masked("conv_transpose3d.input", n(2, 4, 3, 2, 2), n(4, 3, 2, 2, 2), n(3), opens=3),
)

NORM = (
    mixing("layer_norm.default", n(2, 3, 4), [4], n(4), n(4), opens=3),
    mixing("layer_norm.default", n(2, 3, 4), [3, 4], n(3, 4), n(3, 4), opens=3),
    mixing("layer_norm.default", n(2, 4, 4), [4], n(4), opens=3),
    mixing("layer_norm.default", n(2, 3, 4), [4], opens=3),
    mixing("rms_norm.default", n(2, 3, 4), [4], n(4), opens=3),
    mixing("rms_norm.default", n(2, 3, 4), [3, 4], None, 1e-6, opens=3),
    case("batch_norm.default", n(2, 3, 4, 5), n(3), n(3), n(3), n(3), False, 0.1, 1e-5, False, opens=4),
    case("batch_norm.default", n(3, 3), n(3), n(3), n(3), n(3), False, 0.1, 1e-5, False, opens=2),
    mixing("batch_norm.default", n(3, 4), n(4), n(4), n(4), n(4), True, 0.1, 1e-5, False, opens=2, least=2),
    mixing("batch_norm.default", n(3, 4, 5), None, None, None, None, True, 0.1, 1e-5, False, opens=3, least=2),
    mixing("instance_norm.default", n(2, 3, 4), n(3), n(3), None, None, True, 0.1, 1e-5, False, opens=3, least=2),
    mixing("group_norm.default", n(2, 6, 5), 2, n(6), n(6), opens=4, least=2),
    mixing("group_norm.default", n(2, 6, 4, 5), 1, n(6), n(6), opens=4),
    mixing("group_norm.default", n(2, 6, 5), 6, n(6), n(6), opens=3, least=2),
    mixing("group_norm.default", n(2, 6, 5), 3, opens=4, least=2),
    mixing("native_layer_norm.default", n(2, 3, 4), [4], n(4), n(4), 1e-5, opens=3),
    mixing("native_layer_norm.default", n(2, 3, 4), [3, 4], None, None, 1e-5, opens=3),
    mixing("_fused_rms_norm.default", n(2, 3, 4), [4], n(4), 1e-5, opens=3),
    *(mixing(f"{op}.default", n(3, 4), n(3, 1), opens=2) for op in ("_weight_norm", "_weight_norm_interface")),
    *(mixing(f"{op}.default", n(3, 4, 2), n(1, 1, 2), 2, opens=3) for op in ("_weight_norm", "_weight_norm_interface")),
    mixing("_weight_norm.default", n(3, 4), n(), -1, opens=2),
    mixing("cosine_similarity.default", n(3, 4, 5), n(3, 4, 5), opens=3),
    mixing("cosine_similarity.default", n(3, 4), n(1, 4), -1, opens=2),
    mixing("cosine_similarity.default", n(1, 4), n(3, 4), -1, opens=2),
    mixing("cosine_similarity.default", n(3, 4), n(4), -1, opens=2),
    mixing("cosine_similarity.default", n(4, 4), n(4, 4), 0, opens=2),
    mixing("pairwise_distance.default", n(3, 4), n(3, 4), opens=2),
    mixing("pairwise_distance.default", n(3, 4), n(3, 4), 2.0, 1e-6, True, opens=2),
    mixing("pairwise_distance.default", n(3, 4), n(4), opens=2),
)

LOSS = "mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy".split()
LOSS += "binary_cross_entropy_with_logits soft_margin_loss kl_div".split()
LOSSES = (
    *(mixing(f"{op}.default", n(3, 4), n(3, 4), reduction=1, opens=2) for op in LOSS),
    *(case(f"{op}.default", n(3, 4), n(3, 4), reduction=0, opens=2) for op in LOSS),
    case("poisson_nll_loss.default", n(3, 4), n(3, 4), True, False, 1e-8, 0, opens=2),
    mixing("poisson_nll_loss.default", n(3, 4), n(3, 4), True, False, 1e-8, 1, opens=2),
)
CLASSES = (
    mixing("cross_entropy_loss.default", n(3, 4), whole(3, below=4), opens=1),
    mixing("cross_entropy_loss.default", n(3, 4, 5), whole(3, 5, below=4), n(4), 2, 1, 0.1, opens=2),
    case("cross_entropy_loss.default", n(4, 4), whole(4, below=4), None, 0, opens=1),
    case("cross_entropy_loss.default", n(3, 4), n(3, 4), None, 0, opens=1),
    mixing("cross_entropy_loss.default", n(3, 4, 2), n(3, 4, 2), opens=2),
    mixing("cross_entropy_loss.default", n(4), whole(below=4), opens=0),
    mixing("nll_loss_nd.default", n(3, 4, 5), whole(3, 5, below=4), n(4), opens=2),
    case("nll_loss_nd.default", n(3, 4), whole(3, below=4), None, 0, opens=1),
    case("nll_loss.default", n(3, 4), whole(3, below=4), None, 0, opens=1),
    mixing("nll_loss2d.default", n(3, 4, 2, 5), whole(3, 2, 5, below=4), opens=3),
)

LOOKUP = (
    case("embedding.default", n(7, 4), whole(2, 3, below=7), opens=3),
    case("embedding.default", n(4, 4), whole(4, below=4), opens=2),
)

CONTRACTION = (*PRODUCTS, *RARER, *FOREIGN, *ATTENTION, *EINSUM, *CONVOLUTION, *NORM, *LOSSES, *CLASSES, *LOOKUP)
