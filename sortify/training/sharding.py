"""Training in pieces: FSDP2 shards parameters, gradients and optimiser states over the processes.

A copy of the model is sharded and trained; at the end its weights go back into the model itself, which stays whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from sortify.errors import TrainingError

if TYPE_CHECKING:
    from sortify.models.sorted_model import SortedModel


def sharded_copy(model: SortedModel, device: torch.device, offload: bool) -> SortedModel:
    """Return a copy of a model whose parameters are sharded over all processes (`torch.distributed.fsdp.fully_shard`).

    Every forward and backward pass gathers all parameters and lets them go again.

    Args:
        model: stays as it is.
        device: of this process.
        offload: whether shards wait in the processor's memory.

    Raises:
        TrainingError: there are no processes to shard over.
    """
    if not distributed.is_initialized():
        raise TrainingError("shard: there is one process; start several, as with torchrun --nproc-per-node 2")
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    own = copy.deepcopy(model).to(device)
    fully_shard(own, mesh=mesh, offload_policy=CPUOffloadPolicy() if offload else OffloadPolicy())
    return own


def is_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether any of them is sharded."""
    return any(isinstance(each, DTensor) for each in parameters)


def whole_state(model: SortedModel) -> dict[str, Tensor]:
    """Return a model's state with all tensors whole, on the processor; every process has to ask for it."""
    return {name: whole(tensor).cpu() for name, tensor in model.state_dict().items()}


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor in one piece; every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def load_whole_state(model: SortedModel, state: Mapping[str, Tensor]) -> None:
    """Give every process its shards of what `whole_state` gave.

    Raises:
        KeyError, RuntimeError: names or sizes are others.
    """
    if not is_sharded(model.parameters()):
        model.load_state_dict(dict(state))
        return
    own = model.state_dict()
    if {name: each.shape for name, each in own.items()} != {name: each.shape for name, each in state.items()}:
        raise KeyError("other names or sizes")
    for name, tensor in own.items():
        (tensor.to_local() if isinstance(tensor, DTensor) else tensor).copy_(_like(state[name], tensor))


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's state with all tensors whole; every process has to ask for it."""
    found: dict[str, Any] = tree_map_only(Tensor, lambda each: whole(each).cpu(), optimizer.state_dict())
    return found


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Go on from what `optimizer_state` gave, with other shards or none."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    states = {
        place: {name: _shard(value, parameters[place]) for name, value in own.items()}
        for place, own in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": states})


def _shard(value: Any, parameter: Tensor) -> Any:
    """What is as large as a sharded parameter is sharded as it is."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return DTensor.from_local(
        _like(value, parameter),
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _like(value: Tensor, tensor: Tensor) -> Tensor:
    """This process's shard of a whole tensor, as those of another one lie."""
    if not isinstance(tensor, DTensor):
        return value
    whole_one = value.to(tensor.device_mesh.device_type)
    return distribute_tensor(whole_one, tensor.device_mesh, tensor.placements).to_local()
