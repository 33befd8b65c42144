"""Decodes speech to tokens, greedily or by beam search, in batches and with cached keys and values."""

import torch
from torch import Tensor

from bbnet.tasks.asr.data.tokens import EOS, PAD
from bbnet.tasks.asr.model import Cache, Memory, SpeechTransformer
from bbnet.tasks.asr.settings import Decoding

STEPS_BETWEEN_CHECKS = 4  # steps between checks for finished utterances, each of which synchronises with the GPU


@torch.no_grad()
def transcribe(
    model: SpeechTransformer, features: Tensor, frames: Tensor, limits: Tensor, how: Decoding
) -> list[list[int]]:
    """Returns the tokens of each utterance without `EOS`, at most `limits` [batch].

    Args:
        features: [batch, time, 80], of which each utterance has `frames` [batch].
    """
    memory = model.encode(features, frames)
    if how.beam == 1:
        return greedy(model, memory, limits)
    return beam_search(model, memory, limits, how.beam, how.length_normalisation)


@torch.no_grad()
def greedy(model: SpeechTransformer, memory: Memory, limits: Tensor) -> list[list[int]]:
    """Decodes the most likely token at each step, until `EOS`, which is not returned, or `limits` [batch] tokens.

    Finished utterances are removed from the batch.
    """
    longest, device = int(limits.max()), limits.device
    caches = [Cache() for _ in model.decoder]
    written = torch.full((len(limits), longest + 1), EOS, device=device)
    lengths = limits.clone()
    open_ = torch.arange(len(limits), device=device)
    for step in range(longest):
        logits = model.decode(written[open_, step : step + 1], memory, caches)[:, -1]
        logits[:, PAD] = -torch.inf
        token = logits.argmax(1)
        written[open_, step + 1] = token
        lengths[open_] = torch.where(token == EOS, lengths[open_].clamp(max=step), lengths[open_])
        if (step + 1) % STEPS_BETWEEN_CHECKS == 0:
            (goes_on,) = torch.nonzero(lengths[open_] > step + 1, as_tuple=True)
            if not len(goes_on):
                break
            if len(goes_on) < len(open_):
                open_ = open_[goes_on]
                memory = Memory(*(part[goes_on] for part in memory))
                for cache in caches:
                    cache.keep(goes_on)
    return [row[1 : 1 + length] for row, length in zip(written.tolist(), lengths.tolist(), strict=True)]


@torch.no_grad()
def beam_search(
    model: SpeechTransformer, memory: Memory, limits: Tensor, beam: int, length_normalisation: float
) -> list[list[int]]:
    """Returns the hypotheses with the largest log-probability / length ** `length_normalisation`, `EOS` included.

    At each step every hypothesis may end, and the `beam` most likely continuations are kept. A hypothesis that reaches
    its limit ends without `EOS`.
    """
    batch, device, longest = len(limits), limits.device, int(limits.max())
    memory = Memory(*(part.repeat_interleave(beam, dim=0) for part in memory))
    caches = [Cache() for _ in model.decoder]
    rows = torch.arange(batch, device=device)[:, None]
    # All hypotheses of an utterance are equal at first, so all but one are excluded.
    live = torch.full((batch, beam), -torch.inf, device=device)
    live[:, 0] = 0.0
    written = torch.full((batch, beam, longest + 1), EOS, device=device)
    best = torch.full((batch,), -torch.inf, device=device)
    best_tokens = torch.full((batch, longest), EOS, device=device)
    best_lengths = torch.zeros(batch, dtype=torch.int64, device=device)

    def keep_best(scores: Tensor, length: int) -> None:
        nonlocal best, best_tokens, best_lengths
        score, which = scores.max(1)
        better = score > best
        best = torch.where(better, score, best)
        best_lengths = torch.where(better, length, best_lengths)
        best_tokens = torch.where(better[:, None], written[rows[:, 0], which, 1:], best_tokens)

    for step in range(longest):
        logits = model.decode(written[:, :, step].reshape(-1, 1), memory, caches)[:, -1]
        logits[:, PAD] = -torch.inf
        scores = live[:, :, None] + logits.log_softmax(-1).unflatten(0, (batch, beam))
        norm = (step + 1) ** length_normalisation
        open_ = limits > step
        keep_best((scores[:, :, EOS] / norm).masked_fill(~open_[:, None], -torch.inf), step)
        scores[:, :, EOS] = -torch.inf
        vocabulary = scores.shape[2]
        live, which = scores.flatten(1).topk(min(beam, scores[0].numel()), dim=1)
        origin, token = which // vocabulary, which % vocabulary
        written = written[rows, origin]
        written[:, :, step + 1] = token
        for cache in caches:
            cache.select((rows * beam + origin).flatten())
        full = limits == step + 1
        keep_best((live / norm).masked_fill(~full[:, None], -torch.inf), step + 1)
        live = live.masked_fill(~(limits > step + 1)[:, None], -torch.inf)
        # Log-probabilities only decrease, so dividing them by the largest length gives an upper bound of later scores.
        if bool((best >= live.amax(1) / limits**length_normalisation).all()):
            break
    return [row[:length] for row, length in zip(best_tokens.tolist(), best_lengths.tolist(), strict=True)]
