# Ke et al., Sec. IV-B: Adam at 3e-5, 60,000 steps, BatchNorm frozen; a tenth of the rate for the pretrained backbone,
# as in the authors' program.
_base_ = ['../models/deeplabv2_r101.py', '../runtime/default.py']
model = dict(backbone=dict(norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True))
schedule = dict(iters=60000, warmup=0.0, power=0.0, validations=20)
optimizer = dict(type='Adam', lr=3e-5)
paramwise = dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))
