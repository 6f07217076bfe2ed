# As fixmatch/voc.
_base_ = '../_base_/recipes/unimatch_cityscapes.py'
method = dict(type='FixMatch', threshold=0.0, decay=0.0)
