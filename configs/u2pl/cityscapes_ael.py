# The last row of U2PL's Table 3.
_base_ = '../_base_/recipes/u2pl_cityscapes.py'
method = dict(type='U2PL', warmup='20 epochs', mix='ael')
