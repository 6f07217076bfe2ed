# The last row of U2PL's Table 3.
_base_ = './cityscapes.py'
method = dict(mix='ael')
