_base_ = ['../_base_/recipes/u2pl_cityscapes.py', '../_base_/methods/u2pl_cutmix.py']
