"""What models are compared by: their logits for two fixed images and captions."""

import torch


@torch.no_grad()
def logits(backbone):
    backbone.model.eval()
    text = backbone.text_batch(["axial ct showing a cyst.", "normal."], prompt="", max_tokens=32)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return backbone.decode(backbone.encode(pixels), text)[1]
