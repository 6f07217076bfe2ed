# Wang et al., CVPR 2022, Sec. 4.1 and Appendix A, what VOC and Cityscapes share: DeepLabV3+ on ResNet-101, SGD with ten times
# the rate for all that is not the backbone, 16 labelled and 16 unlabelled images a step. Momentum: as in the authors' program.
_base_ = ['../models/deeplabv3plus_r101.py', '../runtime/default.py']
data = dict(batch_size=16, scale=(0.5, 2.0), flip=0.5)
views = dict(strong=[])  # images are mixed, nothing else
schedule = dict(iters=None, warmup=0.0, power=0.9, validations=20)
optimizer = dict(type='SGD', momentum=0.9)
paramwise = dict(
    custom_keys={
        'decode_head': dict(lr_mult=10.0),
        'auxiliary_head': dict(lr_mult=10.0),
        'projection': dict(lr_mult=10.0)
    })
