"""The last stage of contrastive training: the image tower rests, the text tower learns what is not a pet.

Image embeddings are computed once, so a step costs a hundredth of one with images. Called by `contrastive.py`.
"""

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from open_clip.tokenizer import SimpleTokenizer
from rich.progress import track
from torch import Generator, Tensor

from training.contrastive_config import ContrastiveConfig
from training.contrastive_loss import contrastive_loss
from training.preparation import seed_of
from training.prompt_texts import sample_texts, stranger_vocabulary
from training.zero_shot import embed_text


def train_text_tower(fabric: Fabric, clip: Any, images: Tensor, breed_rows: Tensor, config: ContrastiveConfig) -> None:
    """Changes the text tower of `clip` in place; the image tower and the temperature stay as they are.

    images: Tensor [N, D], image embeddings; breed_rows: [N] int64, rows of `breeds()`.
    """
    tokenizer = SimpleTokenizer(context_length=clip.context_length)
    vocabulary = stranger_vocabulary(tokenizer)
    images = F.normalize(images.float(), dim=-1)
    scale = clip.logit_scale.exp().detach()
    learning = [
        parameter.requires_grad_()
        for name, parameter in clip.named_parameters()
        if not name.startswith("visual.") and name != "logit_scale"
    ]
    optimizer = torch.optim.AdamW(learning, lr=config.text_learning_rate, weight_decay=0.0)
    for step in track(range(config.text_steps), description="text tower"):
        for group in optimizer.param_groups:
            group["lr"] = config.text_learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.text_steps))
        seed = seed_of(config.seed, "text stage", step)
        batch = torch.randint(len(images), (config.text_batch_size,), generator=Generator().manual_seed(seed))
        batch = batch.to(images.device)
        texts = sample_texts(random.Random(seed), config.text_distractors, vocabulary)
        embeddings = F.normalize(embed_text(clip, tokenizer(list(texts.all)).to(images.device)).float(), dim=-1)
        logits = scale * images[batch] @ embeddings.T  # [B, texts]
        loss = contrastive_loss(*texts.split(logits), breed_rows[batch], config.label_smoothing)
        optimizer.zero_grad()
        fabric.backward(loss)
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
    clip.requires_grad_(False)
