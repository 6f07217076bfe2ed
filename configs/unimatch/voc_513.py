# The blender lists of U2PL.
_base_ = '../_base_/recipes/unimatch_voc.py'
data = dict(crop=(513, 513))
method = dict(type='UniMatch')
