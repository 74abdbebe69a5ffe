"""How well a CLIP tells breeds, species and strangers apart without a head: the figures on a backbone's card."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.pet_names import TEMPLATES, breeds, fill, zero_shot_prompts
from training.prompt_texts import BREED_SPECIES, SPECIES, held_out_distractors

_TEXT_BATCH = 128


@torch.inference_mode()
def measure_zero_shot(clip: Any, tokenizer: Any, images: Tensor, breed_rows: Tensor, scale: float) -> dict[str, float]:
    """Accuracies of zero-shot classification.

    images: Tensor [N, D], image embeddings; breed_rows: [N] int64, rows of `breeds()`.

    Returns `breed_accuracy` (texts averaged over all templates), `species_accuracy` (probabilities summed over the
    prompts among which a model picks its own), `distractor_rejection` (how often an image is nearer to its species'
    prompt than to a word that training never saw) and `distractor_top1` (nearer than to ALL of these words).
    """
    images = F.normalize(images.float(), dim=-1)
    species_rows = BREED_SPECIES.to(images.device)[breed_rows]

    def embed(texts: Sequence[str]) -> Tensor:
        batches = [tokenizer(list(texts[start : start + _TEXT_BATCH])) for start in range(0, len(texts), _TEXT_BATCH)]
        return F.normalize(
            torch.cat([embed_text(clip, tokens.to(images.device)) for tokens in batches]).float(), dim=-1
        )

    by_breed = torch.stack(
        [embed([fill(template, breed.name) for template in TEMPLATES]).mean(0) for breed in breeds()]
    )
    breed_hits = (images @ F.normalize(by_breed, dim=-1).T).argmax(1) == breed_rows

    prompts = zero_shot_prompts()
    groups = [len(prompts[species]) for species in SPECIES]
    similarities = images @ embed([text for species in SPECIES for text in prompts[species]]).T
    by_species = torch.split((scale * similarities).softmax(1), groups, dim=1)
    species_hits = torch.stack([group.sum(1) for group in by_species], dim=1).argmax(1) == species_rows

    own = (images @ embed([f"a photo of a {species}" for species in SPECIES]).T).gather(1, species_rows[:, None])
    nearer = own > images @ embed([fill("a photo of a {}", word) for word in held_out_distractors()]).T  # [N, words]
    figures = {
        "breed_accuracy": breed_hits,
        "species_accuracy": species_hits,
        "distractor_rejection": nearer,
        "distractor_top1": nearer.all(1),
    }
    return {name: round(hits.float().mean().item(), 4) for name, hits in figures.items()}


def embed_text(clip: Any, tokens: Tensor) -> Tensor:
    """`clip.encode_text` of tokens [B, L] int64, computed only up to the longest sentence: the same values, sooner.

    Under a causal mask nothing after the end token reaches it. Other text towers are asked as they are.
    """
    if getattr(clip, "text_pool_type", None) != "argmax" or clip.attn_mask is None:
        whole: Tensor = clip.encode_text(tokens)
        return whole
    length = int(tokens.argmax(1).max()) + 1
    tokens = tokens[:, :length]
    states = clip.token_embedding(tokens) + clip.positional_embedding[:length]  # [B, length, C]
    states = clip.ln_final(clip.transformer(states, attn_mask=clip.attn_mask[:length, :length]))
    ends = states[torch.arange(len(tokens), device=tokens.device), tokens.argmax(1)]  # [B, C]
    embeddings: Tensor = ends @ clip.text_projection
    return embeddings
