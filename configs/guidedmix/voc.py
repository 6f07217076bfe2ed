# Tables 1 to 5: crops of 321; lambda below 0.5.
_base_ = ['../_base_/models/mitrans_r101.py', '../_base_/recipes/guidedmix.py']
data = dict(batch_size=12, crop=(321, 321))
method = dict(type='GuidedMix')
