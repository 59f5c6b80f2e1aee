"""Graphs as JSON: the same graph comes back, and nothing else is ever accepted."""

from __future__ import annotations

import json
import math
import operator
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.fx import Graph, GraphModule, Interpreter, Node
from transformers import LlamaConfig, LlamaForCausalLM

from sortify.errors import CheckpointError
from sortify.graph.graphs import (
    find_target,
    function_names,
    graph_from_json,
    graph_to_json,
    register_function,
    target_name,
)

Case = tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]


def resnet() -> Case:
    return torchvision.models.resnet18().train(), (torch.randn(2, 3, 32, 32),), {}


def vit() -> Case:
    model = torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=5).eval()
    return model, (torch.randn(2, 3, 32, 32),), {}


def llama() -> Case:
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval(), (), {"input_ids": torch.randint(0, 99, (2, 7)), "use_cache": False}


def capture(case: Case) -> tuple[Graph, list[Any]]:
    """A captured graph whose parameters are placeholders, and the values of all placeholders."""
    model, args, kwargs = case
    dynamic = {0: torch.export.Dim.AUTO}
    shapes = tuple(dynamic for _ in args) or {
        k: dynamic if isinstance(v, torch.Tensor) else None for k, v in kwargs.items()
    }
    captured = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    module = captured.module(check_guards=False)
    values = dict(
        zip((n.name for n in module.graph.nodes if n.op == "placeholder"), (*args, *kwargs.values()), strict=True)
    )
    graph = Graph()
    graph.output(graph.graph_copy(module.graph, _inputs_first(module, graph, values)))
    graph.eliminate_dead_code()
    return graph, [values[n.name] for n in graph.nodes if n.op == "placeholder"]


def _inputs_first(module: GraphModule, graph: Graph, values: dict[str, Any]) -> dict[Node, Node]:
    """Make a placeholder of each parameter, and inline the sub-graphs of regions without gradient."""
    copies: dict[Node, Node] = {}
    for node in list(module.graph.nodes):
        if "wrap_with_set_grad_enabled" in str(node.target):
            _, inner, *inputs = node.args
            body = operator.attrgetter(inner.target)(module)
            with module.graph.inserting_before(node):
                inside = dict(zip((n for n in body.graph.nodes if n.op == "placeholder"), inputs, strict=True))
                results = module.graph.graph_copy(body.graph, inside)
            for user in list(node.users):
                user.replace_all_uses_with(results[user.args[1]])
                module.graph.erase_node(user)
            module.graph.erase_node(node)
            module.graph.erase_node(inner)
    for node in module.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            copies[node] = graph.placeholder(node.name)
            values[copies[node].name] = (
                values[node.name] if node.op == "placeholder" else operator.attrgetter(node.target)(module)
            )
    return copies


