"""Files of extracted models: what they compute where there is no sortify, and that no wrong one is put in its place."""

from __future__ import annotations

import ast
import copy
import functools
import importlib.util
import keyword
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from cli_calls import call, works, write_folder
from compare import assert_close_outputs, assert_same_tensors
from hypothesis import given
from hypothesis import strategies as st
from parts_models import Router
from torch import Tensor, nn
from zoo import MODELS

from sortify import ExtractedModel, ProofError, SortedModel, SortifyError, sortify, write
from sortify.capture.prepare import Example
from sortify.formats import python_source, table
from sortify.formats.calls import Call, calls_of, tensors_of
from sortify.formats.python_folder import outline
from sortify.formats.spelling import Names, comment, literal, place
from sortify.formats.spelling import call as call_of
from sortify.formats.table import FORMATS

CASES = {case.name: case for case in MODELS}
KINDS = ("resnet", "tied_embeddings", "dict_output")


@functools.cache
def converted(name: str) -> SortedModel:
    return sortify(CASES[name].build(), CASES[name].inputs()).eval()


def small_of(name: str) -> tuple[ExtractedModel, tuple[Tensor, ...]]:
    model = converted(name)
    subnet = model.space.subnet(**dict.fromkeys(model.space.groups, 0.5))
    return model.extract(subnet=subnet), model.example_tensors


def answered(model: ExtractedModel, tensors: Sequence[Tensor]) -> Call:
    args, kwargs = model.signature.call(tensors)
    with torch.no_grad():
        return Call(tuple(tensors), args, kwargs, model.eval()(*args, **kwargs))


