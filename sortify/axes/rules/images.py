"""Rules of ops on images and signals: channels pass through, positions are fixed."""

from __future__ import annotations

import torch

from sortify.axes import algebra
from sortify.axes.algebra import ONE, Expr, Size, open_atom
from sortify.axes.rules.table import Call, Dims, overloads, rule

_POOLS = """
max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d
upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d
_upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa
reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
""".split()


def _existing(names: list[str]) -> list[str]:
    return [name for name in names if hasattr(torch.ops.aten, name)]


@rule(*overloads(*_existing(_POOLS)))
def pool(call: Call) -> Dims | list[Dims]:
    """Pooling, resizing and padding of images: channels pass through, image sizes (`2d` in the name: two) are fixed."""
    dims, shape = call.dims_of(call.node.args[0]), call.shape
    image = int(next(letter for letter in str(call.node.target) if letter.isdigit()))
    call.fix(dims[-image:], "image size")
    made = (*dims[:-image], *(call.fixed(size, "image size") for size in shape[-image:]))
    return [made] * len(call.shapes) if isinstance(call.node.meta["val"], (list, tuple)) else made


@rule("aten.fractional_max_pool2d.default", "aten.fractional_max_pool3d.default")
def fractional_pool(call: Call) -> list[Dims]:
    """input [N, C, *], random_samples [N, C, 2 or 3]."""
    dims, samples, shape = call.dims("self"), call.dims("random_samples"), call.shape
    image = len(call["kernel_size"])
    *kept, _ = samples
    call.fix([*dims[-image:], samples[-1]], "image size")
    call.unify_all(dims[:-image], kept[-len(dims[:-image]) :])
    made = (*dims[:-image], *(call.fixed(size, "image size") for size in shape[-image:]))
    return [made, made]


@rule("aten.max_unpool2d.default", "aten.max_unpool3d.default")
def unpool(call: Call) -> Dims:
    """The indices have the shape of the input."""
    dims, image = call.dims("self"), len(call["output_size"])
    call.unify_all(dims, call.dims("indices"))
    call.fix(dims[-image:], "image size")
    return (*dims[:-image], *(call.fixed(size, "image size") for size in call.shape[-image:]))


@rule("aten.grid_sampler.default", "aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default")
def grid_sampler(call: Call) -> Dims:
    """input [N, C, *], grid [N, *, 2 or 3]: channels pass through."""
    (batch, channels, *image), (samples, *grid) = call.dims("input"), call.dims("grid")
    call.unify(batch, samples)
    call.fix([*image, *grid], "image size")
    return (batch, channels, *(call.fixed(size, "image size") for size in call.shape[2:]))


@rule("aten.affine_grid_generator.default")
def affine_grid(call: Call) -> Dims:
    """theta [N, 2, 3] to a grid [N, H, W, 2]."""
    batch, *rest = call.dims("theta")
    call.fix([batch, *rest], "image size")
    return (batch, *(call.fixed(size, "image size") for size in call.shape[1:]))


@rule("aten.unfold.default")
def unfold(call: Call) -> Dims:
    """Windows along one dimension: it becomes their number, and their size comes last."""
    dims = list(call.dims("self"))
    at = call.axis("dimension", len(dims))
    call.fix([dims[at]], "it is cut into windows")
    dims[at] = call.fixed(call.shape[at], "it counts windows")
    return (*dims, call.fixed(call.shape[-1], "positions of a window"))


@rule("aten.im2col.default")
def im2col(call: Call) -> Dims:
    """[*, C, H, W] to [*, C x kernel, windows]."""
    *batch, channels, rows, columns = call.dims("self")
    call.fix([rows, columns], "image size")
    kernel = call.fixed(_kernel(call), "kernel size")
    return (*batch, algebra.product([channels, kernel]), call.fixed(call.shape[-1], "it counts windows"))


@rule("aten.col2im.default")
def col2im(call: Call) -> Dims:
    """[*, C x kernel, windows] to [*, C, H, W]."""
    *batch, channels, windows = call.dims("self")
    call.fix([windows], "it counts windows")
    kernel: Expr = call.fixed(_kernel(call), "kernel size")
    made = open_atom(algebra.size_of(channels).over(Size(_kernel(call))) or ONE)
    call.unify(channels, algebra.product([made, kernel]))
    return (*batch, algebra.resolve(made), *(call.fixed(size, "image size") for size in call.shape[-2:]))


def _kernel(call: Call) -> int:
    rows, columns = (call["kernel_size"] * 2)[:2]
    return int(rows * columns)


_FOURIER = """
fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_hfft2 fft_ihfft2
fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_hfftn fft_ihfftn fft_fftshift fft_ifftshift
""".split()


@rule(*overloads(*_FOURIER))
def fourier(call: Call) -> Dims:
    """Every result along a transformed dimension depends on all positions and their order."""
    dims = list(call.dims("self"))
    chosen = call.get("dim")
    if chosen is None or chosen == []:
        last = len(call.get("s") or dims)
        chosen = list(range(len(dims) - last, len(dims)))
    for dim in {d % len(dims) for d in (chosen if isinstance(chosen, list) else [chosen])}:
        call.fix([dims[dim]], "it is transformed between positions and frequencies")
        dims[dim] = call.fixed(call.shape[dim], "frequencies or positions")
    return tuple(dims)


@rule("aten.stft.default", "aten.stft.center", "aten.istft.default")
def short_fourier(call: Call) -> Dims:
    """Signals [*, time] to or from their frequencies: all but the first dimension is fixed."""
    dims = call.dims("self")
    batch = dims[:1] if len(call.shape) > 1 and algebra.size_of(dims[0]) == call.shape[0] and len(dims) > 1 else ()
    call.fix([*dims[len(batch) :], *call.dims("window")], "it is transformed between positions and frequencies")
    return (*batch, *(call.fixed(size, "frequencies or positions") for size in call.shape[len(batch) :]))
