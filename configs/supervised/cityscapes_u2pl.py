_base_ = '../_base_/recipes/u2pl_cityscapes.py'
method = dict(type='Supervised')