def read(folder: Path) -> Any:
    """The module `model` of a folder, in this process."""
    spec = importlib.util.spec_from_file_location("model_of_a_test", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- every format


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("form", FORMATS)
def test_what_is_written_computes_the_same_for_any_batch(form: str, name: str, tmp_path: Path) -> None:
    small, examples = small_of(name)
    target = tmp_path / f"small{FORMATS[form].suffix}"
    assert write(small, examples, target, form) <= 1e-5
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    many = answered(small, [torch.cat([tensor, tensor.flip(0), tensor]) for tensor in examples])
    found = outputs(small, target, form, many)
    assert_close_outputs(list(found), many.leaves, 1e-5)
    with pytest.raises(AssertionError, match="differ"):
        assert_close_outputs([tensor + 1 for tensor in found], many.leaves, 1e-5)


def outputs(model: ExtractedModel, target: Path, form: str, of: Call) -> list[Tensor]:
    if form == "python":  # the check ran it in a process of its own already
        return tensors_of(read(target).load()(*of.args, **of.kwargs))
    (found,) = FORMATS[form].run(model, target, [of])
    return list(found)


def spoiled(model: ExtractedModel) -> ExtractedModel:
    """The model with another weight."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(other.parameters())).mul_(1.1)
    return other


@pytest.mark.parametrize("form", FORMATS)
def test_a_wrong_file_is_not_put_in_its_place(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, examples = small_of("dict_output")
    right = FORMATS[form]
    wrong = replace(right, write=lambda model, tensors, target: right.write(spoiled(model), tensors, target))
    monkeypatch.setattr(table, "FORMATS", {form: wrong})
    target = tmp_path / f"small{right.suffix}"
    if right.suffix:
        target.write_bytes(b"earlier")
    with pytest.raises(
        ProofError, match=rf"not written: as {form} its outputs differ from the sub-network's by .* at "
    ):
        write(small, examples, target, form)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([b"earlier"] if right.suffix else [])


def test_a_file_for_one_batch_size_is_not_put_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, examples = small_of("dict_output")

    def of_one_size(model: ExtractedModel, tensors: Sequence[Tensor], target: Path) -> None:
        torch.export.save(torch.export.export(model, tuple(tensors)), target)

    monkeypatch.setattr(table, "FORMATS", {"pt2": replace(FORMATS["pt2"], write=of_one_size)})
    with pytest.raises(ProofError, match="not written: as pt2 it does not run"):
        write(small, examples, tmp_path / "small.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []


def test_calls_change_every_open_size() -> None:
    small, examples = small_of("tied_embeddings")
    ((batch, sequence),) = {tuple(tensor.shape) for tensor in examples}
    shapes = {tuple(each.tensors[0].shape) for each in calls_of(small.train(), examples)}
    assert small.training
    assert len(shapes) == 3
    assert {shape[0] for shape in shapes} > {batch}
    assert {shape[1] for shape in shapes} > {sequence}


def test_rounding_to_half_is_allowed(tmp_path: Path) -> None:
    small, examples = small_of("batch_norm_mlp")
    small = copy.deepcopy(small).bfloat16()
    assert write(small, [tensor.bfloat16() for tensor in examples], tmp_path / "small", "python") <= 1e-2
    assert read(tmp_path / "small").load().get_parameter("net.0.weight").dtype == torch.bfloat16


@pytest.mark.parametrize("form", ["python", "onnx", "pt2"])
def test_a_full_disk_or_a_taken_folder_changes_nothing(form: str, tmp_path: Path) -> None:
    small, examples = small_of("dict_output")
    target = tmp_path / "place"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(SortifyError, match=r"place: (there is something already|cannot be written)"):
        write(small, examples, target, form)
    assert [path.read_text() for path in target.iterdir()] == ["mine"]
    assert list(tmp_path.iterdir()) == [target]


# -- ONNX


def test_onnx_has_the_names_of_the_model(tmp_path: Path) -> None:
    wanted = {
        "dict_output": (["x"], ["logits", "score"]),
        "model_output": (["x"], ["logits", "probabilities", "layers.0", "layers.1"]),
        "keyword_inputs": (["tokens", "mask"], ["output"]),
    }
    for name, names in wanted.items():
        write(*small_of(name), tmp_path / name, "onnx")
        session = onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        assert ([each.name for each in session.get_inputs()], [each.name for each in session.get_outputs()]) == names
    assert [each.shape for each in session.get_inputs()] == [["batch", "sequence"]] * 2


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_onnx_tells_what_to_install(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SortifyError, match=rf"the package {package} is missing: pip install 'sortify\[onnx\]'"):
        write(*small_of("dict_output"), tmp_path / "small.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


# -- Python


def test_python_is_read_by_people_and_needs_torch_alone(tmp_path: Path) -> None:
    small, examples = small_of("tied_embeddings")
    write(small, examples, tmp_path / "small", "python")
    source = (tmp_path / "small/model.py").read_text()
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["model.py", "model.safetensors"]
    roots = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    assert roots - sys.stdlib_module_names == {"torch", "safetensors"}
    assert "This is the evaluation graph" in source
    assert "\n        # blocks.0.attention  (zoo_attention.py:" in source
    assert "module = self.blocks[0].attention\n        q = F.linear(norm1, module.q.weight)" in source
    assert "sortify" not in source


def test_python_has_the_original_s_state_dict_and_keeps_ties(tmp_path: Path) -> None:
    small, examples = small_of("tied_embeddings")
    write(small, examples, tmp_path / "small", "python")
    module = read(tmp_path / "small")
    model, expected = module.load(), small(*examples)
    assert_same_tensors(model.state_dict(), small.state_dict())
    assert model.get_parameter("head.weight") is model.get_parameter("embedding.weight")
    assert_close_outputs(model(*examples), expected, 1e-6)
    model.load_state_dict(small.state_dict())
    module.Model().load_state_dict(small.state_dict())
    model(*examples).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        model.get_parameter("head.weight").zero_()
    with pytest.raises(AssertionError, match="differ"):
        assert_close_outputs(model(*examples), expected, 1e-6)


class Odd(nn.Module):
    """Names that Python or torch use otherwise, a constant that no state dict holds, and arguments of every kind."""

    def __init__(self) -> None:
        super().__init__()
        names = ("0", "torch", "dtype", "_x", "__x", "self", "add")
        self.layers = nn.ModuleDict({name: nn.Linear(8, 8) for name in names})
        self.register_buffer("scale", torch.arange(8.0), persistent=False)

    def forward(
        self, x: Tensor, /, max: Tensor, *rest: Tensor, flag: bool = True, mask: Tensor | None = None, **others: Any
    ) -> Any:
        for layer in self.layers.values():
            x = layer(x).relu()
        y = x * self.scale + max + rest[0] + others["bias"]["value"]
        return [(y, {"flag": flag, 1: y.sum(-1, keepdim=True).expand(y.shape[0], y.shape[1] * 2)}), None]


@functools.cache
def odd() -> SortedModel:
    x = torch.randn(2, 8)
    return sortify(Odd(), Example((x, x + 1, x + 2), {"bias": {"value": x - 1}}))  # type: ignore[arg-type]


def test_python_keeps_names_calls_and_outputs(tmp_path: Path) -> None:
    model = odd().eval()
    small = model.extract(subnet=model.space.smallest)
    write(small, model.example_tensors, tmp_path / "small", "python")
    again = read(tmp_path / "small").load()
    assert_same_tensors(again.state_dict(), small.state_dict())
    args, kwargs = small.signature.call(model.example_tensors)
    assert_close_outputs(again(*args, **kwargs), small(*args, **kwargs), 1e-6)
    assert again(*args, **kwargs)[0][1]["flag"] is True
    for words, change in (
        ("flag: expected True, got False", {"flag": False}),
        ("mask: expected None", {"mask": args[0]}),
        ("others: expected", {"more": 1}),
        (r"x: expected a tensor of sizes \(None, 8\)", {}),
    ):
        with pytest.raises(ValueError, match=words):
            again(args[0] if change else args[0][:, :4], *args[1:], **kwargs, **change)


def test_python_refuses_sizes_that_the_graph_does_not_serve(tmp_path: Path) -> None:
    small, examples = small_of("dict_output")
    small = copy.deepcopy(small)
    small.signature = replace(small.signature, limits=("s0_0 % 3 == 0", "Max(1, s0_0) == s0_0"))
    write(small, examples, tmp_path / "small", "python")
    again = read(tmp_path / "small").load()
    assert again(torch.randn(6, 8))["logits"].shape == (6, 5)
    with pytest.raises(ValueError, match=r"x.shape\[0\] % 3 == 0: expected True, got False"):
        again(torch.randn(4, 8))


def test_a_model_in_parts_is_written_as_weights_alone(tmp_path: Path) -> None:
    model = sortify(Router(), (torch.randn(4, 8),)).eval()
    small = model.extract(subnet=model.space.smallest)
    assert write(small, model.example_tensors, tmp_path / "small.safetensors", "safetensors") <= 1e-5
    for form, words in (
        ("python", "python: a model in parts has no source"),
        ("pt2", r"torch.export cannot follow the extracted model .*; take the format safetensors"),
        ("onnx", r"torch.export cannot follow the extracted model .*; take the format safetensors"),
    ):
        with pytest.raises(SortifyError, match=words) as refusal:
            write(small, model.example_tensors, tmp_path / form, form)
        assert "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["small.safetensors"]


TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["a\nimport os", '"""', "x']; evil()", "\\", "__import__('os')", "a.b", "class", "\u2028", "\x0c0"]
    ),
)


