_base_ = '../_base_/recipes/unimatch_cityscapes.py'
method = dict(type='Supervised')
