"""Samples of ops that write to, add to or read from positions given by data."""

from __future__ import annotations

import torch
from rule_tensors import case, flags, noisy, whole
from rule_tensors import numbers as n

ROWS = torch.tensor([2, 0])  # without repetition: the order of writes to one place is not defined
INDEX_PUT = ("index_put.default", "index_put_.default", "_unsafe_index_put.default")
SCATTER = ("scatter", "scatter_")
U = ("", "_")

INDEXED = (
    *(
        case(f"{op}.Tensor", *args, opens=opens)
        for op in ("index", "_unsafe_index")
        for args, opens in (
            ((n(3, 4), [None, whole(5, below=4)]), 1),
            ((n(3, 4), [whole(5, below=3)]), 1),
            ((n(2, 3, 4), [whole(5, 1, below=2), whole(6, below=3)]), 1),
            ((n(2, 3, 4, 5), [None, whole(6, below=3), whole(6, below=4)]), 2),
            ((n(2, 3, 4, 5), [whole(6, below=2), None, whole(6, below=4)]), 2),
        )
    ),
    case("index.Tensor", n(3, 4), [flags(3)], opens=1),
    case("index.Tensor", n(3, 4), [flags(3, 4)], opens=0),
    case("index.Tensor", n(2, 3, 4), [None, flags(3)], opens=2),
    case("index.Tensor", n(2, 3, 4), [flags(2, 3)], opens=1),
    case("index.Tensor", n(4, 4, 4, 4), [None, flags(4, 4)], opens=2),
    *(
        case(op, *args, opens=opens)
        for op in INDEX_PUT
        for args, opens in (
            ((n(3, 4), [ROWS], n(2, 4)), 1),
            ((n(3, 4), [ROWS], n(4)), 1),
            ((n(3, 4), [ROWS], n(2, 1), True), 1),
            ((n(4, 4), [None, ROWS], n(4, 2)), 1),
            ((n(2, 3, 4, 5), [ROWS[:, None] // 2, None, ROWS], n(2, 2, 3, 5)), 2),
            ((n(2, 3, 4), [torch.tensor([[True, False, True], [False, True, False]])], n(3, 4)), 1),
            ((n(2, 3, 4), [None, torch.tensor([True, False, True])], n(2, 2, 4)), 2),
            ((n(2, 3, 4), [flags(2, 3)], n()), 1),
            ((n(3, 4), [ROWS, ROWS], n(2)), 0),
        )
    ),
)

SLICES = (
    *(
        case(op, n(3, 4), dim, index, source, *more, opens=1)
        for u in U
        for op, more in (
            (f"index_add{u}.default", ()),
            (f"index_copy{u}.default", ()),
            (f"index_reduce{u}.default", ("amax",)),
        )
        for dim, index, source in ((0, ROWS, n(2, 4)), (-1, ROWS, n(3, 2)))
    ),
    *(case(f"index_add{u}.default", n(4, 4), 0, torch.arange(4), n(4, 4), alpha=2, opens=1) for u in U),
    *(case(f"index_fill{u}.int_Scalar", n(3, 4), 1, ROWS, 0.5, opens=1) for u in U),
    *(case(f"index_fill{u}.int_Tensor", n(3, 4), 1, ROWS, n(), opens=1) for u in U),
    case("select_scatter.default", n(3, 4), n(3), 1, 2, opens=1),
    case("select_scatter.default", n(4, 4), n(4), 0, 2, opens=1),
    case("slice_scatter.default", n(3, 4), n(3, 2), 1, 1, 3, opens=1),
    case("slice_scatter.default", n(4, 4), n(2, 4), 0, 0, 4, 2, opens=1),
)

EACH = torch.tensor([[2, 0], [0, 1], [3, 2]])  # [3, 2], below 4, no row twice the same
SHORT = EACH[:2]
ELEMENTS = (
    case("gather.default", n(3, 4), 1, whole(3, 2, below=4), opens=1),
    case("gather.default", n(3, 4), 1, whole(2, 2, below=4), opens=0),
    case("gather.default", n(3, 4, 5), 0, whole(2, 4, 5, below=3), opens=2),
    case("gather.default", n(4, 4), -1, whole(4, 4, below=4), opens=1),
    case("take_along_dim.default", n(3, 4), whole(3, 2, below=4), 1, opens=1),
    case("take_along_dim.default", n(3, 4, 5), whole(3, 2, 1, below=4), 1, opens=2),
    case("take_along_dim.default", n(3, 4), whole(3, below=4), opens=None),
    *(case(f"{op}.src", n(3, 4), 1, EACH, n(3, 2), opens=1) for op in SCATTER),
    *(case(f"{op}.src", n(3, 4), 1, SHORT, n(3, 2), opens=0) for op in SCATTER),
    *(case(f"{op}.src", n(3, 4), 1, EACH, n(3, 5), opens=1) for op in SCATTER),
    *(case(f"{op}.src", n(4, 4), 0, torch.arange(4).expand(4, 4).T, n(4, 4), opens=1) for op in SCATTER),
    *(case(f"{op}.value", n(3, 4), 1, EACH, 0.5, opens=1) for op in SCATTER),
    *(case(f"{op}.reduce", n(3, 4), 1, EACH, n(3, 2), reduce="add", opens=1) for op in SCATTER),
    *(case(f"{op}.value_reduce", n(3, 4), 1, EACH, 0.5, reduce="multiply", opens=1) for op in SCATTER),
    *(case(f"scatter_add{u}.default", n(3, 4), 1, whole(3, 2, below=4), n(3, 2), opens=1) for u in U),
    *(case(f"scatter_add{u}.default", n(4, 3), 0, whole(2, 3, below=4), n(2, 3), opens=1) for u in U),
    *(case(f"scatter_reduce{u}.two", n(3, 4), 1, whole(3, 2, below=4), n(3, 2), "amax", opens=1) for u in U),
)

MASK = torch.tensor([[[True], [False], [True]], [[False], [True], [False]]])
MASKED = (
    *(case(f"masked_scatter{u}.default", n(2, 3, 4), MASK, n(3, 4), opens=1) for u in U),
    *(case(f"masked_scatter{u}.default", n(2, 3, 4), MASK, n(5, 4), opens=1) for u in U),
    *(case(f"masked_scatter{u}.default", n(2, 3, 4), MASK, n(12), opens=0) for u in U),
    *(case(f"masked_scatter{u}.default", n(3, 4), flags(3, 4), n(3, 4), opens=0) for u in U),
    case("where.default", flags(3, 4), opens=0),
    case("nonzero.default", flags(3, 4), opens=0),
    case("nonzero_numpy.default", flags(3, 4), opens=0),
    case("masked_select.default", n(3, 4), flags(3, 4), opens=0),
)

COUNTED = (
    case("histc.default", n(12), 4, 0, 1, opens=0),
    case("bincount.default", whole(12, below=5), None, 5, opens=0),
    noisy("multinomial.default", n(3, 4), 2, opens=0),
    case("_unique2.default", whole(12, below=5), opens=0),
    case("unique_consecutive.default", whole(12, below=5), opens=0),
    case("unique_dim.default", whole(4, 3, below=2), 0, opens=0),
    case("repeat_interleave.Tensor", whole(4, below=3), opens=0),
    case("bucketize.Tensor", n(3, 4), torch.linspace(0, 1, 6), opens=2),
    case("isin.Tensor_Tensor", whole(3, 4, below=9), whole(5, below=9), opens=2),
    case("isin.Tensor_Scalar", whole(3, 4, below=9), 3, opens=2),
    case("searchsorted.Tensor", torch.linspace(0, 1, 6).double(), n(3, 4), opens=2),
    case("searchsorted.Tensor", n(3, 6).sort(-1)[0], n(3, 4), opens=2),
    case("embedding_bag.default", n(7, 4), whole(6, below=7), torch.tensor([0, 2, 3]), opens=1),
    case("embedding_bag.default", n(7, 4), whole(6, below=7), torch.tensor([0, 2, 3]), False, 1, opens=1),
    case("embedding_bag.default", n(7, 4), whole(6, below=7), torch.tensor([0, 2, 3]), False, 2, opens=0),
    case(
        "embedding_bag.padding_idx",
        n(4, 4),
        whole(4, below=4),
        whole(1, below=1),
        False,
        0,
        False,
        None,
        False,
        1,
        opens=1,
    ),
)

SCATTERING = (*INDEXED, *SLICES, *ELEMENTS, *MASKED, *COUNTED)