@given(TEXTS)
def test_no_name_becomes_code(text: str) -> None:
    steps = [type(node).__name__ for node in ast.walk(ast.parse(place("self", text), mode="eval"))]
    assert set(steps) <= {"Expression", "Name", "Attribute", "Subscript", "Constant", "Load"}
    assert steps.count("Name") == 1
    assert ast.literal_eval(literal({"k": [text, 1.5, None]}, {})) == {"k": [text, 1.5, None]}
    plain = comment(text)
    assert len(f"# {plain}".splitlines()) == 1
    assert not set(plain) & set("\"'\\\n\r")
    names = Names(["given"])
    made = [names.new(text), names.new(text), names.new("given")]
    assert len(set(made)) == 3
    assert all(each.isidentifier() and each.isascii() and not keyword.iskeyword(each) for each in made)
    assert "given" not in made


EVIL = "a\n    import os; os.system('false')\n'\"\"\"\\"


def test_where_a_graph_says_it_is_from_is_no_code(tmp_path: Path) -> None:
    small, examples = small_of("dict_output")
    small = copy.deepcopy(small)
    for node in small.runners["eval"].module.graph.nodes:
        node.meta |= {"sortify_module": EVIL, "sortify_source": EVIL}
    write(small, examples, tmp_path / "small", "python")
    source = (tmp_path / "small/model.py").read_text()
    lines = [line.strip() for line in source.splitlines() if "import os" in line]
    assert lines
    assert all(line.startswith("#") for line in lines)
    assert not any(isinstance(n, ast.Import) and n.names[0].name == "os" for n in ast.walk(ast.parse(source)))


@pytest.mark.parametrize("name", ["self", "torch", "fixed", "a b", "x=evil()", "class"])
def test_an_argument_that_source_cannot_name_is_refused(name: str, tmp_path: Path) -> None:
    small, examples = small_of("dict_output")
    small = copy.deepcopy(small)
    (parameter,) = small.signature.parameters
    (argument,) = small.signature.arguments
    small.signature = replace(
        small.signature, parameters=(replace(parameter, name=name),), arguments=(replace(argument, name=name),)
    )
    with pytest.raises(SortifyError, match=r"python: (an argument of the model is called|the arguments of the model)"):
        write(small, examples, tmp_path / "small", "python")
    assert list(tmp_path.iterdir()) == []


