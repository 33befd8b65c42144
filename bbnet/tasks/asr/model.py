"""A pre-LN encoder-decoder Transformer for speech, with a CTC head on the encoder, and its slabs."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bbnet.sparsity.slab import Slab
from bbnet.tasks.asr.data.features import BINS, positions
from bbnet.tasks.asr.settings import Transformer

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class Output(NamedTuple):
    """`tokens`: logits of the next token [batch, length, vocabulary]; `ctc`: [batch, positions, vocabulary] or None."""

    tokens: Tensor
    ctc: Tensor | None


class Memory(NamedTuple):
    """The encoder's output: `states` [batch, positions, width], `valid` bool [batch, 1, 1, positions]."""

    states: Tensor
    valid: Tensor


class Cache:
    """Keys and values [batch, heads, time, head width] of a decoder layer, for past tokens and for the memory."""

    def __init__(self) -> None:
        self.own: tuple[Tensor, Tensor] | None = None
        self.memory: tuple[Tensor, Tensor] | None = None

    def select(self, rows: Tensor) -> None:
        """Selects rows of the batch in the keys and values of past tokens; those of the memory do not change."""
        keys, values = self.own
        self.own = (keys[rows], values[rows])

    def keep(self, rows: Tensor) -> None:
        """Selects rows of the batch in all keys and values."""
        self.select(rows)
        keys, values = self.memory
        self.memory = (keys[rows], values[rows])


