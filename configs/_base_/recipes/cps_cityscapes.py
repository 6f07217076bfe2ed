# As cps_voc, with OHEM on labeled images. 137 epochs are those of the split 1/8; 128, 160 and 240 of 1/16, 1/4 and 1/2 are as many
# iterations.
_base_ = ['../models/deeplabv3plus_r101.py', '../runtime/default.py']
model = dict(
    backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), multi_grid=(2, 4, 8)),
    decode_head=dict(
        dilations=(1, 6, 12, 18),
        channels=256,
        dropout_ratio=0.0,
        align_corners=True,
        sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=50000)),
    auxiliary_head=None)
data = dict(batch_size=8, crop=(800, 800), scale=(0.5, 2.0), flip=0.5, cat_max_ratio=1.0)
schedule = dict(epochs=137, iterations=None, warmup=0.0, power=0.9, validations=20)
optimizer = dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4)
paramwise = dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
evaluation = dict(mode='slide', crop=(800, 800), stride=(534, 534))
