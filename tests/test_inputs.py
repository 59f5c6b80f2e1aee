"""Example inputs: as written, or as the model's own attributes tell."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

from sortify.errors import SourceError
from sortify.sources.inputs import example_inputs_for, parse_inputs

pytestmark = pytest.mark.filterwarnings("ignore")


def described(inputs: Any) -> Any:
    """Shape and dtype of every tensor, everything else as it is."""
    if isinstance(inputs, dict):
        return {name: described(value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return [described(value) for value in inputs]
    return f"{str(inputs.dtype)[6:]}{list(inputs.shape)}" if isinstance(inputs, torch.Tensor) else inputs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1x3x32x32", ["float32[1, 3, 32, 32]"]),
        ("5", ["float32[5]"]),
        ("2x16<99", ["int64[2, 16]"]),
        ("2x16:int32<99 , 2x4:bfloat16", ["int32[2, 16]", "bfloat16[2, 4]"]),
        ("ids=2x16:int64<99,mask=2x16:bool", {"ids": "int64[2, 16]", "mask": "bool[2, 16]"}),
    ],
)
def test_written_inputs(text: str, expected: Any) -> None:
    assert described(parse_inputs(text)) == expected


def test_written_inputs_are_bounded_and_repeat() -> None:
    first, again = parse_inputs("50x50:int64<7,9x9"), parse_inputs("50x50:int64<7,9x9")
    assert isinstance(first, tuple)
    assert isinstance(again, tuple)
    assert (int(first[0].min()), int(first[0].max())) == (0, 6)
    assert 0.5 < float(first[1].std()) < 1.5
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read ''"),
        ("1x3x", "cannot read '1x3x'; write sizes as 1x3x32x32"),
        ("1x-3", "cannot read"),
        ("three", "cannot read 'three'"),
        ("0x3", "a size of 0"),
        ("2x3:float33", "unknown dtype"),
        ("2x3:nn", "unknown dtype"),
        ("2x3:complex64", "unknown dtype"),
        ("2x3:int64", "needs a bound, as in 2x3:int64<1000"),
        ("2x3:int64<0", "no numbers below 0"),
        ("2x3:float32<5", "bounds are for whole numbers"),
        ("a=2x3,4x5", "name every input once or none at all"),
        ("a=2x3,a=4x5", "name every input once"),
    ],
)
def test_malformed_inputs(text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        parse_inputs(text)


SMALL: dict[str, Any] = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
WIDE: dict[str, Any] = {**SMALL, "intermediate_size": 64}
IDS = "int64[2, 16]"
TEXT = {"input_ids": IDS, "attention_mask": IDS}


def whisper() -> nn.Module:
    config = transformers.WhisperConfig(
        vocab_size=99, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_source_positions=20, num_mel_bins=8,
        decoder_start_token_id=3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=99, n_positions=8, n_embd=32, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def t5() -> nn.Module:
    config = transformers.T5Config(vocab_size=99, d_model=16, d_ff=16, d_kv=4, num_layers=1, num_heads=4)
    return transformers.T5ForConditionalGeneration(config)


def clip() -> nn.Module:
    text = {**WIDE, "max_position_embeddings": 12, "eos_token_id": 2}
    vision = {**WIDE, "image_size": 32, "patch_size": 16}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))


MODELS: dict[str, tuple[Any, Any]] = {
    "vit_tiny": (lambda: timm.create_model("vit_tiny_patch16_224", depth=1), ["float32[2, 3, 224, 224]"]),
    "test_vit": (lambda: timm.create_model("test_vit"), ["float32[2, 3, 160, 160]"]),
    "resnet18": (torchvision.models.resnet18, ["float32[2, 3, 224, 224]"]),
    "small vit": (lambda: torchvision.models.VisionTransformer(32, 16, 1, 2, 16, 32), ["float32[2, 3, 32, 32]"]),
    "video": (lambda: torchvision.models.video.r3d_18(), ["float32[2, 3, 16, 112, 112]"]),
    "bert": (lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**WIDE)), TEXT),
    "gpt2": (
        gpt2,
        {"input_ids": "int64[2, 8]", "attention_mask": "int64[2, 8]", "use_cache": False},
    ),
    "vit": (
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**WIDE, image_size=32)),
        {"pixel_values": "float32[2, 3, 32, 32]"},
    ),
    "t5": (t5, {**TEXT, "decoder_input_ids": IDS, "use_cache": False}),
    "whisper": (
        whisper,
        {"input_features": "float32[2, 8, 40]", "decoder_input_ids": IDS, "use_cache": False},
    ),
    "clip": (
        clip,
        {"input_ids": "int64[2, 12]", "attention_mask": "int64[2, 12]", "pixel_values": "float32[2, 3, 32, 32]"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models_tell_their_inputs_and_take_them(name: str) -> None:
    make, expected = MODELS[name]
    model = make().eval()
    inputs = example_inputs_for(model)
    assert described(inputs) == (expected if isinstance(inputs, dict) else list(expected))
    with torch.no_grad():
        output = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    assert output is not None


def test_ids_avoid_padding_and_repeat() -> None:
    config = transformers.BertConfig(**{**WIDE, "vocab_size": 4}, pad_token_id=0, sep_token_id=1)
    first = example_inputs_for(transformers.BertModel(config))
    assert isinstance(first, dict)
    assert set(first["input_ids"].flatten().tolist()) == {2, 3}
    again = example_inputs_for(transformers.BertModel(config))
    assert isinstance(again, dict)
    assert torch.equal(first["input_ids"], again["input_ids"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("inception_v3", ["float32[2, 3, 299, 299]"]),
        ("r3d_18", ["float32[2, 3, 16, 112, 112]"]),
        ("s3d", ["float32[2, 3, 16, 224, 224]"]),
        ("deeplabv3_resnet50", ["float32[2, 3, 224, 224]"]),
    ],
)
def test_torchvision_names_tell_the_size(name: str, expected: list[str]) -> None:
    assert described(example_inputs_for(nn.Identity(), f"torchvision/{name}")) == expected


def test_forwards_with_two_images_or_a_list_get_them() -> None:
    raft = torchvision.models.optical_flow.raft_small()
    assert described(example_inputs_for(raft, "torchvision/raft_small")) == ["float32[2, 3, 224, 224]"] * 2
    name = "ssdlite320_mobilenet_v3_large"
    found = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    assert described(example_inputs_for(found, f"torchvision/{name}")) == [["float32[3, 224, 224]"] * 2]


class Fussy(nn.Module):
    """Begins with a convolution, but takes pictures of one unusual size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4 * 49, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).flatten(1))


