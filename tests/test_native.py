"""Sub-networks as models of the original's own class: settings that give the shapes, proven by outputs."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from cli_calls import call, errors, works, write_folder
from torch import nn

from sortify import (
    BudgetError,
    NativeError,
    SortedModel,
    Trained,
    difference,
    load,
    nearest_native,
    sortify,
    to_native,
)
from sortify.native import timm_models
from sortify.native.comparing import fill, furthest
from sortify.native.hugging_face import NOT_TAKEN, build
from sortify.native.nearest import _moving, _whole
from sortify.native.numbering import left, renumbered
from sortify.native.settings import changed, counts, leaves, told
from sortify.native.solve import Wanted, solve, wrong
from sortify.sources.origin import Origin, origin_of

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    return transformers.LlamaForCausalLM(config).eval()


def bert() -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)).eval()


@cache
def converted(make: Any) -> SortedModel:
    return sortify(make())


# -- settings and names


def test_settings_are_changed_by_place_and_the_given_ones_stay() -> None:
    given = {"a": 4, "text": {"sizes": [1, 2, 3], "name": "x"}, "on": True}
    assert dict(leaves(given))[("text", "sizes", 2)] == 3
    assert counts(given) == {("a",): 4, ("text", "sizes", 1): 2, ("text", "sizes", 2): 3}
    found = changed(given, {("a",): 2, ("text", "sizes"): [1]})
    assert found == {"a": 2, "text": {"sizes": [1], "name": "x"}, "on": True}
    assert given["a"] == 4
    assert [told(path) for path in counts(given)] == ["a", "text.sizes[1]", "text.sizes[2]"]


def test_numbers_that_are_left_move_up_and_gaps_stay() -> None:
    full = [f"layers.{i}.{j}.w" for i in range(4) for j in (0, 2)] + ["head.3.w"]
    kept = [name for name in full if not name.startswith(("layers.1.", "layers.2."))]
    assert renumbered(full, kept) == {
        "layers.0.0.w": "layers.0.0.w",
        "layers.0.2.w": "layers.0.2.w",
        "layers.3.0.w": "layers.1.0.w",
        "layers.3.2.w": "layers.1.2.w",
        "head.3.w": "head.3.w",
    }
    assert left(full, kept) == {"layers": (4, [0, 3])}
    assert left([*full, "rest.0.w1", "rest.0.w2"], kept) == {"layers": (4, [0, 3]), "rest": (1, [])}
    assert renumbered(["layer_1.w1", "layer_2.w1", "head2.w", "at01.w"], ["layer_2.w1", "head2.w", "at01.w"]) == {
        "layer_2.w1": "layer_1.w1",
        "head2.w": "head2.w",
        "at01.w": "at01.w",
    }


# -- the solver, on a library that is made up


def toy(settings: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of a model with `depth` layers of `width` and `ratio * width` units; heads do not show."""
    if settings["width"] % settings["heads"]:
        raise ValueError("heads must divide the width")
    width, inner = settings["width"], settings["ratio"] * settings["width"]
    layers = {f"layers.{i}.{n}": s for i in range(settings["depth"]) for n, s in (("up", (inner, width)),)}
    return {"embedding": (settings["words"], width), **layers}


FULL = {"width": 32, "ratio": 2, "depth": 3, "words": 32, "heads": 4, "kinds": ["a", "b", "c"]}


def solved(target: Any, kept: tuple[int, ...], axes: dict[int, int]) -> list[dict[str, Any]]:
    full = toy(FULL)
    names = tuple(name for name in full if not name.startswith("layers") or int(name.split(".")[1]) in kept)
    found = solve(toy, FULL, Wanted(full, names, toy(target), axes))
    return [{told(path): value for path, value in changes.items()} for changes in found]


def test_settings_of_the_wanted_shapes_are_found_and_no_others_are_changed() -> None:
    first, *more = solved(FULL | {"width": 16, "heads": 4}, (0, 1, 2), {32: 16, 64: 32})
    assert first == {"width": 16}  # and not the words, of which there are as many
    assert {"width": 16, "heads": 2} in more  # what no shape shows comes later


def test_lists_with_an_entry_for_each_block_are_cut_to_those_that_are_kept() -> None:
    found = solved(FULL | {"depth": 2}, (0, 2), {})
    assert found[0] == {"depth": 2}
    assert {"depth": 2, "kinds": ["a", "c"]} in found


