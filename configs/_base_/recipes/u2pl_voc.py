# Wang et al., CVPR 2022, Sec. 4.1 and Appendix A: DeepLabV3+ on ResNet-101, SGD with ten times the rate for all but the
# backbone, 16 labeled and 16 unlabeled images per iteration, images mixed and not augmented otherwise. The official
# implementation: momentum; no auxiliary head; validation on the center. Classic and blender VOC differ in the split alone.
_base_ = ['../models/deeplabv3plus_r101.py', '../runtime/default.py']
model = dict(auxiliary_head=None)
data = dict(batch_size=16, crop=(513, 513), scale=(0.5, 2.0), flip=0.5, cat_max_ratio=1.0)
views = dict(strong=[])
schedule = dict(epochs=80, iterations=None, warmup=0.0, power=0.9, validations=20)
optimizer = dict(type='SGD', lr=1e-3, momentum=0.9, weight_decay=1e-4)
paramwise = dict(
    custom_keys={
        'decode_head': dict(lr_mult=10.0),
        'auxiliary_head': dict(lr_mult=10.0),
        'projection': dict(lr_mult=10.0)
    })
evaluation = dict(mode='center-crop', crop=(513, 513))
