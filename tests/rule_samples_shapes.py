"""Samples of ops that move, split, join or stretch dimensions."""

from __future__ import annotations

import torch
from rule_tensors import case
from rule_tensors import numbers as n

NOTHING = torch.zeros(0, dtype=torch.float64)

VIEWS = tuple(
    case(f"{op}.default", tensor, size, opens=opens)
    for op in ("view", "reshape", "_unsafe_view")
    for tensor, size, opens in (
        (n(6, 4), [2, 3, 4], 3),
        (n(2, 3, 4), [6, 4], 3),
        (n(2, 3, 4), [2, -1], 3),
        (n(24), [2, 3, 4], 3),
        (n(2, 3, 4), [24], 3),
        (n(4, 6), [2, 12], 3),
        (n(6, 4), [3, 8], 3),
        (n(6, 4), [2, 12], 3),
        (n(3, 4), [3, 1, 4], 2),
        (n(3, 1, 4), [1, 3, 4, 1], 2),
        (n(4, 4), [4, 2, 2], 3),
        (n(4, 4), [2, 2, 2, 2], 4),
        (n(4, 6), [3, 8], 0),
        (n(4, 6, 5), [3, 8, 5], 1),
        (n(), [1], 0),
        (n(1, 1), [], 0),
    )
)

FLATTENED = (
    case("flatten.using_ints", n(2, 3, 4), opens=3),
    case("flatten.using_ints", n(2, 3, 4, 5), 1, -2, opens=4),
    case("flatten.using_ints", n(3, 4), 1, opens=2),
    case("unflatten.int", n(2, 12), 1, [3, 4], opens=3),
    case("unflatten.int", n(12, 2), -2, [3, -1], opens=3),
    case("unflatten.int", n(2, 8), -1, [2, 1, 4], opens=3),
)

MOVED = (
    case("permute.default", n(2, 3, 4), [2, 0, 1], opens=3),
    case("permute.default", n(3, 3, 3), [-1, 0, 1], opens=3),
    *(case(f"{op}", n(2, 3, 4), 0, -1, opens=3) for op in ("transpose.int", "swapaxes.default", "swapdims.default")),
    *(case(f"{op}", n(4, 4), -2, 1, opens=2) for op in ("transpose.int", "swapaxes.default", "swapdims.default")),
    *(case(f"{op}.default", n(3, 4), opens=2) for op in ("t", "numpy_T", "mT", "adjoint")),
    *(case(f"{op}.default", n(4, 4), opens=2) for op in ("t", "numpy_T", "mT", "adjoint")),
    *(case(f"{op}.default", n(2, 3, 4), opens=3) for op in ("mT", "adjoint")),
    case("t.default", n(3), opens=1),
    case("movedim.int", n(2, 3, 4), 0, 2, opens=3),
    case("movedim.int", n(3, 3, 3), -1, 0, opens=3),
    case("movedim.intlist", n(2, 3, 4, 5), [0, 1], [3, 0], opens=4),
    case("movedim.intlist", n(2, 3, 4, 5), [-1, 0], [0, -1], opens=4),
    case("unsqueeze.default", n(3, 4), 0, opens=2),
    case("unsqueeze.default", n(3, 4), 1, opens=2),
    case("unsqueeze.default", n(3, 4), -1, opens=2),
    case("squeeze.default", n(3, 1, 4, 1), opens=2, least=2),
    case("squeeze.dim", n(3, 1, 4), 1, opens=2),
    case("squeeze.dim", n(3, 1, 4), -1, opens=2, least=2),
    case("squeeze.dims", n(3, 1, 4, 1), [1, -1], opens=2),
    case("squeeze.dims", n(3, 1, 4, 1), [0, 1], opens=2, least=2),
)

STRETCHED = (
    *(
        case(f"{op}.default", tensor, size, opens=opens)
        for op in ("expand", "broadcast_to")
        for tensor, size, opens in (
            (n(3, 1), [3, 4], 2),
            (n(4), [2, 3, 4], 3),
            (n(3, 1, 4), [-1, 5, -1], 3),
            (n(3, 4), [3, 4], 2),
            (n(1), [4, 4], 2),
        )
    ),
    case("expand_as.default", n(3, 1), n(3, 4), opens=2),
    case("expand_as.default", n(4), n(2, 3, 4), opens=3),
    case("expand_as.default", n(4, 4), n(4, 4), opens=2),
    case("view_as.default", n(6, 4), n(2, 3, 4), opens=3),
    case("view_as.default", n(4, 4), n(4, 4), opens=2),
    case("reshape_as.default", n(2, 3, 4), n(6, 4), opens=3),
    *(
        case(f"{op}.default", tensor, counts, opens=opens)
        for op in ("repeat", "tile")
        for tensor, counts, opens in (
            (n(3, 4), [2, 1], 3),
            (n(3, 4), [5, 1, 2], 4),
            (n(2, 2), [2, 2], 4),
            (n(3, 1), [1, 4], 2),
        )
    ),
    case("tile.default", n(3, 4), [2], opens=3),
    case("repeat_interleave.self_int", n(3, 4), 2, 1, opens=3),
    case("repeat_interleave.self_int", n(3, 3), 3, -2, opens=3),
    case("repeat_interleave.self_int", n(3, 4), 2, 1, output_size=8, opens=3),
    case("repeat_interleave.self_int", n(3, 4), 2, opens=None),
)

