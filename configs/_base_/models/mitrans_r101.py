# As mitrans_r50.
_base_ = 'mmseg::_base_/models/fcn_r50-d8.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    pretrained='open-mmlab://resnet101_v1c',
    backbone=dict(depth=101, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), contract_dilation=False),
    neck=dict(type='PyramidPooling', in_channels=2048, channels=512, norm_cfg=norm_cfg),
    decode_head=dict(
        _delete_=True,
        type='MITransHead',
        in_channels=[256, 512, 1024, 512],
        in_index=[0, 1, 2, 3],
        strides=(4, 8, 16, 32),
        channels=128,
        attention=True,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=None)
