"""What a language model keeps of each token: as much as its own cache, where running shows that it is enough."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig, MambaConfig, T5Config
from transformers import T5ForConditionalGeneration as T5
from zoo import randomize

from sortify import SortedModel, sortify
from sortify.costs import kv_cache
from sortify.errors import BudgetError

TOKENS = torch.randint(0, 60, (2, 12), generator=torch.Generator().manual_seed(0))
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
CAUSAL = {
    "one head for two queries": LlamaConfig(**SMALL, intermediate_size=48, num_key_value_heads=2),
    "attention in two products": LlamaConfig(**SMALL, intermediate_size=48, attn_implementation="eager"),
    "one product for all three": GPT2Config(vocab_size=64, n_embd=32, n_head=4, n_layer=2, n_positions=32),
    "a product that adds": BloomConfig(vocab_size=64, hidden_size=32, n_head=4, n_layer=2),
}


def bytes_of(cache: Any) -> int:
    """What the model's own cache holds of each token."""
    layers = getattr(cache, "self_attention_cache", cache).layers
    held = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    return sum(t.numel() * t.element_size() // (t.shape[0] * t.shape[2]) for t in held)


@pytest.mark.parametrize("name", CAUSAL)
def test_as_many_bytes_as_the_model_keeps_itself(name: str) -> None:
    original = AutoModelForCausalLM.from_config(CAUSAL[name]).eval()
    model = sortify(original, {"input_ids": TOKENS})
    theirs = bytes_of(original(TOKENS, use_cache=True).past_key_values)
    assert model.cost().cache_bytes == theirs > 0
    assert model.cost(batch=5, sequence=9).cache_bytes == theirs


def test_of_a_decoder_only_what_it_writes() -> None:
    original = T5(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)).eval()
    inputs = {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :7]}
    model = sortify(original, inputs)
    assert model.cost().cache_bytes == bytes_of(original(**inputs, use_cache=True).past_key_values)


def test_smaller_networks_keep_less() -> None:
    model = sortify(AutoModelForCausalLM.from_config(CAUSAL["one head for two queries"]).eval(), {"input_ids": TOKENS})
    whole = model.cost().cache_bytes
    for heads, depth in ((1.0, 0.5), (0.5, 1.0), (0.5, 0.5)):
        subnet = model.space.subnet(
            **{group: {"depth": depth, "heads": heads}.get(group, 1.0) for group in model.space.groups}
        )
        assert model.cost(subnet).cache_bytes == whole * heads * depth
    found = model.space.at(f"{whole // 2} B cache")
    assert 0 < model.cost(found).cache_bytes <= whole // 2
    assert model.space.at(0.5, "cache_bytes") == found


def test_what_keeps_a_state_of_its_own_has_no_figure() -> None:
    original = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2)).eval()
    model = sortify(original, {"input_ids": TOKENS})
    assert model.cost().cache_bytes == 0
    with pytest.raises(BudgetError, match="not known what this model keeps of each token"):
        model.space.at("1 kB cache")


class Reader(nn.Module):
    """One layer of attention over tokens, causal or not, with a sum of earlier tokens beside it or not."""

    def __init__(self, causal: bool = True, beside: bool = False, letters: str = "") -> None:
        super().__init__()
        self.table, self.qkv, self.head = nn.Embedding(64, 16), nn.Linear(16, 48), nn.Linear(16, 64)
        self.causal, self.beside, self.letters = causal, beside, letters

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        query, key, value = (
            part.reshape(*tokens.shape, 4, 4).transpose(1, 2) for part in self.qkv(x).split(16, dim=-1)
        )
        if self.letters:
            left, right = self.letters.split()
            weights = torch.einsum(left, query, key) / math.sqrt(4)
            later = torch.ones(weights.shape[-2:], dtype=torch.bool).triu(1)
            mixed = torch.einsum(right, weights.masked_fill(later, float("-inf")).softmax(-1), value)
        else:
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        y = mixed.transpose(1, 2).flatten(2)
        return self.head(y + x.cumsum(1) if self.beside else y + x)  # type: ignore[no-any-return]


def sorted_reader(**options: Any) -> SortedModel:
    return sortify(randomize(Reader(**options), 2), {"tokens": TOKENS})


def test_letters_say_which_dimension_is_which() -> None:
    assert sorted_reader().cost().cache_bytes == 2 * 16 * 4
    assert sorted_reader(letters="bhqd,bhkd->bhqk bhqk,bhkd->bhqd").cost().cache_bytes == 2 * 16 * 4


@pytest.mark.parametrize("options", [{"causal": False}, {"beside": True}], ids=["reads what is later", "sums as well"])
def test_keys_and_values_that_are_not_enough_are_not_counted(options: dict[str, bool]) -> None:
    assert sorted_reader(**options).cost().cache_bytes == 0


def test_without_the_values_the_last_token_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kv_cache.candidates
    monkeypatch.setattr(kv_cache, "candidates", lambda *given: list(right(*given))[:1])
    assert sorted_reader().cost().cache_bytes == 0


class Marked(nn.Module):
    """Reads the one end token of each sample: with other tokens there, it does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.model = AutoModelForCausalLM.from_config(CAUSAL["one head for two queries"])

    def forward(self, input_ids: Tensor) -> Tensor:
        logits = self.model(input_ids, use_cache=False).logits
        ends: Tensor = logits[input_ids == 63].view(len(input_ids), 1, -1)
        return logits + ends


def test_a_model_that_takes_only_some_tokens_has_no_figure() -> None:
    tokens = TOKENS.clone()
    tokens[:, 3] = 63
    assert sortify(Marked().eval(), {"input_ids": tokens}).cost().cache_bytes == 0
