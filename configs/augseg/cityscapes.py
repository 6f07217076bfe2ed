# As augseg/voc. OHEM keeps 100,000 pixels of a rank's four images.
_base_ = '../_base_/recipes/unimatch_cityscapes.py'
model = dict(backbone=dict(multi_grid=(2, 4, 8)), decode_head=dict(sampler=dict(min_kept=25000)))
data = dict(batch_size=16, crop=(800, 800))
views = dict(strong=[dict(type='RandomIntensity', num_ops=3)])
optimizer = dict(lr=0.01, weight_decay=5e-4)
evaluation = dict(crop=(800, 800), stride=(533, 533))
method = dict(type='AugSeg', threshold=0.0, decay=0.996)
