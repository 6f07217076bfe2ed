_base_ = '../_base_/recipes/cps_cityscapes.py'
method = dict(type='CPS', mix='cutmix', weight=5.0)