def call(graph: Graph, values: list[Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Interpreter(GraphModule({}, graph)).run(
            *[v.clone() if isinstance(v, torch.Tensor) else v for v in values]
        )


def through_json(graph: Graph) -> Graph:
    return graph_from_json(json.loads(json.dumps(graph_to_json(graph), allow_nan=False)))


def same(a: Graph, b: Graph) -> bool:
    """Equal nodes: names, targets, arguments as written, meta that is kept."""
    keep = ("sortify_module", "sortify_source")
    rows = [
        [(n.op, n.name, n.target, repr(n.args), repr(n.kwargs), [n.meta.get(k) for k in keep]) for n in g.nodes]
        for g in (a, b)
    ]
    return rows[0] == rows[1] and a.python_code("self").src == b.python_code("self").src


@pytest.mark.parametrize("make", [resnet, vit, llama], ids=lambda make: make.__name__)
def test_real_captures_come_back_equal(make: Callable[[], Case]) -> None:
    graph, values = capture(make())
    for i, node in enumerate(graph.nodes):
        node.meta["sortify_module"], node.meta["sortify_source"] = f"layers.{i}", f"model.py:{i}"
    again = through_json(graph)
    assert len(graph.nodes) > 30
    assert same(graph, again)
    expected = torch.utils._pytree.tree_leaves(call(graph, values))
    results = torch.utils._pytree.tree_leaves(call(again, values))
    for a, b in zip(expected, results, strict=True):
        assert torch.equal(a, b)


def test_the_comparison_sees_a_difference() -> None:
    graph, _ = small()
    other, node = small()
    node.args = (node.args[0], 3)
    assert same(graph, small()[0])
    assert not same(graph, other)


def small() -> tuple[Graph, Node]:
    graph = Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.ops.aten.mul.Tensor, (x, 2))
    graph.output((y,))
    return graph, y


VALUES = [
    None, True, 7, -(2**62), 2**63 - 1, 1.5, -0.0, 1e-300, 0.1, math.inf, -math.inf, 1 + 2j,
    complex(math.nan, -math.inf), "text", "quote ' \" and \\ and \n", "", [], (), {},
    [1, (2, [3.0])], {"a": [None], "dtype": 1, "node": "x"},
    slice(None, 3, 2), Ellipsis, torch.float32, torch.bool, torch.bfloat16, torch.strided, torch.sparse_coo,
    torch.contiguous_format, torch.channels_last, torch.device("cpu"), torch.device("cuda", 1), torch.device("meta"),
    torch.Size([2, 3]), [torch.Size([])], {"float": 1.0}, {"float": "inf"},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_every_kind_of_argument_comes_back(value: Any) -> None:
    graph = Graph()
    x = graph.placeholder("x")
    register_function("tests.keep", keep)
    y = graph.call_function(keep, (x, value), {"more": [value, x]})
    graph.output({"out": (y, value)})
    again = through_json(graph)
    assert same(graph, again)
    kept = list(again.nodes)[1].args[1]
    assert repr(kept) == repr(list(graph.nodes)[1].args[1])
    assert type(kept) is type(list(graph.nodes)[1].args[1])
    assert repr(call(again, [torch.ones(1)])) == repr(call(graph, [torch.ones(1)]))


def keep(*values: Any, more: Any = None) -> tuple[Any, ...]:
    return (*values, more)


@pytest.mark.parametrize("name", function_names())
def test_every_function_of_the_table_is_found_under_its_name(name: str) -> None:
    assert target_name(find_target(name)) == name


def test_names_that_torch_would_alter_are_kept() -> None:
    graph = Graph()
    nodes = [graph.placeholder(f"p{i}") for i in range(3)]
    for node, name in zip(nodes, ("input", "add_7", "add"), strict=True):
        node.name = name
    out = graph.call_function(operator.add, (nodes[0], nodes[1]))
    out.name = "max"
    graph.output(out)
    again = through_json(graph)
    assert [n.name for n in again.nodes] == ["input", "add_7", "add", "max", "output"]
    assert call(again, [1, 2, 3]) == 3


def test_nan_and_submodules_come_back() -> None:
    graph = Graph()
    x = graph.placeholder("x", default_value=math.nan)
    graph.output(graph.call_module("blocks.0.body", (x,)))
    again = through_json(graph)
    assert [n.target for n in again.nodes] == ["x", "blocks.0.body", "output"]
    assert math.isnan(next(iter(again.nodes)).args[0])


def test_hostile_text_stays_text() -> None:
    graph = Graph()
    text = "'] + [__import__('os').getcwd()"
    graph.output([{text: text, '"""': "\n"}, text])
    again = through_json(graph)
    assert GraphModule({}, again)() == [{text: text, '"""': "\n"}, text]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "of type object cannot be saved"),
        ({1: 2}, "of type immutable_dict cannot be saved"),
        (torch.ones(2), "of type Tensor cannot be saved"),
        (range(3), "of type range cannot be saved"),
        (torch.contiguous_format.__class__, "cannot be saved"),
    ],
)
def test_values_that_cannot_be_saved_are_named(value: Any, message: str) -> None:
    graph = Graph()
    register_function("tests.keep", keep)
    graph.create_node("call_function", keep, (value,), {}, name="culprit")
    graph.output(None)
    with pytest.raises(CheckpointError, match=f"'culprit'.*{message}"):
        graph_to_json(graph)


