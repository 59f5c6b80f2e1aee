"""A member drafts, the full model verifies: its own greedy text, from one set of weights; and llama2.c's files."""

from __future__ import annotations

import copy
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from examples import llama2c, speculative
from sortify import SortedModel, share_weights, sortify, to_native

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 30,
    "max_position_embeddings": 64,
}
PROMPTS = [[1, 5, 7], [9]]
TOKENS = 24
BENCH = speculative.Bench(PROMPTS, TOKENS, 1, torch.tensor(PROMPTS[:1]))
DRAFTS = {"full": {}, "shallow": {"depth": 0.5}, "narrow": {"width": 0.5}, "small": {"width": 0.5, "heads": 0.5}}


@cache
def model() -> SortedModel:
    """In float64, in which one call of many tokens and many calls of one choose alike."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=True, initializer_range=0.3, eos_token_id=3)
    return sortify(
        transformers.LlamaForCausalLM(config).double().eval(),
        {"input_ids": torch.randint(0, 30, (2, 8))},
        training=False,
    )


@cache
def native(name: str) -> Any:
    return to_native(model(), model().space.subnet(**DRAFTS[name])).module


def both(name: str, drafted: int = 3) -> tuple[Any, Any]:
    full, draft = native("full"), copy.deepcopy(native(name))
    speculative.drafting(full, draft, drafted)
    return full, draft


# -- the law: what is written with a draft is what the full model writes


@pytest.mark.parametrize("name", DRAFTS)
@pytest.mark.parametrize("drafted", [1, 4])
def test_a_draft_changes_no_token(name: str, drafted: int) -> None:
    full, draft = both(name, drafted)
    assert not any(module.training for module in (full, draft))
    for prompt in PROMPTS:
        expected = speculative.greedy(full, prompt, TOKENS)
        assert expected
        assert speculative.greedy(full, prompt, TOKENS, assistant_model=draft) == expected


def test_the_comparison_sees_another_text() -> None:
    full, draft = both("shallow")
    assert speculative.counted(full, draft, BENCH)["identical"] == len(PROMPTS)

    class Hasty:
        """Writes the draft's tokens as they are where it was asked to verify them."""

        def __init__(self) -> None:
            self.generate = lambda *args, assistant_model=None, **more: (assistant_model or full).generate(
                *args, **more
            )
            self.register_forward_pre_hook = full.register_forward_pre_hook

    assert speculative.counted(Hasty(), draft, BENCH)["identical"] < len(PROMPTS)


def test_hooks_count_what_was_proposed_and_accepted() -> None:
    full, draft = both("full", drafted=4)
    found = speculative.counted(full, draft, BENCH)  # a draft that is the full model: all is accepted
    refused = found["proposed"] - (found["tokens"] - found["calls"])
    assert 0 <= refused <= len(PROMPTS)  # the token that ends a text counts as the full model's own
    assert found["calls"] <= found["tokens"] / 5 + 2 * len(PROMPTS)
    full, draft = both("shallow", drafted=4)
    with torch.no_grad():
        draft.get_output_embeddings().weight = torch.nn.Parameter(-draft.get_output_embeddings().weight)
    found = speculative.counted(full, draft, BENCH)  # one that proposes what is the least likely
    assert found["acceptance"] < 0.1
    assert found["identical"] == len(PROMPTS)


# -- one set of weights


@pytest.mark.parametrize("name", DRAFTS)
def test_a_draft_takes_no_memory_of_its_own(name: str) -> None:
    full, draft = native("full"), copy.deepcopy(native(name))
    ids = torch.tensor(PROMPTS[:1])
    before, alone, apart = draft(ids).logits, speculative.held(full), speculative.held(full, draft)
    assert share_weights(draft, full) == apart - alone > 0
    assert speculative.held(full, draft) == alone
    assert torch.equal(draft(ids).logits, before)
    assert draft.get_output_embeddings().weight is draft.get_input_embeddings().weight
    assert share_weights(draft, full) == 0 or name != "full"


def test_what_is_not_the_same_is_not_shared() -> None:
    full, other = native("full"), copy.deepcopy(native("narrow"))
    with torch.no_grad():
        other.model.norm.weight[-1] += 1
    expected = other.model.norm.weight.clone()
    share_weights(other, full)
    assert torch.equal(other.model.norm.weight, expected)
    assert speculative.held(full, other) == speculative.held(full) + expected.nbytes


# -- llama2.c


