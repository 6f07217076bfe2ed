# The same network and recipe as guidedmix/voc, on labelled images only.
_base_ = '../_base_/recipes/guidedmix.py'
data = dict(batch_size=12, crop=(321, 321))
method = dict(type='Supervised')
