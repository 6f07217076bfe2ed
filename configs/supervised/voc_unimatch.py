# The network and recipe of unimatch/voc, on labeled images only; as many iterations.
_base_ = '../_base_/recipes/unimatch_voc.py'
method = dict(type='Supervised')
