_base_ = './default.py'
method = dict(semi_weight=0.1)