def written(path: Path, seed: int = 0, words: int = 30) -> dict[str, np.ndarray]:
    """A file of random weights, and the weights by the names of llama2.c."""
    d, f, layers, heads, groups = list(SIZES.values())[:5]
    kv = d // heads * groups
    shapes = {"emb": (words, d), "rms_att": (layers, d), "wq": (layers, d, d), "wk": (layers, kv, d)}
    shapes |= {"wv": (layers, kv, d), "wo": (layers, d, d), "rms_ffn": (layers, d), "w1": (layers, f, d)}
    shapes |= {"w2": (layers, d, f), "w3": (layers, f, d), "rms_final": (d,), "angles": (2, 64, d // heads // 2)}
    random = np.random.default_rng(seed)
    weights = {name: random.normal(0, 0.3, shape).astype("<f4") for name, shape in shapes.items()}
    head = struct.pack("<7i", d, f, layers, heads, groups, words, 64)
    path.write_bytes(head + b"".join(part.tobytes() for part in weights.values()))
    return weights


def rotated(x: np.ndarray) -> np.ndarray:
    """Positions as angles of pairs that stand side by side, `[S, heads, size]`."""
    angles = np.outer(np.arange(len(x)), 10000.0 ** -(np.arange(0, x.shape[-1], 2) / x.shape[-1]))[:, None]
    even, odd = x[..., ::2], x[..., 1::2]
    turned = np.stack([even * np.cos(angles) - odd * np.sin(angles), even * np.sin(angles) + odd * np.cos(angles)], -1)
    return turned.reshape(x.shape)


def forward(w: dict[str, np.ndarray], ids: list[int], heads: int = 4, groups: int = 2) -> np.ndarray:
    """llama2.c's formula, in NumPy: logits `[S, words]`."""

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight

    x = w["emb"][ids].astype(float)
    future = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for i in range(len(w["wq"])):
        y = norm(x, w["rms_att"][i])
        q, k, v = (y @ w[name][i].T for name in ("wq", "wk", "wv"))
        q = rotated(q.reshape(len(ids), heads, -1))
        k = rotated(k.reshape(len(ids), groups, -1)).repeat(heads // groups, 1)
        v = v.reshape(len(ids), groups, -1).repeat(heads // groups, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1]) + future
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", shares, v).reshape(len(ids), -1) @ w["wo"][i].T
        y = norm(x, w["rms_ffn"][i])
        gate = y @ w["w1"][i].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["w3"][i].T)) @ w["w2"][i].T
    return norm(x, w["rms_final"]) @ w["emb"].T


def test_the_model_of_a_file_computes_the_formula_of_llama2c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, ids = written(tmp_path / "m.bin"), [1, 5, 9, 2, 28, 5]
    expected = forward(weights, ids)
    scale = np.abs(expected).max()
    with torch.no_grad():
        found = llama2c.read_model(tmp_path / "m.bin").double()(torch.tensor([ids])).logits[0].numpy()
        monkeypatch.setattr(llama2c, "half_split", lambda weight, heads: weight)
        wrong = llama2c.read_model(tmp_path / "m.bin").double()(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(found - expected).max() < 1e-5 * scale
    assert np.abs(wrong - expected).max() > 1e-2 * scale  # queries and keys as they stand in the file


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "m.bin")
    (tmp_path / "m.bin").write_bytes((tmp_path / "m.bin").read_bytes()[:-5000])
    with pytest.raises(SystemExit, match=r"m\.bin: .* fewer"):
        llama2c.read_model(tmp_path / "m.bin")


def test_text_becomes_the_best_pieces_and_comes_back(tmp_path: Path) -> None:
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256)), *b" a b c ab bc".split(b"|")]
    pieces = [*pieces[:-1], b" ", b"a", b"b", b"c", b"ab", b"bc", b" a"]
    scores = {b"ab": -2.0, b"bc": -1.0, b" a": -3.0}
    stored = b"".join(struct.pack("<fi", scores.get(piece, -9.0), len(piece)) + piece for piece in pieces)
    (tmp_path / "t.bin").write_bytes(struct.pack("<i", 6) + stored)
    words = llama2c.Tokenizer(tmp_path / "t.bin", len(pieces))
    found = words.encode("abc é")
    assert [pieces[token] for token in found] == [b"<s>", b" a", b"bc", b" ", b"<0xC3>", b"<0xA9>"]
    assert words.decode(found) == "abc é"
