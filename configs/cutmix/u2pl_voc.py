_base_ = ['../_base_/recipes/u2pl_voc.py', '../_base_/methods/u2pl_cutmix.py']
