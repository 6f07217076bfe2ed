# As u2pl_voc. OHEM on labeled images: the official implementation keeps at least 100,000 pixels of a rank's two images; min_kept
# of mmseg is per image. Its head learns at the backbone's rate here; the paper says ten times "in all experiments".
_base_ = ['../models/deeplabv3plus_r101.py', '../runtime/default.py']
model = dict(decode_head=dict(sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=50000)))
data = dict(batch_size=16, crop=(769, 769), scale=(0.5, 2.0), flip=0.5, cat_max_ratio=1.0)
views = dict(strong=[])
schedule = dict(epochs=200, iterations=None, warmup=0.0, power=0.9, validations=20)
optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4)
paramwise = dict(
    custom_keys={
        'decode_head': dict(lr_mult=10.0),
        'auxiliary_head': dict(lr_mult=10.0),
        'projection': dict(lr_mult=10.0)
    })
evaluation = dict(mode='slide', crop=(769, 769), stride=(513, 513))