def test_an_op_of_another_package_is_refused(tmp_path: Path) -> None:
    small, examples = small_of("dict_output")
    small = copy.deepcopy(small)
    node = next(n for n in small.runners["eval"].module.graph.nodes if n.target is torch.ops.aten.relu.default)
    before, node.target = node.target, max
    try:
        with pytest.raises(SortifyError, match=r"not written: model.py does not run|cannot be"):
            write(small, examples, tmp_path / "small", "python")
    finally:
        node.target = before
    assert list(tmp_path.iterdir()) == []


@torch.library.custom_op("sortify_tests::tripled", mutates_args=())
def tripled(x: torch.Tensor) -> torch.Tensor:
    return 3 * x


@tripled.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Triples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.first(tripled(x)))
        return y


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ("onnx", r"onnx: torch's exporter cannot write the model: .*sortify_tests"),
        ("python", "sortify_tests::tripled is"),
    ],
)
def test_an_op_that_a_format_has_not_is_named(form: str, why: str, tmp_path: Path) -> None:
    examples = (torch.rand(2, 4),)
    small = sortify(Triples().eval(), examples).extract(budget=1.0)
    with pytest.raises(SortifyError, match=why):
        write(small, examples, tmp_path / "small", form)
    assert list(tmp_path.iterdir()) == []


def test_an_outline_tells_structures_apart() -> None:
    x = torch.zeros(2)
    told = {repr(outline(value, [])) for value in ([x], (x,), {"a": x}, {"b": x}, {"a": (x, 1)}, {"a": (x, 2)}, x)}
    assert len(told) == 7


def test_values_that_source_cannot_hold_are_refused() -> None:
    with pytest.raises(SortifyError, match=r"python: a object .* cannot be written as source"):
        literal([object()], {})
    assert eval(literal([float("-inf"), 2 + 1j, slice(None, 3), torch.float16, (1,)], {})) == [
        float("-inf"),
        2 + 1j,
        slice(None, 3),
        torch.float16,
        (1,),
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "x[:]"),
        ((0, 0, sys.maxsize), "x[:]"),
        ((1, 2, 5), "x[:, 2:5]"),
        ((1, -3, -1), "x[:, -3:-1]"),
        ((-1, 1, 9, 2), "x[..., 1:9:2]"),
        ((2, None, 2), "x[:, :, :2]"),
        ((-2, 1, 3), "torch.ops.aten.slice.Tensor(x, -2, 1, 3, 1)"),
    ],
)
def test_slices_are_spelled_as_people_write_them(arguments: tuple[int, ...], expected: str) -> None:
    graph, x = torch.fx.Graph(), torch.randn(4, 5, 6)
    hole = graph.placeholder("x")
    node = graph.call_function(torch.ops.aten.slice.Tensor, (hole, *arguments))
    text = call_of(node, {hole: "x"})
    assert text == expected
    assert torch.equal(eval(text), torch.ops.aten.slice.Tensor(x, *arguments))


def test_every_helper_of_the_source_is_in_it() -> None:
    source = python_source.source_of(small_of("dict_output")[0])
    defined = {node.name for node in ast.parse(source).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert defined == {"Group", "Model", "load", *(helper.__name__ for helper in python_source.HELPERS)}


# -- the command


def test_the_command_writes_onnx_and_python(tmp_path: Path) -> None:
    write_folder(tmp_path)
    works(tmp_path, "convert", "model.pt")
    said = works(tmp_path, "extract", "--width", "0.5", "-o", "small.onnx").stdout
    assert "check: outputs equal the sub-network's, largest difference" in said
    assert "saved: small.onnx  (use it: onnxruntime.InferenceSession(path))" in said
    assert "saved: source" in works(tmp_path, "extract", "--width", "0.5", "-o", "source", "--format", "python").stdout
    x = torch.randn(5, 1, 8, 8)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_close_outputs(read(tmp_path / "source").load()(x), torch.from_numpy(expected), 1e-5)
    result = call(tmp_path, "extract", "--width", "0.5", "-o", "source", "--format", "python")
    assert result.exit_code == 1
    assert "there is something already" in result.stderr