def test_unknown_targets_and_nodes_are_refused_on_saving() -> None:
    graph = Graph()
    graph.output(graph.call_function(print, ("x",)))
    with pytest.raises(CheckpointError, match=r"'print_1'.*cannot be saved"):
        graph_to_json(graph)
    graph = Graph()
    graph.output(graph.get_attr("weight"))
    with pytest.raises(CheckpointError, match="a get_attr node cannot be saved"):
        graph_to_json(graph)
    with pytest.raises(CheckpointError, match="reaches outside"):
        target_name(torch.ops.aten.from_file.default)


def test_deep_values_are_refused_both_ways() -> None:
    deep: Any = 1
    for _ in range(150):
        deep = [deep]
    graph = Graph()
    graph.output(deep)
    with pytest.raises(CheckpointError, match="nested deeper"):
        graph_to_json(graph)
    with pytest.raises(CheckpointError, match="nested deeper"):
        graph_from_json(document(output={"args": [deep]}))


def test_registering_refuses_what_is_there() -> None:
    register_function("tests.keep", keep)
    with pytest.raises(ValueError, match="registered already"):
        register_function("tests.keep", small)
    with pytest.raises(ValueError, match="registered already"):
        register_function("tests.other", keep)
    with pytest.raises(ValueError, match="dotted"):
        register_function("plain", small)


def document(call: Any = None, output: Any = None, **more: Any) -> dict[str, Any]:
    """The small graph as JSON, with entries of its call and its output node replaced."""
    data = graph_to_json(small()[0])
    data["nodes"][1].update(call or {})
    data["nodes"][2].update(output or {})
    return {**data, **more}


