# Stage 1 of Ke et al. on PASCAL VOC.
_base_ = '../_base_/recipes/three_stage_voc.py'
method = dict(type='Supervised')
