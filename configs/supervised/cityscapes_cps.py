# The network and recipe of cps/cityscapes, on labeled images only; as many iterations.
_base_ = '../_base_/recipes/cps_cityscapes.py'
method = dict(type='Supervised')
