_base_ = '../_base_/recipes/cps_cityscapes.py'
method = dict(type='CPS', weight=6.0)
