# With L_semi of Hung et al., which the GCT paper leaves out.
_base_ = './default.py'
method = dict(semi_weight=0.1)
