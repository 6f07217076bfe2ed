# As unimatch_voc, with one rate for encoder and head. OHEM on labeled images: the official implementation keeps at least 200,000
# pixels of a rank's two images; min_kept of mmseg is per image.
_base_ = ['../models/deeplabv3plus_r101.py', '../runtime/jitter.py']
model = dict(
    backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    decode_head=dict(
        dilations=(1, 6, 12, 18),
        channels=256,
        dropout_ratio=0.0,
        align_corners=True,
        sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=100000)),
    auxiliary_head=None)
data = dict(batch_size=8, crop=(801, 801), scale=(0.5, 2.0), flip=0.5, cat_max_ratio=1.0)
schedule = dict(epochs=240, iterations=None, warmup=0.0, power=0.9, validations=20)
optimizer = dict(type='SGD', lr=5e-3, momentum=0.9, weight_decay=1e-4)
evaluation = dict(mode='slide', crop=(801, 801), stride=(534, 534))
