# The strong view of AugSeg (Zhao et al., CVPR 2023) instead of color jitter.
_base_ = './default.py'
views = dict(strong=[dict(type='RandomIntensity')])
