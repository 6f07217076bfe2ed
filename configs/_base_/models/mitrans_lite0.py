# The network of GuidedMix-Net on the encoder of deeplabv3plus_lite0.
_base_ = './deeplabv3plus_lite0.py'
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    neck=dict(type='PyramidPooling', in_channels=320, channels=96, norm_cfg=norm_cfg),
    decode_head=dict(
        _delete_=True,
        type='MITransHead',
        in_channels=[24, 40, 112, 96],
        in_index=[0, 1, 2, 3],
        strides=(4, 8, 16, 16),
        channels=96,
        attention=True,
        dropout_ratio=0.1,
        num_classes=2,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)))
