# Yang et al., CVPR 2023, Sec. 4.1 and the official implementation: DeepLabV3+ of output stride 16, 8 labeled
# and 8 unlabeled images per iteration, SGD with ten times the rate for the head, whole images in validation.
_base_ = ['../models/deeplabv3plus_r101.py', '../runtime/jitter.py']
model = dict(
    backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    decode_head=dict(dilations=(1, 6, 12, 18), channels=256, dropout_ratio=0.0, align_corners=True),
    auxiliary_head=None)
data = dict(batch_size=8, crop=(321, 321), scale=(0.5, 2.0), flip=0.5, cat_max_ratio=1.0)
schedule = dict(epochs=80, iterations=None, warmup=0.0, power=0.9, validations=20)
optimizer = dict(type='SGD', lr=1e-3, momentum=0.9, weight_decay=1e-4)
paramwise = dict(custom_keys=dict(decode_head=dict(lr_mult=10.0)))
