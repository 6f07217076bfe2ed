"""UniMatch V2: FixMatch with a second strong view, and complementary dropout between the two.

Yang, Zhao and Zhao, UniMatch V2: Pushing the Limit of Semi-Supervised Semantic Segmentation, TPAMI 2025, Sec. 3.

| paper | here | shape |
|---|---|---|
| x_s1, x_s2 | the views ``strong``, ``strong_2`` | N x 3 x H x W each |
| M in {0, 2}^C from Binomial(0.5), and 2 - M | ``complementary_masks`` | 2 N x C x 1 x 1 |
| M * e(x_s1), (2 - M) * e(x_s2) | ``perturb`` | 2 N x C x h x w |
| L = 1/2 (L_x + lambda 1/2 (L_s1 + L_s2)) | ``FixMatch.loss`` | scalar |

Choices, as in the official implementation: a random half of the images (rounded down) keep all channels in both views; levels of
features with equally many channels share one mask, as the four of a transformer do; others (of a CNN) draw their own. It passes
labeled and strong images one after another; here they go together, as in its FixMatch: without BatchNorm this is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from sslseg.errors import UserError
from sslseg.methods.fixmatch import FixMatch
from sslseg.registry import MODELS
from sslseg.settings import checked


def complementary_masks(number: int, channels: int, untouched: Tensor) -> Tensor:
    """Return channel masks of ``number`` images for their first view, then for their second one, which add up to 2.

    Args:
        untouched: N bool, images whose masks are all 1.

    **Shape**: 2 N x C x 1 x 1 float.
    """
    first = (
        torch.randint(0, 2, (number, channels), device=untouched.device).mul(2.0).masked_fill(untouched[:, None], 1.0)
    )
    return torch.cat((first, 2.0 - first))[..., None, None]


@MODELS.register_module()
class UniMatchV2(FixMatch):
    """UniMatch V2."""

    views: ClassVar[dict[str, tuple[str, ...]]] = {"labeled": ("weak",), "unlabeled": ("weak", "strong", "strong_2")}

    @checked()
    def __init__(
        self,
        *,
        segmentor: dict[str, Any],
        dropout: Annotated[
            bool, "Complementary dropout of the encoder's channels between the two strong views."
        ] = True,
        **settings: Any,
    ) -> None:
        super().__init__(segmentor=segmentor, **settings)
        self.dropout = dropout

    def perturb(self, features: Sequence[Tensor], labeled: int) -> Sequence[Tensor]:
        """Multiply the features of the strong views, which follow the ``labeled`` ones, by complementary masks.

        **Shape**: levels of (L + 2 N) x C x h x w -> the same.
        """
        if not self.dropout:
            return features
        check_maps(features)
        number = (len(features[0]) - labeled) // 2
        untouched = torch.rand(number, device=features[0].device).argsort().argsort() < number // 2
        masks = {
            width: complementary_masks(number, width, untouched) for width in {len(level[0]) for level in features}
        }
        return [
            torch.cat((level[:labeled], level[labeled:] * masks[len(level[0])].to(level.dtype))) for level in features
        ]


def check_maps(features: Sequence[Tensor]) -> None:
    """Raise UserError unless an encoder's features are maps."""
    if not all(torch.is_tensor(level) and level.dim() == 4 for level in features):
        raise UserError("the backbone gives features that are not maps of channels; use one that gives N x C x H x W")
