_base_ = ['../_base_/recipes/gct_voc_deeplabv2.py', '../_base_/methods/gct.py']
