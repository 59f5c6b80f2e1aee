"""Samples of ops that pick or order positions, and of copies whose schema does not tell what a sensible call is."""

from __future__ import annotations

import torch
from rule_tensors import case, flags, noisy, whole
from rule_tensors import numbers as n

DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
AREAS = ("trapezoid", "trapz", "cumulative_trapezoid")

PICKED = (
    case("index_select.default", n(3, 4), 1, whole(5, below=4), opens=1),
    case("index_select.default", n(3, 3), -2, whole(3, below=3), opens=1),
    case("one_hot.default", whole(3, 4, below=5), 5, opens=2),
)

ORDERED = (
    *(case(f"{op}.default", n(3, 4), 1, opens=1) for op in ("cumsum", "cumprod", "logcumsumexp")),
    *(case(f"{op}.default", n(4, 4), -2, opens=1) for op in ("cumsum", "cumprod", "logcumsumexp")),
    *(case(f"{op}_.default", n(3, 4), 1, opens=1) for op in ("cumsum", "cumprod")),
    *(case(f"{op}.default", n(3, 4), 1, opens=1) for op in ("cummax", "cummin")),
    case("cummax.default", n(4, 4), 0, opens=1),
    case("diff.default", n(3, 4), opens=1),
    case("diff.default", n(4, 4), 2, 0, opens=1),
    case("diff.default", n(3, 4), 1, 1, n(3, 2), n(3, 1), opens=1),
    *(case(f"{op}.dx", n(3, 4), dim=d, opens=1) for op in AREAS for d in (0, 1)),
    *(case(f"{op}.x", n(3, 4), n(4), opens=1) for op in AREAS),
    *(case(f"{op}.x", n(4, 4), n(4), dim=0, opens=1) for op in AREAS),
    *(case(f"{op}.x", n(2, 3, 4), n(2, 3, 4), dim=1, opens=2) for op in AREAS),
    *(case(f"renorm{u}.default", n(3, 4), 2, d, 1.0, opens=2, values="shape") for u in ("", "_") for d in (0, 1)),
    case("sort.default", n(3, 4), opens=1),
    case("sort.default", n(4, 4), 0, True, opens=1),
    case("sort.stable", n(3, 4), stable=True, dim=0, opens=1),
    case("topk.default", n(3, 4), 2, opens=1),
    case("topk.default", n(4, 4), 4, 0, opens=1),
    case("argsort.default", n(3, 4), opens=1),
    case("argsort.stable", n(4, 4), stable=True, dim=0, opens=1),
    *(case(f"{op}.default", n(2, 4, 4), opens=1) for op in ("tril", "triu")),
    *(case(f"{op}.default", n(3, 4), 1, opens=0) for op in ("tril", "triu")),
    case("argmax.default", whole(3, 4, below=1000), 1, opens=1, values="shape"),
    case("argmin.default", whole(3, 4, below=1000), opens=0, values="shape"),
    case("max.dim", whole(3, 4, below=1000), 1, opens=1, values="shape"),
    case("sum.dim_IntList", whole(3, 4, below=9), [1], opens=2, values="shape"),
    case("sum.dim_IntList", flags(3, 4), [1], opens=2, values="shape"),
    case("mean.dim", n(3, 4), None, opens=2, values="shape"),
    case("amax.default", n(3, 4), [], True, opens=2, values="shape"),
)

ACTIVATED = (
    case("prelu.default", n(2, 3, 4), n(3), opens=3),
    case("prelu.default", n(3, 4), n(1), opens=2),
    case("prelu.default", n(4, 4), n(4), opens=2),
    case("prelu.default", n(4), n(1), opens=1),
    case("where.self", flags(3, 1), n(1, 4), n(2, 1, 1), opens=3),
    case("where.self", flags(), n(3, 1), n(4), opens=2),
    case("mul.Tensor", n(3, 1), n(4), opens=2),
    case("mul.Tensor", n(), n(3, 4), opens=2),
    case("clamp.Tensor", n(2, 3, 4), None, n(3, 1), opens=3),
)

COPIED = (
    noisy("normal_.default", n(3, 4), opens=2),
    *(case(f"clip{u}.default", n(3, 4), 0.2, 0.6, opens=2) for u in ("", "_")),
    case("imag.default", torch.complex(n(3, 4), n(3, 4)), opens=2),
    case("kthvalue.default", n(3, 4), 2, opens=1, values="shape"),
    case("kthvalue.default", n(4, 4), 2, 0, True, opens=1, values="shape"),
    case("mode.default", whole(3, 4, below=3), opens=1, values="shape"),
    case("linalg_matrix_norm.default", n(2, 3, 4), 2, opens=3, values="shape"),
    case("linalg_matrix_norm.default", n(4, 4), 1, [-1, 0], True, opens=2, values="shape"),
    case("linalg_matrix_norm.str_ord", n(2, 3, 4), "fro", opens=3, values="shape"),
    *(case("_safe_softmax.default", n(3, 4), dim, opens=2, values="shape") for dim in (-1, 0)),
    *(case(f"fill{u}.Tensor", n(3, 4), n(), opens=2) for u in ("", "_")),
    *(case(f"clamp{u}.default", n(3, 4), 0.2, 0.6, opens=2) for u in ("", "_")),
    *(noisy(f"bernoulli{u}.Tensor", n(3, 4), n(3, 4), opens=2) for u in ("", "_")),
    *(case(f"{op}{u}.default", n(3, 4), 0.5, False, opens=2) for op in DROPOUTS for u in ("", "_")),
    *(noisy(f"{op}{u}.default", n(3, 4), 0.5, True, opens=2) for op in DROPOUTS for u in ("", "_")),
    case("to.device", n(3, 4), torch.device("cpu"), torch.float32, opens=2),
    case("to.dtype", n(3, 4), torch.float32, opens=2),
    case("to.other", n(3, 4), n(5), opens=3),
    case("to.prim_Device", n(3, 4), torch.device("cpu"), opens=2),
    case("to.prim_dtype", n(3, 4), torch.float32, opens=2),
    case("type_as.default", n(3, 4), n(5), opens=3),
)

INDEXING = (*PICKED, *ORDERED, *ACTIVATED, *COPIED)
