# As gct_voc_deeplabv2, with PSPNet's own recipe: SGD at 0.01, 30,000 iterations of 16 images: N = 480,000. BatchNorm is
# frozen: 4 images are too few for it.
_base_ = ['../models/pspnet_r101.py', '../runtime/default.py']
model = dict(backbone=dict(norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True))
data = dict(batch_size=2, crop=(321, 321), scale=(0.5, 1.5), flip=0.5, cat_max_ratio=1.0)
schedule = dict(samples=480000, iterations=None, warmup=0.0, power=0.9, validations=20)
optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
