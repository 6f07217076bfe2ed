# Table 2's first row: FCN on ResNet-50 with the recipe of guidedmix/voc, on labeled images only.
_base_ = ['../_base_/models/fcn_r50.py', '../_base_/recipes/guidedmix.py']
data = dict(batch_size=12, crop=(321, 321))
method = dict(type='Supervised')
