"""Measuring sub-networks on the running machine: latency and peak memory of a designed sample.

Each one is measured as what a user would run: extracted, in evaluation mode, without gradients. All take turns, round
by round, and the median over rounds counts, so that a machine with other work hurts all of them alike.
"""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sortify.costs.open_sizes import natural_name
from sortify.errors import ProfileError
from sortify.models.peak import Call, peak
from sortify.network.network import followed
from sortify.space.profile import LEAST, Features, Measured, Profile, fit_rows
from sortify.space.space import Space, Subnet

if TYPE_CHECKING:
    from sortify.models.sorted_model import SortedModel

COUNT = 24
"""Sub-networks of the sample."""
ROUNDS, SECONDS = 50, 60.0
VISIT, MOST_CALLS = 0.02, 20
"""Seconds and calls of one sub-network in one round: as many calls as fit, one at least."""
WARM_UP = 3
HELD = 4 << 30
"""Bytes of extracted sub-networks that are held between rounds; beyond, each is extracted anew in every round."""

Progress = Callable[[int, int], object]


@dataclass(frozen=True, eq=False)
class Probe:
    """A sub-network that can be measured.

    Attributes:
        call: run it once, to its end.
        memory: bytes at the peak of one call.
    """

    call: Call
    memory: Callable[[], int]


Prepare = Callable[[Subnet], Probe]


