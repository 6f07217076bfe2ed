_base_ = ['../_base_/recipes/u2pl_cityscapes.py', '../_base_/methods/u2pl.py']
method = dict(warmup_epochs=20)
