# GCT paper, Sec. 4.5, with the detector of gct/default.
_base_ = './default.py'
method = dict(detector=dict(width=8, strides=(2, 2, 1, 2, 1, 1, 1, 1)))
optimizers = dict(detector=dict(lr=1e-3))
