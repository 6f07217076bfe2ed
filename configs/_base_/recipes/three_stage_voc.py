# Ke et al., three-stage self-training, Sec. IV-B: Adam at 3e-5, 60,000 iterations of 10 crops of 321, BatchNorm frozen. The
# official implementation: a tenth of the rate for the pretrained backbone; 3 of 14 operations, then three cutouts of 32.
_base_ = ['../models/deeplabv2_r101.py', '../runtime/default.py']
model = dict(backbone=dict(norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True))
data = dict(batch_size=10, crop=(321, 321), scale=(0.5, 1.5), flip=0.5, cat_max_ratio=1.0)
views = dict(
    strong=[
        dict(type='RandAugment', num_ops=3, prob=0.5, magnitude=(1, 9)),
        dict(type='RandomCutouts', number=3, size=32)
    ])
schedule = dict(iterations=60000, warmup=0.0, power=0.0, validations=20)
optimizer = dict(type='Adam', lr=3e-5)
paramwise = dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))
