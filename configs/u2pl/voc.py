# Classic and blender: they differ in the split alone.
_base_ = '../_base_/recipes/u2pl_voc.py'
method = dict(type='U2PL')
