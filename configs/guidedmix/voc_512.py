# Table 10: crops of 512.
_base_ = ['../_base_/models/mitrans_r101.py', '../_base_/recipes/guidedmix.py']
data = dict(batch_size=12, crop=(512, 512))
method = dict(type='GuidedMix')
