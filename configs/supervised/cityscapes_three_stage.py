# Stage 1 of Ke et al. on Cityscapes.
_base_ = '../_base_/recipes/three_stage_cityscapes.py'
method = dict(type='Supervised')