def test_shapes_that_no_settings_have_are_not_found() -> None:
    full = toy(FULL)
    odd = {**full, "layers.1.up": (7, 32)}
    assert list(solve(toy, FULL, Wanted(full, tuple(full), odd, {64: 7}))) == []
    assert wrong(full, odd) == 1
    assert wrong(full, {}) >= 4


# -- transformers


def test_the_origin_is_kept_with_the_model(tmp_path: Path) -> None:
    model = converted(bert)
    origin = model.blueprint.origin
    assert origin is not None
    assert (origin.library, origin.name) == ("transformers", "BertForSequenceClassification")
    assert Origin.from_json(json.loads(json.dumps(origin.to_json()))) == origin
    model.save(tmp_path / "sorted")
    assert load(tmp_path / "sorted").blueprint.origin == origin
    assert origin_of(nn.Linear(2, 2)) is None

    class Own(transformers.BertModel):
        pass

    assert origin_of(Own(transformers.BertConfig(**SIZES))) is None


@pytest.mark.parametrize(
    ("make", "fractions", "changes"),
    [
        (bert, {"width": 0.5, "heads": 0.5}, {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}),
        (bert, {"depth": 0.5}, {"num_hidden_layers": 2}),
        (llama, {"width": 0.5}, {"hidden_size": 16, "intermediate_size": 32}),
        (
            llama,
            {"heads": 0.5, "depth": 0.5},
            {"num_key_value_heads": 1, "num_attention_heads": 2, "num_hidden_layers": 2},
        ),
    ],
)
def test_a_sub_network_is_a_model_of_the_class(
    make: Any, fractions: dict[str, float], changes: dict[str, int], tmp_path: Path
) -> None:
    model = converted(make)
    native = to_native(model, model.space.subnet(**fractions))
    assert native.changes == changes
    assert type(native.module) is type(make())
    native.save(tmp_path / "small")
    again = type(native.module).from_pretrained(tmp_path / "small").eval()  # type: ignore[attr-defined]
    inputs = {"input_ids": torch.randint(50, (3, 9)), "attention_mask": torch.ones(3, 9, dtype=torch.long)}
    with torch.no_grad(), model.eval().using(**fractions):
        assert difference(model(**inputs)["logits"], again(**inputs)["logits"]) <= 1e-5


def test_a_sub_network_that_the_class_cannot_be_is_refused_with_the_reason() -> None:
    model = converted(bert)
    with pytest.raises(NativeError, match=r"no settings of BertForSequenceClassification give .*width=0.5"):
        to_native(model, model.space.subnet(width=0.5))  # the class ties the heads' size to the width


def test_settings_with_other_outputs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sortify.native.native.furthest", lambda *args: 0.5)
    with pytest.raises(NativeError, match=r"but outputs that differ by 5.0e-01"):
        to_native(converted(llama), converted(llama).space.subnet(width=0.5))


# -- timm


def vision() -> nn.Module:
    """With another number of classes than the name stands for."""
    torch.manual_seed(0)
    return timm.create_model("test_vit", pretrained=False, num_classes=5).eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("fractions", "changes"),
    [
        ({"width": 0.5, "heads": 0.5}, {"embed_dim": 32, "num_heads": 1, "num_classes": 5}),
        ({"depth": 0.5}, {"depth": 3, "num_classes": 5}),
    ],
)
def test_a_sub_network_is_a_model_of_timm(fractions: dict[str, float], changes: dict[str, int], tmp_path: Path) -> None:
    model = converted(vision)
    native = to_native(model, model.space.subnet(**fractions))
    assert native.changes == changes
    native.save(tmp_path / "small")
    code = (
        "import sys; sys.modules['sortify'] = None\n"
        "import timm, torch\n"
        "model = timm.create_model('local-dir:small', pretrained=True).eval()\n"
        "torch.save(model(torch.ones(2, 3, 160, 160)).detach(), 'out.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    with torch.no_grad(), model.eval().using(**fractions):
        assert difference(model(torch.ones(2, 3, 160, 160)), torch.load(tmp_path / "out.pt")) <= 1e-5


def test_the_arguments_of_an_architecture_are_found() -> None:
    found = timm_models.settings("vit_tiny_patch16_224")
    assert (found["embed_dim"], found["depth"], found["num_heads"], found["mlp_ratio"]) == (192, 12, 3, 4.0)
    assert timm_models.settings("resnet18")["channels"] == [64, 128, 256, 512]
    with pytest.raises(NativeError, match="has no architecture hf-hub:somebody/model"):
        timm_models.build("hf-hub:somebody/model", {})


def test_a_folder_of_timm_that_cannot_be_read_back_never_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = to_native(converted(vision), converted(vision).space.subnet(depth=0.5))
    other = vision()
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: other)
    with pytest.raises(NativeError, match="does not read what save_for_hf wrote"):
        native.save(tmp_path / "small")
    assert not list(tmp_path.iterdir())


