"""Semi-supervised semantic segmentation on MMSegmentation."""

__version__ = "0.2.0.dev0"