class Told(Fussy):
    image_size: int

    def __init__(self) -> None:
        super().__init__()
        self.image_size = 7


class Small(nn.Module):
    """Takes pictures of 32 by 32 alone, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 256, 2))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.net(x)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: nn.Conv2d(3, 2, 1), "float32[2, 3, 224, 224]"),
        (lambda: nn.Sequential(torchvision.models.resnet18()), "float32[2, 3, 224, 224]"),
        (lambda: nn.Sequential(nn.Conv3d(2, 4, 3)), "float32[2, 2, 16, 112, 112]"),
        (Told, "float32[2, 3, 7, 7]"),
        (Small, "float32[2, 1, 32, 32]"),
    ],
)
def test_modules_that_begin_with_a_convolution_get_pictures_they_run_on(build: Any, expected: str) -> None:
    module = build()
    assert described(example_inputs_for(module)) == [expected]
    assert module.training
    assert all(int(buffer) == 0 for name, buffer in module.named_buffers() if name == "calls")


def test_models_that_say_nothing_are_refused_and_told_what_to_give() -> None:
    for module in (nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Conv1d(2, 2, 1)), nn.LazyConv2d(2, 1), Fussy()):
        with pytest.raises(SourceError, match=r"cannot tell which inputs .* takes: .*--input 1x3x224x224"):
            example_inputs_for(module)
    assert described(example_inputs_for(nn.Linear(3, 2), None, "2x3")) == ["float32[2, 3]"]
