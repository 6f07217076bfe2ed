_base_ = '../_base_/recipes/u2pl_voc.py'
method = dict(type='Supervised')
