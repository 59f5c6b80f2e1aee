"""Samples of ops on images and signals, and of the rarer layouts."""

from __future__ import annotations

import torch
from rule_law import Sample
from rule_tensors import case, noisy, whole
from rule_tensors import numbers as n

SAMPLES = torch.rand(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
PLACES = whole(2, 3, 2, 2, below=4)
CORNERS = (torch.arange(8) * 7).view(2, 2, 2).repeat(2, 3, 1, 1, 1)
POOLED = (
    case("fractional_max_pool2d.default", n(2, 3, 6, 5), [2, 2], [3, 3], SAMPLES, opens=2),
    case("fractional_max_pool3d.default", n(2, 2, 5, 5, 5), [2, 2, 2], [3, 3, 3], n(2, 2, 3), opens=2),
    case("max_unpool3d.default", n(2, 3, 2, 2, 2), CORNERS, [4, 4, 4], [2] * 3, [0] * 3, opens=2, values="shape"),
    case("max_unpool2d.default", n(2, 3, 2, 2), PLACES * 2, [4, 4], opens=2, values="shape"),
    case("grid_sampler.default", n(2, 3, 4, 5), n(2, 6, 3, 2), 0, 0, False, opens=2),
    case("grid_sampler_2d.default", n(2, 3, 4, 5), n(2, 6, 3, 2), 0, 0, False, opens=2),
    case("grid_sampler_3d.default", n(2, 3, 4, 5, 2), n(2, 6, 3, 2, 3), 0, 0, False, opens=2),
    case("affine_grid_generator.default", n(2, 2, 3), [2, 3, 4, 5], False, opens=0),
    case("unfold.default", n(3, 8), 1, 3, 2, opens=1),
    case("unfold.default", n(4, 4, 4), 0, 2, 2, opens=2),
    case("im2col.default", n(2, 3, 4, 5), [2, 3], [1, 1], [0, 0], [1, 1], opens=2),
    case("im2col.default", n(3, 4, 5), [2, 2], [1, 1], [1, 1], [2, 2], opens=1),
    case("col2im.default", n(2, 12, 6), [4, 6], [2, 2], [1, 1], [0, 0], [2, 2], opens=2),
    case("col2im.default", n(12, 6), [4, 6], [2, 2], [1, 1], [0, 0], [2, 2], opens=1),
)

ONE = ("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft")
BOTH = ("fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2", "fft_hfft2", "fft_ihfft2")
ALL = ("fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn", "fft_hfftn", "fft_ihfftn")
FOURIER = (
    *(
        case(f"{op}.default", *args, opens=1)
        for op in ONE
        for args in ((n(3, 8),), (n(8, 3), 6, 0), (n(4, 4), None, 0))
    ),
    *(case(f"{op}.default", n(2, 3, 4, 6), opens=2) for op in BOTH),
    *(case(f"{op}.default", n(4, 4, 4), None, [0, 1], opens=1) for op in BOTH),
    *(case(f"{op}.default", n(3, 4), opens=0) for op in ALL),
    *(case(f"{op}.default", n(2, 3, 4), [3, 4], opens=1) for op in ALL),
    *(case(f"{op}.default", n(2, 3, 4), None, [1], opens=2) for op in ALL),
    *(case(f"fft_{op}.default", n(3, 4), [1], opens=1) for op in ("fftshift", "ifftshift")),
    *(case(f"fft_{op}.default", n(3, 4), opens=0) for op in ("fftshift", "ifftshift")),
    case("stft.default", n(2, 12), 4, None, None, n(4), return_complex=True, opens=1),
    case("stft.default", n(12), 4, return_complex=True, opens=0),
    case("stft.center", n(2, 12), 4, 2, 4, n(4), True, return_complex=True, opens=1),
    case("istft.default", torch.complex(n(2, 3, 6), n(2, 3, 6)), 4, 2, 4, torch.ones(4).double(), opens=1),
)

COMPLEX = torch.complex(n(3, 4), n(3, 4))
VIEWS = (
    case("view_as_real.default", COMPLEX, opens=2),
    case("view_as_complex.default", n(3, 4, 2), opens=2),
    case("view_as_complex.default", n(2, 2), opens=1),
    case("real.default", COMPLEX, opens=2),
    case("angle.default", COMPLEX, opens=2),
    case("view.dtype", n(3, 4), torch.int64, opens=2),
    case("view.dtype", n(3, 4), torch.int32, opens=None),
    case("ravel.default", n(3, 4), opens=2),
    case("mH.default", n(2, 3, 4), opens=3),
    case("matrix_H.default", n(4, 4), opens=2),
    *(
        case(f"atleast_{k}d.default", n(*shape), opens=len(shape))
        for k in (1, 2, 3)
        for shape in ((3,), (3, 4), (2, 3, 4))
    ),
    case("channel_shuffle.default", n(2, 6, 3, 4), 2, opens=4),
    case("native_channel_shuffle.default", n(2, 6, 3, 4), 2, opens=4),
)

JOINED = (
    case("hstack.default", [n(3, 4), n(3, 5)], opens=3),
    case("hstack.default", [n(3), n(4)], opens=2),
    case("vstack.default", [n(3, 4), n(2, 4)], opens=3),
    case("vstack.default", [n(4), n(4)], opens=1),
    case("vstack.default", [n(4), n(3, 4)], opens=2),
    case("dstack.default", [n(3, 4, 2), n(3, 4, 3)], opens=4),
    case("dstack.default", [n(3, 4), n(3, 4)], opens=2),
    case("column_stack.default", [n(3), n(3, 4)], opens=2),
    case("block_diag.default", [n(2, 3), n(4, 5)], opens=4),
    case("block_diag.default", [n(4), n(4, 4)], opens=3),
    case("kron.default", n(2, 3), n(4, 5), opens=4),
    case("kron.default", n(3), n(3, 3), opens=3),
    case("meshgrid.default", [n(3), n(4)], opens=2),
    case("meshgrid.indexing", [n(3), n(4), n(2)], indexing="ij", opens=3),
    case("meshgrid.indexing", [n(3), n(3), n(3)], indexing="xy", opens=3),
    case("broadcast_tensors.default", [n(3, 1), n(4)], opens=2),
    case("broadcast_tensors.default", [n(3, 3), n(3)], opens=2),
)

DIAGONALS = (
    case("diagonal_scatter.default", n(4, 4), n(4), opens=1),
    case("diagonal_scatter.default", n(3, 4, 2, 4), n(3, 2, 4), 0, 1, -1, opens=3),
    case("diagonal_scatter.default", n(4, 4), n(3), 1, opens=0),
    case("diagonal_scatter.default", n(2, 3, 4), n(2, 3), 0, 1, 2, opens=1),
    case("diagonal.default", n(4, 4), opens=1),
    case("diagonal.default", n(3, 4, 2, 4), 0, 1, -1, opens=3),
    case("diagonal.default", n(2, 3, 4), 0, 1, 2, opens=1),
    case("diagonal.default", n(4, 4), 1, opens=0),
    case("trace.default", n(4, 4), opens=1, values="masked"),
    case("diag_embed.default", n(3, 4), opens=2),
    case("diag_embed.default", n(4, 4), 0, 0, 2, opens=2),
    case("diag_embed.default", n(3, 4), 1, opens=1),
    *(case("rot90.default", n(2, 3, 4), k, [1, 2], opens=1) for k in (1, 2)),
    case("fliplr.default", n(3, 4), opens=1),
    case("flipud.default", n(3, 4), opens=1),
    case("repeat_interleave.self_Tensor", n(3, 4), whole(4, below=3), 1, opens=1),
    case("repeat_interleave.self_Tensor", n(3, 4), whole(12, below=3), opens=None),
    case("linalg_cross.default", n(2, 4, 3), n(2, 4, 3), opens=2),
    case("linalg_cross.default", n(3, 4), n(3, 1), dim=0, opens=1),
)

POSITIVE = torch.eye(4).double() * 3 + 0.1
BATCHED = torch.stack([POSITIVE, POSITIVE * 2, POSITIVE * 3])
SOLVED = (
    case("linalg_solve.default", POSITIVE, n(4, 2), opens=0),
    case("linalg_solve_triangular.default", POSITIVE, n(4, 2), upper=True, opens=0),
)


def matrix_op(op: str) -> list[Sample]:
    """Three positive definite matrices; what counts them stays open."""
    power = (2,) if "matrix_power" in op else ()
    return [Sample(op, (BATCHED, *power), opens=1)]


WRITTEN_OVER = (
    *(
        case(f"{op}.default", n(3, 4), source, opens=2)
        for op in ("copy_", "copy")
        for source in (n(3, 4), n(4), n(3, 1))
    ),
    *(case(f"{op}.out", n(3, 4), n(3, 4), out=n(3, 4), opens=0) for op in ("div", "mul", "add", "sub")),
    case("copy.out", n(3, 4), n(3, 4), out=n(3, 4), opens=0),
    case("clamp_min.out", n(3, 4), 0.5, out=n(3, 4), opens=0),
    noisy("native_dropout.default", n(3, 4), 0.5, True, opens=2),
)

IMAGES = (*POOLED, *FOURIER, *VIEWS, *JOINED, *DIAGONALS, *SOLVED, *WRITTEN_OVER)
