# GCT in U2PL's Table 3.
_base_ = '../_base_/recipes/u2pl_cityscapes.py'
method = dict(type='GCT')
