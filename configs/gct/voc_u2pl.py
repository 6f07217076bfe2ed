# GCT in U2PL's Table 2.
_base_ = '../_base_/recipes/u2pl_voc.py'
method = dict(type='GCT')
