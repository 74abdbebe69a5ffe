"""The contrastive objective of `contrastive.py`: images against classes of texts, and against strangers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.prompt_texts import BREED_SPECIES


def contrastive_loss(
    breed_logits: Tensor,
    species_logits: Tensor,
    neutral_logits: Tensor,
    distractor_logits: Tensor,
    breed_rows: Tensor,
    label_smoothing: float,
) -> Tensor:
    """CLIP's symmetric loss where several images share a text (Yang et al. 2022, UniCL), plus the strangers.

    breed_logits: [B, 37]; species_logits: [B, 2]; neutral_logits: [B, 1]; distractor_logits: [B, N]; breed_rows: [B].

    Image to text: its breed among the breeds, its species among the two, and each of its three texts against all
    distractors. Text to image: each class in the batch against the images of other classes.
    """
    species_rows = BREED_SPECIES.to(breed_rows.device)[breed_rows]
    to_breed = F.cross_entropy(breed_logits, breed_rows, label_smoothing=label_smoothing)
    to_species = F.cross_entropy(species_logits, species_rows, label_smoothing=label_smoothing)
    own = torch.cat(
        [breed_logits.gather(1, breed_rows[:, None]), species_logits.gather(1, species_rows[:, None]), neutral_logits],
        1,
    )  # [B, 3]
    strangers = distractor_logits.logsumexp(1, keepdim=True)  # [B, 1]
    to_own = F.softplus(strangers - own).mean()
    from_breed = _text_to_image(breed_logits, breed_rows)
    from_species = _text_to_image(species_logits, species_rows)
    return to_breed + to_species + to_own + 0.5 * (from_breed + from_species)


def _text_to_image(logits: Tensor, rows: Tensor) -> Tensor:
    """Cross-entropy of each text over the batch's images, the target spread evenly over the images it fits."""
    fits = F.one_hot(rows, logits.shape[1]).to(logits.dtype)  # [B, texts]
    present = fits.sum(0) > 0
    targets = fits[:, present] / fits[:, present].sum(0)
    return -(targets * logits[:, present].log_softmax(0)).sum(0).mean()
