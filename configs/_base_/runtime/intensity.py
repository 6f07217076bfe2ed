# The strong view of AugSeg: one to three of eleven operations, of random strength.
_base_ = './default.py'
views = dict(strong=[dict(type='RandomIntensity', num_ops=3)])
