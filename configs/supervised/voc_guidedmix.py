# The network and recipe of guidedmix/voc, on labeled images only.
_base_ = ['../_base_/models/mitrans_r101.py', '../_base_/recipes/guidedmix.py']
data = dict(batch_size=12, crop=(321, 321))
method = dict(type='Supervised')
