_base_ = '../_base_/recipes/gct_voc_deeplabv2.py'
method = dict(type='GCT')
