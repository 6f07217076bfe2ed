# The network and recipe of guidedmix/voc, on labeled images only.
_base_ = '../_base_/recipes/guidedmix.py'
data = dict(batch_size=12, crop=(321, 321))
method = dict(type='Supervised')
