"""Nested values and call signatures: apart and together again, in the process and from JSON."""

from __future__ import annotations

import collections
import copy
import dataclasses
import json
import math
import pickle
from typing import Any, NamedTuple

import pytest
import torch
import transformers.modeling_outputs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree
from torchvision.models.googlenet import GoogLeNetOutputs

from sortify.errors import CheckpointError, InputError
from sortify.graph.structure import Record, Structure, flatten, scalar_from_json, scalar_to_json, shorten


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Plain:
    logits: Any
    note: Any = None


@dataclasses.dataclass
class Registered:
    logits: Any
    hidden: Any = None


pytree.register_dataclass(Registered)
Output = transformers.modeling_outputs.SequenceClassifierOutput


def through_json(structure: Structure) -> Structure:
    return Structure.from_json(json.loads(json.dumps(structure.to_json(), allow_nan=False)))


VALUES: list[Any] = [
    3, None, [], (), {}, [1, [2, None], (3,)], {"a": 1, 2: 3, None: 4, True: [5], 1.5: 6},
    collections.OrderedDict(b=1, a=(2,)), GoogLeNetOutputs(1, 2, None), collections.deque([1, 2]),
    collections.defaultdict(list, a=[1]), Record(a=1, b=[2]),
]  # fmt: skip

IN_PROCESS_ONLY = (collections.deque, collections.defaultdict)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_apart_and_together_gives_the_same_value(value: Any) -> None:
    leaves, structure = flatten(value)
    assert structure.build(leaves) == value
    assert type(structure.build(leaves)) is type(value)
    assert len(leaves) == structure.size == len(structure.paths())
    assert through_json(structure) == structure


@pytest.mark.parametrize("value", [v for v in VALUES if type(v) not in IN_PROCESS_ONLY], ids=repr)
def test_it_goes_through_a_file(value: Any) -> None:
    leaves, structure = flatten(value)
    assert through_json(structure).build(leaves) == value
    assert type(through_json(structure).build(leaves)) is type(value)


def test_a_size_is_a_tuple() -> None:
    assert through_json(flatten(torch.Size([2]))[1]).build([3]) == (3,)


def test_model_outputs_of_known_packages_keep_their_class() -> None:
    value = Output(logits=torch.ones(2), hidden_states=(torch.zeros(1), torch.zeros(2)))
    leaves, structure = flatten(value)
    assert structure.paths("out") == ["out.logits", "out.hidden_states[0]", "out.hidden_states[1]"]
    for rebuilt in (structure.build(leaves), through_json(structure).build(leaves)):
        assert type(rebuilt) is Output
        assert rebuilt.logits is value.logits
        assert rebuilt.loss is None
        assert rebuilt[1][1] is value.hidden_states[1]


def test_torch_return_types_keep_their_class() -> None:
    value = torch.ones(2, 3).max(1)
    leaves, structure = flatten(value)
    assert [type(s.build(leaves)) for s in (structure, through_json(structure))] == [torch.return_types.max] * 2
    assert through_json(structure).build(leaves).indices is value.indices


@pytest.mark.parametrize("value", [Plain(1, 2), Registered(1, [2])], ids=repr)
def test_user_classes_live_in_the_process_and_become_records_from_a_file(value: Any) -> None:
    leaves, structure = flatten(value)
    assert structure.build(leaves) == value
    record = through_json(structure).build(leaves)
    assert type(record) is Record
    assert record.logits == record["logits"] == record[0] == 1
    assert list(record) == [f.name for f in dataclasses.fields(value)]
    with pytest.raises(AttributeError, match=r"no field 'loss'; there are logits"):
        _ = record.loss


def test_user_named_tuples_can_still_be_unpacked_from_a_file() -> None:
    leaves, structure = flatten(Pair(1, [2]))
    assert type(structure.build(leaves)) is Pair
    first, second = through_json(structure).build(leaves)
    assert (first, second) == (1, [2])
    assert through_json(structure).build(leaves).second == [2]


def test_structures_can_be_copied_and_pickled() -> None:
    leaves, structure = flatten({"a": Output(logits=1)})
    for other in (copy.deepcopy(structure), pickle.loads(pickle.dumps(structure))):
        assert other.build(leaves) == structure.build(leaves)


