# GCT paper, Sec. 4.5: no consistency where the teacher is held to be more wrong than the student. The detector is that of
# gct/default.
_base_ = './default.py'
method = dict(detector=dict(width=8, strides=(2, 2, 1, 2, 1, 1, 1, 1), norm='bn'))
optimizers = dict(detector=dict(type='Adam', lr=1e-3, betas=(0.9, 0.99)))