# -- the nearest


def test_groups_that_a_class_ties_shrink_together() -> None:
    assert _moving(converted(bert)) == (("depth",), ("width", "heads"))
    assert _moving(converted(llama)) == (("width", "heads", "depth"), ())


def test_the_nearest_within_a_budget_is_a_model_of_the_class() -> None:
    model = converted(bert)
    full = model.cost().flops
    for budget in (0.3, 0.6):
        native = nearest_native(model, budget)
        assert 0.5 * budget * full <= model.cost(native.subnet).flops <= budget * full
        fractions = dict(native.subnet.fractions)
        assert fractions["width"] == fractions["heads"]
        assert native.error <= 1e-5
    with pytest.raises(BudgetError):
        nearest_native(model, 1e-6)


def test_of_a_trained_model_the_nearest_was_trained() -> None:
    model = copy.deepcopy(converted(bert))
    model.record_trained(Trained((("width", (0.5, 1.0)), ("heads", (0.5, 1.0)))))
    native = nearest_native(model, 0.7)
    assert model.space.is_member(native.subnet)
    assert dict(native.subnet.fractions) == {"width": 0.5, "heads": 0.5, "depth": 1.0}
    model.record_trained(Trained((("width", (0.5, 1.0)),)))
    with pytest.raises(NativeError, match="none of 0 others within the budget"):
        nearest_native(model, 0.7)


def test_the_chosen_one_is_the_nearest_where_it_can_be() -> None:
    model = converted(llama)
    assert nearest_native(model, 1.0).subnet == model.space.full
    chosen = model.choose(0.5).subnet
    assert nearest_native(model, 0.5).subnet == chosen or not _is_native(model, chosen)


def _is_native(model: SortedModel, subnet: Any) -> bool:
    try:
        to_native(model, subnet)
    except NativeError:
        return False
    return True


def test_fractions_are_those_of_whole_sizes() -> None:
    model = converted(bert)
    assert _whole(model, ("heads",)) == (0.25, 0.5, 0.75, 1.0)
    assert _whole(model, ("no such group",)) == (1.0,)


# -- what is refused


def test_parameters_that_no_op_uses_may_have_any_size() -> None:
    module = nn.Module()
    module.used, module.idle = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, 3))
    fill(module, {"used": torch.ones(2), "idle": torch.ones(4, 2)})
    assert module.used.tolist() == [1, 1]
    assert module.idle.tolist() == [[1, 1, 0], [1, 1, 0]]
    full = {"a": (4,), "idle": (8,)}
    assert wrong({"a": (2,), "idle": (3,)}, {"a": (2,), "idle": (8,)}, {"idle"}) == 0
    wanted = Wanted(full, ("a", "idle"), {"a": (2,), "idle": (8,)}, {4: 2}, (), frozenset({"idle"}))
    found = solve(lambda settings: {"a": (settings["n"],), "idle": (2 * settings["n"],)}, {"n": 4}, wanted)
    assert next(found) == {("n",): 2}


def test_what_a_config_names_to_be_fetched_or_run_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    known = transformers.LlamaConfig.from_dict
    monkeypatch.setattr(transformers.LlamaConfig, "from_dict", lambda given: taken.append(given) or known(given))
    hostile = dict.fromkeys(NOT_TAKEN, "somebody/code")
    build("LlamaForCausalLM", {**SIZES, **hostile, "parts": [{"size": 3, **hostile}]})
    assert taken == [{**SIZES, "parts": [{"size": 3}]}]


def test_a_candidate_that_does_not_run_is_no_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", fails)
    with pytest.raises(NativeError, match="do not run: shapes do not fit"):
        to_native(converted(llama), converted(llama).space.subnet(width=0.5))