def test_a_different_structure_is_not_equal() -> None:
    assert flatten({"a": 1})[1] == flatten({"a": 2})[1]
    assert flatten({"a": 1})[1] != flatten({"b": 1})[1]
    assert flatten([1])[1] != flatten((1,))[1]
    assert flatten(Pair(1, 2))[1] != flatten(GoogLeNetOutputs(1, 2, 3))[1]


def test_wrong_number_of_leaves_and_odd_keys_are_refused() -> None:
    with pytest.raises(InputError, match="expected 2 leaves to rebuild the value, got 3"):
        flatten([1, 2])[1].build([1, 2, 3])
    with pytest.raises(InputError, match=r"dict keys must be text or plain numbers, got \(1, 2\)"):
        flatten({(1, 2): 3})


OBJECT = {"kind": "object", "keys": ["a"], "children": [{"kind": "leaf"}]}


@pytest.mark.parametrize(
    "ref",
    [
        "os:system",
        "subprocess:Popen",
        "torch.hub:load",
        "torch:load",
        "torch.nn:Linear",
        "torch:_no_such",
        "transformers:TrainingArguments",
        "transformers.nowhere:Thing",
        "torch.utils.bottleneck.__main__:Thing",
        "torch:nn.modules.__class__",
        "torch",
        ":",
        "",
        "..",
    ],
)
def test_no_class_but_plain_containers_of_known_packages_is_built(ref: str) -> None:
    for kind in ("object", "namedtuple"):
        value = Structure.from_json({**OBJECT, "kind": kind, "class": ref}).build([1])
        assert type(value).__module__ not in ("os", "subprocess", "torch", "transformers")
        assert value.a == 1


def test_fields_that_the_class_no_longer_has_give_a_record() -> None:
    ref = f"{Output.__module__}:{Output.__qualname__}"
    assert Structure.from_json({**OBJECT, "class": ref}).build([1]) == {"a": 1}
    assert type(Structure.from_json({**OBJECT, "keys": ["logits"], "class": ref}).build([1])) is Output


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "'kind' is missing"),
        ({"kind": 1}, "'kind' should be str, got 1"),
        ({"kind": "set"}, "unknown kind 'set'"),
        ({"kind": "leaf", "children": [{"kind": "leaf"}]}, "leaf with 1 children"),
        ({"kind": "none", "children": [{"kind": "leaf"}]}, "none with 1 children"),
        ({"kind": "list", "children": {}}, "should be list"),
        ({"kind": "list", "keys": ["a"], "children": [{"kind": "leaf"}]}, "1 keys"),
        ({"kind": "dict", "children": [{"kind": "leaf"}]}, "0 keys"),
        ({"kind": "dict", "keys": [[1]], "children": [{"kind": "leaf"}]}, "plain value"),
        ({"kind": "dict", "keys": ["a", "a"], "children": [{"kind": "leaf"}] * 2}, "distinct names"),
        ({"kind": "object", "keys": [1], "children": [{"kind": "leaf"}]}, "distinct names"),
        ({"kind": "leaf", "pickle": "x"}, "unknown entry 'pickle'"),
        ({"kind": "object", "class": 3}, "'class' should be str"),
    ],
)
def test_damaged_structures_are_refused(data: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Structure.from_json(data)


def test_absurd_nesting_is_refused() -> None:
    data: dict[str, Any] = {"kind": "leaf"}
    for _ in range(200):
        data = {"kind": "list", "children": [data]}
    with pytest.raises(CheckpointError, match="nested deeper than 100"):
        Structure.from_json(data)


@pytest.mark.parametrize("value", [None, True, 1, 2**70, 0.1, -0.0, math.inf, -math.inf, math.nan, "x"], ids=repr)
def test_plain_values_come_back_exactly(value: Any) -> None:
    again = scalar_from_json(json.loads(json.dumps(scalar_to_json(value), allow_nan=False)))
    assert (type(again), repr(again)) == (type(value), repr(value))


def test_long_values_are_shown_short() -> None:
    assert shorten("a\nb") == "'a\\nb'"
    assert len(shorten(list(range(100)))) == 60


LEAF = st.integers() | st.none() | st.text(max_size=3)
NESTED = st.recursive(
    LEAF,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2) | st.integers(), inner, max_size=3)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(NESTED)
def test_any_nested_value_survives(value: Any) -> None:
    leaves, structure = flatten(value)
    assert structure.build(leaves) == value
    assert through_json(structure).build(leaves) == value
    assert leaves == [leaf for leaf in pytree.tree_leaves(value) if leaf is not None]
