_base_ = '../_base_/recipes/cps_voc.py'
method = dict(type='CPS')