HOSTILE: list[tuple[str, Any, str]] = [
    ("no dict", [], "'nodes' is missing"),
    ("nodes no list", {"nodes": {}}, "should be list"),
    ("empty", {"nodes": []}, "end in its one output"),
    ("node no dict", {"nodes": [3]}, "'name' is missing"),
    ("os.system", document({"target": "os.system"}), "unknown function 'os.system'"),
    ("builtins.eval", document({"target": "builtins.eval"}), "unknown function"),
    ("torch.hub.load", document({"target": "torch.hub.load"}), "unknown operator"),
    ("attrgetter", document({"target": "operator.attrgetter"}), "unknown function"),
    ("load_library", document({"target": "load_library.a.b"}), "unknown operator"),
    ("class", document({"target": "aten.__class__.__mro__"}), "unknown operator"),
    ("overload", document({"target": "aten.mul.nothing"}), "unknown operator"),
    ("higher order", document({"target": "higher_order.cond.default"}), "unknown operator"),
    ("file", document({"target": "aten.from_file.default"}), "reaches outside"),
    ("too many", document({"args": [1, 2, 3, 4]}), "takes self, other, got 4 arguments"),
    ("unknown keyword", document({"kwargs": {"alpha": 1}}), "got 2 arguments and 'alpha'"),
    ("keyword no name", document({"kwargs": {"a b": 1}}), "identifiers"),
    ("target no text", document({"target": 3}), "'target' should be str"),
    ("args no list", document({"args": {}}), "'args' should be list"),
    ("kwargs no dict", document({"kwargs": []}), "'kwargs' should be dict"),
    ("dangling", document({"args": [{"node": "z"}, 2]}), "no earlier node is called 'z'"),
    ("itself", document({"args": [{"node": "mul"}, 2]}), "no earlier node is called 'mul'"),
    ("later", document({"args": [{"node": "output"}, 2]}), "no earlier node"),
    ("twice", document({"name": "x"}), "stands twice"),
    ("name no identifier", document({"name": "x; import os"}), "malformed"),
    ("name with newline", document({"name": "mul\n"}), "malformed"),
    ("unknown op", document({"op": "get_attr", "target": "weight"}), "is no node"),
    ("method", document({"op": "call_method", "target": "share_memory_"}), "is no node"),
    ("module path", document({"op": "call_module", "target": 'a"+exit()+"'}), "is no node"),
    ("module path newline", document({"op": "call_module", "target": "a.b\n"}), "is no node"),
    ("placeholder keyword", document({"op": "placeholder", "target": "class", "args": []}), "is no node"),
    ("placeholder code", document({"op": "placeholder", "target": "a=exit()", "args": []}), "is no node"),
    ("placeholder twice", document({"op": "placeholder", "target": "x", "args": []}, {"args": [1]}), "same name"),
    ("unknown entry", document({"code": "1"}), "unknown entry 'code'"),
    ("two outputs", document({"op": "output", "target": "output", "args": [1]}, {"args": [1]}), "one output"),
    ("output target", document(output={"target": "out"}), "is no node"),
    ("unknown kind", document({"args": [{"pickle": "x"}]}), "unknown value"),
    ("two kinds", document({"args": [{"node": "x", "size": []}]}), "one entry"),
    ("dtype", document({"args": [{"dtype": "float33"}]}), "unknown value"),
    ("dtype no text", document({"args": [{"dtype": ["float32"]}]}), "unknown value"),
    ("layout", document({"args": [{"layout": "load"}]}), "unknown value"),
    ("device", document({"args": [{"device": "toaster:1"}]}), "unknown device"),
    ("device no text", document({"args": [{"device": None}]}), "unknown device"),
    ("slice", document({"args": [{"slice": [1, 2]}]}), "a list of 3"),
    ("size", document({"args": [{"size": ["a"]}]}), "plain numbers"),
    ("size huge", document({"args": [{"size": [2**70]}]}), "plain numbers"),
    ("size float", document({"args": [{"size": [{"float": "nan"}]}]}), "plain numbers"),
    ("complex", document({"args": [{"complex": [1, "2"]}]}), "plain numbers"),
    ("ellipsis", document({"args": [{"ellipsis": 1}]}), "written as true"),
    ("float", document({"args": [{"float": "1.0"}]}), "plain value"),
    ("meta", document({"module": 3}), "'module' should be str"),
    ("body", document({"args": [{"tuple": {"a": 1}}]}), "a list was expected"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_damaged_and_hostile_graphs_are_refused_in_one_line(data: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        graph_from_json(data)
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from(["x", "mul", "output", "node", "aten.mul.Tensor", "call_function", "placeholder", "float32"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["node", "tuple", "slice", "dict", "size", "dtype", "float", "op", "target", "args"])
        | st.text(max_size=4),
        inner,
        max_size=3,
    ),
    max_leaves=12,
)  # fmt: skip


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(p for key, value in items for p in places(value, (*path, key)))]


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_change_gives_a_valid_graph_or_a_checkpoint_error(data: st.DataObject) -> None:
    document = {"nodes": graph_to_json(small()[0])["nodes"]}
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([p for p in places(document) if p]))
        holder: Any = document
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = data.draw(JSON)
    graph, refused = None, ""
    try:
        graph = graph_from_json(document)
    except CheckpointError as error:
        refused = str(error)
    assert "\n" not in refused
    assert refused or (graph is not None and same(graph, through_json(graph)))


@pytest.mark.parametrize("name", ["transformers.grouped_mm_fallback.default", "torchvision.nms.default"])
def test_operators_of_known_packages_are_found_by_a_process_that_has_not_imported_them(name: str) -> None:
    package = name.partition(".")[0]
    code = (
        "import sys, sortify.graph.graphs as graphs\n"
        f"assert {package!r} not in sys.modules\n"
        f"print(graphs.find_target({name!r}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert found.stdout.strip() == name, found.stderr
