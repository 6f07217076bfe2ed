# "MT" of the paper's tables.
_base_ = '../_base_/recipes/u2pl_cityscapes.py'
method = dict(type='MeanTeacher', consistency='hard', rampup=0.0)