class Attention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def keys_and_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.key_value(states).chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def forward(
        self, states: Tensor, keys_and_values: tuple[Tensor, Tensor], valid: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Lets states [batch, length, width] attend to the keys that are `valid`, bool [batch, 1, 1, keys]."""
        query = self._split(self.query(states))
        dropout = self.dropout if self.training else 0.0
        options = {"attn_mask": valid, "is_causal": causal, "dropout_p": dropout}
        mixed = functional.scaled_dot_product_attention(query, *keys_and_values, **options)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """A feed-forward layer, whose hidden units are the units of the slabs."""

    def __init__(self, settings: Transformer) -> None:
        super().__init__()
        self.expand = nn.Linear(settings.width, settings.hidden)
        self.activation = ACTIVATIONS[settings.activation]()
        self.dropout = nn.Dropout(settings.dropout)
        self.contract = nn.Linear(settings.hidden, settings.width)

    def forward(self, states: Tensor) -> Tensor:
        return self.contract(self.dropout(self.activation(self.expand(states))))


class EncoderLayer(nn.Module):
    def __init__(self, settings: Transformer) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(settings.width)
        self.attention = Attention(settings.width, settings.heads, settings.dropout)
        self.norm2 = nn.LayerNorm(settings.width)
        self.ffn = FeedForward(settings)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, states: Tensor, valid: Tensor) -> Tensor:
        normed = self.norm1(states)
        states = states + self.dropout(self.attention(normed, self.attention.keys_and_values(normed), valid))
        return states + self.dropout(self.ffn(self.norm2(states)))


class DecoderLayer(nn.Module):
    def __init__(self, settings: Transformer) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(settings.width)
        self.attention = Attention(settings.width, settings.heads, settings.dropout)
        self.norm2 = nn.LayerNorm(settings.width)
        self.cross_attention = Attention(settings.width, settings.heads, settings.dropout)
        self.norm3 = nn.LayerNorm(settings.width)
        self.ffn = FeedForward(settings)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, states: Tensor, memory: Memory, cache: Cache | None = None) -> Tensor:
        """Processes all tokens at once; with a cache, only the next token, which is added to the cached ones."""
        normed = self.norm1(states)
        own = self.attention.keys_and_values(normed)
        if cache is not None:
            if cache.own is not None:
                own = tuple(torch.cat(pair, dim=2) for pair in zip(cache.own, own, strict=True))
            cache.own = own
        states = states + self.dropout(self.attention(normed, own, causal=cache is None))
        if cache is None or cache.memory is None:
            read = self.cross_attention.keys_and_values(memory.states)
        else:
            read = cache.memory
        if cache is not None:
            cache.memory = read
        states = states + self.dropout(self.cross_attention(self.norm2(states), read, memory.valid))
        return states + self.dropout(self.ffn(self.norm3(states)))


class SpeechTransformer(nn.Module):
    """Predicts tokens from log-mel features.

    Args:
        vocabulary: number of tokens, including the padding (the blank of CTC) and the end of the sequence.
    """

    def __init__(self, settings: Transformer, vocabulary: int) -> None:
        super().__init__()
        self.settings = settings
        channels, width = settings.stem_channels, settings.width
        bins = (BINS - 3) // 2 + 1 - 2
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=(2, 1))
        self.project = nn.Linear(channels * bins, width)
        self.dropout = nn.Dropout(settings.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(settings) for _ in range(settings.encoder_layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.embedding = nn.Embedding(vocabulary, width)
        self.decoder = nn.ModuleList(DecoderLayer(settings) for _ in range(settings.decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        self.ctc_head = nn.Linear(width, vocabulary) if settings.ctc_weight > 0 else None

    def forward(self, features: Tensor, frames: Tensor, tokens: Tensor) -> Output:
        """Maps features [batch, time, 80], of which `frames` [batch] are valid, and decoder inputs [batch, length]."""
        memory = self.encode(features, frames)
        logits = self.decode(tokens, memory)
        return Output(logits, None if self.ctc_head is None else self.ctc_head(memory.states))

    def encode(self, features: Tensor, frames: Tensor) -> Memory:
        maps = functional.relu(self.conv1(features[:, None]))
        maps = functional.relu(self.conv2(maps))
        states = self.project(maps.transpose(1, 2).flatten(2))
        states = self.dropout(states + sinusoids(0, states.shape[1], states))
        valid = torch.arange(states.shape[1], device=frames.device) < positions(frames)[:, None]
        valid = valid[:, None, None, :]
        for layer in self.encoder:
            states = layer(states, valid)
        return Memory(self.encoder_norm(states), valid)

    def decode(self, tokens: Tensor, memory: Memory, caches: list[Cache] | None = None) -> Tensor:
        """Returns the logits [batch, length, vocabulary] of the token after each of `tokens` [batch, length].

        With caches, one per layer, `tokens` is [batch, 1], the token after the cached ones.
        """
        past = 0 if caches is None or caches[0].own is None else caches[0].own[0].shape[2]
        embedded = self.embedding(tokens)
        states = self.dropout(embedded + sinusoids(past, tokens.shape[1], embedded))
        for number, layer in enumerate(self.decoder):
            states = layer(states, memory, None if caches is None else caches[number])
        return self.head(self.decoder_norm(states))


def sinusoids(first: int, count: int, like: Tensor) -> Tensor:
    """Returns encodings [count, width] of positions from `first` (Vaswani et al. 2017, 3.5), sines before cosines."""
    width = like.shape[-1]
    place = torch.arange(first, first + count, device=like.device, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(width // 2, device=like.device) * (-2 * math.log(10_000) / width))
    angles = place * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(like.dtype)


def slabs(model: SpeechTransformer, which: str, side: str) -> list[Slab]:
    """Returns the slabs of the feed-forward layers of the decoder (`paper`) or of encoder and decoder (`wide`).

    The units are the hidden units. Side `in` masks their inputs, side `out` their outputs. Side `both` masks the inputs
    and the outputs of every layer.
    """
    stacks = {"decoder": model.decoder} | ({"encoder": model.encoder} if which == "wide" else {})
    layers = [f"{stack}.{number}.ffn" for stack in sorted(stacks, reverse=True) for number in range(len(stacks[stack]))]
    input_slabs = [Slab(f"{layer}.expand", "in", f"{layer}.expand") for layer in layers]
    output_slabs = [Slab(f"{layer}.contract", "out", f"{layer}.expand") for layer in layers]
    return input_slabs + output_slabs if side == "both" else input_slabs if side == "in" else output_slabs
