"""Where models come from: every form loads, nothing hostile runs, every mistake is one clear line."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import stat
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from sortify.errors import SourceError
from sortify.sources.source import Source, load_source
from sortify.sources.trust import check_pickle, find_allowed, is_symbolic

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2}


class Own(nn.Module):
    """A user's module, which no allow-list knows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class Calls:
    """Pickles to a call of `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
        )
    )


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=64, **SMALL)
    )


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, **SMALL
    )
    return transformers.LlamaForCausalLM(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "vit_b_16": lambda: torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32),
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "swin_t": lambda: torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [7, 7]),
    "vit_tiny": lambda: timm.create_model("vit_tiny_patch16_224", depth=1),
    "convnext_atto": lambda: timm.create_model("convnext_atto"),
    "efficientnet_b0": lambda: timm.create_model("efficientnet_b0"),
    "bert": bert,
    "gpt2": gpt2,
    "llama": llama,
    "layers": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False),
}


def equal_states(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def refused(text: str, message: str, **options: Any) -> None:
    """`text` is refused with a message of one line."""
    with pytest.raises(SourceError, match=message) as caught:
        load_source(text, **options)
    assert "\n" not in str(caught.value)


def test_the_comparison_sees_a_difference() -> None:
    assert equal_states(nn.Linear(1, 1), nn.Linear(1, 2)) is False
    assert equal_states(nn.Linear(1, 1), nn.Conv1d(1, 1, 1)) is False


# ---------------------------------------------------------------------------------------------- pickled


@pytest.mark.parametrize("name", MODELS)
def test_pickled_modules_of_known_packages_load(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    torch.save(model, tmp_path / f"{name}.pt")
    source = load_source(str(tmp_path / f"{name}.pt"), input="1x3x32x32")
    assert (source.name, source.program) == (name, None)
    assert source.module is not None
    assert type(source.module) is type(model)
    assert equal_states(source.module, model)


def test_users_classes_are_refused_and_trusted(tmp_path: Path) -> None:
    path = str(tmp_path / "own.pth")
    torch.save(nn.Sequential(Own()), path)
    refused(path, r"asks for (tests\.)?test_sources\.Own: not among .* --trust loads it")
    source = load_source(path, trust=True, input="1x3")
    assert source.module is not None
    assert source.module(torch.ones(1, 3)).shape == (1, 2)


def hostile(folder: Path) -> dict[str, tuple[Any, str]]:
    """What a file holds -> the names that must be reported."""
    mark = f"touch {folder / 'ran'}"
    return {
        "os.system": (Calls(os.system, mark), r"asks for (posix|nt)\.system"),
        "eval": (Calls(eval, f"open({str(folder / 'ran')!r}, 'w')"), r"asks for (builtins|__builtin__)\.eval"),
        "subprocess": (Calls(subprocess.run, mark.split()), r"asks for (subprocess|commands)\.run"),
        "hub": (Calls(torch.hub.load, "a/b", "c"), r"asks for torch\.hub\.load"),
        "load": (Calls(torch.load, "x"), r"asks for torch\.serialization\.load"),
        "data set": (Calls(torchvision.datasets.FakeData), r"asks for torchvision\.datasets\.fakedata\.FakeData"),
        "getattr": (Calls(getattr, nn.Linear(1, 1), "forward"), r"asks for (builtins|__builtin__)\.getattr"),
        "partial": (functools.partial(os.system, mark), r"asks for (posix|nt)\.system: not among"),
        "in a module": (nn.Sequential(nn.Linear(1, 1), nn.ModuleList([Own()])), "Own"),
        "constructor": (Calls(nn.Linear, 10, 10), r"calls torch\.nn\.modules\.linear\.Linear while loading"),
        "partial of a model": (
            functools.partial(transformers.BertModel, None),
            r"makes a partial of transformers\.models\.bert\.modeling_bert\.BertModel",
        ),
        "from_pretrained": (
            Calls(timm.create_model, "resnet18", True),
            r"asks for timm\.models\._factory\.create_model",
        ),
        "by type": (
            Calls(torch._tensor._rebuild_from_type_v2, nn.Linear, Tensor, (1, 1), {}),
            r"by way of torch\._tensor\._rebuild_from_type_v2",
        ),
    }


@pytest.mark.parametrize("case", list(hostile(Path())))
def test_hostile_files_are_refused_and_never_run(case: str, tmp_path: Path) -> None:
    content, message = hostile(tmp_path)[case]
    module = nn.Linear(2, 2)
    module.extra = content
    torch.save(module, tmp_path / "model.pt")
    refused(str(tmp_path / "model.pt"), message)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_every_name_is_listed(tmp_path: Path) -> None:
    torch.save([Calls(os.system, ""), Own()], tmp_path / "model.pt")
    refused(str(tmp_path / "model.pt"), r"asks for (posix|nt)\.system, (tests\.)?test_sources\.Own: ")


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "builtins.eval", "builtins.getattr", "torch.load", "torch.hub.load", "torch.nn.Linear",
        "torch.nn.modules.module.torch", "torch.nn.modules.utils._pair", "torch.nn.parallel.DistributedDataParallel",
        "torch.fx.graph_module.GraphModule", "torch.fx.graph_module.reduce_graph_module",
        "torch.jit._script.ScriptModule",
        "torch.nn.functional.torch", "torch.nn.functional.boolean_dispatch", "torchvision.models._api.get_model",
        "torchvision.datasets.mnist.MNIST", "timm.models._factory.create_model",
        "timm.models._hub.load_state_dict_from_hf",
        "transformers.modeling_utils.PreTrainedModel", "transformers.models.auto.modeling_auto.AutoModel",
        "transformers.trainer.Trainer", "transformers.pytorch_utils.torch", "functools.reduce", "operator.attrgetter",
        "", ".", "torch.nn.modules.", "torch.nn.modules.nothing.Nothing", "torch.nn.modules.linear.Linear.forward",
    ],
)  # fmt: skip
def test_names_that_are_never_allowed(name: str) -> None:
    assert find_allowed(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.modules.linear.Linear", "torch.nn.functional.relu", "torch._C._nn.gelu", "functools.partial",
        "timm.layers.mlp.Mlp", "torchvision.ops.misc.Conv2dNormActivation", "transformers.activations.GELUActivation",
        "transformers.models.bert.configuration_bert.BertConfig", "transformers.models.bert.modeling_bert.BertModel",
    ],
)  # fmt: skip
def test_names_that_are_allowed(name: str) -> None:
    assert callable(find_allowed(name))


def test_instructions_that_torch_would_refuse_are_refused_before() -> None:
    for protocol in (0, 4):
        with pytest.raises(SourceError, match="uses the instruction"):
            check_pickle(pickle.dumps({"a": nn.Linear}, protocol), set(), "model.pt")
    with pytest.raises(SourceError, match="cannot be followed"):
        check_pickle(pickle.dumps({"a": 1}, 2)[:-1], set(), "model.pt")
    with pytest.raises(SourceError, match="cannot be followed"):
        check_pickle(b"\x80\x02R.", set(), "model.pt")


def test_a_partial_is_not_called_nor_rebuilt_around_a_model() -> None:
    partial = b"\x80\x02cfunctools\npartial\nctorch.nn.modules.linear\nLinear\n\x85R"
    granted = {
        "functools.partial",
        "torch.nn.modules.linear.Linear",
        "transformers.models.bert.modeling_bert.BertModel",
    }
    check_pickle(partial + b".", granted, "model.pt")
    with pytest.raises(SourceError, match="calls something that it computed"):
        check_pickle(partial + b")R.", granted, "model.pt")
    model = b"ctransformers.models.bert.modeling_bert\nBertModel\n"
    with pytest.raises(SourceError, match=r"partial of transformers\.models\.bert"):
        check_pickle(partial + b"(" + model + b")}Ntb.", granted, "model.pt")
    with pytest.raises(SourceError, match=r"partial of its own"):
        check_pickle(b"\x80\x02cfunctools\npartial\n" + model + b"\x85\x81.", granted, "model.pt")


def packed(path: Path, change: Callable[[zipfile.ZipFile], None], form: int = zipfile.ZIP_STORED) -> str:
    """A sound model.pt, written anew and added to."""
    torch.save(nn.Linear(3, 2), path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", form) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
        change(archive)
    return str(path)


def linked() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("model/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


ARCHIVES: dict[str, tuple[Callable[[zipfile.ZipFile], None], str]] = {
    "outside": (lambda z: z.writestr("../evil", "x"), r"names a file outside of itself \('../evil'\)"),
    "absolute": (lambda z: z.writestr("/evil", "x"), "names a file outside of itself"),
    "link": (lambda z: z.writestr(linked(), "/etc/passwd"), "holds a link"),
    "bomb": (lambda z: z.writestr("model/x", bytes(2**20), zipfile.ZIP_DEFLATED), "compressed or encrypted"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_that_reach_out_are_refused(case: str, tmp_path: Path) -> None:
    change, message = ARCHIVES[case]
    refused(packed(tmp_path / "model.pt", change), message)
    assert load_source(packed(tmp_path / "model.pt", lambda z: None), input="1x3").module is not None


def test_an_archive_that_declares_more_than_it_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(3, 2), path)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 20 : at + 28] = (2**31 - 1).to_bytes(4, "little") * 2  # both sizes of the first record
    path.write_bytes(bytes(data))
    refused(str(path), "declares records of more bytes than it has")


def test_two_records_of_one_name_are_refused(tmp_path: Path) -> None:
    def twice(archive: zipfile.ZipFile) -> None:
        archive.writestr(archive.namelist()[0], b"other")

    refused(packed(tmp_path / "model.pt", twice), "two records of one name")


class Tensors(Calls):
    """Pickles to a tensor that claims something."""

    def __init__(self, sizes: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> None:
        storage = torch.zeros(4).untyped_storage()
        typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
        super().__init__(torch._utils._rebuild_tensor_v2, typed, offset, sizes, strides, False, OrderedDict())


BOMBS: dict[str, tuple[Any, str]] = {
    "tensor past its storage": (Tensors((5,), (1,)), r"makes a tensor of sizes \(5,\) of 4 numbers"),
    "tensor of a huge size": (Tensors((2**40,), (1,)), "makes a tensor of sizes"),
    "tensor of a huge view": (Tensors((2**40,), (0,)), "makes a tensor of sizes"),
    "tensor behind its storage": (Tensors((2,), (1,), 3), "makes a tensor of sizes"),
    "tensor before its storage": (Tensors((2,), (1,), -1), "something else than numbers"),
    "bytes": (Calls(bytearray, 2**40), "calls .*bytearray"),
    "tensor by its class": (Calls(Tensor, 2**40), r"calls torch\.Tensor"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_pickles_that_claim_memory_are_refused(case: str, tmp_path: Path) -> None:
    content, message = BOMBS[case]
    module = nn.Linear(2, 2)
    module.extra = content
    torch.save(module, tmp_path / "model.pt")
    refused(str(tmp_path / "model.pt"), message)


def test_a_storage_larger_than_its_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(3, 2, bias=False), path)
    data = path.read_bytes()
    wanted = b"K\x06t"  # six numbers
    assert data.count(wanted) == 1
    path.write_bytes(data.replace(wanted, b"K\x07t"))
    refused(str(path), "is damaged|storage of 7 numbers is not in its record")


def test_classes_of_ones_own_are_allowed_by_name(tmp_path: Path) -> None:
    path = str(tmp_path / "own.pth")
    torch.save(nn.Sequential(Own()), path)
    for allow in ([f"{Own.__module__}.Own"], [Own.__module__]):
        source = load_source(path, allow=allow, input="1x3")
        assert source.module is not None
        assert source.module(torch.ones(1, 3)).shape == (1, 2)
    for allow in (["other"], [f"{Own.__module__}.Ow"], [Own.__module__[:-1]]):
        refused(path, r"Own: not among .* --allow takes names", allow=allow)
    torch.save([Calls(os.system, "true")], path)
    refused(path, r"asks for (posix|nt)\.system", allow=[Own.__module__])
    refused(path, r"asks for (posix|nt)\.system", allow=["posix", "nt", "os"])


def test_a_module_in_the_working_folder_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pickled_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(nn.Identity(), 2).replace(b"torch.nn.modules.linear\nIdentity", b"pickled_own\nOwn")
    torch.save(nn.Identity(), "model.pt")
    with zipfile.ZipFile("model.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile("model.pt", "w") as archive:
        for name, record in records.items():
            archive.writestr(name, data if name.endswith("data.pkl") else record)
    refused("model.pt", r"asks for pickled_own\.Own")
    assert not (tmp_path / "ran").exists()


def tiny_bert(folder: Path, **changes: int) -> str:
    bert().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return f"transformers/{folder}"


@pytest.mark.parametrize(
    "changes", [{"vocab_size": 10**9}, {"intermediate_size": 10**8}, {"num_hidden_layers": 10**12}]
)
def test_a_config_that_asks_for_much_more_than_the_weights_is_refused(changes: dict[str, int], tmp_path: Path) -> None:
    refused(tiny_bert(tmp_path, **changes), "describes a model that is much larger than its weights")


def test_pickled_weights_of_transformers_are_looked_through(tmp_path: Path) -> None:
    text = tiny_bert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(bert().state_dict(), tmp_path / "pytorch_model.bin")
    assert load_source(text).module is not None
    torch.save({"x": Calls(bytearray, 2**40)}, tmp_path / "pytorch_model.bin")
    refused(text, "calls .*bytearray")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(3, 2), path)
    whole = path.read_bytes()
    for content, message in [
        (b"", "is empty"),
        (whole[: len(whole) // 2], "is damaged, truncated, or no file of torch.save"),
        (b"hello, this is text", "is damaged, truncated, or no file of torch.save"),
        (pickle.dumps({"a": 1}), "is damaged, truncated, or no file of torch.save"),
        (whole.replace(b"data.pkl", b"dada.pkl"), "cannot be read as a pickled module"),
    ]:
        path.write_bytes(content)
        refused(str(path), message)
    path.write_bytes(whole[:50])
    refused(str(path), "cannot be read as a pickled module", trust=True)


def test_files_that_hold_something_else_are_explained(tmp_path: Path) -> None:
    path = str(tmp_path / "model.pt")
    torch.save(nn.Linear(3, 2).state_dict(), path)
    refused(path, r"holds weights only \(a state_dict of 2 tensors\): .* package\.module:factory")
    torch.save([1, 2], path)
    refused(path, r"holds a list, not a torch\.nn\.Module")
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), path)
    refused(path, "is a TorchScript program")
    refused(path, "is a TorchScript program", trust=True)


def test_missing_files_and_unknown_forms(tmp_path: Path) -> None:
    refused(str(tmp_path / "no.pt"), "does not exist")
    refused(str(tmp_path / "no.pt2"), "does not exist")
    (tmp_path / "folder.pt").mkdir()
    refused(str(tmp_path / "folder.pt"), "is no file")
    refused("resnet18", r"names no model: expected model\.pt, model\.pt2, timm/NAME")
    refused("", "names no model")
    refused("model.safetensors", "name a function that builds the model")


# ------------------------------------------------------------------------------------- exported programs


def export(module: nn.Module, *args: Any, **kwargs: Any) -> torch.export.ExportedProgram:
    rows = {0: torch.export.Dim.DYNAMIC}
    named = {k: rows if isinstance(v, Tensor) else None for k, v in kwargs.items()}
    shapes = tuple(rows for _ in args) or named
    return torch.export.export(module.eval(), args, kwargs, dynamic_shapes=shapes, strict=False)


def rewrite(path: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> str:
    """The archive with its records changed, and records added."""
    old = torch._C.PyTorchFileReader(str(path))
    changed = path.with_name("changed.pt2")
    writer = torch._C.PyTorchFileWriter(str(changed))
    for name in old.get_all_records():
        if not name.startswith(".data") and name not in ("byteorder", "version"):
            data = change(name, old.get_record(name))
            writer.write_record(name, data, len(data))
    for name, data in more.items():
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return str(changed)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    torch.export.save(export(net, torch.randn(2, 3, 8, 8)), path)
    return path


def test_exported_programs_load(program: Path) -> None:
    source = load_source(str(program))
    assert (source.name, source.module) == ("net", None)
    assert source.program is not None
    assert isinstance(source.example_inputs, tuple)
    assert source.example_inputs[0].shape == (2, 3, 8, 8)
    module = source.program.module(check_guards=False)
    assert module(torch.randn(5, 3, 8, 8)).shape == (5, 2)
    again = load_source(str(program), input="1x3x8x8").example_inputs
    assert isinstance(again, tuple)
    assert again[0].shape == (1, 3, 8, 8)


def test_exported_programs_with_keyword_inputs_load(tmp_path: Path) -> None:
    torch.export.save(
        export(llama(), input_ids=torch.ones(2, 5, dtype=torch.long), use_cache=False), tmp_path / "llama.pt2"
    )
    source = load_source(str(tmp_path / "llama.pt2"))
    assert isinstance(source.example_inputs, dict)
    assert list(source.example_inputs) == ["input_ids", "use_cache"]


CONV = b"torch.ops.aten.conv2d.default"
ENUM = b'"x": "[1, {\\"__enum\\u005f_\\": 1}]", '
HOSTILE_PROGRAMS: dict[str, tuple[Callable[[str, bytes], bytes], str]] = {
    "target": (lambda _, d: d.replace(CONV, b"torch.hub.load"), r"a call of torch\.hub\.load"),
    "operator": (lambda _, d: d.replace(CONV, b"_operator.attrgetter"), "a call of _operator"),
    "file": (
        lambda _, d: d.replace(CONV, b"torch.ops.aten.from_file.default"),
        r"a call of torch\.ops\.aten\.from_file",
    ),
    "expression": (lambda _, d: d.replace(b'"expr_str": "', b'"expr_str": "eval(chr(49)) + '), "that is no plain size"),
    "pickle": (lambda n, d: saved(Own()) if n.endswith("inputs/model.pt") else d, "a pickle of more than tensors"),
    "json": (lambda n, d: d[:-5] if n.endswith("model.json") else d, "damaged JSON"),
    "flag": (lambda _, d: d.replace(b'"use_pickle": false', b'"use_pickle": true'), "a pickled tensor of a special"),
    "enum": (lambda _, d: d.replace(b'"guards_code"', ENUM + b'"guards_code"'), "torch would import"),
}


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("case", HOSTILE_PROGRAMS)
def test_hostile_programs_are_refused(case: str, program: Path) -> None:
    change, message = HOSTILE_PROGRAMS[case]
    refused(rewrite(program, change), message)


def test_programs_with_code_or_objects_are_refused(program: Path) -> None:
    for record in ("data/aotinductor/model/m.so", "data/constants/custom_obj_0", "data/constants/opaque_obj_0"):
        refused(rewrite(program, lambda _, data: data, **{record: b"x"}), "--trust loads it and runs what it holds")


def test_an_untouched_rewrite_is_accepted(program: Path) -> None:
    assert load_source(rewrite(program, lambda _, data: data)).program is not None


def test_damaged_programs_are_refused(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    for content, message in [
        (b"", "is empty"),
        (b"text", "is damaged, truncated"),
        (program.read_bytes()[:2000], "is damaged, truncated"),
        (saved({"a": 1}), "cannot be read as an exported program"),
    ]:
        path.write_bytes(content)
        refused(str(path), message)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.1")
    refused(str(path), "of an older torch")


def test_expressions_of_sizes_are_told_from_code() -> None:
    assert is_symbolic("Add(Symbol('s16', positive=True, integer=True), Integer(-2))")
    assert is_symbolic("Max(1, 2*s0//3 + 4)")
    for text in (
        "eval(1)",
        "().__class__",
        "s0.subs(1)",
        "Symbol('a b')",
        "[1]",
        "Add('os.system')",
        "lambda: 0",
        '"x"',
    ):
        assert not is_symbolic(text)


# ------------------------------------------------------------------------------------------- named models


def test_timm_models_by_name() -> None:
    source = load_source("timm/convnext_atto")
    assert source.name == "convnext_atto"
    assert type(source.module).__module__ == "timm.models.convnext"
    refused("timm/convnext_ato", "timm has no model 'convnext_ato': did you mean .*convnext_atto")
    refused("timm/hf-hub:a/b", "timm has no model")
    refused("timm/", "timm has no model ''")


def test_torchvision_models_by_name() -> None:
    source = load_source("torchvision/mobilenet_v2")
    assert source.name == "mobilenet_v2"
    assert isinstance(source.module, torchvision.models.MobileNetV2)
    refused("torchvision/resnet_18", "torchvision has no model 'resnet_18': did you mean resnet18")
    refused("torchvision/zzzz", r"torchvision has no model 'zzzz': there are \d+, such as")


def test_transformers_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    model.save_pretrained(tmp_path / "tiny")
    source = load_source(f"transformers/{tmp_path / 'tiny'}")
    assert source.name == "tiny"
    assert source.module is not None
    assert equal_states(source.module, model)
    monkeypatch.chdir(tmp_path)
    assert load_source("transformers/tiny").name == "tiny"
    refused("tiny", "write transformers/tiny")
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"short")
    refused("transformers/tiny", "cannot be read as a transformers model: ")
    (tmp_path / "tiny" / "model.safetensors").unlink()
    refused("transformers/tiny", "cannot be read as a transformers model: OSError")


def test_transformers_folders_that_are_none(tmp_path: Path) -> None:
    refused(f"transformers/{tmp_path / 'no'}", "is no folder")
    refused(f"transformers/{tmp_path}", r"has no config\.json")
    config = {"model_type": "bert", "architectures": ["Nonsense"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(f"transformers/{tmp_path}", r"names the architecture \['Nonsense'\], which transformers does not have")
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["AutoModel"]}))
    refused(f"transformers/{tmp_path}", "transformers does not have")
    (tmp_path / "config.json").write_text("{")
    refused(f"transformers/{tmp_path}", "cannot be read as a transformers model")
    remote = {"auto_map": {"AutoConfig": "code.Config"}, "model_type": "own"}
    (tmp_path / "config.json").write_text(json.dumps(remote))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused(f"transformers/{tmp_path}", "cannot be read as a transformers model")
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------------ factory

FACTORIES = """
import torch
model = torch.nn.Linear(3, 2)
number = 7
def plain(): return torch.nn.Linear(3, 2)
def both(): return torch.nn.Linear(3, 2), (torch.ones(4, 3),)
def named(): return torch.nn.Linear(3, 2), {"input": torch.ones(4, 3)}
def bare(): return torch.nn.Linear(3, 2), torch.ones(4, 3)
def wrong(): return {"weight": 1}
def odd(): return torch.nn.Linear(3, 2), "text"
def needs(size): return torch.nn.Linear(size, 2)
def fails(): raise RuntimeError("first line" + chr(10) + "second line")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A working folder with a module of factories; its name."""
    name = f"factories_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    (tmp_path / f"{name}_broken.py").write_text("1 / 0")
    (tmp_path / f"{name}_needs.py").write_text("import package_that_nobody_has")
    monkeypatch.chdir(tmp_path)
    return name


def test_factories_give_models_and_inputs(here: str) -> None:
    def load(name: str, **options: Any) -> Source:
        return load_source(f"{here}:{name}", **options)

    assert load("plain", input="2x3").name == "plain"
    assert isinstance(load("model", input="2x3").module, nn.Linear)
    for name in ("both", "bare"):
        inputs = load(name).example_inputs
        assert isinstance(inputs, tuple)
        assert inputs[0].shape == (4, 3)
    named = load("named").example_inputs
    assert isinstance(named, dict)
    assert list(named) == ["input"]
    given = load("both", input="7x3").example_inputs
    assert isinstance(given, tuple)
    assert given[0].shape == (7, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (":plain", "cannot tell which inputs Linear takes: give example inputs .*--input 1x3x224x224"),
        (":number", "is a int, not a function"),
        (":wrong", r"returned a dict: expected a module or \(module, example_inputs\)"),
        (":odd", "returned example inputs of type str"),
        (":needs", "raised TypeError: .*missing 1 required positional argument"),
        (":fails", "raised RuntimeError: first line second line"),
        (":plan", "has no 'plan': did you mean plain"),
        ("_broken:make", "importing .* failed: ZeroDivisionError"),
        ("_needs:make", "importing .* failed: ModuleNotFoundError: No module named 'package_that_nobody_has'"),
        ("_absent:make", "no module '.*_absent' in .* or among the installed packages"),
        (".deeper:make", "importing .* failed|no module"),
    ],
)
def test_factories_that_do_not_work(here: str, text: str, message: str) -> None:
    refused(f"{here}{text}", message)