def profile(
    model: SortedModel,
    device: str | torch.device | None = None,
    subnets: Sequence[Subnet] | int = COUNT,
    seconds: float = SECONDS,
    progress: Progress | None = None,
    *,
    rounds: int = ROUNDS,
    prepare: Prepare | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> Profile:
    """Measure a sample of a model's sub-networks; see `SortedModel.profile`.

    Args:
        prepare: what to measure in place of the extracted sub-network; clock: in seconds. Both are for tests.
    """
    place = _device(model, device)
    inputs = inputs_at(model, sizes)
    chosen = sample(model.space, subnets) if isinstance(subnets, int) else list(dict.fromkeys(subnets))
    wrong = next((subnet for subnet in chosen if subnet not in model.space), None)
    if wrong is not None:
        raise ProfileError(f"profile: sub-network {wrong} does not belong to this model; take them from model.space")
    if len(chosen) < LEAST:
        raise ProfileError(f"profile: {len(chosen)} different sub-networks, expected {LEAST} or more")
    if rounds < 1 or not seconds > 0:
        raise ProfileError(f"profile: {rounds} rounds in {seconds} seconds; expected 1 round or more, and some time")
    prepared = _Prepared(prepare or _extracting(model, place, inputs), _bytes_of(model, chosen))
    with torch.inference_mode():
        times, memory = take_turns(prepared, chosen, rounds, seconds, clock, progress)
    rows = [_row(subnet, own, peak) for subnet, own, peak in zip(chosen, times, memory, strict=True)]
    features = Features(model.space.exact, model.plan)
    order = np.argsort([-row.latency for row in rows], kind="stable")
    rows = [rows[place] for place in order]
    latency, peak = fit_rows(rows, features, sizes)
    samples, tokens = counts(inputs)
    own_sizes = tuple({**model.open_sizes, **sizes}.items())
    return Profile(tuple(rows), latency, peak, machine(model, place), own_sizes, samples, tokens, len(times[0]))


def _row(subnet: Subnet, times: Sequence[float], memory: int) -> Measured:
    low, middle, high = np.quantile(times, (0.25, 0.5, 0.75))
    return Measured(subnet, float(middle), float((high - low) / middle) if middle > 0 else 0.0, memory)


def _device(model: SortedModel, device: str | torch.device | None) -> torch.device:
    """Where to measure.

    Raises:
        ProfileError: there is no such device here, or the weights have no values.
    """
    own = next(iter(model.tensors.values())).device
    if any(tensor.is_meta for tensor in model.tensors.values()):
        raise ProfileError("profile: the weights are on the meta device, without values; load weights first")
    try:
        place = own if device is None else torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        text = str(error).splitlines()[0]
        raise ProfileError(f"profile: device {str(device)!r} cannot be used here ({text})") from error
    return place


# -- what is measured -------------------------------------------------------------------------------------------------


def sample(space: Space, count: int) -> list[Subnet]:
    """A sample of the members of a space that tells what each group is worth: corners, a nested chain, random ones.

    Args:
        space: which space; count: how many; fewer where there are not so many different ones.
    """
    even = space.tied if space.settings.untied else space
    low = {knob.name: knob.distinct[0].fraction for knob in even.knobs}
    corners = [space.full, even.smallest]
    for name, fraction in low.items():
        corners.append(even.subnet(**{name: fraction}))
        corners.append(even.subnet(**{other: own for other, own in low.items() if other != name}))
    chosen = dict.fromkeys(corners[:count])
    for subnet in even.chain(max(2, min(count // 3, count - len(chosen)))):
        chosen.setdefault(subnet)
    chance = torch.Generator().manual_seed(0)
    for _ in range(20 * count):
        if len(chosen) < count:
            chosen.setdefault(space.sample(chance))
    for _ in range(20 * count):  # where there are not so many members, others between them
        if len(chosen) < count:
            drawn = torch.rand(len(low), generator=chance).tolist()
            between = zip(low.items(), drawn, strict=True)
            chosen.setdefault(space.subnet(**{name: own + (1 - own) * share for (name, own), share in between}))
    return list(chosen)[:count]


def inputs_at(model: SortedModel, sizes: Mapping[str, int]) -> list[Tensor]:
    """The example inputs, repeated or cut to other open sizes.

    Raises:
        InputError: the model has no such open size.
        ProfileError: which dimensions of the inputs have this size is not known.
    """
    model.space.cost(model.space.full, **sizes)
    found = list(model.example_tensors)
    known = model.open_sizes
    for name, size in sizes.items():
        twins = [each for each in known if re.fullmatch(rf"{re.escape(name)}_\d+", each) and known[each] == known[name]]
        own = 0
        for number, (label, tensor) in enumerate(zip(model.signature.tensor_names, found, strict=True)):
            for dim, fixed in enumerate(model.signature.specs[number].shape):
                if (
                    fixed is None
                    and not twins
                    and natural_name(label, tensor, dim) == name
                    and tensor.shape[dim] == known[name]
                ):
                    found[number] = tensor.index_select(dim, torch.arange(size) % tensor.shape[dim])
                    tensor, own = found[number], own + 1
        if not own:
            raise ProfileError(f"profile: {name}={size}: which inputs have this size is not known; leave it out")
    return found


def counts(inputs: Sequence[Tensor]) -> tuple[int, int | None]:
    """Samples of a call, and tokens: the elements of the first input that is a table of whole numbers."""
    samples = next((tensor.shape[0] for tensor in inputs if tensor.dim()), 1)
    numbers = (tensor for tensor in inputs if tensor.dim() == 2 and tensor.dtype in (torch.int32, torch.int64))
    tokens = next(numbers, None)
    return samples, None if tokens is None else tokens.numel()


def _bytes_of(model: SortedModel, subnets: Sequence[Subnet]) -> int:
    size = max((tensor.element_size() for tensor in model.tensors.values()), default=4)
    return size * int(np.sum(model.space.costs(subnets).params))


class _Prepared:
    """Probes by sub-network: kept while they are small together, else made anew each time."""

    def __init__(self, prepare: Prepare, size: int) -> None:
        self._prepare = prepare
        self._kept: dict[Subnet, Probe] | None = {} if size <= HELD else None

    def __call__(self, subnet: Subnet) -> Probe:
        if self._kept is None:
            probe = self._prepare(subnet)
            probe.call()
            return probe
        if subnet not in self._kept:
            self._kept[subnet] = self._prepare(subnet)
        return self._kept[subnet]


def _extracting(model: SortedModel, device: torch.device, inputs: Sequence[Tensor]) -> Prepare:
    """Sub-networks as modules of their own on a device."""
    args, kwargs = model.signature.call([tensor.to(device) for tensor in followed(inputs, model.tensors)])

    def prepare(subnet: Subnet) -> Probe:
        small = model.extract(subnet=subnet).eval().to(device)

        def call() -> None:
            small(*args, **kwargs)
            if device.type != "cpu":
                torch.accelerator.synchronize(device)

        held = [*small.tensors.values(), *tree_leaves((args, kwargs))]
        return Probe(call, lambda: peak(call, held, device))

    return prepare


# -- time -------------------------------------------------------------------------------------------------------------


def take_turns(
    prepare: Prepare,
    subnets: Sequence[Subnet],
    rounds: int,
    seconds: float,
    clock: Callable[[], float],
    progress: Progress | None,
) -> tuple[list[list[float]], list[int]]:
    """Measure all sub-networks in turns until the rounds are made or the time is over; one round is always made.

    Args:
        prepare: makes a sub-network ready.
        subnets: which; rounds: at most; seconds: when to stop; clock: in seconds.
        progress: called with (rounds done, rounds that there is time for).

    Returns:
        For every sub-network its seconds in each whole round, and the bytes at its peak.
    """
    start = clock()
    memory = []
    for subnet in subnets:
        probe = prepare(subnet)
        for _ in range(WARM_UP - 1):
            probe.call()
        memory.append(probe.memory())
    times: list[list[float]] = [[] for _ in subnets]
    ready = clock()
    for done in range(1, rounds + 1):
        for own, subnet in zip(times, subnets, strict=True):
            own.append(visit(prepare(subnet).call, clock))
        now = clock()
        one = max(1e-9, (now - ready) / done)
        if progress is not None:
            progress(done, max(done, min(rounds, int((start + seconds - ready) / one))))
        if now - start + one > seconds:
            break
    return times, memory


def visit(call: Call, clock: Callable[[], float]) -> float:
    """The median of a few calls in seconds."""
    found: list[float] = []
    while len(found) < MOST_CALLS and sum(found) < VISIT:
        start = clock()
        call()
        found.append(clock() - start)
    return statistics.median(found)


def machine(model: SortedModel, device: torch.device) -> tuple[tuple[str, str], ...]:
    """What there is to know about where the time is spent."""
    floats = {tensor.dtype for tensor in model.tensors.values() if tensor.is_floating_point()}
    facts = {
        "device": str(device),
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": str(torch.get_num_threads()),
        "dtype": ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in floats)),
        "torch": torch.__version__,
        "system": platform.system(),
    }
    return tuple(facts.items())


def _processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
