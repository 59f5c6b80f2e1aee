"""Reads the files of llama2.c (github.com/karpathy/llama2.c): a LLaMA into transformers, and its tokenizer.

Shapes: V words, D units of the stream, F inner units, L layers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

BEGIN = 1
"""The token that stands before every text, and after it."""
BYTES = 3
"""The token of byte 0; those of the other bytes follow."""
SETTINGS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
LAYER = {
    "input_layernorm": ("d",),
    "self_attn.q_proj": ("d", "d"),
    "self_attn.k_proj": ("kv", "d"),
    "self_attn.v_proj": ("kv", "d"),
    "self_attn.o_proj": ("d", "d"),
    "post_attention_layernorm": ("d",),
    "mlp.gate_proj": ("f", "d"),
    "mlp.down_proj": ("d", "f"),
    "mlp.up_proj": ("f", "d"),
}
"""Weights of the layers in the order of the file, each of all layers together."""


def read_model(path: Path) -> transformers.LlamaForCausalLM:
    """The model of a file of version 0: seven numbers, then weights in float32.

    Raises:
        SystemExit: the file is shorter than its head says.
    """
    stored = path.read_bytes()
    *sizes, words, positions = struct.unpack("<7i", stored[:28])
    config = transformers.LlamaConfig(
        **dict(zip(SETTINGS, sizes, strict=True)),
        vocab_size=abs(words),
        max_position_embeddings=positions,
        tie_word_embeddings=words > 0,
        rms_norm_eps=1e-5,
        bos_token_id=BEGIN,
        eos_token_id=BEGIN,
    )
    numbers = torch.from_numpy(np.frombuffer(stored, "<f4", offset=28).copy())
    try:
        state = dict(_weights(config, numbers, positions, own_head=words < 0))
    except RuntimeError:
        raise SystemExit(f"{path}: {len(numbers)} numbers are fewer than its sizes {sizes} ask for") from None
    model = transformers.LlamaForCausalLM(config).eval()
    model.load_state_dict(state, strict=False)
    return model


def _weights(
    config: transformers.LlamaConfig, numbers: Tensor, positions: int, own_head: bool
) -> Iterator[tuple[str, Tensor]]:
    """The weights under the names of transformers."""
    d, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    sizes = {"d": d, "kv": d // heads * groups, "f": config.intermediate_size}
    layers, place = config.num_hidden_layers, 0

    def take(*shape: int) -> Tensor:
        nonlocal place
        place += torch.Size(shape).numel()
        return numbers[place - torch.Size(shape).numel() : place].view(shape)

    words = take(config.vocab_size, d)
    yield "model.embed_tokens.weight", words
    for name, shape in LAYER.items():
        for layer, weight in enumerate(take(layers, *(sizes[size] for size in shape))):
            turned = {"self_attn.q_proj": heads, "self_attn.k_proj": groups}.get(name)
            yield f"model.layers.{layer}.{name}.weight", weight if turned is None else half_split(weight, turned)
    yield "model.norm.weight", take(d)
    take(positions, d // heads)  # cosines and sines, which transformers computes
    yield "lm_head.weight", take(config.vocab_size, d) if own_head else words


def half_split(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys from pairs side by side, which llama2.c rotates, to pairs half a head apart."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


class Tokenizer:
    """Pieces of text with scores: of two neighbours, those join whose joint piece has the best score."""

    def __init__(self, path: Path, words: int) -> None:
        stored, place = path.read_bytes(), 4
        self._pieces: list[bytes] = []
        self._scores: list[float] = []
        for _ in range(words):
            score, length = struct.unpack_from("<fi", stored, place)
            place += 8 + length
            self._pieces.append(stored[place - length : place])
            self._scores.append(score)
        self._ids = {piece: token for token, piece in reversed(list(enumerate(self._pieces)))}

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, after the one that begins it."""
        tokens = [token for sign in f" {text}" for token in self._sign(sign.encode())]
        while True:
            pairs = [self._pieces[a] + self._pieces[b] for a, b in pairwise(tokens)]
            joint = [(self._scores[self._ids[pair]], -at) for at, pair in enumerate(pairs) if pair in self._ids]
            if not joint:
                return [BEGIN, *tokens]
            at = -max(joint)[1]
            tokens[at : at + 2] = [self._ids[pairs[at]]]

    def _sign(self, sign: bytes) -> list[int]:
        return [self._ids[sign]] if sign in self._ids else [byte + BYTES for byte in sign]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without those that begin and end it."""
        parts = [self._piece(token) for token in tokens if token >= BYTES]
        return b"".join(parts).decode(errors="replace").removeprefix(" ")

    def _piece(self, token: int) -> bytes:
        return bytes([token - BYTES]) if token < BYTES + 256 else self._pieces[token]
