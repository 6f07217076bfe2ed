"""Prediction with labeled images as reference: masks decoupled from mixtures with the most similar labeled images.

Tu et al., GuidedMix-Net, Secs. 3.1 and 3.3; ``method.py`` lists what is chosen where the paper is silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from mmengine.device import get_device
from torch import Tensor

from sslseg.data.dataset import ImageDataset, image_loader
from sslseg.errors import UserError
from sslseg.inference import Predictor, Protocol
from sslseg.methods.guidedmix.decoupling import blend, global_average_pool, nearest
from sslseg.progress import track
from sslseg.store.format import LABEL_MAP, MapKind

if TYPE_CHECKING:
    from sslseg.methods.guidedmix.method import GuidedMix

DIRECT = "model_masks/direct"


class DecoupledPredictor(Predictor):
    """Mix each image with its most similar labeled images, and average the masks that are decoupled from the mixtures.

    The features of the labeled images are computed once, here. A labeled image of another size is resized. The most
    similar image to a labeled image is that image itself. ``maps`` of a prediction holds ``model_masks/direct``, the
    mask predicted from the image alone.

    Args:
        method: in evaluation mode.
        references: the labeled images.
        number: how many of them an image is mixed with.
    """

    maps: ClassVar[dict[str, MapKind]] = {DIRECT: LABEL_MAP}
    number_of_references: ClassVar[int] = 1

    def __init__(self, method: GuidedMix, protocol: Protocol, references: ImageDataset, *, number: int) -> None:
        super().__init__(method.eval_model, protocol)
        if not 1 <= number <= len(references):
            raise UserError(
                f"each image cannot be mixed with {number} of {len(references)} labeled images; give 1 to"
                f" {len(references)} with `pseudolabel --predictor decoupled --references N`"
            )
        self.method, self.references, self.number = method, references, number
        with torch.inference_mode():
            single = [[index] for index in range(len(references))]
            batches = track(image_loader(references, single, workers=0), "labeled images", total=len(single))
            self.vectors = torch.cat([self.encode([sample["inputs"] for sample in batch]) for batch in batches])

    @classmethod
    def of(  # type: ignore[override]
        cls, method: GuidedMix, protocol: Protocol, *, references: ImageDataset, number: int
    ) -> DecoupledPredictor:
        return cls(method, protocol, references, number=number)

    def encode(self, images: Sequence[Tensor]) -> Tensor:
        """Return the last encoder feature of images of one size, after global average pooling.

        **Shape**: N of 3 x H x W uint8 -> N x D.
        """
        return global_average_pool(self.model.extract_feat(self.normalized(images))[-1]).float()

    def reference(self, index: int, like: Tensor) -> Tensor:
        """Return a labeled image at the size of another.

        **Shape**: -> 3 x H x W float32.
        """
        image = self.references[index]["inputs"].float()
        if image.shape == like.shape:
            return image
        return F.interpolate(image[None], like.shape[-2:], mode="bilinear", align_corners=False)[0]

    def predict_batch(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        direct, _, _ = super().predict_batch(images)
        chosen = nearest(self.encode(images), self.vectors, self.number)
        weight, total = self.method.middle_lambda, torch.zeros((), device=get_device())
        for indices in chosen.T.tolist():
            references = [self.reference(index, image) for index, image in zip(indices, images, strict=True)]
            mixtures = [blend(one, other.float(), weight) for one, other in zip(references, images, strict=True)]
            mixed, labeled = (
                super(DecoupledPredictor, self).predict_batch(views)[1] for views in (mixtures, references)
            )
            total = total + self.method.decoupled_probabilities(mixed, labeled, weight)
        return total.max(dim=1).indices, total / self.number, {DIRECT: direct}
