# Zhao et al., CVPR 2023, and the official implementation: as UniMatch's, with grids of 2, 4 and 8 in the last stage, twice the
# batch, and crops of 513.
_base_ = '../_base_/recipes/unimatch_voc.py'
model = dict(backbone=dict(multi_grid=(2, 4, 8)))
data = dict(batch_size=16, crop=(513, 513))
views = dict(strong=[dict(type='RandomIntensity', num_ops=3)])
method = dict(type='AugSeg')