TWICE = n(3, 4)
JOINED = (
    *(
        case(f"{op}.default", tensors, dim, opens=opens)
        for op in ("cat", "concat", "concatenate")
        for tensors, dim, opens in (
            ([n(3, 4), n(2, 4)], 0, 3),
            ([n(3, 4), n(3, 4)], 1, 3),
            ([n(3, 4), n(3, 1), n(3, 5)], -1, 3),
            ([n(3, 3), n(3, 3)], 0, 3),
            ([TWICE, TWICE], 0, 2),
            ([NOTHING, n(3, 4)], -2, 2),
            ([n(3, 4), n(3, 0)], 1, 2),
        )
    ),
    case("cat.default", [n(3, 4)], 0, opens=2),
    case("stack.default", [n(3, 4), n(3, 4)], 0, opens=2),
    case("stack.default", [n(3, 3), n(3, 3), n(3, 3)], -1, opens=2),
    case("stack.default", [n(3, 4), n(3, 4)], 1, opens=2),
)

CUT = (
    *(
        case(op, tensor, sizes, dim, opens=opens)
        for op in ("split_with_sizes.default", "split.sizes", "unsafe_split_with_sizes.default")
        for tensor, sizes, dim, opens in (
            (n(3, 6), [1, 2, 3], 1, 3),
            (n(6, 4), [3, 3], 0, 3),
            (n(3, 6), [2, 2, 2], -1, 4),
            (n(4, 4), [4], 0, 2),
            (n(3, 6), [0, 2, 4], 1, 3),
        )
    ),
    *(
        case(op, n(3, 6, 4), 2, 1, opens=2)
        for op in (
            "chunk.default",
            "unsafe_chunk.default",
            "split.Tensor",
            "unsafe_split.Tensor",
            "tensor_split.sections",
        )
    ),
    case("tensor_split.indices", n(3, 6), [2, 3], -1, opens=1),
    case("glu.default", n(3, 8), opens=2),
    case("glu.default", n(4, 4), 0, opens=2),
    case("unbind.int", n(3, 4), opens=1),
    case("unbind.int", n(2, 3, 4), -2, opens=2),
    case("slice.Tensor", n(3, 6), 1, 2, 5, opens=3),
    case("slice.Tensor", n(3, 9), 1, 2, 6, opens=4),
    case("slice.Tensor", n(3, 6), -1, 0, 4, opens=3),
    case("slice.Tensor", n(3, 6), 1, 2, 2, opens=3),
    case("slice.Tensor", n(3, 6), 1, -2, None, opens=3),
    case("slice.Tensor", n(3, 6), 1, -2, 2**63 - 1, opens=3),
    case("slice.Tensor", n(3, 6), 1, 1, -1, opens=2),
    case("slice.Tensor", n(3, 6), 1, None, None, opens=2),
    case("slice.Tensor", n(3, 6), 1, 0, 6, opens=2),
    case("slice.Tensor", n(3, 6), 1, 2, 100, opens=3),
    case("slice.Tensor", n(3, 6), 1, 0, None, 2, opens=1),
    case("slice.Tensor", n(4, 4), 0, 1, 3, opens=2),
    case("narrow.default", n(3, 7), 1, 2, 3, opens=4),
    case("narrow.default", n(3, 6), 1, 0, 6, opens=2),
    case("narrow.default", n(3, 6), -1, -4, 2, opens=4),
    case("select.int", n(3, 4), 1, 2, opens=1),
    case("select.int", n(3, 3), -2, -1, opens=1),
)

PADDED = (
    case("constant_pad_nd.default", n(3, 4), [2, 3], opens=4),
    case("constant_pad_nd.default", n(3, 4), [0, 2, 1, 0], 0.5, opens=3),
    case("constant_pad_nd.default", n(3, 4), [-1, 0], opens=1),
    case("pad.default", n(3, 4), [2, 2], opens=4),
    case("pad.default", n(3, 4), [0, 0, 2, 0], "constant", 0.5, opens=3),
    case("pad.default", n(2, 3, 4), [2, 1], "reflect", opens=2),
    case("pad.default", n(2, 3, 4), [2, 1], "circular", opens=2),
    case("pad.default", n(2, 3, 4), [2, 1], "replicate", opens=2),
)

SHUFFLED = (
    case("pixel_shuffle.default", n(2, 12, 3, 5), 2, opens=2),
    case("pixel_shuffle.default", n(4, 3, 3), 2, opens=0),
    case("pixel_unshuffle.default", n(2, 3, 6, 4), 2, opens=2),
    case("channel_shuffle.default", n(2, 6, 3, 4), 2, opens=4),
    case("channel_shuffle.default", n(2, 9, 3), 3, opens=3),
    case("roll.default", n(3, 4), [1], [1], opens=1),
    case("roll.default", n(3, 4), [1, 1], [0, -1], opens=0),
    case("roll.default", n(3, 4), [1], opens=0),
    case("flip.default", n(3, 4), [0], opens=1),
    case("flip.default", n(3, 3), [-1], opens=1),
)

SHAPES = (*VIEWS, *FLATTENED, *MOVED, *STRETCHED, *JOINED, *CUT, *PADDED, *SHUFFLED)
