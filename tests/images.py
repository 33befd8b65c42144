"""Images and changes of colour that tests of several tasks use."""

import torch

from bbnet.tasks.augmentation import recoloured


def smooth(size: int = 48) -> torch.Tensor:
    """A bright spot up to the right in red, waves in green and blue, [1, 3, size, size]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    spot = 200 * torch.exp(-8 * ((x - 0.4) ** 2 + (y + 0.3) ** 2))
    return torch.stack([spot, 120 + 100 * torch.sin(3 * x + y), 120 + 100 * torch.cos(2 * y - x)])[None]


def recolour(images: torch.Tensor, **changed: float) -> torch.Tensor:
    """The same change of every image."""
    amounts = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0} | changed
    return recoloured(images, **{name: torch.full((len(images),), value) for name, value in amounts.items()})
