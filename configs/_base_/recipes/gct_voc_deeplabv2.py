# DeepLabV2's own recipe: SGD at 2.5e-4, ten times as much for the head, 20,000 steps of 10 images: N = 200,000.
_base_ = ['../models/deeplabv2_r101.py', './gct_voc.py']
model = dict(backbone=dict(norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True))
schedule = dict(samples=200000, iters=None, warmup=0.0, power=0.9, validations=20)
optimizer = dict(type='SGD', lr=2.5e-4, momentum=0.9, weight_decay=5e-4)
paramwise = dict(custom_keys=dict(decode_head=dict(lr_mult=10.0)))
