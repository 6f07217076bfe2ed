_base_ = '../_base_/recipes/gct_voc_pspnet.py'
method = dict(type='Supervised')