def test_a_wrong_number_of_heads_is_seen() -> None:
    model = converted(bert)
    subnet = model.space.subnet(width=0.5, heads=0.5)
    right = to_native(model, subnet)
    origin = model.blueprint.origin
    assert origin is not None
    wrong_heads = build(origin.name, {**origin.settings, **right.changes, "num_attention_heads": 4})
    names = {name: name for name in wrong_heads.state_dict()}
    assert furthest(model, subnet, wrong_heads, names) > 1e-2
    assert furthest(model, subnet, right.module, names) <= 1e-12


def test_models_without_values_and_in_other_dtypes() -> None:
    with pytest.raises(NativeError, match="meta device"):
        to_native(copy.deepcopy(converted(llama)).to("meta"), converted(llama).space.subnet(depth=0.5))
    wide = copy.deepcopy(converted(llama)).double()
    native = to_native(wide, wide.space.subnet(depth=0.5))
    assert {parameter.dtype for parameter in native.module.parameters()} == {torch.float64}


def test_only_models_of_the_library_are_built() -> None:
    for name in ("AutoConfig", "logging", "no_such_class"):
        with pytest.raises(NativeError, match="has no model class"):
            build(name, {})


def test_a_folder_that_cannot_be_read_back_never_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = to_native(converted(llama), converted(llama).space.subnet(depth=0.5))
    (tmp_path / "small").mkdir()
    other = llama()
    monkeypatch.setattr(type(other), "from_pretrained", lambda *args: other)
    with pytest.raises(NativeError, match="does not read what"):
        native.save(tmp_path / "small")
    assert not list((tmp_path / "small").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_what_is_there_already_is_never_written_over(tmp_path: Path) -> None:
    native = to_native(converted(llama), converted(llama).space.subnet(depth=0.5))
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder/mine.txt"):
        (tmp_path / name).write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(NativeError, match=r"there is something already; name a folder that is new or empty"):
            native.save(tmp_path / name)
    assert [(tmp_path / name).read_text() for name in ("file", "folder/mine.txt")] == ["mine", "mine"]


def test_auto_writes_what_the_model_came_from(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "given")  # type: ignore[operator]
    works(tmp_path, "convert", "transformers/given")
    said = " ".join(works(tmp_path, "extract", "--width", "0.5").stdout.split())
    assert "written as a graph, as no settings of BertForSequenceClassification give" in said
    assert (tmp_path / "extracted.pt2").is_file()
    said = works(tmp_path, "extract", "--budget", "0.5", "--native", "-o", "near").stdout
    assert "chosen: width=0.75 heads=0.75 depth=0.75: the largest within the budget that is a model of" in said
    transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "near")
    works(tmp_path, "extract", "--depth", "0.5")
    transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "extracted")
    result = call(tmp_path, "extract", "--depth", "0.5", "--format", "timm", "-o", "other")
    assert "but the model was converted from" in result.stderr
    result = call(tmp_path, "extract", "--native", "--width", "0.5")
    assert result.exit_code == 2
    result = call(tmp_path, "extract", "--depth", "0.5")  # the folder is there
    assert result.exit_code == 1


def test_the_folder_is_used_where_there_is_no_sortify(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "given")  # type: ignore[operator]
    works(tmp_path, "convert", "transformers/given")
    said = works(tmp_path, "extract", "--heads", "0.5", "-o", "small", "--format", "huggingface").stdout
    assert "LlamaForCausalLM.from_pretrained(path); num_key_value_heads=1, num_attention_heads=2" in " ".join(
        said.split()
    )
    code = (
        "import sys; sys.modules['sortify'] = None\n"
        "import torch, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained('small')\n"
        "print(model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False).tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    tokens = torch.tensor([[1, 2, 3]])
    model = load(tmp_path / "sorted").eval()
    with torch.no_grad(), model.using(heads=0.5):
        for _ in range(5):  # greedy, without a cache
            logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens))["logits"]
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
    assert json.loads(done.stdout.strip().splitlines()[-1]) == tokens.tolist()


def test_a_model_of_one_s_own_has_no_class_to_be(tmp_path: Path) -> None:
    write_folder(tmp_path)
    works(tmp_path, "convert", "model.pt")
    result = call(tmp_path, "extract", "--budget", "0.5", "--format", "huggingface")
    assert result.exit_code == 1
    said = " ".join(errors(result))
    assert "was not converted from a class of a known library (timm, torchvision, transformers)" in " ".join(
        said.split()
    )
    assert not (tmp_path / "extracted").exists()
