# Ke et al., ECCV 2020, Sec. 4.1: crops of 321 after random scaling and flips; 2 labeled and 2 unlabeled images on each of
# their GPUs; N samples in all for every method (schedule.samples). DeepLabV2's own recipe: SGD at 2.5e-4, ten times as much
# for the head, 20,000 iterations of 10 images: N = 200,000.
_base_ = ['../models/deeplabv2_r101.py', '../runtime/default.py']
model = dict(backbone=dict(norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True))
data = dict(batch_size=2, crop=(321, 321), scale=(0.5, 1.5), flip=0.5, cat_max_ratio=1.0)
schedule = dict(samples=200000, iterations=None, warmup=0.0, power=0.9, validations=20)
optimizer = dict(type='SGD', lr=2.5e-4, momentum=0.9, weight_decay=5e-4)
paramwise = dict(custom_keys=dict(decode_head=dict(lr_mult=10.0)))
