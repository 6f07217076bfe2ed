"""Prediction under the guidance of labelled images: masks decoupled from mixtures with the most similar of them.

Tu et al., GuidedMix-Net, Secs. 3.1 and 3.3; ``guidedmix.py`` tells what is chosen where the paper is silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from mmengine.device import get_device
from torch import Tensor

from sslseg.data.dataset import ImageDataset, image_loader
from sslseg.errors import UserError
from sslseg.functional.decoupling import blend, nearest
from sslseg.inference import Predictor, Protocol
from sslseg.progress import track
from sslseg.store.format import DIRECT_MASKS

if TYPE_CHECKING:
    from sslseg.methods.guidedmix import GuidedMix


class GuidedPredictor(Predictor):
    """Mix each image with its most similar labelled ones, and average what remains of the mixtures' predictions.

    The features of the labelled images are computed once, here. A labelled image of another size is resized; to one that
    is itself among the labelled ones, it is the most similar. ``maps`` of a prediction holds ``model_masks/direct``, the
    mask that the image alone gets.

    Args:
        method: in evaluation mode.
        references: the labelled images.
        number: how many of them an image is mixed with.
    """

    def __init__(self, method: GuidedMix, protocol: Protocol, references: ImageDataset, *, number: int) -> None:
        super().__init__(method.deployed, protocol)
        if not 1 <= number <= len(references):
            raise UserError(
                f"each image cannot be mixed with {number} of {len(references)} labelled images; mend --decouple-from"
            )
        self.method, self.references, self.number = method, references, number
        with torch.inference_mode():
            single = [[index] for index in range(len(references))]
            batches = track(image_loader(references, single, workers=0), "labelled images", total=len(single))
            self.vectors = torch.cat([self.encode([sample["inputs"] for sample in batch]) for batch in batches])

    def encode(self, images: Sequence[Tensor]) -> Tensor:
        """Return the pooled encoder features of images of one size.

        **Shape**: N of 3 x H x W uint8 -> N x D.
        """
        return self.model.extract_feat(self.normalized(images))[-1].mean(dim=(2, 3)).float()

    def reference(self, index: int, like: Tensor) -> Tensor:
        """Return a labelled image at the size of another.

        **Shape**: -> 3 x H x W float32.
        """
        image = self.references[index]["inputs"].float()
        if image.shape == like.shape:
            return image
        return F.interpolate(image[None], like.shape[-2:], mode="bilinear", align_corners=False)[0]

    def predict_batch(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        direct, _, _ = super().predict_batch(images)
        chosen = nearest(self.encode(images), self.vectors, self.number)
        share, total = self.method.middle_lambda, torch.zeros((), device=get_device())
        for indices in chosen.T.tolist():
            references = [self.reference(index, image) for index, image in zip(indices, images, strict=True)]
            mixtures = [blend(one, other.float(), share) for one, other in zip(references, images, strict=True)]
            mixed, labeled = (super(GuidedPredictor, self).predict_batch(views)[1] for views in (mixtures, references))
            total = total + self.method.distribution(mixed, labeled, share)
        return total.max(dim=1).indices, total / self.number, {DIRECT_MASKS: direct}
