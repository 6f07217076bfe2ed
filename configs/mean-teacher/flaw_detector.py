# GCT paper, Sec. 4.5: no consistency where the teacher is held to be more wrong than the student.
_base_ = './default.py'
method = dict(detector=dict(width=16, norm='bn'))
optimizers = dict(detector=dict(type='Adam', lr=1e-4, betas=(0.9, 0.99)))
