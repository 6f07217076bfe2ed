# The network and recipe of cps/voc, on labeled images only; as many iterations.
_base_ = '../_base_/recipes/cps_voc.py'
method = dict(type='Supervised')
