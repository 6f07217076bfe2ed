# As three_stage_voc, but images of 512 x 1024 (tools/resize_dataset.py), 5 crops of 256 x 512, flipped, not scaled.
_base_ = ['../models/deeplabv2_r101.py', '../runtime/default.py']
model = dict(backbone=dict(norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True))
data = dict(batch_size=5, crop=(256, 512), scale=(1.0, 1.0), flip=0.5, cat_max_ratio=1.0)
views = dict(
    strong=[
        dict(type='RandAugment', num_ops=3, prob=0.5, magnitude=(1, 9)),
        dict(type='RandomCutouts', number=3, size=32)
    ])
schedule = dict(iterations=60000, warmup=0.0, power=0.0, validations=20)
optimizer = dict(type='Adam', lr=3e-5)
paramwise = dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))
